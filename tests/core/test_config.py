"""Configs to JSON and back: what survives, and what is refused in one line."""

import json
import math
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pellucid.core.config import (
    check_above_zero,
    check_at_least_zero,
    check_positive,
    from_dict,
    read_json,
    to_dict,
)
from pellucid.core.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Apple:
    kind: Literal["apple"] = "apple"
    seeds: int = 5


@dataclass(frozen=True, kw_only=True)
class Pear:
    kind: Literal["pear"] = "pear"
    weight: float = 0.5

    def __post_init__(self) -> None:
        if self.weight <= 0:
            raise ConfigError(f"weight: expected more than 0, found {self.weight}; weigh again")


@dataclass(frozen=True, kw_only=True)
class Box:
    """A dataclass without a ``kind``."""

    wide: int = 1


@dataclass(frozen=True, kw_only=True)
class Basket:
    name: str
    fruit: Apple | Pear = field(default_factory=Apple)
    more: tuple[Apple | Pear, ...] = ()
    pair: tuple[int, str] = (1, "a")
    ripe: bool = False
    ratio: float = 1.0
    mode: Literal["loose", "packed", 3] = "loose"
    folder: Path | None = None
    limit: int | None = None
    size: Annotated[int, "in litres"] = 2
    notes: dict[str, tuple[float, ...]] = field(default_factory=dict)
    anything: Any = None
    box: Box | None = None


apples = st.builds(Apple, seeds=st.integers())
pears = st.builds(Pear, weight=st.floats(min_value=0.1, max_value=1e9))
baskets = st.builds(
    Basket,
    name=st.text(),
    fruit=apples | pears,
    more=st.lists(apples | pears, max_size=3).map(tuple),
    pair=st.tuples(st.integers(), st.text()),
    ripe=st.booleans(),
    ratio=st.floats(allow_nan=False),
    mode=st.sampled_from(["loose", "packed", 3]),
    folder=st.none() | st.text(alphabet="abc/", min_size=1).map(Path),
    limit=st.none() | st.integers(),
    size=st.integers(),
    notes=st.dictionaries(st.text(), st.lists(st.floats(allow_nan=False)).map(tuple)),
    anything=st.none() | st.integers() | st.lists(st.text()),
    box=st.none() | st.builds(Box, wide=st.integers()),
)


@given(baskets)
def test_a_config_survives_json(basket):
    text = json.dumps(to_dict(basket))
    assert from_dict(Basket, json.loads(text)) == basket


def test_defaults_fill_what_is_left_out():
    assert from_dict(Basket, {"name": "a"}) == Basket(name="a")


def test_the_plain_value_by_hand():
    basket = Basket(name="a", more=(Pear(),), folder=Path("x/y"), notes={"n": (1.0,)})
    assert to_dict(basket) == {
        "name": "a",
        "fruit": {"kind": "apple", "seeds": 5},
        "more": [{"kind": "pear", "weight": 0.5}],
        "pair": [1, "a"],
        "ripe": False,
        "ratio": 1.0,
        "mode": "loose",
        "folder": "x/y",
        "limit": None,
        "size": 2,
        "notes": {"n": [1.0]},
        "anything": None,
        "box": None,
    }


