"""The statistics pass, counted by hand, and on routers whose answer is known."""

import random

import pytest
import torch

from pellucid.core.host import Trace
from pellucid.explore.activity import measure_activity

POOLS = (("pool", 2), ("slot", 2))


def _one_hot(letters, text: str, width: int | None = None) -> torch.Tensor:
    """A table that gives the i-th letter of ``text`` the i-th axis and others nothing."""
    table = torch.zeros(letters.vocab_size, width or len(text))
    for axis, token in enumerate(letters.encode(text)):
        table[token, axis] = 1.0
    return table


@pytest.fixture
def by_hand(make_corpus, make_host, make_pool, letters, batches_of):
    """Units a, b in pool 0 and c, d in pool 1, on two domains of two documents each."""
    corpus = make_corpus([("x", "aabz"), ("x", "acz"), ("y", "ccz"), ("y", "ccbz")])
    host, pool = make_host(_one_hot(letters, "abcd")), make_pool(torch.eye(4), axes=POOLS)
    [found] = measure_activity(
        host, [pool], batches_of(corpus, 16), corpus.validation, corpus.domains
    )
    return found


def test_counts_by_hand(by_hand):
    # Tokens: x has aabz and acz, y has ccz and ccbz; the ends of text and padding are no tokens.
    assert by_hand.domains == ("x", "y")
    assert by_hand.tokens.sum(0).tolist() == [7, 7]
    assert by_hand.fires.sum(0).tolist() == [[3, 0], [1, 1], [1, 4], [0, 0]]
    # Both halves hold one document of each domain.
    assert (by_hand.tokens > 0).all()
    assert by_hand.dead_fraction == 0.25
    assert by_hand.live_share == 0.75


def test_means_by_hand(make_corpus, make_host, make_pool, letters, batches_of):
    corpus = make_corpus([("x", "aabz"), ("y", "ccdz")])
    pool = make_pool(torch.eye(4), axes=POOLS)
    host = make_host(_one_hot(letters, "abcd"))
    [found] = measure_activity(
        host, [pool], batches_of(corpus, 16), corpus.validation, corpus.domains
    )
    # Three of four letters have one unit each.
    assert found.tokens.tolist() == [[4, 4], [0, 0]]
    assert found.l0 == 0.75
    assert found.effective_l0 == 0.75
    assert found.fires[0].tolist() == [[2, 0], [1, 0], [0, 2], [0, 1]]
    assert found.map is not None
    assert found.map.used.tolist() == [[0.75, 0.0], [0.0, 0.75]]
    # Pool and domain are one: I = H = ln 2. Two documents can only swap their labels.
    assert found.map.nmi.value == pytest.approx(1.0, abs=1e-9)
    assert found.map.nmi.null_mean == pytest.approx(1.0, abs=1e-9)


def test_batching_and_context_do_not_matter(make_corpus, make_host, make_pool, letters, batches_of):
    texts = ["".join(random.Random(i).choices("abcd", k=20)) for i in range(8)]
    corpus = make_corpus([("xy"[i % 2], text) for i, text in enumerate(texts)])
    host, pool = make_host(_one_hot(letters, "abcd")), make_pool(torch.eye(4), axes=POOLS)
    # The end of text and 20 letters are three rows of seven.
    results = [
        measure_activity(
            host, [pool], batches_of(corpus, context), corpus.validation, corpus.domains
        )[0]
        for context in (7, 64)
    ]
    one, other = results
    assert torch.equal(one.fires, other.fires)
    assert torch.equal(one.tokens, other.tokens)
    assert one.map is not None
    assert other.map is not None
    assert one.map.nmi == other.map.nmi
    assert torch.equal(one.map.used, other.map.used)


