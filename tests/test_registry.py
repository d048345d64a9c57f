"""Registries: errors for unknown names and wrong arguments list the accepted ones."""

import pytest

from finallyse.errors import UserError
from finallyse.registry import Registry


@pytest.fixture
def registry() -> Registry:
    registry = Registry("loss")

    @registry.register("feature_loss")
    class FeatureLoss:
        def __init__(self, relative: bool = False):
            self.relative = relative

    @registry.register("gen_loss")
    class GenLoss:
        def __init__(self, target: float):
            self.target = target

    return registry


def test_maps_names_to_classes_that_can_be_built(registry):
    assert registry["feature_loss"](relative=True).relative is True
    assert sorted(registry) == ["feature_loss", "gen_loss"]
    assert "gen_loss" in registry and "mel" not in registry


def test_an_unknown_name_fails_with_the_nearest(registry):
    with pytest.raises(UserError, match=r"unknown loss 'featur_loss'; did you mean 'feature_loss'"):
        registry["featur_loss"]


def test_a_wrong_argument_fails_with_the_accepted_ones(registry):
    with pytest.raises(UserError, match=r"loss 'feature_loss' has no argument 'relativ'.*accepted: relative"):
        registry["feature_loss"](relativ=True)
    with pytest.raises(UserError, match=r"loss 'gen_loss'.*target.*accepted: target"):
        registry["gen_loss"]()


def test_a_subclass_keeps_its_own_arguments(registry):
    class Wider(registry["feature_loss"]):
        def __init__(self, relative: bool, width: int):
            super().__init__(relative=relative)
            self.width = width

    assert Wider(relative=True, width=3).width == 3


def test_registering_a_name_twice_is_a_defect(registry):
    with pytest.raises(ValueError, match="registered twice"):
        registry.register("gen_loss")(type("Other", (), {}))
