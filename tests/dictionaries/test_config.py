"""What can be combined, what is refused and in whose name, and configs written and read."""

import json
from dataclasses import replace

import pytest

from pellucid.core.config import from_dict, to_dict
from pellucid.core.errors import ConfigError
from pellucid.dictionaries import DICTIONARIES, CoderConfig
from pellucid.dictionaries.atoms import DenseAtomsConfig, ExpanderAtomsConfig
from pellucid.dictionaries.gates import BatchTopKConfig, GroupmaxConfig, ReLUConfig, TopKConfig
from pellucid.dictionaries.pursuit import PursuitConfig
from pellucid.dictionaries.router import RouterConfig
from pellucid.dictionaries.thresholds import GatedConfig, JumpReLUConfig

ROUTER = RouterConfig(experts=4, active=2)
TIED = DenseAtomsConfig(tied=True)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"latents": 0}, "latents: expected at least 1, found 0"),
        ({"batch": 0}, "batch: expected at least 1, found 0"),
        ({"solver_width": 0}, "solver_width: expected at least 1, found 0"),
        ({"auxk": -0.1}, "auxk: expected at least 0, found -0.1"),
        ({"auxk": float("nan")}, "auxk: expected at least 0, found nan"),
        ({"reaim": -1}, "reaim: expected at least 0, found -1"),
        ({"plan": 0}, "plan: expected at least 1, found 0"),
        ({"prefixes": (0.5,)}, "prefixes: expected shares above 0 that end with 1, found (0.5,)"),
        ({"prefixes": (0.0, 1.0)}, "prefixes: expected shares above 0"),
        ({"prefixes": (1.0, 2.0)}, "prefixes: expected shares above 0"),
        ({"gate": ReLUConfig()}, "auxk: expected 0 with gate relu, found 0.03125"),
        ({"gate": JumpReLUConfig()}, "auxk: expected 0 with gate jumprelu"),
        ({"gate": PursuitConfig(), "atoms": TIED}, "auxk: expected 0 with gate pursuit"),
        (
            {"gate": PursuitConfig(), "auxk": 0.0},
            "atoms.tied: expected true with a pursuit gate, found false",
        ),
        (
            {
                "gate": PursuitConfig(),
                "auxk": 0.0,
                "atoms": DenseAtomsConfig(tied=True, norm="free"),
            },
            "atoms.norm: expected unit with a pursuit gate, found free",
        ),
        (
            {"gate": GatedConfig(), "auxk": 0.0, "inference": "omp"},
            "inference: expected encoder or refit with gate gated, found omp",
        ),
        (
            {"gate": JumpReLUConfig(), "auxk": 0.0, "inference": "gomp"},
            "inference: expected encoder or refit with gate jumprelu, found gomp",
        ),
        (
            {"router": ROUTER, "inference": "refit"},
            "inference: expected encoder with a router, found refit",
        ),
        (
            {"router": ROUTER, "gate": BatchTopKConfig()},
            "gate: expected topk of relu with a router, found batchtopk",
        ),
        (
            {"router": ROUTER, "gate": TopKConfig(sign="abs")},
            "gate: expected topk of relu with a router, found topk",
        ),
        (
            {"router": ROUTER, "gate": TopKConfig(multi=True)},
            "gate: expected topk of relu with a router, found topk",
        ),
        (
            {"router": ROUTER, "latents": 4097},
            "latents: expected a multiple of router.experts = 4, found 4097",
        ),
        (
            {"router": ROUTER, "latents": 32},
            "gate.k: expected at most the 16 latents of the active experts, found 32",
        ),
    ],
    ids=str,
)
def test_errors_name_the_field(fields, message):
    with pytest.raises(ConfigError) as caught:
        CoderConfig(**fields)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"gate": {"kind": "topk", "k": 0}}, "f.json: gate.k: expected at least 1, found 0"),
        (
            {"gate": {"kind": "jumprelu", "l0": -1.0}},
            "f.json: gate.l0: expected more than 0, found -1.0",
        ),
        (
            {"gate": {"kind": "pursuit", "residual": -1.0}},
            "f.json: gate.residual: expected at least 0, found -1.0",
        ),
        ({"gate": {"kind": "relu", "l1": -1.0}}, "f.json: gate.l1: expected at least 0"),
        ({"router": {"active": 99}}, "f.json: router.active: expected at most experts = 16"),
        ({"router": {"gate": "renorm"}}, "f.json: router.gate: renorm is identically 1"),
        ({"router": {"balance": -1.0}}, "f.json: router.balance: expected at least 0"),
        (
            {"atoms": {"kind": "expander", "nonzeros": 0}},
            "f.json: atoms.nonzeros: expected at least 1, found 0",
        ),
        ({"latents": 0}, "f.json: latents: expected at least 1, found 0"),
        ({"gate": {"kind": "topq"}}, "f.json: gate.kind: found 'topq'; did you mean 'topk'?"),
        ({"width": 3}, "f.json: unknown key width"),
    ],
    ids=str,
)
def test_a_file_names_each_field_once(data, message):
    with pytest.raises(ConfigError) as caught:
        from_dict(CoderConfig, data, where="f.json")
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("name", DICTIONARIES)
def test_registered_configs_are_written_and_read(name):
    config = DICTIONARIES[name]
    again = from_dict(CoderConfig, json.loads(json.dumps(to_dict(config))))
    assert again == config
    assert type(again.gate) is type(config.gate)


