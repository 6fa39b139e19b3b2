"""Records as documents: fields, splits, and what is refused."""

from collections.abc import Mapping

import pytest

from pellucid.core.errors import DataError
from pellucid.data.document import DataConfig, Document
from pellucid.data.records import assign_split, to_document
from pellucid.data.text import unit_hash


def convert(record: Mapping[str, object], config: DataConfig | None = None) -> Document | None:
    return to_document(
        record, config or DataConfig(), where="f.jsonl:3", default_id="f:3", domain="f"
    )


def test_all_fields_are_taken() -> None:
    record = {"id": "x", "text": "t", "domain": "law", "split": "validation", "other": 1}
    expected = Document(id="x", text="t", domain="law", split="validation")
    assert convert(record) == expected


def test_missing_fields_are_filled() -> None:
    """unit_hash('f:3') is .33, above the share of .04: the document trains."""
    assert unit_hash("f:3") > 0.04
    assert convert({"text": "t"}) == Document(id="f:3", text="t", domain="f", split="train")


def test_null_fields_count_as_missing() -> None:
    record = {"id": None, "text": "t", "domain": None, "split": None}
    assert convert(record) == Document(id="f:3", text="t", domain="f", split="train")


def test_a_number_serves_as_id() -> None:
    document = convert({"id": 17, "text": "t"})
    assert document is not None
    assert document.id == "17"


def test_other_field_names() -> None:
    config = DataConfig(text_field="body", domain_field="topic", split_field="part")
    record = {"body": "b", "topic": "law", "part": "dev", "text": "t", "split": "train"}
    document = convert(record, config)
    assert document is not None
    assert (document.text, document.domain, document.split) == ("b", "law", "validation")


@pytest.mark.parametrize("text", ["", "  \n\t"])
def test_blank_text_is_left_out(text: str) -> None:
    assert convert({"text": text}) is None


@pytest.mark.parametrize("split", ["test", "TEST", "testing"])
def test_the_test_split_is_left_out(split: str) -> None:
    assert convert({"text": "t", "split": split}) is None


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train", "train"),
        ("Training", "train"),
        ("validation", "validation"),
        ("valid", "validation"),
        ("val", "validation"),
        ("DEV", "validation"),
    ],
)
def test_usual_spellings_of_the_splits(name: str, split: str) -> None:
    document = convert({"text": "t", "split": name})
    assert document is not None
    assert document.split == split


def test_an_unknown_split_offers_the_nearest() -> None:
    with pytest.raises(DataError, match=r"^f.jsonl:3: split: found 'trian'; did you mean 'train'"):
        convert({"text": "t", "split": "trian"})


def test_no_text_field_names_place_and_fields() -> None:
    expected = (
        r"^f.jsonl:3: expected the field 'text', found the fields id, body; "
        r"set text_field to the one that holds the text$"
    )
    with pytest.raises(DataError, match=expected):
        convert({"id": "1", "body": "b"})


def test_an_empty_record_has_no_fields() -> None:
    with pytest.raises(DataError, match="found the fields none"):
        convert({})


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"text": None}, r"f.jsonl:3: text: expected a string, found null"),
        ({"text": 5}, r"f.jsonl:3: text: expected a string, found '5'"),
        ({"text": ["a"]}, r"f.jsonl:3: text: expected a string"),
        ({"text": "t", "domain": 3}, r"f.jsonl:3: domain: expected a string, found '3'"),
        ({"text": "t", "split": {}}, r"f.jsonl:3: split: expected a string"),
    ],
)
def test_a_field_of_another_type_is_refused(record: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        convert(record)


def test_surrogates_are_mended_everywhere() -> None:
    document = convert({"id": "i\udc80", "text": "t\ud800", "domain": "d\udfff"})
    assert document is not None
    assert (document.id, document.text, document.domain) == ("i\ufffd", "t\ufffd", "d\ufffd")


def test_the_hash_of_the_id_decides_where_no_split_is_named() -> None:
    """Whatever the share, a document is held out exactly where its hash lies below it."""
    for name in map(str, range(50)):
        for share in (0.1, 0.5, 0.9):
            held_out = assign_split(None, name, share, "f:1") == "validation"
            assert held_out == (unit_hash(name) < share)


def test_raising_the_share_only_adds_to_the_held_out() -> None:
    names = [str(index) for index in range(200)]
    small = {n for n in names if assign_split(None, n, 0.1, "f") == "validation"}
    large = {n for n in names if assign_split(None, n, 0.3, "f") == "validation"}
    assert small < large
