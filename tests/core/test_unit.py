"""Sites, specs and codes: the small values that everything else passes around."""

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pellucid.core.errors import AddressError
from pellucid.core.unit import Code, Context, PoolSpec, Site, UnitPool, UnitRecord

HERE = Site(module="blocks.3.ffn", port="in")
names = st.text(alphabet="abcxyz0123456789_.", min_size=1)


def _spec(*axes: tuple[str, int]) -> PoolSpec:
    return PoolSpec(name="p", reads=HERE, writes=HERE, axes=axes, d_in=2, d_out=2)


def test_a_site_reads_as_module_and_port():
    assert str(HERE) == "blocks.3.ffn:in"
    assert str(Site(module="model.layers.7.mlp", port="out")) == "model.layers.7.mlp:out"


@given(names, st.sampled_from(["in", "out"]))
def test_sites_survive_their_text(module, port):
    site = Site(module=module, port=port)
    assert Site.parse(str(site)) == site


@pytest.mark.parametrize("text", ["", "blocks.3", ":in", "blocks.3:", "blocks.3:inside", "in"])
def test_other_texts_are_no_sites(text):
    with pytest.raises(AddressError, match="expected MODULE:in or MODULE:out") as caught:
        Site.parse(text)
    assert repr(text) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_spec_counts_the_cells_of_its_axes():
    assert _spec(("row", 4), ("col", 5), ("channel", 3)).num_units == 60
    assert _spec(("neuron", 7)).num_units == 7


def test_values_are_frozen_and_comparable():
    assert _spec(("a", 2)) == _spec(("a", 2))
    assert hash(HERE) == hash(Site(module="blocks.3.ffn", port="in"))
    with pytest.raises(dataclasses.FrozenInstanceError):
        HERE.module = "elsewhere"  # pyright: ignore[reportAttributeAccessIssue]


def test_value_is_gate_times_act():
    code = Code(torch.tensor([[4, 1]]), torch.tensor([[0.5, 0.0]]), torch.tensor([[3.0, 7.0]]))
    # 0.5 · 3 = 1.5 and 0 · 7 = 0
    assert code.value.tolist() == [[1.5, 0.0]]


def test_where_silences_by_the_gate_alone():
    code = Code(torch.tensor([[4, 1]]), torch.tensor([[0.5, 2.0]]), torch.tensor([[3.0, -7.0]]))
    kept = code.where(torch.tensor([[False, True]]))
    assert kept.gate.tolist() == [[0.0, 2.0]]
    assert kept.value.tolist() == [[0.0, -14.0]]
    assert kept.act is code.act
    assert kept.unit is code.unit
    assert code.gate.tolist() == [[0.5, 2.0]]


def test_where_removes_even_what_is_not_finite():
    code = Code(torch.tensor([0, 1]), torch.tensor([torch.inf, 1.0]), torch.tensor([1.0, 1.0]))
    assert code.where(torch.tensor([False, True])).value.tolist() == [0.0, 1.0]


def test_a_code_passes_gradients_to_gate_and_act():
    gate, act = torch.tensor([2.0], requires_grad=True), torch.tensor([3.0], requires_grad=True)
    Code(torch.tensor([0]), gate, act).value.sum().backward()
    assert gate.grad is not None
    assert act.grad is not None
    assert (gate.grad.item(), act.grad.item()) == (3.0, 2.0)


def test_the_protocol_sees_a_missing_member():
    class NoRest:
        spec = _spec(("a", 1))

        def read(self) -> None: ...
        def write(self) -> None: ...
        def activate(self) -> None: ...
        def decode(self) -> None: ...

    class Whole(NoRest):
        def rest(self) -> None: ...

    assert not isinstance(NoRest(), UnitPool)
    assert isinstance(Whole(), UnitPool)


def test_a_record_holds_plain_values():
    context = Context(tokens=("a", "b"), values=(0.0, 1.5), focus=1, document="7", domain="code")
    record = UnitRecord(
        pool="blocks.0.ffn",
        unit=3,
        address="blocks.0.ffn@neuron=3",
        fires=2,
        tokens=10,
        selectivity=0.5,
        domains=(("code", 1.0),),
        reads=(("def", 2.0),),
        writes=(("(", 1.0),),
        contexts=(context,),
    )
    assert record.contexts[0].tokens[context.focus] == "b"
    assert dataclasses.replace(record, fires=3) != record
