"""Our decoder as a model of transformers: loading, caching, padding, loss, embeddings, edits."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    DynamicCache,
    PreTrainedModel,
    StaticCache,
)

from pellucid.core.errors import CheckpointError
from pellucid.core.host import edit_units
from pellucid.core.unit import Code, Site
from pellucid.models import hf
from pellucid.models.config import TransformerConfig
from pellucid.models.transformer import Transformer
from pellucid.pools import POOLS, PoolConfig
from pellucid.pools.dense import DenseConfig
from pellucid.pools.hierarchy import HierarchyConfig
from pellucid.pools.monet_hd import MonetHDConfig
from pellucid.pools.peer import PeerConfig
from pellucid.pools.pooled_peer import PooledPeerConfig

VOCAB = 32


def shape(*ffn: PoolConfig, **changes) -> TransformerConfig:
    base = TransformerConfig(
        width=16,
        layers=2,
        heads=4,
        kv_heads=2,
        head_dim=4,
        vocab_size=VOCAB,
        context=24,
        tied_mlp_width=5,
        ffn=ffn or (HierarchyConfig.tiny(),),
    )
    return replace(base, **changes)


VARIANTS = {kind.tiny().kind: shape(kind.tiny()) for kind in POOLS} | {
    "sink": shape(replace(HierarchyConfig.tiny(), shared="sink_unit")),
    "tied-mlp": shape(replace(HierarchyConfig.tiny(), shared="tied_mlp")),
    "jumprelu": shape(replace(HierarchyConfig.tiny(), select="jumprelu", pool_scaling=True)),
    "batchtopk": shape(replace(HierarchyConfig.tiny(), select="batchtopk", balance="bias")),
    "frozen": shape(replace(HierarchyConfig.tiny(), frozen_router=True)),
    "mixed": shape(DenseConfig.tiny(), HierarchyConfig.tiny()),
    "untied": shape(tied_embeddings=False),
    "plain-attention": shape(qk_norm=False, kv_heads=4),
    "peer-batch": shape(replace(PeerConfig.tiny(), norm="batch")),
    "pooled-peer-batch": shape(replace(PooledPeerConfig.tiny(), norm="batch")),
    "monet-batch": shape(replace(MonetHDConfig.tiny(), router="batch")),
}


def trained(config: TransformerConfig) -> Transformer:
    """A model in which nothing, buffers included, still has the value it was built with."""
    model = Transformer(config).eval()
    state = model.state_dict()
    for tensor in state.values():
        if tensor.is_floating_point():
            tensor += 0.05 * torch.rand_like(tensor)
        else:
            tensor += 7
    return model


def exported(config: TransformerConfig, folder: Path) -> tuple[Transformer, PreTrainedModel]:
    ours = trained(config)
    hf.export_pretrained(ours, folder, tokens_end=0)
    return ours, aligned(AutoModelForCausalLM.from_pretrained(folder))


def aligned(model: PreTrainedModel) -> PreTrainedModel:
    """transformers maps a file's tensors wherever they lie in it, but matrix products promise equal
    bits only at equal alignment; torch allocates at multiples of 64 bytes."""
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    return model


def tokens(batch: int, seq: int) -> torch.Tensor:
    # 0 is the padding token of ``exported``.
    return torch.randint(1, VOCAB, (batch, seq))


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS.keys())
def test_exported_model_gives_bit_equal_logits(config, tmp_path):
    ours, theirs = exported(config, tmp_path)
    x = tokens(3, 11)
    assert type(theirs) is hf.PellucidForCausalLM
    assert not theirs.training
    assert torch.equal(theirs(x).logits, ours(x))


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS.keys())
def test_every_tensor_arrives_and_counters_are_zero(config, tmp_path):
    """conftest fills fresh memory with NaN, so a counter left unwritten by transformers shows."""
    ours, theirs = exported(config, tmp_path)
    mine = dict(ours.named_parameters()) | dict(ours.named_buffers())
    found = dict(theirs.named_parameters()) | dict(theirs.named_buffers())
    assert {hf_name(name) for name in mine} == set(found)
    for name, tensor in mine.items():
        assert torch.equal(found[hf_name(name)], tensor), name


def hf_name(name: str) -> str:
    """The renaming written out a second time, from the table in transformers' Llama."""
    for ours, theirs in {
        "blocks.": "model.layers.",
        ".attn_norm.": ".input_layernorm.",
        ".attn.": ".self_attn.",
        ".ffn_norm.": ".post_attention_layernorm.",
        ".ffn.": ".mlp.",
    }.items():
        name = name.replace(ours, theirs)
    tops = {"embed": "model.embed_tokens", "tied_mlp": "model.tied_mlp", "norm": "model.norm"}
    tops["unembed"] = "lm_head"
    top, _, rest = name.partition(".")
    return f"{tops[top]}.{rest}" if top in tops else name


