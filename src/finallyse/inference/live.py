"""Implementation of `finallyse enhance --live`: sound is enhanced while it comes in.

From stdin or a microphone, to stdout or a loudspeaker. Nothing is dropped: a pipe waits while the network computes, and
what a microphone records meanwhile is kept, for at most `BEHIND_S`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import queue
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from finallyse.errors import UserError
from finallyse.inference.signals import MOST_CHANNELS
from finallyse.inference.stream import Stream

if TYPE_CHECKING:
    from finallyse.inference.enhancer import Enhancer

FORMATS = {"s16le": np.dtype("<i2"), "f32le": np.dtype("<f4")}
LOOKAHEAD_S = 0.04
PIPE, MICROPHONE, LOUDSPEAKER = "-", "mic", "speaker"
CHUNK = 1 << 16  # bytes
ASK_S = 0.1  # how often Ctrl-C is looked for while nothing comes in
WARMING_S = 2.0
OVER_S = 2.0  # of audio, over which the network's speed is judged
BEHIND_S = 10.0  # of a microphone's sound that are kept for a network that is behind
REMEDY = "a longer --live-block, a smaller network or --precision bf16 needs less work"
CUSHION_S = 0.03  # of silence that a loudspeaker is ahead by, for forward passes that take longer than others


@dataclasses.dataclass(frozen=True)
class Live:
    """How a live signal comes in and goes out.

    Args:
        source: "-": raw samples on stdin; "mic": the default microphone.
        target: "-": raw samples on stdout; "speaker": the default loudspeaker.
        format: s16le or f32le, of the raw samples, whose channels are interleaved.
        input_rate: Hz; None: the network's.
        rate: Hz of the output; None: the network's or the input's, whichever is higher.
        channels: number of channels, in and out.
        lookahead, block, peak: as for `Stream`.
    """

    source: str = PIPE
    target: str = PIPE
    format: str = "s16le"
    input_rate: int | None = None
    rate: int | None = None
    channels: int = 1
    lookahead: float = LOOKAHEAD_S
    block: float = 0.02
    peak: float | None = None

    def __post_init__(self) -> None:
        if self.source not in (PIPE, MICROPHONE):
            raise UserError(f"{self.source}: --live takes its input from - (raw samples on stdin) or {MICROPHONE}")
        if self.target not in (PIPE, LOUDSPEAKER):
            raise UserError(f"{self.target}: --live writes to - (raw samples on stdout) or {LOUDSPEAKER}")
        if self.format not in FORMATS:
            raise UserError(f"--live-format {self.format}: must be {' or '.join(FORMATS)}")
        for option, rate in (("--live-rate", self.input_rate), ("--rate", self.rate)):
            if rate is not None and not 1000 <= rate <= 768000:
                raise UserError(f"{option} {rate}: must be between 1000 and 768000 Hz")
        if self.channels > MOST_CHANNELS:
            raise UserError(f"--live-channels {self.channels}: at most {MOST_CHANNELS} are enhanced at once")
        for name, stream, path in (("stdin", sys.stdin, self.source), ("stdout", sys.stdout, self.target)):
            if path == PIPE and stream.isatty():
                device = MICROPHONE if name == "stdin" else LOUDSPEAKER
                raise UserError(
                    f"{name} is a terminal, and --live expects raw samples there: connect a pipe, or say `{device}`; "
                    "`finallyse enhance --help` has examples"
                )


class Stop:
    """Set by the first Ctrl-C or SIGTERM, which end the input; another one ends the process at once."""

    def __init__(self) -> None:
        self.status = 0
        self.told = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._stop)

    def __bool__(self) -> bool:
        return self.told

    def _stop(self, number: int, _frame: object) -> None:
        self.told = True
        self.status = 0 if number == signal.SIGINT else 128 + number  # Ctrl-C is how a live session ends
        signal.signal(number, signal.SIG_DFL)


class Pace:
    """Compares the time that enhancing takes with that of the sound, and tells once if the network cannot keep up."""

    def __init__(self, say: Callable[[str], None]):
        self.say = say
        self.audio = self.work = self.slowest = 0.0
        self._audio = self._work = 0.0  # since the last judgement
        self._warned = False

    def add(self, audio: float, work: float) -> None:
        """`work` s were needed for what came in, `audio` s."""
        self.audio, self.work, self.slowest = self.audio + audio, self.work + work, max(self.slowest, work)
        self._audio, self._work = self._audio + audio, self._work + work
        if self._audio < OVER_S:
            return
        if self._work > self._audio and not self._warned:
            self._warned = True
            self.say(
                f"warning: slower than real time: {self._work / self._audio:.2f} s of work per second of sound, "
                f"{self._work - self._audio:.1f} s behind after {self.audio:.1f} s; nothing is dropped, but the lag "
                f"grows; {REMEDY}"
            )
        self._audio = self._work = 0.0


def run(enhancer: Enhancer, live: Live) -> int:
    """Enhance until the input ends, or Ctrl-C; returns the exit status: 0, or 128 + 15 after SIGTERM.

    Raises:
        UserError: for a network that needs whole recordings, a microphone or loudspeaker that is missing, and a network
            that is more than `BEHIND_S` behind a microphone.
    """
    stream = Stream(
        enhancer,
        live.block,
        lookahead=live.lookahead,
        sample_rate=live.input_rate,
        rate=live.rate,
        peak=live.peak,
    )
    stop, pace = Stop(), Pace(_say)
    with contextlib.ExitStack() as stack:
        write = stack.enter_context(_loudspeaker(stream, live) if live.target == LOUDSPEAKER else _stdout(live))
        blocks = (
            stack.enter_context(_microphone(stream, live, stop)) if live.source == MICROPHONE else _stdin(live, stop)
        )
        _say(
            f"live: {stream.sample_rate} Hz in, {stream.rate} Hz out, {live.channels} channel(s), latency "
            f"{1e3 * stream.latency:.0f} ms and the time of a forward pass; Ctrl-C ends it"
        )
        for block in blocks:
            started = time.perf_counter()
            made = stream.push(block)
            pace.add(block.shape[1] / stream.sample_rate, time.perf_counter() - started)
            write(made)
        write(stream.flush())
    if pace.audio:
        _say(
            f"enhanced {pace.audio:.1f} s live: real-time factor {pace.work / pace.audio:.2f}, "
            f"slowest step {1e3 * pace.slowest:.0f} ms"
        )
    return stop.status


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


# ---------------------------------------------------------------------------------------------------------------------
# Pipes


def _stdin(live: Live, stop: Stop) -> Iterator[np.ndarray]:
    """[C, n] as the raw samples on stdin come in, until they end or `stop` is set."""
    dtype, descriptor, left = FORMATS[live.format], sys.stdin.fileno(), b""
    frame = dtype.itemsize * live.channels
    while not stop:
        if not select.select([descriptor], [], [], ASK_S)[0]:
            continue
        content = os.read(descriptor, CHUNK)
        if not content:
            break
        content = left + content
        whole = len(content) // frame * frame
        left = content[whole:]
        if whole:
            yield np.frombuffer(content[:whole], dtype).reshape(-1, live.channels).T
    if left and not stop:
        _say(f"warning: stdin ended within a sample: {len(left)} of {frame} bytes, which are left out")


@contextlib.contextmanager
def _stdout(live: Live) -> Iterator[Callable[[np.ndarray], None]]:
    """Writes [C, n] as raw samples, at once. Integers clip at full scale, and it is told at the end how many."""
    clipped = 0

    def write(wav: np.ndarray) -> None:
        nonlocal clipped
        if live.format == "s16le":
            wav = np.rint(wav * 32768.0)
            clipped += np.count_nonzero((wav > 32767) | (wav < -32768))
            wav = np.clip(wav, -32768, 32767)
        sys.stdout.buffer.write(np.ascontiguousarray(wav.T).astype(FORMATS[live.format]).tobytes())
        sys.stdout.buffer.flush()

    yield write
    if clipped:
        _say(f"warning: {clipped} samples were beyond full scale and are clipped; --live-format f32le keeps them")


# ---------------------------------------------------------------------------------------------------------------------
# Microphone and loudspeaker


def _sounddevice() -> object:
    try:
        import sounddevice
    except ModuleNotFoundError as error:
        raise UserError(f"{MICROPHONE} and {LOUDSPEAKER} need sounddevice: pip install sounddevice") from error
    except OSError as error:  # it is there, the library that it needs is not
        raise UserError(
            f"{MICROPHONE} and {LOUDSPEAKER} need the PortAudio library ({error}); on Debian: apt install libportaudio2"
        ) from error
    return sounddevice


@contextlib.contextmanager
def _device(what: str, rate: int, channels: int) -> Iterator[None]:
    """Errors of a device in one line."""
    sounddevice = _sounddevice()
    try:
        yield
    except sounddevice.PortAudioError as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{what}: cannot be used at {rate} Hz with {channels} channel(s): {reason}") from error


@contextlib.contextmanager
def _microphone(stream: Stream, live: Live, stop: Stop) -> Iterator[Iterator[np.ndarray]]:
    """The default microphone's sound in blocks of a hop."""
    rate, channels = stream.sample_rate, live.channels
    size = max(1, round(stream.hop * rate))
    waiting: queue.Queue[np.ndarray] = queue.Queue(maxsize=max(2, math.ceil(BEHIND_S / stream.hop)))
    full, lost = threading.Event(), threading.Event()

    def heard(block: np.ndarray, _frames: int, _time: object, status: object) -> None:
        if status.input_overflow:
            lost.set()
        try:
            waiting.put_nowait(block.T.copy())
        except queue.Full:
            full.set()

    def blocks() -> Iterator[np.ndarray]:
        told = False
        while not stop:
            if full.is_set():
                raise UserError(
                    f"{MICROPHONE}: {BEHIND_S:g} s behind, so that sound would be lost: this machine is too slow for "
                    f"the network; {REMEDY}"
                )
            if lost.is_set() and not told:
                told = True
                _say(f"warning: {MICROPHONE}: the system has dropped some of its sound; is the machine busy?")
            with contextlib.suppress(queue.Empty):
                yield waiting.get(timeout=ASK_S)
        while not waiting.empty():
            yield waiting.get()

    with _device(MICROPHONE, rate, channels):
        recorder = _sounddevice().InputStream(
            samplerate=rate, channels=channels, dtype="float32", blocksize=size, latency="low", callback=heard
        )
        with recorder:
            yield blocks()


@contextlib.contextmanager
def _loudspeaker(stream: Stream, live: Live) -> Iterator[Callable[[np.ndarray], None]]:
    """Plays [C, n] on the default loudspeaker."""
    rate, channels, begun = stream.rate, live.channels, False
    with _device(LOUDSPEAKER, rate, channels):
        player = _sounddevice().OutputStream(samplerate=rate, channels=channels, dtype="float32", latency="low")

        def play(wav: np.ndarray) -> None:
            nonlocal begun
            if not wav.shape[1]:
                return
            if not begun:
                begun = True
                player.write(np.zeros((round(CUSHION_S * rate), channels), np.float32))
            player.write(np.ascontiguousarray(np.clip(wav.T, -1, 1)))

        with player:
            yield play
