"""Edits and kept tensors on toy modules, worked by hand, and on plain Hugging Face models."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, LlamaConfig, LlamaForCausalLM

from pellucid.core.errors import AddressError
from pellucid.core.host import Edit, Trace
from pellucid.core.unit import Site
from pellucid.models.hooks import logits_of, module_at, run_hooked, site_width


class Add(nn.Module):
    """x + amount; ``form`` is how the sum is handed back."""

    def __init__(self, amount: float, form: str = "tensor") -> None:
        super().__init__()
        self.amount, self.form = amount, form

    def forward(self, x: Tensor, other: Tensor | None = None) -> Any:
        y = x + self.amount
        return y if self.form == "tensor" else (y, "beside", other)


class Toy(nn.Module):
    """x → +1 → +10 (a tuple, called by keyword) → +100; ``spare`` is never reached."""

    def __init__(self) -> None:
        super().__init__()
        self.first = Add(1.0)
        self.middle = Add(10.0, "tuple")
        self.last = Add(100.0)
        self.spare = Add(1000.0)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x, beside, other = self.middle(x=x, other=x)
        assert beside == "beside"
        assert other is not None
        return self.last(x)


def _site(text: str) -> Site:
    return Site.parse(text)


def _edit(reads: str, writes: str, apply: Any) -> Edit:
    return Edit(reads=_site(reads), writes=_site(writes), apply=apply)


def _run(model: Toy, *edits: Edit, keep: tuple[str, ...] = ()) -> Trace:
    x = torch.zeros(1, 1, 1)
    return run_hooked(model, lambda: model(x), edits=edits, keep=[_site(site) for site in keep])


def _value(tensor: Tensor) -> float:
    return tensor.item()


EVERYWHERE = ("first:in", "first:out", "middle:in", "middle:out", "last:in", "last:out")


def test_kept_tensors_by_hand():
    trace = _run(Toy(), keep=EVERYWHERE)
    assert [_value(trace.kept[_site(s)]) for s in EVERYWHERE] == [0, 1, 1, 11, 11, 111]
    assert _value(trace.logits) == 111


@pytest.mark.parametrize(
    ("where", "logits"),
    # Doubled there: the input 0; 1 → 2; the tuple's 11 → 22; the last input; the logits.
    [
        ("first:in", 111),
        ("first:out", 112),
        ("middle:in", 112),
        ("middle:out", 122),
        ("last:in", 122),
        ("last:out", 222),
    ],
)
def test_an_edit_at_every_kind_of_site(where, logits):
    trace = _run(Toy(), _edit(where, where, lambda _, y: 2 * y), keep=(where,))
    assert _value(trace.logits) == logits
    kept = {"first:in": 0, "first:out": 2, "middle:in": 2, "middle:out": 22, "last:in": 22}
    assert _value(trace.kept[_site(where)]) == kept.get(where, 222), "what leaves the site is kept"


def test_edits_at_one_site_apply_in_order_and_all_see_the_tensor_before_them():
    seen: list[tuple[float, float]] = []

    def spy(change: Any) -> Any:
        def apply(x: Tensor, y: Tensor) -> Tensor:
            seen.append((_value(x), _value(y)))
            return change(y)

        return apply

    where = "first:out"
    double = _edit(where, where, spy(lambda y: 2 * y))
    three = _edit(where, where, spy(lambda y: y + 3))
    assert _value(_run(Toy(), double, three).logits) == 115  # 1 → 2 → 5
    assert seen == [(1, 1), (1, 2)]
    assert _value(_run(Toy(), three, double).logits) == 118  # 1 → 4 → 8


def test_an_edit_reads_what_left_an_earlier_site():
    copy = _edit("first:out", "last:in", lambda x, y: 5 * x + y)
    double = _edit("first:out", "first:out", lambda _, y: 2 * y)
    assert _value(_run(Toy(), copy).logits) == 116  # 5 · 1 + 11 + 100
    assert _value(_run(Toy(), double, copy).logits) == 122  # 5 · 2 + 12 + 100
    assert _value(_run(Toy(), copy, double).logits) == 122


def test_an_edit_may_read_the_input_of_the_module_that_it_writes_at():
    edit = _edit("middle:in", "middle:out", lambda x, y: y - x)
    assert _value(_run(Toy(), edit).logits) == 110


class Twice(Toy):
    """The first module, twice in one pass: x → +1 → +1 → the rest."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.first(x))


