"""A folder of recordings as they come, through everything that reads recordings: enhance, prepare and evaluate."""

from __future__ import annotations

import csv
import struct
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile as sf
import torch

from finallyse.audio.io import decode
from finallyse.corpora.prepare import prepare
from finallyse.inference.enhancer import Enhancer
from finallyse.inference.files import Options, enhance_files, plan_outputs
from finallyse.metrics.evaluate import evaluate
from finallyse.models.base import Generator

RATE = 16000
CUT = {"half a wav.wav", "half a flac.flac", "half an mp3.mp3"}  # of which something is left


class Same(Generator):
    """A network that changes nothing."""

    input_kind, alignment = "wav", 1

    def forward(self, wav):
        return wav.clone()


@pytest.fixture(scope="module")
def folder(tmp_path_factory, speech_16k) -> Path:
    """Recordings good/*, and files that cannot be used: bad/*."""
    folder = tmp_path_factory.mktemp("recordings")
    good, bad = folder / "good", folder / "bad"
    good.mkdir()
    bad.mkdir()
    wav = speech_16k[: 2 * RATE]
    for name in ("plain.wav", "plain.flac", "plain.mp3", "plain.ogg", "plain.opus", "plain.aiff", "plain.au"):
        target = good / f"{name.replace('.', '_')}.{name.split('.')[1]}"
        sf.write(target, wav, RATE, **({"format": "OGG", "subtype": "OPUS"} if name.endswith("opus") else {}))
    sf.write(good / "gsm.wav", wav[: RATE // 2], 8000, "GSM610")
    sf.write(good / "six.ogg", np.stack([wav] * 6, 1), RATE)
    integers = (wav.astype(np.float64) * 2**62).astype("<i8").tobytes()
    fmt = b"fmt " + struct.pack("<IHHIIHH", 16, 1, 1, RATE, 8 * RATE, 8, 64)
    data = b"data" + struct.pack("<I", len(integers)) + integers
    (good / "integers of 64 bits.wav").write_bytes(
        b"RIFF" + struct.pack("<I", 36 + len(integers)) + b"WAVE" + fmt + data
    )
    with av.open(str(good / "seven_one.m4a"), "w") as container:
        stream = container.add_stream("aac", rate=48000, layout="7.1")
        noise = np.random.default_rng(0).standard_normal((1, 8 * 48000)).astype(np.float32) * 0.1
        frame = av.AudioFrame.from_ndarray(noise, format="flt", layout="7.1")
        frame.sample_rate, frame.pts = 48000, 0
        for piece in (frame, None):
            container.mux(stream.encode(piece))
    header = bytearray((good / "plain_wav.wav").read_bytes())
    header[40:44] = bytes(4)  # a recorder that was switched off
    (good / "switched off.wav").write_bytes(header)

    (bad / "empty.wav").write_bytes(b"")
    (bad / "zeros.wav").write_bytes(bytes(4000))
    (bad / "random.mp3").write_bytes(np.random.default_rng(1).bytes(4000))
    (bad / "page.mp3").write_bytes(b"<!DOCTYPE html><html><body>404</body></html>")
    (bad / "header only.flac").write_bytes((good / "plain_flac.flac").read_bytes()[:42])
    (bad / "no index.m4a").write_bytes((good / "seven_one.m4a").read_bytes()[:9000])
    sf.write(bad / "nothing.wav", np.zeros(0), RATE)
    sf.write(bad / "not a number.wav", np.array([0.1, np.nan] * 4000), RATE, "FLOAT")
    for name in sorted(CUT):
        kind = name.split(".")[1]
        whole = (good / f"plain_{kind}.{kind}").read_bytes()
        (bad / name).write_bytes(whole[: len(whole) // 2])
    for name in ("notes.txt", "SA1.PHN", "cover.jpg", "index.cue"):
        (bad / name).write_bytes(b"neither good nor bad")
    return folder


def recordings(folder: Path, *kinds: str) -> list[Path]:
    return sorted(
        p for kind in kinds for p in (folder / kind).iterdir() if p.suffix not in (".txt", ".PHN", ".jpg", ".cue")
    )


@pytest.mark.parametrize("accept_cut", [False, True])
def test_enhance(folder, tmp_path, accept_cut):
    options = Options(accept_cut=accept_cut)
    failures = enhance_files(
        Enhancer(Same(), device="cpu"), plan_outputs([str(folder)], str(tmp_path), options), options
    )
    made = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.wav")}
    lost = {path for path in recordings(folder, "bad") if not (accept_cut and path.name in CUT)}
    expected = set(recordings(folder, "good", "bad")) - lost
    assert made == {path.relative_to(folder).with_suffix(".wav").as_posix() for path in expected}
    assert len(failures) == len(lost) and not any("\n" in failure for failure in failures)
    for path in lost:
        assert any(failure.startswith(f"{path}: ") for failure in failures), path
    for path in recordings(folder, "good"):
        wav, rate = decode(path)
        enhanced, to_rate = decode(tmp_path / path.relative_to(folder).with_suffix(".wav"))
        assert to_rate == max(RATE, rate) and len(enhanced) == len(wav)
        assert abs(enhanced.shape[1] - wav.shape[1] * to_rate / rate) < 1


@pytest.mark.parametrize("accept_cut", [False, True])
def test_prepare(folder, tmp_path, accept_cut):
    prepare("vctk", folder, tmp_path, RATE, max_dropped=0.9, accept_cut=accept_cut)
    with (tmp_path / "dropped.csv").open() as file:
        dropped = {row["path"]: row["reason"] for row in csv.DictReader(file)}
    lost = {path for path in recordings(folder, "bad") if not (accept_cut and path.name in CUT)}
    assert set(dropped) == {path.relative_to(folder).as_posix() for path in lost}
    assert all(reason and "\n" not in reason for reason in dropped.values())
    kept = []
    for split in ("train", "validation"):
        with (tmp_path / f"{split}.csv").open() as file:
            kept += [row["path"] for row in csv.DictReader(file)]
    assert len(kept) == len(recordings(folder, "good", "bad")) - len(lost)


@pytest.mark.parametrize("accept_cut", [False, True])
def test_evaluate(folder, tmp_path, accept_cut):
    result = evaluate(
        folder, ["level"], tmp_path / "out.csv", reference=folder, accept_cut=accept_cut, jobs=1
    )  # fmt: skip
    lost = {path for path in recordings(folder, "bad") if not (accept_cut and path.name in CUT)}
    assert (tmp_path / "out.csv").is_file() and len(result.rows) == len(recordings(folder, "good", "bad"))
    assert {row.utterance for row in result.rows if row.unreadable} == {
        path.relative_to(folder).with_suffix("").as_posix() for path in lost
    }
    assert not any("\n" in message for message in result.unreadable)
    torch.testing.assert_close(result.summaries["enhanced"]["level"].mean, 0.0)
