"""WavLM (Chen et al., arXiv 2110.13900), frozen: the features that condition FINALLY and the feature space of `lmos`.

The network is that of `transformers.WavLMModel` (equal outputs: tests/test_wavlm.py), optimised for one frozen set of
weights that is used repeatedly on short clips:

- query, key and value are one matrix product, attention is torch's fused kernel;
- the relative position bias is looked up once per length, the norm of the positional convolution is folded in;
- activations stay [B, frames, channels] throughout, so that no layer norm needs a transposition;
- on a CPU the transformer's matrix products use oneDNN, like convolutions;
- under bfloat16 autocast the transformer's weights are cast once, not at every call.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from finallyse.checks import validate
from finallyse.errors import UserError
from finallyse.hardware import supports_bf16
from finallyse.models.inputs import check_shape
from finallyse.models.tensors import bounded_by, load_strictly, load_tensors
from finallyse.precision import full_precision


class WavLM(nn.Module):
    """WavLM read from a folder in Hugging Face's layout, offline: frozen, always in eval mode, for audio at 16 kHz.

    folder: contains config.json, model.safetensors or pytorch_model.bin, and preprocessor_config.json, whose
        `do_normalize` says whether WavLM takes audio of zero mean and unit variance (without that file: yes, as for
        WavLM-large); if so, `last_hidden_state` normalises each clip.

    A frame sees 400 samples, with a hop of 320: T samples give (T - 400) // 320 + 1 frames, at least one (shorter clips
    are padded with zeros).

    Raises UserError for a missing folder or file, and for weights that do not fit the config.
    """

    sample_rate = 16000

    def __init__(self, folder: str | Path):
        super().__init__()
        folder = Path(folder)
        config = self.read_config(folder)
        preprocessor = folder / "preprocessor_config.json"
        normalize = not preprocessor.is_file() or bool(_read_json(preprocessor).get("do_normalize", True))
        try:
            weights = _renamed(_read_weights(folder), config, folder)
        except RuntimeError as error:  # of shapes that cannot be joined
            raise UserError(f"{folder}: the weights do not fit its config.json: {error}") from error
        with bounded_by(weights, str(folder)):
            self._build(config, normalize)
        load_strictly(self, weights, str(folder))

    @staticmethod
    def read_config(folder: str | Path) -> dict[str, Any]:
        """The folder's config.json, checked."""
        config = _read_json(Path(folder) / "config.json")
        _check(config, Path(folder))
        return config

    @classmethod
    def without_weights(cls, config: dict[str, Any]) -> WavLM:
        """A WavLM of these sizes, with arbitrary weights."""
        made = cls.__new__(cls)
        nn.Module.__init__(made)
        made._build(config, normalize=True)
        return made

    def _build(self, config: dict[str, Any], normalize: bool) -> None:
        self.normalize = normalize
        self.dim, self.conv_dim = config["hidden_size"], config["conv_dim"][-1]
        self.hop = math.prod(config["conv_stride"])
        self.receptive_field = 1  # samples that a frame sees
        for kernel, stride in reversed(list(zip(config["conv_kernel"], config["conv_stride"], strict=True))):
            self.receptive_field = (self.receptive_field - 1) * stride + kernel
        self.encoder = ConvEncoder(config)
        self.transformer = Transformer(config)
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> WavLM:
        """Never trained: stays in eval mode regardless of the parent module."""
        return super().train(False)

    @torch.no_grad()
    def last_hidden_state(self, wav: Tensor) -> Tensor:
        """wav [B, T] or [B, 1, T] at 16 kHz -> [B, dim, frames], float32, without gradient."""
        wav = _flat(wav)
        if self.normalize:
            mean, scale = statistics(wav)
            wav = (wav.float() - mean) * scale
        return self.transformer(self.transformer.input_norm(self._frames(wav))).transpose(1, 2)

    def conv_features(self, wav: Tensor, layer_norm: bool = True) -> Tensor:
        """wav [B, T] or [B, 1, T] at 16 kHz -> [B, conv_dim, frames], float32; the gradient flows to wav.

        The output of the convolutional encoder, after the layer norm that precedes the transformer, or before it.
        wav is not normalised, regardless of `normalize`: normalising two clips for comparison is up to the loss.
        """
        frames = self._frames(_flat(wav))
        return (self.transformer.input_norm(frames) if layer_norm else frames).transpose(1, 2)

    def _frames(self, wav: Tensor) -> Tensor:
        """The convolutional encoder's output [B, frames, conv_dim]."""
        with full_precision(wav):
            wav = F.pad(wav.float(), (0, max(0, self.receptive_field - wav.shape[-1])))
        return self.encoder(wav).float()


