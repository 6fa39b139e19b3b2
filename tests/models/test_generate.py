"""Sampling, the context window, and edits spelled by the user."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pellucid.core.errors import AddressError, ConfigError, DataError, PellucidError
from pellucid.core.host import Edit
from pellucid.core.unit import Site
from pellucid.models.config import TransformerConfig
from pellucid.models.generate import _sample, generate, parse_ablation, parse_scale
from pellucid.models.transformer import Transformer
from pellucid.pools import POOLS, PoolConfig
from pellucid.pools.hierarchy import HierarchyConfig

VOCAB, CONTEXT = 32, 10
GREEDY = {"temperature": 0.0, "top_k": None, "seed": 0, "end": None}
WARM = {"temperature": 1.5, "top_k": None, "seed": 0, "end": None}


def model(ffn: PoolConfig | None = None) -> Transformer:
    """float64, so that cached and full passes agree far below any gap between two logits.

    Larger embeddings than a new model's spread the next-token distribution.
    """
    config = TransformerConfig(
        width=16,
        layers=2,
        heads=4,
        kv_heads=2,
        head_dim=4,
        vocab_size=VOCAB,
        context=CONTEXT,
        ffn=(ffn or HierarchyConfig(pools=5, slots=7, open_pools=3, k=4),),
    )
    built = Transformer(config).double().eval()
    with torch.no_grad():
        built.embed.weight.mul_(1.6)
        for pool in built.pools().values():
            for table in pool.write_tables():
                table.mul_(4)
    return built


def by_hand(built: Transformer, tokens: torch.Tensor, steps: int) -> list[int]:
    """Greedy decoding by the definition: the whole window again for every token."""
    for _ in range(steps):
        logits = built(tokens[None, -CONTEXT:])[0, -1]
        tokens = torch.cat((tokens, logits.argmax(keepdim=True)))
    return tokens.tolist()


PROMPT = torch.tensor([3, 1, 4])


@pytest.mark.parametrize("kind", POOLS, ids=lambda kind: kind.tiny().kind)
@pytest.mark.parametrize("prompt", [1, 5, CONTEXT, CONTEXT + 4])
def test_greedy_is_the_argmax_of_a_full_pass(kind, prompt):
    """From 5 tokens, 9 more cross the context of 10; from 14 the window slides at once."""
    built = model(kind.tiny())
    tokens = torch.randint(VOCAB, (prompt,))
    out = generate(built, tokens, max_new_tokens=9, **GREEDY)
    assert out.tolist() == by_hand(built, tokens, 9)


@pytest.mark.parametrize("prompt", [1, 6, CONTEXT + 2])
def test_the_cache_changes_nothing(prompt):
    """An edit that does nothing forces full passes; the same draws must give the same tokens."""
    built = model()
    site = Site.parse("blocks.0.ffn:out")
    nothing = Edit(reads=site, writes=site, apply=lambda _, y: y)
    tokens = torch.randint(VOCAB, (prompt,))
    cached = generate(built, tokens, max_new_tokens=12, **WARM)
    full = generate(built, tokens, max_new_tokens=12, edits=[nothing], **WARM)
    assert torch.equal(cached, full)


def test_without_edits_only_new_positions_are_computed():
    built = model()
    rows = []
    built.blocks[0].ffn.register_forward_hook(lambda _, args, __: rows.append(args[0].shape[1]))
    generate(built, PROMPT, max_new_tokens=9, **GREEDY)
    # The prompt, then one row each until 10 tokens stand; then the last 10 again for the twelfth.
    assert rows == [3] + [1] * 7 + [10]


def test_a_seed_decides_everything():
    built = model()
    draw = {"max_new_tokens": 20, "temperature": 1.5, "top_k": None, "end": None}
    first = generate(built, PROMPT, seed=1, **draw)
    torch.rand(7)  # other random numbers in between are no matter
    state = torch.get_rng_state()
    assert torch.equal(generate(built, PROMPT, seed=1, **draw), first)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(generate(built, PROMPT, seed=2, **draw), first)
    assert first[:3].tolist() == PROMPT.tolist()
    assert first.shape == (23,)


@pytest.mark.parametrize("options", [{"top_k": 1, "temperature": 2.0}, {"temperature": 1e-300}])
def test_one_candidate_or_no_heat_is_greedy(options):
    built = model()
    out = generate(built, PROMPT, max_new_tokens=8, **GREEDY | options)
    assert out.tolist() == by_hand(built, PROMPT, 8)


def test_top_k_keeps_to_the_largest():
    built = model()
    out = generate(built, PROMPT, max_new_tokens=6, **WARM | {"temperature": 50.0, "top_k": 3})
    for t in range(3, 9):
        best = built(out[None, :t])[0, -1].topk(3).indices
        assert out[t] in best
    wide = generate(built, PROMPT, max_new_tokens=6, **WARM | {"top_k": 10 * VOCAB})
    assert torch.equal(wide, generate(built, PROMPT, max_new_tokens=6, **WARM))


def test_temperature_by_hand():
    """softmax(log(1, 3, 4) / ½) = (1, 9, 16) / 26; of the two largest, (9, 16) / 25."""
    logits = torch.tensor([1.0, 3.0, 4.0]).log()
    generator = torch.Generator().manual_seed(0)
    draws = 4000
    for top_k, wanted in ((None, (1 / 26, 9 / 26, 16 / 26)), (2, (0, 9 / 25, 16 / 25))):
        tokens = torch.cat([_sample(logits, 0.5, top_k, generator) for _ in range(draws)])
        share = tokens.bincount(minlength=3) / draws
        for found, p in zip(share.tolist(), wanted, strict=True):
            # Four standard errors of a binomial share.
            assert abs(found - p) <= 4 * math.sqrt(p * (1 - p) / draws)


def test_the_end_token_stops_and_is_kept():
    built = model()
    free = generate(built, PROMPT, max_new_tokens=8, **GREEDY).tolist()
    end = free[6]
    place = free.index(end, 3)
    out = generate(built, PROMPT, max_new_tokens=8, **GREEDY | {"end": end})
    assert out.tolist() == free[: place + 1]
    # An end inside the prompt stops nothing.
    inside = torch.tensor([end, 3])
    assert generate(built, inside, max_new_tokens=1, **GREEDY | {"end": end}).shape == (3,)


def test_no_new_tokens_gives_the_prompt():
    assert generate(model(), PROMPT, max_new_tokens=0, **GREEDY).tolist() == PROMPT.tolist()


def test_the_model_is_left_as_it_was():
    built = model().train()
    built.blocks[1].eval()
    before = {name: module.training for name, module in built.named_modules()}
    buffers = {name: buffer.clone() for name, buffer in built.named_buffers()}
    out = generate(built, PROMPT, max_new_tokens=4, **GREEDY)
    assert {name: module.training for name, module in built.named_modules()} == before
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in built.named_buffers())
    assert not out.requires_grad
    assert out.tolist() == by_hand(built.eval(), PROMPT, 4)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"tokens": torch.zeros(0, dtype=torch.long)}, DataError, "prompt: it encodes to no token"),
        ({"temperature": -0.1}, ConfigError, "temperature: expected at least 0, found -0.1"),
        ({"temperature": math.nan}, ConfigError, "temperature: expected at least 0, found nan"),
        ({"top_k": 0}, ConfigError, "top_k: expected at least 1, found 0"),
        ({"max_new_tokens": -1}, ConfigError, "max_new_tokens: expected at least 0, found -1"),
    ],
)
def test_bad_arguments_are_one_line(change, error, message):
    options = {"tokens": PROMPT, "max_new_tokens": 2, **GREEDY} | change
    with pytest.raises(error, match=message) as caught:
        generate(model(), options.pop("tokens"), **options)
    assert isinstance(caught.value, PellucidError)
    assert "\n" not in str(caught.value)


# Edits -------------------------------------------------------------------------------------------

X = torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])


def slot_output(built: Transformer, edit: Edit | None, layer: int = 0) -> torch.Tensor:
    site = Site.parse(f"blocks.{layer}.ffn:out")
    return built.run(X, edits=[edit] if edit else [], keep=[site]).kept[site]


@pytest.mark.parametrize("kind", POOLS, ids=lambda kind: kind.tiny().kind)
def test_ablating_every_unit_leaves_the_rest(kind):
    built = model(kind.tiny())
    pool = built.pools()["blocks.1.ffn"]
    edit = parse_ablation("blocks.1.ffn@*", built.pools())
    x = built.run(X, keep=[pool.spec.reads]).kept[pool.spec.reads]
    # float64: the units' sum is taken away from an output of order 1.
    torch.testing.assert_close(slot_output(built, edit, 1), pool.rest(x), atol=1e-12, rtol=0)


@pytest.mark.parametrize("kind", POOLS, ids=lambda kind: kind.tiny().kind)
def test_scale_one_does_nothing_and_scale_zero_ablates(kind):
    built = model(kind.tiny())
    pools = built.pools()
    units = "0,2,5"
    plain = slot_output(built, None)
    same = slot_output(built, parse_scale(f"blocks.0.ffn@{units}=1", pools))
    silent = slot_output(built, parse_scale(f"blocks.0.ffn@{units}=0", pools))
    ablated = slot_output(built, parse_ablation(f"blocks.0.ffn@{units}", pools))
    # float64: the two codes may lie in memory in other orders, and sums of order 1 round.
    torch.testing.assert_close(same, plain, atol=1e-14, rtol=0)
    assert torch.equal(silent, ablated)
    pool = pools["blocks.0.ffn"]
    x = built.run(X, keep=[pool.spec.reads]).kept[pool.spec.reads]
    written = pool.decode(pool.activate(x, unit=torch.tensor([0, 2, 5])))
    # float64 sums of order 1.
    torch.testing.assert_close(plain - ablated, written, atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    ("text", "units", "factor"),
    [
        ("blocks.0.ffn@17=4", [17], 4.0),
        ("blocks.0.ffn@3,17=-1.5", [3, 17], -1.5),
        ("blocks.0.ffn@*=2", list(range(35)), 2.0),
        ("blocks.0.ffn@pool=3=0.5", list(range(21, 28)), 0.5),
        ("blocks.0.ffn@slot=2=3", [2, 9, 16, 23, 30], 3.0),
        ("blocks.0.ffn@pool=3,slot=2=4", [23], 4.0),
        ("blocks.0.ffn@pool=3,slot=2=1e1", [23], 10.0),
    ],
)
def test_scale_by_hand(text, units, factor):
    """5 pools of 7 slots: unit = 7 · pool + slot. y' = y + Σ (factor − 1) · value · write."""
    built = model()
    pool = built.pools()["blocks.0.ffn"]
    x = built.run(X, keep=[pool.spec.reads]).kept[pool.spec.reads]
    code = pool.activate(x)
    named = torch.isin(code.unit, torch.tensor(units))
    added = torch.zeros_like(x)
    for b, t, entry in named.nonzero().tolist():
        value, unit = code.value[b, t, entry], code.unit[b, t, entry]
        added[b, t] += (factor - 1) * value * pool.writes[unit]
    assert text.startswith("blocks.0.ffn@*") or 0 < named.sum() < named.numel()
    found = slot_output(built, parse_scale(text, built.pools()))
    # float64 sums of order 10.
    torch.testing.assert_close(found, slot_output(built, None) + added, atol=1e-12, rtol=0)


