"""What the headers of recordings state about their length, to notice files that are cut short.

Containers of FFmpeg whose headers state a duration are `finallyse.audio.ffmpeg`'s. Here are those that state a size in
bytes (WAV, RF64, W64, AIFF, AU, CAF), a number of samples (FLAC) or of frames (MPEG audio with a Xing, Info or VBRI
header), and Ogg, whose pages state their own size.
"""

from __future__ import annotations

import dataclasses
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

# A program that cannot seek in its output, or was stopped, leaves one of these for the size of the samples.
UNKNOWN_SIZES = (range(0, 1), range(0x7FFF0000, 0x80000000), range(0xFFFF0000, 0x100000000))
W64_RIFF = bytes.fromhex("726966662e91cf11a5d628db04c10000")  # GUIDs of Sony Wave64
W64_FMT = bytes.fromhex("666d7420f3acd3118cd100c04f8edb8a")
W64_DATA = bytes.fromhex("64617461f3acd3118cd100c04f8edb8a")
LARGEST_OGG_PAGE = 27 + 255 + 255 * 255


@dataclasses.dataclass(frozen=True)
class Length:
    """What a header states.

    Args:
        seconds: duration; None if it states none.
        missing_s: seconds that are missing at the end of the file, as far as the sizes tell; 0: none; None: some, but
            how much is unknown.
        whole: whether an MPEG header also states the size in bytes, and the file is of that size.
    """

    seconds: float | None = None
    missing_s: float | None = 0.0
    whole: bool = False


