"""One record of a file or of the hub as a document: which field is what, and which split."""

from collections.abc import Mapping
from typing import Any, Literal

from pellucid.core.errors import DataError, nearest
from pellucid.data.document import DataConfig, Document
from pellucid.data.text import mend_surrogates, unit_hash

SPLITS: dict[str, Literal["train", "validation", "test"]] = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}


def to_document(
    record: Mapping[str, Any],
    config: DataConfig,
    *,
    where: str,
    default_id: str,
    domain: str,
    split: str | None = None,
) -> Document | None:
    """The record's document, or ``None`` where it is blank or belongs to the test split.

    ``where`` names the record in errors; ``default_id``, ``domain`` and ``split`` stand in for
    fields it lacks. Errors: no text field, a field that is not a string, a split that is none of
    the known names.
    """
    if config.text_field not in record:
        fields = ", ".join(map(str, record)) or "none"
        raise DataError(
            f"{where}: expected the field {config.text_field!r}, found the fields {fields}; "
            "set text_field to the one that holds the text"
        )
    text = _string(record, config.text_field, where)
    if text is None:
        raise DataError(f"{where}: {config.text_field}: expected a string, found null")
    name = str(record["id"]) if record.get("id") is not None else default_id
    named_split = _string(record, config.split_field, where) or split
    chosen = assign_split(named_split, name, config.validation_share, where)
    if chosen == "test" or not text.strip():
        return None
    return Document(
        id=mend_surrogates(name),
        text=mend_surrogates(text),
        domain=mend_surrogates(_string(record, config.domain_field, where) or domain),
        split=chosen,
    )


def assign_split(
    name: str | None, key: str, share: float, where: str
) -> Literal["train", "validation", "test"]:
    """The split called ``name``, or for ``None`` one drawn by the hash of ``key``."""
    if name is None:
        return "validation" if unit_hash(key) < share else "train"
    known = SPLITS.get(name.lower())
    if known is None:
        raise DataError(f"{where}: split: found {name!r}; {nearest(name, SPLITS)}")
    return known


def _string(record: Mapping[str, Any], field: str, where: str) -> str | None:
    value = record.get(field)
    if value is not None and not isinstance(value, str):
        raise DataError(f"{where}: {field}: expected a string, found {str(value)[:40]!r}")
    return value