def statistics(wav: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and 1 / standard deviation, [B, 1] each, of clips wav [B, T]; WavLM-large takes (wav - mean) * scale."""
    variance, mean = torch.var_mean(wav.float(), dim=-1, keepdim=True, correction=0)
    return mean, torch.rsqrt(variance + 1e-7)


def _flat(wav: Tensor) -> Tensor:
    """wav [B, T] or [B, 1, T] as [B, T]."""
    wav = wav.unsqueeze(1) if wav.dim() == 2 else wav
    check_shape("WavLM", wav, 1, "wav [B, T] or [B, 1, T] at 16 kHz")
    return wav.squeeze(1)


# --- the convolutional encoder (section 3.1 of arXiv 2006.11477, whose encoder it is) ---------------------------------


class TimeConv(nn.Module):
    """1-d convolution of [B, T, C]. It runs as a 2-d one on the same memory, which is channels-last for both."""

    def __init__(self, weight: tuple[int, int, int], bias: bool, stride: int = 1, padding: int = 0, groups: int = 1):
        super().__init__()
        out_channels, in_channels, kernel = weight
        empty = torch.empty(out_channels, in_channels, 1, kernel, memory_format=torch.channels_last)
        self.weight = nn.Parameter(empty)
        self.bias = nn.Parameter(torch.empty(out_channels)) if bias else None
        self.stride, self.padding, self.groups = (1, stride), (0, padding), groups

    def forward(self, x: Tensor) -> Tensor:
        x = x.transpose(1, 2).unsqueeze(2)
        x = F.conv2d(x, self.weight, self.bias, self.stride, self.padding, groups=self.groups)
        return x.squeeze(2).transpose(1, 2)


class ConvEncoder(nn.Module):
    """wav [B, T] -> [B, frames, C]: convolutions, each followed by a norm over channels and GELU.

    With `feat_extract_norm: group` (WavLM-base) only the first has a norm, over time.
    """

    def __init__(self, config: dict[str, Any]):
        super().__init__()
        widths, bias = config["conv_dim"], config["conv_bias"]
        self.group_norm = config["feat_extract_norm"] == "group"
        self.convs, self.norms = nn.ModuleList(), nn.ModuleList()
        for i, (kernel, stride) in enumerate(zip(config["conv_kernel"], config["conv_stride"], strict=True)):
            shape = (widths[i], widths[i - 1] if i else 1, kernel)
            self.convs.append(TimeConv(shape, bias, stride))
            self.norms.append(nn.LayerNorm(widths[i]) if i == 0 or not self.group_norm else nn.Identity())

    def forward(self, wav: Tensor) -> Tensor:
        # a one-channel convolution is a matrix product with the clip's overlapping frames
        first = self.convs[0]
        x = F.linear(wav.unfold(1, first.weight.shape[-1], first.stride[1]), first.weight.flatten(1), first.bias)
        x = F.gelu(self._over_time(x) if self.group_norm else self.norms[0](x))
        for conv, norm in zip(self.convs[1:], self.norms[1:], strict=True):
            x = F.gelu(norm(conv(x)))
        return x

    def _over_time(self, x: Tensor) -> Tensor:
        """Norm of each channel over time."""
        norm, channels = self.norms[0], x.shape[-1]
        return F.group_norm(x.transpose(1, 2), channels, norm.weight, norm.bias, norm.eps).transpose(1, 2)


# --- the transformer (section 3.2 of arXiv 2110.13900) ----------------------------------------------------------------


class Projection(nn.Module):
    """x @ weight.T + bias with frozen weights, in the dtype of x; no gradient.

    A bfloat16 copy of the weights is created on first use. On a CPU the product runs in oneDNN rather than in MKL,
    which does not fully use an AMD processor.
    """

    def __init__(self, in_features: int, out_features: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self.bias = nn.Parameter(torch.empty(out_features))
        self._cast: tuple[tuple, Tensor, Tensor] | None = None
        self._onednn = torch.backends.mkldnn.is_available()
        self._onednn_bf16 = self._onednn and supports_bf16()

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.weight, self.bias
        if x.dtype != weight.dtype:
            key = (x.dtype, weight.device, weight.data_ptr(), weight._version)
            if self._cast is None or self._cast[0] != key:
                self._cast = (key, weight.to(x.dtype), bias.to(x.dtype))
            _, weight, bias = self._cast
        if x.device.type == "cpu" and (self._onednn if x.dtype == torch.float32 else self._onednn_bf16):
            return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
        return F.linear(x, weight, bias)


class Attention(nn.Module):
    """Self-attention with WavLM's gated relative position bias (section 3.2): [B, L, C] -> [B, L, C]."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = Projection(width, 3 * width)
        self.out = Projection(width, width)
        self.gate_weight = nn.Parameter(torch.empty(2, width // heads))
        self.gate_bias = nn.Parameter(torch.empty(2))
        self.gate_scale = nn.Parameter(torch.empty(heads))

    def forward(self, x: Tensor, position_bias: Tensor, dtype: torch.dtype) -> Tensor:
        """position_bias: [heads, L, L]; dtype: dtype of the products."""
        length = x.shape[1]
        per_head = x.view(*x.shape[:2], self.heads, -1)  # [B, L, heads, C / heads]
        update, reset = F.linear(per_head, self.gate_weight, self.gate_bias).sigmoid().unbind(-1)
        gate = update * (reset * self.gate_scale - 1.0) + 2.0
        bias = gate.transpose(1, 2).unsqueeze(-1) * position_bias
        x = x.to(dtype)
        query, key, value = self.qkv(x).view(-1, length, 3, self.heads, per_head.shape[-1]).permute(2, 0, 3, 1, 4)
        x = F.scaled_dot_product_attention(query, key, value, attn_mask=bias.to(dtype))
        return self.out(x.transpose(1, 2).flatten(2))


class Layer(nn.Module):
    """Attention and feed-forward, each with its residual; norms before them (`do_stable_layer_norm`) or after.

    The residual stream and the norms are float32; the products are of `dtype`.
    """

    def __init__(self, config: dict[str, Any]):
        super().__init__()
        width, eps = config["hidden_size"], config["layer_norm_eps"]
        self.norm_first = config["do_stable_layer_norm"]
        self.attention = Attention(width, config["num_attention_heads"])
        self.attention_norm = nn.LayerNorm(width, eps)
        self.wide = Projection(width, config["intermediate_size"])
        self.narrow = Projection(config["intermediate_size"], width)
        self.feed_forward_norm = nn.LayerNorm(width, eps)

    def forward(self, x: Tensor, position_bias: Tensor, dtype: torch.dtype) -> Tensor:
        if self.norm_first:
            x = x + self.attention(self.attention_norm(x), position_bias, dtype)
            return x + self.feed_forward(self.feed_forward_norm(x).to(dtype))
        x = self.attention_norm(x + self.attention(x, position_bias, dtype))
        return self.feed_forward_norm(x + self.feed_forward(x.to(dtype)))

    def feed_forward(self, x: Tensor) -> Tensor:
        return self.narrow(F.gelu(self.wide(x)))


class Transformer(nn.Module):
    """Normed convolutional features [B, L, conv_dim] -> last hidden state [B, L, C], float32, without gradient."""

    def __init__(self, config: dict[str, Any]):
        super().__init__()
        width, eps = config["hidden_size"], config["layer_norm_eps"]
        kernel, groups = config["num_conv_pos_embeddings"], config["num_conv_pos_embedding_groups"]
        self.input_norm = nn.LayerNorm(config["conv_dim"][-1], eps)
        self.projection = Projection(config["conv_dim"][-1], width)
        self.position_conv = TimeConv((width, width // groups, kernel), True, padding=kernel // 2, groups=groups)
        self.position_embedding = nn.Parameter(torch.empty(config["num_buckets"], config["num_attention_heads"]))
        self.max_distance = config["max_bucket_distance"]
        self.layers = nn.ModuleList(Layer(config) for _ in range(config["num_hidden_layers"]))
        self.norm = nn.LayerNorm(width, eps)
        self.norm_last = config["do_stable_layer_norm"]
        self._bias: Tensor | None = None

    @torch.no_grad()
    def forward(self, frames: Tensor) -> Tensor:
        device = frames.device.type
        halved = device != "meta" and torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if halved else torch.float32
        with full_precision(frames):
            x = self.projection(frames.to(dtype)).float()
            position = self.position_conv(x)[:, : x.shape[1]]  # an even kernel yields one extra frame
            x = x + F.gelu(position)
            if not self.norm_last:
                x = self.norm(x)
            bias = self.position_bias(x.shape[1])
            for layer in self.layers:
                x = layer(x, bias, dtype)
            return self.norm(x) if self.norm_last else x

    def position_bias(self, length: int) -> Tensor:
        """Bias per head for each distance from query to key, [heads, length, length]; cached for the last length."""
        table = self.position_embedding
        if self._bias is None or self._bias.shape[1] != length or self._bias.device != table.device:
            steps = torch.arange(length, device=table.device)
            distance = steps[None, :] - steps[:, None]
            self._bias = table[self.bucket(distance)].permute(2, 0, 1).contiguous()
        return self._bias

    def bucket(self, distance: Tensor) -> Tensor:
        """T5's buckets: half of them for keys after the query; exact nearby, logarithmic up to `max_distance`."""
        half = self.position_embedding.shape[0] // 2
        exact = half // 2
        near = distance.abs()
        far = torch.log(near.clamp(min=1).float() / exact) / math.log(self.max_distance / exact) * (half - exact)
        far = (exact + far).long().clamp(max=half - 1)
        return (distance > 0) * half + torch.where(near < exact, near, far)


# --- reading a folder -------------------------------------------------------------------------------------------------


MOST_LAYERS = 1000
SIZE = {"type": "integer", "minimum": 1}
SIZES = {"type": "array", "items": SIZE, "minItems": 1}
OPTIONS = {
    **dict.fromkeys(("conv_dim", "conv_kernel", "conv_stride"), SIZES),
    **dict.fromkeys(("hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers"), SIZE),
    **dict.fromkeys(("num_conv_pos_embeddings", "num_conv_pos_embedding_groups"), SIZE),
    **dict.fromkeys(("num_buckets", "max_bucket_distance"), SIZE),
    "conv_bias": {"type": "boolean"},
    "do_stable_layer_norm": {"type": "boolean"},
    "feat_extract_norm": {"enum": ["layer", "group"]},
    "layer_norm_eps": {"type": "number", "minimum": 0},
}
CONFIG = {"type": "object", "properties": OPTIONS, "required": list(OPTIONS)}


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"{path}: no such file; `wavlm` must name a folder with config.json and model weights")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not readable as JSON: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: must hold keys and values")
    return content


def _check(config: dict[str, Any], folder: Path) -> None:
    """Raise UserError for a config that is none, or with settings that the network above does not support."""
    validate(config, CONFIG, f"{folder}/config.json")
    layers = [len(config[key]) for key in ("conv_dim", "conv_kernel", "conv_stride")]
    if len(set(layers)) > 1 or max(layers[0], config["num_hidden_layers"]) > MOST_LAYERS:
        raise UserError(f"{folder}/config.json: describes layers that no WavLM has")
    known = {"model_type": "wavlm", "hidden_act": "gelu", "feat_extract_activation": "gelu", "add_adapter": False}
    for key, value in known.items():
        if config.get(key, value) != value:
            raise UserError(f"{folder}/config.json: {key} is {config[key]!r}; only {value!r} is known here")


def _read_weights(folder: Path) -> dict[str, Tensor]:
    safe, pickled = folder / "model.safetensors", folder / "pytorch_model.bin"
    if safe.is_file():
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(safe)
        except (SafetensorError, OSError) as error:
            raise UserError(f"{safe}: not readable as safetensors: {error}") from error
    if pickled.is_file():
        state = load_tensors(pickled)
        if not (isinstance(state, dict) and all(torch.is_tensor(value) for value in state.values())):
            raise UserError(f"{pickled}: holds no weights of a WavLM")
        return state
    raise UserError(f"{folder}: holds neither model.safetensors nor pytorch_model.bin")


def _renamed(state: dict[str, Tensor], config: dict[str, Any], folder: Path) -> dict[str, Tensor]:
    """Convert the state_dict of `transformers.WavLMModel` to that of `WavLM`; a UserError lists all missing keys."""
    state = {key.removeprefix("wavlm."): value for key, value in state.items()}
    state.pop("masked_spec_embed", None)  # used in pre-training only
    missing = []

    def take(key: str) -> Tensor:
        if key not in state:
            missing.append(key)
            return torch.zeros(1)
        return state.pop(key).float()

    def copy(new: str, old: str, parts: tuple[str, ...] = ("weight", "bias")) -> None:
        for part in parts:
            renamed[f"{new}.{part}"] = take(f"{old}.{part}")

    renamed: dict[str, Tensor] = {}
    for i in range(len(config["conv_dim"])):
        old = f"feature_extractor.conv_layers.{i}"
        renamed[f"encoder.convs.{i}.weight"] = take(f"{old}.conv.weight").unsqueeze(-2)
        if config["conv_bias"]:
            renamed[f"encoder.convs.{i}.bias"] = take(f"{old}.conv.bias")
        if i == 0 or config["feat_extract_norm"] != "group":
            copy(f"encoder.norms.{i}", f"{old}.layer_norm")
    copy("transformer.input_norm", "feature_projection.layer_norm")
    copy("transformer.projection", "feature_projection.projection")
    copy("transformer.norm", "encoder.layer_norm")
    old = "encoder.pos_conv_embed.conv"
    names = ("weight_g", "weight_v")
    if f"{old}.weight_g" not in state:
        names = ("parametrizations.weight.original0", "parametrizations.weight.original1")
    gain, direction = (take(f"{old}.{name}") for name in names)
    norm = direction.norm(dim=(0, 1), keepdim=True) if direction.dim() == 3 else 1.0
    renamed["transformer.position_conv.weight"] = (direction * (gain / norm)).unsqueeze(-2)
    renamed["transformer.position_conv.bias"] = take(f"{old}.bias")
    renamed["transformer.position_embedding"] = take("encoder.layers.0.attention.rel_attn_embed.weight")
    for i in range(config["num_hidden_layers"]):
        new, old = f"transformer.layers.{i}", f"encoder.layers.{i}"
        for part in ("weight", "bias"):
            projections = [take(f"{old}.attention.{name}_proj.{part}") for name in "qkv"]
            renamed[f"{new}.attention.qkv.{part}"] = torch.cat(projections)
            # the gate's eight outputs are summed in two groups of four, so their weights can be summed instead
            gates = take(f"{old}.attention.gru_rel_pos_linear.{part}")
            renamed[f"{new}.attention.gate_{part}"] = gates.unflatten(0, (2, -1)).sum(1) if len(gates) == 8 else gates
        renamed[f"{new}.attention.gate_scale"] = take(f"{old}.attention.gru_rel_pos_const").flatten()
        copy(f"{new}.attention.out", f"{old}.attention.out_proj")
        copy(f"{new}.attention_norm", f"{old}.layer_norm")
        copy(f"{new}.wide", f"{old}.feed_forward.intermediate_dense")
        copy(f"{new}.narrow", f"{old}.feed_forward.output_dense")
        copy(f"{new}.feed_forward_norm", f"{old}.final_layer_norm")
    if missing or state:
        found = [f"missing {key}" for key in missing] + [f"left over {key}" for key in state]
        raise UserError(f"{folder}: the weights do not fit its config.json: {'; '.join(found)}")
    return renamed
