"""Counting on the way, and the refusal of corpora that cannot be judged."""

import pytest

from pellucid.core.errors import DataError
from pellucid.data.document import DataConfig, Document
from pellucid.data.survey import REPORT_BYTES, Survey, check_splits

CONFIG = DataConfig(source="folder")


def document(size: int, domain: str = "a", split: str = "train") -> Document:
    held_out = split == "validation"
    return Document(
        id="x", text="x" * size, domain=domain, split="validation" if held_out else "train"
    )


def test_documents_pass_unchanged_and_are_counted() -> None:
    """'é' counts its two bytes: 3 + 2 + 4 = 9."""
    accented = Document(id="é", text="é", domain="a", split="train")
    documents = [document(3), accented, document(4, "b", "validation")]
    survey = Survey()
    assert list(survey.watch(documents, None, "reading", 0)) == documents
    assert survey.num_bytes == 9
    assert survey.train == {"a": 2}
    assert survey.validation == {"b": 1}


def test_progress_hears_each_megabyte_and_the_end() -> None:
    """Four documents of .6 MB: past 1 MB at the second (1.2), past 2.2 at the fourth (2.4)."""
    size = REPORT_BYTES * 6 // 10
    heard: list[tuple[str, int, int]] = []
    documents = Survey().watch([document(size)] * 4, lambda *args: heard.append(args), "read", 7)
    assert len(list(documents)) == 4
    assert heard == [("read", 2 * size, 7), ("read", 4 * size, 7), ("read", 4 * size, 4 * size)]


def test_progress_hears_of_an_empty_corpus_once() -> None:
    heard: list[tuple[str, int, int]] = []
    assert list(Survey().watch([], lambda *args: heard.append(args), "read", 0)) == []
    assert heard == [("read", 0, 0)]


def test_every_domain_held_out_passes() -> None:
    check_splits(CONFIG, {"a": 5, "b": 1}, {"a": 1, "b": 2})


def test_a_domain_that_is_only_held_out_passes() -> None:
    check_splits(CONFIG, {"a": 5}, {"a": 1, "b": 2})


def test_an_empty_corpus() -> None:
    with pytest.raises(DataError, match=r"^folder: the corpus is empty; expected documents"):
        check_splits(CONFIG, {}, {})


def test_no_training_text() -> None:
    with pytest.raises(DataError, match=r"^folder: the corpus has no training text; mark"):
        check_splits(CONFIG, {}, {"a": 1})


def test_a_domain_without_validation_text_is_named_with_the_mend() -> None:
    with pytest.raises(DataError) as caught:
        check_splits(DataConfig(source="folder", split_field="part"), {"a": 5, "b": 3}, {"a": 1})
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    for needed in ("'b'", "3 documents", "'part'", "4%", "validation_share", "max_bytes"):
        assert needed in message
    assert "'a'" not in message
