"""``pellucid fit SOURCE --dictionary topk --latents 8192 --k 32 --run FOLDER``."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from pellucid.cli.parse import parse, take_positional
from pellucid.cli.progress import note_progress, say
from pellucid.cli.table import table
from pellucid.recipes.fit_request import FitRequest

CERTIFICATE = (
    "{name}: flatness {beta:.2f}, expansion at 2k {epsilon_2k:.2f}, R_id {r_id:.3g}, "
    "R_OMP {r_omp:.3g}; at 1 or above sparse codes have no certificate of being identified"
)
SHOWN = ("fvu", "ce_recovered", "l0", "dead", "silent", "dense_1", "redundancy_90")


@dataclass(frozen=True, kw_only=True)
class FitFlags:
    """Fit dictionaries to a folder of harvested activations, or to a model as it runs."""

    run: Path
    """The run folder to make, with one folder per dictionary."""
    request: Annotated[FitRequest, tyro.conf.arg(name="")] = FitRequest()
    overwrite: bool = False
    """Replace a run folder of the same name."""


def main(argv: Sequence[str]) -> int:
    """Fit; print a table, or the resume command if it was stopped early."""
    from pellucid.dictionaries import DICTIONARIES
    from pellucid.recipes.fit_folder import create_fit
    from pellucid.recipes.fitting import fit_dictionaries, prepare_fit

    if set(argv) & {"-h", "--help"}:
        print("dictionaries: " + " ".join(DICTIONARIES) + "\n")
        name, rest = "SOURCE", ["--help"]
    else:
        name, rest = take_positional(argv, "a folder of activations or a model's name", "fit")
    flags = parse(FitFlags, rest, verb="fit", says=FitFlags.__doc__ or "", usage="fit SOURCE")
    config, opened = flags.request.resolve(name)
    prepared = prepare_fit(config, note_progress(), opened=opened)
    command = ["pellucid", "fit", *argv]
    create_fit(flags.run, prepared.config, command=command, overwrite=flags.overwrite)
    done = fit_dictionaries(flags.run, prepared, say=say)
    return told(flags.run, done)


def resume(run: Path) -> int:
    """Go on with every dictionary of a run from its newest checkpoint."""
    from pellucid.recipes.fit_folder import read_fit
    from pellucid.recipes.fitting import fit_dictionaries, prepare_fit

    prepared = prepare_fit(read_fit(run), note_progress())
    return told(run, fit_dictionaries(run, prepared, say=say))


def told(run: Path, done: bool) -> int:
    """Print the dictionaries' figures, or how to go on; the exit code is 0."""
    from pellucid.recipes.fit_folder import final_figures

    if not done:
        say("stopped after a checkpoint; continue with:")
        print(f"pellucid resume {shlex.quote(str(run))}")
        return 0
    found = final_figures(run).items()
    rows = [[name, *(figures.get(shown) for shown in SHOWN)] for name, figures in found]
    print(table(["dictionary", *SHOWN], rows))
    for name, figures in found:
        if "r_omp" in figures:
            print(CERTIFICATE.format(name=name, **figures))
    return 0
