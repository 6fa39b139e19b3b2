"""Bound the text read from several streams so that no file and no domain takes the others' room.

Streams share what is left evenly, the smallest first, so what a small one leaves goes to those
behind it. Within a stream a domain may take bound / (domains met so far). One pass, O(domains)
memory; a stream sorted by domain is therefore balanced only as far as it is read.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from pellucid.data.document import Document


class Room:
    """So many bytes for documents, of which each domain met may take an equal part."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._taken: Counter[str] = Counter()
        self.full = limit == 0

    def admit(self, domain: str, size: int) -> bool:
        """Whether a document fits, which it then takes up.

        The room is full once one does not fit; a document larger than the whole room says nothing.
        """
        if self.full or size > self._limit:
            return False
        if self._taken.total() + size > self._limit:
            self.full = True
            return False
        self._taken[domain] += 0
        if self._taken[domain] + size > self._limit / len(self._taken):
            return False
        self._taken[domain] += size
        return True


def bounded(
    documents: Iterable[Document], limit: int, *, validation_share: float | None = None
) -> Iterator[Document]:
    """Whole documents of at most ``limit`` bytes in all.

    With a ``validation_share`` that part of the room is kept for validation documents, and the
    stream is read until they have come; without, documents of both splits take what they find.
    """
    held_out = int(limit * (validation_share or 0.0))
    train = Room(limit - held_out)
    validation = train if validation_share is None else Room(held_out)
    for document in documents:
        room = train if document.split == "train" else validation
        if room.admit(document.domain, len(document.text.encode())):
            yield document
        if train.full and validation.full:
            return


def balanced(
    streams: Sequence[Iterable[Document]],
    max_bytes: int,
    *,
    validation_share: float | None = None,
) -> Iterator[Document]:
    """Whole documents of at most ``max_bytes`` in all from streams in order of their size."""
    left = max_bytes
    for index, stream in enumerate(streams):
        limit = left // (len(streams) - index)
        for document in bounded(stream, limit, validation_share=validation_share):
            left -= len(document.text.encode())
            yield document
