"""Windows through a host: the rows of every site, checked, in the columns in which they are kept.

Cost: one forward pass; a batch of the host's tensors is held, and the logits it insists on.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from pellucid.core.errors import DataError
from pellucid.core.host import Host
from pellucid.core.unit import Site
from pellucid.data.activations.rows import ROUNDED, Columns, Layout
from pellucid.data.activations.windows import WindowBatch, Windows

SHOWN = 5  # documents named in an error


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """Rows in columns; ``number`` counts them from the first of the windows, those left out too.

    ``nonfinite`` counts per site the rows that were left out for it.
    """

    columns: Columns
    number: Int[np.ndarray, " B"]
    nonfinite: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RowReader:
    """Runs ``host`` and takes what is asked for from it."""

    host: Host
    layout: Layout
    nonfinite: Literal["refuse", "drop"]
    device: torch.device | str

    @torch.no_grad()
    def read(self, windows: Windows, first: int, last: int, *, rows: int) -> Block:
        """The rows of windows ``first`` to ``last`` (excluded) among the first ``rows`` of all.

        Errors: a ``DataError`` for a site that gives no [sequences, positions, width] or another
        width than before, and for rows with NaN or inf where they are refused.
        """
        batch = windows.read(first, last)
        kept = self.host.run(batch.tokens.to(self.device), keep=self.layout.sites).kept
        before = windows.rows_before_window(first)
        place = batch.row.flatten().nonzero()[: max(0, rows - before), 0]
        position = torch.arange(windows.context).expand_as(batch.tokens)
        index = torch.stack((batch.tokens, batch.document, position), -1).flatten(0, 1)[place]
        finite: list[Tensor] = []
        vectors: list[Tensor] = []
        for site, width in zip(self.layout.sites, self.layout.widths):
            _check_shape(site, kept[site], batch, width)
            vector = kept[site].flatten(0, 1)[place.to(kept[site].device)]
            vectors.append(vector.to(ROUNDED[self.layout.dtype]).cpu())
            finite.append(vectors[-1].isfinite().all(-1))
            if self.nonfinite == "refuse" and not finite[-1].all():
                overflow = bool(vector.isfinite().all())
                raise self._refusal(site, finite[-1], index[:, 1], windows.split.ids, overflow)
        good = torch.stack(finite).all(0)
        return Block(
            self.layout.encode(index[good], [vector[good] for vector in vectors]),
            before + np.flatnonzero(good.numpy()),
            tuple(int((~mask).sum()) for mask in finite),
        )

    def _refusal(
        self,
        site: Site,
        finite: Bool[Tensor, " B"],
        document: Int[Tensor, " B"],
        ids: Sequence[str],
        overflow: bool,
    ) -> DataError:
        found = [repr(ids[i]) for i in dict.fromkeys(document[~finite].tolist())]
        more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        what = f"values too large for {self.layout.dtype}" if overflow else "NaN or inf"
        mend = "choose another dtype, or" if overflow else "mend the model, or"
        return DataError(
            f"site {site}: {int((~finite).sum())} of the {len(finite)} rows of this batch hold "
            f"{what}, in the documents {', '.join(found[:SHOWN])}{more}; {mend} set nonfinite to "
            "drop, which leaves them out"
        )


def _check_shape(site: Site, tensor: Tensor, batch: WindowBatch, width: int) -> None:
    if tensor.ndim != 3:
        raise DataError(
            f"site {site}: expected a tensor of [sequences, positions, width], found the shape "
            f"{list(tensor.shape)}; choose a module that has one vector per token"
        )
    if tensor.shape[2] != width:
        raise DataError(
            f"site {site}: its width changes: expected {width}, found {tensor.shape[2]}; choose a "
            "module that has one vector of fixed width per token"
        )
    if tensor.shape[:2] != batch.tokens.shape:
        raise DataError(
            f"site {site}: expected {batch.tokens.shape[0]} sequences of {batch.tokens.shape[1]} "
            f"positions, found {list(tensor.shape[:2])}; choose a module that keeps every token"
        )
