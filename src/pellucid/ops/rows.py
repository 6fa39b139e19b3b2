"""The n rows of an encoder or decoder, dense or sparse, behind one surface.

    a_bj = ⟨D_j, z_b⟩        y_b = Σ_k value_bk · D_{unit_bk}

``DenseRows`` holds a table [n, d]. ``SparseRows`` holds s values per row at fixed places, so that
everything costs O(s) instead of O(d) per row. What encodes, decodes or pursues asks for an
``AtomRows`` and works with either. All members are differentiable in the rows' weights, and in z
and value, except ``top`` and ``add_outer``.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from pellucid.ops.expander import (
    expander_all,
    expander_combine,
    expander_decode,
    expander_gather,
    expander_read,
    expander_topk,
)
from pellucid.ops.sparse_decode import sparse_decode, sparse_read
from pellucid.ops.topk_encode import Sign, topk_encode


class AtomRows(ABC):
    """n rows of width d: products with them, sums of them, and the rows themselves."""

    @property
    @abstractmethod
    def num(self) -> int:
        """How many rows there are."""

    @property
    @abstractmethod
    def width(self) -> int:
        """How long each row is."""

    @property
    @abstractmethod
    def weights(self) -> Float[Tensor, "n _"]:
        """The tensor that carries the rows' gradient: the table, or the values."""

    @abstractmethod
    def with_weights(self, weights: Float[Tensor, "n _"]) -> "AtomRows":
        """The same rows on other weights."""

    @abstractmethod
    def all(self, z: Float[Tensor, "B d"]) -> Float[Tensor, "B n"]:
        """⟨D_j, z⟩ for every row j."""

    @abstractmethod
    def some(self, z: Float[Tensor, "B d"], unit: Int[Tensor, "B K"]) -> Float[Tensor, "B K"]:
        """⟨D_j, z⟩ for the named rows of each z."""

    @abstractmethod
    def decode(self, unit: Int[Tensor, "B K"], value: Float[Tensor, "B K"]) -> Float[Tensor, "B d"]:
        """Σ value · D_unit over each row's entries."""

    @abstractmethod
    def combine(self, value: Float[Tensor, "B n"]) -> Float[Tensor, "B d"]:
        """Σ_j value_j · D_j over all rows."""

    @abstractmethod
    def gather(self, unit: Int[Tensor, "*u"]) -> Float[Tensor, "*u d"]:
        """The named rows, dense."""

    @abstractmethod
    def top(
        self,
        z: Float[Tensor, "B d"],
        bias: Float[Tensor, " n"] | None,
        k: int,
        sign: Sign,
        exclude: Int[Tensor, "B t"] | None = None,
    ) -> Int[Tensor, "B k"]:
        """The k rows with the largest ⟨D_j, z⟩ + bias, highest first, lower row in a tie.

        ``abs`` ranks by magnitude. ``exclude`` names rows that are left out.
        """

    @abstractmethod
    def block(self, start: int, stop: int) -> "AtomRows":
        """Rows ``start`` to ``stop``, as a view."""

    @abstractmethod
    def add_outer(
        self,
        total: Float[Tensor, "n _"],
        unit: Int[Tensor, " B"],
        x: Float[Tensor, "B d"],
    ) -> None:
        """Add to ``total`` the gradient with respect to the weights of Σ_b ⟨D_{unit_b}, x_b⟩."""

    def norms(self) -> Float[Tensor, " n"]:
        """‖D_j‖."""
        return self.weights.norm(dim=1)

    def scaled(self, factor: Float[Tensor, " n"]) -> "AtomRows":
        """Row j multiplied by ``factor[j]``."""
        return self.with_weights(self.weights * factor.unsqueeze(1))


