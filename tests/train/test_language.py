"""Cross-entropy and distillation against worked numbers, and the objectives built on them."""

import math
from collections.abc import Mapping

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pellucid.core.errors import ConfigError
from pellucid.data.packing import IGNORED, Batch
from pellucid.models.config import TransformerConfig
from pellucid.models.transformer import Transformer
from pellucid.pools.hierarchy import HierarchyConfig
from pellucid.train.language import (
    Distillation,
    LanguageModelling,
    Teacher,
    check_distillation,
    cross_entropy,
    distillation_loss,
)
from pellucid.train.optim import OptimConfig, param_groups


def decoder(vocab: int = 11) -> Transformer:
    pool = HierarchyConfig(pools=5, slots=7, open_pools=3, k=4, balance="loss")
    return Transformer(
        TransformerConfig(
            width=16,
            layers=2,
            heads=2,
            kv_heads=1,
            head_dim=8,
            vocab_size=vocab,
            context=8,
            ffn=(pool,),
        )
    )


def objective(model: Transformer, *, mask_documents: bool = False) -> LanguageModelling:
    return LanguageModelling(
        forward=model.forward_with_parts,
        groups=param_groups(model, model.unit_tables(), OptimConfig()),
        after=model.after_step,
        mask_documents=mask_documents,
    )


def make_batch(rows: int = 2, seq: int = 8, vocab: int = 11) -> Batch:
    tokens = torch.randint(vocab, (rows, seq + 1))
    document = torch.arange(seq).ge(seq // 2).long().expand(rows, seq)
    return Batch(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous(), document.contiguous())


def fixed(logits: Tensor) -> Teacher:
    """A teacher that answers every row with the same logits."""
    return lambda tokens, _: logits.expand(*tokens.shape, -1)


def teacher_of(model: Transformer) -> Teacher:
    return lambda tokens, _: model(tokens)


def test_cross_entropy_by_hand():
    # softmax of (ln 2, ln 1, ln 1) is (1/2, 1/4, 1/4); the targets cost ln 2 and ln 4.
    row = torch.tensor([2.0, 1.0, 1.0]).log()
    logits = torch.stack([row, row])[None]
    loss = cross_entropy(logits, torch.tensor([[0, 2]]))
    assert loss.item() == pytest.approx((math.log(2) + math.log(4)) / 2, rel=1e-6)


def test_targets_that_are_ignored_do_not_count():
    # The same two targets among four: the mean is over the scored ones only.
    row = torch.tensor([2.0, 1.0, 1.0]).log()
    logits = torch.stack([row, torch.randn(3), torch.randn(3), row])[None]
    loss = cross_entropy(logits, torch.tensor([[0, IGNORED, IGNORED, 2]]))
    assert loss.item() == pytest.approx(1.5 * math.log(2), rel=1e-6)


def test_cross_entropy_is_computed_in_float32():
    # In bfloat16 the logsumexp of 256 equal logits of 8 would be off by its last place, 2⁻⁴.
    logits = torch.full((1, 1, 256), 8.0, dtype=torch.bfloat16)
    loss = cross_entropy(logits, torch.tensor([[3]]))
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(math.log(256), rel=1e-6)


def test_gradient_reaches_scored_rows_only():
    logits = torch.randn(1, 3, 5, requires_grad=True)
    cross_entropy(logits, torch.tensor([[1, IGNORED, 4]])).backward()
    assert logits.grad is not None
    expected = (logits.detach().softmax(-1) - F.one_hot(torch.tensor([[1, 0, 4]]), 5)) / 2
    # A softmax in float32.
    torch.testing.assert_close(logits.grad[0, [0, 2]], expected[0, [0, 2]], rtol=1e-5, atol=1e-7)
    assert not logits.grad[0, 1].any()


def test_distillation_by_hand():
    # teacher (1/2, 1/2), student (1/4, 3/4), τ = 1:
    # KL = ½ ln((1/2)/(1/4)) + ½ ln((1/2)/(3/4)) = ½ ln 2 + ½ ln(2/3) = ½ ln(4/3)
    teacher = torch.zeros(1, 1, 2)
    student = torch.tensor([[[1.0, 3.0]]]).log()
    found = distillation_loss(student, teacher, 1.0)
    assert found.item() == pytest.approx(0.5 * math.log(4 / 3), rel=1e-6)


def test_a_temperature_softens_both_and_scales_the_loss():
    # τ = 2 halves the logits, and ln √3 − ln 1 apart is (1, √3) / (1 + √3) for the student:
    # KL = ½ ln(½ (1 + √3)) + ½ ln(½ (1 + √3) / √3), times τ² = 4.
    teacher = torch.zeros(1, 1, 2)
    student = torch.tensor([[[1.0, 3.0]]]).log()
    half = (1 + math.sqrt(3)) / 2
    expected = 4 * (0.5 * math.log(half) + 0.5 * math.log(half / math.sqrt(3)))
    # Logarithms near 0 in float32.
    assert distillation_loss(student, teacher, 2.0).item() == pytest.approx(expected, rel=1e-5)


def test_the_loss_is_a_mean_per_token():
    teacher, student = torch.randn(2, 3, 5), torch.randn(2, 3, 5)
    each = [
        distillation_loss(student[b, t][None, None], teacher[b, t][None, None], 1.3).item()
        for b in range(2)
        for t in range(3)
    ]
    # Sums of six float32 terms.
    assert distillation_loss(student, teacher, 1.3).item() == pytest.approx(sum(each) / 6, rel=1e-5)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**31), st.floats(0.1, 10.0))
