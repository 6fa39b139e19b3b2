"""Rows in columns: the bits by hand, there and back, and sites by name."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pellucid.core.errors import AddressError
from pellucid.core.unit import Site
from pellucid.data.activations.rows import ROUNDED, DType, Layout

A, B = Site(module="blocks.1.ffn", port="in"), Site(module="blocks.1.ffn", port="out")


def layout(dtype: DType = "float32") -> Layout:
    return Layout(sites=(A, B), widths=(2, 3), dtype=dtype)


@pytest.mark.parametrize(
    ("dtype", "sizes"),
    [("float32", (12, 8, 12)), ("bfloat16", (12, 4, 6)), ("float16", (12, 4, 6))],
)
def test_bytes_of_a_row(dtype: DType, sizes: tuple[int, ...]) -> None:
    """Three int32 are 12 bytes; widths 2 and 3 at 4 or 2 bytes a value."""
    assert layout(dtype).row_bytes == sizes
    empty = layout(dtype).empty(5)
    assert [column.nbytes for column in empty] == [5 * size for size in sizes]


def test_bfloat16_by_hand() -> None:
    """1 is 0x3F80; -2.5 = -1.25 · 2¹ has sign 1, exponent 128, fraction .25: 0xC020."""
    value = torch.tensor([[1.0, -2.5]], dtype=torch.bfloat16)
    one = Layout(sites=(A,), widths=(2,), dtype="bfloat16")
    _, column = one.encode(torch.tensor([[1, 2, 3]]), [value])
    assert column.dtype == np.uint16
    assert column.tolist() == [[0x3F80, 0xC020]]


@given(st.sampled_from(["float32", "bfloat16", "float16"]), st.integers(0, 5))
def test_there_and_back(dtype: DType, rows: int) -> None:
    """What comes back is what was rounded, as float32, to the last bit."""
    generator = torch.Generator().manual_seed(rows)
    index = torch.randint(0, 2**31 - 1, (rows, 3), generator=generator)
    rounded = [torch.randn(rows, width, generator=generator).to(ROUNDED[dtype]) for width in (2, 3)]
    first, *vectors = layout(dtype).encode(index, rounded)
    found = layout(dtype).decode(first, dict(enumerate(vectors, 1)))
    assert torch.equal(torch.stack((found.token, found.document, found.position), -1), index)
    assert list(found.x) == [A, B]
    for site, vector in zip((A, B), rounded):
        assert found.x[site].dtype == torch.float32
        assert torch.equal(found.x[site], vector.float())


def test_some_sites_in_the_order_asked() -> None:
    assert layout().chosen(None) == (1, 2)
    assert layout().chosen([B]) == (2,)
    assert layout().chosen([B, A]) == (2, 1)
    first, a, b = layout().encode(torch.zeros(1, 3, dtype=torch.long), [torch.ones(1, 2)] * 2)
    found = layout().decode(first, {2: b, 1: a})
    assert list(found.x) == [B, A]


def test_an_unknown_site_names_the_nearest() -> None:
    with pytest.raises(AddressError, match=r"blocks.2.ffn:in: was not .* mean 'blocks.1.ffn:in'"):
        layout().chosen([A, Site(module="blocks.2.ffn", port="in")])