@pytest.fixture(scope="module")
def shared() -> Transformer:
    return model()


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.integers(0, 34), min_size=1, max_size=6),
    st.floats(-8, 8),
    st.floats(-8, 8),
)
def test_scales_compose_linearly(shared, units, a, b):
    """Scaling by a and then, from the same x, by b adds (a − 1) + (b − 1) times the units."""
    built, pools = shared, shared.pools()
    names = "blocks.0.ffn@" + ",".join(map(str, units))
    pair = built.run(
        X,
        edits=[parse_scale(f"{names}={factor!r}", pools) for factor in (a, b)],
        keep=[Site.parse("blocks.0.ffn:out")],
    ).kept[Site.parse("blocks.0.ffn:out")]
    once = slot_output(built, parse_scale(f"{names}={a + b - 1!r}", pools))
    # float64 sums of order 100.
    torch.testing.assert_close(pair, once, atol=1e-11, rtol=0)


def test_the_sink_unit_has_its_own_address():
    built = model(replace(HierarchyConfig.tiny(), shared="sink_unit"))
    pools = built.pools()
    sink = pools["blocks.0.ffn.sink"]
    x = built.run(X, keep=[sink.spec.reads]).kept[sink.spec.reads]
    moved = slot_output(built, None) - slot_output(
        built, parse_ablation("blocks.0.ffn.sink@0", pools)
    )
    # float64 sums of order 1.
    torch.testing.assert_close(moved, sink(x), atol=1e-12, rtol=0)
    assert moved.abs().sum() > 0


