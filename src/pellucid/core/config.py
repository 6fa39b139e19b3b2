"""Frozen dataclasses to JSON and back, strictly: an unknown key is an error.

Unions of dataclasses are told apart by a ``kind: Literal[...]`` field. Every message names the
file (``where``), the dotted field, what was expected and what was found.
"""

import dataclasses
import json
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

from pellucid.core.errors import ConfigError, nearest

T = TypeVar("T")


def to_dict(config: Any) -> Any:
    """The plain JSON value of a config: dataclasses become dicts, tuples lists, paths strings."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return {f.name: to_dict(getattr(config, f.name)) for f in dataclasses.fields(config)}
    if isinstance(config, Mapping):
        return {str(key): to_dict(value) for key, value in config.items()}
    if isinstance(config, tuple | list):
        return [to_dict(value) for value in config]
    if isinstance(config, Path):
        return str(config)
    return config


def from_dict(cls: type[T], data: Any, *, where: str = "config") -> T:
    """Build ``cls`` from a plain value; a wrong type or key is a ``ConfigError``."""
    return _parse(cls, data, where, "")


def read_json(path: Path) -> Any:
    """Parse one JSON file, or say in one line why it cannot be parsed."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: expected JSON, found {error}") from None


def check_positive(config: object, *names: str) -> None:
    """Every named field is at least 1, or a ``ConfigError`` names the one that is not."""
    for name in names:
        size = getattr(config, name)
        if not size >= 1:
            raise ConfigError(f"{name}: expected at least 1, found {size}")


def check_above_zero(config: object, *names: str) -> None:
    """The same for numbers above 0; NaN is none."""
    for name in names:
        number = getattr(config, name)
        if not number > 0:
            raise ConfigError(f"{name}: expected more than 0, found {number}")


def check_at_least_zero(config: object, *names: str) -> None:
    """The same for numbers of at least 0; NaN is none."""
    for name in names:
        number = getattr(config, name)
        if not number >= 0:
            raise ConfigError(f"{name}: expected at least 0, found {number}")


def _parse(kind: Any, data: Any, where: str, field: str) -> Any:
    origin = typing.get_origin(kind)
    if kind is Any:
        return data
    if origin is typing.Annotated:
        return _parse(typing.get_args(kind)[0], data, where, field)
    if origin in (typing.Union, types.UnionType):
        return _parse_union(kind, data, where, field)
    if origin is Literal:
        options = typing.get_args(kind)
        if data in options:
            return data
        expected = nearest(str(data), map(str, options))
        raise ConfigError(f"{where}: {field}: found {data!r}; {expected}")
    if origin is tuple:
        return _parse_tuple(kind, data, where, field)
    if origin is dict:
        if not isinstance(data, dict):
            raise _mismatch(kind, data, where, field)
        value_kind = typing.get_args(kind)[1]
        return {key: _parse(value_kind, v, where, f"{field}.{key}") for key, v in data.items()}
    if dataclasses.is_dataclass(kind):
        return _parse_dataclass(kind, data, where, field)
    if kind is Path and isinstance(data, str):
        return Path(data)
    if kind is float and isinstance(data, int) and not isinstance(data, bool):
        return float(data)
    if kind is type(None) and data is None:
        return None
    if isinstance(data, kind) and (kind is bool) == isinstance(data, bool):
        return data
    raise _mismatch(kind, data, where, field)


def _parse_dataclass(kind: Any, data: Any, where: str, field: str) -> Any:
    if not isinstance(data, dict):
        raise _mismatch(kind, data, where, field)
    prefix = f"{field}." if field else ""
    hints = typing.get_type_hints(kind, include_extras=True)
    fields = {f.name: f for f in dataclasses.fields(kind) if f.init}
    for key in data:
        if key not in fields:
            raise ConfigError(f"{where}: unknown key {prefix}{key}; {nearest(key, fields)}")
    for name, f in fields.items():
        required = f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        if required and name not in data:
            raise ConfigError(f"{where}: {prefix}{name} is missing; expected {_name(hints[name])}")
    values = {k: _parse(hints[k], v, where, prefix + k) for k, v in data.items()}
    try:
        return kind(**values)
    except ConfigError as error:
        raise ConfigError(f"{where}: {prefix}{error}") from None


def _parse_union(kind: Any, data: Any, where: str, field: str) -> Any:
    options = typing.get_args(kind)
    structs = [option for option in options if dataclasses.is_dataclass(option)]
    if isinstance(data, dict) and len(structs) == 1:
        return _parse_dataclass(structs[0], data, where, field)
    if isinstance(data, dict) and structs:
        by_kind = {
            typing.get_args(typing.get_type_hints(option)["kind"])[0]: option for option in structs
        }
        found = data.get("kind")
        # A list or an object cannot even be looked up.
        if not isinstance(found, str) or found not in by_kind:
            name = f"{field}.kind" if field else "kind"
            hint = nearest(str(found), by_kind)
            raise ConfigError(f"{where}: {name}: found {found!r}; {hint}")
        return _parse_dataclass(by_kind[found], data, where, field)
    for option in options:
        try:
            return _parse(option, data, where, field)
        except ConfigError:
            continue
    raise _mismatch(kind, data, where, field)


def _parse_tuple(kind: Any, data: Any, where: str, field: str) -> tuple[Any, ...]:
    if not isinstance(data, list | tuple):
        raise _mismatch(kind, data, where, field)
    items = typing.get_args(kind)
    if len(items) == 2 and items[1] is Ellipsis:
        items = (items[0],) * len(data)
    if len(items) != len(data):
        raise _mismatch(kind, data, where, field)
    return tuple(
        _parse(item, value, where, f"{field}.{i}")
        for i, (item, value) in enumerate(zip(items, data))
    )


def _mismatch(kind: Any, data: Any, where: str, field: str) -> ConfigError:
    return ConfigError(f"{where}: {field or 'value'}: expected {_name(kind)}, found {data!r}")


def _name(kind: Any) -> str:
    return kind.__name__ if isinstance(kind, type) else str(kind)
