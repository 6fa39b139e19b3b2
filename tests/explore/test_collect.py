"""Unit records: every field by hand, and the half of the documents it may come from."""

import pytest
import torch

from pellucid.core.unit import Code
from pellucid.explore.activity import measure_activity
from pellucid.explore.choose import ChosenUnit
from pellucid.explore.collect import collect_records
from pellucid.explore.halves import SHOW, Halves


def _table(letters, text: str, scale: float = 1.0) -> torch.Tensor:
    table = torch.zeros(letters.vocab_size, len(text))
    for axis, token in enumerate(letters.encode(text)):
        table[token, axis] = scale
    return table


def _chosen(*units: int, position: int = 0) -> list[ChosenUnit]:
    return [ChosenUnit(position=position, unit=unit, control=False) for unit in units]


@pytest.fixture
def collected(make_corpus, make_host, make_pool, letters, batches_of):
    """A function that measures and collects units of a pool of letter detectors."""

    def collect(documents, units, *, pool=None, context: int = 32, ids=None, **more):
        corpus = make_corpus(documents, ids=ids)
        host = make_host(_table(letters, "abcd"))
        pool = make_pool(torch.eye(4), axes=(("pool", 2), ("slot", 2))) if pool is None else pool
        activity = measure_activity(
            host, [pool], batches_of(corpus, context), corpus.validation, corpus.domains
        )
        records = collect_records(
            host, [pool], batches_of(corpus, context), corpus, activity, _chosen(*units), **more
        )
        return records, activity[0], corpus

    return collect


DOCUMENTS = [("x", "aabbz"), ("x", "abaaz"), ("y", "ccabz"), ("y", "cccdz"), ("y", "dacdz")]


def test_counts_come_from_the_half_that_is_shown(collected):
    [record], activity, _ = collected(DOCUMENTS, [0])
    fires, tokens = activity.fires[SHOW, 0], activity.tokens[SHOW]
    assert record.fires == int(fires.sum()) > 0
    assert record.tokens == int(tokens.sum()) < int(activity.tokens.sum())
    rate = (fires / tokens).tolist()
    shares = dict(record.domains)
    assert shares["x"] == pytest.approx(rate[0] / sum(rate))
    assert shares["y"] == pytest.approx(rate[1] / sum(rate))
    assert [share for _, share in record.domains] == sorted(shares.values(), reverse=True)


def test_names(collected):
    [record], _, _ = collected(DOCUMENTS, [3])
    assert (record.pool, record.unit) == ("blocks.0.ffn", 3)
    assert record.address == "blocks.0.ffn@pool=1,slot=1"


def test_contexts_are_the_shown_documents_once_each(collected, batches_of):
    [record], activity, corpus = collected(DOCUMENTS * 3, [0])
    names = [context.document for context in record.contexts]
    assert len(set(names)) == len(names) > 0
    for context in record.contexts:
        index = corpus.validation.ids.index(context.document)
        assert context.domain == corpus.domains[corpus.validation.domain[index]]
        # The detector of "a" fires on it with 1 and nowhere else.
        assert context.tokens[context.focus] == "a"
        assert list(context.values) == [float(token == "a") for token in context.tokens]
        # The end of text before a document is not part of it.
        assert "".join(context.tokens) == (DOCUMENTS * 3)[index][1]
    halves = Halves(torch.as_tensor(corpus.validation.domain))
    for batch in batches_of(corpus, 32):
        halves.of(batch.document[batch.document >= 0])
    shown = [corpus.validation.ids.index(name) for name in names]
    assert halves.of(torch.tensor(shown)).tolist() == [SHOW] * len(shown)
    assert activity.fires[SHOW, 0].sum() > 0


def test_pieces_of_the_books_that_were_chosen_on_are_not_shown(collected):
    # Of the four books of a domain two are shown, with all their pieces.
    documents = [("x", "aabz")] * 12 + [("y", "cabz")] * 12
    ids = [f"{domain}/book{index % 4}.txt#{index}" for index, (domain, _) in enumerate(documents)]
    [record], activity, _ = collected(documents, [0], ids=ids, contexts=24)
    books = {context.document.partition("#")[0] for context in record.contexts}
    assert len(record.contexts) == 12
    assert len(books) == 4
    assert record.tokens == int(activity.tokens[SHOW].sum()) == 12 * 4


