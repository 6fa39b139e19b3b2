"""The statistics pass, counted by hand, and on routers whose answer is known."""

import random

import pytest
import torch

from pellucid.data.packing import Batch, evaluation_batches
from pellucid.explore.activity import measure_activity

POOLS = (("pool", 2), ("slot", 2))


def _batches(corpus, context: int) -> list[Batch]:
    return list(
        evaluation_batches(corpus.validation, context=context, batch_size=3, tokens_per_domain=None)
    )


def _one_hot(letters, text: str, width: int | None = None) -> torch.Tensor:
    """A table that gives the i-th letter of ``text`` the i-th axis and others nothing."""
    table = torch.zeros(letters.vocab_size, width or len(text))
    for axis, token in enumerate(letters.encode(text)):
        table[token, axis] = 1.0
    return table


@pytest.fixture
def by_hand(make_corpus, make_host, make_pool, letters):
    """Units a, b in pool 0 and c, d in pool 1, on two domains of two documents each."""
    corpus = make_corpus([("x", "aabz"), ("x", "acz"), ("y", "ccz"), ("y", "ccbz")])
    host, pool = make_host(_one_hot(letters, "abcd")), make_pool(torch.eye(4), axes=POOLS)
    [found] = measure_activity(
        host, [pool], _batches(corpus, 16), corpus.validation, corpus.domains
    )
    return found


def test_counts_by_hand(by_hand):
    # Streams: x is [E a a b z E a c z], y [E c c z E c c b z], or the two documents the other way
    # round. The last token of a stream is only a target, so each has 8 inputs; padding has none.
    assert by_hand.domains == ("x", "y")
    assert by_hand.tokens.sum(0).tolist() == [8, 8]
    assert by_hand.fires.sum(0).tolist() == [[3, 0], [1, 1], [1, 4], [0, 0]]
    # Both halves hold one document of each domain.
    assert (by_hand.tokens > 0).all()
    assert by_hand.dead_fraction == 0.25
    assert by_hand.live_share == 0.75


def test_means_by_hand(make_corpus, make_host, make_pool, letters):
    # One document a domain: inputs are E a a b and E c c d; one more letter ends each.
    corpus = make_corpus([("x", "aabz"), ("y", "ccdz")])
    pool = make_pool(torch.eye(4), axes=POOLS)
    host = make_host(_one_hot(letters, "abcd"))
    [found] = measure_activity(
        host, [pool], _batches(corpus, 16), corpus.validation, corpus.domains
    )
    # Three of four inputs have one unit each.
    assert found.tokens.tolist() == [[4, 4], [0, 0]]
    assert found.l0 == 0.75
    assert found.effective_l0 == 0.75
    assert found.fires[0].tolist() == [[2, 0], [1, 0], [0, 2], [0, 1]]
    assert found.map is not None
    assert found.map.used.tolist() == [[0.75, 0.0], [0.0, 0.75]]
    # Pool and domain are one: I = H = ln 2. Two documents can only swap their labels.
    assert found.map.nmi.value == pytest.approx(1.0, abs=1e-9)
    assert found.map.nmi.null_mean == pytest.approx(1.0, abs=1e-9)


def test_batching_and_context_do_not_matter(make_corpus, make_host, make_pool, letters):
    texts = ["".join(random.Random(i).choices("abcd", k=20)) for i in range(8)]
    corpus = make_corpus([("xy"[i % 2], text) for i, text in enumerate(texts)])
    host, pool = make_host(_one_hot(letters, "abcd")), make_pool(torch.eye(4), axes=POOLS)
    results = [
        measure_activity(
            host, [pool], _batches(corpus, context), corpus.validation, corpus.domains
        )[0]
        for context in (5, 64)
    ]
    one, other = results
    assert torch.equal(one.fires, other.fires)
    assert torch.equal(one.tokens, other.tokens)
    assert one.map is not None
    assert other.map is not None
    assert one.map.nmi == other.map.nmi
    assert torch.equal(one.map.used, other.map.used)