def test_a_whole_number_serves_as_a_float_and_becomes_one():
    ratio = from_dict(Basket, {"name": "a", "ratio": 2}).ratio
    assert ratio == 2.0
    assert isinstance(ratio, float)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"nam": "b"}, "unknown key nam; did you mean 'name'?"),
        ({"fruit": {"kind": "apple", "seed": 1}}, "unknown key fruit.seed; did you mean 'seeds'?"),
        ({"fruit": {"kind": "aple"}}, "fruit.kind: found 'aple'; did you mean 'apple'?"),
        ({"fruit": {"seeds": 1}}, "fruit.kind: found None; expected one of: apple, pear"),
        ({"fruit": {"kind": []}}, "fruit.kind: found []; expected one of: apple, pear"),
        ({"more": [{"kind": {"a": 1}}]}, "more.0.kind: found {'a': 1}; expected one of: apple, pe"),
        ({"mode": []}, "mode: found []; expected one of: 3, loose, packed"),
        ({"more": [{"kind": "pear"}, {"kind": "plum"}]}, "more.1.kind: found 'plum'"),
        ({"more": [{"kind": "apple", "weight": 1}]}, "unknown key more.0.weight"),
        ({"name": 3}, "name: expected str, found 3"),
        ({"ripe": 1}, "ripe: expected bool, found 1"),
        ({"limit": True}, "limit: expected int | None, found True"),
        ({"ratio": True}, "ratio: expected float, found True"),
        ({"ratio": "2"}, "ratio: expected float, found '2'"),
        ({"size": 1.5}, "size: expected int, found 1.5"),
        ({"mode": "pack"}, "mode: found 'pack'; did you mean 'packed'?"),
        ({"pair": [1]}, "pair: expected tuple[int, str], found [1]"),
        ({"pair": "ab"}, "pair: expected tuple[int, str], found 'ab'"),
        ({"pair": [1, 2]}, "pair.1: expected str, found 2"),
        ({"notes": []}, "notes: expected dict[str, tuple[float, ...]], found []"),
        ({"notes": {"n": [1.0, "b"]}}, "notes.n.1: expected float, found 'b'"),
        ({"fruit": 7}, "fruit: expected "),
        ({"box": {"wid": 1}}, "unknown key box.wid; did you mean 'wide'?"),
        ({"box": 3}, "box: expected "),
        (
            {"fruit": {"kind": "pear", "weight": -1}},
            "fruit.weight: expected more than 0, found -1.0; weigh again",
        ),
        (
            {"more": [{"kind": "pear", "weight": 0}]},
            "more.0.weight: expected more than 0, found 0.0; weigh again",
        ),
    ],
    ids=str,
)
def test_what_is_wrong_is_named_in_one_line(change, message):
    with pytest.raises(ConfigError) as caught:
        from_dict(Basket, {"name": "a", **change}, where="run.json")
    assert str(caught.value).startswith("run.json: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_key_is_named():
    with pytest.raises(ConfigError, match=r"config: name is missing; expected str$"):
        from_dict(Basket, {})


def test_a_plain_value_is_no_config():
    with pytest.raises(ConfigError, match=r"config: value: expected Basket, found \[\]"):
        from_dict(Basket, [])


def test_a_single_dataclass_needs_no_kind():
    assert from_dict(Basket, {"name": "a", "box": {"wide": 4}}).box == Box(wide=4)


plain = st.none() | st.booleans() | st.integers() | st.text()
keys = st.sampled_from(["kind", "seeds", "wide"]) | st.text()


@given(st.recursive(plain, lambda inner: st.lists(inner) | st.dictionaries(keys, inner)))
def test_any_json_parses_or_is_a_config_error(data):
    for key in ("fruit", "more", "pair", "mode", "folder", "notes", "box"):
        with suppress(ConfigError):
            basket = from_dict(Basket, {"name": "a", key: data})
            assert from_dict(Basket, to_dict(basket)) == basket


def test_json_files(tmp_path: Path):
    good, bad, latin = (tmp_path / name for name in ("good.json", "bad.json", "latin.json"))
    good.write_text('{"ä": [1, 2.5, null]}', encoding="utf-8")
    bad.write_text('{"a": ', encoding="utf-8")
    latin.write_bytes('"ä"'.encode("latin-1"))
    assert read_json(good) == {"ä": [1, 2.5, None]}
    for path, message in (
        (bad, "expected JSON, found"),
        (latin, "expected JSON, found"),
        (tmp_path / "none.json", "no such file"),
    ):
        with pytest.raises(ConfigError, match=message) as caught:
            read_json(path)
        assert str(caught.value).startswith(f"{path}: ")
        assert "\n" not in str(caught.value)


@dataclass(frozen=True)
class _Sizes:
    a: float = 1
    b: float = 0


def test_a_size_below_one_is_named():
    check_positive(_Sizes(), "a")
    with pytest.raises(ConfigError, match=r"^b: expected at least 1, found 0$"):
        check_positive(_Sizes(), "a", "b")


@pytest.mark.parametrize(
    ("check", "least", "wrong", "expected"),
    [
        (check_positive, 1, 0, "at least 1, found 0"),
        (check_above_zero, 1e-300, 0.0, "more than 0, found 0.0"),
        (check_above_zero, math.inf, -1e-300, "more than 0, found -1e-300"),
        (check_above_zero, 2, math.nan, "more than 0, found nan"),
        (check_at_least_zero, 0.0, -1e-300, "at least 0, found -1e-300"),
        (check_at_least_zero, -0.0, math.nan, "at least 0, found nan"),
        (check_at_least_zero, 0, -1, "at least 0, found -1"),
    ],
)
def test_numbers_out_of_range_are_named(check, least, wrong, expected):
    check(_Sizes(a=least, b=wrong), "a")
    check(_Sizes(a=wrong), *())
    with pytest.raises(ConfigError) as caught:
        check(_Sizes(a=least, b=wrong), "a", "b")
    assert str(caught.value) == f"b: expected {expected}"
