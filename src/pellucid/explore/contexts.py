"""The strongest firings of chosen units, one per document, with the text around them."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

BEFORE, AFTER = 15, 8  # tokens shown on either side of the strongest


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """A stretch of one row of tokens around a firing, all from one document."""

    document: int
    tokens: tuple[int, ...]
    values: tuple[float, ...]
    focus: int


class TopContexts:
    """The ``keep`` largest |value| of each of k units over distinct documents, seen by batches."""

    def __init__(self, num_units: int, keep: int) -> None:
        self.keep = keep
        self.best: list[dict[int, Window]] = [{} for _ in range(num_units)]
        self.least = [0.0] * num_units

    def add(
        self,
        value: Float[Tensor, "batch seq k"],
        tokens: Int[Tensor, "batch seq"],
        document: Int[Tensor, "batch seq"],
    ) -> None:
        """Values of one batch; where ``document`` is negative nothing is taken."""
        strength = torch.where(document.unsqueeze(-1) >= 0, value.abs(), 0.0).flatten(0, 1)
        names, place = document.flatten().unique(return_inverse=True)
        peak = torch.zeros(len(names), strength.shape[1])
        peak.scatter_reduce_(0, place.unsqueeze(1).expand_as(strength), strength, "amax")
        for u, least in enumerate(self.least):
            for d in (peak[:, u] > least).nonzero().squeeze(1).tolist():
                here = torch.where(place == d, strength[:, u], -1.0)
                row, column = divmod(int(here.argmax()), tokens.shape[1])
                window = _window(value[row, :, u], tokens[row], document[row], column)
                self._offer(u, window)

    def top(self, unit: int) -> list[Window]:
        """The windows of one unit, strongest first."""
        return sorted(self.best[unit].values(), key=_strength, reverse=True)[: self.keep]

    def _offer(self, unit: int, window: Window) -> None:
        kept = self.best[unit]
        rival = kept.get(window.document)
        if rival is None or _strength(window) > _strength(rival):
            kept[window.document] = window
        if len(kept) > self.keep:
            del kept[min(kept.values(), key=_strength).document]
        if len(kept) == self.keep:
            self.least[unit] = min(_strength(window) for window in kept.values())


def _strength(window: Window) -> float:
    return abs(window.values[window.focus])


def _window(value: Tensor, tokens: Tensor, document: Tensor, focus: int) -> Window:
    """The part of [focus − BEFORE, focus + AFTER] that lies in the document of ``focus``."""
    start, stop = max(focus - BEFORE, 0), min(focus + AFTER + 1, len(tokens))
    other = (document[start:stop] != document[focus]).nonzero().squeeze(1) + start
    start = max([i + 1 for i in other.tolist() if i < focus], default=start)
    stop = min([i for i in other.tolist() if i > focus], default=stop)
    return Window(
        document=int(document[focus]),
        tokens=tuple(tokens[start:stop].tolist()),
        values=tuple(value[start:stop].tolist()),
        focus=focus - start,
    )
