"""Documents as windows of ``context`` positions, and which positions of them are rows.

Documents follow one another as [end_of_text, tokens...] in a permuted order; window w holds the
positions from w · context on, so that every position occurs once, and the last window is padded
with the end of text. A row is a position that is neither an end of text nor padding nor, with
``first`` = drop, position 0 of its window. How many rows stand before any position follows from
the documents' lengths alone, so a harvest knows its size before the first forward pass. Cost:
16 bytes a document.
"""

from bisect import bisect_left
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from pellucid.core.errors import DataError
from pellucid.data.activations.config import HarvestConfig
from pellucid.data.activations.permutation import generator
from pellucid.data.packing import PADDING, DocumentStream
from pellucid.data.store import Corpus, Split


@dataclass(frozen=True, slots=True)
class WindowBatch:
    """Successive windows; ``document`` is ``PADDING`` behind the last position, ``row`` marks the
    positions that are rows."""

    tokens: Int[Tensor, "windows context"]
    document: Int[Tensor, "windows context"]
    row: Bool[Tensor, "windows context"]


class Windows:
    """The windows of a split's documents in the order given."""

    def __init__(
        self,
        split: Split,
        order: Int[np.ndarray, " documents"],
        *,
        context: int,
        first: Literal["drop", "keep"],
    ) -> None:
        self.split = split
        self.order = order
        self.context = context
        self._drop = first == "drop"
        self._stream = DocumentStream(split, order)
        lengths = split.lengths[order] + 1
        self._heads = np.cumsum(lengths) - lengths
        self._aligned = self._heads[self._heads % context == 0]
        self.rows = self.rows_before(len(self._stream))

    def __len__(self) -> int:
        return -(-len(self._stream) // self.context)

    def rows_before(self, position: int) -> int:
        """The rows among the first ``position`` positions."""
        rows = position - int(np.searchsorted(self._heads, position))
        if not self._drop:
            return rows
        dropped = -(-position // self.context) - int(np.searchsorted(self._aligned, position))
        return rows - dropped

    def rows_before_window(self, window: int) -> int:
        """The rows of all windows before ``window``."""
        return self.rows_before(min(window * self.context, len(self._stream)))

    def windows_for(self, rows: int) -> int:
        """How many windows, from the first, hold ``rows`` rows."""
        return bisect_left(range(len(self) + 1), rows, key=self.rows_before_window)

    def documents_for(self, rows: int) -> int:
        """How many documents, from the first, hold ``rows`` rows."""
        edges = np.append(self._heads, len(self._stream))
        return bisect_left(range(len(edges)), rows, key=lambda i: self.rows_before(int(edges[i])))

    def read(self, first: int, last: int) -> WindowBatch:
        """The windows from ``first`` on, ``last`` excluded."""
        start, size = first * self.context, (last - first) * self.context
        found, owner = self._stream.read(start, size)
        tokens = np.full(size, self.split.end_of_text, dtype=np.int64)
        document = np.full(size, PADDING, dtype=np.int64)
        tokens[: len(found)], document[: len(found)] = found, owner
        row = document != PADDING
        row[self._heads[slice(*np.searchsorted(self._heads, (start, start + size)))] - start] = (
            False
        )
        if self._drop:
            row[:: self.context] = False
        parts = (torch.from_numpy(part).view(-1, self.context) for part in (tokens, document, row))
        return WindowBatch(*parts)


def train_windows(corpus: Corpus, config: HarvestConfig, epoch: int = 0) -> Windows:
    """All training text, its documents permuted by the config's seed anew for every epoch.

    Errors: a ``DataError`` where the first epoch holds fewer rows than ``config.tokens``.
    """
    windows = _permuted(corpus.train, config, "train", epoch)
    if epoch == 0:
        _check_enough(windows, config, "tokens", "training")
    return windows


def validation_windows(corpus: Corpus, config: HarvestConfig) -> Windows:
    """As many whole documents of the permuted validation text as hold ``validation_tokens``.

    Errors: a ``DataError`` where all of it holds fewer rows.
    """
    everything = _permuted(corpus.validation, config, "validation", 0)
    _check_enough(everything, config, "validation_tokens", "validation")
    chosen = everything.order[: everything.documents_for(config.validation_tokens)]
    return Windows(corpus.validation, chosen, context=config.context, first=config.first)


def _permuted(split: Split, config: HarvestConfig, name: str, epoch: int) -> Windows:
    order = generator(f"{name} documents", config.seed, epoch).permutation(split.num_documents)
    return Windows(split, order, context=config.context, first=config.first)


def _check_enough(windows: Windows, config: HarvestConfig, field: str, text: str) -> None:
    wanted = getattr(config, field)
    if windows.rows < wanted:
        raise DataError(
            f"{field} = {wanted}, but the {text} text has only {windows.rows} tokens to harvest "
            f"in windows of {config.context} (first = {config.first}); lower {field} or add text"
        )
