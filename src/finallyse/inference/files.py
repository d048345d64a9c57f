"""Enhancement of recordings of any container, rate, length and number of channels, in constant memory.

A recording is decoded and resampled into a temporary file, enhanced window by window into another, and only then
written in its final format and renamed, so that outputs are atomic. Both temporary files contain 32-bit floats and are
in the output's folder: 0.23 and 0.69 GB per hour and channel at 16 kHz in and 48 kHz out. A run that is killed leaves
its own behind, which the next run into the folder removes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import os
import shutil
import struct
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import soundfile as sf

from finallyse.audio.blocks import BLOCK, BlockReader
from finallyse.audio.channels import VORBIS_ORDER, channel_mask
from finallyse.audio.folders import audio_files
from finallyse.audio.formats import SUFFIXES
from finallyse.audio.resample import Resampler
from finallyse.errors import UserError
from finallyse.inference.windows import length_at
from finallyse.progress import AudioProgress, Progress, duration

if TYPE_CHECKING:
    from finallyse.inference.engine import Engine

# suffix -> libsndfile's format and default subtype
FORMATS = {
    ".wav": ("WAV", "PCM_16"),
    ".flac": ("FLAC", "PCM_16"),
    ".ogg": ("OGG", "VORBIS"),
    ".opus": ("OGG", "OPUS"),
    ".mp3": ("MP3", "MPEG_LAYER_III"),
}
SUBTYPES = ("PCM_16", "PCM_24", "FLOAT")
RATES = {  # that lossy formats allow, Hz
    "OPUS": (8000, 12000, 16000, 24000, 48000),
    "MPEG_LAYER_III": (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000),
}
TAGS = ("title", "artist", "album", "comment", "date", "genre", "copyright")  # that libsndfile can write
SCRATCH, LOCK = ".enhance-", "lock"  # begin of the names of folders of temporary files, and a file in each
LOCK_WITHIN_S = 60  # of its creation, a folder in use has the file
WAV_LIMIT = 0xFFFF0000  # bytes; beyond, RF64


@dataclasses.dataclass(frozen=True)
class Options:
    """How inputs are read and outputs written.

    Args:
        rate: Hz; None: the network's or the input's, whichever is higher (of the rates that the format allows).
        suffix: suffix of outputs in a folder, e.g. ".wav".
        subtype: PCM_16, PCM_24, FLOAT; None: the format's default.
        dither: add triangular noise of two quantisation steps before rounding to integers, so that what is lost is
            noise rather than distortion.
        force: overwrite existing files.
        resume: skip a single input, too, whose output exists; of several inputs, these are always skipped.
        accept_cut: enhance what there is of a recording that is cut short or damaged.
        keep_tags: copy title, artist, album, comment, date, genre and copyright.
        keep_times: give the output the input's time of modification.
        limit_s: refuse recordings that are longer, s; None: there is no limit.
    """

    rate: int | None = None
    suffix: str = ".wav"
    subtype: str | None = None
    dither: bool = False
    force: bool = False
    resume: bool = False
    accept_cut: bool = False
    keep_tags: bool = False
    keep_times: bool = False
    limit_s: float | None = None

    def __post_init__(self) -> None:
        if self.rate is not None and not 1000 <= self.rate <= 768000:
            raise UserError(f"--rate {self.rate}: must be between 1000 and 768000 Hz")
        if self.suffix not in FORMATS:
            raise UserError(f"--format {self.suffix.lstrip('.')}: must be one of {', '.join(f[1:] for f in FORMATS)}")
        if self.subtype not in (None, *SUBTYPES):
            raise UserError(f"--subtype {self.subtype}: must be one of {', '.join(SUBTYPES)}")
        if self.force and self.resume:
            raise UserError("--force does again what --resume skips; give one of them")


class TooLong(UserError):
    """A recording longer than `Options.limit_s`."""


@dataclasses.dataclass(frozen=True)
class Done:
    """One enhanced recording: duration and processing time (s), and the gain that prevented clipping (1: none)."""

    seconds: float
    elapsed: float
    gain: float


# ---------------------------------------------------------------------------------------------------------------------
# Which files


def plan_outputs(inputs: Sequence[str], output: str, options: Options) -> list[tuple[str, str]]:
    """(input, output) pairs; "-" stands for stdin or stdout.

    A single file is written to `output`, or into it if that is a folder, ends with a slash, or has no suffix; several
    files, and folders (recursively), are written to the folder `output` under their own names with the output's suffix:
    in place of their own, or after it where two names differ in nothing else.
    Raises UserError for missing inputs, folders without recordings, outputs that coincide, and suffixes that cannot be
    written.
    """
    single = len(inputs) == 1 and (inputs[0] == "-" or (Path(inputs[0]).exists() and not Path(inputs[0]).is_dir()))
    if "-" in inputs and len(inputs) > 1:
        raise UserError("'-' (stdin) must be the only input")
    if output == "-" and not single:
        raise UserError("'-' (stdout) takes one input file")
    suffix = Path(output).suffix.lower()
    to_folder = Path(output).is_dir() or output.endswith(os.sep) or not suffix
    if single and (output == "-" or not to_folder):
        if output != "-" and suffix not in FORMATS:
            raise UserError(
                f"{output}: {suffix} cannot be written; choose {' '.join(FORMATS)}, or a folder: {output}{os.sep}"
            )
        pairs = [(inputs[0], output)]
    else:
        if suffix in SUFFIXES and not to_folder:
            raise UserError(f"{output}: several inputs need a folder; if it is to be one, say {output}{os.sep}")
        if Path(output).is_file():
            raise UserError(f"{output}: is a file; several inputs need a folder to go into")
        found = list(_recordings(inputs, Path(output)))
        same = Counter(_stem(name) for _, name in found)
        pairs = [
            (str(path), f"{Path(output) / (_stem(name) if same[_stem(name)] == 1 else name)}{options.suffix}")
            for path, name in found
        ]
    seen: dict[str, str] = {}
    for source, target in pairs:
        if target in seen:
            raise UserError(
                f"{seen[target]} and {source} would both become {target}; enhance them into different folders"
            )
        seen[target] = source
        if "-" not in (source, target) and Path(source).resolve() == Path(target).resolve():
            raise UserError(f"{source}: would overwrite itself; choose another output")
    return pairs


def _stem(name: Path) -> Path:
    """A recording's name without its suffix, if it is one: "2024.05 talk" has none."""
    return name.with_suffix("") if name.suffix.lower() in SUFFIXES else name


