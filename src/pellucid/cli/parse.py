"""Flags to config dataclasses, through tyro, with every mistake told in one line."""

import contextlib
import io
import re
from collections.abc import Sequence
from typing import TypeVar

import tyro

from pellucid.core.errors import ConfigError, nearest

T = TypeVar("T")

_BOX = re.compile(r"[│╭╮╰╯─┌┐└┘]+")


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
        raise ConfigError(f"{verb}: {_first_line(errors.getvalue())}") from None
    if unknown:
        flag = unknown[0]
        known = flags(kind, verb, default)
        hint = nearest(flag, known) if flag.startswith("-") else f"see pellucid {verb} --help"
        raise ConfigError(f"{verb}: unknown argument {flag}; {hint}")
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


def _first_line(text: str) -> str:
    """The message inside tyro's box, without the frame and the help that follows it."""
    lines = [_BOX.sub(" ", line).strip() for line in text.splitlines()]
    said = [line for line in lines if line]
    body = said[1:] or said
    end = next(
        (i for i, line in enumerate(body) if line.startswith(("Argument helptext", "For full"))), 1
    )
    return " ".join(" ".join(body[: max(end, 1)]).split()) or "the arguments cannot be read"
