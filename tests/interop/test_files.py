"""Every fault of a foreign file is one line that names it, and nothing is left half written."""

import json
import pickle
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from pellucid.core.errors import InteropError
from pellucid.interop.files import (
    Fields,
    Tensors,
    read_archive,
    read_object,
    read_tensors,
    write_object,
    write_tensors,
    writing,
)

FILE = Path("cfg.json")


def fields(**data: Any) -> Fields:
    return Fields(FILE, data)


# --- fields --------------------------------------------------------------------------------------


def test_values_by_kind():
    found = fields(a=3, b=2, c=True, d="x", e=None)
    assert found.take("a", int) == 3
    assert found.take("b", float) == 2.0
    assert isinstance(found.take("b", float), float)
    assert found.take("c", bool) is True
    assert found.find("e", str) is None
    assert found.find("e", str, "default") == "default"
    assert found.find("f", int, 4) == 4
    assert found.unknown() == ("d",)
    assert found.unknown(["d"]) == ()


@pytest.mark.parametrize(
    ("value", "kind", "expected"),
    [
        ("3", int, "an integer"),
        (True, int, "an integer"),
        (3.5, int, "an integer"),
        (1, bool, "true or false"),
        (True, float, "a number"),
        (3, str, "a string"),
        (3, dict, "dict"),
    ],
)
def test_a_wrong_kind(value, kind, expected):
    with pytest.raises(InteropError) as error:
        fields(k=value).take("k", kind)
    assert str(error.value) == f"cfg.json: k: expected {expected}, found {value!r}"


def test_a_missing_field_names_those_there_are():
    with pytest.raises(InteropError) as error:
        fields(kk=1, a=2).take("k", int)
    assert str(error.value) == "cfg.json: k: expected an integer, found nothing; fields: a, kk"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_number_is_finite(value):
    with pytest.raises(InteropError, match=r"cfg\.json: scale: expected a finite number, found"):
        fields(scale=value).find("scale", float)


def test_sizes_and_choices():
    assert fields(k=3).size("k", most=3) == 3
    with pytest.raises(InteropError, match="k: expected at most n = 2, found 3"):
        fields(k=3).size("k", most=2, bound="n")
    with pytest.raises(InteropError, match="k: expected at least 1, found 0"):
        fields(k=0).size("k")
    with pytest.raises(InteropError) as error:
        fields(architecture="temporal").choice("architecture", ("standard", "topk"))
    assert str(error.value) == (
        'cfg.json: architecture: expected one of standard, topk, found "temporal"'
    )
    assert fields().choice("a", ("x", "y"), "y") == "y"
    with pytest.raises(InteropError, match="a: expected a string, found nothing"):
        fields().choice("a", ("x", "y"))


def test_nested_fields_are_named_by_their_path():
    inner = fields(trainer={"k": "x"}).object("trainer")
    with pytest.raises(InteropError, match=r"cfg\.json: trainer\.k: expected an integer"):
        inner.take("k", int)
    assert fields().object("trainer").data == {}


# --- tensors -------------------------------------------------------------------------------------


def tensors(**held: Any) -> Tensors:
    return Tensors(Path("sae.safetensors"), held, torch.float64)


def test_tensors_come_in_one_dtype_and_whole_numbers_as_they_are():
    found = tensors(a=torch.ones(2, dtype=torch.bfloat16), b=torch.tensor([1, 2]), c=torch.ones(1))
    assert found.take("a", (2,)).dtype == torch.float64
    assert found.take("b", (2,)).dtype == torch.int64
    assert found.values("b") == [1, 2]
    assert found.values("a") is None
    assert found.find("d", (1,)) is None
    assert found.unknown() == ("c",)
    assert found.holds("c")


def test_a_missing_tensor():
    with pytest.raises(InteropError) as error:
        tensors(W_dec=torch.ones(2, 2)).take("b_dec", (8,))
    expected = "sae.safetensors: b_dec: expected shape (8,), found nothing; keys: W_dec"
    assert str(error.value) == expected


