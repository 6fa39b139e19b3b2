"""MONET, vertical decomposition: an expert's neurons and its output are each half row, half column.

    a1, a2 = relu²(U1 x + ..), relu²(U2 x + ..) [n, m/2], both of the full x
    top    = Σ_h Σ_i g1_hi (V11_i a1_i + V12_i Σ_j g2_hj a2_j + b1_i)
    bottom = Σ_h Σ_j g2_hj (V22_j a2_j + V21_j Σ_i g1_hi a1_i + b2_j)

Unit (i, j, c) reads U1_ic for c < m/2, else U2_jc, and writes [V11_i; V21_j] or [V12_i; V22_j]; its
bias channel writes [b1_i; b2_j]. An odd width gives the bottom the extra entry. Park et al., arXiv
2412.04139.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pellucid.core.unit import Code
from pellucid.ops.monet_mix import mix_vertical
from pellucid.pools.monet import MonetConfig, MonetPool
from pellucid.pools.monet_router import PUBLISHED_STD, Routing
from pellucid.pools.pool import calibrate, decode_rows


@dataclass(frozen=True, kw_only=True)
class MonetVDConfig(MonetConfig):
    """MONET-VD; see ``MonetConfig``."""

    kind: Literal["monet-vd"] = "monet-vd"

    def build(
        self, *, name: str, width: int, output_rms: float, tied: nn.Module | None = None
    ) -> "MonetVD":
        self.check_router()
        pool = MonetVD(self, name, width)
        calibrate(pool, output_rms)
        return pool


class MonetVD(MonetPool):
    """Rows and columns each own half of the reads and half of the output.

    ``reads`` holds U1 and U2; ``top`` V11 beside V12 and ``bottom`` V21 beside V22, by channel.
    """

    def __init__(self, config: MonetVDConfig, name: str, width: int) -> None:
        super().__init__(config, name, width)
        side, neurons, half = config.side, config.neurons, width // 2
        std = PUBLISHED_STD if config.router == "batch" else width**-0.5
        self.reads = nn.Parameter(torch.randn(2, side, neurons // 2, width) * std)
        self.read_bias = nn.Parameter(torch.zeros(2, side, neurons // 2))
        self.top = nn.Parameter(torch.randn(side, neurons, half))
        self.bottom = nn.Parameter(torch.randn(side, neurons, width - half))
        self.top_bias = nn.Parameter(torch.zeros(side, half))
        self.bottom_bias = nn.Parameter(torch.zeros(side, width - half))

    def write(self, unit: Int[Tensor, "*u"]) -> Float[Tensor, "*u d"]:
        top, bottom = self._writes()
        in_top, in_bottom = self._write_rows(unit)
        return torch.cat([top[in_top], bottom[in_bottom]], -1)

    def decode(self, code: Code) -> Float[Tensor, "*batch d"]:
        halves = [
            decode_rows(Code(index, code.gate, code.act), table)
            for index, table in zip(self._write_rows(code.unit), self._writes())
        ]
        return torch.cat(halves, -1)

    def unit_tables(self) -> tuple[nn.Parameter, ...]:
        return self.reads, self.read_bias, *self.write_tables()

    def write_tables(self) -> tuple[nn.Parameter, ...]:
        return self.top, self.bottom, self.top_bias, self.bottom_bias

    def _output(self, act: Float[Tensor, "T S"], routing: Routing) -> Float[Tensor, "T d"]:
        row, col = routing.row.to(act.dtype), routing.col.to(act.dtype)
        act_row, act_col = act.unflatten(1, (2, self.side, -1)).unbind(1)
        by_row, by_col = mix_vertical(row, col, act_row, act_col)
        top = by_row.flatten(1) @ self.top.flatten(0, 1) + row.sum(1) @ self.top_bias
        bottom = by_col.flatten(1) @ self.bottom.flatten(0, 1) + col.sum(1) @ self.bottom_bias
        return torch.cat([top, bottom], -1)

    def _read_tables(self) -> tuple[Float[Tensor, "S d"], Float[Tensor, " S"]]:
        return self.reads.flatten(0, 2), self.read_bias.flatten()

    def _read_row(
        self, row: Int[Tensor, "*u"], col: Int[Tensor, "*u"], channel: Int[Tensor, "*u"]
    ) -> Int[Tensor, "*u"]:
        half = self.neurons // 2
        from_row = row * half + channel
        return from_row.where(channel < half, (self.side + col - 1) * half + channel)

    def _write_norm(self, unit: Int[Tensor, "*u"]) -> Float[Tensor, "*u"]:
        top, bottom = (table.square().sum(-1) for table in self._writes())
        in_top, in_bottom = self._write_rows(unit)
        return (top[in_top] + bottom[in_bottom]).sqrt()

    def _writes(self) -> tuple[Float[Tensor, "W a"], Float[Tensor, "W b"]]:
        """The distinct top and bottom writes: m neurons and the bias of every row or column."""
        top = torch.cat([self.top, self.top_bias.unsqueeze(1)], 1)
        bottom = torch.cat([self.bottom, self.bottom_bias.unsqueeze(1)], 1)
        return top.flatten(0, 1), bottom.flatten(0, 1)

    def _write_rows(self, unit: Int[Tensor, "*u"]) -> tuple[Int[Tensor, "*u"], Int[Tensor, "*u"]]:
        row, col, channel = self._split(unit)
        return row * (self.neurons + 1) + channel, col * (self.neurons + 1) + channel
