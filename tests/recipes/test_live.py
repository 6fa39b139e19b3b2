"""Live units of pools whose codes are known."""

from collections.abc import Collection, Sequence

import pytest
import torch
from torch import Tensor

from pellucid.core.host import Edit, Trace
from pellucid.core.unit import Code, PoolSpec, Site
from pellucid.data.packing import PADDING, Batch
from pellucid.models.config import TransformerConfig
from pellucid.models.transformer import Transformer
from pellucid.pools.dense import DenseConfig
from pellucid.pools.hierarchy import HierarchyConfig
from pellucid.recipes import live
from pellucid.recipes.live import live_share

SITE = Site(module="layer", port="in")
END = 98  # the end of text


class TokenHost:
    """Its one site holds the tokens themselves."""

    def width(self, site: Site) -> int:
        return 1

    def run(
        self, tokens: Tensor, *, edits: Sequence[Edit] = (), keep: Collection[Site] = ()
    ) -> Trace:
        return Trace(torch.zeros(*tokens.shape, 2), {SITE: tokens[..., None].float()})


class TokenPool:
    """Unit t speaks on token t; with its value 0 where the token is odd."""

    def __init__(self, units: int) -> None:
        self.spec = PoolSpec(
            name="layer", reads=SITE, writes=SITE, axes=(("unit", units),), d_in=1, d_out=1
        )
        self.rows = 0

    def activate(self, x: Tensor, *, unit: Tensor | None = None, limit: int | None = None) -> Code:
        self.rows += x.shape[0]
        return Code(x.long(), (x + 1) % 2, torch.ones_like(x))

    def read(self, unit: Tensor) -> Tensor:
        return torch.ones(*unit.shape, 1)

    write = read

    def decode(self, code: Code) -> Tensor:
        return code.value

    def rest(self, x: Tensor) -> Tensor:
        return x


def batch(tokens: list[int], document: list[int] | None = None) -> Batch:
    row = torch.tensor([tokens])
    return Batch(row, row, torch.tensor([document or [0] * len(tokens)]))


def test_units_with_a_value_somewhere():
    # Tokens 0, 2 and 4 speak, 3 has value 0, and 1, 5 … 9 do not occur: 3 of 10.
    batches = [batch([0, 2, 3]), batch([2, 4, 3])]
    pool = TokenPool(10)
    found = live_share(TokenHost(), {"layer": pool}, batches, "cpu", end_of_text=END)
    assert found == pytest.approx(0.3)


def test_padding_is_no_text():
    padded = batch([0, 8, 8], [0, PADDING, PADDING])
    found = live_share(TokenHost(), {"layer": TokenPool(10)}, [padded], "cpu", end_of_text=END)
    assert found == pytest.approx(0.1)


def test_the_end_of_text_is_no_text():
    # Token 8 speaks in a document, and starts one: only the first counts.
    for end, share in ((END, 0.2), (8, 0.1)):
        pools = {"layer": TokenPool(10)}
        found = live_share(TokenHost(), pools, [batch([8, 2])], "cpu", end_of_text=end)
        assert found == pytest.approx(share)


def test_pools_are_weighed_by_their_units():
    # 2 of 4 and 2 of 12 units.
    pools = {"a": TokenPool(4), "b": TokenPool(12)}
    found = live_share(TokenHost(), pools, [batch([0, 2])], "cpu", end_of_text=END)
    assert found == pytest.approx(4 / 16)


def test_many_rows_are_read_in_pieces(monkeypatch):
    monkeypatch.setattr(live, "CODE_ENTRIES", 1)
    tokens = [0, 2, 4, 6] * 50
    pool = TokenPool(10)
    found = live_share(TokenHost(), {"layer": pool}, [batch(tokens)], "cpu", end_of_text=END)
    assert found == pytest.approx(0.4)
    assert pool.rows == 200


def test_a_real_model():
    shape = {"width": 16, "layers": 2, "heads": 2, "kv_heads": 1, "head_dim": 8}
    slots = (DenseConfig(hidden=9), HierarchyConfig(pools=5, slots=7, open_pools=3, k=4))
    model = Transformer(TransformerConfig(**shape, vocab_size=32, context=8, ffn=slots)).eval()
    tokens = torch.randint(32, (3, 8))
    batches = [Batch(tokens, tokens, torch.zeros_like(tokens))]
    found = live_share(model, model.pools(), batches, "cpu", end_of_text=END)
    # GELU neurons always speak; of the 35 units at most 4 in each of 24 rows, at least 4 in all.
    assert (9 + 4) / 44 <= found <= 1.0
    dense = {"blocks.0.ffn": model.pools()["blocks.0.ffn"]}
    assert live_share(model, dense, batches, "cpu", end_of_text=END) == 1.0
