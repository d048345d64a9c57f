"""Small configurations of every network, and folders of WavLM with random weights."""

import json

import torch

import finallyse.audio.torchaudio_shim  # noqa: F401  before transformers, which imports torchaudio
from finallyse.models import models_registry

HIFI = {
    "hifi_upsample_initial_channel": 32,
    "hifi_resblock_kernel_sizes": [3, 5],
    "hifi_resblock_dilation_sizes": [[1, 3], [1, 2]],
    "hifi_input_channels": 12,
    "spectralunet_out_channels": 12,
    "spectralunet_block_widths": [4, 6, 8, 8, 8],
    "spectralunet_block_depth": 1,
    "waveunet_block_widths": [4, 6, 8],
    "waveunet_block_depth": 1,
    "spectralmasknet_block_widths": [4, 6, 8],
    "spectralmasknet_block_depth": 1,
}
UPSAMPLING = {
    "use_upsamplewaveunet": True,
    "upsamplewaveunet_block_widths": [4, 6, 8],
    "upsamplewaveunet_block_depth": 1,
    "upsamplewaveunet_upsampler_features": 8,
}
NARROW_VOCODER = {
    "resblock": "2",
    "upsample_initial_channel": 16,
    "resblock_kernel_sizes": [3],
    "resblock_dilation_sizes": [[1, 2]],
}
NARROW_HIFI = {
    "hifi_resblock": "2",
    "hifi_upsample_initial_channel": 32,
    "hifi_resblock_kernel_sizes": [3],
    "hifi_resblock_dilation_sizes": [[1, 3]],
    "hifi_input_channels": 8,
    "spectralunet_block_widths": [2, 4, 4, 4, 8],
    "spectralunet_block_depth": 1,
    "spectralunet_out_channels": 8,
    "waveunet_block_widths": [4, 4, 8, 8],
    "waveunet_block_depth": 1,
    "spectralmasknet_block_widths": [4, 4, 8, 8],
    "spectralmasknet_block_depth": 1,
}
SMALL = {
    "hifigan_gen": {
        "upsample_initial_channel": 32,
        "resblock_kernel_sizes": [3, 5],
        "resblock_dilation_sizes": [[1, 3], [1, 2]],
    },
    "hifi++_gen": HIFI,
    "a2a_hifi++_gen": HIFI,
    "finally_gen": HIFI | {"ssl_dim": 24},
    "complex_mask_gen": {
        "channels": [4, 6, 8],
        "width": 16,
        "hidden": 8,
        "dilations": [1, 2, 1, 2],
        "blocks_ahead": 2,
        "means": [2, 4],
    },
    "mpd": {"periods": [2, 3], "widths": [4, 8, 8]},
    "msd": {"widths": [16, 16, 16, 32, 32, 32, 32]},
    "ms-stft_disc": {"filters": 4, "n_ffts": [512, 128], "hop_lengths": [128, 32], "win_lengths": [512, 128]},
}


def make_network(name, **args):
    """A network with random weights from seed 0; also one that starts as the identity changes its input."""
    torch.manual_seed(0)
    model = models_registry[name](**args)
    if name == "complex_mask_gen":
        torch.nn.init.normal_(model.last.weight, std=0.3)
    return model


LAYER_NORM = {"feat_extract_norm": "layer", "do_stable_layer_norm": True}
WAVLM = {"conv_dim": [16] * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4}
SMALL_WAVLM = WAVLM | {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
WAVLM_LARGE = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
}


def write_wavlm(folder, fill=None, safetensors=True, normalize=True, **sizes):
    """Write a WavLM with random weights as transformers does (or as published: a pickle with weight_g and weight_v).

    Args:
        folder: to write to.
        fill: called with the network to give it other weights.
        safetensors: the format.
        normalize: whether it was trained on normalised audio.
        sizes: of transformers' `WavLMConfig`.

    Returns transformers' network with the same weights.
    """
    from transformers import WavLMConfig, WavLMModel

    torch.manual_seed(0)
    network = WavLMModel(WavLMConfig(**LAYER_NORM | sizes)).eval()
    if fill:
        fill(network)
    if safetensors:
        network.save_pretrained(folder)
    else:
        old = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}
        state = network.state_dict()
        for key in list(state):
            for new, name in old.items():
                if new in key:
                    state[key.replace(new, name)] = state.pop(key)
        folder.mkdir(parents=True)
        torch.save(state, folder / "pytorch_model.bin")
        network.config.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({"do_normalize": normalize}))
    return network


def make_wavlm(folder, **options):
    """`write_wavlm` with 24 features and every parameter perturbed."""
    sizes = {"hidden_size": 24, "intermediate_size": 32, "num_buckets": 32, "max_bucket_distance": 80}
    return write_wavlm(folder, **(SMALL_WAVLM | sizes | {"fill": _perturb} | options))


@torch.no_grad()
def _perturb(network):
    """So that the gate is not 1 and norms are not the identity, and every parameter has an effect."""
    for parameter in network.parameters():
        spread = parameter.std() if parameter.numel() > 1 else parameter.abs().mean()
        parameter.add_(0.3 * torch.randn_like(parameter) * spread.clamp(min=0.05))
