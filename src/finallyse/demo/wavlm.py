"""A WavLM for the demo: the published network's architecture and frame rate, a few thousand random weights.

It has learnt nothing about speech; it only allows whatever uses WavLM to run.
"""

from __future__ import annotations

import functools
import io
import json

import torch

import finallyse.audio.torchaudio_shim  # noqa: F401  before transformers, which imports torchaudio
from finallyse.errors import UserError

HIDDEN = 32


@functools.lru_cache(maxsize=1)
def small_wavlm(seed: int) -> torch.nn.Module:
    """A transformers WavLMModel like WavLM Large (stable layer norm, layer-normed convolutions, hop 320), tiny."""
    from transformers import WavLMConfig, WavLMModel

    config = WavLMConfig(
        hidden_size=HIDDEN,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=2 * HIDDEN,
        conv_dim=(16,) * 7,
        conv_stride=(5, 2, 2, 2, 2, 2, 2),
        conv_kernel=(10, 3, 3, 3, 3, 2, 2),
        conv_bias=False,
        feat_extract_norm="layer",
        do_stable_layer_norm=True,
        num_conv_pos_embeddings=32,
        num_conv_pos_embedding_groups=4,
        num_buckets=32,
        max_bucket_distance=200,
        apply_spec_augment=False,
    )
    config.architectures = ["WavLMModel"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return WavLMModel(config).eval()


def wavlm_file(name: str, seed: int) -> bytes:
    """Contents of one file of the network's folder, in Hugging Face's layout."""
    if name == "config.json":
        return small_wavlm(seed).config.to_json_string(use_diff=True).encode()
    if name == "preprocessor_config.json":
        extractor = {
            "do_normalize": True,
            "feature_extractor_type": "Wav2Vec2FeatureExtractor",
            "feature_size": 1,
            "padding_side": "right",
            "padding_value": 0.0,
            "return_attention_mask": True,
            "sampling_rate": 16000,
        }
        return (json.dumps(extractor, indent=2) + "\n").encode()
    if name == "pytorch_model.bin":
        buffer = io.BytesIO()
        torch.save({key: value.clone() for key, value in small_wavlm(seed).state_dict().items()}, buffer)
        return buffer.getvalue()
    raise UserError(f"wavlm-large: the demo cannot make {name}")
