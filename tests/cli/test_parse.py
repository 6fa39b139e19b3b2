"""Flags to dataclasses: defaults, overrides, and every mistake in one line."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import pytest
import tyro

from pellucid.cli.parse import flags, parse, take_option, take_positional
from pellucid.core.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Inner:
    rate: float = 0.5
    mode: Literal["slow", "fast"] = "slow"

    def __post_init__(self) -> None:
        if self.rate < 0:
            raise ConfigError(f"rate: expected at least 0, found {self.rate}; raise it")


@dataclass(frozen=True, kw_only=True)
class Flags:
    """What the test verb is told."""

    folder: Annotated[Path, tyro.conf.Positional]
    """Where to look."""
    count: int = 3
    """How many."""
    loud: bool = False
    pair: tuple[float, float] = (1.0, 2.0)
    limit: int | None = None
    names: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    inner: Inner = field(default_factory=Inner)


def read(*args: str, default: Flags | None = None) -> Flags:
    return parse(Flags, args, verb="test", says="A test.", default=default)


def test_defaults():
    assert read("here") == Flags(folder=Path("here"))


def test_every_kind_of_flag():
    found = read(
        "here", "--count", "5", "--loud", "--pair", "0.5", "1e-3", "--limit", "7",
        "--names", "a", "--names", "b@c=3", "--inner.rate", "2", "--inner.mode=fast",
    )  # fmt: skip
    assert found == Flags(
        folder=Path("here"),
        count=5,
        loud=True,
        pair=(0.5, 1e-3),
        limit=7,
        names=("a", "b@c=3"),
        inner=Inner(rate=2.0, mode="fast"),
    )


def test_a_default_is_overridden_field_by_field():
    base = Flags(folder=Path("base"), count=9, inner=Inner(rate=0.1, mode="fast"))
    found = parse(Flags, ["--inner.rate", "0.2"], verb="test", says="", default=base)
    assert found == Flags(folder=Path("base"), count=9, inner=Inner(rate=0.2, mode="fast"))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("here", "--cuont", "3"), "unknown argument --cuont; did you mean '--count'?"),
        (("here", "--inner.rat", "3"), "unknown argument --inner.rat; did you mean '--inner.rate'"),
        (("here", "--rate", "3"), "unknown argument --rate; did you mean '--inner.rate'?"),
        (("here", "there"), "unknown argument there; see pellucid test --help"),
        (("here", "--count", "x"), "--count: invalid literal for int() with base 10: 'x'"),
        (("here", "--count", "2.5"), "--count: invalid literal for int() with base 10: '2.5'"),
        (("here", "--pair", "1"), "Missing value for argument '--pair'. Expected 2 values."),
        (("here", "--inner.mode", "fats"), "invalid choice 'fats' for argument '--inner.mode'"),
        (("here", "--inner.rate", "-1"), "rate: expected at least 0, found -1.0; raise it"),
        (("here", "--loud", "yes"), "unknown argument yes"),
        ((), "Missing from pellucid test: PATH Where to look. (required)"),
        (("--cuont", "3"), "unknown argument --cuont; did you mean '--count'?"),
        (("here", "--cuont=3", "--count", "x"), "unknown argument --cuont; did you mean '--count'"),
        (("here", "-x"), "unknown argument -x; "),
    ],
    ids=str,
)
def test_a_mistake_is_told_in_one_line(capsys, args: tuple[str, ...], message: str):
    with pytest.raises(ConfigError) as caught:
        read(*args)
    text = str(caught.value)
    assert message.lower() in text.lower()
    assert "\n" not in text
    assert "  " not in text
    assert "─" not in text
    assert "│" not in text
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "")


def test_help_goes_to_stdout_and_ends_well(capsys):
    with pytest.raises(SystemExit) as stop:
        read("--help")
    assert stop.value.code == 0
    said = capsys.readouterr()
    assert "usage: pellucid test" in said.out
    assert "How many." in said.out
    assert said.err == ""


def test_the_flags_that_are_known():
    assert {"--count", "--loud", "--no-loud", "--inner.rate", "--inner.mode", "--names"} <= set(
        flags(Flags, "test")
    )


@pytest.mark.parametrize(
    ("args", "value"),
    [
        (["--from", "a.json"], "a.json"),
        (["--steps", "3", "--from=a.json"], "a.json"),
        (["--from", "a.json", "--steps", "3"], "a.json"),
        (["--from="], ""),
        (["--from"], None),
        (["--fromage", "b"], None),
        ([], None),
    ],
)
def test_the_value_of_one_flag_wherever_it_stands(args: list[str], value: str | None):
    assert take_option(args, "--from") == value


def test_the_first_argument():
    assert take_positional(["a", "--b", "c"], "a recipe", "train") == ("a", ["--b", "c"])
    for args in ([], ["--steps", "3"]):
        with pytest.raises(ConfigError, match=r"^train: expected a recipe as the first argument$"):
            take_positional(args, "a recipe", "train")