def test_a_pool_of_one_axis_has_no_map(make_corpus, make_host, make_pool, letters, batches_of):
    corpus = make_corpus([("x", "aab"), ("y", "ccb")])
    pools = [make_pool(torch.eye(4)), make_pool(torch.eye(4), axes=POOLS, name="blocks.1.ffn")]
    host = make_host(_one_hot(letters, "abcd"))
    plain, hierarchy = measure_activity(
        host, pools, batches_of(corpus, 8), corpus.validation, corpus.domains
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


@pytest.fixture
def measure(batches_of):
    """The map of one pool; a row of 40 is the end of text and 39 letters."""

    def run(corpus, host, pool):
        batches = batches_of(corpus, 40)
        [found] = measure_activity(
            host, [pool], batches, corpus.validation, corpus.domains, min_occurrences=20
        )
        assert found.map is not None
        return found.map

    return run


def test_a_router_that_is_a_table_of_the_token(make_corpus, make_host, make_pool, letters, measure):
    corpus = make_corpus(_texts(60))
    found = measure(
        corpus,
        make_host(_one_hot(letters, "abcdefgh")),
        make_pool(torch.eye(8), axes=(("pool", 2), ("slot", 4))),
    )
    # Pool 0 for a to d, pool 1 for e to h: it follows words, and words follow domains.
    assert found.nmi.lift > 0.3
    assert found.nmi.z > 20
    assert found.nmi_given_token.value == 0.0
    assert found.nmi_given_token.lift == 0.0


def test_a_router_that_knows_the_domain(make_corpus, make_host, make_pool, letters, measure):
    # Words that lean less than in the last test leave more for the domain to tell.
    corpus = make_corpus(_texts(60, lean=0.2))
    # The site holds nothing but the document's first letter: pool 0 for X, pool 1 for Y.
    mark = _one_hot(letters, "XY")
    host = make_host(torch.zeros_like(mark), mark)
    found = measure(corpus, host, make_pool(torch.eye(2), axes=(("pool", 2), ("slot", 1))))
    assert found.nmi.value == pytest.approx(1.0, abs=1e-9)
    assert found.nmi_given_token.value == pytest.approx(1.0, abs=1e-9)
    assert found.nmi_given_token.lift > 0.5
    assert found.nmi_given_token.z > 20


def test_the_permuted_map_holds_the_same_uses(make_corpus, make_host, make_pool, letters, measure):
    corpus = make_corpus(_texts(60))
    found = measure(
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


class Follower:
    """Its one site holds the sum of the table's rows over all tokens of the row so far."""

    def __init__(self, table: torch.Tensor) -> None:
        self.table = table

    def width(self, site):
        return self.table.shape[1]

    def run(self, tokens, *, edits=(), keep=()):
        x = self.table[tokens].cumsum(1)
        return Trace(torch.zeros(*tokens.shape, len(self.table)), dict.fromkeys(keep, x))


@pytest.mark.parametrize("separate", [True, False])
def test_a_document_is_measured_alike_whatever_comes_before_it(
    make_corpus, make_pool, letters, batches_of, separate: bool
):
    """Unit a speaks from the first "a" of a row on: in packed rows, in all later documents."""
    host, pool = Follower(_one_hot(letters, "abcd")), make_pool(torch.eye(4), axes=POOLS)
    fires = []
    for first in ("aaa", "bbb"):
        corpus = make_corpus([("x", first), ("y", "cdc"), ("x", "cdc")], ids=["b", "c", "d"])
        batches = batches_of(corpus, 16, separate=separate)
        order = [document for batch in batches for document in batch.document.flatten().tolist()]
        # The hash of "b" is the smaller one, so the document "d" follows it in x.
        assert order.index(0) < order.index(2)
        [found] = measure_activity(host, [pool], batches, corpus.validation, corpus.domains)
        fires.append(found.fires.sum(0)[:, 0].tolist())
    # What x's two documents fire: the first 3 times a or b; c at 3 letters, d from the second on.
    after_a, after_b = fires
    if separate:
        assert (after_a, after_b) == ([3, 0, 3, 2], [0, 3, 3, 2])
    else:
        # The last letter of the domain is no input there: two are left of the second document.
        assert (after_a, after_b) == ([5, 0, 2, 1], [0, 5, 2, 1])


def test_pieces_of_one_parent_move_together(make_corpus, make_host, make_pool, letters, batches_of):
    """Two books of eight pieces: dealt apart, their pieces would look like 16 documents.

    The pool follows the book. The labels of two books can only stay or swap, so every permutation
    says the same as the text, and nothing is left above the null.
    """
    pieces = [("x", "aaa")] * 8 + [("y", "ccc")] * 8
    host, pool = make_host(_one_hot(letters, "abcd")), make_pool(torch.eye(4), axes=POOLS)
    lifts = []
    for name in ("{}#{}", "{}-{}"):
        ids = [name.format(domain, index) for index, (domain, _) in enumerate(pieces)]
        corpus = make_corpus(pieces, ids=ids)
        [found] = measure_activity(
            host, [pool], batches_of(corpus, 8), corpus.validation, corpus.domains
        )
        assert found.map is not None
        assert found.map.nmi.value == pytest.approx(1.0, abs=1e-9)
        lifts.append(found.map.nmi.lift)
        # A book is in one half; eight documents are in both.
        assert (found.tokens > 0).sum().item() == (2 if "#" in ids[0] else 4)
        used = sorted(found.map.used_permuted.flatten().tolist())
        assert (used == [0.0, 0.0, 1.0, 1.0]) == ("#" in ids[0])
    assert lifts[0] == pytest.approx(0.0, abs=1e-9)
    # Of C(16, 8) = 12,870 ways to deal the labels two are as clear as the text.
    assert lifts[1] > 0.5
