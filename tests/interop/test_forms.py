"""What each format can hold, what it refuses and with which words, and how near the nearest is."""

from dataclasses import replace

import pytest
import torch

from pellucid.core.errors import InteropError
from pellucid.dictionaries import DICTIONARIES, CoderConfig
from pellucid.dictionaries.atoms import DenseAtomsConfig, ExpanderAtomsConfig
from pellucid.dictionaries.gates import BatchTopKConfig, GroupmaxConfig, ReLUConfig, TopKConfig
from pellucid.dictionaries.pursuit import PursuitConfig
from pellucid.dictionaries.router import RouterConfig
from pellucid.dictionaries.thresholds import GatedConfig, JumpReLUConfig
from pellucid.interop import CONVERTERS, WriteOptions
from pellucid.interop.forms import (
    HOLDS,
    changed,
    default_sample,
    fault,
    form_of,
    held,
    in_form,
    nearest,
)

SWITCH = RouterConfig(experts=4, active=2)
CONFIGS = {
    "ReLU": CoderConfig(latents=16, gate=ReLUConfig(), auxk=0.0),
    "gated": CoderConfig(latents=16, gate=GatedConfig(), auxk=0.0),
    "TopK": CoderConfig(latents=16, gate=TopKConfig(k=4)),
    "signed TopK": CoderConfig(latents=16, gate=TopKConfig(k=4, sign="signed")),
    "AbsTopK": CoderConfig(latents=16, gate=TopKConfig(k=4, sign="abs")),
    "BatchTopK": CoderConfig(latents=16, gate=BatchTopKConfig(k=4)),
    "JumpReLU": CoderConfig(latents=16, gate=JumpReLUConfig(l0=4.0), auxk=0.0),
    "groupmax": CoderConfig(latents=16, gate=GroupmaxConfig(k=4)),
    "matching pursuit": CoderConfig(
        latents=16, gate=PursuitConfig(k=4), atoms=DenseAtomsConfig(tied=True), auxk=0.0
    ),
    "Switch": CoderConfig(latents=16, gate=TopKConfig(k=4), router=SWITCH),
    "Scale": CoderConfig(
        latents=16, gate=TopKConfig(k=4), router=replace(SWITCH, lowpass="learned")
    ),
    "OMP": CoderConfig(latents=16, gate=TopKConfig(k=4), inference="omp"),
}
# By the formats' own tables: which forms, as SAE and as transcoder.
SAES = {
    "saelens": {"ReLU", "TopK", "AbsTopK", "JumpReLU", "BatchTopK", "gated", "matching pursuit"},
    "sparsify": {"TopK", "groupmax"},
    "dictionary_learning": {"ReLU", "gated", "JumpReLU", "TopK", "BatchTopK"},
    "circuit_tracer": set(),
}
TRANSCODERS = {
    "saelens": {"ReLU", "JumpReLU", "BatchTopK"},
    "sparsify": {"TopK", "groupmax"},
    "dictionary_learning": set(),
    "circuit_tracer": {"ReLU", "JumpReLU", "BatchTopK", "signed TopK"},
}


def test_every_format_is_in_the_table():
    assert [converter.name for converter in CONVERTERS] == list(HOLDS)


@pytest.mark.parametrize("form", CONFIGS)
def test_forms_and_who_holds_them(make, form):
    sae = make(CONFIGS[form])
    assert form_of(sae) == form
    assert {name for name in HOLDS if fault(sae, name) is None} == {
        name for name, forms in SAES.items() if form in forms
    }
    if form in ("matching pursuit", "OMP"):
        return
    transcoder = make(CONFIGS[form], d_out=8)
    assert {name for name in HOLDS if fault(transcoder, name) is None} == {
        name for name, forms in TRANSCODERS.items() if form in forms
    }


def test_every_registered_dictionary_has_a_form(make):
    for config in DICTIONARIES.values():
        router = config.router and replace(config.router, experts=4, active=2)
        gate = config.with_k(4).gate
        form_of(make(replace(config, latents=16, gate=gate, router=router)))


def test_skips_and_widths(make):
    skip = make(replace(CONFIGS["TopK"], skip=True))
    assert fault(skip, "saelens") == "skip: expected none in an SAE, found one"
    assert fault(skip, "sparsify") is None
    wide = make(CONFIGS["TopK"], d_out=9)
    assert fault(wide, "sparsify") == "widths: expected equal ones, found 8 and 9"


def test_a_negative_threshold_passes_what_other_formats_clip(make):
    coder = make(CONFIGS["JumpReLU"])
    coder.gate.threshold.data[3] = -0.25
    for name in ("saelens", "dictionary_learning"):
        assert fault(coder, name) == "threshold: expected at least 0, found -0.25"
    moved = make(CONFIGS["JumpReLU"], d_out=8)
    moved.gate.threshold.data[3] = -0.25
    assert fault(moved, "circuit_tracer") is None


