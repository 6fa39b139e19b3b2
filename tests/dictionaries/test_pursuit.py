"""Matching pursuit and the solvers as gates: by hand, merged, stopped, and after an encoder."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pellucid.core.errors import ConfigError
from pellucid.core.unit import Code
from pellucid.dictionaries import CoderConfig
from pellucid.dictionaries.atoms import DenseAtomsConfig, ExpanderAtomsConfig
from pellucid.dictionaries.gates import GroupmaxConfig, ReLUConfig, TopKConfig
from pellucid.dictionaries.latents import Latents
from pellucid.dictionaries.pursuit import PursuitConfig, PursuitGate, on_support, solve
from pellucid.dictionaries.thresholds import GatedConfig, JumpReLUConfig
from pellucid.ops.rows import DenseRows

DOUBLE = torch.float64
SOLVERS = ("oneshot", "gomp", "omp")
# Two axes and the diagonal between them.
FAN = DenseRows(torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]], dtype=DOUBLE))


def _unit_rows(num: int, width: int) -> DenseRows:
    return DenseRows(F.normalize(torch.randn(num, width, dtype=DOUBLE)))


def _gate(num: int, **fields: object) -> PursuitGate:
    return PursuitGate(PursuitConfig(**fields), num).double()


def _value(latents: Latents, num: int) -> Tensor:
    assert latents.unit is not None
    empty = latents.value.new_zeros(latents.value.shape[0], num)
    return empty.scatter_add(1, latents.unit, latents.value)


def _missed(latents: Latents, rows: DenseRows, z: Tensor) -> Tensor:
    return (z - latents.decode(rows)).norm(dim=1)


def test_matching_pursuit_by_hand():
    # z = (2, 1): products 2, 2, 1; the lower of the tied takes 2, r = (0, 1): products 0, .8, 1;
    # unit 2 takes 1 and nothing is left.
    z = torch.tensor([[2.0, 1.0]], dtype=DOUBLE)
    latents = _gate(3, k=2)(FAN, z, fit=True)
    assert _value(latents, 3).tolist() == [[2.0, 0.0, 1.0]]
    assert (latents.act == 1).all()
    assert torch.equal(latents.gate, latents.value)
    one = _gate(3, k=1)(FAN, z, fit=True)
    assert _value(one, 3).tolist() == [[2.0, 0.0, 0.0]]


# Two atoms that take turns on (0, 1), and two that never correlate with what is left.
TURNS = DenseRows(torch.tensor([[0.6, 0.8], [-1.0, 0.0], [0.0, -1.0], [0.0, -1.0]], dtype=DOUBLE))


@pytest.mark.parametrize(
    ("k", "stops", "expected"),
    [
        # Unit 0 takes .8 and leaves (−.48, .36); unit 1 takes .48 and leaves (0, .36);
        (2, False, [0.8, 0.48]),
        # unit 0 takes .288 more and leaves (−.1728, .1296), and there a repeat stops;
        (3, False, [1.088, 0.48]),
        (4, True, [1.088, 0.48]),
        # or unit 1 takes .1728 more.
        (4, False, [1.088, 0.6528]),
    ],
)
def test_an_atom_picked_again_is_one_entry(k, stops, expected):
    z = torch.tensor([[0.0, 1.0]], dtype=DOUBLE)
    latents = _gate(4, k=k, stop_repeats=stops)(TURNS, z, fit=False)
    assert _value(latents, 4)[0].tolist() == pytest.approx([*expected, 0.0, 0.0])
    assert latents.unit is not None
    entries = [u for u, v in zip(latents.unit[0].tolist(), latents.value[0].tolist()) if v != 0]
    assert sorted(entries) == [0, 1], "no duplicate"


def test_a_row_stops_when_its_residual_is_small():
    z = torch.tensor([[2.0, 1.0], [0.2, 0.1]], dtype=DOUBLE)
    # After one step 1 and .1 are left; under .5 only the second row stops.
    latents = _gate(3, k=2, residual=0.5)(FAN, z, fit=False)
    assert (_value(latents, 3) != 0).sum(1).tolist() == [2, 1]


def test_training_equals_inference():
    rows, z = _unit_rows(9, 4), torch.randn(20, 4, dtype=DOUBLE)
    gate = _gate(9, k=4)
    fitted, inferred = gate(rows, z, fit=True), gate(rows, z, fit=False)
    assert torch.equal(fitted.value, inferred.value)
    assert fitted.unit is not None
    assert inferred.unit is not None
    assert torch.equal(fitted.unit, inferred.unit)
    assert list(gate.parameters()) == []
    assert gate.solves


def test_the_values_teach_the_atoms():
    # One step: f = ⟨D_j, z⟩, so d f/d D_j = z for the chosen atom and nothing for the rest.
    table = FAN.table.clone().requires_grad_()
    z = torch.tensor([[2.0, 0.5]], dtype=DOUBLE)
    _gate(3, k=1)(DenseRows(table), z, fit=True).value.sum().backward()
    assert table.grad is not None
    assert table.grad.tolist() == [[2.0, 0.5], [0.0, 0.0], [0.0, 0.0]]


@settings(max_examples=20)
@given(st.integers(1, 6), st.integers(0, 99))
def test_the_residual_falls_with_every_step(k, seed):
    torch.manual_seed(seed)
    rows, z = _unit_rows(8, 5), torch.randn(7, 5, dtype=DOUBLE)
    left = [
        _missed(_gate(8, k=steps, stop_repeats=False)(rows, z, fit=False), rows, z)
        for steps in range(1, k + 1)
    ]
    assert all((after <= before + 1e-12).all() for before, after in itertools.pairwise(left))
    assert (left[0] <= z.norm(dim=1) + 1e-12).all()


@pytest.mark.parametrize("mode", SOLVERS)
def test_solvers_by_hand_on_orthonormal_atoms(mode):
    # Coefficients are the products; signed picks 3 and 2, abs −5 and 3.
    rows, z = DenseRows(torch.eye(4, dtype=DOUBLE)), torch.tensor([[3.0, -5.0, -1.0, 2.0]])
    for sign, expected in (("signed", [3.0, 0.0, 0.0, 2.0]), ("abs", [3.0, -5.0, 0.0, 0.0])):
        latents = solve(rows, z.double(), mode, k=2, sign=sign, per_iteration=2)
        assert _value(latents, 4)[0].tolist() == pytest.approx(expected)
        assert (latents.act == 1).all()


def test_solvers_differ_on_correlated_atoms():
    # z = (2, 2): products 2, 2.8, 2. One shot takes units 1 and 0. omp: unit 1 first, r ⟂ (.6, .8)
    # is (.32, −.24): then unit 0 with .32. Both span the plane: exact either way, k = 2.
    z = torch.tensor([[2.0, 2.0]], dtype=DOUBLE)
    for mode in SOLVERS:
        latents = solve(FAN, z, mode, k=2, sign="signed", per_iteration=2)
        # f_1·.8 = 2, f_0 = 2 − .6·2.5 = .5.
        assert _value(latents, 3)[0].tolist() == pytest.approx([0.5, 2.5, 0.0])


@pytest.mark.parametrize("mode", SOLVERS)
@pytest.mark.parametrize("sign", ["signed", "abs"])
def test_residuals_of_solvers_are_orthogonal_to_their_atoms(mode, sign):
    rows, z = _unit_rows(20, 9), torch.randn(33, 9, dtype=DOUBLE)
    latents = solve(rows, z, mode, k=4, sign=sign, per_iteration=2)
    assert latents.unit is not None
    residual = z - latents.decode(rows)
    # 1e-10: rounding of a least-squares problem of four atoms.
    assert torch.einsum("bkd,bd->bk", rows.table[latents.unit], residual).abs().max() < 1e-10
    assert all(len(set(row)) == 4 for row in latents.unit.tolist())


def test_refitting_by_hand():
    # Support {0, 1} of FAN for (2, 2): the same least squares as above, whatever the code said.
    code = Code(
        torch.tensor([[1, 0, 2]]),
        torch.tensor([[1.0, 1.0, 0.0]], dtype=DOUBLE),
        torch.tensor([[9.0, 9.0, 9.0]], dtype=DOUBLE),
    )
    latents = on_support(code, FAN, torch.tensor([[2.0, 2.0]], dtype=DOUBLE))
    assert latents.value[0].tolist() == pytest.approx([2.5, 0.5, 0.0])
    assert latents.value[0, 2].item() == 0.0, "what is off stays off"
    assert latents.unit is code.unit


REFITTED = {
    "relu": ReLUConfig(),
    "topk": TopKConfig(k=3),
    "signed": TopKConfig(k=3, sign="signed"),
    "abs": TopKConfig(k=3, sign="abs"),
    "groupmax": GroupmaxConfig(k=3),
    "jumprelu": JumpReLUConfig(threshold=0.3, l0=3.0),
    "gated": GatedConfig(),
    "pursuit": PursuitConfig(k=3),
}
ROWS = {"dense": DenseAtomsConfig(tied=True), "expander": ExpanderAtomsConfig(nonzeros=3)}


@pytest.mark.parametrize("gate", REFITTED)
@pytest.mark.parametrize("atoms", ROWS)
def test_a_refit_is_never_worse_than_its_encoder(make, gate, atoms):
    config = CoderConfig(latents=12, gate=REFITTED[gate], atoms=ROWS[atoms], auxk=0.0)
    errors = {}
    z = torch.randn(63, 6, dtype=DOUBLE)
    for mode in ("encoder", "refit"):
        coder = make(CoderConfig(**(vars(config) | {"inference": mode}))).eval()
        code = coder.activate(z)
        errors[mode] = (coder(z) - z).norm(dim=1)
        supports = [
            {u for u, v in zip(units, values) if v != 0}
            for units, values in zip(code.unit.tolist(), code.value.tolist())
        ]
        errors[f"{mode}-support"] = supports
    assert (errors["refit"] <= errors["encoder"] + 1e-10).all()
    assert (errors["refit"] < errors["encoder"] - 1e-3).any()
    pairs = zip(errors["refit-support"], errors["encoder-support"])
    assert all(refitted <= encoded for refitted, encoded in pairs)


@pytest.mark.parametrize("rows", [0, 1])
def test_any_number_of_rows(rows):
    z = torch.randn(rows, 2, dtype=DOUBLE)
    assert _gate(3, k=2)(FAN, z, fit=True).value.shape == (rows, 2)
    for mode in SOLVERS:
        assert solve(FAN, z, mode, k=2, sign="abs", per_iteration=1).value.shape == (rows, 2)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: PursuitConfig(k=0), "k: expected at least 1, found 0"),
        (lambda: PursuitConfig(residual=-1.0), "residual: expected at least 0, found -1.0"),
        (lambda: _gate(3, k=4), "gate.k: expected at most latents = 3, found 4"),
    ],
)
def test_errors_name_the_field(build, message):
    with pytest.raises(ConfigError) as caught:
        build()
    assert str(caught.value).startswith(message)
