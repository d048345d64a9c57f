"""Decoding with FFmpeg, in a process of its own: a crash in native code costs one file, not the whole run.

That process runs `serve`: it reads requests, one JSON object per line, from standard input, and answers with messages
on standard output, each of which is one of `KINDS` and the length of what follows. :class:`Decoding` is the other side.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

PREFIX = struct.Struct("<cI")
KINDS = OPENED, SAMPLES, ENDED, FAILED = b"O", b"S", b"E", b"F"
BLOCK_BYTES = 1 << 18
# Demuxers (FFmpeg's names) whose headers state a duration. Those of others are estimates, or checked in
# `finallyse.audio.headers`, by sizes in bytes.
STATED = {"mov", "matroska", "webm", "asf", "avi", "ape", "wv", "tta", "tak", "flv", "mpc", "mpc8"}
# Recorders that cannot seek in their output write Matroska without the element Duration, which FFmpeg then estimates.
# It is before the first cluster; its ID is followed by the length of a float of 4 or 8 bytes.
MATROSKA_DURATION, MATROSKA_CLUSTER = (b"\x44\x89\x84", b"\x44\x89\x88"), b"\x1f\x43\xb6\x75"
MATROSKA_HEAD_BYTES = 1 << 20
MISSING_PACKET_S = 0.02  # length of a damaged packet if nothing is known of it, not even the one before
# FFmpeg's own Opus decoder differs from the reference implementation by 15 to 20 dB SNR on some files.
PREFERRED_DECODERS = {"opus": "libopus"}


# ---------------------------------------------------------------------------------------------------------------------
# This process


class DecodingError(Exception):
    """A file that cannot be decoded; the message is the reason, without the file's name."""


class DecoderCrash(DecodingError):
    """A file at which the decoding process died."""


@dataclasses.dataclass(frozen=True)
class Opened:
    """What is known of a sound track before it is decoded.

    Args:
        rate: Hz.
        channels: FFmpeg's names of the channels in their order, such as ("FL", "FR").
        seconds: duration by the header, or an estimate; None if unknown.
        tags: title, artist, comment and so on.
    """

    rate: int
    channels: tuple[str, ...]
    seconds: float | None
    tags: dict[str, str]


@dataclasses.dataclass(frozen=True)
class Ended:
    """What is known after decoding.

    Args:
        stated_s: duration by the container's header, seconds; None if it states none.
        reached_s: time at which the last packet of the other tracks ends, in seconds.
        damaged_s: seconds that could not be decoded and were left out.
        damaged_at_s: time of the first of them, in seconds.
    """

    stated_s: float | None
    reached_s: float
    damaged_s: float
    damaged_at_s: float


