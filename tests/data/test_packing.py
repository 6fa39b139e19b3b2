"""Batches: the training order hand-computed and as properties, evaluation byte by byte."""

import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from math import log

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pellucid.core.errors import DataError
from pellucid.data.packing import (
    IGNORED,
    PADDING,
    DocumentStream,
    Split,
    TrainOrder,
    evaluation_batches,
    evaluation_documents,
)
from pellucid.data.text import unit_hash

MakeSplit = Callable[..., Split]

DOCUMENTS = st.lists(st.lists(st.integers(1, 99), min_size=1, max_size=12), min_size=1, max_size=8)


def sequence(documents: Sequence[Sequence[int]], order: Sequence[int]) -> list[int]:
    """[end_of_text, tokens...] of the documents in order; end of text is 0."""
    return [token for index in order for token in (0, *documents[index])]


def order_of(split: Split, epoch: int, seed: int) -> list[int]:
    """The documents in the order in which one epoch starts them."""
    total = len(split.tokens) + split.num_documents
    order = TrainOrder(split, context=1, batch_size=1, seed=seed)
    rows = sorted(range(epoch * total, (epoch + 1) * total), key=order.place)
    starts = [order.batch(row) for row in rows]
    return [int(batch.document) for batch in starts if int(batch.tokens) == 0]


def test_stream_by_hand(make_split: MakeSplit) -> None:
    """Documents [5 6] and [7] in the order 1, 0: 0 7 0 5 6, owned by 1 1 0 0 0."""
    stream = DocumentStream(make_split([[5, 6], [7]]), np.array([1, 0]))
    assert len(stream) == 5
    for first in range(5):
        for count in range(1, 7):
            tokens, document = stream.read(first, count)
            assert tokens.tolist() == [0, 7, 0, 5, 6][first : first + count]
            assert document.tolist() == [1, 1, 0, 0, 0][first : first + count]


def test_one_document_by_hand(make_split: MakeSplit) -> None:
    """The sequence is 0 1 2 3 4 5, again and again; windows of 4 inputs start at 0, 4, 8, 12."""
    order = TrainOrder(make_split([[1, 2, 3, 4, 5]]), context=4, batch_size=2, seed=0)
    first, second = order.batch(0), order.batch(1)
    assert first.tokens.tolist() == [[0, 1, 2, 3], [4, 5, 0, 1]]
    assert first.targets.tolist() == [[1, 2, 3, 4], [5, 0, 1, 2]]
    assert second.tokens.tolist() == [[2, 3, 4, 5], [0, 1, 2, 3]]
    assert second.targets.tolist() == [[3, 4, 5, 0], [1, 2, 3, 4]]
    assert first.document.tolist() == [[0, 0, 0, 0], [0, 0, 0, 0]]


def test_the_end_of_text_belongs_to_the_document_it_starts(make_split: MakeSplit) -> None:
    order = TrainOrder(make_split([[1], [1]]), context=3, batch_size=1, seed=3)
    assert order.round_windows == 1
    batch = order.batch(0)
    one, two = order_of(make_split([[1], [1]]), 0, 3)
    assert batch.tokens.tolist() == [[0, 1, 0]]
    assert batch.document.tolist() == [[one, one, two]]
    assert {one, two} == {0, 1}


