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
from finallyse.models import (  # noqa: E402
    complex_mask,  # noqa: F401
    finally_gen,  # noqa: F401
    hifigan,  # noqa: F401
    hifigan_discriminators,  # noqa: F401
    hifipp,  # noqa: F401
    ms_stft,  # noqa: F401
)

__all__ = ["models_registry"]
