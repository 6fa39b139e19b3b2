"""The objective around a dictionary: which rows it sees, and what happens around a step."""

from dataclasses import dataclass, field

import pytest
import torch
from torch import nn

from pellucid.core.unit import Site
from pellucid.data.activations import Rows
from pellucid.train.dictionary import Reconstruction, forget_moments
from pellucid.train.objective import Objective, ParamGroup

READS, WRITES = Site.parse("a:in"), Site.parse("a:out")


def rows(first: float = 0.0) -> Rows:
    index = torch.arange(4)
    x = torch.arange(8.0).view(4, 2) + first
    return Rows(x={READS: x, WRITES: 10 * x}, token=index, document=index, position=index)


@dataclass
class Line:
    """y = w x, with what was asked of it."""

    weight: nn.Parameter = field(default_factory=lambda: nn.Parameter(torch.ones(2)))
    asked: list[str] = field(default_factory=list)
    idle: tuple[int, ...] = (1,)

    def losses(self, x, y):
        return {"error": (x * self.weight - y).square().mean()}

    def objective(self, **more) -> Reconstruction:
        return Reconstruction(
            losses_of=self.losses,
            reads=READS,
            writes=WRITES,
            groups=[ParamGroup(name="all", params=[self.weight], lr_scale=1.0, weight_decay=0.0)],
            before=lambda: self.asked.append("before"),
            after=lambda: self.asked.append("after"),
            **more,
        )


def test_it_reads_one_site_and_aims_at_the_other():
    # (x − 10 x)² = 81 x²; the mean of 0², …, 7² is 17.5.
    objective = Line().objective()
    assert isinstance(objective, Objective)
    assert objective.losses(rows())["error"].item() == pytest.approx(81 * 17.5)
    assert [group.name for group in objective.param_groups()] == ["all"]


def test_constraints_surround_a_step():
    line = Line()
    objective = line.objective()
    objective.before_step(0)
    objective.after_step(0)
    assert line.asked == ["before", "after"]


@pytest.mark.parametrize(("every", "turned"), [(0, []), (1, [0, 1, 2, 3]), (2, [1, 3])])
def test_idle_latents_are_turned_on_the_last_rows_every_so_often(every, turned):
    line, seen, forgotten = Line(), [], []

    def reaim(x, y):
        seen.append((x[0, 0].item(), y[0, 0].item()))
        return torch.tensor(line.idle)

    objective = line.objective(
        reaim=reaim, reaim_every=every, forget=lambda unit: forgotten.append(unit.tolist())
    )
    for step in range(4):
        objective.losses(rows(first=step))
        objective.after_step(step)
    assert seen == [(step, 10 * step) for step in turned]
    assert forgotten == [[1]] * len(turned)


def test_nothing_is_forgotten_where_nothing_was_idle():
    line = Line(idle=())
    forgotten = []
    objective = line.objective(
        reaim=lambda *_: torch.tensor(line.idle, dtype=torch.long),
        reaim_every=1,
        forget=forgotten.append,
    )
    objective.losses(rows())
    objective.after_step(0)
    assert forgotten == []


def test_moments_of_named_rows_are_forgotten_and_others_kept():
    table, bias, other = (
        nn.Parameter(torch.ones(3, 2)),
        nn.Parameter(torch.ones(3)),
        nn.Parameter(torch.ones(3)),
    )
    optimizer = torch.optim.AdamW([table, bias, other], fused=True)
    for p in (table, bias, other):
        p.grad = torch.ones_like(p)
    optimizer.step()
    forget_moments(optimizer, (table, bias), torch.tensor([0, 2]))
    for p in (table, bias):
        for name in ("exp_avg", "exp_avg_sq"):
            moment = optimizer.state[p][name].view(3, -1)
            assert (moment[[0, 2]] == 0).all()
            assert (moment[1] > 0).all()
    assert (optimizer.state[other]["exp_avg"] > 0).all()


def test_moments_that_do_not_exist_yet_are_no_error():
    table = nn.Parameter(torch.ones(3, 2))
    forget_moments(torch.optim.AdamW([table]), (table,), torch.tensor([0]))
