"""Documents to batches: the training order as a pure function, and each validation byte once.

Documents follow one another as [end_of_text, tokens...]. Training cuts that sequence, epoch after
epoch in a fresh permutation, into windows of context + 1 tokens at stride context: inputs and
their successors. Every position is an input exactly once an epoch, across epochs too, and windows
are taken in rounds, each about an epoch long and shuffled. Evaluation runs through whole documents
of one domain at a time, so that

    bits per byte = Σ nats / (ln 2 · Σ UTF-8 bytes of the scored documents)

Rows packed so let a document's first tokens attend to the one before it, which is of the same
domain: a figure about domains would measure the packing too. Such figures take separate rows, one
document each.

Cost: a permutation an epoch (16 bytes a document), then the tokens copied. Separate rows pad what
their document leaves free: a document of n tokens takes ⌈(n + 1) / context⌉ rows, so the pass is up
to one row a document longer, twice the packed one for documents of about half a context.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from pellucid.core.errors import DataError
from pellucid.data.prepare import prepare, reopen
from pellucid.data.store import Corpus, Split
from pellucid.data.text import unit_hash

__all__ = [
    "IGNORED",
    "PADDING",
    "Batch",
    "Corpus",
    "Split",
    "TrainOrder",
    "evaluation_batches",
    "evaluation_documents",
    "prepare",
    "reopen",
]

IGNORED = -100  # a target that is not scored, as torch's cross-entropy has it
PADDING = -1  # the document of a position behind a row's last token
LEAST_TARGETS = 2  # of a separate row; fewer are not worth a row of padding

Row = tuple[np.ndarray, np.ndarray, np.ndarray]  # tokens, targets and documents of one row


@dataclass(frozen=True, slots=True)
class Batch:
    """Inputs, what follows each, and the document each input position belongs to.

    ``document`` indexes the split's documents; the end of text belongs to the document it starts.
    In evaluation, targets that start a document are ``IGNORED``, and padding holds the end of
    text with target ``IGNORED`` and document ``PADDING``.
    """

    tokens: Int[Tensor, "batch seq"]
    targets: Int[Tensor, "batch seq"]
    document: Int[Tensor, "batch seq"]


class DocumentStream:
    """Documents in a given order as one sequence of [end_of_text, tokens...]."""

    def __init__(self, split: Split, order: Int[np.ndarray, " documents"]) -> None:
        self._split = split
        self._order = order
        self._edges = np.concatenate(([0], np.cumsum(split.lengths[order] + 1)))

    def __len__(self) -> int:
        return int(self._edges[-1])

    def read(
        self, first: int, count: int
    ) -> tuple[Int[np.ndarray, " count"], Int[np.ndarray, " count"]]:
        """The tokens at ``first`` and behind, at most ``count``, and the document of each."""
        count = min(count, len(self) - first)
        tokens = np.full(count, self._split.end_of_text, dtype=np.int64)
        document = np.empty(count, dtype=np.int64)
        place = int(np.searchsorted(self._edges, first, side="right")) - 1
        filled = 0
        while filled < count:
            index = int(self._order[place])
            skipped = first + filled - int(self._edges[place])  # 0 at the end of text
            taken = min(int(self._edges[place + 1]) - first - filled, count - filled)
            document[filled : filled + taken] = index
            start = int(self._split.start[index]) + skipped - 1
            head = 1 if skipped == 0 else 0
            tokens[filled + head : filled + taken] = self._split.tokens[
                start + head : start + taken
            ]
            filled += taken
            place += 1
        return tokens, document


class TrainOrder:
    """The batches of training, each a pure function of (split, context, batch size, seed, step)."""

    def __init__(self, split: Split, *, context: int, batch_size: int, seed: int) -> None:
        self._split = split
        self._context = context
        self._batch_size = batch_size
        self._seed = seed
        self._epochs: dict[int, DocumentStream] = {}
        self.epoch_tokens = len(split.tokens) + split.num_documents
        self.round_windows = max(1, self.epoch_tokens // context)
        self._turn, self._shuffled = -1, np.zeros(0, dtype=np.int64)
        if self.epoch_tokens < context + 1:
            raise DataError(
                f"context = {context} is longer than the corpus, whose training text has "
                f"{self.epoch_tokens} tokens; expected at most {self.epoch_tokens - 1}, lower the "
                "context or add text"
            )

    def batch(self, step: int) -> Batch:
        """The batch of one step, counted from 0."""
        rows = range(step * self._batch_size, (step + 1) * self._batch_size)
        windows = [self._window(self.place(row) * self._context) for row in rows]
        tokens = torch.from_numpy(np.stack([tokens for tokens, _ in windows]))
        document = torch.from_numpy(np.stack([document for _, document in windows]))
        return Batch(
            tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous(), document[:, :-1].contiguous()
        )

    def place(self, row: int) -> int:
        """Which window of the endless stream the row-th row of training reads.

        Every ``round_windows`` rows are a permutation of as many windows, so that the rows of a
        batch come from different documents and not from one after the other.
        """
        turn, place = divmod(row, self.round_windows)
        if turn != self._turn:
            generator = np.random.Generator(np.random.PCG64((self._seed, turn, 1)))
            self._turn, self._shuffled = turn, generator.permutation(self.round_windows)
        return turn * self.round_windows + int(self._shuffled[place])

    def _window(self, first: int) -> tuple[np.ndarray, np.ndarray]:
        parts: list[tuple[np.ndarray, np.ndarray]] = []
        missing = self._context + 1
        while missing:
            epoch, place = divmod(first, self.epoch_tokens)
            parts.append(self._epoch(epoch).read(place, missing))
            first += len(parts[-1][0])
            missing -= len(parts[-1][0])
        return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])

    def _epoch(self, epoch: int) -> DocumentStream:
        if epoch not in self._epochs:
            # A round of windows lies in two epochs at the most.
            near = (epoch - 1, epoch + 1)
            self._epochs = {old: self._epochs[old] for old in self._epochs if old in near}
            generator = np.random.Generator(np.random.PCG64((self._seed, epoch)))
            order = generator.permutation(self._split.num_documents)
            self._epochs[epoch] = DocumentStream(self._split, order)
        return self._epochs[epoch]


def evaluation_documents(
    split: Split, *, tokens_per_domain: int | None
) -> Int[np.ndarray, " scored"]:
    """The documents that evaluation scores, domain by domain.

    Each domain's come in the order of their ids' hashes, as many as reach ``tokens_per_domain``
    (the last one whole), or all for ``None``. That order depends on no other document.
    """
    hashes = np.array([unit_hash(name) for name in split.ids])
    chosen: list[np.ndarray] = []
    for domain in np.unique(split.domain):
        members = np.flatnonzero(split.domain == domain)
        members = members[np.argsort(hashes[members], kind="stable")]
        if tokens_per_domain is not None:
            before = np.cumsum(split.lengths[members]) - split.lengths[members]
            members = members[before < tokens_per_domain]
        chosen.append(members)
    return np.concatenate(chosen)


def evaluation_batches(
    split: Split,
    *,
    context: int,
    batch_size: int,
    tokens_per_domain: int | None,
    separate: bool = False,
) -> Iterator[Batch]:
    """Batches in which every token of ``evaluation_documents`` is a target exactly once.

    A row holds one domain only; the last batch may have fewer rows. With ``separate`` a row holds
    one document only, which starts a row and goes on in further ones; its last token is an input
    too, and a row of fewer than two targets is left out. These are for what units do in a document,
    not for bits per byte, which divide by all of its bytes.
    """
    rows: list[Row] = []
    scored = evaluation_documents(split, tokens_per_domain=tokens_per_domain)
    for row in (_separate_rows if separate else _packed_rows)(split, scored, context):
        rows.append(row)
        if len(rows) == batch_size:
            yield _stack(rows)
            rows = []
    if rows:
        yield _stack(rows)


def _packed_rows(split: Split, scored: np.ndarray, context: int) -> Iterator[Row]:
    for domain in np.unique(split.domain[scored]):
        stream = DocumentStream(split, scored[split.domain[scored] == domain])
        for first in range(0, len(stream) - 1, context):
            tokens, document = stream.read(first, context + 1)
            yield _row(tokens, document, context, split.end_of_text, inputs=len(tokens) - 1)


def _separate_rows(split: Split, scored: np.ndarray, context: int) -> Iterator[Row]:
    for place in range(len(scored)):
        stream = DocumentStream(split, scored[place : place + 1])
        for first in range(0, len(stream), context):
            tokens, document = stream.read(first, context + 1)
            if len(tokens) > min(LEAST_TARGETS, context):
                inputs = min(len(tokens), context)
                yield _row(tokens, document, context, split.end_of_text, inputs=inputs)


def _row(
    tokens: np.ndarray, document: np.ndarray, context: int, end_of_text: int, *, inputs: int
) -> Row:
    """The first ``inputs`` of ``tokens`` and what follows each in its own document."""
    row = np.full(context, end_of_text, dtype=np.int64)
    targets = np.full(context, IGNORED, dtype=np.int64)
    owner = np.full(context, PADDING, dtype=np.int64)
    row[:inputs], owner[:inputs] = tokens[:inputs], document[:inputs]
    followed = len(tokens) - 1
    targets[:followed] = np.where(document[1:] == document[:-1], tokens[1:], IGNORED)
    return row, targets, owner


def _stack(rows: list[Row]) -> Batch:
    tokens, targets, document = (torch.from_numpy(np.stack(column)) for column in zip(*rows))
    return Batch(tokens, targets, document)