def test_equal_distributions_have_no_divergence_and_others_some(seed: int, temperature: float):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(1, 4, 7, generator=generator)
    # Logits moved by a constant are the same distribution; float32 leaves some 1e-7 · τ².
    same = distillation_loss(logits + 3.0, logits, temperature)
    assert abs(same.item()) < 1e-6 * max(1.0, temperature**2)
    other = distillation_loss(torch.randn(1, 4, 7, generator=generator), logits, temperature)
    assert other.item() > 0


def test_language_modelling_is_cross_entropy_and_the_pools_own_parts():
    model, batch = decoder(), make_batch()
    parts = objective(model).losses(batch)
    assert parts.keys() == {"ce", "balance", "router_z"}
    logits, own = model.forward_with_parts(batch.tokens)
    assert parts["ce"].item() == cross_entropy(logits, batch.targets).item()
    assert {name: part.item() for name, part in own.items()} == {
        name: parts[name].item() for name in ("balance", "router_z")
    }


def test_documents_are_masked_only_if_asked():
    seen: list[Tensor | None] = []
    model, batch = decoder(), make_batch()

    def forward(tokens: Tensor, documents: Tensor | None) -> tuple[Tensor, Mapping[str, Tensor]]:
        seen.append(documents)
        return model.forward_with_parts(tokens, documents)

    for mask in (False, True):
        LanguageModelling(
            forward=forward, groups=(), after=lambda: None, mask_documents=mask
        ).losses(batch)
    assert seen[0] is None
    assert seen[1] is batch.document


def test_the_teacher_is_told_where_documents_end():
    heard: list[Tensor] = []
    model, batch = decoder(), make_batch()

    def teacher(tokens: Tensor, documents: Tensor) -> Tensor:
        heard.append(documents)
        return model(tokens)

    for mask in (False, True):
        Distillation(student=objective(model, mask_documents=mask), teacher=teacher).losses(batch)
    assert all(documents is batch.document for documents in heard)
    assert len(heard) == 2


def test_the_model_hears_of_every_step():
    heard: list[str] = []
    model = decoder()
    groups = param_groups(model, model.unit_tables(), OptimConfig())
    plain = LanguageModelling(
        forward=model.forward_with_parts, groups=groups, after=lambda: heard.append("after")
    )
    both = Distillation(student=plain, teacher=teacher_of(model))
    for task in (plain, both):
        task.before_step(3)
        task.after_step(3)
        assert task.param_groups() == groups
    assert heard == ["after", "after"]


@pytest.mark.parametrize("alpha", [0.0, 0.25, 1.0])
def test_the_mix_of_teacher_and_text(alpha: float):
    model, batch = decoder(), make_batch()
    row = torch.randn(11)
    task = Distillation(student=objective(model), teacher=fixed(row), alpha=alpha, temperature=2.0)
    parts = task.losses(batch)
    logits, _ = model.forward_with_parts(batch.tokens)
    kl = distillation_loss(logits, row.expand_as(logits), 2.0)
    assert parts["kl"].item() == pytest.approx(alpha * kl.item(), rel=1e-6)
    if alpha == 1:
        assert parts.keys() == {"kl", "balance", "router_z"}
    else:
        ce = cross_entropy(logits, batch.targets)
        assert parts["ce"].item() == pytest.approx((1 - alpha) * ce.item(), rel=1e-6)


def test_a_student_that_is_its_teacher_learns_nothing():
    # The pools' own parts pull on the router, so only the divergence is looked at.
    model, batch = decoder(), make_batch()
    model.eval()
    task = Distillation(student=objective(model), teacher=teacher_of(model), alpha=1.0)
    part = task.losses(batch)["kl"]
    part.backward()
    norms = [p.grad.norm().item() for p in model.parameters() if p.grad is not None]
    # Gradients of order 1 for a random teacher; float32 rounding here.
    assert abs(part.item()) < 1e-6
    assert max(norms) < 1e-5


def test_the_teacher_gets_no_gradient():
    student, teacher, batch = decoder(), decoder(), make_batch()
    task = Distillation(student=objective(student), teacher=teacher_of(teacher))
    sum(task.losses(batch).values()).backward()
    assert all(p.grad is None for p in teacher.parameters())
    assert student.embed.weight.grad is not None


def test_a_teacher_of_another_vocabulary_is_refused():
    task = Distillation(student=objective(decoder()), teacher=fixed(torch.zeros(13)))
    with pytest.raises(ConfigError, match="expected logits over 11 tokens, found 13; distil bet"):
        task.losses(make_batch())


@pytest.mark.parametrize(
    ("alpha", "temperature", "field"),
    [
        (-0.1, 1.0, "alpha"),
        (1.1, 1.0, "alpha"),
        (math.nan, 1.0, "alpha"),
        (0.5, 0.0, "temperature"),
        (0.5, -1.0, "temperature"),
        (0.5, math.nan, "temperature"),
    ],
)
def test_a_mix_that_is_none_is_named(alpha: float, temperature: float, field: str):
    with pytest.raises(ConfigError, match=rf"^{field}: expected .*, found "):
        check_distillation(alpha, temperature)
    with pytest.raises(ConfigError, match=rf"^{field}: "):
        Distillation(
            student=objective(decoder()),
            teacher=fixed(torch.zeros(11)),
            alpha=alpha,
            temperature=temperature,
        )


def test_a_step_lowers_the_loss_it_is_taken_on():
    model, batch = decoder(), make_batch()
    task, groups = objective(model), list(model.parameters())
    optimizer = torch.optim.SGD(groups, lr=0.1)
    losses: list[float] = []
    for _ in range(5):
        loss = torch.stack(list(task.losses(batch).values())).sum()
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(groups, 1.0)
        optimizer.step()
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0]
