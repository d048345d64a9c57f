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
    """A row for each variant of each registered network."""
    return [row(name, args, seconds) for name, network in models_registry.items() for args in network.variants]


@torch.no_grad()
def row(name: str, args: dict, seconds: float) -> Row:
    """Build a network, fold it, and count."""
    with torch.device("meta"):  # shapes without values: nothing is computed
        network = models_registry[name](**args)
    fold(network.to("meta"))
    label = name + "".join(f" {key}={value}".lower() for key, value in args.items())
    parameters = sum(parameter.numel() for parameter in network.parameters())
    samples = round(seconds * network.input_rate)
    mel, wav = _like(1, 80, samples // 256), _like(1, 1, samples)
    if not isinstance(network, Generator):
        inputs, takes = (wav,), "wav [B, 1, T]"
    else:
        inputs, takes = {"mel": ((mel,), "log-mel [B, 80, F]")}.get(network.input_kind, ((wav,), "wav [B, 1, T]"))
        if network.input_kind == "wav+ssl":
            inputs += (_like(1, network.ssl_dim, samples // 320),)
            takes += f", ssl [B, {network.ssl_dim}, N]"
        takes += f", {network.input_rate // 1000} kHz"
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