def length(path: Path) -> Length:
    """What the header of a file states about its length; nothing for files of other kinds, or without sense."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        magic = file.read(16)
        try:
            if magic[:4] in (b"RIFF", b"RIFX", b"RF64", b"BW64"):
                return _riff(file, size, ">" if magic[:4] == b"RIFX" else "<")
            if magic == W64_RIFF:
                return _w64(file, size)
            if magic[:4] == b"FORM":
                return _aiff(file, size)
            if magic[:4] == b"caff":
                return _caf(file, size)
            if magic[:4] == b".snd":
                return _au(file, size)
            if magic[:4] == b"OggS":
                return Length(missing_s=None if _ends_within_page(file, size) else 0.0)
            start = _after_id3(file)
            file.seek(start)
            if file.read(4) == b"fLaC":
                return _flac(file, start)
            return _mpeg(file, start, size)
        except (struct.error, ZeroDivisionError, OverflowError):  # the header itself is cut, or contradicts itself
            return Length()


def _missing(stated: int, start: int, size: int, bytes_per_s: float) -> float:
    """Seconds that a file of `size` bytes lacks, if `stated` bytes of samples begin at `start`."""
    if any(stated in sizes for sizes in UNKNOWN_SIZES):
        return 0.0
    return max(0, start + stated - size) / bytes_per_s


def _chunks(file: BinaryIO, start: int, size: int, order: str) -> Iterator[tuple[bytes, int, int]]:
    """(name, position of the content, stated size) of the chunks of RIFF, RF64 and AIFF files."""
    while start + 8 <= size:
        file.seek(start)
        name, stated = struct.unpack(f"{order}4sI", file.read(8))
        if name == bytes(4):  # zeros, maybe gigabytes of them
            return
        yield name, start + 8, stated
        start += 8 + stated + stated % 2


def _riff(file: BinaryIO, size: int, order: str) -> Length:
    rate, bytes_per_s, large, frames = 0, 0, None, 0
    for name, start, stated in _chunks(file, 12, size, order):
        if name == b"ds64":
            large = struct.unpack("<8xQ", file.read(16))[0]
        elif name == b"fmt ":
            rate, bytes_per_s = struct.unpack(f"{order}4xII", file.read(12))
        elif name == b"fact":
            frames = struct.unpack(f"{order}I", file.read(4))[0]
        elif name == b"data":
            if not bytes_per_s and frames:  # a variable rate, or a careless program
                bytes_per_s = stated * rate / frames
            if stated == 0xFFFFFFFF and large is not None:
                return Length(missing_s=max(0, start + large - size) / bytes_per_s)
            return Length(missing_s=_missing(stated, start, size, bytes_per_s))
    return Length()


def _w64(file: BinaryIO, size: int) -> Length:
    start, bytes_per_s = 40, 0
    while start + 24 <= size:
        file.seek(start)
        name, stated = struct.unpack("<16sQ", file.read(24))
        if name == W64_FMT:
            bytes_per_s = struct.unpack("<8xI", file.read(12))[0]
        elif name == W64_DATA:
            return Length(missing_s=_missing(max(0, stated - 24), start + 24, size, bytes_per_s))
        if stated < 24:
            break
        start += -(-stated // 8) * 8
    return Length()


def _aiff(file: BinaryIO, size: int) -> Length:
    seconds = None
    for name, start, stated in _chunks(file, 12, size, ">"):
        if name == b"COMM":
            _, frames, _, exponent, mantissa = struct.unpack(">hIhHQ", file.read(18))
            seconds = frames / (mantissa * 2.0 ** ((exponent & 0x7FFF) - 16383 - 63))
        elif name == b"SSND" and seconds:
            return Length(missing_s=_missing(stated, start, size, stated / seconds))
    return Length()


def _caf(file: BinaryIO, size: int) -> Length:
    start, bytes_per_s = 8, 0.0
    while start + 12 <= size:
        file.seek(start)
        name, stated = struct.unpack(">4sq", file.read(12))
        if name == b"desc":
            rate, _, _, packet_bytes, packet_frames = struct.unpack(">d4sIII", file.read(24))
            bytes_per_s = rate * packet_bytes / packet_frames
        elif name == b"data":
            missing = max(0, start + 12 + stated - size)
            if stated < 0 or not missing:  # -1: to the end of the file
                return Length()
            return Length(missing_s=missing / bytes_per_s if bytes_per_s else None)
        if stated <= 0:
            break
        start += 12 + stated
    return Length()


def _au(file: BinaryIO, size: int) -> Length:
    file.seek(4)
    start, stated, encoding, rate, channels = struct.unpack(">IIIII", file.read(20))
    bits = {1: 8, 2: 8, 3: 16, 4: 24, 5: 32, 6: 32, 7: 64, 23: 4, 24: 4, 25: 3, 26: 5, 27: 8}.get(encoding, 0)
    if not bits:
        return Length()
    return Length(missing_s=_missing(stated, start, size, rate * channels * bits / 8))


def _ends_within_page(file: BinaryIO, size: int) -> bool:
    """Whether an Ogg file ends before its last page does."""
    file.seek(max(0, size - LARGEST_OGG_PAGE))
    tail = file.read()
    position = tail.rfind(b"OggS")
    if position < 0:  # something else, longer than a page can be, follows the last one
        return False
    page = tail[position:]
    if len(page) < 27 or len(page) < 27 + page[26]:
        return True
    return len(page) < 27 + page[26] + sum(page[27 : 27 + page[26]])


def _after_id3(file: BinaryIO) -> int:
    """Position after any ID3v2 tags."""
    start = 0
    while True:
        file.seek(start)
        tag = file.read(10)
        if len(tag) < 10 or tag[:3] != b"ID3" or max(tag[6:10]) > 127:
            return start
        start += 10 + sum(byte << shift for byte, shift in zip(tag[6:10], (21, 14, 7, 0), strict=True))
        start += 10 if tag[5] & 0x10 else 0  # a footer


def _flac(file: BinaryIO, start: int) -> Length:
    file.seek(start + 8)
    packed = struct.unpack(">10xQ", file.read(18))[0]  # of STREAMINFO: rate 20, channels 3, bits 5, samples 36 bits
    samples = packed & ((1 << 36) - 1)
    return Length(seconds=samples / (packed >> 44)) if samples else Length()


MPEG_RATES = (44100, 48000, 32000)
LARGEST_MPEG_TAIL = 4096  # bytes of tags after the last frame


def _mpeg(file: BinaryIO, start: int, size: int) -> Length:
    """The number of frames in the Xing, Info or VBRI header of the first frame of an MPEG audio file, layer III."""
    file.seek(start)
    frame = file.read(200)
    if len(frame) < 200 or frame[0] != 0xFF or frame[1] & 0xE0 != 0xE0 or (frame[1] >> 1) & 3 != 1:
        return Length()
    version, rate = (frame[1] >> 3) & 3, (frame[2] >> 2) & 3  # 3: MPEG 1, 2: MPEG 2, 0: MPEG 2.5
    if version == 1 or rate == 3:
        return Length()
    rate = MPEG_RATES[rate] >> {3: 0, 2: 1, 0: 2}[version]
    mono = frame[3] >> 6 == 3
    side = {(True, True): 17, (True, False): 32, (False, True): 9, (False, False): 17}[version == 3, mono]
    padding, whole = 0, False
    if frame[4 + side : 8 + side] in (b"Xing", b"Info") and frame[11 + side] & 1:
        frames = struct.unpack(">I", frame[12 + side : 16 + side])[0]
        flags = frame[11 + side]  # bits: frames, bytes, table of contents, quality
        if flags & 2:
            stated = struct.unpack(">I", frame[16 + side : 20 + side])[0]
            whole = 0 <= size - start - stated <= LARGEST_MPEG_TAIL
        lame = 12 + side + 4 + 4 * (flags >> 1 & 1) + 100 * (flags >> 2 & 1) + 4 * (flags >> 3 & 1)
        if frame[lame : lame + 4] in (b"LAME", b"Lavf", b"Lavc"):
            delays = int.from_bytes(frame[lame + 21 : lame + 24], "big")
            padding = (delays >> 12) + (delays & 0xFFF)
    elif frame[36:40] == b"VBRI":
        frames = struct.unpack(">I", frame[50:54])[0]
    else:
        return Length()
    if not frames:
        return Length()
    return Length(seconds=(frames * (1152 if version == 3 else 576) - padding) / rate, whole=whole)
