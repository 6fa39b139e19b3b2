"""What fits behind the objective's protocol, and what does not."""

from collections.abc import Mapping, Sequence
from dataclasses import FrozenInstanceError

import pytest
import torch
from torch import Tensor, nn

from pellucid.train.language import Distillation, LanguageModelling
from pellucid.train.objective import Objective, ParamGroup


class Quiet:
    """The least that can be trained: one number towards zero."""

    def __init__(self) -> None:
        self.weight = nn.Parameter(torch.ones(()))

    def losses(self, batch: float) -> Mapping[str, Tensor]:
        return {"square": (self.weight * batch).square()}

    def before_step(self, step: int) -> None:
        pass

    def after_step(self, step: int) -> None:
        pass

    def param_groups(self) -> Sequence[ParamGroup]:
        return [ParamGroup(name="all", params=[self.weight], lr_scale=1.0, weight_decay=0.0)]


class Forgetful:
    """Has losses, and nothing of what happens around a step."""

    def losses(self, batch: float) -> Mapping[str, Tensor]:
        return {}


def test_an_objective_need_not_inherit():
    assert isinstance(Quiet(), Objective)
    assert not isinstance(Forgetful(), Objective)
    assert not isinstance(nn.Linear(1, 1), Objective)


def test_language_modelling_and_distillation_are_objectives():
    student = LanguageModelling(
        forward=lambda tokens, _: (tokens, {}), groups=(), after=lambda: None
    )
    assert isinstance(student, Objective)
    distilled = Distillation(student=student, teacher=lambda tokens, _: tokens)
    assert isinstance(distilled, Objective)


def test_the_gradient_is_that_of_the_parts():
    # d/dw (3w)² = 18w at w = 1.
    task = Quiet()
    torch.stack(list(task.losses(3.0).values())).sum().backward()
    assert task.weight.grad is not None
    assert task.weight.grad.item() == 18.0


def test_a_group_is_fixed_once_made():
    [group] = Quiet().param_groups()
    with pytest.raises(FrozenInstanceError):
        group.lr_scale = 2.0
