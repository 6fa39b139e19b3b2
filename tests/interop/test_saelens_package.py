"""SAELens folders through SAELens itself, in both directions, for every architecture it has."""

import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import laws
from pellucid.core.errors import InteropError
from pellucid.core.unit import Site
from pellucid.dictionaries import DICTIONARIES, Coder, CoderConfig
from pellucid.dictionaries.atoms import DenseAtomsConfig, ExpanderAtomsConfig
from pellucid.dictionaries.gates import BatchTopKConfig, ReLUConfig, TopKConfig
from pellucid.dictionaries.pursuit import PursuitConfig
from pellucid.dictionaries.thresholds import GatedConfig, JumpReLUConfig
from pellucid.interop import ReadOptions, WriteOptions
from pellucid.interop.saelens import read_saelens, register, write_saelens
from pellucid.interop.saelens_class import dense_code
from pellucid.interop.weights import weights_of

pytestmark = [
    pytest.mark.interop,
    # SAELens' imports and its configs speak up; what we do is checked by the tests below.
    pytest.mark.filterwarnings("ignore"),
]

SHAPES = ((8, 32), (16, 16))
DTYPES = ("float64", "float32", "bfloat16")
METADATA = {"hook_name": "blocks.2.hook_resid_post", "model_name": "some/model"}
OUT = {"hook_name": "blocks.2.mlp.hook_in", "hook_name_out": "blocks.2.hook_mlp_out"}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "standard": {},
    "topk": {"k": 5},
    "topk rescaled": {"k": 5, "rescale_acts_by_decoder_norm": True},
    "abstopk": {"k": 5},
    "abstopk rescaled": {"k": 5, "rescale_acts_by_decoder_norm": True},
    "jumprelu": {},
    "gated": {},
    "matching_pursuit": {"max_iterations": 6},
    "matching_pursuit all steps": {"residual_threshold": 0.0, "stop_on_duplicate_support": False},
    "transcoder": {},
    "skip_transcoder": {},
    "jumprelu_transcoder": {},
    "jumprelu_skip_transcoder": {},
}


def _theirs(name: str, d: int, n: int, dtype: str = "float64", **more: Any) -> Any:
    """One of their SAEs with uneven decoder rows (ν in [.5, 2]) and a large decoder bias."""
    from sae_lens import SAE

    architecture = name.split(" ")[0]
    transcoder = "transcoder" in architecture
    config = {
        "architecture": architecture,
        "d_in": d,
        "d_sae": n,
        "dtype": dtype,
        "apply_b_dec_to_input": not transcoder,
        "metadata": {**METADATA, **(OUT if transcoder else {})},
        **({"d_out": d + 3} if transcoder and d != n else {"d_out": d} if transcoder else {}),
        **ARCHITECTURES[name],
        **more,
    }
    sae = SAE.from_dict(config)
    with torch.no_grad():
        for key, parameter in sae.named_parameters():
            parameter.copy_(torch.randn_like(parameter) * (5 if key == "b_dec" else 0.4))
        pursuit = architecture == "matching_pursuit"
        norm = torch.rand(n, 1).to(sae.W_dec) * (0.6 if pursuit else 1.5) + 0.5
        sae.W_dec.copy_(sae.W_dec / sae.W_dec.norm(dim=1, keepdim=True) * norm)
        if "jumprelu" in architecture:
            sae.threshold.copy_(torch.rand(n) * 0.6 - 0.1)
    return sae


def _rows(sae: Any, count: int = 24) -> Tensor:
    centre = sae.b_dec if sae.cfg.apply_b_dec_to_input else 0.0
    return (torch.randn(count, sae.cfg.d_in).to(sae.W_dec) + centre).detach()


def _read(path: Path, **options: Any) -> Coder:
    (found,) = read_saelens(path, ReadOptions(**options))
    return found.coder


