"""The processes that train one network together: one per GPU, started by torchrun.

Gradients are summed explicitly instead of by DistributedDataParallel. A step makes several forward passes through the
same discriminators (real, generated, and again for the generator's update, where they are frozen), splits batches into
microbatches, and must decide jointly whether an update is finite before making it. DistributedDataParallel's hooks
would have to be disabled for most of that. One explicit sum after the last backward pass of an update is sufficient:
every loss is weighted by its share of the global batch, so the sum is the global batch's gradient for any number of
processes.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from finallyse.errors import UserError
from finallyse.hardware import choose_device, processor

BUCKET_BYTES = 64 * 2**20


def process_device(name: str) -> torch.device:
    """The device of this process for `exp.device=name`: a GPU of its own, or the CPU.

    Raises:
        UserError: if there is no GPU for this process.
    """
    device = choose_device(name, "exp.device")
    if device.type == "cpu":
        return device
    index = int(os.environ.get("LOCAL_RANK", 0))
    if index >= torch.cuda.device_count():
        raise UserError(
            f"torchrun started process {index} on this node, but it has {torch.cuda.device_count()} GPUs; "
            "use --nproc-per-node with the number of GPUs"
        )
    device = torch.device("cuda", index)
    torch.cuda.set_device(device)
    return device


class Group:
    """This process within the group that trains together; a group of one unless started by torchrun.

    Attributes:
        leader: whether this is the one process that writes files.
        hardware: name of the training device.
    """

    def __init__(self, device: torch.device):
        self.device = device
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
        self.rank, self.world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        self.hardware = name if self.world == 1 else f"{self.world} x {name}"
        if self.world > 1:
            # gloo in addition to NCCL: decisions between hosts (stop, save) must not wait for the GPUs
            dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")

    @property
    def leader(self) -> bool:
        return self.rank == 0

    def close(self) -> None:
        if self.world > 1 and dist.is_initialized():
            dist.destroy_process_group()

    def share(self, items: list) -> list:
        """This process's contiguous part of a global batch."""
        size = len(items)
        return items[self.rank * size // self.world : (self.rank + 1) * size // self.world]

    def sum(self, values: Tensor) -> Tensor:
        """Sum of a small tensor over all processes, in place."""
        if self.world > 1:
            dist.all_reduce(values)
        return values

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace every gradient by its sum over all processes."""
        if self.world == 1:
            return
        pending = []
        for bucket in _buckets([p.grad for p in parameters if p.grad is not None]):
            flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
            pending.append((bucket, flat, dist.all_reduce(flat, async_op=True)))
        for bucket, flat, work in pending:
            work.wait()
            sums = flat.split([gradient.numel() for gradient in bucket])
            torch._foreach_copy_(bucket, [s.view_as(g) for s, g in zip(sums, bucket, strict=True)])

    def highest(self, *values: int) -> list[int]:
        """The element-wise maximum of a few small integers over all processes, on the hosts only."""
        if self.world == 1:
            return list(values)
        agreed = torch.tensor(values)
        dist.all_reduce(agreed, op=dist.ReduceOp.MAX)
        return agreed.tolist()

    def from_leader(self, value: Any) -> Any:
        """The leader's picklable `value`, in every process."""
        if self.world == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
        return box[0]

    def gather(self, value: Any) -> list[Any]:
        """Every process's picklable `value`, by rank, in every process."""
        if self.world == 1:
            return [value]
        gathered: list[Any] = [None] * self.world
        dist.all_gather_object(gathered, value)
        return gathered

    def barrier(self) -> None:
        """Wait for all processes."""
        self.highest(0)


def _buckets(tensors: list[Tensor]) -> Iterable[list[Tensor]]:
    bucket, size = [], 0
    for tensor in tensors:
        bucket.append(tensor)
        size += tensor.numel() * tensor.element_size()
        if size >= BUCKET_BYTES:
            yield bucket
            bucket, size = [], 0
    if bucket:
        yield bucket