def test_a_transposed_tensor_is_never_repaired():
    with pytest.raises(InteropError) as error:
        tensors(W_dec=torch.ones(8, 32)).take("W_dec", (32, 8))
    assert str(error.value) == (
        "sae.safetensors: W_dec: expected (32, 8), found (8, 32); looks transposed"
    )
    with pytest.raises(InteropError, match=r"expected \(4,\), found \(4, 1\)$"):
        tensors(b=torch.ones(4, 1)).take("b", (4,))


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_value_that_is_not_finite(value):
    held = torch.ones(3, 2)
    held[1, 1] = value
    with pytest.raises(InteropError, match="W: expected finite values, found 1 of 6"):
        tensors(W=held).take("W", (3, 2))


def test_numbers():
    assert tensors(k=torch.tensor(5, dtype=torch.int32)).number("k") == 5
    assert tensors(k=2.5).number("k") == 2.5
    assert tensors().number("k") is None
    with pytest.raises(InteropError, match=r"k: expected \(\), found \(1,\)"):
        tensors(k=torch.ones(1)).number("k")
    with pytest.raises(InteropError, match="b: expected a vector, found nothing; keys: a"):
        tensors(a=torch.ones(1)).length("b")
    assert tensors(a=torch.ones(7)).length("a") == 7


# --- whole files ---------------------------------------------------------------------------------


