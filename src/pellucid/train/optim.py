"""AdamW in three groups: trunk matrices, norms and vectors, unit tables.

Decay pulls on trunk matrices only: a norm's gain has no reason to shrink, and a unit that is rarely
selected would fade for lack of use rather than of worth. Adam: arXiv 1412.6980; decoupled decay:
arXiv 1711.05101.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from pellucid.core.config import check_above_zero, check_at_least_zero
from pellucid.core.errors import ConfigError
from pellucid.train.objective import ParamGroup


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW's settings; ``unit_lr_scale`` and ``unit_decay`` act on the unit tables."""

    lr: float = 2e-3
    unit_lr_scale: float = 1.0
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.1
    unit_decay: float = 0.0
    clip: float = 1.0

    def __post_init__(self) -> None:
        check_above_zero(self, "lr", "eps", "clip")
        check_at_least_zero(self, "unit_lr_scale", "weight_decay", "unit_decay")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError(f"betas: expected two numbers from 0 to below 1, found {self.betas}")


def param_groups(
    model: nn.Module, unit_tables: Sequence[nn.Parameter], config: OptimConfig
) -> list[ParamGroup]:
    """Every trainable parameter of ``model`` in one of the three groups; empty groups left out."""
    tables = {id(table) for table in unit_tables}
    trained = [p for p in model.parameters() if p.requires_grad]
    units = [p for p in trained if id(p) in tables]
    trunk = [p for p in trained if id(p) not in tables]
    groups = (
        ParamGroup(
            name="matrices",
            params=[p for p in trunk if p.ndim >= 2],
            lr_scale=1.0,
            weight_decay=config.weight_decay,
        ),
        ParamGroup(
            name="vectors",
            params=[p for p in trunk if p.ndim < 2],
            lr_scale=1.0,
            weight_decay=0.0,
        ),
        ParamGroup(
            name="units",
            params=units,
            lr_scale=config.unit_lr_scale,
            weight_decay=config.unit_decay,
        ),
    )
    return [group for group in groups if group.params]


def build_optimizer(groups: Sequence[ParamGroup], config: OptimConfig) -> torch.optim.AdamW:
    """Fused AdamW over the groups; each remembers its ``lr_scale`` for the schedule."""
    return torch.optim.AdamW(
        [
            {
                "params": list(group.params),
                "lr": config.lr * group.lr_scale,
                "weight_decay": group.weight_decay,
                "lr_scale": group.lr_scale,
                "name": group.name,
            }
            for group in groups
        ],
        betas=config.betas,
        eps=config.eps,
        fused=True,
    )


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set every group's rate to ``lr`` times its scale."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]