def test_a_module_reached_twice_is_edited_twice_and_kept_last():
    plain = _run(Twice(), keep=("first:in", "first:out"))
    # 0 → 1 → 2, then 12 and 112.
    assert _value(plain.logits) == 112.0
    assert [_value(plain.kept[_site(s)]) for s in ("first:in", "first:out")] == [1.0, 2.0]
    edited = _run(
        Twice(), _edit("first:in", "first:out", lambda x, y: 5 * y + x), keep=("first:in",)
    )
    # 0 → 1, edited to 5 · 1 + 0 = 5; 5 → 6, edited to 5 · 6 + 5 = 35; then 45, 145.
    assert _value(edited.logits) == 145.0
    assert _value(edited.kept[_site("first:in")]) == 5.0


def test_gradients_pass_through_edits():
    model, x = Toy(), torch.zeros(1, 1, 1, requires_grad=True)
    edit = _edit("first:out", "first:out", lambda _, y: 3 * y)
    run_hooked(model, lambda: model(x), edits=[edit]).logits.sum().backward()
    assert x.grad is not None
    assert _value(x.grad) == 3.0


def test_writing_before_reading_is_refused():
    edit = _edit("last:in", "first:out", lambda x, y: x + y)
    with pytest.raises(AddressError) as caught:
        _run(Toy(), edit)
    assert str(caught.value) == (
        "an edit writes at first:out before the pass reaches last:in, which it reads; "
        "name a site that comes earlier"
    )


def test_an_unknown_module_offers_the_nearest():
    with pytest.raises(AddressError) as caught:
        _run(Toy(), keep=("frist:in",))
    assert str(caught.value) == (
        "site frist:in: the model has no module 'frist'; did you mean 'first'?"
    )


@pytest.mark.parametrize("port", ["in", "out"])
def test_a_module_that_is_never_reached_is_named(port):
    with pytest.raises(AddressError) as caught:
        _run(Toy(), keep=(f"spare:{port}",))
    assert str(caught.value) == (f"site spare:{port}: this forward pass never reached the module")


def test_hooks_are_gone_after_an_error():
    model = Toy()

    def fail(_: Tensor, y: Tensor) -> Tensor:
        raise RuntimeError("from inside an edit")

    with pytest.raises(RuntimeError, match="from inside an edit"):
        _run(model, _edit("first:out", "first:out", fail), keep=EVERYWHERE)
    with pytest.raises(AddressError):
        _run(model, keep=("first:in", "nowhere:in"))
    assert _value(model(torch.zeros(1, 1, 1))) == 111
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_module_at_finds_what_named_modules_names():
    model = Toy()
    assert module_at(model, _site("middle:out")) is model.middle


def test_logits_of_takes_tensors_and_wrapped_outputs():
    logits = torch.zeros(1, 1, 3)
    assert logits_of(logits) is logits

    class Wrapped:
        def __init__(self) -> None:
            self.logits = logits

    assert logits_of(Wrapped()) is logits


VOCAB = 19


def _llama() -> nn.Module:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCAB,
            hidden_size=16,
            intermediate_size=20,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=32,
        )
    )


def _neox() -> nn.Module:
    return GPTNeoXForCausalLM(
        GPTNeoXConfig(
            vocab_size=VOCAB,
            hidden_size=16,
            intermediate_size=20,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=32,
            use_parallel_residual=False,
        )
    )


# (build, path of the layers, of an attention, of an MLP, of the final norm)
FOREIGN = {
    "llama": (_llama, "model.layers", "self_attn", "mlp", "model.norm"),
    "neox": (_neox, "gpt_neox.layers", "attention", "mlp", "gpt_neox.final_layer_norm"),
}


@pytest.fixture(params=FOREIGN)
def foreign(request: pytest.FixtureRequest) -> tuple[nn.Module, str, str, str, str, str]:
    build, *names = FOREIGN[request.param]
    model = build().double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    head = model.get_output_embeddings()
    unembed = next(name for name, module in model.named_modules() if module is head)
    return (model, *names, unembed)


def _tokens() -> Tensor:
    return torch.randint(VOCAB, (2, 7))


def _on(model: nn.Module, tokens: Tensor, *edits: Edit, keep: tuple[str, ...] = ()) -> Trace:
    sites = [_site(site) for site in keep]
    return run_hooked(model, lambda: logits_of(model(tokens)), edits=edits, keep=sites)


def test_kept_streams_are_the_models_own_hidden_states(foreign):
    model, layers, _, _, norm, _ = foreign
    tokens = _tokens()
    hidden = model(tokens, output_hidden_states=True).hidden_states
    into = tuple(f"{layers}.{i}:in" for i in range(3))
    out = tuple(f"{layers}.{i}:out" for i in range(3))
    trace = _on(model, tokens, keep=(*into, *out, f"{norm}:out"))
    for layer in range(3):
        assert torch.equal(trace.kept[_site(into[layer])], hidden[layer])
    for layer in range(2):
        assert torch.equal(trace.kept[_site(out[layer])], hidden[layer + 1])
    assert torch.equal(trace.kept[_site(f"{norm}:out")], hidden[3])
    assert torch.equal(trace.logits, model(tokens).logits)


