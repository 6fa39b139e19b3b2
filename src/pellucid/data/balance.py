"""Bound the text read from several streams so that no file and no domain takes the others' room.

Streams share what is left evenly, the smallest first, so what a small one leaves goes to those
behind it. Within a stream a domain may take bound / (domains met so far). One pass, O(domains)
memory; a stream sorted by domain is therefore balanced only as far as it is read.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from pellucid.data.document import Document


def bounded(documents: Iterable[Document], limit: int) -> Iterator[Document]:
    """Whole documents of at most ``limit`` bytes in all; one that alone exceeds it is skipped."""
    taken: Counter[str] = Counter()
    for document in documents:
        size = len(document.text.encode())
        if size > limit:
            continue
        if taken.total() + size > limit:
            return
        taken[document.domain] += 0
        if taken[document.domain] + size <= limit / len(taken):
            taken[document.domain] += size
            yield document


def balanced(streams: Sequence[Iterable[Document]], max_bytes: int) -> Iterator[Document]:
    """Whole documents of at most ``max_bytes`` in all from streams in order of their size."""
    left = max_bytes
    for index, stream in enumerate(streams):
        for document in bounded(stream, left // (len(streams) - index)):
            left -= len(document.text.encode())
            yield document
