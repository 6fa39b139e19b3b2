"""Fitting a dictionary as an objective: rows in, its weighted loss parts out.

A dictionary computes its own parts, since every gate has its own. This module says which rows it
sees, keeps its constraint around the optimiser's step, and re-aims idle latents, whose moments the
optimiser then forgets.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pellucid.core.unit import Site
from pellucid.data.activations import Rows
from pellucid.train.objective import ParamGroup

Losses = Callable[[Tensor, Tensor], Mapping[str, Tensor]]


@dataclass(kw_only=True)
class Reconstruction:
    """``losses(x, y)`` on the rows at two sites; ``before`` and ``after`` surround a step.

    Every ``reaim_every`` steps (0: never) ``reaim(x, y)`` turns idle latents on the step's last
    rows and names them.
    """

    losses_of: Losses
    reads: Site
    writes: Site
    groups: Sequence[ParamGroup]
    before: Callable[[], None]
    after: Callable[[], None]
    reaim: Callable[[Tensor, Tensor], Tensor] | None = None
    reaim_every: int = 0
    forget: Callable[[Int[Tensor, " m"]], None] = lambda _: None
    _last: tuple[Tensor, Tensor] | None = field(default=None, init=False)

    def losses(self, batch: Rows) -> Mapping[str, Float[Tensor, ""]]:
        x, y = batch.x[self.reads], batch.x[self.writes]
        self._last = (x, y)
        return self.losses_of(x, y)

    def before_step(self, step: int) -> None:
        self.before()

    def after_step(self, step: int) -> None:
        self.after()
        if self.reaim is None or not self.reaim_every or (step + 1) % self.reaim_every:
            return
        assert self._last is not None
        turned = self.reaim(*self._last)
        if turned.numel():
            self.forget(turned)

    def param_groups(self) -> Sequence[ParamGroup]:
        return self.groups


@torch.no_grad()
def forget_moments(
    optimizer: torch.optim.Optimizer, tables: Sequence[nn.Parameter], unit: Int[Tensor, " m"]
) -> None:
    """Set Adam's moments of the named rows of each table to 0."""
    for table in tables:
        state = optimizer.state.get(table, {})
        for name in ("exp_avg", "exp_avg_sq"):
            if name in state:
                state[name][unit] = 0.0
