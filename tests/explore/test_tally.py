"""Counts of a pool's activity by hand, and against a dense count of random codes."""

import pytest
import torch

from pellucid.data.packing import PADDING, Batch
from pellucid.explore import tally as module
from pellucid.explore.tally import Rows, Tally, is_text, num_grains, write_norms


def _rows(parent: list[int], domain: list[int], half: list[int]) -> Rows:
    return Rows(parent=torch.tensor(parent), domain=torch.tensor(domain), half=torch.tensor(half))


@pytest.fixture
def pool(make_pool):
    # Two pools of two slots reading the four axes; write norms 1, 2, 1, 1.
    writes = torch.diag(torch.tensor([1.0, 2.0, 1.0, 1.0]))
    return make_pool(torch.eye(4), writes, (("pool", 2), ("slot", 2)))


def test_by_hand(pool):
    tally = Tally(pool, domains=2, parents=3, device="cpu")
    x = torch.tensor(
        [
            [1.0, 1.0, 0.0, 0.0],  # masses 1, 2: pool 0 with 3
            [0.0, 0.0, 8.0, 1.0],  # masses 8, 1: pool 1 with 9; one unit holds .89, two are needed
            [1.0, 0.0, 5.0, 0.0],  # pool 0 with 1, pool 1 with 5
            [0.0, -1.0, 0.0, 0.0],  # nothing fires
        ]
    )
    tally.add(x, _rows([0, 0, 2, 2], [1, 1, 0, 0], [0, 0, 1, 1]))
    assert tally.fires[0].tolist() == [[0, 1], [0, 1], [0, 1], [0, 1]]
    assert tally.fires[1].tolist() == [[1, 0], [0, 0], [1, 0], [0, 0]]
    assert (tally.rows, tally.active) == (4, 6)
    # 2 + 2 + 2 + 0: in the third row 5 of 6 is .83.
    assert tally.effective == 6
    assert tally.mass.tolist() == [[3.0, 9.0], [0.0, 0.0], [1.0, 5.0]]
    assert tally.used.tolist() == [[1.0, 1.0], [0.0, 0.0], [1.0, 1.0]]
    assert tally.parents.tolist() == [[1, 1, 1, 1], [1, 0, 1, 0]]
    assert torch.cat(tally.choices).tolist() == [0, 1, 1, -1]


def test_a_parent_counts_once_however_its_rows_come(make_pool):
    tally = Tally(make_pool(torch.eye(3)), domains=1, parents=4, device="cpu")
    # Unit 0 fires in parents 0, 1 and 0 again; parent 1 and parent 3 are of the other half.
    tally.add(torch.eye(3)[[0, 0, 1]], _rows([0, 1, 1], [0] * 3, [0, 1, 1]))
    assert tally.parents.tolist() == [[1, 0, 0], [1, 1, 0]]
    tally.add(torch.eye(3)[[0, 0, 2]], _rows([0, 3, 2], [0] * 3, [0, 1, 0]))
    assert tally.parents.tolist() == [[1, 0, 1], [2, 1, 0]]


def test_one_axis_has_no_grains(make_pool):
    tally = Tally(make_pool(torch.eye(3)), domains=1, parents=1, device="cpu")
    tally.add(torch.eye(3), _rows([0] * 3, [0] * 3, [0] * 3))
    assert tally.choices == []
    assert tally.fires.sum().item() == 3


@pytest.mark.parametrize("rows", [0, 1, 63, 100])
def test_against_a_dense_count(make_pool, rows: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "ENTRIES", 96)  # four rows of 24 units at a time
    pool = make_pool(torch.randn(24, 5), torch.randn(24, 5), (("row", 2), ("col", 3), ("c", 4)))
    tally = Tally(pool, domains=3, parents=7, device="cpu")
    x = torch.randn(rows, 5)
    parent = torch.randint(7, (rows,))
    tally.add(x, Rows(parent=parent, domain=parent % 3, half=parent % 2))
    value = (x @ pool.reads.T).clamp_min(0)
    mass = (value * pool.writes.norm(dim=-1)).view(rows, 6, 4).sum(-1)
    fires = torch.zeros(2, 24, 3, dtype=torch.int32)
    for t in range(rows):
        fires[parent[t] % 2, value[t] > 0, parent[t] % 3] += 1
    assert torch.equal(tally.fires, fires)
    assert (tally.rows, tally.active) == (rows, int((value > 0).sum()))
    expected = torch.zeros(7, 6).index_add(0, parent, mass)
    # The same sums in another order, float32 at size 10.
    torch.testing.assert_close(tally.mass, expected, rtol=1e-5, atol=1e-5)
    used = torch.zeros(7, 6).index_add(0, parent, (mass > 0).float())
    assert torch.equal(tally.used, used)
    if rows:
        strongest = torch.where(mass.max(1).values > 0, mass.argmax(1), -1)
        assert torch.equal(torch.cat(tally.choices).long(), strongest)


def test_large_pools_are_asked_for_their_largest_units(make_pool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "LARGE", 3)
    monkeypatch.setattr(module, "LIMIT", 2)
    tally = Tally(make_pool(torch.eye(4)), domains=1, parents=1, device="cpu")
    tally.add(torch.tensor([[4.0, 1.0, 3.0, 2.0]]), _rows([0], [0], [0]))
    assert tally.fires[0, :, 0].tolist() == [1, 0, 1, 0]


def test_write_norms_in_parts(make_pool, monkeypatch: pytest.MonkeyPatch):
    pool = make_pool(torch.randn(10, 3), torch.randn(10, 4))
    whole = write_norms(pool, "cpu")
    monkeypatch.setattr(module, "NORM_ROWS", 3)
    assert torch.equal(write_norms(pool, "cpu"), whole)
    assert torch.equal(whole, pool.writes.norm(dim=-1))


def test_grains_are_all_axes_but_the_last(make_pool):
    sizes = (("row", 2), ("col", 3), ("c", 4))
    assert num_grains(make_pool(torch.randn(24, 2), axes=sizes).spec) == 6
    assert num_grains(make_pool(torch.randn(24, 2)).spec) == 1


def test_text_is_neither_padding_nor_the_end_of_text():
    # E a b, then padding that is spelled E; 7 is the end of text.
    tokens = torch.tensor([[7, 1, 2, 7, 7]])
    document = torch.tensor([[3, 3, 3, PADDING, PADDING]])
    found = is_text(Batch(tokens, tokens, document), 7)
    assert found.tolist() == [[False, True, True, False, False]]
