"""MONET, horizontal decomposition: an expert reads from its row and writes by its column.

    a = relu²(U x + b) [n, m];   y = Σ_j V_j Σ_h g2_hj Σ_i g1_hi a_i + Σ_hj g2_hj b2_j

Unit (i, j, c) reads U_ic and writes V_jc; its bias channel writes b2_j. Park et al., arXiv
2412.04139.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pellucid.core.unit import Code
from pellucid.ops.monet_mix import mix_horizontal
from pellucid.pools.monet import MonetConfig, MonetPool
from pellucid.pools.monet_router import PUBLISHED_STD, Routing
from pellucid.pools.pool import calibrate, decode_rows


@dataclass(frozen=True, kw_only=True)
class MonetHDConfig(MonetConfig):
    """MONET-HD; see ``MonetConfig``."""

    kind: Literal["monet-hd"] = "monet-hd"

    def build(
        self, *, name: str, width: int, output_rms: float, tied: nn.Module | None = None
    ) -> "MonetHD":
        self.check_router()
        pool = MonetHD(self, name, width)
        calibrate(pool, output_rms)
        return pool


class MonetHD(MonetPool):
    """Rows read, columns write."""

    def __init__(self, config: MonetHDConfig, name: str, width: int) -> None:
        super().__init__(config, name, width)
        shape = (config.side, config.neurons)
        std = PUBLISHED_STD if config.router == "batch" else width**-0.5
        self.reads = nn.Parameter(torch.randn(*shape, width) * std)
        self.read_bias = nn.Parameter(torch.zeros(shape))
        self.writes = nn.Parameter(torch.randn(*shape, width))
        self.write_bias = nn.Parameter(torch.zeros(config.side, width))

    def write(self, unit: Int[Tensor, "*u"]) -> Float[Tensor, "*u d"]:
        return self._writes()[self._write_row(unit)]

    def decode(self, code: Code) -> Float[Tensor, "*batch d"]:
        return decode_rows(Code(self._write_row(code.unit), code.gate, code.act), self._writes())

    def unit_tables(self) -> tuple[nn.Parameter, ...]:
        return self.reads, self.read_bias, self.writes, self.write_bias

    def write_tables(self) -> tuple[nn.Parameter, ...]:
        return self.writes, self.write_bias

    def _output(self, act: Float[Tensor, "T S"], routing: Routing) -> Float[Tensor, "T d"]:
        row, col = routing.row.to(act.dtype), routing.col.to(act.dtype)
        mixed = mix_horizontal(row, col, act.unflatten(1, (self.side, self.neurons)))
        return mixed.flatten(1) @ self.writes.flatten(0, 1) + col.sum(1) @ self.write_bias

    def _read_tables(self) -> tuple[Float[Tensor, "S d"], Float[Tensor, " S"]]:
        return self.reads.flatten(0, 1), self.read_bias.flatten()

    def _read_row(
        self, row: Int[Tensor, "*u"], col: Int[Tensor, "*u"], channel: Int[Tensor, "*u"]
    ) -> Int[Tensor, "*u"]:
        return row * self.neurons + channel

    def _write_norm(self, unit: Int[Tensor, "*u"]) -> Float[Tensor, "*u"]:
        return self._writes().norm(dim=-1)[self._write_row(unit)]

    def _writes(self) -> Float[Tensor, "W d"]:
        """The distinct writes: m neurons and the bias of every column."""
        return torch.cat([self.writes, self.write_bias.unsqueeze(1)], 1).flatten(0, 1)

    def _write_row(self, unit: Int[Tensor, "*u"]) -> Int[Tensor, "*u"]:
        _, col, channel = self._split(unit)
        return col * (self.neurons + 1) + channel
