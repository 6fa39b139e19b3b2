"""Held-out figures of a dictionary small enough to follow by hand."""

import pytest
import torch
from torch import Tensor

from pellucid.core.unit import Code, PoolSpec, Site
from pellucid.data.activations import Rows
from pellucid.train.held_out import held_out_figures, redundancy_figures

SITE = Site.parse("a:out")


class Axes:
    """Unit j fires where coordinate j is positive and writes it back; the last never fires."""

    def __init__(self, axes=(("latent", 4),)) -> None:
        self.spec = PoolSpec(name="axes", reads=SITE, writes=SITE, axes=axes, d_in=3, d_out=3)
        self.table = torch.cat((torch.eye(3), torch.ones(1, 3)))

    def read(self, unit: Tensor) -> Tensor:
        return self.table[unit]

    def write(self, unit: Tensor) -> Tensor:
        return self.table[unit]

    def activate(self, x, *, unit=None, limit=None) -> Code:
        act = torch.cat((x, -torch.ones_like(x[..., :1])), -1)
        index = torch.arange(4).expand(act.shape)
        return Code(index, (act > 0).float(), act)

    def decode(self, code: Code) -> Tensor:
        return (code.value[..., None] * self.table[code.unit]).sum(-2)

    def rest(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)


def batches(*parts: list[list[float]]) -> list[Rows]:
    found = []
    for part in parts:
        index = torch.arange(len(part))
        x = torch.tensor(part, dtype=torch.float32)
        found.append(Rows(x={SITE: x}, token=index, document=index, position=index))
    return found


ROWS = [[1.0, 0, -3], [2, 0, 0], [3, 4, 0], [0, 0, 3]]


def test_figures_by_hand():
    # Only −3 is missed: 9. Means (1.5, 1, 0): squares 5 + 12 + 18 = 35. Values on: 1, 1, 2, 1.
    found = held_out_figures(Axes(), batches(ROWS[:3], ROWS[3:]))
    assert found.fvu == pytest.approx(9 / 35)
    assert found.rows == 4
    assert found.l0 == 1.25
    assert found.fires.tolist() == [3, 1, 1, 0]
    assert found.dead == 0.25
    # More than 10 % of 4 rows: the three that fire at all; more than 30 %: one.
    assert found.dense(0.1) == 0.75
    assert found.dense(0.3) == 0.25
    # Sorted 1, 1, 1, 2: the 95th percentile lies at 2.85 of 3, between the last two.
    assert found.l0_low == 1.0
    assert found.l0_high == pytest.approx(1.85)


def test_figures_do_not_depend_on_the_batches():
    one = held_out_figures(Axes(), batches(ROWS)).figures()
    other = held_out_figures(Axes(), batches(*[[row] for row in ROWS])).figures()
    assert one == pytest.approx(other, rel=1e-12)
    assert set(one) == {"fvu", "l0", "l0_p5", "l0_p95", "dead", "dense_1", "dense_10"}


def test_silent_latents_have_no_twins():
    # All rows of the table are orthogonal or 1/√3 = .58 apart, so nothing is above .7 …
    pool = Axes()
    fires = torch.tensor([1, 1, 1, 1])
    assert redundancy_figures(pool, fires, signed=False)["redundancy_70"] == 0.0
    # … until two are the same; a third twin that never fired does not count.
    pool.table[1] = pool.table[0]
    pool.table[2] = pool.table[0]
    found = redundancy_figures(pool, torch.tensor([1, 1, 0, 1]), signed=False)
    assert found["redundancy_90"] == pytest.approx(2 / 3)
    assert found["random_redundancy_90"] <= 1.0


def test_experts_are_told_apart():
    pool = Axes(axes=(("expert", 2), ("latent", 2)))
    pool.table[2] = pool.table[0]  # a twin in the other expert
    found = redundancy_figures(pool, torch.ones(4, dtype=torch.long), signed=False)
    assert found["redundancy_across_90"] == 0.5
    assert found["redundancy_within_90"] == 0.0


def test_nothing_fired():
    found = redundancy_figures(Axes(), torch.zeros(4, dtype=torch.long), signed=True)
    assert found["redundancy_70"] == 0.0


def test_of_very_many_latents_a_sample_is_compared(monkeypatch):
    pool, gathered = Axes(), []
    whole = pool.write
    pool.write = lambda unit: gathered.append(len(unit)) or whole(unit)
    monkeypatch.setattr("pellucid.train.held_out.COMPARED", 2)
    redundancy_figures(pool, torch.ones(4, dtype=torch.long), signed=False)
    assert sum(gathered) == 2
