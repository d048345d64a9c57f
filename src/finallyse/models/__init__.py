"""Networks by their published names.

Generators:      wav = model(mel) | model(wav) | model(wav16, ssl_features)
Discriminators:  logits, feature_maps = model(wav), one list entry per sub-discriminator
"""

from collections.abc import Iterator

from torch import nn

from finallyse.registry import Registry, methods


def _contract(cls: type) -> Iterator[str]:
    yield from methods(cls, nn.Module, "forward")


models_registry = Registry("network", _contract)

# Each module registers its networks in `models_registry`, which must be defined first.
from finallyse.models import finally_gen, hifigan, hifigan_discriminators, hifipp, ms_stft  # noqa: E402, F401

__all__ = ["models_registry"]
