"""Sealed JSON: whole, or refused in one line."""

import json
from pathlib import Path

import pytest

from pellucid.core.errors import DataError
from pellucid.data.activations.sealed import FORMAT, read_sealed, write_sealed

VALUE = {"name": "né", "rows": [1, 2], "deep": {"x": 1.5, "none": None}}


@pytest.fixture
def sealed(tmp_path: Path) -> Path:
    path = tmp_path / "x.json"
    write_sealed(path, VALUE)
    return path


def test_there_and_back(sealed: Path) -> None:
    assert read_sealed(sealed) == VALUE
    assert [file.name for file in sealed.parent.iterdir()] == ["x.json"]


@pytest.mark.parametrize(
    ("field", "value"), [("rows", [1, 3]), ("name", "x"), ("sha256", "0" * 64), ("new", 1)]
)
def test_an_altered_value_is_noticed(sealed: Path, field: str, value: object) -> None:
    content = json.loads(sealed.read_text())
    sealed.write_text(json.dumps({**content, field: value}))
    with pytest.raises(DataError, match=r"x\.json: altered: .* harvest it again with overwrite"):
        read_sealed(sealed)


@pytest.mark.parametrize("field", ["rows", "sha256", "format"])
def test_a_missing_value_is_noticed(sealed: Path, field: str) -> None:
    content = json.loads(sealed.read_text())
    del content[field]
    sealed.write_text(json.dumps(content))
    with pytest.raises(DataError, match="altered"):
        read_sealed(sealed)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "{}", '"x"', "\xff"])
def test_what_is_no_record_is_noticed(sealed: Path, text: str) -> None:
    sealed.write_text(text, encoding="latin-1")
    with pytest.raises(DataError, match="overwrite") as error:
        read_sealed(sealed)
    assert "\n" not in str(error.value)


def test_every_truncation_is_noticed(sealed: Path) -> None:
    """But for the line end, which says nothing."""
    whole = sealed.read_bytes()
    for size in range(0, len(whole) - 1, 7):
        sealed.write_bytes(whole[:size])
        with pytest.raises(DataError):
            read_sealed(sealed)


def test_a_newer_format_is_not_called_altered(sealed: Path) -> None:
    content = json.loads(sealed.read_text())
    sealed.write_text(json.dumps({**content, "format": FORMAT + 1}))
    with pytest.raises(DataError, match=f"format {FORMAT + 1}, .* reads up to {FORMAT}; upgrade"):
        read_sealed(sealed)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file; harvest it again"):
        read_sealed(tmp_path / "x.json")