def test_an_edit_of_the_stream_is_what_the_next_layer_gets(foreign):
    model, layers, *_ = foreign
    tokens = _tokens()
    where, following = f"{layers}.0:out", f"{layers}.1:in"
    new = torch.randn(2, 7, 16, dtype=torch.float64)
    trace = _on(model, tokens, _edit(where, where, lambda _x, _y: new), keep=(where, following))
    assert torch.equal(trace.kept[_site(where)], new)
    assert torch.equal(trace.kept[_site(following)], new)
    # Put in at the next layer's input instead, the rest of the pass is the same.
    again = _on(model, tokens, _edit(following, following, lambda _x, _y: new))
    assert torch.equal(trace.logits, again.logits)
    assert not torch.equal(trace.logits, model(tokens).logits)


def test_an_edit_of_a_tuple_output_keeps_what_stands_beside(foreign):
    # The attentions return (output, weights) and are called by keyword.
    model, layers, attention, mlp, *_ = foreign
    tokens = _tokens()
    attn, ffn = f"{layers}.1.{attention}", f"{layers}.1.{mlp}"
    silent = _edit(f"{attn}:out", f"{attn}:out", lambda _, y: torch.zeros_like(y))
    keep = (f"{layers}.1:in", f"{layers}.1:out", f"{attn}:in", f"{attn}:out", f"{ffn}:out")
    kept = _on(model, tokens, silent, keep=keep).kept
    start, end, normed, nothing, hidden = (kept[_site(site)] for site in keep)
    assert (nothing == 0).all()
    assert normed.shape == start.shape
    # Without attention a sequential block is its input plus its MLP.
    torch.testing.assert_close(end, start + hidden, atol=1e-12, rtol=0)


def test_an_edit_of_an_mlp_reads_its_input(foreign):
    model, layers, _, mlp, *_ = foreign
    tokens = _tokens()
    where = f"{layers}.1.{mlp}"
    keep = (f"{where}:in", f"{where}:out")
    plain = _on(model, tokens, keep=keep).kept
    added = _edit(f"{where}:in", f"{where}:out", lambda x, y: y + 2 * x)
    edited = _on(model, tokens, added, keep=keep).kept
    expected = plain[_site(keep[1])] + 2 * plain[_site(keep[0])]
    torch.testing.assert_close(edited[_site(keep[1])], expected, atol=1e-12, rtol=0)


def test_edits_at_the_unembedding_reach_the_logits(foreign):
    model, *_, unembed = foreign
    tokens = _tokens()
    new = torch.randn(2, 7, 16, dtype=torch.float64)
    replaced = _on(model, tokens, _edit(f"{unembed}:in", f"{unembed}:in", lambda _x, _y: new))
    assert torch.equal(replaced.logits, module_at(model, _site(f"{unembed}:in"))(new))
    scaled = _on(model, tokens, _edit(f"{unembed}:out", f"{unembed}:out", lambda _, y: 2 * y))
    assert torch.equal(scaled.logits, 2 * model(tokens).logits)


def test_a_wrapped_output_can_be_kept_and_edited(foreign):
    # The trunk returns a dataclass that is also a mapping.
    model, layers, *_, norm, _ = foreign
    trunk = layers.split(".", maxsplit=1)[0]
    tokens = _tokens()
    site = f"{trunk}:out"
    trace = _on(model, tokens, keep=(site, f"{norm}:out"))
    assert torch.equal(trace.kept[_site(site)], trace.kept[_site(f"{norm}:out")])
    nothing = _on(model, tokens, _edit(site, site, lambda _, y: 0 * y))
    assert (nothing.logits == 0).all()


def test_widths_of_foreign_sites(foreign):
    model, layers, _, mlp, _, unembed = foreign
    for site, width in (
        (f"{layers}.0:in", 16),
        (f"{layers}.0.{mlp}:out", 16),
        (f"{unembed}:out", VOCAB),
    ):
        assert site_width(model, _site(site)) == width


def test_an_unknown_foreign_site_offers_a_path_of_the_same_depth(foreign):
    model, layers, *_ = foreign
    with pytest.raises(AddressError, match="did you mean") as caught:
        _on(model, _tokens(), keep=(f"{layers}.7.mpl:in",))
    assert ".mlp" in str(caught.value)
    assert "\n" not in str(caught.value)