def test_the_trunk_alone_loads_as_auto_model(tmp_path):
    ours, whole = exported(shape(), tmp_path)
    trunk = aligned(AutoModel.from_pretrained(tmp_path))
    x = tokens(2, 7)
    assert type(trunk) is hf.PellucidModel
    assert torch.equal(ours.unembed(trunk(x).last_hidden_state), whole(x).logits)
    assert trunk.layers[1].mlp.spec.name == "layers.1.mlp"


@pytest.mark.parametrize("kind", POOLS, ids=lambda kind: kind.tiny().kind)
def test_saved_by_transformers_it_loads_again_on_both_sides(kind, tmp_path):
    ours, theirs = exported(shape(kind.tiny()), tmp_path / "a")
    theirs.save_pretrained(tmp_path / "b")
    again = aligned(AutoModelForCausalLM.from_pretrained(tmp_path / "b"))
    x = tokens(2, 9)
    assert torch.equal(again(x).logits, ours(x))
    assert torch.equal(hf.load_transformer(tmp_path / "b")(x), ours(x))


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("pools", torch.float64),
        *((name, dtype) for name in VARIANTS for dtype in (torch.bfloat16, torch.float16)),
    ],
    ids=str,
)
def test_dtype_is_kept_or_asked_for(name, dtype, tmp_path):
    ours = trained(VARIANTS[name]).to(dtype)
    hf.export_pretrained(ours, tmp_path, tokens_end=None)
    x = tokens(2, 5)
    kept = aligned(AutoModelForCausalLM.from_pretrained(tmp_path))
    assert kept.dtype == dtype
    assert torch.equal(kept(x).logits, ours(x))
    asked = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert asked.dtype == torch.float32
    assert asked(x).logits.isfinite().all()


def test_registering_twice_is_harmless():
    hf.register()
    hf.register()
    assert AutoConfig.for_model("pellucid").model_type == "pellucid"


def test_it_prints(tmp_path):
    _, theirs = exported(shape(), tmp_path)
    text = repr(theirs)
    assert "PellucidForCausalLM" in text
    assert "(mlp): Hierarchy" in text


def test_module_paths_are_where_other_tools_look(tmp_path):
    _, theirs = exported(VARIANTS["tied-mlp"], tmp_path)
    modules = dict(theirs.named_modules())
    for part in ("self_attn", "input_layernorm", "post_attention_layernorm", "mlp"):
        assert f"model.layers.1.{part}" in modules
    assert {"model.embed_tokens", "model.norm", "lm_head"} <= set(modules)
    lists = [m for m in theirs.modules() if isinstance(m, nn.ModuleList) and len(m) == 2]
    assert len(lists) == 1, "tools find the blocks as the only list of num_hidden_layers modules"


