"""What the path of a file says about its documents: their split and their domain.

A file's own name or the folder directly under the source may be the name of a split, as in
train.jsonl beside test.jsonl, or validation/law.jsonl; shards (train-00000-of-00002.parquet) are
told by what precedes their number. Whatever then comes first in the path is the domain, the folder
before the file. A file given by itself is of no split, whatever it is called.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from pellucid.data.records import SPLITS

SUFFIXES = (".jsonl", ".jsonl.zst", ".parquet", ".txt")
ONE_DOMAIN = "text"  # where the path says nothing else
SHARD = re.compile(r"-\d+-of-\d+$|^\d+$")


@dataclass(frozen=True, slots=True)
class Place:
    """A file's split, ``None`` where its path names none, and its domain."""

    split: str | None
    domain: str


def place_of(name: str) -> Place:
    """The place of a file by its path below the source."""
    *folders, file = name.split("/")
    stem = stem_of(file)
    parts = [*folders, stem]
    ends = {0: parts[0], len(parts) - 1: SHARD.sub("", stem)}
    named = {i: SPLITS[part.lower()] for i, part in ends.items() if part.lower() in SPLITS}
    if not named:
        return unnamed_place(name)
    left = [SHARD.sub("", part) for i, part in enumerate(parts) if i not in named]
    domain = next(filter(None, left), ONE_DOMAIN)
    return Place(named[max(named)], domain)


def unnamed_place(name: str) -> Place:
    """The place of a file where names of splits mean nothing."""
    return Place(None, name.split("/")[0] if "/" in name else stem_of(name))


def places_of(names: Iterable[str]) -> dict[str, Place]:
    """The places of all files of one source.

    Where none is named for validation, what is named for training is divided like other text.
    """
    places = {name: place_of(name) for name in names}
    if any(place.split == "validation" for place in places.values()):
        return places
    return {
        name: Place(None, place.domain) if place.split == "train" else place
        for name, place in places.items()
    }


def stem_of(file: str) -> str:
    """The name of a file without the suffix that says how to read it."""
    return next(file.removesuffix(end) for end in SUFFIXES if file.endswith(end))
