"""What both sources share: widths, and rows of something else refused by name."""

from collections.abc import Callable, Iterator, Sequence

import pytest

from pellucid.core.errors import AddressError, DataError
from pellucid.core.unit import Site
from pellucid.data.activations.config import HarvestConfig, Origin
from pellucid.data.activations.heldout import HeldOut
from pellucid.data.activations.rows import Rows
from pellucid.data.activations.source import ActivationSource


class NoRows(ActivationSource):
    """A source that says where its rows would be from."""

    exact = True

    def batch(
        self, step: int, size: int, *, seed: int = 0, sites: Sequence[Site] | None = None
    ) -> Rows:
        raise NotImplementedError

    def validation(self, size: int, *, sites: Sequence[Site] | None = None) -> Iterator[Rows]:
        raise NotImplementedError

    def heldout(self) -> HeldOut:
        raise NotImplementedError


@pytest.fixture
def source(config: Callable[..., HarvestConfig]) -> NoRows:
    origin = Origin(
        model={"name": "m", "hash": "h"},
        tokenizer="t",
        corpus="c",
        widths=(3, 2),
        config=config(),
    )
    return NoRows("cache/a", origin, rows=10, validation_rows=5)


def test_facts(source: NoRows, sites: tuple[Site, Site]) -> None:
    assert source.widths == {sites[0]: 3, sites[1]: 2}
    assert (source.rows, source.validation_rows, source.where) == (10, 5, "cache/a")
    assert source.origin.model["name"] == "m"


def test_what_fits_passes(source: NoRows, sites: tuple[Site, Site]) -> None:
    source.expect()
    source.expect(model={"hash": "h"}, tokenizer="t", sites=sites)


@pytest.mark.parametrize(
    ("model", "tokenizer", "message"),
    [
        ({"hash": "g"}, None, "model.hash: expected 'g', found 'h'; choose or harvest"),
        ({"hash": "h", "kind": "x"}, None, "model.kind: expected 'x', found None"),
        (None, "u", "tokenizer: expected 'u', found 't'"),
    ],
)
def test_another_is_refused_by_name(
    source: NoRows, model: dict[str, str] | None, tokenizer: str | None, message: str
) -> None:
    with pytest.raises(DataError, match=f"^cache/a: {message}"):
        source.expect(model=model, tokenizer=tokenizer)


def test_another_site_is_refused_by_name(source: NoRows) -> None:
    with pytest.raises(AddressError, match=r"^site b:out: was not harvested; did you mean '[ab]:"):
        source.expect(sites=[Site(module="b", port="out")])


def test_a_source_is_abstract() -> None:
    with pytest.raises(TypeError, match="abstract"):
        ActivationSource("x", None, rows=0, validation_rows=0)  # pyright: ignore