def test_a_pool_of_one_axis_has_no_map(make_corpus, make_host, make_pool, letters):
    corpus = make_corpus([("x", "aab"), ("y", "ccb")])
    pools = [make_pool(torch.eye(4)), make_pool(torch.eye(4), axes=POOLS, name="blocks.1.ffn")]
    host = make_host(_one_hot(letters, "abcd"))
    plain, hierarchy = measure_activity(
        host, pools, _batches(corpus, 8), corpus.validation, corpus.domains
    )
    assert plain.map is None
    assert hierarchy.map is not None
    assert torch.equal(plain.fires, hierarchy.fires)


def _texts(documents: int, lean: float = 0.7) -> list[tuple[str, str]]:
    """Documents of 39 letters a to h, first X or Y by domain; each domain leans to its letters."""
    draw = random.Random(0)
    found = []
    for i in range(documents):
        domain = "XY"[i % 2]
        own = "abcd" if domain == "X" else "efgh"
        body = (
            draw.choice(own) if draw.random() < lean else draw.choice("abcdefgh") for _ in range(38)
        )
        found.append((domain, domain + "".join(body)))
    return found


def _measure(corpus, host, pool):
    # 40 = the end of text and 39 letters, so that every row is one document.
    [found] = measure_activity(
        host, [pool], _batches(corpus, 40), corpus.validation, corpus.domains, min_occurrences=20
    )
    assert found.map is not None
    return found.map


def test_a_router_that_is_a_table_of_the_token(make_corpus, make_host, make_pool, letters):
    corpus = make_corpus(_texts(60))
    found = _measure(
        corpus,
        make_host(_one_hot(letters, "abcdefgh")),
        make_pool(torch.eye(8), axes=(("pool", 2), ("slot", 4))),
    )
    # Pool 0 for a to d, pool 1 for e to h: it follows words, and words follow domains.
    assert found.nmi.lift > 0.3
    assert found.nmi.z > 20
    assert found.nmi_given_token.value == 0.0
    assert found.nmi_given_token.lift == 0.0


def test_a_router_that_knows_the_domain(make_corpus, make_host, make_pool, letters):
    # Words that lean less than in the last test leave more for the domain to tell.
    corpus = make_corpus(_texts(60, lean=0.2))
    # The site holds nothing but the document's first letter: pool 0 for X, pool 1 for Y.
    mark = _one_hot(letters, "XY")
    host = make_host(torch.zeros_like(mark), mark)
    found = _measure(corpus, host, make_pool(torch.eye(2), axes=(("pool", 2), ("slot", 1))))
    assert found.nmi.value == pytest.approx(1.0, abs=1e-9)
    assert found.nmi_given_token.value == pytest.approx(1.0, abs=1e-9)
    assert found.nmi_given_token.lift > 0.5
    assert found.nmi_given_token.z > 20


def test_the_permuted_map_holds_the_same_uses(make_corpus, make_host, make_pool, letters):
    corpus = make_corpus(_texts(60))
    found = _measure(
        corpus,
        make_host(_one_hot(letters, "abcdefgh")),
        make_pool(torch.eye(8), axes=(("pool", 2), ("slot", 4))),
    )
    # Documents are equally long and domains equally large, so uses are conserved by column, but
    # the two rows lie closer together than in the map itself.
    torch.testing.assert_close(found.used.sum(0), found.used_permuted.sum(0))
    gap = (found.used[0] - found.used[1]).abs().max()
    assert (found.used_permuted[0] - found.used_permuted[1]).abs().max() < gap / 3


def test_nothing_to_count(make_corpus, make_host, make_pool, letters):
    corpus = make_corpus([("x", "aab"), ("y", "ccb")])
    pool = make_pool(torch.eye(4), axes=POOLS)
    [found] = measure_activity(
        make_host(_one_hot(letters, "abcd")), [pool], [], corpus.validation, corpus.domains
    )
    assert (found.l0, found.effective_l0, found.dead_fraction) == (0.0, 0.0, 1.0)
    assert found.map is not None
    assert found.map.nmi.value == 0.0