@pytest.mark.parametrize("content", ["{", "[1]", "3", b"\xff\xfe"])
def test_a_config_that_is_no_object(tmp_path, content):
    path = tmp_path / "cfg.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InteropError, match="expected a JSON object, found") as error:
        read_object(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_files(tmp_path):
    for read in (
        read_object,
        lambda p: read_tensors(p, "float32"),
        lambda p: read_archive(p, "float32"),
    ):
        with pytest.raises(InteropError, match=r"gone\.x: expected .*, found no such file"):
            read(tmp_path / "gone.x")


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_truncated_safetensors(tmp_path, share):
    path = tmp_path / "a.safetensors"
    save_file({"a": torch.ones(64)}, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(InteropError, match="expected safetensors, found") as error:
        read_tensors(path, "float32")
    assert "\n" not in str(error.value)


def test_an_archive_of_tensors_and_plain_values(tmp_path):
    path = tmp_path / "ae.pt"
    torch.save({"a": torch.ones(2), "k": 3, "s": "x", "none": None}, path)
    found = read_archive(path, "float32")
    assert found.number("k") == 3
    assert torch.equal(found.take("a", (2,)), torch.ones(2))


class Runs:
    """Would leave a file behind if anything of it were executed."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return eval, (f"open({str(self.path)!r}, 'w')",)


def test_a_pickle_is_refused_by_name_and_not_run(tmp_path):
    for write in (torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))):
        write({"a": Runs(tmp_path / "ran")}, tmp_path / "ae.pt")
        with pytest.raises(InteropError, match=r"expected tensors only, found .*refused, save a"):
            read_archive(tmp_path / "ae.pt", "float32")
        assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([torch.ones(1)], "expected a state dict, found list"),
        ({1: torch.ones(1)}, "expected a state dict, found dict"),
        ({"a": {"b": torch.ones(1)}}, "a: expected a tensor, number, string or None, found dict"),
    ],
)
def test_an_archive_of_something_else(tmp_path, value, message):
    torch.save(value, tmp_path / "ae.pt")
    with pytest.raises(InteropError, match=message):
        read_archive(tmp_path / "ae.pt", "float32")


def test_a_broken_archive(tmp_path):
    torch.save({"a": torch.ones(64)}, tmp_path / "ae.pt")
    whole = (tmp_path / "ae.pt").read_bytes()
    for part in (whole[: len(whole) // 2], b""):
        (tmp_path / "ae.pt").write_bytes(part)
        with pytest.raises(InteropError, match="expected a torch archive, found") as error:
            read_archive(tmp_path / "ae.pt", "float32")
        assert "\n" not in str(error.value)


@given(st.data())
def test_whatever_bytes_are_damaged_it_is_told_in_one_line(tmp_path_factory, data):
    """Old and new archives with a few bytes changed: read, or refused, never anything else."""
    path = tmp_path_factory.mktemp("damaged") / "ae.pt"
    old = data.draw(st.booleans())
    torch.save({"a": torch.ones(4), "k": 3}, path, _use_new_zipfile_serialization=not old)
    whole = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(whole)
    with suppress(InteropError):
        read_archive(path, "float32")


@given(st.sampled_from(["float32", "float64", "bfloat16", "float16"]))
def test_written_tensors_have_the_asked_dtype(tmp_path_factory, dtype):
    path = tmp_path_factory.mktemp("w") / "a.safetensors"
    turned = torch.arange(6.0, dtype=torch.float64).view(2, 3).T.requires_grad_()
    write_tensors(path, {"a": turned, "k": torch.tensor(3)}, dtype)
    found = load_file(path)
    assert found["a"].dtype == getattr(torch, dtype)
    assert torch.equal(found["a"].double(), turned.detach())
    assert found["k"].dtype == torch.int64


def test_a_value_the_dtype_cannot_hold(tmp_path):
    with pytest.raises(InteropError, match="a: expected values that float16 can hold"):
        write_tensors(tmp_path / "a.safetensors", {"a": torch.tensor([1e6])}, "float16")


# --- writing a folder ----------------------------------------------------------------------------


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    target = tmp_path / "out"

    def half() -> None:
        with writing(target, overwrite=False) as aside:
            write_object(aside / "cfg.json", {"a": 1})
            raise RuntimeError("half way")

    with pytest.raises(RuntimeError):
        half()
    assert list(tmp_path.iterdir()) == []
    with writing(target, overwrite=False) as aside:
        write_object(aside / "cfg.json", {"a": 1})
        assert not target.exists()
    assert json.loads((target / "cfg.json").read_text()) == {"a": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_is_there_is_kept_unless_it_is_to_be_overwritten(tmp_path):
    target = tmp_path / "out"
    target.mkdir()
    (target / "cfg.json").write_text("old")
    (target / "notes.txt").write_text("mine")

    def write(**options: bool) -> None:
        with writing(target, **options) as aside:
            write_object(aside / "cfg.json", {})

    with pytest.raises(InteropError, match="out: exists already; choose another folder or add --o"):
        write(overwrite=False)
    assert (target / "cfg.json").read_text() == "old"
    write(overwrite=True)
    assert (target / "cfg.json").read_text() == "{}\n"
    assert (target / "notes.txt").read_text() == "mine"
    shutil.rmtree(target)
    target.mkdir()
    write(overwrite=False)  # an empty folder is free
    assert (target / "cfg.json").exists()


def test_the_folder_one_stands_in(tmp_path, monkeypatch):
    """``.`` has no name to write beside, the folder it stands for has."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with writing(Path(), overwrite=False) as aside:
        write_object(aside / "cfg.json", {})
    assert (tmp_path / "here" / "cfg.json").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["here"]


def test_a_file_in_the_way(tmp_path):
    (tmp_path / "out").write_text("x")

    def write() -> None:
        with writing(tmp_path / "out", overwrite=True):
            pass

    with pytest.raises(InteropError, match=r"out: exists already; choose another folder$"):
        write()


def test_a_disk_that_refuses(tmp_path):
    def write() -> None:
        with writing(tmp_path / "out", overwrite=False):
            raise OSError(28, "No space left on device")

    with pytest.raises(InteropError, match="cannot be written: No space left on device; free"):
        write()
    assert list(tmp_path.iterdir()) == []