@pytest.mark.parametrize(("d", "n"), SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_theirs_to_ours(tmp_path, close, name, dtype, d, n):
    from sae_lens import SAE

    _theirs(name, d, n, dtype).save_model(tmp_path)
    precision = "float64" if dtype == "float64" else "float32"
    theirs = SAE.load_from_disk(tmp_path, dtype=precision)
    ours = _read(tmp_path, dtype=precision)
    x = _rows(theirs)
    code = theirs.encode(x)
    assert 0 < (code != 0).double().mean() < 1
    close(dense_code(ours, x), code)
    close(ours(x), theirs(x))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_laws_hold_over_their_dictionaries(tmp_path, name):
    sae = _theirs(name, 8, 12)
    sae.save_model(tmp_path)
    ours = _read(tmp_path, dtype="float64")
    x = _rows(sae, 5)
    for law in laws.LAWS:
        law(ours, x)


@pytest.mark.parametrize("name", ["standard", "gated", "jumprelu", "topk", "abstopk rescaled"])
def test_without_subtraction(tmp_path, close, name):
    theirs = _theirs(name, 8, 32, apply_b_dec_to_input=False)
    theirs.save_model(tmp_path)
    x = _rows(theirs)
    ours = _read(tmp_path, dtype="float64")
    close(dense_code(ours, x), theirs.encode(x))
    close(ours(x), theirs(x))


def test_a_pursuit_without_subtraction_adds_no_bias_either(tmp_path, close):
    theirs = _theirs("matching_pursuit", 8, 32, apply_b_dec_to_input=False)
    theirs.save_model(tmp_path)
    ours, x = _read(tmp_path, dtype="float64"), _rows(theirs)
    assert not ours.bias.any()
    close(ours(x), theirs(x))


@pytest.mark.parametrize("name", ["jumprelu", "jumprelu_transcoder"])
def test_a_pre_activation_at_its_threshold_is_off(tmp_path, name):
    """a = x_0 − b = 4.5 − 4 = θ = 0.5, exact in binary, so the strict comparison decides."""
    sae = _theirs(name, 8, 32)
    transcoder = "transcoder" in name
    with torch.no_grad():
        sae.W_enc[:, 0] = torch.eye(8)[0]
        sae.b_enc[0] = -4.0 if transcoder else 0.0
        sae.b_dec[0] = 4.0
        sae.threshold[0] = 0.5
    sae.save_model(tmp_path)
    ours = _read(tmp_path, dtype="float64")
    x = _rows(sae, 2)
    x[:, 0] = torch.tensor([4.5, 4.5 + 2**-40], dtype=torch.float64)
    for code in (sae.encode(x), dense_code(ours, x)):
        assert code[0, 0] == 0
        assert code[1, 0] == 0.5 + 2**-40


@pytest.mark.parametrize("name", ["topk", "abstopk"])
def test_k_above_the_positive_count(tmp_path, close, name):
    theirs = _theirs(name, 8, 32, k=30)
    with torch.no_grad():
        theirs.b_enc -= 2
    theirs.save_model(tmp_path)
    ours, x = _read(tmp_path, dtype="float64"), _rows(theirs)
    code = theirs.encode(x)
    assert (code > 0).sum(1).max() < 30
    close(dense_code(ours, x), code)


# --- normalisation -------------------------------------------------------------------------------


@pytest.mark.parametrize("given", ["beside", "option"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_input_scale_is_folded_as_they_fold_it(tmp_path, close, name, given):
    from sae_lens.training.activation_scaler import ActivationScaler

    scale = 0.3
    sae = _theirs(name, 8, 32, normalize_activations="expected_average_only_in")
    sae.save_model(tmp_path)
    if given == "beside":
        ActivationScaler(scaling_factor=scale).save(str(tmp_path / "activation_scaler.json"))
    x = _rows(sae) / scale
    sae.fold_activation_norm_scaling_factor(scale)
    ours = _read(tmp_path, dtype="float64", input_scale=None if given == "beside" else scale)
    expected = sae.encode(x)
    if name.endswith("rescaled"):
        # They fold c into D first, and latents that carry ν then change by c.
        expected = expected * scale
    close(dense_code(ours, x), expected)
    close(ours(x), sae(x))


@pytest.mark.parametrize("subtracts", [True, False])
@pytest.mark.parametrize(
    "name", ["standard", "topk", "topk rescaled", "abstopk rescaled", "gated", "jumprelu"]
)
def test_whitening_is_folded(tmp_path, close, name, subtracts):
    """Against the unfolded dictionary on whitened rows, mapped back."""
    from sae_lens.training.activation_scaler import ActivationScaler, ActivationWhitening

    sae = _theirs(
        name, 8, 32, normalize_activations="covariance_whitening", apply_b_dec_to_input=subtracts
    )
    sae.save_model(tmp_path)
    matrix = torch.randn(8, 8, dtype=torch.float64) + 3 * torch.eye(8)
    whitening = ActivationWhitening(torch.randn(8).double(), matrix, torch.linalg.inv(matrix))
    scaler = ActivationScaler(whitening=whitening)
    scaler.save(str(tmp_path / "activation_scaler.json"))
    ours = _read(tmp_path, dtype="float64")
    x = scaler.unscale(_rows(sae))
    expected = sae.encode(scaler.scale(x))
    close(dense_code(ours, x), expected)
    close(ours(x), scaler.unscale(sae(scaler.scale(x))))


@pytest.mark.parametrize("kind", ["layer_norm", "constant_norm_rescale"])
@pytest.mark.parametrize("name", ["standard", "topk", "gated", "transcoder", "matching_pursuit"])
def test_normalised_rows_are_read_as_such(tmp_path, close, name, kind):
    """Theirs on x is ours on the normalised x, the normalisation undone (except in transcoders)."""
    sae = _theirs(name, 8, 32, normalize_activations=kind)
    sae.save_model(tmp_path)
    ours = _read(tmp_path, dtype="float64", row_normalised=True)
    x = torch.randn(24, 8, dtype=torch.float64) * 3 + 1
    mean, spread = x.mean(1, keepdim=True), x.std(1, keepdim=True)
    if kind == "layer_norm":
        normal, undo = (x - mean) / (spread + 1e-5), lambda y: y * spread + mean
    else:
        factor = 8**0.5 / x.norm(dim=1, keepdim=True)
        normal, undo = x * factor, lambda y: y / factor
    close(dense_code(ours, normal), sae.encode(x))
    close(ours(normal) if "transcoder" in name else undo(ours(normal)), sae(x))


# --- ours to theirs ------------------------------------------------------------------------------

K = 5
SAES = {
    "relu": CoderConfig(latents=32, gate=ReLUConfig(), auxk=0.0),
    "topk": CoderConfig(latents=32, gate=TopKConfig(k=K)),
    "abstopk": CoderConfig(latents=32, gate=TopKConfig(k=K, sign="abs")),
    "batchtopk": CoderConfig(latents=32, gate=BatchTopKConfig(k=K)),
    "matryoshka": CoderConfig(latents=32, gate=BatchTopKConfig(k=K), prefixes=(0.25, 1.0)),
    "jumprelu": CoderConfig(latents=32, gate=JumpReLUConfig(l0=4.0), auxk=0.0),
    "gated": CoderConfig(latents=32, gate=GatedConfig(), auxk=0.0),
    "tied": CoderConfig(latents=32, gate=TopKConfig(k=K), atoms=DenseAtomsConfig(tied=True)),
    "pursuit": CoderConfig(
        latents=32,
        gate=PursuitConfig(k=K, residual=0.4),
        atoms=DenseAtomsConfig(tied=True),
        auxk=0.0,
    ),
    "sparse atoms": CoderConfig(
        latents=32, gate=TopKConfig(k=K), atoms=ExpanderAtomsConfig(nonzeros=3)
    ),
    "sparse pursuit": CoderConfig(
        latents=32, gate=PursuitConfig(k=K), atoms=ExpanderAtomsConfig(nonzeros=3), auxk=0.0
    ),
}
TRANSCODERS = {
    name + (" skip" if skip else ""): replace(SAES[name], skip=skip)
    for name in ("relu", "jumprelu", "batchtopk", "matryoshka")
    for skip in (False, True)
}
CASES = [(name, config, None) for name, config in SAES.items()] + [
    (name, config, 11) for name, config in TRANSCODERS.items()
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("name", "config", "d_out"), CASES)
def test_ours_to_theirs(tmp_path, make, rows, close, name, config, d_out, dtype):
    from sae_lens import SAE

    ours = make(config, d_out=d_out, dtype=torch.float64 if dtype == "float64" else torch.float32)
    write_saelens((ours,), tmp_path / "out", WriteOptions(dtype=dtype))
    precision = "float64" if dtype == "float64" else "float32"
    theirs = SAE.load_from_disk(tmp_path / "out", dtype=precision)
    x = rows(ours)
    if dtype == "bfloat16":
        # What is compared is the file: its rounding is not ours to avoid.
        ours = _read(tmp_path / "out")
        close(dense_code(ours, x), theirs.encode(x))
        close(ours(x), theirs(x))
        return
    expected = dense_code(ours, x)
    assert 0 < (expected != 0).double().mean() < 1
    if ours.gate.solves:
        # Atoms keep their norms, so coefficients take the scale.
        expected = expected / ours.in_scale
    close(theirs.encode(x), expected)
    close(theirs(x), ours(x))


@pytest.mark.parametrize(("name", "config", "d_out"), CASES)
def test_round_trip(tmp_path, make, name, config, d_out):
    """ours → theirs → ours, saved once more by SAELens on the way: equal tensors."""
    from sae_lens import SAE

    ours = make(config, d=16, d_out=d_out, dtype=torch.float32)
    write_saelens((ours,), tmp_path / "out", WriteOptions())
    SAE.load_from_disk(tmp_path / "out").save_model(tmp_path / "again")
    back = _read(tmp_path / "again")
    before, after = weights_of(ours), weights_of(back)
    for field in ("encoder", "encoder_bias", "decoder", "decoder_bias", "skip", "threshold"):
        one, other = getattr(before, field), getattr(after, field)
        assert (one is None) == (other is None), field
        assert one is None or torch.equal(one, other), field
    assert (back.spec.reads, back.spec.writes) == (ours.spec.reads, ours.spec.writes)


def test_scales_that_differ_drop_the_subtraction(tmp_path, make, rows, close):
    """b / c is subtracted and b / c' added: no b_dec is both, so none is subtracted."""
    from sae_lens import SAE

    for name in ("topk", "gated"):
        ours = make(SAES[name])
        ours.out_scale.fill_(0.8)
        write_saelens((ours,), tmp_path / name, WriteOptions(dtype="float64"))
        theirs = SAE.load_from_disk(tmp_path / name)
        assert not theirs.cfg.apply_b_dec_to_input
        x = rows(ours)
        close(theirs.encode(x), dense_code(ours, x))
        close(theirs(x), ours(x))
        close(_read(tmp_path / name, dtype="float64")(x), ours(x))


def test_what_they_train_is_read(tmp_path, close):
    """A BatchTopK of theirs, saved for inference as jumprelu with their folds."""
    from sae_lens import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig

    config = BatchTopKTrainingSAEConfig(d_in=8, d_sae=32, k=4, dtype="float64")
    config.metadata.hook_name = "blocks.0.hook_resid_pre"
    trained = BatchTopKTrainingSAE(config)
    with torch.no_grad():
        trained.topk_threshold.fill_(0.3)
        trained.W_dec.mul_(torch.rand(32, 1) + 0.5)
    trained.save_inference_model(tmp_path)
    ours = _read(tmp_path, dtype="float64")
    assert ours.spec.reads == Site.parse("model.layers.0:in")
    x = torch.randn(24, 8, dtype=torch.float64)
    norm = trained.W_dec.norm(dim=1)
    pre = (x - trained.b_dec) @ trained.W_enc * norm
    code = pre * (pre > 0.3)
    close(dense_code(ours, x), code)
    close(ours(x), (code / norm) @ trained.W_dec + trained.b_dec)


# --- our own class -------------------------------------------------------------------------------


def _own() -> dict[str, tuple[CoderConfig, bool]]:
    small = {}
    for name, config in DICTIONARIES.items():
        router, atoms = config.router, config.atoms
        if router is not None:
            router = replace(router, experts=4, active=min(2, router.active))
        if isinstance(atoms, ExpanderAtomsConfig):
            atoms = replace(atoms, nonzeros=3, stored=name == "expander-switch")
        gate = config.with_k(4).gate
        one = replace(config, latents=32, gate=gate, router=router, atoms=atoms)
        small[name] = (one, False)
        if name != "pursuit":
            small[f"{name} transcoder"] = (replace(one, skip=name in ("topk", "scale")), True)
    annealed = TopKConfig(k=4, start_k=8)
    small["annealed"] = (CoderConfig(latents=32, gate=annealed), False)
    for mode in ("refit", "oneshot", "gomp", "omp"):
        config = replace(small["expander"][0], inference=mode, solver_sign="abs")
        small[mode] = (config, False)
    return small


OWN = _own()


@pytest.mark.parametrize("name", OWN)
def test_our_own_class_opens_everything(tmp_path, make, rows, close, name):
    from sae_lens import SAE

    register()
    config, transcoder = OWN[name]
    ours = make(config, d_out=11 if transcoder else None)
    write_saelens((ours,), tmp_path / "out", WriteOptions(own_class=True, dtype="float64"))
    theirs = SAE.load_from_disk(tmp_path / "out")
    assert theirs.cfg.architecture() == "pellucid"
    x = rows(ours)
    code = theirs.encode(x)
    close(code, dense_code(ours, x))
    close(theirs(x), ours(x))
    skipped = theirs.decode(code) + x @ _folded_skip(ours).T
    close(skipped, ours(x))
    close(code @ theirs.W_dec + theirs.b_dec, theirs.decode(code))
    three = x.view(4, 6, 8)
    close(theirs(three), ours(x).view(4, 6, -1))

    theirs.save_model(tmp_path / "again")
    back = _read(tmp_path / "again", dtype="float64")
    assert back.config == ours.config
    for key, tensor in ours.state_dict().items():
        if tensor.is_floating_point() or "index" in key:
            assert torch.equal(back.state_dict()[key], tensor), key
    assert SAE.load_from_disk(tmp_path / "out", dtype="float32")(x.float()).dtype == torch.float32


def _folded_skip(coder: Coder) -> Tensor:
    if coder.skip is None:
        return torch.zeros(coder.spec.d_out, coder.spec.d_in, dtype=coder.bias.dtype)
    return coder.skip * coder.in_scale / coder.out_scale


@pytest.mark.parametrize("name", ["topk", "scale", "expander", "pursuit"])
def test_our_own_class_takes_their_input_scale(tmp_path, make, rows, close, name):
    from sae_lens import SAE

    register()
    ours = make(OWN[name][0])
    write_saelens((ours,), tmp_path / "out", WriteOptions(own_class=True, dtype="float64"))
    theirs = SAE.load_from_disk(tmp_path / "out")
    x = rows(ours)
    theirs.fold_activation_norm_scaling_factor(0.25)
    close(theirs.encode(4 * x), dense_code(ours, x))
    close(theirs(4 * x), 4 * ours(x))


def test_our_own_class_refuses_what_would_change_copies(tmp_path, make):
    from sae_lens import SAE

    register()
    register()  # once more does no harm
    write_saelens((make(SAES["topk"]),), tmp_path / "out", WriteOptions(own_class=True))
    theirs = SAE.load_from_disk(tmp_path / "out")
    with pytest.raises(NotImplementedError):
        theirs.fold_W_dec_norm()
    with pytest.raises(NotImplementedError):
        theirs.fold_activation_whitening(torch.zeros(8), torch.eye(8), torch.eye(8))
    assert theirs.W_enc.shape == (8, 32)


# --- their loader and their hooks ----------------------------------------------------------------


def test_their_metadata_survive(tmp_path, make):
    from sae_lens import SAE

    model = {"kind": "huggingface", "name": "some/model", "weights": "abc"}
    options = WriteOptions(model=model, metadata={"context_size": 128})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write_saelens((make(SAES["topk"]),), tmp_path / "out", options)
        metadata = SAE.load_from_disk(tmp_path / "out").cfg.metadata
    assert metadata.model_name == "some/model"
    assert metadata.hook_name == metadata.hf_hook_name == "model.layers.1"
    assert metadata.context_size == 128
    (found,) = read_saelens(tmp_path / "out", ReadOptions())
    assert found.model == model


def test_without_a_version_they_would_drop_the_metadata(tmp_path, make):
    """Why ``sae_lens_version`` is always written."""
    from sae_lens import SAE

    write_saelens((make(SAES["topk"]),), tmp_path / "out", WriteOptions(model={"name": "m"}))
    config = json.loads((tmp_path / "out" / "cfg.json").read_text())
    del config["metadata"]["sae_lens_version"]
    (tmp_path / "out" / "cfg.json").write_text(json.dumps(config))
    assert SAE.load_from_disk(tmp_path / "out").cfg.metadata.model_name is None


def test_what_they_let_pass(tmp_path):
    """Why configs are validated here: theirs overlooks, or ends in a bare ``KeyError``."""
    from sae_lens import SAE

    sae = _theirs("standard", 8, 32, normalize_activations="expected_average_only_in")
    sae.save_model(tmp_path)
    # The factor is nowhere, and nothing says so; ours refuses.
    assert SAE.load_from_disk(tmp_path).cfg.normalize_activations == "expected_average_only_in"
    with pytest.raises(InteropError, match="give it with --input-scale"):
        _read(tmp_path)
    config = json.loads((tmp_path / "cfg.json").read_text()) | {"normalize_activations": "none"}
    del config["apply_b_dec_to_input"]
    text = json.dumps(config | {"apply_b_dec_to_inputs": False})
    (tmp_path / "cfg.json").write_text(text)
    assert SAE.load_from_disk(tmp_path).cfg.apply_b_dec_to_input
    with pytest.raises(InteropError, match="did you mean 'apply_b_dec_to_input'"):
        _read(tmp_path)
    (tmp_path / "cfg.json").write_text(json.dumps(config | {"architecture": "new"}))
    with pytest.raises(KeyError):
        SAE.load_from_disk(tmp_path)
    with pytest.raises(InteropError, match=r'expected one of standard, topk, .*, found "new"'):
        _read(tmp_path)


def test_their_hook_of_our_model_is_our_site(tmp_path, make):
    """The hook's name, taken up by SAELens in our exported model, gives the rows of our site."""
    from sae_lens import SAE
    from sae_lens.load_model import HookedProxyLM
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    from pellucid.models.config import TransformerConfig
    from pellucid.models.hf import HuggingFaceHost, PellucidConfig, PellucidForCausalLM
    from pellucid.pools.dense import DenseConfig

    config = TransformerConfig(
        width=8,
        layers=2,
        heads=2,
        kv_heads=2,
        head_dim=4,
        vocab_size=32,
        context=16,
        ffn=(DenseConfig(hidden=16),),
    )
    model = PellucidForCausalLM(PellucidConfig.of(config)).eval()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()))
    tokens = torch.randint(32, (2, 9))
    for site in ("blocks.1.ffn:out", "blocks.0:out"):
        ours = make(SAES["topk"], dtype=torch.float32)
        ours._spec = replace(ours.spec, reads=Site.parse(site), writes=Site.parse(site))
        path = tmp_path / site.replace(":", "_")
        write_saelens((ours,), path, WriteOptions())
        metadata = SAE.load_from_disk(path).cfg.metadata
        hooked = HookedProxyLM(model, tokenizer, hook_names=[metadata.hook_name])
        _, cache = hooked.run_with_cache(tokens)
        place = Site(module=metadata.hook_name, port="out")
        kept = HuggingFaceHost(model).run(tokens, keep=[place]).kept[place]
        assert torch.equal(cache[metadata.hook_name], kept)
