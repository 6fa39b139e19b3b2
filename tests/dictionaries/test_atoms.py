"""Rows under their constraints: kept through steps, counted in bytes, aimed, and drawn again."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pellucid.core.config import from_dict, to_dict
from pellucid.core.errors import ConfigError
from pellucid.dictionaries.atoms import (
    DenseAtoms,
    DenseAtomsConfig,
    ExpanderAtoms,
    ExpanderAtomsConfig,
    draw_mask,
)
from pellucid.ops.expander import mask_checksum

DOUBLE = torch.float64


def _dense(norm: str = "unit", groups: int = 1, num: int = 6, width: int = 4) -> DenseAtoms:
    return DenseAtoms(torch.randn(num, width, dtype=DOUBLE), norm, groups)


def _sparse(num: int = 9, width: int = 5, *, nonzeros: int = 3, **fields: bool) -> ExpanderAtoms:
    mask = draw_mask(ExpanderAtomsConfig(nonzeros=nonzeros), num, width)
    return ExpanderAtoms(mask, width, stored=fields.pop("stored", False), **fields).double()


def test_unit_rows_are_unit_from_the_start():
    atoms = DenseAtoms(torch.tensor([[3.0, 4.0], [0.0, -2.0]]), "unit", 1)
    torch.testing.assert_close(atoms.weight.data, torch.tensor([[0.6, 0.8], [0.0, -1.0]]))
    assert atoms.rows().weights is atoms.weight is atoms.table()


def test_free_rows_are_left_alone():
    weight = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
    atoms = DenseAtoms(weight.clone(), "free", 1)
    atoms.weight.grad = torch.ones(2, 2)
    atoms.before_step()
    atoms.after_step()
    assert torch.equal(atoms.weight.data, weight)
    assert (atoms.weight.grad == 1).all()


def test_a_zero_row_stays_finite():
    atoms = DenseAtoms(torch.tensor([[0.0, 0.0], [3.0, 4.0]]), "unit", 1)
    atoms.weight.grad = torch.ones(2, 2)
    atoms.before_step()
    assert atoms.weight.data[0].tolist() == [0.0, 0.0]
    assert atoms.weight.grad[0].tolist() == [1.0, 1.0]


def test_the_parallel_part_of_the_gradient_by_hand():
    # Row (.6, .8), gradient (1, 0): ⟨g, d⟩ = .6, what is left (1 − .36, −.48).
    atoms = DenseAtoms(torch.tensor([[0.6, 0.8]], dtype=DOUBLE), "unit", 1)
    atoms.weight.grad = torch.tensor([[1.0, 0.0]], dtype=DOUBLE)
    atoms.before_step()
    expected = torch.tensor([[0.64, -0.48]], dtype=DOUBLE)
    torch.testing.assert_close(atoms.weight.grad, expected, atol=1e-12, rtol=0)


def test_without_a_gradient_there_is_nothing_to_remove():
    atoms = _dense()
    atoms.before_step()
    assert atoms.weight.grad is None


@pytest.mark.parametrize("size", [(1, 1), (63, 5), (5, 100)], ids=str)
def test_unit_norm_survives_training(size):
    num, width = size
    atoms = _dense(num=num, width=width)
    target = torch.randn(num, width, dtype=DOUBLE)
    start = atoms.weight.detach().clone()
    adam = torch.optim.Adam(atoms.parameters(), lr=0.1)
    for _ in range(5):
        adam.zero_grad()
        (atoms.rows().weights - 3 * target).square().sum().backward()
        atoms.before_step()
        assert atoms.weight.grad is not None
        # 1e-10: the gradient is of order 10, and a parallel part is left by rounding only.
        assert (atoms.weight.grad * atoms.weight).sum(1).abs().max() < 1e-10
        adam.step()
        atoms.after_step()
        assert (atoms.weight.norm(dim=1) - 1).abs().max() < 1e-12
    assert width == 1 or (atoms.weight - start).abs().max() > 0.01


def test_coordinate_norm_makes_columns_of_each_expert_unit():
    atoms = _dense("coordinate", groups=3, num=12)
    columns = atoms.weight.detach().view(3, 4, 4).norm(dim=1)
    torch.testing.assert_close(columns, torch.ones(3, 4, dtype=DOUBLE))
    assert (atoms.weight.norm(dim=1) - 1).abs().min() > 1e-3, "rows are not unit"


def test_coordinate_norm_by_hand():
    # Expert 0 holds rows (3, 1) and (4, 0): columns of norm 5 and 1.
    weight = torch.tensor([[3.0, 1.0], [4.0, 0.0], [0.0, 2.0], [1.0, 0.0]])
    atoms = DenseAtoms(weight, "coordinate", 2)
    expected = torch.tensor([[0.6, 1.0], [0.8, 0.0], [0.0, 1.0], [1.0, 0.0]])
    torch.testing.assert_close(atoms.weight.data, expected)


def test_coordinate_norm_projects_along_rows_all_the_same():
    atoms = _dense("coordinate", groups=2)
    atoms.weight.grad = torch.randn(6, 4, dtype=DOUBLE)
    atoms.before_step()
    assert (atoms.weight.grad * atoms.weight).sum(1).abs().max() < 1e-12


def test_dense_rows_are_aimed_at_unit_norm():
    atoms = _dense()
    before = atoms.weight.detach().clone()
    atoms.aim(torch.tensor([4, 1]), torch.tensor([[3.0, 4, 0, 0], [0, 0, 0, -7]], dtype=DOUBLE))
    assert atoms.weight.data[4].tolist() == pytest.approx([0.6, 0.8, 0.0, 0.0])
    assert atoms.weight.data[1].tolist() == [0.0, 0.0, 0.0, -1.0]
    others = [0, 2, 3, 5]
    assert torch.equal(atoms.weight.data[others], before[others])


def test_expander_rows_are_unit_wherever_training_goes():
    atoms = _sparse()
    every = torch.arange(9)
    target = torch.randn(9, 5, dtype=DOUBLE)
    adam = torch.optim.Adam(atoms.parameters(), lr=0.3)
    for _ in range(5):
        adam.zero_grad()
        (atoms.rows().gather(every) - 3 * target).square().sum().backward()
        atoms.before_step()
        adam.step()
        atoms.after_step()
        torch.testing.assert_close(atoms.rows().norms(), torch.ones(9, dtype=DOUBLE))
    assert (atoms.values.norm(dim=1) - 1).abs().max() > 0.01, "the values themselves are free"


def test_expander_rows_are_colnorm_on_their_places():
    atoms = _sparse()
    dense = torch.zeros(9, 5, dtype=DOUBLE).scatter_(1, atoms.index.long(), atoms.values.detach())
    torch.testing.assert_close(atoms.rows().gather(torch.arange(9)), F.normalize(dense))


def test_expander_values_learn_through_the_norm():
    atoms, target = _sparse(4), torch.randn(4, 5, dtype=DOUBLE)

    def loss(values: Tensor) -> Tensor:
        dense = torch.zeros(4, 5, dtype=DOUBLE).scatter(1, atoms.index.long(), values)
        return (F.normalize(dense) * target).sum()

    (expected,) = torch.autograd.grad(loss(atoms.values), atoms.values)
    (atoms.rows().gather(torch.arange(4)) * target).sum().backward()
    torch.testing.assert_close(atoms.values.grad, expected)
    # A row's length is no part of the function, so no gradient goes along it.
    assert (expected * atoms.values).sum(1).abs().max() < 1e-12


def test_a_gain_starts_rows_at_zero_and_scales_them():
    atoms = _sparse(gain=True)
    every = torch.arange(9)
    assert (atoms.rows().gather(every) == 0).all()
    assert atoms.gain is not None
    (atoms.rows().gather(every) * torch.randn(9, 5)).sum().backward()
    assert atoms.gain.grad is not None
    assert (atoms.gain.grad != 0).all(), "a gain of 0 can leave 0"
    with torch.no_grad():
        atoms.gain.copy_(torch.linspace(-1, 1, 9))
    torch.testing.assert_close(atoms.rows().norms(), atoms.gain.detach().abs())


def test_expander_rows_are_aimed_on_their_places():
    # Places of N_j hold (3, 4, 0) of the direction: values (.6, .8, 0)/√3.
    atoms = _sparse()
    before = atoms.values.detach().clone()
    direction = torch.full((1, 5), 99.0, dtype=DOUBLE)
    direction[0, atoms.index[7].long()] = torch.tensor([3.0, 4.0, 0.0], dtype=DOUBLE)
    atoms.aim(torch.tensor([7]), direction)
    expected = torch.tensor([0.6, 0.8, 0.0], dtype=DOUBLE) / 3**0.5
    torch.testing.assert_close(atoms.values.data[7], expected)
    others = [j for j in range(9) if j != 7]
    assert torch.equal(atoms.values.data[others], before[others])


def test_fresh_values_have_unit_norm_on_average():
    # v ~ N(0, 1)/√s has E‖v‖² = 1.
    torch.manual_seed(0)
    mask = draw_mask(ExpanderAtomsConfig(nonzeros=4), 4000, 16)
    square = ExpanderAtoms(mask, 16, stored=False).values.square().sum(1).mean().item()
    # Standard error √(2/4)/√4000 ≈ .011.
    assert square == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize("nonzeros", [1, 7, 63])
def test_parameters_and_optimiser_have_n_times_s_values(nonzeros):
    config = ExpanderAtomsConfig(nonzeros=nonzeros)
    atoms = ExpanderAtoms(draw_mask(config, 100, 100), 100, stored=False)
    adam = torch.optim.Adam(atoms.parameters())
    atoms.rows().gather(torch.arange(100)).sum().backward()
    adam.step()
    stored = sum(p.numel() * p.element_size() for p in atoms.parameters())
    assert stored == 100 * nonzeros * 4
    assert atoms.values.grad is not None
    assert atoms.values.grad.shape == (100, nonzeros)
    moments = [v for v in adam.state[atoms.values].values() if v.dim() > 0]
    assert [tuple(m.shape) for m in moments] == [(100, nonzeros)] * 2


def test_places_are_stored_on_demand_only():
    assert list(_sparse().state_dict()) == ["values"]
    state = _sparse(stored=True).state_dict()
    assert sorted(state) == ["index", "values"]
    assert state["index"].dtype == torch.int16
    assert [n for n, _ in _sparse().named_buffers()] == ["index"], "it still moves with the module"


def test_places_come_back_from_the_seed():
    first, second, other = _sparse(), _sparse(), ExpanderAtomsConfig(nonzeros=3, mask_seed=1)
    assert torch.equal(first.index, second.index)
    assert first.mask.checksum == second.mask.checksum == mask_checksum(second.index)
    assert draw_mask(other, 9, 5).checksum != first.mask.checksum
    salted = draw_mask(ExpanderAtomsConfig(nonzeros=3), 9, 5, salt=1)
    assert salted.checksum == draw_mask(other, 9, 5).checksum


def test_each_kind_of_mask_is_its_own():
    kinds = ("hash", "authors", "clustered", "shared")
    masks = {
        kind: draw_mask(ExpanderAtomsConfig(nonzeros=3, mask=kind, group=4), 24, 12)
        for kind in kinds
    }
    assert len({mask.checksum for mask in masks.values()}) == len(kinds)
    for mask in masks.values():
        assert mask.index.shape == (24, 3)
        assert all(len(set(row)) == 3 for row in mask.index.tolist())
    supports = [set(map(tuple, mask.index.tolist())) for mask in masks.values()]
    assert [len(s) for s in supports][2:] == [4, 6], "12/3 blocks; 24/4 shared supports"
    assert min(len(s) for s in supports[:2]) > 6
    shared = masks["shared"].index.view(6, 4, 3)
    assert (shared == shared[:, :1]).all()


@pytest.mark.parametrize("config", [DenseAtomsConfig(tied=True), ExpanderAtomsConfig(stored=True)])
def test_configs_are_written_and_read(config):
    assert from_dict(type(config), to_dict(config)) == config


@pytest.mark.parametrize("field", ["nonzeros", "group"])
def test_sizes_below_one_are_refused(field):
    with pytest.raises(ConfigError, match=rf"^{field}: expected at least 1, found 0"):
        ExpanderAtomsConfig(**{field: 0})


def test_more_nonzeros_than_width_are_refused():
    with pytest.raises(ConfigError, match=r"^nonzeros: expected 1 to the width 5, found 7"):
        draw_mask(ExpanderAtomsConfig(), 100, 5)
