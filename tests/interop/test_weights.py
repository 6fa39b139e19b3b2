"""Dictionaries to plain tensors and back: same latents, same outputs, no scales left."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

import laws
from pellucid.core.unit import Site
from pellucid.dictionaries import Coder, CoderConfig
from pellucid.dictionaries.atoms import DenseAtomsConfig, ExpanderAtomsConfig
from pellucid.dictionaries.gates import BatchTopKConfig, GroupmaxConfig, ReLUConfig, TopKConfig
from pellucid.dictionaries.pursuit import PursuitConfig
from pellucid.dictionaries.thresholds import GatedConfig, JumpReLUConfig
from pellucid.interop.weights import coder_of, residual_of, weights_of

GATES = {
    "relu": ReLUConfig(),
    "topk": TopKConfig(k=4),
    "signed": TopKConfig(k=4, sign="signed"),
    "abs": TopKConfig(k=4, sign="abs"),
    "batchtopk": BatchTopKConfig(k=4),
    "jumprelu": JumpReLUConfig(l0=4.0),
    "gated": GatedConfig(),
    "groupmax": GroupmaxConfig(k=4),
}


def dense(coder: Coder, x: Tensor) -> Tensor:
    code = coder.activate(x)
    spread = torch.zeros(len(x), coder.config.latents, dtype=x.dtype)
    return spread.scatter_add(1, code.unit, code.value)


def again(coder: Coder) -> Coder:
    spec = coder.spec
    return coder_of(
        weights_of(coder), coder.config.gate, name="again", reads=spec.reads, writes=spec.writes
    )


@pytest.mark.parametrize("equal_scales", [True, False])
@pytest.mark.parametrize("d_out", [None, 5])
@pytest.mark.parametrize("gate", GATES)
def test_there_and_back(make, rows, close, gate, d_out, equal_scales):
    config = CoderConfig(latents=16, gate=GATES[gate], auxk=0.0, skip=True)
    ours = make(config, d_out=d_out)
    if not equal_scales:
        ours.out_scale.fill_(0.9)
    back = again(ours)
    assert back.in_scale == back.out_scale == 1
    assert not back.training
    x = rows(ours)
    close(dense(back, x), dense(ours, x))
    close(back(x), ours(x))
    close(back.rest(x), ours.rest(x))
    every = torch.arange(16)
    close(back.read(every), ours.read(every))
    close(back.write(every), ours.write(every))


@pytest.mark.parametrize("gate", GATES)
def test_laws_hold_over_what_comes_back(make, rows, gate):
    ours = make(CoderConfig(latents=12, gate=GATES[gate], auxk=0.0))
    back, x = again(ours), rows(ours, 5)
    for law in laws.LAWS:
        law(back, x)


@pytest.mark.parametrize("atoms", [DenseAtomsConfig(tied=True), ExpanderAtomsConfig(nonzeros=3)])
def test_tied_rows_become_two_tables(make, rows, close, atoms):
    ours = make(CoderConfig(latents=16, gate=TopKConfig(k=4), atoms=atoms, auxk=0.0))
    weights = weights_of(ours)
    assert weights.encoder is not None
    close(weights.encoder / ours.in_scale, weights.decoder * ours.out_scale)
    x = rows(ours)
    close(again(ours)(x), ours(x))


@pytest.mark.parametrize("atoms", [DenseAtomsConfig(tied=True), ExpanderAtomsConfig(nonzeros=3)])
def test_a_pursuit_keeps_its_atoms(make, rows, close, atoms):
    """Latents are divided by c, the residual's bound too; outputs stay."""
    gate = PursuitConfig(k=6, residual=0.8)
    ours = make(CoderConfig(latents=16, gate=gate, atoms=atoms, auxk=0.0))
    weights = weights_of(ours)
    assert weights.encoder is None
    close(weights.decoder, ours.decoder.rows().gather(torch.arange(16)))
    assert residual_of(ours) == pytest.approx(0.8 / 1.7)
    spec = ours.spec
    raw = replace(gate, residual=residual_of(ours))
    back = coder_of(weights, raw, name="b", reads=spec.reads, writes=spec.writes)
    x = rows(ours)
    close(dense(back, x), dense(ours, x) / ours.in_scale)
    close(back(x), ours(x))
    for law in laws.LAWS:
        law(back, x[:5])


def test_a_solver_is_left_out(make, rows, close):
    config = CoderConfig(latents=16, gate=TopKConfig(k=4), auxk=0.0)
    ours, solved = make(config), make(replace(config, inference="omp"))
    solved.load_state_dict(ours.state_dict())
    x = rows(ours)
    close(again(solved)(x), ours(x))


def test_one_site_or_two_decides_on_the_subtraction(make, rows, close):
    """The same weights as an SAE and, named as if they wrote elsewhere, as a transcoder."""
    ours = make(CoderConfig(latents=16, gate=GatedConfig(), auxk=0.0))
    elsewhere = Site.parse("model.layers.2:out")
    moved = coder_of(
        weights_of(ours), GatedConfig(), name="m", reads=ours.spec.reads, writes=elsewhere
    )
    assert not moved.is_sae
    x = rows(ours)
    close(moved(x), ours(x))
    close(dense(moved, x), dense(ours, x))


def test_thresholds(make):
    """A BatchTopK's one θ for every latent; never measured, it is 0, as its gate has it."""
    ours = make(CoderConfig(latents=16, gate=BatchTopKConfig(k=4)))
    threshold = weights_of(ours).threshold
    assert threshold is not None
    assert threshold.tolist() == pytest.approx([0.37] * 16)
    ours.gate.threshold.fill_(-1.0)
    threshold = weights_of(ours).threshold
    assert threshold is not None
    assert not threshold.any()


def test_matryoshka_prefixes_come_back(make):
    config = CoderConfig(latents=16, gate=BatchTopKConfig(k=4), prefixes=(0.5, 1.0))
    ours = make(config)
    back = coder_of(
        weights_of(ours),
        config.gate,
        name="b",
        reads=ours.spec.reads,
        writes=ours.spec.writes,
        prefixes=config.prefixes,
    )
    assert back.config.prefixes == (0.5, 1.0)


def test_weights_are_copies(make):
    ours = make(CoderConfig(latents=16, gate=GatedConfig(), auxk=0.0))
    weights, before = weights_of(ours), ours.state_dict()
    kept = {key: tensor.clone() for key, tensor in before.items()}
    for field in ("encoder", "encoder_bias", "decoder", "decoder_bias", "log_scale", "gate_bias"):
        tensor = getattr(weights, field)
        assert not tensor.requires_grad
        tensor.zero_()
    assert all(torch.equal(tensor, kept[key]) for key, tensor in ours.state_dict().items())
