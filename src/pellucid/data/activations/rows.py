"""Aligned rows of several sites, and the columns in which they are kept.

A row is kept as (token, document, position), three int32, and one vector per site in the type
asked for; bfloat16, which numpy lacks, as its raw 16 bits. Vectors come back as float32.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from pellucid.core.errors import AddressError, nearest
from pellucid.core.unit import Site

DType = Literal["float32", "bfloat16", "float16"]
Columns = tuple[Shaped[np.ndarray, "B _"], ...]

INDEX = 3  # token, document, position
ROUNDED = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
KEPT = {"float32": np.float32, "bfloat16": np.uint16, "float16": np.float16}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Rows:
    """Rows of one batch: row i of every site belongs to the same token.

    ``document`` indexes the documents of the corpus split the rows come from, ``position`` is the
    place in the window that the model saw.
    """

    x: Mapping[Site, Float[Tensor, "B _"]]
    token: Int[Tensor, " B"]
    document: Int[Tensor, " B"]
    position: Int[Tensor, " B"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """The columns of a row: its index, then one per site."""

    sites: tuple[Site, ...]
    widths: tuple[int, ...]
    dtype: DType

    @property
    def columns(self) -> tuple[tuple[type[np.generic], int], ...]:
        """Type and width of every column."""
        return (np.int32, INDEX), *((KEPT[self.dtype], width) for width in self.widths)

    @property
    def row_bytes(self) -> tuple[int, ...]:
        """Bytes of one row in every column."""
        return tuple(np.dtype(kind).itemsize * width for kind, width in self.columns)

    def empty(self, rows: int) -> Columns:
        """Columns to be filled."""
        return tuple(np.empty((rows, width), dtype=kind) for kind, width in self.columns)

    def chosen(self, sites: Sequence[Site] | None) -> tuple[int, ...]:
        """The places of ``sites`` among the columns, all for ``None``; an unknown one is an
        ``AddressError``."""
        wanted = self.sites if sites is None else sites
        for site in wanted:
            if site not in self.sites:
                known = nearest(str(site), map(str, self.sites))
                raise AddressError(f"site {site}: was not harvested; {known}")
        return tuple(1 + self.sites.index(site) for site in wanted)

    def encode(self, index: Int[Tensor, "B 3"], x: Sequence[Float[Tensor, "B _"]]) -> Columns:
        """The columns of rows whose vectors have the kept type already."""
        bits = torch.uint16 if self.dtype == "bfloat16" else ROUNDED[self.dtype]
        vectors = (vector.cpu().contiguous().view(bits).numpy() for vector in x)
        return index.to("cpu", torch.int32).numpy(), *vectors

    def decode(self, index: Int[np.ndarray, "B 3"], vectors: Mapping[int, np.ndarray]) -> Rows:
        """Rows from their index and from vectors by column; they share memory where they can."""
        token, document, position = torch.from_numpy(index).long().unbind(-1)
        x = {
            self.sites[column - 1]: torch.from_numpy(kept).view(ROUNDED[self.dtype]).float()
            for column, kept in vectors.items()
        }
        return Rows(x=x, token=token, document=document, position=position)
