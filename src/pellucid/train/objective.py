"""What is trained: named loss parts, and what happens around an optimiser step."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar, runtime_checkable

from jaxtyping import Float
from torch import Tensor, nn

Batch_contra = TypeVar("Batch_contra", contravariant=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class ParamGroup:
    """Parameters that share a learning rate (``lr_scale`` times the base rate) and a decay."""

    name: str
    params: Sequence[nn.Parameter]
    lr_scale: float
    weight_decay: float


@runtime_checkable
class Objective(Protocol[Batch_contra]):
    """A loss in weighted parts. Only the loop sums them, so that every logged part is trained."""

    def losses(self, batch: Batch_contra) -> Mapping[str, Float[Tensor, ""]]:
        """The weighted parts of one batch, each a mean over its tokens."""
        ...

    def before_step(self, step: int) -> None:
        """Gradients are final: project them."""
        ...

    def after_step(self, step: int) -> None:
        """Parameters are new: norms, thresholds, dead-unit counts."""
        ...

    def param_groups(self) -> Sequence[ParamGroup]:
        """All trained parameters, each in one group."""
        ...