# Generation and caches ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", POOLS, ids=lambda kind: kind.tiny().kind)
def test_cached_steps_give_the_full_forward_logits(kind, tmp_path):
    _, theirs = exported(shape(kind.tiny()), tmp_path)
    x = tokens(2, 12)
    cache = DynamicCache()
    prefill = theirs(x[:, :5], past_key_values=cache, use_cache=True).logits
    chunk = theirs(x[:, 5:8], past_key_values=cache, use_cache=True).logits
    steps = [theirs(x[:, t : t + 1], past_key_values=cache).logits for t in range(8, 12)]
    assert cache.get_seq_length() == 12
    # float32: matrix products of other shapes round differently, by less than 1e-5 at logits of 1.
    torch.testing.assert_close(
        torch.cat((prefill, chunk, *steps), 1), theirs(x).logits, atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("kind", POOLS, ids=lambda kind: kind.tiny().kind)
def test_greedy_generation_follows_the_full_forward(kind, tmp_path):
    _, theirs = exported(shape(kind.tiny()), tmp_path)
    x = tokens(2, 6)
    out = theirs.generate(
        x,
        attention_mask=torch.ones_like(x),
        max_new_tokens=8,
        min_new_tokens=8,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
    )
    full = theirs(out.sequences).logits[:, 5:-1]
    # As above: only rounding differs.
    torch.testing.assert_close(torch.stack(out.logits, 1), full, atol=1e-5, rtol=0)
    full[..., 0] = -torch.inf  # min_new_tokens keeps the end away
    assert torch.equal(out.sequences[:, 6:], full.argmax(-1))


def test_generation_stops_at_the_end_token(tmp_path):
    ours = trained(shape())
    x = tokens(1, 4)
    end = int(ours(x)[0, -1].argmax())
    hf.export_pretrained(ours, tmp_path, tokens_end=end)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path)
    out = theirs.generate(x, attention_mask=torch.ones_like(x), max_new_tokens=5, do_sample=False)
    assert out.tolist() == [[*x[0].tolist(), end]]


@pytest.mark.parametrize("sizes", [(9, 4), (1, 5)])
def test_left_padding_changes_nothing(sizes, tmp_path):
    _, theirs = exported(shape(), tmp_path)
    long, short = (tokens(1, size) for size in sizes)
    width = max(sizes)
    rows = [F.pad(row, (width - row.shape[1], 0)) for row in (long, short)]
    masks = [F.pad(torch.ones_like(row), (width - row.shape[1], 0)) for row in (long, short)]
    batch, mask = torch.cat(rows), torch.cat(masks)
    logits = theirs(batch, attention_mask=mask).logits
    assert logits.isfinite().all()
    made = theirs.generate(batch, attention_mask=mask, max_new_tokens=5, do_sample=False)
    for i, row in enumerate((long, short)):
        # float32: the masked product and the causal kernel add in another order.
        alone = theirs(row).logits[0]
        torch.testing.assert_close(logits[i, -row.shape[1] :], alone, atol=1e-5, rtol=0)
        wanted = theirs.generate(
            row, attention_mask=torch.ones_like(row), max_new_tokens=5, do_sample=False
        )[0, row.shape[1] :]
        found = made[i, width:]
        assert found[: len(wanted)].tolist() == wanted.tolist()


def test_padding_reaches_cached_steps(tmp_path):
    """The second step sees one padded and one whole row: positions and masks must both shift."""
    _, theirs = exported(shape(), tmp_path)
    x = tokens(1, 6)
    padded = F.pad(x, (3, 0))
    mask = F.pad(torch.ones_like(x), (3, 0))
    cache = DynamicCache()
    theirs(padded[:, :-1], attention_mask=mask[:, :-1], past_key_values=cache, use_cache=True)
    last = theirs(padded[:, -1:], attention_mask=mask, past_key_values=cache).logits
    # As above: only rounding differs.
    torch.testing.assert_close(last, theirs(x).logits[:, -1:], atol=1e-5, rtol=0)