def _recordings(inputs: Sequence[str], output: Path) -> Iterator[tuple[Path, Path]]:
    """(path, name below the output folder) of every recording."""
    for given in inputs:
        path = Path(given)
        if given == "-":
            yield path, Path("stdin")
        elif path.is_dir():
            found = [Path(name) for name in audio_files(path)]
            if output.resolve() != path.resolve():  # skip an earlier run's outputs inside the input folder
                found = [name for name in found if output.resolve() not in (path / name).resolve().parents]
            if not found:
                raise UserError(f"{path}: contains no recordings")
            yield from ((path / name, name) for name in found)
        elif path.exists():
            yield path, Path(path.name)
        else:
            raise UserError(f"{path}: no such file or folder")


# ---------------------------------------------------------------------------------------------------------------------
# One recording


class _Spool:
    """Interleaved 32-bit floats in a file: appended to, then read at any position. Tracks each channel's peak."""

    def __init__(self, path: Path, channels: int):
        self.path, self.channels = path, channels
        self.frames, self.peaks = 0, np.zeros(channels, np.float32)
        self._file = path.open("w+b")

    def append(self, block: np.ndarray) -> None:
        """Add [C, n] samples."""
        if block.shape[1]:
            self.peaks = np.maximum(self.peaks, np.abs(block).max(axis=1))
            self._file.write(np.ascontiguousarray(block.T, np.float32).tobytes())
            self.frames += block.shape[1]

    def fit(self, frames: int) -> None:
        """Cut or pad with zeros to `frames`."""
        self._file.flush()
        self._file.truncate(frames * self.channels * 4)
        self.frames = frames

    def read(self, start: int, stop: int) -> np.ndarray:
        """Samples [C, stop - start]."""
        self._file.seek(start * self.channels * 4)
        data = self._file.read((stop - start) * self.channels * 4)
        return np.frombuffer(data, np.float32).reshape(-1, self.channels).T.copy()

    def close(self) -> None:
        self._file.close()


