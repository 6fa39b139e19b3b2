"""MONET: n² experts of m neurons whose tables are shared along the rows and columns of a square.

    gate of expert (i, j) = Σ_h g1_hi g2_hj,      a = relu²(read · x + bias)

Horizontal (``monet_hd``) or vertical (``monet_vd``) decomposition says which tables an expert takes
from its row i and which from its column j. Unit (i, j, c) is neuron c of expert (i, j), and channel
m its bias: read 0, act 1. There are n²·(m + 1) units but only n·m distinct reads, and the forward
pass never enumerates the experts: the sums factor through the heads (``ops.monet_mix``). A unit
listed in a code is an expert's own, so silencing it leaves g1 and g2 alone.

Park et al., "Monet: Mixture of Monosemantic Experts for Transformers", arXiv 2412.04139. Cost per
token: 4·n·m·d + 2·n·d + 4·H·n·m + 4·d·H·n FLOPs, every table row being read; three times that in
training. Rows and columns that no token keeps get no gradient from the task; the uniformity loss
brings them back.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from pellucid.core.code import take_largest
from pellucid.core.config import check_at_least_zero, check_positive
from pellucid.core.cost import Cost
from pellucid.core.errors import ConfigError
from pellucid.core.unit import Code
from pellucid.pools.merge import merge_repeats
from pellucid.pools.monet_router import MonetRouter, Routing, Rule, ambiguity, uniformity
from pellucid.pools.pool import Pool, pool_spec
from pellucid.pools.product_keys import check_choice

ENUMERABLE = 1 << 16  # units that ``activate`` lists without being asked for some of them
CHUNK_ENTRIES = 1 << 20  # candidate units weighed at a time under ``limit``

C = TypeVar("C", bound="MonetConfig")


@dataclass(frozen=True, kw_only=True)
class MonetConfig(ABC):
    """``side``² experts of ``neurons`` neurons; each of ``heads`` heads keeps ``kept`` per list.

    Sizes default to those of the published 850M model; ``router="batch"`` is faithful to it in
    rule and initialisation, the default is not (see ``monet_router``). ``balance_weight`` weighs
    both losses.
    """

    side: int = 512
    kept: int = 32
    heads: int = 6
    neurons: int = 12
    router: Rule = "topk"
    balance_weight: float = 1e-3

    def __post_init__(self) -> None:
        check_positive(self, "side", "kept", "heads", "neurons")
        check_at_least_zero(self, "balance_weight")
        if self.kept > self.side:
            raise ConfigError(
                f"kept: expected at most side = {self.side}, found {self.kept}; lower it"
            )
        if self.neurons % 2:
            raise ConfigError(
                f"neurons: expected an even number, half for rows and half for columns, "
                f"found {self.neurons}; use {self.neurons + 1}"
            )

    @classmethod
    def tiny(cls: type[C]) -> C:
        return cls(side=3, kept=2, heads=2, neurons=2)

    @property
    def free_size(self) -> int:
        return self.side

    def with_size(self: C, size: int) -> C:
        """``side`` set, and ``kept`` to the published sixteenth of it."""
        return replace(self, side=size, kept=max(1, size // 16))

    @abstractmethod
    def build(
        self, *, name: str, width: int, output_rms: float, tied: nn.Module | None = None
    ) -> "MonetPool": ...

    def check_router(self) -> None:
        """Refuse an exact choice of one entry, whose gate is identically 1."""
        if self.router == "topk":
            check_choice("kept", self.kept, self.side)

    def cost(self, width: int) -> Cost:
        n, m, heads = self.side, self.neurons, self.heads
        params = monet_params(width, side=n, neurons=m, heads=heads)
        forward = 4 * n * m * width + 2 * n * width + 4 * heads * n * m + 4 * width * heads * n
        return Cost(total=params, active=params, forward=forward, training=3 * forward)


def monet_params(
    width: int, *, side: int, neurons: int, heads: int, layers_per_router: int = 1
) -> int:
    """2nmd + nm + nd + 2dHn/ρ. The published models share a router among ρ = 4 layers; our slots
    own theirs, because a gate must be a function of its own slot's input."""
    tables = 2 * side * neurons * width + side * neurons + side * width
    return tables + 2 * width * heads * side // layers_per_router