def test_static_cache_generates_the_same(tmp_path):
    _, theirs = exported(shape(), tmp_path)
    x = tokens(2, 5)
    mask = torch.ones_like(x)
    mask[0, :2] = 0
    options = {"attention_mask": mask, "max_new_tokens": 6, "do_sample": False}
    cache = StaticCache(config=theirs.config, max_cache_len=16)
    fixed = theirs.generate(x, past_key_values=cache, **options)
    assert torch.equal(fixed, theirs.generate(x, **options))


def test_static_cache_gives_the_logits_of_whole_passes(tmp_path):
    """transformers makes masks of truth values for sdpa, and of floats to be added for eager."""
    exported(shape(), tmp_path)
    x = tokens(2, 5)
    mask = torch.ones_like(x)
    mask[0, :2] = 0
    found = []
    for attention in ("sdpa", "eager"):
        theirs = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation=attention)
        out = aligned(theirs).generate(
            x,
            attention_mask=mask,
            cache_implementation="static",
            max_new_tokens=6,
            min_new_tokens=6,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
        found.append(torch.stack(out.logits, 1))
        whole = theirs(out.sequences, attention_mask=F.pad(mask, (0, 6), value=1)).logits
        # float32: other shapes round differently, by less than 1e-5 at logits of 1.
        torch.testing.assert_close(found[-1], whole[:, 4:-1], atol=1e-5, rtol=0)
    assert torch.equal(*found)


@pytest.mark.parametrize("padded", [False, True])
def test_a_static_cache_needs_no_ready_mask(padded, tmp_path):
    _, theirs = exported(shape(), tmp_path)
    x = tokens(2, 9)
    mask = torch.ones_like(x)
    if padded:
        mask[0, :3] = 0
    cache = StaticCache(config=theirs.config, max_cache_len=16)
    parts = []
    for start, end in ((0, 4), (4, 7), (7, 8), (8, 9)):
        seen = {"attention_mask": mask[:, :end]} if padded else {}
        parts.append(theirs(x[:, start:end], past_key_values=cache, **seen).logits)
    whole = theirs(x, attention_mask=mask).logits
    # As above: only rounding differs. What padding itself says is nobody's concern.
    kept = mask.bool()
    torch.testing.assert_close(torch.cat(parts, 1)[kept], whole[kept], atol=1e-5, rtol=0)
    # The first part alone is the plain pass, to the bit.
    assert padded or torch.equal(parts[0], theirs(x[:, :4]).logits)


@pytest.mark.parametrize("kind", ["bool", "int", "float"])
def test_a_ready_mask_means_the_same_in_every_type(kind, tmp_path):
    _, theirs = exported(shape(), tmp_path)
    x = tokens(2, 6)
    seen = torch.ones(6, 6, dtype=torch.bool).tril()
    seen[:, 1] = False  # token 1 is hidden from all, so it sees nothing of itself
    seen[1, 0] = False
    ready = seen.expand(2, 1, 6, 6)
    given = {
        "bool": ready,
        "int": ready.long(),
        "float": torch.zeros(2, 1, 6, 6).masked_fill(~ready, torch.finfo(torch.float32).min),
    }[kind]
    logits = theirs(x, attention_mask=given).logits
    assert logits.isfinite().all()
    assert torch.equal(logits, theirs(x, attention_mask=ready).logits)
    other = x.clone()
    other[:, 1] = (other[:, 1] + 1) % VOCAB
    moved = theirs(other, attention_mask=given).logits
    assert torch.equal(moved[:, [0, 2, 3, 4, 5]], logits[:, [0, 2, 3, 4, 5]])
    assert not torch.equal(moved[:, 1], logits[:, 1])


def test_nothing_is_cached_unless_asked(tmp_path):
    _, theirs = exported(shape(), tmp_path)
    x = tokens(1, 3)
    assert theirs(x).past_key_values is None
    assert theirs(x, use_cache=True).past_key_values.get_seq_length() == 3


# What forward takes and gives --------------------------------------------------------------------


def test_labels_give_the_shifted_mean_cross_entropy(tmp_path):
    ours, theirs = exported(shape(), tmp_path)
    x = tokens(2, 6)
    labels = x.clone()
    labels[0, :3] = -100
    log_p = ours(x).log_softmax(-1)
    # Position t predicts token t + 1; row 0 keeps tokens 3, 4, 5 and row 1 tokens 1 to 5.
    kept = [(0, t) for t in (2, 3, 4)] + [(1, t) for t in range(5)]
    manual = -sum(log_p[b, t, x[b, t + 1]] for b, t in kept) / len(kept)
    # float32 sums of eight terms near 3.
    torch.testing.assert_close(theirs(x, labels=labels).loss, manual, atol=1e-6, rtol=0)
    summed = theirs(x, labels=labels, num_items_in_batch=4).loss
    torch.testing.assert_close(summed, manual * len(kept) / 4, atol=1e-6, rtol=0)


def test_embeddings_in_place_of_ids(tmp_path):
    _, theirs = exported(shape(), tmp_path)
    x = tokens(2, 5)
    embedded = theirs.get_input_embeddings()(x)
    assert torch.equal(theirs(inputs_embeds=embedded).logits, theirs(x).logits)
    for wrong in ({}, {"input_ids": x, "inputs_embeds": embedded}):
        with pytest.raises(ValueError, match="exactly one"):
            theirs(**wrong)


def test_position_ids_shift_nothing_but_rotation(tmp_path):
    """Rotary scores depend on distances only: moving all positions leaves the logits alone."""
    _, theirs = exported(shape(), tmp_path)
    x = tokens(2, 5)
    moved = theirs(x, position_ids=torch.arange(100, 105)[None]).logits
    # float32 angles of 100 carry rounding of about 1e-5.
    torch.testing.assert_close(moved, theirs(x).logits, atol=1e-4, rtol=0)
    spread = theirs(x, position_ids=torch.arange(0, 50, 10)[None]).logits
    assert not torch.allclose(spread, theirs(x).logits, atol=1e-4)


def test_hidden_states_tuples_and_last_logits(tmp_path):
    ours, theirs = exported(shape(), tmp_path)
    x = tokens(2, 5)
    sites = [Site.parse(name) for name in ("embed:out", "blocks.0:out", "norm:out")]
    kept = ours.run(x, keep=sites).kept
    states = theirs(x, output_hidden_states=True).hidden_states
    assert theirs(x).hidden_states is None
    for site, state in zip(sites, states, strict=True):
        assert torch.equal(state, kept[site])
    (logits,) = theirs(x, return_dict=False)
    assert torch.equal(logits, ours(x))
    # float32: one row's product may round differently from five rows'.
    torch.testing.assert_close(
        theirs(x, logits_to_keep=1).logits, logits[:, -1:], atol=1e-6, rtol=0
    )


def test_input_and_output_embeddings_are_tied(tmp_path):
    _, theirs = exported(shape(), tmp_path)
    assert theirs.get_input_embeddings() is theirs.model.embed_tokens
    assert theirs.get_output_embeddings() is theirs.lm_head
    assert theirs.lm_head.weight is theirs.model.embed_tokens.weight
    new = nn.Embedding(VOCAB, 16)
    theirs.set_input_embeddings(new)
    assert theirs.model.embed_tokens is new
    head = nn.Linear(16, VOCAB, bias=False)
    theirs.set_output_embeddings(head)
    assert theirs.lm_head is head


def test_untied_embeddings_stay_apart(tmp_path):
    _, theirs = exported(VARIANTS["untied"], tmp_path)
    assert theirs.lm_head.weight is not theirs.model.embed_tokens.weight
    assert not torch.equal(theirs.lm_head.weight, theirs.model.embed_tokens.weight)


@pytest.mark.parametrize("name", ["pools", "untied"])
def test_a_resized_vocabulary_survives_saving(name, tmp_path):
    _, theirs = exported(VARIANTS[name], tmp_path / "a")
    theirs.resize_token_embeddings(VOCAB + 3)
    assert theirs.lm_head.weight.isfinite().all()
    theirs.save_pretrained(tmp_path / "b")
    x = tokens(1, 4)
    ours = hf.load_transformer(tmp_path / "b")
    assert ours.config.vocab_size == VOCAB + 3
    assert torch.equal(ours(x), theirs(x).logits)


def test_a_loaded_model_can_be_trained(tmp_path):
    """Counting loads must start from zero, not from whatever memory held."""
    _, theirs = exported(VARIANTS["batchtopk"], tmp_path)
    x = tokens(2, 8)
    theirs.train()(x, labels=x).loss.backward()
    pool = theirs.model.layers[0].mlp
    # 2 · 8 tokens open 3 pools each.
    assert pool.pool_load.sum() == 2 * 8 * 3
    assert pool.reads.grad.isfinite().all()
    assert theirs.model.embed_tokens.weight.grad.abs().sum() > 0


# New models and incomplete files -----------------------------------------------------------------


@pytest.mark.parametrize("tied", [True, False])
def test_a_new_model_starts_like_ours(tied):
    config = shape(width=64, head_dim=16, kv_heads=4, vocab_size=512, tied_embeddings=tied)
    ours = Transformer(config)
    theirs = AutoModelForCausalLM.from_config(hf.PellucidConfig.of(config))
    found = dict(theirs.named_parameters())
    for name, mine in ours.named_parameters():
        twin = found.pop(hf_name(name))
        assert twin.shape == mine.shape, name
        if mine.std() == 0:
            assert torch.equal(twin, mine), name
            continue
        # The ratio of two deviations of n draws has a standard error of 1 / √n: five of them, and
        # one in 20 for what calibration makes of other reads and other rows.
        close = 5 / mine.numel() ** 0.5 + 0.05
        assert (twin.std() / mine.std()).item() == pytest.approx(1, rel=close), name
    assert not found
    assert (theirs.lm_head.weight is theirs.model.embed_tokens.weight) == tied
    # calibrate: Gaussian rows leave with RMS 0.25 / √(2 · 2 layers) = 0.125, here within 5 % on
    # other rows than it drew.
    rms = theirs.model.layers[0].mlp(torch.randn(4096, 64)).square().mean().sqrt()
    assert abs(rms - 0.125) < 0.05 * 0.125


@pytest.mark.parametrize(
    ("kind", "missing"),
    [
        ("pools", "model.layers.1.mlp.router_bias"),
        ("monet-hd", "model.layers.0.mlp.router.weight"),
        ("tied-mlp", "model.tied_mlp.up"),
    ],
)
def test_a_missing_pool_tensor_is_refused_in_one_line(kind, missing, tmp_path):
    exported(VARIANTS[kind], tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    del state[missing]
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=missing.removeprefix("model.")) as caught:
        AutoModelForCausalLM.from_pretrained(tmp_path)
    assert "\n" not in str(caught.value)


# Units -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", POOLS, ids=lambda kind: kind.tiny().kind)
def test_sites_and_edits_mean_the_same_in_both(kind, tmp_path):
    ours, theirs = exported(shape(kind.tiny()), tmp_path)
    host = hf.HuggingFaceHost(theirs)
    x = tokens(2, 6)
    here, there = Site.parse("blocks.0.ffn:in"), Site.parse("model.layers.0.mlp:in")
    assert torch.equal(ours.run(x, keep=[here]).kept[here], host.run(x, keep=[there]).kept[there])
    assert host.width(there) == 16

    def silence(code: Code) -> Code:
        return Code(code.unit, 0 * code.gate, code.act)

    unit = torch.tensor([0, 3])
    pools = ours.pools()["blocks.0.ffn"], theirs.model.layers[0].mlp
    edited = [
        run(x, edits=[edit_units(pool, silence, unit=unit)]).logits
        for run, pool in zip((ours.run, host.run), pools, strict=True)
    ]
    assert torch.equal(*edited)
