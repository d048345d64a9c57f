"""Batches: collated items, their transfer to the device, and the stream of them by step."""

from __future__ import annotations

import dataclasses
import signal
import threading
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from finallyse.errors import TemporaryError, UserError
from finallyse.training.distributed import Group
from finallyse.training.sampling import Order

MEMORY = (
    "if for want of memory, lower data.num_workers or data.batch_size, or give the job more (networks.<name>.mem_gb)"
)
CHANNEL_AXIS = ("wav", "input_wav")  # [T] in an item, [B, 1, T] in a batch, as the networks require


@dataclasses.dataclass
class Batch:
    """Items of one step, or a microbatch of them: `wav` and `input_wav` [B, 1, T], the others with B in front.

    Attributes:
        share: this batch's fraction of the global batch: the weight of a loss that is a mean over items.
    """

    tensors: dict[str, Tensor]
    names: list[str]
    share: float = 1.0

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, key: str) -> Tensor:
        if key not in self.tensors:
            raise UserError(f"the trainer needs {key!r}, which items of this dataset do not have ({list(self)})")
        return self.tensors[key]

    def __setitem__(self, key: str, value: Tensor) -> None:
        self.tensors[key] = value

    def __contains__(self, key: object) -> bool:
        return key in self.tensors

    def __iter__(self):
        return iter(self.tensors)

    def split(self, size: int | None) -> list[Batch]:
        """Split into microbatches of at most `size` items; None: a single one."""
        if size is None or size >= len(self):
            return [dataclasses.replace(self, tensors=dict(self.tensors))]
        microbatches = []
        for first in range(0, len(self), size):
            names = self.names[first : first + size]
            tensors = {key: value[first : first + size] for key, value in self.tensors.items()}
            microbatches.append(Batch(tensors, names, self.share * len(names) / len(self)))
        return microbatches

    def to(self, device: torch.device) -> Batch:
        """The batch on `device`; the copy of pinned memory does not wait for the GPU."""
        moved = {key: value.to(device, non_blocking=True) for key, value in self.tensors.items()}
        return dataclasses.replace(self, tensors=moved)

    def pin_memory(self) -> Batch:
        """Called by the DataLoader if training runs on a GPU."""
        return dataclasses.replace(self, tensors={key: value.pin_memory() for key, value in self.tensors.items()})


class ErrorsAsItems:
    """A dataset that returns UserErrors instead of raising them, which in a loader process would add a traceback.

    So does it with a lack of memory, as a TemporaryError.
    """

    def __init__(self, dataset):
        self.dataset = dataset

    def __getitem__(self, key):
        try:
            return self.dataset[key]
        except UserError as error:
            return error
        except (MemoryError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and "can't allocate memory" not in str(error):  # PyTorch's MemoryError
                raise
            return TemporaryError(f"out of memory while loading an item; {MEMORY}")


def collate_or_error(items: list) -> Batch | UserError:
    """`collate`; returns an error among the items, or in collating them, instead of the batch."""
    try:
        return next((item for item in items if isinstance(item, UserError)), None) or collate(items)
    except UserError as error:
        return error


def collate(items: Iterable[Mapping]) -> Batch:
    """Stack items of equal lengths.

    Raises:
        UserError: if lengths differ: a training dataset needs a `segment`.
    """
    items = list(items)
    names = [str(item["name"]) for item in items]
    tensors = {}
    for key, first in items[0].items():
        if key == "name" or first is None or isinstance(first, str):
            continue
        values = [torch.as_tensor(item[key]) for item in items]
        if any(value.shape != values[0].shape for value in values):
            shapes = {name: list(value.shape) for name, value in zip(names, values, strict=True)}
            raise UserError(f"items of different lengths cannot form a batch ({key}: {shapes}); set `segment`")
        stacked = torch.stack(values)
        tensors[key] = stacked.unsqueeze(1) if key in CHANNEL_AXIS else stacked
    return Batch(tensors, names)


class Batches:
    """Loads the batch of each step onto the device. Steps must be requested in order, starting at any step.

    Args:
        dataset: returns an item for (epoch, index).
        order: defines the items of each step.
        group: the process group; each process loads its share of the global batch.
        last: step at which training ends, so that workers do not load beyond it.
        num_workers: loader processes; 0 loads in this process.
    """

    def __init__(self, dataset, order: Order, group: Group, last: int, num_workers: int):
        if order.batch_size < group.world:
            raise UserError(
                f"data.batch_size={order.batch_size} cannot be shared by {group.world} processes; raise it or use fewer"
            )
        self.dataset, self.order, self.group, self.last, self.num_workers = dataset, order, group, last, num_workers
        self._next, self._loader = None, None

    def at(self, step: int) -> Batch:
        """This process's share of the global batch of `step` (counted from 0).

        Raises:
            TemporaryError: if a loader process has died or is out of memory.
            UserError: for an item that cannot be read.
        """
        if step != self._next:
            self.close()
            # PyTorch would tell of a dead loader process by an error in the middle of whatever is done here
            handler = signal.getsignal(signal.SIGCHLD)
            if getattr(handler, "__module__", "").startswith("torch."):  # of another loader in this process
                handler = signal.SIG_DFL
            self._loader, self._next = iter(self._from(step)), step
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGCHLD, handler or signal.SIG_DFL)
        try:
            batch = next(self._loader)
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise TemporaryError(f"a loader process has died; {MEMORY}") from error
        if isinstance(batch, UserError):
            raise batch
        batch.share = len(batch) / self.order.batch_size
        self._next += 1
        return batch.to(self.group.device)

    def _from(self, step: int) -> DataLoader:
        return DataLoader(
            ErrorsAsItems(self.dataset),
            batch_sampler=(self.group.share(self.order.at(each)) for each in range(step, self.last)),
            collate_fn=collate_or_error,
            num_workers=min(self.num_workers, self.last - step),
            pin_memory=self.group.device.type == "cuda",
            worker_init_fn=_ignore_signals if self.num_workers else None,
        )

    def close(self) -> None:
        """Terminate the loader processes.

        Not left to the iterator's destructor: an error's traceback may keep it alive until Python exits, which would
        then wait for processes that ignore SIGTERM.
        """
        loader, self._loader, self._next = self._loader, None, None
        if loader is not None and self.num_workers:
            loader._shutdown_workers()


def _ignore_signals(worker: int) -> None:
    """A signal to the whole process group must not kill a loader process while the trainer is about to save."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
