"""A host is a model that can be run while some sites are kept and others edited.

    y' = y + (decode(change(code)) − decode(code)),   code = activate(x)

One formula serves ablation, steering and patching, and keeps a dictionary's error term without a
special case: whatever the units do not explain cancels in the difference.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pellucid.core.unit import Code, Site, UnitPool


@dataclass(frozen=True, slots=True, kw_only=True)
class Edit:
    """Replace the tensor at ``writes`` by ``apply(x at reads, y at writes)``.

    ``writes`` must not be reached before ``reads``. Where both are one site, x is the tensor as
    it was before any edit there. Edits at one site apply in order: each gets the y left by the
    last.
    """

    reads: Site
    writes: Site
    apply: Callable[[Tensor, Tensor], Tensor]


def edit_units(
    pool: UnitPool,
    change: Callable[[Code], Code],
    *,
    unit: Int[Tensor, " k"] | None = None,
) -> Edit:
    """The edit that replaces a pool's code by ``change(code)`` and leaves the rest untouched.

    Naming ``unit`` is exact, since no other unit enters. The difference is one decode of both
    codes, the old one negated (decode is linear in value), and the sum is computed in at least
    float32 and cast once: two decodes, each rounded to bf16, would cancel badly.
    """

    def apply(x: Tensor, y: Tensor) -> Tensor:
        code = pool.activate(x, unit=unit)
        changed = change(code)
        both = Code(
            torch.cat((changed.unit, code.unit), -1),
            torch.cat((changed.gate, -code.gate), -1),
            torch.cat((changed.act, code.act), -1),
        )
        precise = torch.promote_types(y.dtype, torch.float32)
        return (y.to(precise) + pool.decode(both).to(precise)).to(y.dtype)

    return Edit(reads=pool.spec.reads, writes=pool.spec.writes, apply=apply)


@dataclass(frozen=True, slots=True)
class Trace:
    """What one run left behind: the logits and the tensors kept by site."""

    logits: Float[Tensor, "batch seq vocab"]
    kept: Mapping[Site, Tensor]


@runtime_checkable
class Host(Protocol):
    """A causal language model with reachable sites: ours, or any of Hugging Face's."""

    def width(self, site: Site) -> int:
        """The last axis of the tensor at ``site``."""
        ...

    def run(
        self,
        tokens: Int[Tensor, "batch seq"],
        *,
        edits: Sequence[Edit] = (),
        keep: Collection[Site] = (),
    ) -> Trace:
        """One forward pass with ``edits`` applied, keeping the tensors that leave ``keep``."""
        ...
