"""Networks by their published names.

Generators:      wav = model(mel) | model(wav) | model(wav16, ssl_features)
Discriminators:  logits, feature_maps = model(wav), one list entry per sub-discriminator
"""

from finallyse.registry import Registry

models_registry = Registry("network")

# Each module files its networks under `models_registry`, which therefore stands above.
from finallyse.models import finally_gen, hifigan, hifigan_discriminators, hifipp, ms_stft  # noqa: E402, F401

__all__ = ["models_registry"]
