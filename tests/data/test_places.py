"""Splits and domains by the names of files and folders."""

import pytest

from pellucid.data.places import Place, place_of, places_of, stem_of, unnamed_place
from pellucid.data.records import SPLITS


@pytest.mark.parametrize(
    ("name", "split", "domain"),
    [
        ("train.jsonl", "train", "text"),
        ("Test.jsonl.zst", "test", "text"),
        ("dev.txt", "validation", "text"),
        ("law/train.jsonl", "train", "law"),
        ("validation/law.jsonl", "validation", "law"),
        ("valid/law/2020/a.jsonl", "validation", "law"),
        # The file's own name counts more than its folder's.
        ("train/test.jsonl", "test", "text"),
        # Shards of the hub's exports: train and number, or folders of numbers.
        ("data/train-00000-of-00002.parquet", "train", "data"),
        ("test/code-00001-of-00002.parquet", "test", "code"),
        ("train/0000.parquet", "train", "text"),
        # No split: names that only hold one, and folders further down.
        ("law.jsonl", None, "law"),
        ("law/a.jsonl", None, "law"),
        ("law/test/a.jsonl", None, "law"),
        ("training-data.jsonl", None, "training-data"),
        ("0000.parquet", None, "0000"),
        ("law-00000-of-00002.parquet", None, "law-00000-of-00002"),
    ],
)
def test_by_hand(name: str, split: str | None, domain: str) -> None:
    assert place_of(name) == Place(split, domain)


@pytest.mark.parametrize("spelled", SPLITS)
def test_every_spelling_of_a_split_is_known(spelled: str) -> None:
    assert place_of(f"{spelled}.txt") == Place(SPLITS[spelled], "text")
    assert place_of(f"{spelled}/law.txt") == Place(SPLITS[spelled], "law")


def test_without_validation_files_training_files_are_divided() -> None:
    """As on the hub: the test split stays out whatever else there is."""
    assert places_of(["train.jsonl", "test.jsonl", "law.jsonl"]) == {
        "train.jsonl": Place(None, "text"),
        "test.jsonl": Place("test", "text"),
        "law.jsonl": Place(None, "law"),
    }


def test_with_validation_files_training_files_only_train() -> None:
    assert places_of(["train/law.txt", "dev/law.txt", "poems.txt"]) == {
        "train/law.txt": Place("train", "law"),
        "dev/law.txt": Place("validation", "law"),
        "poems.txt": Place(None, "poems"),
    }


def test_a_file_by_itself_is_its_own_domain() -> None:
    assert unnamed_place("train.jsonl") == Place(None, "train")
    assert unnamed_place("test/a.jsonl") == Place(None, "test")


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.zst", ".parquet", ".txt"])
def test_stems(suffix: str) -> None:
    assert stem_of(f"a.b{suffix}") == "a.b"
