"""Speed, memory and exactness of exported networks: ONNX Runtime against PyTorch; tables.

    python benchmarks/export.py [--rounds 3] [--seconds 20] [--large-seconds 4] [--folder DIR] [--output FILE.md]

Networks: the shipped one with its weights in 32, 16 and 8 bits, and FINALLY at 48 kHz with WavLM-large, with the
published sizes and random weights. Both engines enhance the same speech, from waveform to waveform, in a process each,
turn by turn; the figures are medians over the rounds, the speed relative to PyTorch is the median of their ratios: of
CPU time with one thread, which a busy machine changes least and which is the real-time factor on one free core, and of
elapsed time with two. Memory is the largest resident size of the process, with the network.
Then the transforms (time of one second of four channels, one thread), and what quantising does to the output of the
shipped network. Two free cores are needed; about 10 minutes, of which most are for writing and checking FINALLY's
graphs, which --folder keeps for the next time.
"""

from __future__ import annotations

import argparse
import json
import logging
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from onnxruntime import quantization
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import nn

import finallyse
from finallyse.export.check import difference, speech_like
from finallyse.export.command import export
from finallyse.export.precisions import FIXED
from finallyse.export.transforms import Analysis
from finallyse.hardware import processor
from finallyse.models import models_registry
from finallyse.models.checkpoint import save_checkpoint
from support.networks import WAVLM_LARGE, write_wavlm
from support.speech import read_speech
from support.timing import parser_of, publish

RATE = 16000