def test_an_edit_changes_the_text():
    built = model()
    edits = [parse_scale(f"blocks.{layer}.ffn@*=-20", built.pools()) for layer in (0, 1)]
    plain = generate(built, PROMPT, max_new_tokens=12, **GREEDY)
    changed = generate(built, PROMPT, max_new_tokens=12, edits=edits, **GREEDY)
    assert not torch.equal(plain, changed)
    tokens = PROMPT
    for _ in range(12):
        logits = built.run(tokens[None, -CONTEXT:], edits=edits).logits[0, -1]
        tokens = torch.cat((tokens, logits.argmax(keepdim=True)))
    assert torch.equal(changed, tokens)


@pytest.mark.parametrize(
    ("parse", "text", "message"),
    [
        (parse_ablation, "blocks.0.ffn", "expected NAME@UNITS"),
        (parse_ablation, "blocks.0.ffm@pool=3", "did you mean 'blocks.0.ffn'"),
        (parse_ablation, "blocks.0.ffn@pol=3", "no axis 'pol'; did you mean 'pool'"),
        (parse_ablation, "blocks.0.ffn@pool=5", "no such pool; it goes from 0 to 4"),
        (parse_ablation, "blocks.0.ffn@35", "no such unit; it goes from 0 to 34"),
        (parse_scale, "blocks.0.ffn@17", r"expected NAME@UNITS=FACTOR"),
        (parse_scale, "blocks.0.ffn=3", r"expected NAME@UNITS=FACTOR"),
        (parse_scale, "blocks.9.ffn@17=2", "the model has no pool 'blocks.9.ffn'"),
        (parse_scale, "blocks.0.ffn@17=much", "finite number, found 'much'"),
        (parse_scale, "blocks.0.ffn@17=", "finite number, found ''"),
        (parse_scale, "blocks.0.ffn@17=nan", "finite number, found 'nan'"),
        (parse_scale, "blocks.0.ffn@17=inf", "finite number, found 'inf'"),
        (parse_scale, "blocks.0.ffn@pool=3", "unit must be a whole number"),
        (parse_scale, "blocks.0.ffn@pool=3,slot=7=2", "no such slot"),
    ],
)
def test_addresses_that_name_nothing_are_one_line(parse, text, message):
    with pytest.raises(AddressError, match=message) as caught:
        parse(text, model().pools())
    assert "\n" not in str(caught.value)
