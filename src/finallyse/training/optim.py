"""From gradients to an update: sum over processes, check, clip, step, learning rate, moving average of the weights."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from finallyse.options import Optimizer, Scheduler, from_dict
from finallyse.training.clipping import Clipper
from finallyse.training.distributed import Group


def learning_rate(step: int, epoch: int, base: float, scheduler: Scheduler | Mapping) -> float:
    """The learning rate of step `step` (counted from 0), a pure function: no state, no total number of steps.

    Rises linearly from base / warmup_steps to base, then decays by `gamma` once per epoch or every so many steps.
    """
    scheduler = from_dict(Scheduler, scheduler)
    decays = epoch if scheduler.every == "epoch" else step // scheduler.every
    warmup = min(1.0, (step + 1) / max(1, scheduler.warmup_steps))
    return base * scheduler.gamma**decays * warmup


class Guard:
    """Skips updates with non-finite losses or gradients without waiting for the GPU.

    Whether to skip an update is a tensor that the fused optimizer reads on the device. In mode `stop`, all updates
    after a skipped one are skipped too: however late the host reads it, the weights are those of the last good update.

    Args:
        on_nonfinite: "stop" or "skip".
        device: device of the updates.
    """

    def __init__(self, on_nonfinite: str, device: torch.device):
        self.stops = on_nonfinite == "stop"
        self.blocked = torch.zeros((), device=device)  # 1.0 if the last update was skipped

    def check(self, losses: Tensor, norm: Tensor) -> Tensor:
        """1.0 if the update must be skipped, else 0.0."""
        bad = (~(torch.isfinite(losses).all() & torch.isfinite(norm))).to(self.blocked.dtype)
        self.blocked = torch.maximum(self.blocked, bad) if self.stops else bad
        return self.blocked


def orthogonal(matrices: Tensor, steps: int = 5) -> Tensor:
    """About U V^T of the singular value decompositions U S V^T: [N, rows, columns] -> the same; rows <= columns.

    The singular values are brought to between 0.7 and 1.2 by the quintic Newton-Schulz iteration of K. Jordan ("Muon:
    an optimizer for hidden layers", 2024). It runs on X X^T, with which all factors commute, so that the long side
    takes part in two products instead of ten.
    """
    linear, cubic, quintic = 3.4445, -4.7750, 2.0315
    matrices = matrices / (torch.linalg.matrix_norm(matrices, keepdim=True) + 1e-7)
    gram, factor = matrices @ matrices.mT, None
    for _ in range(steps):
        polynomial = torch.baddbmm(gram, gram, gram, beta=cubic, alpha=quintic)
        polynomial.diagonal(dim1=1, dim2=2).add_(linear)
        factor = polynomial if factor is None else polynomial @ factor
        gram = polynomial @ gram @ polynomial
    return factor @ matrices


def is_matrix(parameter: Tensor) -> bool:
    """Whether Muon can update it: matrices and kernels, but no vectors, whatever their number of dimensions."""
    return parameter.dim() > 1 and min(parameter.shape[0], parameter[0].numel()) > 1


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised: every direction of a matrix is updated by the same amount (K. Jordan, 2024).

    The root mean square of an update is 0.2 times the learning rate, about that of AdamW's, so that both take the same
    learning rate and weight decay (Liu et al., arXiv 2502.16982, section 2.2). Unlike torch.optim.Muon it treats
    matrices of one shape together, in float32, and can skip updates.

    As in PyTorch's fused AdamW, `step` divides gradients by the attribute `grad_scale`, and does nothing if `found_inf`
    is 1; these are tensors, read on the device.

    Args:
        parameters: of two or more dimensions; a convolution's kernel [out, in, ...] is a matrix [out, in * ...].
        lr, momentum, weight_decay: options.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float, momentum: float, weight_decay: float):
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.grad_scale, self.found_inf = torch.ones(()), torch.zeros(())

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            matrices: dict[tuple[int, ...], list[tuple[nn.Parameter, Tensor]]] = {}
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                direction = self._direction(parameter, group["momentum"]).flatten(1)
                wide = direction if direction.shape[0] <= direction.shape[1] else direction.mT
                matrices.setdefault(tuple(wide.shape), []).append((parameter, wide))
            for shape, pairs in matrices.items():
                # all singular values 1: a root mean square of 1 / sqrt(columns)
                updates = orthogonal(torch.stack([wide for _, wide in pairs])) * (0.2 * shape[1] ** 0.5)
                for (parameter, _), update in zip(pairs, updates, strict=True):
                    rows = parameter.shape[0]
                    update = (update if rows == shape[0] else update.mT).reshape(parameter.shape)
                    new = parameter * (1 - group["lr"] * group["weight_decay"]) - group["lr"] * update
                    parameter.copy_(torch.where(self.found_inf > 0, parameter, new))

    def _direction(self, parameter: nn.Parameter, momentum: float) -> Tensor:
        """The gradient with Nesterov's momentum, which is updated unless the update is skipped."""
        state, gradient = self.state[parameter], parameter.grad / self.grad_scale
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        moved = state["momentum"].lerp(gradient, 1 - momentum)
        state["momentum"].copy_(torch.where(self.found_inf > 0, state["momentum"], moved))
        return gradient.lerp(moved, momentum)


class Updater:
    """An optimizer over all processes, with clipping, skipped updates and a learning rate per step.

    Args:
        parameters: the trained parameters.
        optimizer: options of the optimizer.
        scheduler: options of the learning rate.
        clipper: clips the gradient norm.
        guard: decides which updates are skipped.
        group: the processes whose gradients are summed.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        optimizer: Optimizer | Mapping,
        scheduler: Scheduler | Mapping,
        clipper: Clipper,
        guard: Guard,
        group: Group,
    ):
        self.parameters = list(parameters)
        optimizer = from_dict(Optimizer, optimizer)
        self.base_lr, self.scheduler = optimizer.lr, from_dict(Scheduler, scheduler)
        self.clipper, self.guard, self.group = clipper, guard, group
        by_muon = [p for p in self.parameters if optimizer.name == "muon" and is_matrix(p)]
        by_adamw = [p for p in self.parameters if optimizer.name == "adamw" or not is_matrix(p)]
        common = {"lr": optimizer.lr, "weight_decay": optimizer.weight_decay}
        self.optimizers: dict[str, torch.optim.Optimizer] = {}
        if by_adamw:
            self.optimizers["adamw"] = torch.optim.AdamW(by_adamw, betas=tuple(optimizer.betas), fused=True, **common)
        if by_muon:
            self.optimizers["muon"] = Muon(by_muon, momentum=optimizer.momentum, **common)

    @property
    def lr(self) -> float:
        return next(iter(self.optimizers.values())).param_groups[0]["lr"]

    def begin(self, step: int, epoch: int) -> None:
        """Set the learning rate of `step`."""
        for optimizer in self.optimizers.values():
            for parameters in optimizer.param_groups:
                parameters["lr"] = learning_rate(step, epoch, self.base_lr, self.scheduler)

    def update(self, losses: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Update the parameters from their gradients, which are freed, unless these or the `losses` [N] are not finite.

        Args:
            losses: this process's, each weighted by its share of the global batch.

        Returns:
            The losses summed over all processes, the gradient norm before clipping, and 1.0 if the update was skipped.
        """
        losses = self.group.sum(losses)
        self.group.sum_gradients(self.parameters)
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
        skipped = self.guard.check(losses, norm)
        # what the gradients are divided by: the fused kernel does so in its one pass
        scale = None if self.clipper.mode == "none" else 1.0 / self.clipper.factor(norm)
        for optimizer in self.optimizers.values():
            if scale is not None:
                optimizer.grad_scale = scale
            optimizer.found_inf = skipped
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return losses, norm, skipped

    def state_dict(self) -> dict:
        states = {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()}
        return {**states, "clip": self.clipper.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state[name])
        self.clipper.load_state_dict(state["clip"])


class MovingAverage:
    """Exponential moving average of a network's weights.

    The decay of the first updates is lower, (1 + n) / (10 + n) for the n-th, so that the untrained weights are quickly
    forgotten: the average then covers about the last tenth of the updates, until `decay` covers less than that.
    """

    def __init__(self, module: nn.Module, decay: float):
        self.decay = decay
        self.weights = {name: value.detach().clone() for name, value in module.state_dict().items()}

    def update(self, module: nn.Module, step: int) -> None:
        """Move the average towards the module's current weights, after the update of `step` (counted from 0)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        pairs = [(self.weights[name], value.detach()) for name, value in module.state_dict().items()]
        moving = [(average, value) for average, value in pairs if average.is_floating_point()]
        torch._foreach_lerp_([average for average, _ in moving], [value for _, value in moving], 1.0 - decay)
        for average, value in pairs:
            if not average.is_floating_point():
                average.copy_(value)

    @contextlib.contextmanager
    def in_place(self, module: nn.Module) -> Iterator[None]:
        """Context in which the module has the averaged weights."""
        own = {name: value.detach().clone() for name, value in module.state_dict().items()}
        module.load_state_dict(self.weights)
        try:
            yield
        finally:
            module.load_state_dict(own)


class SpectralNorms:
    """The spectral norms of some networks, with one power iteration per call of `advance` and none otherwise.

    By default PyTorch iterates in each forward pass in training mode, so that the weights of a step would depend on the
    number of microbatches, and differ between the real and the generated pass.
    """

    def __init__(self, *modules: nn.Module):
        self.chains = [
            chain
            for module in modules
            for layer in module.modules()
            if parametrize.is_parametrized(layer)
            for chain in layer.parametrizations.values()
            if any(isinstance(norm, parametrizations._SpectralNorm) for norm in chain)
        ]

    @torch.no_grad()
    def advance(self) -> None:
        """One power iteration."""
        for chain in self.chains:
            chain.train()
            chain()
        self.settle()

    def settle(self) -> None:
        """No power iterations until the next `advance`, even after the network was put in training mode."""
        for chain in self.chains:
            chain.eval()


@contextlib.contextmanager
def frozen(module: nn.Module | None) -> Iterator[None]:
    """Context without gradients for the module's parameters; they still flow through it."""
    parameters = [] if module is None else [p for p in module.parameters() if p.requires_grad]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)