def main() -> None:
    """Measure, each in a separate process, and print the tables."""
    parser = parser_of(__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="processes per engine and number of threads")
    parser.add_argument("--seconds", type=float, default=20, help="length of the speech for the shipped network, in s")
    parser.add_argument("--large-seconds", type=float, default=4, help="the same for FINALLY; 0: leave it out")
    parser.add_argument("--folder", type=Path, help="keep the networks there")
    parser.add_argument("--measure", nargs=3, metavar=("NETWORK", "THREADS", "SECONDS"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        network, threads, seconds = arguments.measure
        print(json.dumps(measure(network, int(threads), float(seconds))))
        return
    with tempfile.TemporaryDirectory(prefix="finallyse-bench-") as temporary:
        folder = arguments.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        lines = [f"{processor()}; PyTorch {torch.__version__}, ONNX Runtime {onnxruntime.__version__}", ""]
        small = {"PyTorch": "small"}
        for precision in ("fp32", "fp16", "int8"):
            small[f"ONNX Runtime, {precision}"] = exported("small", folder / f"small-{precision}.onnx", precision)
        lines += speed_table("small", small, arguments.rounds, arguments.seconds, "at most 0.1 with 1 thread")
        if arguments.large_seconds:
            checkpoint = large_checkpoint(folder)
            large = {"PyTorch": str(checkpoint), "ONNX Runtime, fp32": exported(checkpoint, folder / "finally.onnx")}
            title = "FINALLY, 48 kHz, WavLM-large"
            lines += ["", *speed_table(title, large, arguments.rounds, arguments.large_seconds, "ratio at least 1")]
        lines += ["", *transform_table(folder), "", *quantisation_table(folder)]
    publish(lines, arguments.output)


# --- networks ---------------------------------------------------------------------------------------------------------


def exported(checkpoint: str | Path, path: Path, precision: str = "fp32") -> str:
    """The export of a checkpoint, written unless it is there."""
    if not path.is_file():
        export(checkpoint, path, precision=precision, say=lambda line: print(line, file=sys.stderr))
    return str(path)


def large_checkpoint(folder: Path) -> Path:
    """FINALLY with the published sizes and random weights, and its WavLM beside it."""
    path, args = folder / "finally.ckpt", {"use_upsamplewaveunet": True}
    if not path.is_file():
        write_wavlm(folder / "wavlm", **WAVLM_LARGE)
        torch.manual_seed(0)
        config = {"generator": {"name": "finally_gen", "args": args}, "wavlm": str(folder / "wavlm")}
        state = models_registry["finally_gen"](**args).state_dict()
        save_checkpoint(path, network="finally_gen", config=config, step=0, generator=state, discriminators={})
    return path


# --- speed ------------------------------------------------------------------------------------------------------------


def measure(network: str, threads: int, seconds: float) -> dict[str, float]:
    """Wall and CPU time in s per s of audio, the least of three after a first one, and the memory in MB."""
    engine = "onnx" if network.endswith(".onnx") else "torch"
    if engine == "torch":
        from finallyse.inference.enhancer import tune_process

        tune_process()
    model = finallyse.load(network, engine=engine, threads=threads, device="cpu")
    wav = read_speech(RATE, seconds)[None]
    model.render_whole(wav)
    times = []
    for _ in range(3 if seconds > 10 else 1):
        wall, cpu = time.perf_counter(), time.process_time()
        model.render_whole(wav)
        times.append((time.perf_counter() - wall, time.process_time() - cpu))
    wall, cpu = (min(kind) / seconds for kind in zip(*times, strict=True))
    # not ru_maxrss, which counts the process that started this one, too
    status = Path("/proc/self/status").read_text()
    return {"wall": wall, "cpu": cpu, "memory": int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1024}


def speed_table(title: str, networks: dict[str, str], rounds: int, seconds: float, goal: str) -> list[str]:
    """A row for each engine and number of threads; the first engine is what the others are compared with."""
    lines = [
        f"| {title}, {seconds:g} s | threads | s per s of audio | CPU s per s of audio | times PyTorch | memory, "
        "MB | weights, MB | goal |",
        "|---|---|---|---|---|---|---|---|",
    ]
    first = next(iter(networks))
    for threads, clock in ((1, "cpu"), (2, "wall")):
        found: dict[str, list[dict[str, float]]] = {name: [] for name in networks}
        for _ in range(rounds):
            for name, network in networks.items():
                command = [sys.executable, __file__, "--measure", network, str(threads), str(seconds)]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                found[name].append(json.loads(done.stdout))
        for name, network in networks.items():
            wall, cpu, memory = (np.median([one[key] for one in found[name]]) for key in ("wall", "cpu", "memory"))
            ratio = np.median([a[clock] / b[clock] for a, b in zip(found[first], found[name], strict=True)])
            path = Path(network)
            files = [path, path.with_suffix(".wavlm.onnx")] if path.suffix == ".onnx" else []
            size = sum(file.stat().st_size for file in files if file.is_file()) / 1e6
            lines.append(
                f"| {name} | {threads} | {wall:.3f} | {cpu:.3f} | {ratio:.2f} | {memory:.0f} | "
                f"{f'{size:.2f}' if size else ''} | {goal if name != first else ''} |"
            )
    return lines


# --- transforms -------------------------------------------------------------------------------------------------------


class OneProduct(nn.Module):
    """All bins of a frame by one convolution: wav [N, T] -> [N, 1026, frames]."""

    def __init__(self):
        super().__init__()
        window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(1024) / 1024)
        kernel = window * np.exp(-2j * np.pi * np.outer(np.arange(513), np.arange(1024)) / 1024)
        kernel = np.concatenate([kernel.real, kernel.imag])[:, None]
        self.kernel = nn.Parameter(torch.from_numpy(kernel.astype(np.float32)), requires_grad=False)

    def forward(self, wav: torch.Tensor) -> torch.Tensor:
        return nn.functional.conv1d(wav[:, None], self.kernel, stride=256)


def transform_table(folder: Path) -> list[str]:
    """Time of the spectra of one second of four channels."""
    wav = np.random.default_rng(0).standard_normal((4, 20 * RATE + 768)).astype(np.float32)
    rows = {"factored, as exported": Analysis(), "one matrix product": OneProduct()}
    lines = ["| spectra of 4 channels | ms per s of audio |", "|---|---|"]
    for name, module in rows.items():
        path = str(folder / "transform.onnx")
        axes = {"wav": {0: "n", 1: "t"}}
        torch.onnx.export(
            module, (torch.from_numpy(wav[:, : RATE + 96]),), path, input_names=["wav"], dynamic_axes=axes, dynamo=False
        )
        lines.append(f"| {name} | {timed(path, wav):.1f} |")
    helper = onnx.helper
    window = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(1024) / 1024)).astype(np.float32)
    constants = {"step": np.array(256), "window": window, "length": np.array(1024)}
    graph = helper.make_graph(
        [helper.make_node("STFT", ["wav", *constants], ["spectra"], onesided=1)],
        "stft",
        [helper.make_tensor_value_info("wav", onnx.TensorProto.FLOAT, ["n", "t", 1])],
        [helper.make_tensor_value_info("spectra", onnx.TensorProto.FLOAT, None)],
        [onnx.numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    path = str(folder / "transform.onnx")
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), path)
    lines.append(f"| ONNX's operator STFT | {timed(path, wav[..., None]):.1f} |")
    return lines