def test_number_of_contexts(collected):
    [record], _, _ = collected(DOCUMENTS * 10, [0], contexts=3)
    assert len(record.contexts) == 3


def test_a_silent_unit_has_no_contexts(collected):
    [record], _, _ = collected([("x", "aaz"), ("x", "abz"), ("y", "baz"), ("y", "bbz")], [2])
    assert record.contexts == ()
    assert (record.fires, record.selectivity) == (0, 0.0)


def test_read_side(collected, make_pool):
    # The read direction (2, 1, 0, 0) has cosine 2/√5 with a, 1/√5 with b, 0 with c. Tokens seen
    # less than five times are left out: d.
    reads = torch.tensor([[2.0, 1.0, 0.0, 0.0]])
    documents = [("x", "abcabcabcabcabcd"), ("y", "abcabcabcabcabcd")]
    [record], _, _ = collected(documents, [0], pool=make_pool(reads))
    assert [token for token, _ in record.reads[:2]] == ["a", "b"]
    assert [score for _, score in record.reads[:2]] == pytest.approx([2 / 5**0.5, 1 / 5**0.5])
    assert "d" not in [token for token, _ in record.reads]


def test_write_side_is_centred(collected, make_pool, letters):
    # Every row of the unembedding has 7 along axis 2, which raises all logits alike: no promotion.
    writes = torch.tensor([[0.0, 0.0, 1.0, 1.0]])
    unembedding = torch.zeros(letters.vocab_size, 4)
    unembedding[:, 2] = 7.0
    best, second = letters.encode("qr")
    unembedding[best, 3], unembedding[second, 3] = 2.0, 1.0
    pool = make_pool(torch.eye(4)[:1], writes)
    [record], _, _ = collected(DOCUMENTS, [0], pool=pool, unembedding=unembedding)
    mean = 3.0 / letters.vocab_size
    assert [token for token, _ in record.writes[:2]] == ["q", "r"]
    assert [s for _, s in record.writes[:2]] == pytest.approx([2 - mean, 1 - mean], abs=1e-5)


def test_without_an_unembedding_of_the_width_nothing_is_promoted(collected, make_pool, letters):
    [plain], _, _ = collected(DOCUMENTS, [0])
    assert plain.writes == ()
    wide = torch.randn(letters.vocab_size, 9)
    [other], _, _ = collected(DOCUMENTS, [0], unembedding=wide)
    assert other.writes == ()


def test_order_is_that_of_the_choice_over_several_pools(
    make_corpus, make_host, make_pool, letters, batches_of
):
    corpus, host = make_corpus(DOCUMENTS), make_host(_table(letters, "abcd"))
    pools = [make_pool(torch.eye(4)), make_pool(torch.eye(4), name="blocks.1.ffn")]
    batches = batches_of(corpus, 32)
    activity = measure_activity(host, pools, batches, corpus.validation, corpus.domains)
    chosen = [*_chosen(3, 0), *_chosen(2, position=1), *_chosen(1)]
    records = collect_records(host, pools, batches, corpus, activity, chosen)
    assert [(r.pool, r.unit) for r in records] == [
        ("blocks.0.ffn", 3),
        ("blocks.0.ffn", 0),
        ("blocks.1.ffn", 2),
        ("blocks.0.ffn", 1),
    ]
    for record in records:
        for context in record.contexts:
            assert context.tokens[context.focus] == "abcd"[record.unit]


def test_a_pool_may_list_named_units_in_any_order(collected, make_pool):
    pool = make_pool(torch.eye(4))
    forward = pool.activate

    def backwards(x: torch.Tensor, *, unit=None, limit=None) -> Code:
        code = forward(x, unit=unit, limit=limit)
        return Code(code.unit.flip(-1), code.gate.flip(-1), code.act.flip(-1))

    pool.activate = backwards
    records, _, _ = collected(DOCUMENTS * 2, [0, 2], pool=pool)
    for record, letter in zip(records, "ac"):
        assert {c.tokens[c.focus] for c in record.contexts} == {letter}


def test_windows_do_not_leave_their_row(collected):
    # A context of four cuts the documents; what lies in another row is not shown.
    [record], _, _ = collected(DOCUMENTS * 2, [0], context=4)
    assert record.contexts
    assert all(len(context.tokens) <= 4 for context in record.contexts)


def test_nothing_chosen(collected):
    records, _, _ = collected(DOCUMENTS, [])
    assert records == ()