class Decoding:
    """One file that is being decoded in another process.

    Args:
        path: the file.

    Attributes:
        opened: what is known of the sound track.
        ended: what is known after the last block; None before.

    Iterating `blocks()` yields interleaved float32 samples as bytes. Raises DecodingError.
    """

    def __init__(self, path: Path):
        self._process = _waiting() or _start()
        self.ended: Ended | None = None
        request = json.dumps({"path": str(path.absolute())})  # absolute, or "a:b.wav" would be of a protocol "a"
        try:
            self._process.stdin.write(request.encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._died() from None
        _, content = self._receive()
        opened = json.loads(content)
        self.opened = Opened(opened["rate"], tuple(opened["channels"]), opened["seconds"], opened["tags"])

    def blocks(self) -> Iterator[bytes]:
        """The samples, interleaved."""
        while True:
            kind, content = self._receive()
            if kind == ENDED:
                self.ended = Ended(**json.loads(content))
                self._release()
                return
            yield content

    def close(self) -> None:
        """Give up the file, if it is not at its end."""
        if self._process:
            self._process.kill()
            self._process.wait()
            self._forget()

    def _receive(self) -> tuple[bytes, bytes]:
        prefix = self._process.stdout.read(PREFIX.size)
        kind, length = PREFIX.unpack(prefix) if len(prefix) == PREFIX.size else (FAILED, -1)
        content = self._process.stdout.read(length) if length > 0 else b""
        if len(content) < length or length < 0:
            raise self._died()
        if kind == FAILED:
            self._release()
            raise DecodingError(content.decode("utf-8", "replace"))
        return kind, content

    def _died(self) -> DecoderCrash:
        status = self._process.wait()
        self._forget()
        how = signal.Signals(-status).name if status < 0 else f"exit status {status}"
        return DecoderCrash(f"the decoder crashed ({how})")

    def _release(self) -> None:
        _idle.append(self._process)
        self._process = None

    def _forget(self) -> None:
        with contextlib.suppress(BrokenPipeError):  # of a request that it did not take
            self._process.stdin.close()
        self._process.stdout.close()
        self._process = None


# Processes that wait for a file. One per file that is open at the same time; they end with this process, when their
# standard input is closed.
_idle: list[subprocess.Popen] = []
os.register_at_fork(after_in_child=_idle.clear)


def _waiting() -> subprocess.Popen | None:
    """A process that waits for a file, unless there is none, or it was killed while it waited."""
    with contextlib.suppress(IndexError):  # threads may take them at the same time
        while True:
            process = _idle.pop()
            if process.poll() is None:
                return process
    return None


def _start() -> subprocess.Popen:
    # The same search path, so that it finds this package and PyAV, and no other versions of them.
    code = f"import sys; sys.path[:] = {list(map(str, sys.path))!r}; from {__name__} import serve; serve()"
    return subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )


# ---------------------------------------------------------------------------------------------------------------------
# The other process


def serve() -> None:
    """Answer requests until standard input ends."""
    import av

    av.logging.set_level(av.logging.PANIC)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the other side, which may still want the file
    # What native code prints must not get between the messages.
    output = os.fdopen(os.dup(sys.stdout.fileno()), "wb", buffering=0)
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    for line in sys.stdin.buffer:
        try:
            _decode(json.loads(line)["path"], output)
        except DecodingError as error:
            _send(output, FAILED, str(error).encode())
        except BrokenPipeError:
            return
        except Exception as error:  # of any kind: the file is at fault, and the next one may be fine
            text = getattr(error, "strerror", None) or str(error) or type(error).__name__
            _send(output, FAILED, f"cannot be decoded ({text})".encode("utf-8", "replace"))


def _send(output, kind: bytes, *content) -> None:
    output.write(PREFIX.pack(kind, sum(map(len, content))))
    for part in content:
        rest = memoryview(part)
        while rest:  # a pipe may take less than it is given
            rest = rest[output.write(rest) :]


def _decode(path: str, output) -> None:
    import av

    with av.open(path, metadata_errors="ignore") as container:
        tracks = container.streams.audio
        if not tracks:
            raise DecodingError("has no sound track")
        track = next((t for t in tracks if t.disposition & av.stream.Disposition.default), tracks[0])
        pieces = _Pieces(container, track)
        first = next(pieces, None)
        if first is None:
            raise DecodingError("has no samples")
        seconds = track.duration * track.time_base if track.duration else (container.duration or 0) / av.time_base
        opened = {
            "rate": first.sample_rate,
            "channels": [channel.name for channel in first.layout.channels],
            "seconds": float(seconds) or None,
            "tags": {key.lower(): value for key, value in (container.metadata | track.metadata).items()},
        }
        _send(output, OPENED, json.dumps(opened).encode())
        format_of_first = first.sample_rate, first.layout.name
        block, size = [], 0
        frame = first
        while frame is not None:
            if (frame.sample_rate, frame.layout.name) != format_of_first:
                raise DecodingError("its sample rate or its channels change midway; split the file")
            block.append(_packed(frame))
            size += block[-1].nbytes
            if size >= BLOCK_BYTES:
                _send(output, SAMPLES, *(piece.data.cast("B") for piece in block))
                block, size = [], 0
            frame = next(pieces, None)
        _send(output, SAMPLES, *(piece.data.cast("B") for piece in block))
        ended = Ended(_stated(container, path), pieces.reached_s, pieces.damaged_s, pieces.damaged_at_s)
        _send(output, ENDED, json.dumps(dataclasses.asdict(ended)).encode())