def timed(path: str, wav: np.ndarray) -> float:
    """CPU time in ms of a graph for each second of wav, the least of three."""
    run = session(path)
    times = []
    for _ in range(4):
        began = time.process_time()
        run(wav)
        times.append(time.process_time() - began)
    return 1000 * min(times[1:]) / (max(wav.shape) / RATE)


def session(path: str) -> Callable[[np.ndarray], np.ndarray]:
    """A graph with one thread as a function."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    opened = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda wav: opened.run(None, {opened.get_inputs()[0].name: wav})[0]


# --- quantisation -----------------------------------------------------------------------------------------------------


class Calibration(quantization.CalibrationDataReader):
    """Speech-like signals at several levels."""

    def __init__(self):
        signals = (gain * speech_like(12 * 4096 + i, RATE)[: 12 * 4096] for i, gain in enumerate((1, 0.3, 1, 0.1)))
        self.signals = ({"wav": wav[None, None].astype(np.float32)} for wav in signals)

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next input."""
        return next(self.signals, None)


def quantisation_table(folder: Path) -> list[str]:
    """Difference from 32 bits on real speech, and CPU time, of ways to quantise the shipped network."""
    logging.disable(logging.WARNING)
    full, prepared = exported("small", folder / "small-fp32.onnx"), str(folder / "prepared.onnx")
    quant_pre_process(full, prepared, skip_symbolic_shape=True)
    nodes = onnx.load(prepared).graph.node
    fixed = [node.name for node in nodes if any(part in name for name in node.input for part in FIXED)]
    common = {"per_channel": True, "nodes_to_exclude": fixed}
    paths = {
        "weights, 16 bits (fp16)": exported("small", folder / "small-fp16.onnx", "fp16"),
        "weights, 8 bits (int8)": exported("small", folder / "small-int8.onnx", "int8"),
    }
    name = "weights and activations, 8 bits, dynamic"
    paths[name] = str(folder / "dynamic.onnx")
    kind = quantization.QuantType
    quantization.quantize_dynamic(
        prepared, paths[name], op_types_to_quantize=["Conv", "MatMul"], weight_type=kind.QUInt8, **common
    )
    for bits, activation in ((8, kind.QUInt8), (16, kind.QUInt16)):
        name = f"weights of 8 bits and activations of {bits}, static"
        paths[name] = str(folder / f"static{bits}.onnx")
        quantization.quantize_static(
            prepared,
            paths[name],
            Calibration(),
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=["Conv"],
            activation_type=activation,
            weight_type=kind.QInt8,
            **common,
        )
    wav = read_speech(RATE, 5 * 4.096)[None, None]
    expected = session(full)(wav)
    lines = ["| small, quantised | dB from fp32 | ms per s of audio | MB |", "|---|---|---|---|"]
    lines.append(f"| none | | {timed(full, wav):.1f} | {Path(full).stat().st_size / 1e6:.2f} |")
    for name, path in paths.items():
        decibels, _ = difference(session(path)(wav), expected)
        spent = timed(path, wav)
        lines.append(f"| {name} | {decibels:.1f} | {spent:.1f} | {Path(path).stat().st_size / 1e6:.2f} |")
    return lines


if __name__ == "__main__":
    main()
