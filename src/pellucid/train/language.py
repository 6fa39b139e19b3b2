"""Language modelling and distillation as objectives.

    ce      mean over scored targets of −log p(target)
    kl      α · τ² · KL(teacher_τ ‖ student_τ), mean per token;  the cross-entropy then weighs 1 − α

Distillation: Hinton et al., "Distilling the Knowledge in a Neural Network", arXiv 1503.02531.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from pellucid.core.errors import ConfigError
from pellucid.data.packing import IGNORED, Batch
from pellucid.train.objective import ParamGroup

# (tokens, documents or None) -> logits and the pools' weighted auxiliary losses
Forward = Callable[[Tensor, Tensor | None], tuple[Tensor, Mapping[str, Tensor]]]
# (tokens, documents) -> logits in evaluation mode; it masks by the documents if it was made to
Teacher = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class LanguageModelling:
    """Cross-entropy plus whatever auxiliary losses the pools return.

    ``forward`` is the model, ``after`` what it does between steps; with ``mask_documents`` a token
    attends to its own document only.
    """

    forward: Forward
    groups: Sequence[ParamGroup]
    after: Callable[[], None]
    mask_documents: bool = False

    def losses(self, batch: Batch) -> Mapping[str, Float[Tensor, ""]]:
        logits, parts = self.forward(batch.tokens, self._documents(batch))
        return {"ce": cross_entropy(logits, batch.targets), **parts}

    def before_step(self, step: int) -> None:
        """Gradients are used as they are."""

    def after_step(self, step: int) -> None:
        self.after()

    def param_groups(self) -> Sequence[ParamGroup]:
        return self.groups

    def _documents(self, batch: Batch) -> Tensor | None:
        return batch.document if self.mask_documents else None


@dataclass(frozen=True, kw_only=True)
class Distillation:
    """KL to a teacher that reads the same tokens, mixed with cross-entropy at weight 1 − alpha."""

    student: LanguageModelling
    teacher: Teacher
    alpha: float = 0.9
    temperature: float = 1.0

    def __post_init__(self) -> None:
        check_distillation(self.alpha, self.temperature)

    def losses(self, batch: Batch) -> Mapping[str, Float[Tensor, ""]]:
        documents = batch.document if self.student.mask_documents else None
        logits, parts = self.student.forward(batch.tokens, documents)
        with torch.no_grad():
            target = self.teacher(batch.tokens, batch.document)
        if target.shape != logits.shape:
            raise ConfigError(
                f"teacher: expected logits over {logits.shape[-1]} tokens, found "
                f"{target.shape[-1]}; distil between models of one tokenizer"
            )
        mixed = {"kl": self.alpha * distillation_loss(logits, target, self.temperature)}
        if self.alpha < 1:
            mixed["ce"] = (1 - self.alpha) * cross_entropy(logits, batch.targets)
        return {**mixed, **parts}

    def before_step(self, step: int) -> None:
        self.student.before_step(step)

    def after_step(self, step: int) -> None:
        self.student.after_step(step)

    def param_groups(self) -> Sequence[ParamGroup]:
        return self.student.param_groups()


def check_distillation(alpha: float, temperature: float) -> None:
    """Whether a loss can be mixed so; if not, a ``ConfigError`` names the number."""
    if not 0 <= alpha <= 1:
        raise ConfigError(f"alpha: expected a share from 0 to 1, found {alpha}")
    if not temperature > 0:
        raise ConfigError(f"temperature: expected more than 0, found {temperature}")


def cross_entropy(
    logits: Float[Tensor, "B T vocab"], targets: Int[Tensor, "B T"]
) -> Float[Tensor, ""]:
    """Mean −log p(target) over the targets that are scored."""
    return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORED)


def distillation_loss(
    student: Float[Tensor, "B T vocab"], teacher: Float[Tensor, "B T vocab"], temperature: float
) -> Float[Tensor, ""]:
    """τ² · KL(teacher_τ ‖ student_τ), mean per token."""
    student_log = (student.flatten(0, 1).float() / temperature).log_softmax(-1)
    teacher_log = (teacher.flatten(0, 1).float() / temperature).log_softmax(-1)
    divergence = F.kl_div(student_log, teacher_log, log_target=True, reduction="batchmean")
    return temperature**2 * divergence
