"""Enhancement with ONNX Runtime, without PyTorch, of networks that `finallyse export` has written."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from finallyse.errors import UserError
from finallyse.hardware import cores
from finallyse.hashes import sha256
from finallyse.inference.engine import Engine, finite
from finallyse.onnx_format import FORMAT, FORMAT_VERSION, KEY

NUMBERS = ("input_rate", "output_rate", "alignment", "reach_back", "reach_ahead", "repeats")
KINDS = ("mel", "wav", "wav+ssl")


@dataclasses.dataclass(frozen=True)
class Described:
    """A network by the description in its file."""

    input_kind: str
    input_rate: int
    output_rate: int
    alignment: int
    reach_back: int
    reach_ahead: int
    repeats: int


@dataclasses.dataclass(frozen=True)
class DescribedWavLM:
    """A WavLM by the description in the file of the network that it conditions; all in samples but `dim`."""

    hop: int
    receptive_field: int
    dim: int


class OnnxEnhancer(Engine):
    """Runs an exported network on the CPU over signals of any length.

    Args:
        path: a file of `finallyse export`; a WavLM is expected beside it, under the name it was exported with.
        threads: CPU threads; None: one per core that the process may use.
        window_s, batch: as for `finallyse.Enhancer`.

    Raises UserError for a file that is none, is damaged, newer, or whose WavLM is missing or another one.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        threads: int | None = None,
        window_s: float | None = None,
        batch: int | None = None,
    ):
        self.path, self.threads = Path(path), threads or cores()
        self.session = self._open(self.path)
        self.about = _described(self.path, self.session)
        wavlm = None
        if self.about["input_kind"] == "wav+ssl":
            wavlm = DescribedWavLM(self.about["ssl"]["hop"], self.about["ssl"]["sees"], self.about["ssl"]["dim"])
            self.wavlm_session = self._open_wavlm(self.about["ssl"])
        model = Described(self.about["input_kind"], *(self.about[name] for name in NUMBERS))
        super().__init__(model, wavlm, window_s, batch or 1, self.about["level"])

    def _open(self, path: Path) -> onnxruntime.InferenceSession:
        if not path.is_file():
            raise UserError(f"{path}: no such file")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = self.threads, 3
        # denormal numbers, common in fading activations, are an order of magnitude slower
        options.add_session_config_entry("session.set_denormal_as_zero", "1")
        try:
            return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the runtime's exceptions have no common class
            raise UserError(f"{path}: not readable as an ONNX graph: {' '.join(str(error).split())}") from error

    def _open_wavlm(self, about: Mapping[str, Any]) -> onnxruntime.InferenceSession:
        path = self.path.with_name(Path(about["file"]).name)
        if not path.is_file():
            raise UserError(f"{self.path}: needs {path.name} beside it, which `finallyse export` wrote with it")
        if sha256(path) != about["sha256"]:
            raise UserError(f"{path}: not the WavLM that {self.path} was exported with; export both again")
        return self._open(path)

    def generate(
        self, wav: np.ndarray | None, ssl: np.ndarray | None = None, mel: np.ndarray | None = None
    ) -> np.ndarray:
        if wav is None:
            raise NotImplementedError("an exported network takes waveforms, not spectrograms")
        given = {"wav": wav[:, None]} | ({} if ssl is None else {"ssl": ssl})
        return finite(self.session.run(["enhanced"], given)[0][:, 0])

    def hidden_state(self, wav: np.ndarray) -> np.ndarray:
        return self.wavlm_session.run(["features"], {"wav": wav})[0]


def _described(path: Path, session: onnxruntime.InferenceSession) -> dict[str, Any]:
    """The description in a network's metadata, checked."""
    text = session.get_modelmeta().custom_metadata_map.get(KEY)
    if text is None:
        raise UserError(f"{path}: not a network of this package; `finallyse export` writes them")
    try:
        about = json.loads(text)
        if about["format"] != FORMAT:
            raise UserError(f"{path}: is the {about['format']}; give the network that it was exported with")
        if about["version"] > FORMAT_VERSION:
            raise UserError(
                f"{path}: written by finallyse {about['package_version']} in format {about['version']}, newer than "
                f"this one's {FORMAT_VERSION}; update the package"
            )
        level = about["level"]
        good = (
            about["input_kind"] in KINDS
            and all(isinstance(about[name], int) and about[name] > 0 for name in NUMBERS)
            and (level is None or (level.keys() == {"peak"} and level["peak"] > 0))
            and about["output_rate"] % about["input_rate"] == 0
        )
        if about["input_kind"] == "wav+ssl":
            sizes = [about["ssl"][name] for name in ("hop", "sees", "dim")]
            good = good and all(isinstance(size, int) and size > 0 for size in sizes)
            good = good and all(isinstance(about["ssl"][name], str) for name in ("file", "sha256"))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: damaged: its description is not readable ({error!r}); export it again") from error
    if not good:
        raise UserError(f"{path}: damaged: its description has impossible values; export it again")
    return about