class MonetPool(Pool):
    """What both decompositions share: the router, the unit axes and the sparse code."""

    def __init__(self, config: MonetConfig, name: str, width: int) -> None:
        axes = ("row", config.side), ("col", config.side), ("channel", config.neurons + 1)
        super().__init__(pool_spec(name, width, *axes))
        self.side, self.heads, self.neurons = config.side, config.heads, config.neurons
        self.balance_weight = config.balance_weight
        self.router = MonetRouter(
            width=width,
            side=config.side,
            kept=config.kept,
            heads=config.heads,
            rule=config.router,
        )

    @abstractmethod
    def _output(self, act: Float[Tensor, "T S"], routing: Routing) -> Float[Tensor, "T d"]:
        """The slot's output from the acts of all S = n·m distinct reads."""

    @abstractmethod
    def _read_tables(self) -> tuple[Float[Tensor, "S d"], Float[Tensor, " S"]]:
        """The S distinct reads and their biases."""

    @abstractmethod
    def _read_row(
        self, row: Int[Tensor, "*u"], col: Int[Tensor, "*u"], channel: Int[Tensor, "*u"]
    ) -> Int[Tensor, "*u"]:
        """Which distinct read a neuron uses."""

    @abstractmethod
    def _write_norm(self, unit: Int[Tensor, "*u"]) -> Float[Tensor, "*u"]:
        """‖write‖ of each unit."""

    def forward_with_parts(
        self, x: Float[Tensor, "*batch d"]
    ) -> tuple[Float[Tensor, "*batch d"], Mapping[str, Float[Tensor, ""]]]:
        rows = x.reshape(-1, x.shape[-1])
        routing = self.router(rows, track=True)
        y = self._output(self._acts(rows), routing).view(x.shape)
        if not self.training:
            return y, {}
        return y, {
            "uniformity": self.balance_weight * uniformity(routing),
            "ambiguity": self.balance_weight * ambiguity(routing),
        }

    def read(self, unit: Int[Tensor, "*u"]) -> Float[Tensor, "*u d"]:
        row, col, channel = self._split(unit)
        table, _ = self._read_tables()
        read = table[self._read_row(row, col, channel.clamp_max(self.neurons - 1))]
        return read.masked_fill((channel == self.neurons).unsqueeze(-1), 0.0)

    def _activate_rows(
        self, rows: Float[Tensor, "T d"], unit: Int[Tensor, " k"] | None, limit: int | None
    ) -> Code:
        routing = self.router(rows)
        if unit is not None:
            return self._named(rows, routing, unit)
        if limit is not None:
            return self._largest(rows, routing, limit)
        if self.spec.num_units > ENUMERABLE:
            raise ValueError(
                f"{self.spec.name}: {self.spec.num_units} units are too many to list, "
                f"more than {ENUMERABLE}; pass unit= or limit="
            )
        return self._candidates(self._acts(rows), routing.row, routing.col, self._kept_bound())

    def rest(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        return torch.zeros_like(x)

    def after_step(self) -> None:
        """Nothing changes between steps."""

    def _acts(self, rows: Float[Tensor, "T d"]) -> Float[Tensor, "T S"]:
        return F.relu(F.linear(rows, *self._read_tables())).square()

    def _split(
        self, unit: Int[Tensor, "*u"]
    ) -> tuple[Int[Tensor, "*u"], Int[Tensor, "*u"], Int[Tensor, "*u"]]:
        """(row, col, channel) of flat unit indices."""
        expert = torch.div(unit, self.neurons + 1, rounding_mode="floor")
        row = torch.div(expert, self.side, rounding_mode="floor")
        return row, expert % self.side, unit % (self.neurons + 1)

    def _named(self, rows: Float[Tensor, "T d"], routing: Routing, unit: Int[Tensor, " k"]) -> Code:
        row, col, channel = self._split(unit)
        gate = routing.row.new_zeros(rows.shape[0], unit.shape[0])
        for head in range(self.heads):
            gate = gate + routing.row[:, head, row] * routing.col[:, head, col]
        neuron = channel < self.neurons
        place = self._read_row(row, col, channel)
        used = place[neuron].unique()
        table, bias = self._read_tables()
        act = F.relu(F.linear(rows, table[used], bias[used])).square()
        act = F.pad(act, (0, 1), value=1.0)[:, torch.searchsorted(used, place).where(neuron, -1)]
        return Code(unit.expand(act.shape), gate, act)

    def _candidates(
        self,
        act: Float[Tensor, "T S"],
        row: Float[Tensor, "T H n"],
        col: Float[Tensor, "T H n"],
        kept: int,
    ) -> Code:
        """Every unit of the experts in the heads' supports of at most ``kept`` rows and columns."""
        if self.heads * kept**2 < self.side**2:
            row_gate, i = row.topk(kept, dim=-1)
            col_gate, j = col.topk(kept, dim=-1)
            expert = (i.unsqueeze(-1) * self.side + j.unsqueeze(-2)).flatten(1)
            gate = (row_gate.unsqueeze(-1) * col_gate.unsqueeze(-2)).flatten(1)
            expert, gate = merge_repeats(expert, gate, self.side**2)
        else:
            gate = torch.einsum("thi,thj->tij", row, col).flatten(1)
            expert = torch.arange(self.side**2, device=gate.device).expand(gate.shape)
        channel = torch.arange(self.neurons + 1, device=gate.device)
        unit = (expert.unsqueeze(-1) * (self.neurons + 1) + channel).flatten(1)
        gate = gate.repeat_interleave(self.neurons + 1, dim=1)
        i, j, c = self._split(unit)
        place = self._read_row(i, j, c).where(c < self.neurons, act.shape[1])
        return Code(unit, gate, F.pad(act, (0, 1), value=1.0).gather(1, place))

    def _kept_bound(self) -> int:
        """The most rows, or columns, that one head can keep."""
        return self.router.kept if self.router.rule == "topk" else self.side

    def _num_candidates(self, kept: int) -> int:
        experts = min(self.heads * kept**2, self.side**2)
        return experts * (self.neurons + 1)

    def _largest(self, rows: Float[Tensor, "T d"], routing: Routing, limit: int) -> Code:
        """The strongest units of each row, weighing only experts that some head keeps."""
        limit = min(limit, self._num_candidates(self._kept_bound()))
        kept = self._kept_bound()
        if kept == self.side and rows.shape[0]:
            # A threshold keeps what it keeps; count it rather than weigh every expert.
            kept = int(torch.stack([routing.row, routing.col]).count_nonzero(-1).max())
        step = max(1, CHUNK_ENTRIES // self._num_candidates(kept))
        codes: list[Code] = []
        for start in range(0, max(rows.shape[0], 1), step):
            part = slice(start, start + step)
            code = self._candidates(
                self._acts(rows[part]), routing.row[part], routing.col[part], kept
            )
            code = take_largest(code, self._write_norm(code.unit), limit)
            codes.append(_widen(code, limit))
        return Code(
            torch.cat([code.unit for code in codes]),
            torch.cat([code.gate for code in codes]),
            torch.cat([code.act for code in codes]),
        )


def _widen(code: Code, width: int) -> Code:
    """The same code padded to ``width`` entries by unit 0 at gate 0."""
    room = (0, width - code.unit.shape[1])
    return Code(F.pad(code.unit, room), F.pad(code.gate, room), F.pad(code.act, room))