@contextlib.contextmanager
def scratch(folder: Path | None) -> Iterator[Path]:
    """A folder for temporary files in `folder` (None: the system's), which is removed at the end.

    A file in it is locked while it is in use, so that others, also on other machines, remove those of killed runs only.
    """
    for left in folder.glob(f"{SCRATCH}*") if folder else ():
        if _is_abandoned(left):
            shutil.rmtree(left, ignore_errors=True)
    work = Path(tempfile.mkdtemp(prefix=SCRATCH, dir=folder))
    try:
        with (work / LOCK).open("w") as lock:
            with contextlib.suppress(OSError):  # a file system without locks: then nobody takes it for abandoned
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _is_abandoned(scratch: Path) -> bool:
    try:
        with (scratch / LOCK).open("r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
    except FileNotFoundError:  # killed, or about to create it
        with contextlib.suppress(OSError):
            return time.time() - scratch.stat().st_mtime > LOCK_WITHIN_S
        return False
    except OSError:  # in use, or a file system without locks
        return False


def enhance_file(
    enhancer: Engine, source: str, target: str, options: Options, progress: Progress | None = None
) -> Done:
    """Enhance one recording; the output is written atomically.

    If a peak would exceed the range of an integer or lossy format, the output is attenuated, never clipped.

    Args:
        source: path, which may be a pipe, or "-" for stdin.
        target: path whose suffix sets the format, or "-" for a WAV on stdout.

    Raises:
        UserError: for an input that cannot be decoded, and for an output that exists, unless `options.force`.
    """
    started = time.perf_counter()
    to_stdout = target == "-"
    path = Path("stdout.wav") if to_stdout else Path(target)
    if path.suffix.lower() not in FORMATS:
        raise UserError(f"{target}: its suffix must be one of {' '.join(FORMATS)}")
    if not to_stdout and path.exists() and not options.force:
        raise UserError(f"{target}: exists; give --force to replace it, or --resume to skip it")
    try:
        if not to_stdout:
            path.parent.mkdir(parents=True, exist_ok=True)
        with scratch(None if to_stdout else path.parent) as work:
            made, done = _enhance_in(work, enhancer, source, path, options, progress, started)
            if to_stdout:
                with made.open("rb") as file:
                    shutil.copyfileobj(file, sys.stdout.buffer)
                sys.stdout.buffer.flush()
            else:
                if options.keep_times and source != "-":
                    times = Path(source).stat()
                    os.utime(made, ns=(times.st_atime_ns, times.st_mtime_ns))
                _put(made, path, options.force)
    except (OSError, sf.LibsndfileError) as error:
        raise UserError(f"{target}: cannot be written ({getattr(error, 'strerror', None) or error})") from error
    return done


def _put(made: Path, path: Path, force: bool) -> None:
    """Give a finished file its name. Raises UserError if another process has made one meanwhile, unless `force`."""
    if force:
        made.replace(path)
        return
    try:
        try:
            os.link(made, path)
        except FileExistsError:
            raise
        except OSError:  # a file system without links
            path.touch(exist_ok=False)
            made.replace(path)
    except FileExistsError:
        raise UserError(f"{path}: exists, since another run has just made it; --force would replace it") from None


def _enhance_in(
    work: Path, enhancer: Engine, source: str, path: Path, options: Options, progress: Progress | None, started: float
) -> tuple[Path, Done]:
    seekable, name = Path(source), None
    if source == "-" or not seekable.is_file():  # a pipe: how long it is shows at its end, so it is kept
        name = "stdin" if source == "-" else source
        seekable = work / "input"
        with contextlib.ExitStack() as stack:
            try:
                stream = sys.stdin.buffer if source == "-" else stack.enter_context(Path(source).open("rb"))
            except OSError as error:
                raise UserError(f"{source}: cannot be read ({error.strerror})") from error
            shutil.copyfileobj(stream, stack.enter_context(seekable.open("wb")))
    with BlockReader(seekable, name, options.accept_cut) as reader:
        rate, channels, speakers = reader.rate, reader.channels, reader.speakers
        container, subtype, output_rate = _output_format(path, channels, options, enhancer.rate_for(rate))
        tags = {key: reader.tags[key] for key in TAGS if key in reader.tags} if options.keep_tags else {}
        heard = _Spool(work / "input.f32", channels)
        resampler, samples = Resampler(rate, enhancer.input_rate, channels), 0
        for block in reader:
            samples += block.shape[1]
            if options.limit_s is not None and samples > options.limit_s * rate:
                raise TooLong(f"{name or source}: longer than {duration(options.limit_s)}, which is the limit")
            heard.append(resampler(block))
        heard.append(resampler(np.zeros((channels, 0), np.float32), last=True))
    heard.fit(length_at(samples, rate, enhancer.input_rate))
    if progress:
        progress.begin(samples / rate)

    made = _Spool(work / "output.f32", channels)
    resampler = Resampler(enhancer.output_rate, output_rate, channels)
    for block in enhancer.render(heard.read, heard.frames, heard.peaks):
        made.append(resampler(block))
        if progress:
            progress.add(block.shape[1] / enhancer.output_rate)
    made.append(resampler(np.zeros((channels, 0), np.float32), last=True))
    made.fit(length_at(samples, rate, output_rate))
    heard.close()

    peak = float(made.peaks.max())
    gain = 1.0 if subtype == "FLOAT" or peak <= 1 else 1.0 / peak
    output = work / f"output{path.suffix.lower()}"
    _write(made, output, output_rate, container, subtype, gain, speakers, tags, options.dither)
    made.close()
    return output, Done(samples / rate, time.perf_counter() - started, gain)


def _output_format(path: Path, channels: int, options: Options, rate: int) -> tuple[str, str, int]:
    """libsndfile's format and subtype for an output, and its rate: by default `rate`, or the next that is allowed.

    UserError if the format does not allow the rate that was asked for, or the channels.
    """
    container, subtype = FORMATS[path.suffix.lower()]
    if container in ("WAV", "FLAC") and options.subtype:
        subtype = options.subtype
    if container == "FLAC" and subtype == "FLOAT":
        raise UserError(f"{path}: FLAC stores integers; give --subtype PCM_16 or PCM_24, or --format wav")
    most = {"WAV": 1024, "FLAC": 8, "OGG": 255, "MP3": 2}[container]
    if channels > most:
        raise UserError(f"{path}: {container} allows {most} channels, the recording has {channels}; use --format wav")
    allowed = RATES.get(subtype)
    if options.rate is None:
        if allowed:
            rate = min((possible for possible in allowed if possible >= rate), default=allowed[-1])
        return container, subtype, rate
    if allowed and options.rate not in allowed:
        raise UserError(f"{path}: {subtype} allows {', '.join(map(str, allowed))} Hz, not {options.rate} Hz")
    return container, subtype, options.rate


def _write(
    made: _Spool,
    path: Path,
    rate: int,
    container: str,
    subtype: str,
    gain: float = 1.0,
    speakers: Sequence[str] = (),
    tags: dict[str, str] | None = None,
    dither: bool = False,
) -> None:
    """Write the final file in blocks; a WAV that would exceed 4 GB becomes an RF64.

    speakers: FFmpeg's names of the channels, for the channel mask of a WAV; (): that of libsndfile for their number.
    """
    width = {"PCM_16": 2, "PCM_24": 3, "FLOAT": 4}.get(subtype, 0)
    order = VORBIS_ORDER.get(made.channels) if container == "OGG" else None
    if container == "WAV" and made.frames * made.channels * width > WAV_LIMIT:
        container = "RF64"
    elif container == "WAV" and made.channels > 2:
        container = "WAVEX"  # Microsoft asks for it beyond two channels; it has the channel mask
    random = np.random.default_rng(0)
    try:
        with sf.SoundFile(path, "w", rate, made.channels, subtype, format=container) as file:
            for tag, value in (tags or {}).items():
                setattr(file, tag, value)
            for start in range(0, made.frames, BLOCK):
                block = made.read(start, min(start + BLOCK, made.frames)) * np.float32(gain)
                block = block if order is None else block[list(order)]
                file.write(_quantised(block, subtype, random if dither else None).T)
    except sf.LibsndfileError:  # which does not say why the system has refused to write: ask it again
        with path.open("ab") as file:
            file.write(bytes(BLOCK))
        raise
    if container in ("WAVEX", "RF64") and made.channels > 2 and speakers:
        _set_channel_mask(path, channel_mask(speakers))


def _quantised(block: np.ndarray, subtype: str, random: np.random.Generator | None) -> np.ndarray:
    """Samples as libsndfile takes them: integers are rounded here, since it cuts off what is below a step."""
    if subtype not in ("PCM_16", "PCM_24"):
        return block
    bits = 16 if subtype == "PCM_16" else 24
    scaled = block.astype(np.float64) * 2 ** (bits - 1)
    if random:
        scaled += random.random(scaled.shape) - random.random(scaled.shape)  # triangular, two steps wide
    # 1.0 itself becomes the largest number, half a step from where it belongs.
    rounded = np.clip(np.rint(scaled), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    return rounded.astype(np.int16) if bits == 16 else rounded.astype(np.int32) << 8


def _set_channel_mask(path: Path, mask: int) -> None:
    """Replace the channel mask in the header of a WAV, which libsndfile derives from the number of channels."""
    with path.open("r+b") as file:
        file.seek(12)
        while (chunk := file.read(8))[:4] != b"fmt ":
            file.seek(struct.unpack("<I", chunk[4:])[0], os.SEEK_CUR)
        file.seek(20, os.SEEK_CUR)
        file.write(struct.pack("<I", mask))


# ---------------------------------------------------------------------------------------------------------------------
# Many recordings


def enhance_files(enhancer: Engine, pairs: Sequence[tuple[str, str]], options: Options) -> list[str]:
    """Enhance (input, output) pairs; a failure does not stop the others. Returns the errors, one line per file.

    Of several pairs, those whose output exists are skipped, unless `options.force`: a run that was stopped goes on.
    """
    progress = AudioProgress()
    failures: list[str] = []
    if not options.force and (options.resume or len(pairs) > 1):
        given, pairs = len(pairs), [pair for pair in pairs if pair[1] == "-" or not Path(pair[1]).exists()]
        if len(pairs) < given:
            progress.say(f"{given - len(pairs)} of {given} outputs exist and are kept; --force replaces them")
    seconds = 0.0
    started = time.perf_counter()
    for index, (source, target) in enumerate(pairs, 1):
        name = "stdin" if source == "-" else source
        progress.label = (
            f"enhance {index}/{len(pairs)} {Path(name).name}" if len(pairs) > 1 else f"enhance {Path(name).name}"
        )
        try:
            done = enhance_file(enhancer, source, target, options, progress)
        except Exception as error:  # of any kind: the others are to be enhanced
            text = str(error) if isinstance(error, UserError) else f"{source}: {type(error).__name__}: {error}"
            failures.append(" ".join(text.split()))
            progress.say(f"error: {failures[-1]}")
            continue
        seconds += done.seconds
        if done.gain < 1:
            progress.say(f"{target}: turned down by {-20 * np.log10(done.gain):.2f} dB, or its peaks would clip")
    progress.close()
    elapsed = time.perf_counter() - started
    good = len(pairs) - len(failures)
    if good:
        progress.say(
            f"enhanced {good} of {len(pairs)} files, {duration(seconds)} of audio in {duration(elapsed)}: real-time "
            f"factor {elapsed / seconds:.3g}, {seconds / elapsed:.3g} times real time"
        )
    if failures and len(pairs) > 1:
        progress.say(f"{len(failures)} of {len(pairs)} files were not enhanced:")
        for failure in failures:
            progress.say(f"  {failure}")
    return failures
