"""The decoder: its parts, its start, one tied MLP, and the model as a host."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import laws
from pellucid.core.errors import AddressError
from pellucid.core.host import Edit, Host, edit_units
from pellucid.core.unit import Code, Site
from pellucid.models.config import TransformerConfig
from pellucid.models.transformer import Transformer, document_mask, positions
from pellucid.pools import POOLS, PoolConfig
from pellucid.pools.hierarchy import HierarchyConfig
from pellucid.pools.shared import TiedMLP

VOCAB, SEQ = 23, 12
HIERARCHY = HierarchyConfig.tiny()
CONFIG = TransformerConfig(
    width=8,
    layers=2,
    heads=4,
    kv_heads=2,
    head_dim=2,
    vocab_size=VOCAB,
    context=SEQ,
    ffn=(POOLS[0].tiny(),),
    tied_mlp_width=3,
)


def _model(*slots: PoolConfig, **change: object) -> Transformer:
    """A float64 decoder off its initial values, in evaluation mode."""
    layers = max(len(slots), 2)
    config = replace(CONFIG, ffn=slots or CONFIG.ffn, layers=layers, **change)
    model = Transformer(config).double().eval()
    laws.perturb(model)
    return model


def _tokens(rows: int = 2, seq: int = SEQ) -> Tensor:
    return torch.randint(VOCAB, (rows, seq))


def test_the_document_mask_by_hand():
    mask = document_mask(torch.tensor([[0, 0, 1]]))
    assert mask.tolist() == [[[True, False, False], [True, True, False], [False, False, True]]]


def test_positions_by_hand():
    assert positions(torch.zeros(2, 3, dtype=torch.long)).tolist() == [[0, 1, 2], [0, 1, 2]]
    assert positions(torch.zeros(1, 2, dtype=torch.long), start=5).tolist() == [[5, 6]]


def test_parts_are_averaged_over_the_layers():
    model, tokens = _model(HIERARCHY, POOLS[0].tiny(), HIERARCHY).train(), _tokens()
    _, parts = model.forward_with_parts(tokens)
    pools = [model.layers()[layer].ffn for layer in (0, 2)]
    kept = model.run(tokens, keep=[pool.spec.reads for pool in pools]).kept
    own = [pool.forward_with_parts(kept[pool.spec.reads])[1] for pool in pools]
    assert set(parts) == {"balance", "router_z"}
    for name, part in parts.items():
        # Two of the three layers have a router.
        torch.testing.assert_close(part, (own[0][name] + own[1][name]) / 3)


def _mixed() -> Transformer:
    return _model(
        *(cls.tiny() for cls in POOLS),
        replace(HIERARCHY, shared="sink_unit", pool_scaling=True),
        replace(HIERARCHY, shared="tied_mlp", select="jumprelu", jump_threshold=0.1),
        replace(HIERARCHY, shared="tied_mlp"),
        tied_embeddings=False,
    )


def test_gradient_reaches_every_parameter_of_mixed_slots():
    model, tokens = _mixed().train(), _tokens(8)
    logits, parts = model.forward_with_parts(tokens)
    loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    (loss + sum(parts.values(), torch.zeros(()))).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert (parameter.grad != 0).any(), name


def test_each_layer_has_the_slot_it_was_given():
    model = _mixed()
    names = [f"blocks.{layer}.ffn" for layer in range(len(POOLS) + 3)]
    expected = [*names[: len(POOLS) + 1], f"{names[len(POOLS)]}.sink", *names[len(POOLS) + 1 :]]
    assert list(model.pools()) == expected
    for layer, cls in enumerate(POOLS):
        built = cls.tiny().build(name="x", width=8, output_rms=1.0)
        assert type(model.layers()[layer].ffn) is type(built)


def test_the_tied_mlp_is_registered_once_and_used_by_every_layer_that_asks():
    slot = replace(HIERARCHY, shared="tied_mlp")
    model, tokens = _model(slot, POOLS[0].tiny(), slot), _tokens()
    held = [name for name in model.state_dict() if "tied" in name]
    assert held == ["tied_mlp.up", "tied_mlp.down"]
    assert sum(isinstance(module, TiedMLP) for module in model.modules()) == 1
    assert model.tied_mlp is not None
    calls: list[int] = []
    handle = model.tied_mlp.register_forward_hook(lambda *_: calls.append(1))
    model(tokens)
    handle.remove()
    assert len(calls) == 2


def test_without_a_tied_slot_there_is_no_tied_mlp():
    assert _model(HIERARCHY).tied_mlp is None


def test_tied_embeddings_are_one_matrix():
    tied, untied = _model(tied_embeddings=True), _model(tied_embeddings=False)
    assert tied.unembed.weight is tied.embed.weight
    assert untied.unembed.weight is not untied.embed.weight
    count = [sum(p.numel() for p in model.parameters()) for model in (tied, untied)]
    assert count[1] - count[0] == VOCAB * 8


def test_weights_start_as_documented():
    config = replace(CONFIG, width=256, layers=8, heads=4, kv_heads=4, head_dim=64, vocab_size=2048)
    model = Transformer(config)
    for block in model.layers():
        for linear in (block.attn.query, block.attn.key, block.attn.value):
            # 65,536 entries: the sample's deviation is good to .3 per cent; five of them.
            assert linear.weight.std().item() == pytest.approx(0.02, rel=0.015)
        assert block.attn.out.weight.std().item() == pytest.approx(0.005, rel=0.015)
        # .25 / √(2 · 8) = .0625 on Gaussian rows, other rows than those calibrated on.
        y = block.ffn(torch.randn(4096, 256))
        assert y.square().mean().sqrt().item() == pytest.approx(0.0625, rel=0.05)
    # 1 / √256
    assert model.embed.weight.std().item() == pytest.approx(0.0625, rel=0.015)
    assert (model.norm.gain == 1).all()


def test_equal_seeds_give_equal_models():
    torch.manual_seed(5)
    first = Transformer(replace(CONFIG, ffn=(HIERARCHY,)))
    torch.manual_seed(5)
    second = Transformer(replace(CONFIG, ffn=(HIERARCHY,)))
    for (name, ours), (other, theirs) in zip(
        first.state_dict().items(), second.state_dict().items()
    ):
        assert name == other
        assert torch.equal(ours, theirs)


def test_a_model_builds_on_the_meta_device():
    slots = (*(cls.tiny() for cls in POOLS), replace(HIERARCHY, shared="tied_mlp"))
    config = replace(CONFIG, ffn=slots, layers=len(slots))
    with torch.device("meta"):
        model = Transformer(config)
    assert all(p.is_meta for p in model.parameters())
    real = Transformer(config)
    assert {n: p.shape for n, p in model.named_parameters()} == {
        n: p.shape for n, p in real.named_parameters()
    }


def test_unit_tables_are_those_of_all_pools():
    model = _mixed()
    tables = model.unit_tables()
    assert len({id(t) for t in tables}) == len(tables)
    expected = {id(t) for pool in model.pools().values() for t in pool.unit_tables()}
    assert {id(t) for t in tables} == expected
    assert not {id(p) for block in model.layers() for p in block.attn.parameters()} & expected


def test_a_step_reaches_every_pool():
    model = _model(replace(HIERARCHY, balance="bias", bias_rate=0.5)).train()
    biases = [getattr(pool, "router_bias") for pool in model.pools().values()]  # noqa: B009
    before = [bias.clone() for bias in biases]
    model(_tokens())
    model.after_step()
    assert len(biases) == 2
    assert not any(torch.equal(a, b) for a, b in zip(before, biases))


def test_the_unembedding_has_the_norms_gain_folded_in():
    model = _model(tied_embeddings=False)
    row = torch.randn(8, dtype=torch.float64)
    row = row / row.square().mean().sqrt()  # already normed, so the norm applies its gain alone
    # The norm's ε of 1e-6 is half of that in the logits.
    torch.testing.assert_close(
        model.unembedding() @ row, model.unembed(model.norm(row)), atol=1e-5, rtol=1e-5
    )
    assert not model.unembedding().requires_grad


def test_the_model_is_a_host():
    model, tokens = _model(), _tokens()
    assert isinstance(model, Host)
    assert torch.equal(model.run(tokens).logits, model(tokens))
    assert model.run(tokens).kept == {}


@pytest.mark.parametrize(
    ("site", "width"),
    [
        ("blocks.1.ffn:in", 8),
        ("blocks.0:out", 8),
        ("blocks.0.attn.query:out", 8),
        ("blocks.0.attn.key:out", 4),
        ("unembed:out", VOCAB),
    ],
)
def test_widths_of_sites(site, width):
    model = _model()
    assert model.width(Site.parse(site)) == width


def test_asking_for_a_width_leaves_a_training_model_as_it_was():
    model = _model(replace(HIERARCHY, select="batchtopk", balance="bias")).train()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    model.layers()[1].eval()
    assert model.width(Site.parse("blocks.0.ffn:in")) == 8
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())
    assert [model.training, *(block.training for block in model.layers())] == [True, True, False]


def test_what_a_pool_leaves_is_its_rest_and_its_units():
    model, tokens = _mixed(), _tokens()
    pools = [block.ffn for block in model.layers()]
    sites = [s for pool in pools for s in (pool.spec.reads, pool.spec.writes)]
    kept = model.run(tokens, keep=sites).kept
    for pool in pools:
        x = kept[pool.spec.reads]
        expected = pool.rest(x) + pool.decode(pool.activate(x))
        torch.testing.assert_close(kept[pool.spec.writes], expected, atol=1e-10, rtol=0)


def test_the_residual_stream_is_the_sum_of_its_parts():
    model, tokens = _model(HIERARCHY), _tokens()
    names = ("blocks.0:in", "blocks.0.attn:out", "blocks.0.ffn:out", "blocks.0:out", "blocks.1:in")
    sites = [Site.parse(name) for name in names]
    kept = model.run(tokens, keep=sites).kept
    start, attn, ffn, end, following = (kept[site] for site in sites)
    torch.testing.assert_close(start + attn + ffn, end, atol=1e-12, rtol=0)
    assert torch.equal(end, following)
    assert torch.equal(start, model.embed(tokens))


@pytest.mark.parametrize("name", ["dense", "pools", "peer", "topk-mlp", "pooled-peer", "swiglu"])
def test_ablating_units_is_setting_their_writes_to_zero(name):
    slot = next(cls.tiny() for cls in POOLS if cls.tiny().kind == name)
    model, tokens = _model(slot), _tokens()
    pool = model.layers()[0].ffn
    unit = torch.tensor([0, 3, 5])
    edited = model.run(tokens, edits=[edit_units(pool, laws.silence, unit=unit)]).logits
    assert not torch.equal(edited, model(tokens))
    with torch.no_grad():
        pool.write_tables()[0][unit] = 0.0
    torch.testing.assert_close(edited, model(tokens), atol=1e-10, rtol=0)


def test_ablation_in_two_layers_sees_the_first_from_the_second():
    model, tokens = _model(HIERARCHY), _tokens()
    every = torch.arange(35)
    edits = [edit_units(block.ffn, laws.silence, unit=every) for block in model.layers()]
    edited = model.run(tokens, edits=edits).logits
    with torch.no_grad():
        for block in model.layers():
            block.ffn.write_tables()[0].zero_()
    torch.testing.assert_close(edited, model(tokens), atol=1e-10, rtol=0)


def test_the_sink_unit_can_be_ablated_by_its_own_name():
    model, tokens = _model(replace(HIERARCHY, shared="sink_unit")), _tokens()
    sink = model.pools()["blocks.0.ffn.sink"]
    edited = model.run(tokens, edits=[edit_units(sink, laws.silence)]).logits
    assert not torch.equal(edited, model(tokens))
    with torch.no_grad():
        sink.write_tables()[0].zero_()
    torch.testing.assert_close(edited, model(tokens), atol=1e-10, rtol=0)


def test_steering_adds_along_the_write_row():
    model, tokens = _model(HIERARCHY), _tokens()
    pool = model.layers()[1].ffn

    def steer(code: Code) -> Code:
        return Code(code.unit, torch.ones_like(code.gate), torch.full_like(code.act, 7.0))

    unit = torch.tensor([4])
    sites = [pool.spec.reads, Site.parse("blocks.1:out")]
    before = model.run(tokens, keep=sites).kept
    after = model.run(tokens, edits=[edit_units(pool, steer, unit=unit)], keep=sites).kept
    was = pool.activate(before[sites[0]], unit=unit).value
    expected = before[sites[1]] + (7.0 - was) * pool.write(unit)
    torch.testing.assert_close(after[sites[1]], expected, atol=1e-10, rtol=0)


def test_a_run_leaves_no_hook_behind():
    model, tokens = _model(), _tokens()
    before = model(tokens)
    zero = Edit(
        reads=Site.parse("blocks.0:out"),
        writes=Site.parse("blocks.0:out"),
        apply=lambda _, y: torch.zeros_like(y),
    )
    assert not torch.equal(model.run(tokens, edits=[zero]).logits, before)
    assert torch.equal(model(tokens), before)
    with pytest.raises(AddressError, match=r"the model has no module 'blocks\.2'"):
        model.run(tokens, keep=[Site.parse("blocks.0:out"), Site.parse("blocks.2:out")])
    assert not any(module._forward_hooks for module in model.modules())
    assert not any(module._forward_pre_hooks for module in model.modules())
