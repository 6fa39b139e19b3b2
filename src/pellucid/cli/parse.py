"""Flags to config dataclasses, through tyro, with every mistake told in one line."""

import contextlib
import io
import re
from collections.abc import Sequence
from typing import TypeVar

import tyro

from pellucid.core.errors import ConfigError, nearest

T = TypeVar("T")

# The frame that tyro draws, also where only ASCII can be printed.
_BOX = re.compile(r"[│╭╮╰╯─┌┐└┘]+|-{3,}")


def parse(
    kind: type[T],
    args: Sequence[str],
    *,
    verb: str,
    says: str,
    default: T | None = None,
    usage: str | None = None,
) -> T:
    """Build ``kind`` from flags over ``default``.

    An unknown flag is a ``ConfigError`` with the nearest one; so is a value of the wrong type.
    ``--help`` prints the flags and exits with 0; ``usage`` replaces the verb in its first line.
    """
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            parsed, unknown = tyro.cli(
                kind,
                prog=f"pellucid {usage or verb}",
                description=says,
                default=tyro.MISSING_NONPROP if default is None else default,  # pyright: ignore
                args=list(args),
                return_unknown_args=True,
                config=(tyro.conf.AvoidSubcommands,),
            )
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        # The value of an unknown flag may have been taken for something else: name the flag.
        _refuse_unknown(args, kind, verb, default)
        raise ConfigError(f"{verb}: {_first_line(errors.getvalue())}") from None
    if unknown:
        _refuse_unknown(unknown, kind, verb, default)
        raise ConfigError(f"{verb}: unknown argument {unknown[0]}; see pellucid {verb} --help")
    return parsed


def flags(kind: type[T], verb: str, default: T | None = None) -> list[str]:
    """Every flag that ``parse`` knows for ``kind``."""
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        tyro.cli(
            kind,
            prog=f"pellucid {verb}",
            default=tyro.MISSING_NONPROP if default is None else default,  # pyright: ignore
            args=["--help"],
            config=(tyro.conf.AvoidSubcommands,),
        )
    return sorted(set(re.findall(r"--[a-z0-9][a-z0-9.-]*", text.getvalue())))


def take_positional(args: Sequence[str], what: str, verb: str) -> tuple[str, list[str]]:
    """The first argument and the rest; none is a ``ConfigError`` that says what was expected."""
    if not args or args[0].startswith("-"):
        raise ConfigError(f"{verb}: expected {what} as the first argument")
    return args[0], list(args[1:])


def take_option(args: Sequence[str], flag: str) -> str | None:
    """The value of ``flag`` wherever it stands: ``--flag VALUE`` or ``--flag=VALUE``."""
    for index, arg in enumerate(args):
        if arg == flag and index + 1 < len(args):
            return args[index + 1]
        if arg.startswith(f"{flag}="):
            return arg.partition("=")[2]
    return None


def _refuse_unknown(args: Sequence[str], kind: type[T], verb: str, default: T | None) -> None:
    known = {*flags(kind, verb, default), "--help"}
    for arg in args:
        flag = arg.partition("=")[0]
        if re.match("--?[A-Za-z]", flag) and flag.replace("_", "-") not in {*known, "-h"}:
            raise ConfigError(f"{verb}: unknown argument {flag}; {nearest(flag, known)}")


def _first_line(text: str) -> str:
    """The message inside tyro's box, without the frame and the help that follows it."""
    lines = [_BOX.sub(" ", line).strip() for line in text.splitlines()]
    said = [line for line in lines if line]
    body = said[1:] or said
    end = next(
        (i for i, line in enumerate(body) if line.startswith(("Argument helptext", "For full"))), 1
    )
    told = " ".join(" ".join(body[: max(end, 1)]).split()).partition(" Got errors:")[0]
    return told or "the arguments cannot be read"
