"""Foreign files, read so that every fault is one line: file, field, expected, found, how to mend.

Configs are JSON objects, tensors safetensors or, where a format forces it, torch archives that may
hold tensors, numbers, strings and None and nothing else. Files are written into a folder aside and
renamed one by one, so that a reader never finds half a file.
"""

import json
import math
import pickle
import re
import shutil
import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from jaxtyping import Shaped
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from pellucid.core.errors import InteropError

T = TypeVar("T", bound=bool | int | float | str | dict | list)
FLOATS = {
    "float32": torch.float32,
    "float64": torch.float64,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
KINDS = {bool: "true or false", int: "an integer", float: "a number", str: "a string"}


class Fields:
    """The fields of one config; those asked for count as known."""

    def __init__(self, path: Path, data: Mapping[str, Any], prefix: str = "") -> None:
        self.path = path
        self.data = data
        self._prefix = prefix
        self._known: set[str] = set()

    def where(self, name: str) -> str:
        """``FILE: FIELD``, with which every complaint begins."""
        return f"{self.path}: {self._prefix}{name}"

    def find(self, name: str, kind: type[T], default: T | None = None) -> T | None:
        """The field's value, or the default where it is absent or null."""
        self._known.add(name)
        value = self.data.get(name)
        if value is None:
            return default
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise InteropError(
                f"{self.where(name)}: expected {KINDS.get(kind, kind.__name__)}, found {value!r}"
            )
        if isinstance(value, float) and not math.isfinite(value):
            raise InteropError(f"{self.where(name)}: expected a finite number, found {value}")
        return value

    def take(self, name: str, kind: type[T]) -> T:
        """A field that must be there."""
        value = self.find(name, kind)
        if value is None:
            raise InteropError(
                f"{self.where(name)}: expected {KINDS.get(kind, kind.__name__)}, found nothing; "
                f"fields: {', '.join(sorted(self.data))}"
            )
        return value

    def size(self, name: str, *, most: int | None = None, bound: str = "") -> int:
        """A number of at least 1 that must be there, at most ``most``, which ``bound`` names."""
        value = self.take(name, int)
        if value < 1:
            raise InteropError(f"{self.where(name)}: expected at least 1, found {value}")
        if most is not None and value > most:
            raise InteropError(
                f"{self.where(name)}: expected at most {bound} = {most}, found {value}"
            )
        return value

    def choice(self, name: str, options: Collection[str], default: str | None = None) -> str:
        """One of several words."""
        value = self.take(name, str) if default is None else self.find(name, str, default)
        if value not in options:
            raise InteropError(
                f'{self.where(name)}: expected one of {", ".join(options)}, found "{value}"'
            )
        return str(value)

    def object(self, name: str) -> "Fields":
        """A nested object, empty where it is absent."""
        return Fields(self.path, self.find(name, dict, {}) or {}, f"{self._prefix}{name}.")

    def unknown(self, ignored: Collection[str] = ()) -> tuple[str, ...]:
        """The fields nobody asked for, those in ``ignored`` aside."""
        return tuple(key for key in self.data if key not in self._known | set(ignored))


class Tensors:
    """The tensors of one file, in one dtype; those asked for count as known."""

    def __init__(self, path: Path, tensors: Mapping[str, Any], dtype: torch.dtype) -> None:
        self.path = path
        self._tensors = tensors
        self._dtype = dtype
        self._known: set[str] = set()

    def find(self, name: str, shape: tuple[int, ...]) -> Shaped[Tensor, "..."] | None:
        """The tensor of that name, or None; a wrong shape or a non-finite value is an error."""
        self._known.add(name)
        tensor = self._tensors.get(name)
        if tensor is None:
            return None
        found = tuple(tensor.shape) if isinstance(tensor, Tensor) else repr(tensor)
        if found != shape:
            turned = len(shape) == 2 and found == shape[::-1]
            raise InteropError(
                f"{self.path}: {name}: expected {shape}, found {found}"
                + ("; looks transposed" if turned else "")
            )
        bad = int((~tensor.isfinite()).sum()) if tensor.is_floating_point() else 0
        if bad:
            raise InteropError(
                f"{self.path}: {name}: expected finite values, found {bad} of {tensor.numel()} "
                "that are not; export the dictionary again"
            )
        return tensor.to(self._dtype) if tensor.is_floating_point() else tensor

    def take(self, name: str, shape: tuple[int, ...]) -> Shaped[Tensor, "..."]:
        """A tensor that must be there."""
        tensor = self.find(name, shape)
        if tensor is None:
            raise InteropError(
                f"{self.path}: {name}: expected shape {shape}, found nothing; keys: "
                f"{', '.join(sorted(self._tensors))}"
            )
        return tensor

    def number(self, name: str) -> float | None:
        """A scalar, stored as a tensor or as a plain number, or None."""
        value = self._tensors.get(name)
        if isinstance(value, int | float):
            self._known.add(name)
            return float(value)
        tensor = self.find(name, ())
        return None if tensor is None else float(tensor)

    def values(self, name: str) -> list[int] | None:
        """A short list of integers, or None."""
        self._known.add(name)
        tensor = self._tensors.get(name)
        if not isinstance(tensor, Tensor) or tensor.is_floating_point() or tensor.ndim != 1:
            return None
        return [int(value) for value in tensor]

    def length(self, name: str) -> int:
        """The length of a vector that must be there, whatever it is."""
        tensor = self._tensors.get(name)
        if not isinstance(tensor, Tensor) or tensor.ndim != 1 or tensor.numel() == 0:
            found = "nothing" if tensor is None else str(tuple(tensor.shape))
            raise InteropError(
                f"{self.path}: {name}: expected a vector, found {found}; keys: "
                f"{', '.join(sorted(self._tensors))}"
            )
        return tensor.numel()

    def holds(self, name: str) -> bool:
        """Whether there is such a tensor."""
        return name in self._tensors

    def unknown(self) -> tuple[str, ...]:
        """The tensors nobody asked for."""
        return tuple(key for key in self._tensors if key not in self._known)


def read_object(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InteropError(f"{path}: expected a JSON object, found {_reason(error)}") from None
    if not isinstance(data, dict):
        raise InteropError(f"{path}: expected a JSON object, found {type(data).__name__}")
    return data


def read_tensors(path: Path, dtype: str) -> Tensors:
    """The tensors of a safetensors file."""
    try:
        return Tensors(path, load_file(path), FLOATS[dtype])
    except (OSError, SafetensorError) as error:
        raise InteropError(f"{path}: expected safetensors, found {_reason(error)}") from None


def read_archive(path: Path, dtype: str) -> Tensors:
    """The state dict of a torch archive, of which nothing is executed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        raise InteropError(
            f"{path}: expected tensors only, found {named[1] if named else _reason(error)}; "
            "refused, save a state dict"
        ) from None
    except Exception as error:  # damaged bytes raise nearly anything
        raise InteropError(f"{path}: expected a torch archive, found {_reason(error)}") from None
    plain = isinstance(state, Mapping) and all(isinstance(key, str) for key in state)
    if not plain:
        raise InteropError(
            f"{path}: expected a state dict, found {type(state).__name__}; refused, save a state "
            "dict"
        )
    for name, value in state.items():
        if not (value is None or isinstance(value, Tensor | int | float | str)):
            raise InteropError(
                f"{path}: {name}: expected a tensor, number, string or None, found "
                f"{type(value).__name__}; refused, save a state dict"
            )
    return Tensors(path, state, FLOATS[dtype])


def write_tensors(path: Path, tensors: Mapping[str, Tensor], dtype: str) -> None:
    """Floats in ``dtype`` and whatever else as it is, contiguous, on the CPU.

    Errors: an ``InteropError`` for a value that ``dtype`` cannot hold.
    """
    save_file(plain(path, tensors, dtype), path, metadata={"format": "pt"})


def plain(path: Path, tensors: Mapping[str, Tensor], dtype: str) -> dict[str, Tensor]:
    """The same tensors as files hold them: detached copies, floats in ``dtype``."""
    state = {}
    for name, tensor in tensors.items():
        kept = tensor.detach().cpu()
        if kept.is_floating_point():
            kept = kept.to(FLOATS[dtype])
            if not bool(kept.isfinite().all()):
                raise InteropError(
                    f"{path}: {name}: expected values that {dtype} can hold, found one that is not "
                    "finite; write float32"
                )
        state[name] = kept.clone(memory_format=torch.contiguous_format)
    return state


def write_object(path: Path, data: Mapping[str, Any]) -> None:
    """A JSON file."""
    path.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


@contextmanager
def writing(folder: Path, *, overwrite: bool) -> Iterator[Path]:
    """A folder aside whose files take their places in ``folder`` when the block has ended well.

    Errors: an ``InteropError`` where ``folder`` holds something and is not to be overwritten, and
    where the disk refuses. Files of other names in ``folder`` are left alone.
    """
    taken = folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
    if taken and not (overwrite and folder.is_dir()):
        raise InteropError(
            f"{folder}: exists already; choose another folder"
            + ("" if folder.is_file() else " or add --overwrite")
        )
    whole = folder.resolve()
    aside = whole.with_name(f".writing_{whole.name}")
    try:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        yield aside
        for path in sorted(aside.rglob("*")):
            place = folder / path.relative_to(aside)
            if path.is_file():
                place.parent.mkdir(parents=True, exist_ok=True)
                path.replace(place)
    except (OSError, SafetensorError) as error:
        raise InteropError(
            f"{folder}: cannot be written: {_reason(error)}; free some space or choose another "
            "folder"
        ) from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file"
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(reason.split())[:200] or type(error).__name__
