"""``pellucid train RECIPE --data SOURCE --run FOLDER``."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated

import tyro

from pellucid.cli.parse import parse, take_option, take_positional
from pellucid.cli.progress import finish, note_progress, say
from pellucid.core.config import from_dict, read_json, to_dict
from pellucid.recipes.language import LanguageRun, recipe, recipe_names


@dataclass(frozen=True, kw_only=True)
class TrainFlags:
    """Train a language model from a recipe; every field of its config is a flag."""

    run: Path
    """The run folder to make."""
    config: Annotated[LanguageRun, tyro.conf.arg(name="")]
    data: str | None = None
    """Where the text comes from: embedded, a file or folder, or hub:NAME[:CONFIG].
    Short for --data.source."""
    source: Annotated[Path | None, tyro.conf.arg(name="from")] = None
    """Start from the config of another run, its folder or a file, instead of the recipe's."""
    overwrite: bool = False
    """Replace a run folder of the same name."""
    dry_run: bool = False
    """Print the resolved config as JSON and stop."""


def main(argv: Sequence[str]) -> int:
    """Train; print the run's folder, or the resume command if it was stopped early."""
    from pellucid.recipes.folder import check_new, create_run
    from pellucid.recipes.training import prepare_run, train_language

    if set(argv) & {"-h", "--help"}:
        name, rest = "pools-tiny", ["--help"]
        print("recipes: " + " ".join(recipe_names()) + "\n")
    else:
        name, rest = take_positional(argv, "a recipe such as pools-tiny", "train")
    base = _base(name, take_option(rest, "--from"))
    default = TrainFlags(run=Path("runs") / name, config=base)
    flags = parse(
        TrainFlags,
        rest,
        verb="train",
        says=TrainFlags.__doc__ or "",
        default=default,
        usage="train RECIPE",
    )
    config = flags.config
    if flags.data is not None:
        config = replace(config, data=replace(config.data, source=flags.data))
    if flags.dry_run:
        print(json.dumps(to_dict(config), indent=1))
        return 0
    check_new(flags.run, overwrite=flags.overwrite)
    prepared = prepare_run(config, note_progress())
    make_folder = partial(
        create_run,
        flags.run,
        prepared.config,
        recipe=name,
        command=["pellucid", "train", *argv],
        overwrite=flags.overwrite,
    )
    progress = train_language(flags.run, prepared, name=name, say=say, make_folder=make_folder)
    return finish(flags.run, progress.step, progress.steps)


def _base(name: str, source: str | None) -> LanguageRun:
    base = recipe(name)
    if source is None:
        return base
    path = Path(source) / "run.json" if Path(source).is_dir() else Path(source)
    record = read_json(path)
    config = record.get("config", record) if isinstance(record, dict) else record
    return from_dict(LanguageRun, config, where=str(path))
