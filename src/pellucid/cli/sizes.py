"""``pellucid sizes``."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from pellucid.cli.parse import parse


@dataclass(frozen=True, kw_only=True)
class SizesFlags:
    """What every preset and architecture costs: parameters, FLOPs per token, bytes."""

    preset: str | None = None
    """Only this size."""
    json: bool = False
    """Print a JSON list instead of a table."""


def main(argv: Sequence[str]) -> int:
    """Print one row per preset and architecture."""
    flags = parse(SizesFlags, argv, verb="sizes", says=SizesFlags.__doc__ or "")
    from pellucid.core.errors import ConfigError, nearest
    from pellucid.models.presets import PRESETS

    if flags.preset is not None and flags.preset not in PRESETS:
        raise ConfigError(f"--preset {flags.preset!r}: {nearest(flags.preset, PRESETS)}")
    rows = [row for row in size_rows() if flags.preset in (None, row["preset"])]
    if flags.json:
        print(json.dumps(rows, indent=1))
    else:
        _print_table(rows)
    return 0


def size_rows() -> list[dict[str, str | int]]:
    """One record per preset and architecture, numbers unrounded."""
    from pellucid.models.cost import model_cost, model_memory
    from pellucid.models.presets import ARCHITECTURES, PRESETS, preset

    rows: list[dict[str, str | int]] = []
    for size in PRESETS:
        for architecture in ARCHITECTURES:
            config = preset(architecture, size)
            cost, memory = model_cost(config), model_memory(config)
            rows.append(
                {
                    "preset": size,
                    "architecture": architecture,
                    "free_size": config.slot(0).free_size,
                    "params_total": cost.total,
                    "params_active": cost.active,
                    "forward_flops_per_token": cost.forward,
                    "train_flops_per_token": cost.training,
                    **{f"{name}_bytes": value for name, value in asdict(memory).items()},
                }
            )
    return rows


def _print_table(rows: Sequence[dict[str, str | int]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for name in ("preset", "architecture"):
        table.add_column(name)
    for name in (
        "free size",
        "total",
        "active",
        "forward FLOPs/token",
        "training FLOPs/token",
        "weights",
        "optimiser",
    ):
        table.add_column(name, justify="right")
    for row in rows:
        names, numbers = list(row.values())[:2], list(row.values())[2:]
        cells = [str(numbers[0]), *(_si(int(n)) for n in numbers[1:5])]
        sizes = [f"{_si(int(n))}B" for n in numbers[5:]]
        table.add_row(*map(str, names), *cells, *sizes)
    Console(width=None if Console().is_terminal else 140).print(table)


def _si(number: int) -> str:
    value = float(number)
    for unit in ("", "k", "M", "G"):
        if float(f"{value:.3g}") < 1000:
            return f"{value:.3g} {unit}".rstrip()
        value /= 1000
    return f"{value:.3g} T"
