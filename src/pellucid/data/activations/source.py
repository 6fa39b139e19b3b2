"""What a fitting recipe asks of activations, whether they lie in a cache or are streamed."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar

from pellucid.core.errors import DataError
from pellucid.core.unit import Site
from pellucid.data.activations.config import Origin, flat
from pellucid.data.activations.heldout import HeldOut
from pellucid.data.activations.rows import Rows


class ActivationSource(ABC):
    """Shuffled training rows, held-out rows in order, and held-out text.

    ``rows`` are the training rows there are before any comes again, ``exact`` says whether their
    order is a uniform permutation, ``where`` names the source in errors.
    """

    exact: ClassVar[bool]

    def __init__(self, where: str, origin: Origin, *, rows: int, validation_rows: int) -> None:
        self.where = where
        self.origin = origin
        self.layout = origin.layout
        self.rows = rows
        self.validation_rows = validation_rows

    @abstractmethod
    def batch(
        self, step: int, size: int, *, seed: int = 0, sites: Sequence[Site] | None = None
    ) -> Rows:
        """The ``size`` rows of one step, counted from 0, at ``sites`` or all of them."""

    @abstractmethod
    def validation(self, size: int, *, sites: Sequence[Site] | None = None) -> Iterator[Rows]:
        """All held-out rows, ``size`` at a time; the last batch may have fewer."""

    @abstractmethod
    def heldout(self) -> HeldOut:
        """The held-out text as windows with targets."""

    @property
    def widths(self) -> dict[Site, int]:
        """The width of every site."""
        return dict(zip(self.layout.sites, self.layout.widths))

    def expect(
        self,
        *,
        model: Mapping[str, str] | None = None,
        tokenizer: str | None = None,
        sites: Sequence[Site] = (),
    ) -> None:
        """Refuse rows of another model or tokenizer, or without one of ``sites``, by name."""
        self.layout.chosen(sites)
        asked = {"model": dict(model or {}), "tokenizer": tokenizer}
        found = {"model": self.origin.model, "tokenizer": self.origin.tokenizer}
        wanted, have = flat(asked), flat(found)
        for name, value in wanted.items():
            if value is not None and have.get(name) != value:
                raise DataError(
                    f"{self.where}: {name}: expected {value!r}, found {have.get(name)!r}; choose "
                    "or harvest the activations that are meant"
                )
