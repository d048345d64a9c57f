"""Initialisation of a stage from the previous one: weights by name, strictly, listing everything new or dropped."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from finallyse.errors import UserError

log = logging.getLogger(__name__)


def take_over(module: nn.Module, weights: Mapping[str, Tensor], source: str, train_only: Sequence[str] = ()) -> None:
    """Load `weights` into `module`.

    If `train_only` is empty, names and shapes must be the same. Otherwise the module may have new weights, all of them
    under those prefixes, and may lack whole top-level parts of the source, such as the head of another rate; both are
    listed in the log. Any other mismatch raises a UserError that names it.
    """
    own = module.state_dict()
    new = [name for name in own if name not in weights]
    dropped = [name for name in weights if name not in own]
    for name in own.keys() & weights.keys():
        if own[name].shape != weights[name].shape:
            raise UserError(
                f"{source}: {name} has shape {list(weights[name].shape)}, the network here {list(own[name].shape)}; "
                "give generator.args the values of that checkpoint"
            )
    stray = [name for name in new if not name.startswith(tuple(train_only))] if train_only else new
    if stray:
        raise UserError(
            f"{source} lacks {_brief(stray)}; either it is another network, or generator.train_only should name "
            "these new parts"
        )
    own_parts = {name.split(".")[0] for name in own}
    stray = [name for name in dropped if not train_only or name.split(".")[0] in own_parts]
    if stray:
        raise UserError(f"{source} holds {_brief(stray)}, which the network here lacks; give generator.args its values")
    module.load_state_dict({**own, **{name: weights[name] for name in own if name in weights}})
    taken = len(own) - len(new)
    log.info("from %s: %d weights taken over, %d new, %d dropped", source, taken, len(new), len(dropped))
    for kind, names in (("new", new), ("dropped", dropped)):
        if names:
            log.info("  %s: %s", kind, _brief(names, limit=100))


def freeze_all_but(module: nn.Module, train_only: Sequence[str]) -> list[nn.Parameter]:
    """The trained parameters: those whose name begins with one of `train_only` (empty: all); the rest are frozen.

    Raises UserError for a prefix that no parameter has.
    """
    names = [name for name, _ in module.named_parameters()]
    for prefix in train_only:
        if not any(name.startswith(prefix) for name in names):
            tops = sorted({name.split(".")[0] for name in names})
            raise UserError(
                f"generator.train_only: no parameter begins with {prefix!r}; the parts are {', '.join(tops)}"
            )
    trained, kept = [], []
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            kept.append(name)  # by the network itself: a part that it keeps unused
        elif not train_only or name.startswith(tuple(train_only)):
            trained.append(parameter)
        else:
            parameter.requires_grad_(False)
            kept.append(name)
    if kept:
        count = sum(p.numel() for p in module.parameters() if not p.requires_grad)
        log.info("frozen: %s (%d values); training: %d values", _brief(kept), count, sum(p.numel() for p in trained))
    return trained


def _brief(names: Sequence[str], limit: int = 8) -> str:
    """Names grouped by their top-level part: `head.0.bias`, `head.* (42)`."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(name.split(".")[0], []).append(name)
    shown = [group[0] if len(group) == 1 else f"{top}.* ({len(group)})" for top, group in groups.items()]
    more = [f"and {len(shown) - limit} more parts"] if len(shown) > limit else []
    return ", ".join(shown[:limit] + more)


def count_parameters(module: nn.Module) -> int:
    """Number of values in the module's parameters."""
    return sum(p.numel() for p in module.parameters())
