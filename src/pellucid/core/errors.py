"""The errors a user can cause.

Every one is a ``ValueError`` whose single-line message names the file, the field, what was
expected, what was found and how to mend it. The command line prints that line and exits with
code 2 (a ``TrainingError``, which is no wrong input, with 1); nothing already written is lost.

    ValueError
    └── PellucidError
        ├── ConfigError       a config, recipe or flag that cannot be honoured
        ├── DataError         a corpus, file or tokenizer that cannot be read
        ├── RunError          a run folder that exists, is missing or is not a run
        ├── CheckpointError   a checkpoint that is truncated, altered, newer or not safetensors
        ├── AddressError      a site or unit that the model does not have
        ├── InteropError      a foreign file that cannot be read, or a form that it cannot hold
        ├── TrainingError     a loss or gradient that is no longer finite
        └── MissingExtra      an optional package that is not installed
"""

import difflib
from collections.abc import Iterable


class PellucidError(ValueError):
    """Base of every error that a user can cause and mend."""


class ConfigError(PellucidError):
    """A config, recipe or flag that cannot be honoured."""


class DataError(PellucidError):
    """A corpus, file or tokenizer that cannot be read."""


class RunError(PellucidError):
    """A run folder that exists already, is missing, or is not a run."""


class CheckpointError(PellucidError):
    """A checkpoint that is truncated, altered, newer than this version, or not safetensors."""


class AddressError(PellucidError):
    """A site or unit that the model does not have."""


class InteropError(PellucidError):
    """A foreign file that cannot be read as it stands, or a dictionary its format cannot hold."""


class TrainingError(PellucidError):
    """A loss or gradient that is no longer finite."""


class MissingExtra(PellucidError):
    """An optional package that is not installed."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the package {package}, which is not installed; "
            f"run: pip install 'pellucid[{extra}]'"
        )


def nearest(name: str, known: Iterable[str]) -> str:
    """The clause that offers the closest known name: ``"; did you mean 'peer'?"`` or a list."""
    options = sorted(known)
    close = difflib.get_close_matches(name, options, n=1, cutoff=0.5)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"expected one of: {', '.join(options)}"