@pytest.mark.parametrize(
    ("form", "transcoder", "format", "message"),
    [
        (
            "Scale",
            False,
            "saelens",
            "saelens: made: gate: expected ReLU, TopK, AbsTopK, JumpReLU, BatchTopK, gated, "
            "matching pursuit in an SAE, found Scale; use saelens with --own-class, or keep the "
            "run folder",
        ),
        (
            "Switch",
            True,
            "sparsify",
            "sparsify: made: gate: expected TopK, groupmax in a transcoder, found Switch; use "
            "saelens with --own-class, or keep the run folder",
        ),
        (
            "TopK",
            True,
            "saelens",
            "saelens: made: gate: expected ReLU, JumpReLU, BatchTopK in a transcoder, found TopK; "
            "use sparsify, or --lossy for the nearest form, or saelens with --own-class, or keep "
            "the run folder",
        ),
    ],
)
def test_the_words_of_a_refusal(make, form, transcoder, format, message):
    coder = make(CONFIGS[form], d_out=8 if transcoder else None)
    with pytest.raises(InteropError) as error:
        held(coder, format, WriteOptions())
    assert str(error.value) == message


# --- the nearest form ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("form", "transcoder", "format", "near"),
    [
        ("signed TopK", False, "saelens", "TopK"),
        ("OMP", False, "saelens", "TopK"),
        ("groupmax", False, "saelens", "TopK"),
        ("TopK", True, "saelens", "JumpReLU"),
        ("TopK", True, "circuit_tracer", "signed TopK"),
        ("AbsTopK", False, "sparsify", "TopK"),
        ("groupmax", True, "circuit_tracer", "signed TopK"),
        ("gated", True, "saelens", None),
        ("Scale", False, "saelens", None),
        ("matching pursuit", False, "sparsify", None),
    ],
)
def test_which_form_is_nearest(make, form, transcoder, format, near):
    coder = make(CONFIGS[form], d_out=8 if transcoder else None)
    assert nearest(coder, format) == near
    if near is not None:
        coder, lines = held(coder, format, WriteOptions(lossy=True))
        assert form_of(coder) == near
        assert fault(coder, format) is None
        assert len(lines) == 1


def test_what_is_held_is_left_alone(make):
    coder = make(CONFIGS["TopK"])
    found, lines = held(coder, "saelens", WriteOptions(lossy=True))
    assert found is coder
    assert lines == ()


def test_the_share_of_changed_rows_by_hand(make):
    """Latents ±x_0 and ±x_1, k = 2, so that both forms keep the two positive ones. With a bias of
    −10 on all but the first, row (1, 1) has a = (1, −11, −9, −11): signed keeps the −9 too."""
    config = CoderConfig(latents=4, gate=TopKConfig(k=2, sign="signed"), auxk=0.0)
    coder = make(config, d=2)
    with torch.no_grad():
        coder.bias.zero_()
        coder.in_scale.fill_(1.0)
        coder.out_scale.fill_(1.0)
        axes = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
        coder.encoder.weight.copy_(axes)
        coder.gate.bias.zero_()
    plain = torch.tensor([[1.0, 2.0], [-3.0, 1.0]], dtype=torch.float64)
    near = in_form(coder, "TopK", plain)
    assert changed(coder, near, plain) == 0
    with torch.no_grad():
        coder.gate.bias[1:] = -10.0
    near = in_form(coder, "TopK", plain)
    one = torch.tensor([[1.0, 1.0]], dtype=torch.float64)
    assert changed(coder, near, one) == 1
    # Of a = (30, −40, 20, −40) and its like none that is kept is negative.
    both = torch.cat((one, torch.tensor([[30.0, 30.0]], dtype=torch.float64)))
    assert changed(coder, near, both) == 0.5
    _, (line,) = held(coder, "saelens", WriteOptions(lossy=True, sample=both))
    assert line == (
        "made: written as TopK, which is not signed TopK: other latents are active in 50.0% of 2 "
        "sampled rows"
    )


def test_a_threshold_in_place_of_a_budget(make, rows):
    """On the rows it is measured on, k latents are active on average (one less of all rows')."""
    coder = make(CONFIGS["TopK"], d_out=8)
    x = rows(coder, 100)
    near = in_form(coder, "JumpReLU", x)
    assert len(set(near.gate.threshold.tolist())) == 1
    active = int((near.activate(x).value != 0).sum())
    assert active == 4 * 100 - 1


def test_the_default_sample_has_the_units_of_the_fit(make):
    """Standard normal about the centre once scaled: c·x − b has unit variance."""
    coder = make(CONFIGS["TopK"])
    z = coder.in_scale * default_sample(coder) - coder.bias
    # 4,096 values: their deviation is known to 1.1%.
    assert z.std().item() == pytest.approx(1, abs=0.05)
    assert torch.equal(default_sample(coder), default_sample(coder))


@pytest.mark.parametrize("format", [name for name in HOLDS if name != "saelens"])
def test_our_own_class_is_for_saelens_alone(make, format):
    with pytest.raises(InteropError, match=f"{format}: --own-class is SAELens' alone"):
        held(make(CONFIGS["TopK"]), format, WriteOptions(own_class=True))


def test_sparse_atoms_are_no_obstacle(make, rows, close):
    """Expander atoms of a TopK with ReLU fit where dense ones do; signed ones do not."""
    atoms = ExpanderAtomsConfig(nonzeros=3)
    assert fault(make(replace(CONFIGS["TopK"], atoms=atoms)), "saelens") is None
    signed = make(replace(CONFIGS["signed TopK"], atoms=atoms, auxk=0.0))
    assert fault(signed, "saelens") is not None
    x = rows(signed)
    close(in_form(signed, "signed TopK", x)(x), signed(x))
