"""The table of `finallyse models`: paper, input, output and cost of each network. All numbers are computed."""

from __future__ import annotations

import dataclasses

import torch
from rich.console import Console
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode

from finallyse.models import models_registry
from finallyse.models.base import Generator
from finallyse.models.norms import fold
from finallyse.pretrained import PRETRAINED

WAVLM_LARGE = 1024  # channels
VARIANTS = {"finally_gen": [{}, {"use_upsamplewaveunet": True}]}  # the others: their defaults


@dataclasses.dataclass
class Row:
    """One network."""

    name: str
    paper: str
    parameters: int  # norms folded in, as publications count
    takes: str
    gives: str
    macs_per_second: float  # of audio; convolutions and matrix products


def show(seconds: float, console: Console | None = None) -> None:
    """Print the table of all networks, operations counted on a clip of `seconds`."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("network", "paper", "parameters", "input", "output", "GMAC/s of audio"):
        table.add_column(
            column, justify="right" if column in ("parameters", "GMAC/s of audio") else "left", no_wrap=True
        )
    for row in rows(seconds):
        cost = f"{row.macs_per_second / 1e9:.2f}"
        table.add_row(row.name, row.paper, f"{row.parameters:,}", row.takes, row.gives, cost)
    console = console or Console(width=160)
    console.print("Trained, in the package (finallyse enhance --checkpoint NAME; --card NAME prints the model card):")
    for name, network in PRETRAINED.items():
        console.print(f"  [bold]{name}[/bold]  {network.summary}", highlight=False)
    console.print("\nTo train:")
    console.print(table)
    console.print(
        "Parameters without the norms' gains; WavLM, which finally_gen is conditioned on, apart. Multiply-accumulate "
        "operations of convolutions and matrix products in a forward pass, for one second of audio."
    )


def rows(seconds: float = 1.024) -> list[Row]:
    """A row for every registered network, and for the variants of it that the recipes use."""
    return [row(name, args, seconds) for name in models_registry for args in VARIANTS.get(name, [{}])]


@torch.no_grad()
def row(name: str, args: dict, seconds: float) -> Row:
    """Build a network, fold it, and count."""
    with torch.device("meta"):  # shapes without values: nothing is computed
        network = models_registry[name](**args)
    fold(network.to("meta"))
    label = name + "".join(f" {key}={value}".lower() for key, value in args.items())
    parameters = sum(parameter.numel() for parameter in network.parameters())
    if not isinstance(network, Generator):
        rate = 48000 if name == "ms-stft_disc" else 16000
        inputs, takes = (_like(1, 1, round(seconds * rate)),), "wav [B, 1, T]"
    else:
        rate = network.input_rate
        samples = round(seconds * rate)
        mel, wav = _like(1, 80, samples // 256), _like(1, 1, samples)
        ssl = _like(1, WAVLM_LARGE, samples // 320)
        inputs, takes = {
            "mel": ((mel,), "log-mel [B, 80, F]"),
            "wav": ((wav,), "wav [B, 1, T]"),
            "wav+ssl": ((wav, ssl), f"wav [B, 1, T], ssl [B, {WAVLM_LARGE}, N]"),
        }[network.input_kind]
        takes += f", {rate // 1000} kHz"
    with FlopCounterMode(display=False) as counter:
        output = network(*inputs)
    if torch.is_tensor(output):
        factor = output.shape[-1] // inputs[0].shape[-1]
        length = f"{'' if factor == 1 else factor} {'F' if network.input_kind == 'mel' else 'T'}".strip()
        gives = f"wav [B, 1, {length}], {network.output_rate // 1000} kHz"
        duration = output.shape[-1] / network.output_rate
    else:
        logits, maps = output
        gives = f"{len(logits)} x (logits, {len(maps[0])} feature maps)"
        duration = seconds
    return Row(label, network.paper, parameters, takes, gives, counter.get_total_flops() / 2 / duration)


def _like(*shape: int) -> torch.Tensor:
    return torch.empty(shape, device="meta")
