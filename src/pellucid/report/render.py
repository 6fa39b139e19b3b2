"""A page as one HTML file: no script, no asset beside it, readable in light and dark."""

import os
import re
from importlib import import_module, resources
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from pellucid.core.errors import MissingExtra
from pellucid.report.charts import describe, draw_chart
from pellucid.report.page import (
    Block,
    DotChart,
    HeatMap,
    LineChart,
    Note,
    Page,
    Row,
    Table,
    UnitCard,
)
from pellucid.report.tokens import shade, visible

if TYPE_CHECKING:
    from collections.abc import Iterator

    from jinja2 import Environment

NUMBER = re.compile(r"[-+−±]?[\d.,]+(e[-+]?\d+)?\s*(%|[kMG])?( ?[±(].*)?|[–—-]?|∞")
MAX_DOMAINS = 8  # lines of a unit's domain bars
HOT = 0.6  # above this strength a cell's text turns to the colour that reads on it


def check_packages() -> None:
    """Whether a page could be written: ``MissingExtra`` without jinja2 or matplotlib."""
    for package in ("jinja2", "matplotlib"):
        try:
            import_module(package)
        except ImportError:
            raise MissingExtra(package, "bench", "writing a report") from None


def render_page(page: Page) -> str:
    """The whole page as HTML. Errors: ``MissingExtra`` without jinja2 or matplotlib."""
    check_packages()
    environment = _environment()
    style = resources.files("pellucid.report").joinpath("templates/style.css").read_text("utf-8")
    keys = (f"c{i}" for i in count())
    sections = [
        (section, [_render_block(environment, block, keys) for block in section.blocks])
        for section in page.sections
    ]
    return environment.get_template("page.html").render(page=page, sections=sections, style=style)


def write_page(page: Page, path: Path) -> None:
    """Render ``page`` to ``path``; whoever opens it meanwhile sees the old page or the new one."""
    text = render_page(page)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.partial")
    with aside.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)


def _environment() -> "Environment":
    import jinja2

    return jinja2.Environment(
        loader=jinja2.PackageLoader("pellucid.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _render_block(environment: "Environment", block: Block, keys: "Iterator[str]") -> str:
    from markupsafe import Markup

    def fill(template: str, **values: object) -> str:
        return Markup(environment.get_template(template).render(block=block, **values))

    match block:
        case Table():
            return fill("table.html", numeric=_numeric_columns(block))
        case LineChart() | DotChart():
            svg = Markup(draw_chart(block, next(keys)))
            return fill("chart.html", svg=svg, description=describe(block))
        case HeatMap():
            return fill("heatmap.html", **_heat(block))
        case UnitCard():
            contexts = [(context, shade(context)) for context in block.record.contexts]
            domains = _leading(block.record.domains)
            return fill("unit.html", contexts=contexts, domains=domains, visible=visible)
        case Note():
            return fill("note.html")
        case Row():
            parts = [_render_block(environment, part, keys) for part in block.blocks]
            return fill("row.html", parts=parts)


def _numeric_columns(table: Table) -> list[bool]:
    return [
        column > 0 and all(NUMBER.fullmatch(row[column].strip()) for row in table.rows)
        for column in range(len(table.columns))
    ]


def _leading(shares: tuple[tuple[str, float], ...]) -> list[tuple[str, float]]:
    """The first shares and the sum of the others, if there are too many to list."""
    if len(shares) <= MAX_DOMAINS:
        return list(shares)
    listed, others = shares[: MAX_DOMAINS - 1], shares[MAX_DOMAINS - 1 :]
    return [*listed, (f"{len(others)} others", sum(share for _, share in others))]


def _heat(block: HeatMap) -> dict[str, object]:
    largest = max((value for row in block.values for value in row), default=0.0)
    maximum = block.maximum if block.maximum is not None else largest
    scale = maximum if maximum > 0 else 1.0
    cells = [
        [(min(value / scale, 1.0), value, value / scale > HOT) for value in row]
        for row in block.values
    ]
    return {"maximum": maximum, "rows": list(zip(block.rows, cells))}
