"""Initialisation of a network with pretrained weights, and the choice of the parameters to train."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from finallyse.errors import UserError

log = logging.getLogger(__name__)


def load_pretrained(
    module: nn.Module, weights: Mapping[str, Tensor], source: str, train_only: Sequence[str] = ()
) -> None:
    """Load `weights` into `module`.

    If `train_only` is empty, names and shapes must be the same. Otherwise the module may have new weights, all of them
    under those prefixes, and may lack whole top-level parts of the source, such as the head of another rate; both are
    listed in the log.

    Raises:
        UserError: for any other mismatch.
    """
    own = module.state_dict()
    new = [name for name in own if name not in weights]
    dropped = [name for name in weights if name not in own]
    for name in own.keys() & weights.keys():
        if own[name].shape != weights[name].shape:
            raise UserError(
                f"{source}: {name} has shape {list(weights[name].shape)} instead of {list(own[name].shape)}; "
                "set generator.args to the values in that checkpoint"
            )
    stray = [name for name in new if not name.startswith(tuple(train_only))] if train_only else new
    if stray:
        raise UserError(
            f"{source}: missing {_brief(stray)}; either it is another network, or generator.train_only should name "
            "these new parts"
        )
    own_parts = {name.split(".")[0] for name in own}
    stray = [name for name in dropped if not train_only or name.split(".")[0] in own_parts]
    if stray:
        raise UserError(f"{source}: unexpected {_brief(stray)}; set generator.args to the values in that checkpoint")
    module.load_state_dict({**own, **{name: weights[name] for name in own if name in weights}})
    log.info("from %s: %d weights loaded, %d new, %d dropped", source, len(own) - len(new), len(new), len(dropped))
    for kind, names in (("new", new), ("dropped", dropped)):
        if names:
            log.info("  %s: %s", kind, _brief(names, limit=100))


def freeze_all_but(module: nn.Module, train_only: Sequence[str]) -> list[nn.Parameter]:
    """Freeze all parameters but those whose name begins with one of `train_only` (empty: all); returns the latter.

    Raises:
        UserError: for a prefix that no parameter has.
    """
    names = [name for name, _ in module.named_parameters()]
    for prefix in train_only:
        if not any(name.startswith(prefix) for name in names):
            tops = sorted({name.split(".")[0] for name in names})
            raise UserError(
                f"generator.train_only: no parameter begins with {prefix!r}; the parts are {', '.join(tops)}"
            )
    trained, fixed = [], []
    for name, parameter in module.named_parameters():
        if train_only and not name.startswith(tuple(train_only)):
            parameter.requires_grad_(False)
        if parameter.requires_grad:
            trained.append(parameter)
        else:
            fixed.append(name)  # above, or by the network itself: a part that it does not use
    if fixed:
        log.info("frozen: %s", _brief(fixed))
    return trained


def _brief(names: Sequence[str], limit: int = 8) -> str:
    """Names grouped by their top-level part: `head.0.bias`, `head.* (42)`."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(name.split(".")[0], []).append(name)
    shown = [group[0] if len(group) == 1 else f"{top}.* ({len(group)})" for top, group in groups.items()]
    more = [f"and {len(shown) - limit} more parts"] if len(shown) > limit else []
    return ", ".join(shown[:limit] + more)


def count_parameters(module: nn.Module) -> tuple[int, int]:
    """Number of values in the module's parameters, and in those that are trained."""
    parameters = list(module.parameters())
    return sum(p.numel() for p in parameters), sum(p.numel() for p in parameters if p.requires_grad)
