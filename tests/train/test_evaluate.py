"""Bits per byte of models whose every loss is known."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from pellucid.core.errors import DataError
from pellucid.data.packing import IGNORED, PADDING, Batch, evaluation_batches
from pellucid.data.store import Split
from pellucid.train.evaluate import evaluate

END = 0


def split(*documents: tuple[int, int, list[int]]) -> Split:
    """A split of (domain, bytes, tokens) documents; token 0 is the end of text."""
    lengths = [len(tokens) for _, _, tokens in documents]
    return Split(
        tokens=np.array([t for _, _, tokens in documents for t in tokens], dtype=np.uint16),
        start=np.concatenate(([0], np.cumsum(lengths))).astype(np.int64),
        num_bytes=np.array([size for _, size, _ in documents], dtype=np.int64),
        domain=np.array([domain for domain, _, _ in documents], dtype=np.int64),
        ids=[f"d{i}" for i in range(len(documents))],
        end_of_text=END,
    )


def batches(of: Split, *, context: int = 4, batch_size: int = 2) -> list[Batch]:
    return list(
        evaluation_batches(of, context=context, batch_size=batch_size, tokens_per_domain=None)
    )


def uniform(tokens: Tensor, documents: Tensor | None) -> Tensor:
    """Every token of 16 equally likely: 4 bits each."""
    return torch.zeros(*tokens.shape, 16)


def test_a_uniform_model_by_hand():
    # 4 bits a token. Domain 0: documents of 3 and 5 tokens over 6 + 10 = 16 bytes: 32/16 = 2.
    # Domain 1: one of 7 tokens over 4 bytes: 28/4 = 7. Pooled: 60/20 = 3.
    held = split((0, 6, [1, 2, 3]), (1, 4, [4] * 7), (0, 10, [5] * 5))
    found = evaluate(uniform, batches(held), held, ("code", "prose"))
    # Float32 logarithms.
    assert found.bits_per_byte == pytest.approx(3.0, rel=1e-6)
    assert found.by_domain == pytest.approx({"code": 2.0, "prose": 7.0}, rel=1e-6)
    assert (found.tokens, found.bytes) == (15, 20)


@pytest.mark.parametrize("context", [1, 3, 4, 63])
@pytest.mark.parametrize("batch_size", [1, 2, 100])
def test_how_rows_are_cut_does_not_matter(context: int, batch_size: int):
    held = split((0, 6, [1, 2, 3]), (1, 4, [4] * 7), (0, 10, [5] * 5))
    found = evaluate(
        uniform, batches(held, context=context, batch_size=batch_size), held, ("code", "prose")
    )
    assert found.bits_per_byte == pytest.approx(3.0, rel=1e-6)
    assert (found.tokens, found.bytes) == (15, 20)


def test_what_each_target_costs():
    # A model that gives the next token as (input + 1) mod 16 probability ½ and the others share ½:
    # on 1, 2, 3 the first token follows the end of text (0) and is right too: three times 1 bit.
    def counts(tokens: Tensor, documents: Tensor | None) -> Tensor:
        right = torch.nn.functional.one_hot((tokens + 1) % 16, 16).double()
        return (right * 0.5 + (1 - right) * (0.5 / 15)).log()

    held = split((0, 3, [1, 2, 3]))
    assert evaluate(counts, batches(held), held, ("a",)).bits_per_byte == pytest.approx(1.0)
    # On 1, 5 the second token costs log2(30) bits.
    held = split((0, 2, [1, 5]))
    expected = (1 + math.log2(30)) / 2
    assert evaluate(counts, batches(held), held, ("a",)).bits_per_byte == pytest.approx(expected)


def test_a_document_that_costs_nothing_still_has_bytes():
    # The first document is certain, to the last bit; its bytes must not leave the denominator.
    def certain_of_ones(tokens: Tensor, documents: Tensor | None) -> Tensor:
        logits = torch.zeros(*tokens.shape, 16)
        logits[..., 1] = torch.where(tokens <= 1, 1000.0, 0.0)
        return logits

    held = split((0, 8, [1, 1]), (1, 2, [1, 9, 9]))
    found = evaluate(certain_of_ones, batches(held), held, ("a", "b"))
    # Domain b: 1 is certain, 9 after 1 costs 1000 nats, 9 after 9 log 16; over 2 bytes.
    nats = 1000 + math.log(16)
    assert found.by_domain == pytest.approx({"a": 0.0, "b": nats / math.log(2) / 2}, rel=1e-6)
    assert found.bits_per_byte == pytest.approx(nats / math.log(2) / 10, rel=1e-6)
    assert found.bytes == 10


def test_documents_and_domains_that_are_not_scored_are_left_out():
    held = split((0, 6, [1, 2, 3]), (1, 400, [4] * 7), (2, 900, [1]))
    some = [batch for batch in batches(held, batch_size=1) if int(batch.document[0, 0]) == 0]
    found = evaluate(uniform, some, held, ("a", "b", "c"))
    assert found.by_domain == pytest.approx({"a": 2.0}, rel=1e-6)
    assert (found.tokens, found.bytes) == (3, 6)


def test_targets_that_are_ignored_are_not_scored():
    held = split((0, 2, [1, 2]))
    batch = Batch(
        torch.tensor([[0, 1, 2, 0]]),
        torch.tensor([[1, 2, IGNORED, IGNORED]]),
        torch.tensor([[0, 0, 0, PADDING]]),
    )
    found = evaluate(uniform, [batch], held, ("a",))
    assert (found.tokens, found.bits_per_byte) == (2, pytest.approx(4.0, rel=1e-6))


def test_documents_reach_the_model_only_if_they_are_masked():
    seen: list[Tensor | None] = []

    def watch(tokens: Tensor, documents: Tensor | None) -> Tensor:
        seen.append(documents)
        return uniform(tokens, documents)

    held = split((0, 6, [1, 2, 3]))
    for mask in (False, True):
        evaluate(watch, batches(held), held, ("a",), mask_documents=mask)
    assert seen[0] is None
    assert seen[1] is not None
    assert seen[1].tolist() == [[0, 0, 0, PADDING]]


def test_no_gradient_is_kept():
    weight = torch.zeros(16, requires_grad=True)

    def forward(tokens: Tensor, documents: Tensor | None) -> Tensor:
        logits = weight.expand(*tokens.shape, -1)
        assert not torch.is_grad_enabled()
        return logits

    held = split((0, 6, [1, 2, 3]))
    assert evaluate(forward, batches(held), held, ("a",)).tokens == 3


def test_nothing_to_score_is_an_error(tmp_path: Path):
    held = split((0, 6, [1, 2, 3]))
    with pytest.raises(DataError, match="expected at least one byte"):
        evaluate(uniform, [], held, ("a",))
