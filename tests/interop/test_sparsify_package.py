"""sparsify folders through sparsify itself, in both directions, for everything it has."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import laws
from pellucid.dictionaries import Coder, CoderConfig
from pellucid.dictionaries.atoms import DenseAtomsConfig, ExpanderAtomsConfig
from pellucid.dictionaries.gates import GroupmaxConfig, TopKConfig
from pellucid.interop import ReadOptions, WriteOptions
from pellucid.interop.saelens_class import dense_code
from pellucid.interop.sparsify import read_sparsify, write_sparsify
from pellucid.interop.weights import weights_of

pytestmark = [pytest.mark.interop, pytest.mark.filterwarnings("ignore")]

SHAPES = ((8, 32), (16, 16))
KINDS = ("sae", "transcoder", "skip sae", "skip transcoder")
ACTIVATIONS = ("topk", "groupmax")


def _theirs(
    activation: str, kind: str, d: int, n: int, dtype: torch.dtype = torch.float64, k: int = 4
) -> Any:
    from sparsify import SparseCoder, SparseCoderConfig

    config = SparseCoderConfig(
        activation=activation,
        num_latents=n,
        k=k,
        skip_connection="skip" in kind,
        transcode="transcoder" in kind,
    )
    theirs = SparseCoder(d, config, dtype=dtype)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            parameter.copy_(torch.randn_like(parameter) * (5 if name == "b_dec" else 0.5))
        norm = torch.rand(n, 1).to(dtype) * 1.5 + 0.5
        theirs.W_dec.copy_(theirs.W_dec / theirs.W_dec.norm(dim=1, keepdim=True) * norm)
    return theirs


def _code(theirs: Any, x: Tensor) -> Tensor:
    """Their code, dense: slots of value 0 may carry any index."""
    found = theirs.encode(x)
    dense = torch.zeros(len(x), theirs.num_latents, dtype=found.top_acts.dtype)
    return dense.scatter_add(1, found.top_indices, found.top_acts)


def _rows(theirs: Any, count: int = 24) -> Tensor:
    centre = 0.0 if theirs.cfg.transcode else theirs.b_dec
    return (torch.randn(count, theirs.d_in).to(theirs.W_dec) + centre).detach()


def _read(path: Path, **options: Any) -> Coder:
    (found,) = read_sparsify(path, ReadOptions(**options))
    return found.coder


@pytest.mark.parametrize(("d", "n"), SHAPES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_theirs_to_ours(tmp_path, close, activation, kind, dtype, d, n):
    _theirs(activation, kind, d, n, dtype).save_to_disk(tmp_path / "layers.1.mlp")
    from sparsify import SparseCoder

    precision = "float64" if dtype == torch.float64 else "float32"
    ours = _read(tmp_path / "layers.1.mlp", dtype=precision)
    theirs = SparseCoder.load_from_disk(tmp_path / "layers.1.mlp").to(getattr(torch, precision))
    x = _rows(theirs)
    code = _code(theirs, x)
    assert 0 < (code != 0).double().mean() < 1
    close(dense_code(ours, x), code)
    close(ours(x), theirs(x).sae_out)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_laws_hold_over_their_dictionaries(tmp_path, activation, kind):
    theirs = _theirs(activation, kind, 8, 12)
    theirs.save_to_disk(tmp_path / "layers.1.mlp")
    ours, x = _read(tmp_path / "layers.1.mlp", dtype="float64"), _rows(theirs, 5)
    for law in laws.LAWS:
        law(ours, x)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_fewer_positive_than_k(tmp_path, close, activation):
    theirs = _theirs(activation, "sae", 8, 32, k=16)
    with torch.no_grad():
        theirs.encoder.bias -= 1.5
    theirs.save_to_disk(tmp_path / "layers.1")
    ours, x = _read(tmp_path / "layers.1", dtype="float64"), _rows(theirs)
    code = _code(theirs, x)
    assert (code > 0).sum(1).max() < 16
    close(dense_code(ours, x), code)


def test_an_expansion_factor_stands_for_the_number_of_latents(tmp_path, close):
    theirs = _theirs("topk", "sae", 8, 24)
    theirs.save_to_disk(tmp_path / "layers.1")
    path = tmp_path / "layers.1" / "cfg.json"
    config = json.loads(path.read_text()) | {"num_latents": 0, "expansion_factor": 3}
    path.write_text(json.dumps(config))
    x = _rows(theirs)
    close(_read(tmp_path / "layers.1", dtype="float64")(x), theirs(x).sae_out)


def test_all_hookpoints_at_once(tmp_path, close):
    from sparsify import SparseCoder

    for layer in (0, 1):
        _theirs("topk", "transcoder", 8, 32).save_to_disk(tmp_path / f"layers.{layer}.mlp")
    found = read_sparsify(tmp_path, ReadOptions(dtype="float64"))
    theirs = SparseCoder.load_many(str(tmp_path), local=True)
    assert [str(one.coder.spec.reads) for one in found] == [f"model.{p}:in" for p in theirs]
    for one, other in zip(found, theirs.values()):
        x = _rows(other)
        close(one.coder(x), other(x).sae_out)


# --- ours to theirs ------------------------------------------------------------------------------

CONFIGS = {
    "topk": CoderConfig(latents=32, gate=TopKConfig(k=5)),
    "annealed": CoderConfig(latents=32, gate=TopKConfig(k=5, start_k=9)),
    "groupmax": CoderConfig(latents=32, gate=GroupmaxConfig(k=8)),
    "sparse atoms": CoderConfig(
        latents=32, gate=TopKConfig(k=5), atoms=ExpanderAtomsConfig(nonzeros=3)
    ),
    "tied": CoderConfig(latents=32, gate=TopKConfig(k=5), atoms=DenseAtomsConfig(tied=True)),
    "skip": CoderConfig(latents=32, gate=TopKConfig(k=5), skip=True),
}
CASES = [(name, d_out) for name in CONFIGS for d_out in (None, 8) if not (name == "tied" and d_out)]


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
@pytest.mark.parametrize(("name", "d_out"), CASES)
def test_ours_to_theirs(tmp_path, make, rows, close, name, d_out, dtype):
    from sparsify import SparseCoder

    precision = "float64" if dtype == "float64" else "float32"
    ours = make(CONFIGS[name], d_out=d_out, dtype=getattr(torch, precision))
    write_sparsify((ours,), tmp_path / "out", WriteOptions(dtype=dtype))
    folder = tmp_path / "out" / ("layers.1.mlp" if d_out else "layers.1")
    theirs = SparseCoder.load_from_disk(folder).to(getattr(torch, precision))
    assert theirs.cfg.normalize_decoder is False
    x = rows(ours)
    if dtype == "bfloat16":
        ours = _read(folder)
    close(_code(theirs, x), dense_code(ours, x))
    close(theirs(x).sae_out, ours(x))


@pytest.mark.parametrize(("name", "d_out"), CASES)
def test_round_trip(tmp_path, make, name, d_out):
    from sparsify import SparseCoder

    ours = make(CONFIGS[name], d_out=d_out, dtype=torch.float32)
    write_sparsify((ours,), tmp_path / "out", WriteOptions(model={"kind": "run", "name": "runs/a"}))
    hookpoint = "layers.1.mlp" if d_out else "layers.1"
    SparseCoder.load_from_disk(tmp_path / "out" / hookpoint).save_to_disk(tmp_path / hookpoint)
    back = _read(tmp_path / hookpoint)
    before, after = weights_of(ours), weights_of(back)
    for field in ("encoder", "encoder_bias", "decoder", "decoder_bias", "skip"):
        one, other = getattr(before, field), getattr(after, field)
        assert (one is None) == (other is None), field
        assert one is None or torch.equal(one, other), field
    assert (back.spec.reads, back.spec.writes) == (ours.spec.reads, ours.spec.writes)


def test_saelens_transposes_the_decoder_of_equal_widths(tmp_path, close):
    """Why these folders are converted here: SAELens' own loader is silently wrong at n = d."""
    from sae_lens.loading.pretrained_sae_loaders import sparsify_disk_loader

    theirs = _theirs("topk", "sae", 16, 16, torch.float32)
    theirs.save_to_disk(tmp_path / "layers.1")
    _, state = sparsify_disk_loader(tmp_path / "layers.1")
    assert torch.equal(state["W_dec"], theirs.W_dec.T.bfloat16())
    x = _rows(theirs)
    close(_read(tmp_path / "layers.1")(x), theirs(x).sae_out)