def test_every_field_is_written_and_read():
    config = CoderConfig(
        latents=64,
        gate=TopKConfig(k=2, sign="abs", multi=True, start_k=9, anneal=0.3),
        atoms=ExpanderAtomsConfig(nonzeros=3, mask="shared", mask_seed=5, group=2, stored=True),
        skip=True,
        auxk=0.1,
        auxk_ramp=True,
        prefixes=(0.5, 1.0),
        reaim=7,
        reduction="sum",
        normalise=False,
        center="zero",
        inference="gomp",
        solver_sign="abs",
        solver_width=2,
        plan=100,
        batch=8,
    )
    assert from_dict(CoderConfig, to_dict(config)) == config


@pytest.mark.parametrize("name", DICTIONARIES)
def test_k_is_what_the_gate_keeps(name):
    config = DICTIONARIES[name]
    if name in ("relu", "gated"):
        assert config.k is None
        assert config.with_k(5) == config
    elif name == "jumprelu":
        again = config.with_k(5).gate
        assert config.k is None
        assert isinstance(again, JumpReLUConfig)
        assert again.l0 == 5.0
    else:
        again = config.with_k(5)
        assert again.k == 5
        assert replace(again, gate=config.gate) == config


def test_k_above_an_annealed_start_is_refused():
    config = CoderConfig(gate=TopKConfig(k=4, start_k=8))
    assert config.with_k(8).k == 8
    with pytest.raises(ConfigError, match=r"^start_k: expected at least k = 9, found 8"):
        config.with_k(9)


def test_who_is_tied():
    tied = {name for name, config in DICTIONARIES.items() if config.tied}
    assert tied == {
        "pursuit",
        "expander",
        "expander-authors",
        "expander-switch",
        "expander-scale",
    }
    assert CoderConfig(atoms=TIED).tied


def test_the_authors_forms_are_raw_sums_with_their_quirks():
    raw = {name: config for name, config in DICTIONARIES.items() if name.endswith("-authors")}
    assert set(raw) == {"switch-authors", "scale-authors", "expander-authors"}
    assert {(c.reduction, c.normalise) for c in raw.values()} == {("sum", False)}
    switch, scale = raw["switch-authors"].router, raw["scale-authors"].router
    assert (switch.gate, switch.fraction, switch.balance, switch.sums) == ("p", "top1", 3.0, True)
    assert (scale.gate, scale.lowpass, scale.bias) == ("softmax_of_p", "learned", False)
    assert raw["scale-authors"].atoms == DenseAtomsConfig(norm="coordinate")
    assert raw["expander-authors"].center == "zero"
    assert raw["expander-authors"].atoms.mask == "authors"


def test_a_gated_dictionary_is_not_reaimed():
    with pytest.raises(ConfigError, match=r"^reaim: expected 0 with gate gated, found 5"):
        CoderConfig(gate=GatedConfig(), auxk=0.0, reaim=5)


def test_solvers_go_with_every_gate_that_has_a_budget():
    for gate in (TopKConfig(), BatchTopKConfig(), GroupmaxConfig()):
        assert CoderConfig(gate=gate, inference="omp").k == 32
    assert CoderConfig(gate=ReLUConfig(), auxk=0.0, inference="refit").k is None


def test_the_registry_is_what_the_papers_say():
    expander = DICTIONARIES["expander"]
    assert expander.gate == TopKConfig(sign="signed")
    assert (expander.auxk, expander.reaim) == (0.0, 1000)
    assert DICTIONARIES["matryoshka"].prefixes == (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)
    assert DICTIONARIES["relu"].atoms == DenseAtomsConfig(norm="free")
    with_auxk = {name for name, config in DICTIONARIES.items() if config.auxk}
    assert with_auxk == {
        "switch-authors",
        "topk",
        "batchtopk",
        "matryoshka",
        "abstopk",
        "groupmax",
        "switch",
        "scale",
    }
    assert {DICTIONARIES[name].auxk for name in with_auxk} == {1 / 32}
    plain = [config for name, config in DICTIONARIES.items() if not name.endswith("-authors")]
    assert {(config.reduction, config.normalise) for config in plain} == {("variance", True)}
