"""Files of tensors: reading what `torch.save` or safetensors wrote without running anything in it, writing, and strict
loading.

A safetensors file holds what a file of `torch.save` does: its tensors under their path in the nested dicts, with
slashes (`generator/conv_pre.weight`), and all else as JSON in the header, under `finallyse`.
"""

from __future__ import annotations

import collections
import contextlib
import json
import pickle
import re
import tarfile
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from finallyse import atomic
from finallyse.errors import UserError
from finallyse.finished import damage

DTYPES = {
    "BFloat16Storage": torch.bfloat16,
    "BoolStorage": torch.bool,
    "ByteStorage": torch.uint8,
    "CharStorage": torch.int8,
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "IntStorage": torch.int32,
    "LongStorage": torch.int64,
    "ShortStorage": torch.int16,
}


def load_tensors(path: str | Path, kind: str = "checkpoint", foreign: bool = False) -> Any:
    """The plain values and tensors in a file of `torch.save` or `save_safetensors`, on the CPU. Nothing in it is run.

    Args:
        path: the file.
        kind: what it should be, for the message.
        foreign: it may hold objects of other packages, for example of the framework that trained a network; they are
            replaced by empty ones. Otherwise such a file is refused.

    Raises:
        UserError: for a file that is missing, damaged (by its checksums), or anything else than tensors and plain
            values: TorchScript, a tar archive, a pickle with code, tensors larger than their data.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such {kind}")
    if _is_safetensors(path):
        return _load_safetensors(path, kind)
    try:
        archive = zipfile.is_zipfile(path)
        if archive and (what := damage(path)):
            raise UserError(
                f"{path}: damaged ({what}): copy or download it again; of a training, delete it, and the same command "
                "makes it again"
            )
        if archive and any(name.endswith("/constants.pkl") for name in zipfile.ZipFile(path).namelist()):
            raise UserError(f"{path}: not readable as a {kind}: a TorchScript program, which is not run; {REMEDY}")
        if not archive and tarfile.is_tarfile(path):
            raise UserError(f"{path}: not readable as a {kind}: a tar archive; {REMEDY}")
        content = _read_foreign(path) if foreign else torch.load(path, map_location="cpu", weights_only=True)
        _check_sizes(content, path)
    except UserError:
        raise
    except Exception as error:  # of any kind: it reads a file of another kind as a program
        if code := re.search(r"GLOBAL (\S+) was not an allowed global", str(error)):
            reason = f"it holds {code[1]}, which is neither a tensor nor a plain value, and is not run; {REMEDY}"
            raise UserError(f"{path}: not readable as a {kind}: {reason}") from None
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise UserError(
            f"{path}: not readable as a {kind} (damaged, or not written by torch.save): {reason}"
        ) from error
    return content


REMEDY = "a file written by torch.save(network.state_dict(), ...) is wanted"


def _check_sizes(content: Any, path: Path) -> None:
    """Raise a UserError for a tensor that is larger than its data: a copy of it could fill memory or disk."""
    waiting, seen = [content], set()
    while waiting:
        value = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, Mapping):
            waiting += value.values()
        elif isinstance(value, (list, tuple)):
            waiting += value
        elif torch.is_tensor(value):
            plain = value.device.type == "cpu" and value.layout == torch.strided
            if not plain or value.numel() * value.element_size() > value.untyped_storage().nbytes():
                raise UserError(f"{path}: a tensor of shape {list(value.shape)} is without its data; {REMEDY}")


# ---------------------------------------------------------------------------------------------------------------------
# Safetensors

HEADER = "finallyse"  # key of the plain values in a safetensors file
MOST_HEADER = 100_000_000  # bytes, as the safetensors library allows
DEEPEST = 8  # slashes in the path of a tensor


def _is_safetensors(path: Path) -> bool:
    """By its content: the length of a header in 8 bytes, and the header, which is JSON."""
    with path.open("rb") as file:
        size, first = file.read(8), file.read(1)
    return len(size) == 8 and first == b"{" and int.from_bytes(size, "little") <= MOST_HEADER


def save_safetensors(path: str | Path, content: Mapping[str, Any]) -> None:
    """Write nested dicts of tensors and plain values as a safetensors file, atomically and durably.

    Raises UserError with the path on failure; TypeError for values that are neither tensors nor JSON.
    """
    from safetensors.torch import save

    path, tensors = Path(path), {}
    plain = _without_tensors(content, "", tensors)
    data = save(tensors, {HEADER: json.dumps(plain)})
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic.replacing(path, durable=True) as part:
            part.write_bytes(data)
    except OSError as error:
        raise UserError(f"{path}: could not be written: {error.strerror}") from error


def _without_tensors(values: Mapping[str, Any], prefix: str, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """The nested dicts without their tensors, which are added to `tensors` under their paths."""
    plain = {}
    for key, value in values.items():
        if torch.is_tensor(value):
            tensors[f"{prefix}{key}"] = value.detach().cpu().contiguous().clone()  # no memory is shared in the file
        elif isinstance(value, Mapping):
            plain[key] = _without_tensors(value, f"{prefix}{key}/", tensors)
        else:
            plain[key] = value
    return plain


def _load_safetensors(path: Path, kind: str) -> dict[str, Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            header = (file.metadata() or {}).get(HEADER)
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  it is no dict
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: damaged, or not a safetensors file: {error}: copy or download it again") from error
    if header is None:
        raise UserError(f"{path}: not readable as a {kind}: a safetensors file that `finallyse pack` has not written")
    try:
        content = json.loads(header)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: damaged: its header is not JSON ({error}): copy or download it again") from error
    for name, tensor in tensors.items():
        *folders, last = name.split("/")
        place = content if len(folders) <= DEEPEST else None
        for folder in folders:
            place = place.setdefault(folder, {}) if isinstance(place, dict) else None
        if not isinstance(place, dict) or last in place:
            raise UserError(f"{path}: damaged: its tensor {name!r} has no place in its header")
        place[last] = tensor
    return content


# ---------------------------------------------------------------------------------------------------------------------
# Files with objects of other packages


def _read_foreign(path: Path) -> Any:
    with zipfile.ZipFile(path) as archive:
        name = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
        with archive.open(name) as file:
            return _InertUnpickler(file, archive, name.removesuffix("data.pkl")).load()


class _InertUnpickler(pickle.Unpickler):
    """Reads plain values and tensors, and replaces all other objects with empty ones; runs nothing from the file."""

    def __init__(self, file: Any, archive: zipfile.ZipFile, folder: str):
        super().__init__(file)
        self.archive, self.folder = archive, folder

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _tensor
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return _first
        if module == "torch" and name in DTYPES:
            return DTYPES[name]
        return type(name, (_Inert,), {})

    def persistent_load(self, pid: Any) -> Tensor:
        _, dtype, key, _, _ = pid
        data = bytearray(self.archive.read(f"{self.folder}data/{key}"))
        return torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)


def _tensor(values: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
    return values.as_strided(size, stride, offset)


def _first(value: Any, *_: Any) -> Any:
    return value


class _Inert:
    """Placeholder for an object of another package."""

    def __new__(cls, *_args: Any, **_kwargs: Any):
        return super().__new__(cls)

    def __init__(self, *_args: Any, **_kwargs: Any):
        pass

    def __setstate__(self, _state: Any):
        pass

    def __call__(self, *_args: Any, **_kwargs: Any):
        return self

    def __setitem__(self, _key: Any, _value: Any):
        pass

    def extend(self, _values: Any):
        """The items of a list subclass."""

    append = extend


# ---------------------------------------------------------------------------------------------------------------------
# Into networks


@contextlib.contextmanager
def bounded_by(state: Mapping[str, Tensor], source: str) -> Iterator[None]:
    """The block makes a network that a file describes, for its weights `state`, and fails as soon as it is larger.

    A parameter takes memory only when it is initialised, after it is counted here. Raises UserError for that, and for a
    description of which nothing can be made.
    """
    most = 64 + 2 * len(state)  # a norm registers more parameters than it has in the end
    largest, made = max((tensor.numel() for tensor in state.values()), default=0), 0

    def count(_module: nn.Module, name: str, parameter: Tensor | None) -> None:
        nonlocal made
        made += 1
        if made > most or (parameter is not None and parameter.numel() > largest):
            raise UserError("describes a larger network than it has weights of")

    counting = nn.modules.module.register_module_parameter_registration_hook(count)
    try:
        yield
    except UserError as error:
        raise UserError(f"{source}: {error}") from error
    except Exception as error:  # of any kind: the arguments come from a file
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"{source}: describes a network that cannot be made ({reason})") from error
    finally:
        counting.remove()


def load_strictly(module: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Load a state_dict; raises a UserError listing every key that is missing, unexpected or of another shape."""
    if problems := list(_misfits(module.state_dict(), state)):
        raise UserError(f"{source} does not fit {type(module).__name__}: {'; '.join(problems)}")
    module.load_state_dict(state)


def _misfits(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> Iterator[str]:
    yield from (f"missing {key} {list(own[key].shape)}" for key in own if key not in state)
    yield from (f"left over {key} {list(state[key].shape)}" for key in state if key not in own)
    for key in own:
        if key in state and state[key].shape != own[key].shape:
            yield f"{key} has shape {list(state[key].shape)} instead of {list(own[key].shape)}"


# ---------------------------------------------------------------------------------------------------------------------
# Writing


def save_tensors(path: str | Path, content: Mapping[str, Any]) -> None:
    """`torch.save` atomically and durably; raises a UserError with the path on failure."""
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic.replacing(path, durable=True) as part, part.open("wb") as file:
            torch.save(content, file)
    except (OSError, RuntimeError) as error:  # torch.save reports a short write as RuntimeError
        raise UserError(f"{path}: could not be written: {next(iter(str(error).splitlines()), '')}") from error
