"""What every converter has in common: what it is asked, what it gives."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from jaxtyping import Float
from torch import Tensor

from pellucid import __version__
from pellucid.core.config import to_dict
from pellucid.core.errors import InteropError
from pellucid.core.unit import Site
from pellucid.dictionaries import Coder
from pellucid.interop.sites import LAYERS

Precision = Literal["float32", "float64", "bfloat16", "float16"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadOptions:
    """What a folder does not say, or says wrongly.

    ``reads`` and ``writes`` replace the sites a file names (one of them alone stands for both of
    an SAE). ``layers`` is where the model keeps its layers, ``blocks`` in a model of ours.
    ``input_scale`` is the factor inputs were multiplied by in training where the folder does not
    hold it. ``norm_folded`` says that norms' gains are part of the next weights, ``row_normalised``
    that the site's rows are already normalised the way the file asks for. A file of any dtype is
    computed with, and kept, in ``dtype``.
    """

    reads: Site | None = None
    writes: Site | None = None
    name: str | None = None
    layers: str = LAYERS
    input_scale: float | None = None
    norm_folded: bool = False
    row_normalised: bool = False
    dtype: Literal["float32", "float64"] = "float32"


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteOptions:
    """How dictionaries are written, and what is said of them.

    ``model`` identifies the language model; ``metadata`` are further fields of the foreign config
    (``context_size``, ``dataset_path``). ``own_class`` writes a form that only pellucid's class in
    SAELens opens, ``lossy`` the nearest form of what the format cannot hold, compared on the raw
    rows ``sample`` [B, d_in], or on Gaussian ones.
    """

    model: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)
    own_class: bool = False
    lossy: bool = False
    sample: Float[Tensor, "B d_in"] | None = None
    dtype: Precision = "float32"
    overwrite: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """A dictionary from a foreign file, on raw activations, in evaluation mode.

    ``model`` identifies the language model as far as the file does; ``provenance`` keeps the
    foreign config whole, in plain JSON values.
    """

    coder: Coder
    model: dict[str, str]
    provenance: dict[str, Any]
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Converter:
    """A foreign format: reads every dictionary of a folder, writes dictionaries into one.

    ``write`` returns lines the user should see. Both raise ``InteropError``.
    """

    name: str
    says: str
    read: Callable[[Path, ReadOptions], tuple[Imported, ...]]
    write: Callable[[tuple[Coder, ...], Path, WriteOptions], tuple[str, ...]] | None


RECORD = "pellucid"


def describe(coder: Coder, options: WriteOptions) -> dict[str, Any]:
    """What a foreign config has no field for, kept in it under ``RECORD``."""
    return {
        "version": __version__,
        "name": coder.spec.name,
        "reads": str(coder.spec.reads),
        "writes": str(coder.spec.writes),
        "model": dict(options.model),
        "config": to_dict(coder.config),
    }


def described(data: Mapping[str, Any]) -> Mapping[str, Any]:
    """What ``describe`` wrote, empty where another program made the file."""
    found = data.get(RECORD)
    if not isinstance(found, Mapping) or not isinstance(found.get("model", {}), Mapping):
        return {}
    named = all(isinstance(found.get(key), str) for key in ("reads", "writes"))
    return found if named else {}


def model_of(record: Mapping[str, Any], name: object) -> dict[str, str]:
    """The language model by our record, or by the name a file gives to a Hugging Face one."""
    if record.get("model"):
        return {str(key): str(value) for key, value in record["model"].items()}
    return {"kind": "huggingface", "name": str(name)} if name else {}


def name_of(options: ReadOptions, *found: object) -> str:
    """The name asked for, or the first that a file gives, in characters a folder may have.

    Errors: an ``InteropError`` for a name asked for that a folder may not have.
    """
    if options.name is None:
        first = next((str(name) for name in found if name), "")
        return re.sub(r"[^\w.-]+", "-", first).lstrip(".") or "imported"
    if not re.fullmatch(r"[\w-][\w.-]*", options.name):
        raise InteropError(
            f"name: expected letters, digits, '-', '_' and '.', found {options.name!r}; it names a "
            "folder"
        )
    return options.name


def chosen(reads: Site, writes: Site, options: ReadOptions) -> tuple[Site, Site]:
    """The sites a file names, replaced where the options say so."""
    if reads != writes:
        return options.reads or reads, options.writes or writes
    both = options.reads or reads
    return both, options.writes or both


def one(coders: tuple[Coder, ...], format: str) -> Coder:
    """The only dictionary, for formats whose folders hold one."""
    if len(coders) != 1:
        raise InteropError(
            f"{format}: expected one dictionary, found {len(coders)}; export them one by one"
        )
    return coders[0]
