"""Bounds on the text read, shared between streams and domains."""

from collections import Counter
from collections.abc import Iterator

from hypothesis import given
from hypothesis import strategies as st

from pellucid.data.balance import Room, balanced, bounded
from pellucid.data.document import Document


def documents(domain: str, *sizes: int) -> list[Document]:
    return [
        Document(id=f"{domain}{index}", text="x" * size, domain=domain, split="train")
        for index, size in enumerate(sizes)
    ]


def size_by_domain(kept: list[Document]) -> Counter[str]:
    total: Counter[str] = Counter()
    for document in kept:
        total[document.domain] += len(document.text.encode())
    return total


def test_one_domain_takes_the_whole_bound() -> None:
    """3 + 3 = 6 fits into 8, a third document would make 9."""
    assert len(list(bounded(documents("a", 3, 3, 3), 8))) == 2


def test_a_document_larger_than_the_bound_is_passed_over() -> None:
    assert [d.id for d in bounded(documents("a", 100, 3), 8)] == ["a1"]


def test_bytes_are_counted_not_characters() -> None:
    """'é' is two bytes: 2 + 2 fits into 5, one more does not."""
    accented = [Document(id=str(i), text="é", domain="a", split="train") for i in range(3)]
    assert len(list(bounded(accented, 5))) == 2


def test_two_domains_of_one_stream_share_its_bound() -> None:
    """Once both are known each may hold 100 / 2 = 50, five documents of ten."""
    mixed = [
        d for pair in zip(documents("a", *[10] * 20), documents("b", *[10] * 20)) for d in pair
    ]
    assert size_by_domain(list(bounded(mixed, 100))) == {"a": 50, "b": 50}


def test_a_stream_is_not_read_beyond_its_bound() -> None:
    read: list[str] = []

    def watched() -> Iterator[Document]:
        for document in documents("a", *[10] * 100):
            read.append(document.id)
            yield document

    assert len(list(bounded(watched(), 35))) == 3
    assert read == ["a0", "a1", "a2", "a3"]


def test_what_a_small_stream_leaves_goes_to_the_next() -> None:
    """Bound 100 over 3: a has only 10, b and c share the other 90 as 45 and 45."""
    streams = [documents("a", 10), documents("b", *[5] * 30), documents("c", *[5] * 30)]
    assert size_by_domain(list(balanced(streams, 100))) == {"a": 10, "b": 45, "c": 45}


def with_validation(train: int, validation: int) -> list[Document]:
    """Documents of 10 bytes: training ones first, those to hold out at the end."""
    return [
        *documents("a", *[10] * train),
        *(
            Document(id=f"v{index}", text="x" * 10, domain="a", split="validation")
            for index in range(validation)
        ),
    ]


def test_room_is_kept_for_validation_documents_that_come_late() -> None:
    """Bound 100, a fifth held out: 8 to train, and on to the 2 that stand behind 90 others."""
    kept = list(bounded(with_validation(90, 5), 100, validation_share=0.2))
    assert [document.id for document in kept] == [*(f"a{i}" for i in range(8)), "v0", "v1"]


def test_without_a_share_the_first_to_come_take_the_room() -> None:
    kept = list(bounded(with_validation(90, 5), 100))
    assert [document.split for document in kept] == ["train"] * 10


def test_a_share_ends_the_stream_once_both_rooms_are_full() -> None:
    """5 to train and 5 held out; the sixth of either finds its room full, and reading stops."""
    mixed = [d for pair in zip(with_validation(50, 0), with_validation(0, 50)) for d in pair]
    stream = iter(mixed)
    assert len(list(bounded(stream, 100, validation_share=0.5))) == 10
    assert len(list(stream)) == 100 - 12


def test_room_by_hand() -> None:
    """Room for 10: 6 of a, then b may have 10 / 2 = 5; 2 more would fit, 5 fill it for good."""
    room = Room(10)
    assert not room.admit("a", 11)
    assert room.admit("a", 6)
    assert not room.full
    assert room.admit("b", 2)
    assert not room.admit("a", 1)  # a has more than its half by now
    assert not room.admit("b", 5)
    assert room.full
    assert not room.admit("b", 1)
    assert Room(0).full


@given(
    st.lists(st.lists(st.integers(1, 30), max_size=10), min_size=1, max_size=5),
    st.integers(1, 200),
)
def test_the_bound_holds_and_order_is_kept(sizes: list[list[int]], bound: int) -> None:
    streams = [documents(f"{index}-", *row) for index, row in enumerate(sizes)]
    kept = list(balanced(streams, bound))
    assert sum(len(d.text.encode()) for d in kept) <= bound
    order = [d.id for stream in streams for d in stream]
    places = [order.index(d.id) for d in kept]
    assert places == sorted(places)


@given(st.lists(st.integers(1, 30), min_size=1, max_size=10))
def test_a_generous_bound_keeps_everything(sizes: list[int]) -> None:
    stream = documents("a", *sizes)
    assert list(balanced([stream], sum(sizes))) == stream