def _packed(frame) -> np.ndarray:
    """A frame of 32-bit floats as [T, C].

    Planes, of which PyAV reads one too many of 8, are those of one or two channels, which a resampler slows down.
    """
    if not frame.format.is_planar:
        count = frame.samples * len(frame.layout.channels)
        return np.frombuffer(frame.planes[0], np.float32, count).reshape(frame.samples, -1)
    planes = [np.frombuffer(plane, np.float32, frame.samples) for plane in frame.planes]
    return planes[0][:, None] if len(planes) == 1 else np.stack(planes, 1)


class _Pieces:
    """Iterator over the frames of a track as 32-bit floats, packed or planar, without the damaged packets."""

    def __init__(self, container, track):
        self.reached_s, self.damaged_s, self.damaged_at_s = 0.0, 0.0, 0.0
        self._packet_s = MISSING_PACKET_S  # length of the packet before
        self._frames = self._decoded(container, track)

    def __iter__(self):
        return self

    def __next__(self):
        return next(self._frames)

    def _decoded(self, container, track):
        import av

        decoder, resampler, format_of_resampler, good, damaged = self._decoder(track), None, None, 0, 0
        for packet in self._packets(container, track):
            try:
                frames = decoder.decode(packet)
            except av.FFmpegError:
                damaged += 1
                if damaged == 1:
                    self.damaged_at_s = float((packet.pts or 0) * track.time_base)
                # A packet of unknown length is taken to be as long as the one before it.
                self.damaged_s += float(packet.duration * track.time_base) if packet.duration else self._packet_s
                continue
            if frames:
                self._packet_s = sum(frame.samples / frame.sample_rate for frame in frames)
            for frame in frames:
                good += 1
                if frame.format.name in ("flt", "fltp") and len(frame.layout.channels) <= 2:
                    yield frame
                    continue
                kind = frame.format.name, frame.sample_rate, frame.layout.name
                if kind != format_of_resampler:
                    resampler, format_of_resampler = av.AudioResampler(format="flt"), kind
                yield from resampler.resample(frame)
        if damaged and not good:
            raise DecodingError("cannot be decoded (every packet is damaged)")

    def _packets(self, container, track):
        """The track's packets. The others' tell whether a film is cut short, or has a sound track that ends early."""
        import av

        end = None
        try:
            for packet in container.demux():
                if packet.stream.index == track.index:
                    yield packet
                if packet.pts is not None and packet.time_base:
                    end = float((packet.pts + (packet.duration or 0)) * packet.time_base)
                    if packet.stream.index != track.index:
                        self.reached_s = max(self.reached_s, end)
        except av.FFmpegError:  # unlike a packet that is damaged, it is the end
            if end is None:
                raise
            self.damaged_at_s, self.damaged_s = end, float("inf")

    @staticmethod
    def _decoder(track):
        import av

        name = PREFERRED_DECODERS.get(track.codec_context.name)
        if name is None or name not in av.codecs_available:
            return track
        decoder = av.CodecContext.create(name, "r")
        decoder.extradata = track.codec_context.extradata
        decoder.options = {"request_sample_fmt": "flt"}  # rather than 16 bits
        return decoder


def _stated(container, path: str) -> float | None:
    """The duration by the header of a container, in seconds; None if it states none."""
    import av

    names = set(container.format.name.split(","))
    if not STATED & names or not container.duration:
        return None
    if "matroska" in names:
        with Path(path).open("rb") as file:
            head = file.read(MATROSKA_HEAD_BYTES).partition(MATROSKA_CLUSTER)[0]
        if not any(element in head for element in MATROSKA_DURATION):
            return None
    return container.duration / av.time_base