def in_stream_order(
    order: TrainOrder, windows: int, batch_size: int
) -> tuple[list[int], list[int], list[int]]:
    """Inputs, targets and owners of whole rounds of at least ``windows`` rows, unshuffled."""
    rounds = -(-windows // order.round_windows)
    count = rounds * order.round_windows
    batches = [order.batch(step) for step in range(-(-count // batch_size))]
    rows = sorted(range(count), key=order.place)
    assert [order.place(row) for row in rows] == list(range(count))
    parts = (
        [b.tokens for b in batches],
        [b.targets for b in batches],
        [b.document for b in batches],
    )
    inputs, targets, owners = (torch.cat(part)[rows].flatten().tolist() for part in parts)
    return inputs, targets, owners


def test_neighbouring_rows_are_not_neighbouring_windows(make_split: MakeSplit) -> None:
    """Of 199 pairs of rows in a random order about one is still in sequence."""
    order = TrainOrder(make_split([[1] * 999]), context=5, batch_size=1, seed=0)
    places = [order.place(row) for row in range(order.round_windows)]
    assert order.round_windows == 200
    assert sum(b == a + 1 for a, b in itertools.pairwise(places)) < 10
    assert places != [order.place(row) - 200 for row in range(200, 400)]


@given(DOCUMENTS, st.integers(1, 9), st.integers(1, 4), st.integers(0, 99))
def test_an_epoch_is_each_token_once(
    make_split: MakeSplit,
    documents: list[list[int]],
    context: int,
    batch_size: int,
    seed: int,
) -> None:
    """The inputs of all windows, in order, are the epochs' permuted documents, end to end."""
    split = make_split(documents)
    total = sum(map(len, documents)) + len(documents)
    if total < context + 1:
        return
    order = TrainOrder(split, context=context, batch_size=batch_size, seed=seed)
    assert order.epoch_tokens == total
    inputs, _, owners = in_stream_order(order, -(-3 * total // context), batch_size)
    for epoch in range(3):
        part = slice(epoch * total, (epoch + 1) * total)
        starts = [owner for token, owner in zip(inputs[part], owners[part]) if token == 0]
        assert sorted(starts) == list(range(len(documents)))
        assert inputs[part] == sequence(documents, starts)
        assert owners[part] == [i for i in starts for _ in range(len(documents[i]) + 1)]


@given(DOCUMENTS, st.integers(1, 9), st.integers(1, 4), st.integers(0, 99))
def test_targets_are_the_inputs_shifted(
    make_split: MakeSplit,
    documents: list[list[int]],
    context: int,
    batch_size: int,
    seed: int,
) -> None:
    """The target of each position is the input of the next, across windows."""
    split = make_split(documents)
    if sum(map(len, documents)) + len(documents) < context + 1:
        return
    order = TrainOrder(split, context=context, batch_size=batch_size, seed=seed)
    inputs, targets, _ = in_stream_order(order, 7, batch_size)
    assert targets[:-1] == inputs[1:]


@given(st.permutations(range(12)), st.integers(0, 99))
def test_a_batch_depends_on_its_step_alone(
    make_split: MakeSplit, steps: list[int], seed: int
) -> None:
    """Asked in any order, by a fresh object or a used one, a step's batch is the same."""
    split = make_split([[1, 2, 3], [4], [5, 6], [7, 8, 9, 10]])
    used = TrainOrder(split, context=5, batch_size=2, seed=seed)
    batches = {step: used.batch(step) for step in steps}
    for step in range(12):
        fresh = TrainOrder(split, context=5, batch_size=2, seed=seed).batch(step)
        assert torch.equal(fresh.tokens, batches[step].tokens)
        assert torch.equal(fresh.targets, batches[step].targets)
        assert torch.equal(fresh.document, batches[step].document)


@pytest.mark.parametrize("split_rows", [1, 2, 4])
def test_smaller_batches_hold_the_same_rows(make_split: MakeSplit, split_rows: int) -> None:
    """Gradient accumulation: one batch of 4 rows is 4 / r batches of r rows."""
    split = make_split([[1, 2, 3], [4], [5, 6]])
    large = TrainOrder(split, context=3, batch_size=4, seed=1).batch(2)
    small = TrainOrder(split, context=3, batch_size=split_rows, seed=1)
    count = 4 // split_rows
    rows = [small.batch(2 * count + part).tokens for part in range(count)]
    assert torch.equal(torch.cat(rows), large.tokens)


def test_epochs_and_seeds_differ(make_split: MakeSplit) -> None:
    """Of 20! orders, four equal ones would be no chance."""
    split = make_split([[index] for index in range(1, 21)])
    orders = [tuple(order_of(split, epoch, seed)) for epoch in (0, 1) for seed in (0, 1)]
    assert len(set(orders)) == 4
    assert all(sorted(order) == list(range(20)) for order in orders)


def test_a_context_longer_than_the_corpus(make_split: MakeSplit) -> None:
    """2 + 1 tokens and two ends of text are 5 positions: 4 inputs and a last target."""
    split = make_split([[1, 2], [3]])
    expected = r"context = 5 is longer than the corpus, .* 5 tokens; expected at most 4, lower"
    with pytest.raises(DataError, match=expected):
        TrainOrder(split, context=5, batch_size=1, seed=0)
    assert TrainOrder(split, context=4, batch_size=1, seed=0).batch(0).tokens.shape == (1, 4)


def test_batches_are_whole_numbers_and_own_their_memory(make_split: MakeSplit) -> None:
    order = TrainOrder(make_split([[1, 2, 3]]), context=2, batch_size=3, seed=0)
    batch = order.batch(0)
    for tensor in (batch.tokens, batch.targets, batch.document):
        assert tensor.dtype == torch.int64
        assert tensor.shape == (3, 2)
        assert tensor.is_contiguous()
    batch.tokens.zero_()
    assert order.batch(0).tokens.sum() > 0


def test_evaluation_by_hand(make_split: MakeSplit) -> None:
    """One domain, [1 2 3] then [4]: sequence 0 1 2 3 0 4, five inputs, context 3.

    Row 1: 0 1 2 → 1 2 3. Row 2: 3 0, then padding → (4's start is not scored), 4.
    """
    split = make_split([[1, 2, 3], [4]])
    one, two = evaluation_documents(split, tokens_per_domain=None).tolist()
    (batch,) = evaluation_batches(split, context=3, batch_size=8, tokens_per_domain=None)
    if (one, two) == (0, 1):
        assert batch.tokens.tolist() == [[0, 1, 2], [3, 0, 0]]
        assert batch.targets.tolist() == [[1, 2, 3], [IGNORED, 4, IGNORED]]
        assert batch.document.tolist() == [[0, 0, 0], [0, 1, PADDING]]
    else:
        assert batch.tokens.tolist() == [[0, 4, 0], [1, 2, 0]]
        assert batch.targets.tolist() == [[4, IGNORED, 1], [2, 3, IGNORED]]
        assert batch.document.tolist() == [[1, 1, 0], [0, 0, PADDING]]


@given(DOCUMENTS, st.data(), st.integers(1, 9), st.integers(1, 4))
def test_every_byte_is_scored_once(
    make_split: MakeSplit,
    documents: list[list[int]],
    data: st.DataObject,
    context: int,
    batch_size: int,
) -> None:
    """A token of value v stands for v bytes: the targets' sum per domain is the bytes' sum."""
    count = len(documents)
    domains = data.draw(st.lists(st.integers(0, 2), min_size=count, max_size=count))
    budget = data.draw(st.none() | st.integers(1, 30))
    split = make_split(documents, domains)
    scored: Counter[int] = Counter()
    tokens: Counter[int] = Counter()
    for batch in evaluation_batches(
        split, context=context, batch_size=batch_size, tokens_per_domain=budget
    ):
        kept = batch.targets != IGNORED
        for target, document in zip(batch.targets[kept].tolist(), batch.document[kept].tolist()):
            scored[domains[document]] += target
            tokens[document] += 1
    chosen = evaluation_documents(split, tokens_per_domain=budget)
    held = Counter[int]()
    for index in chosen.tolist():
        held[domains[index]] += sum(documents[index])
    assert scored == held
    assert dict(tokens) == {int(index): len(documents[index]) for index in chosen}


@given(DOCUMENTS, st.data(), st.integers(1, 9), st.integers(1, 4))
def test_evaluation_rows_are_sound(
    make_split: MakeSplit,
    documents: list[list[int]],
    data: st.DataObject,
    context: int,
    batch_size: int,
) -> None:
    """One domain a row; an unscored target starts a document or is padding; padding is last."""
    count = len(documents)
    domains = data.draw(st.lists(st.integers(0, 2), min_size=count, max_size=count))
    split = make_split(documents, domains)
    batches = list(
        evaluation_batches(split, context=context, batch_size=batch_size, tokens_per_domain=None)
    )
    assert all(len(batch.tokens) == batch_size for batch in batches[:-1])
    rows = [row for b in batches for row in zip(b.tokens, b.targets, b.document)]
    for tokens, targets, document in rows:
        owners = document[document != PADDING]
        assert len(owners) >= 1
        assert torch.equal(document[: len(owners)], owners)
        assert len({domains[owner] for owner in owners.tolist()}) == 1
        assert (tokens[document == PADDING] == 0).all()
        assert (targets[document == PADDING] == IGNORED).all()
        assert 0 not in targets.tolist()
        for place in range(len(owners) - 1):
            if targets[place] != IGNORED:
                assert targets[place] == tokens[place + 1]
            else:
                assert tokens[place + 1] == 0
                assert owners[place] != owners[place + 1]


def test_bits_per_byte_of_a_uniform_guess(make_split: MakeSplit) -> None:
    """Each of n targets costs ln 100 nats: bits per byte = n · log2(100) / bytes, whatever the cut.

    Three tokens of 2 + 2 + 4 bytes: 3 · 6.643856 / 8 = 2.491446.
    """
    split = make_split([[2, 2], [4]])
    for context in (1, 2, 5):
        batches = evaluation_batches(split, context=context, batch_size=1, tokens_per_domain=None)
        nats = sum(int((batch.targets != IGNORED).sum()) for batch in batches) * log(100)
        assert nats / (log(2) * 8) == pytest.approx(2.491446, abs=1e-6)  # digits above


def test_budget_takes_whole_documents_until_it_is_met(make_split: MakeSplit) -> None:
    """Documents of 3 tokens: 1 to 3 tokens need one, 4 to 6 two, in the order of the hashes."""
    split = make_split([[1, 1, 1]] * 5)
    ranked = sorted(range(5), key=lambda index: unit_hash(f"document-{index}"))
    for budget, count in ((1, 1), (3, 1), (4, 2), (6, 2), (7, 3), (100, 5)):
        chosen = evaluation_documents(split, tokens_per_domain=budget)
        assert chosen.tolist() == ranked[:count]


def test_each_domain_has_its_own_budget(make_split: MakeSplit) -> None:
    split = make_split([[1] * 4] * 6, [0, 1, 0, 1, 0, 2])
    chosen = evaluation_documents(split, tokens_per_domain=5)
    assert [int(split.domain[index]) for index in chosen] == [0, 0, 1, 1, 2]


def test_a_larger_budget_only_adds(make_split: MakeSplit) -> None:
    split = make_split([[1] * (1 + index % 4) for index in range(12)], [0, 1] * 6)
    small = set(evaluation_documents(split, tokens_per_domain=4).tolist())
    large = set(evaluation_documents(split, tokens_per_domain=9).tolist())
    assert small < large < set(range(12))


def test_separate_rows_by_hand(make_split: MakeSplit) -> None:
    """Documents [1 2 3 4 5], [6], [7 8], context 4, each from the end of text (0) on.

    Document 0: 0 1 2 3 → 1 2 3 4, then 4 5 with one target only, left out. Document 1: 0 6 has one
    target only as well. Document 2: 0 7 8 → 7 8 and nothing, since 8 ends it.
    """
    split = make_split([[1, 2, 3, 4, 5], [6], [7, 8]])
    order = evaluation_documents(split, tokens_per_domain=None).tolist()
    (batch,) = evaluation_batches(
        split, context=4, batch_size=8, tokens_per_domain=None, separate=True
    )
    rows = {
        0: ([0, 1, 2, 3], [1, 2, 3, 4], [0, 0, 0, 0]),
        2: ([0, 7, 8, 0], [7, 8, IGNORED, IGNORED], [2, 2, 2, PADDING]),
    }
    expected = [rows[index] for index in order if index in rows]
    found = zip(batch.tokens.tolist(), batch.targets.tolist(), batch.document.tolist())
    assert list(found) == expected


def test_a_long_document_goes_on_in_further_rows(make_split: MakeSplit) -> None:
    """0 1 2 3 4 5 6 7 8 in rows of 3, of which the last has two targets and ends in an input."""
    batches = evaluation_batches(
        make_split([[1, 2, 3, 4, 5, 6, 7, 8]]),
        context=3,
        batch_size=2,
        tokens_per_domain=None,
        separate=True,
    )
    one, two = batches
    assert one.tokens.tolist() == [[0, 1, 2], [3, 4, 5]]
    assert one.targets.tolist() == [[1, 2, 3], [4, 5, 6]]
    assert two.tokens.tolist() == [[6, 7, 8]]
    assert two.targets.tolist() == [[7, 8, IGNORED]]


@given(DOCUMENTS, st.data(), st.integers(1, 9), st.integers(1, 4))
def test_separate_rows_hold_each_token_once(
    make_split: MakeSplit,
    documents: list[list[int]],
    data: st.DataObject,
    context: int,
    batch_size: int,
) -> None:
    """As input and as target, save in rows of under two targets; one document a row."""
    count = len(documents)
    domains = data.draw(st.lists(st.integers(0, 2), min_size=count, max_size=count))
    budget = data.draw(st.none() | st.integers(1, 30))
    split = make_split(documents, domains)
    inputs: dict[int, list[int]] = {}
    targets: dict[int, list[int]] = {}
    for batch in evaluation_batches(
        split, context=context, batch_size=batch_size, tokens_per_domain=budget, separate=True
    ):
        for row, following, document in zip(batch.tokens, batch.targets, batch.document):
            (owner,) = set(document.tolist()) - {PADDING}
            text = document == owner
            assert text.tolist() == sorted(text.tolist(), reverse=True)
            inputs.setdefault(owner, []).extend(row[text].tolist())
            targets.setdefault(owner, []).extend(following[following != IGNORED].tolist())
    for index in evaluation_documents(split, tokens_per_domain=budget).tolist():
        whole = [0, *documents[index]]
        # The rows begin at multiples of the context; only the last may be too short to count.
        last = len(documents[index]) // context * context
        short = len(whole) - 1 - last < min(2, context)
        assert inputs.get(index, []) == whole[: last if short else None]
        assert targets.get(index, []) == whole[1 : last + 1 if short else None]