@dataclass(frozen=True, slots=True, eq=False)
class DenseRows(AtomRows):
    """Rows of a table."""

    table: Float[Tensor, "n d"]

    @property
    def num(self) -> int:
        return self.table.shape[0]

    @property
    def width(self) -> int:
        return self.table.shape[1]

    @property
    def weights(self) -> Float[Tensor, "n _"]:
        return self.table

    def with_weights(self, weights: Float[Tensor, "n _"]) -> "DenseRows":
        return DenseRows(weights)

    def all(self, z: Float[Tensor, "B d"]) -> Float[Tensor, "B n"]:
        return F.linear(z.to(self.table.dtype), self.table)

    def some(self, z: Float[Tensor, "B d"], unit: Int[Tensor, "B K"]) -> Float[Tensor, "B K"]:
        return sparse_read(z, unit, self.table)

    def decode(self, unit: Int[Tensor, "B K"], value: Float[Tensor, "B K"]) -> Float[Tensor, "B d"]:
        return sparse_decode(unit, value, self.table)

    def combine(self, value: Float[Tensor, "B n"]) -> Float[Tensor, "B d"]:
        return value.to(self.table.dtype) @ self.table

    def gather(self, unit: Int[Tensor, "*u"]) -> Float[Tensor, "*u d"]:
        return F.embedding(unit, self.table)

    def top(
        self,
        z: Float[Tensor, "B d"],
        bias: Float[Tensor, " n"] | None,
        k: int,
        sign: Sign,
        exclude: Int[Tensor, "B t"] | None = None,
    ) -> Int[Tensor, "B k"]:
        return topk_encode(z, self.table, bias, k, sign, exclude)

    def block(self, start: int, stop: int) -> "DenseRows":
        return DenseRows(self.table[start:stop])

    def add_outer(
        self,
        total: Float[Tensor, "n _"],
        unit: Int[Tensor, " B"],
        x: Float[Tensor, "B d"],
    ) -> None:
        total.index_add_(0, unit, x.to(total.dtype))


@dataclass(frozen=True, slots=True, eq=False)
class SparseRows(AtomRows):
    """Rows with s non-zeros: ``values[j]`` at the places ``index[j]`` of a row of ``width``."""

    values: Float[Tensor, "n s"]
    index: Int[Tensor, "n s"]
    width: int  # pyright: ignore[reportIncompatibleMethodOverride]

    @property
    def num(self) -> int:
        return self.values.shape[0]

    @property
    def weights(self) -> Float[Tensor, "n _"]:
        return self.values

    def with_weights(self, weights: Float[Tensor, "n _"]) -> "SparseRows":
        return SparseRows(weights, self.index, self.width)

    def all(self, z: Float[Tensor, "B d"]) -> Float[Tensor, "B n"]:
        return expander_all(z, self.values, self.index)

    def some(self, z: Float[Tensor, "B d"], unit: Int[Tensor, "B K"]) -> Float[Tensor, "B K"]:
        return expander_read(z, unit, self.values, self.index)

    def decode(self, unit: Int[Tensor, "B K"], value: Float[Tensor, "B K"]) -> Float[Tensor, "B d"]:
        return expander_decode(unit, value, self.values, self.index, self.width)

    def combine(self, value: Float[Tensor, "B n"]) -> Float[Tensor, "B d"]:
        return expander_combine(value, self.values, self.index, self.width)

    def gather(self, unit: Int[Tensor, "*u"]) -> Float[Tensor, "*u d"]:
        return expander_gather(unit, self.values, self.index, self.width)

    def top(
        self,
        z: Float[Tensor, "B d"],
        bias: Float[Tensor, " n"] | None,
        k: int,
        sign: Sign,
        exclude: Int[Tensor, "B t"] | None = None,
    ) -> Int[Tensor, "B k"]:
        return expander_topk(z, self.values, self.index, bias, k, sign, exclude)

    def block(self, start: int, stop: int) -> "SparseRows":
        return SparseRows(self.values[start:stop], self.index[start:stop], self.width)

    def add_outer(
        self,
        total: Float[Tensor, "n _"],
        unit: Int[Tensor, " B"],
        x: Float[Tensor, "B d"],
    ) -> None:
        chosen = x.gather(1, self.index[unit].long())
        total.index_add_(0, unit, chosen.to(total.dtype))
