"""What a report shows: plain records, from the page down to the blocks of a section.

Text is plain and is escaped when rendered. A block knows nothing of models; whoever has figures
arranges them here, and ``render`` turns the page into one HTML file.
"""

from dataclasses import dataclass

from pellucid.core.unit import UnitRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """A named line or group of dots. ``x`` is left empty where categories stand for it."""

    name: str
    y: tuple[float, ...]
    x: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Rows of cells already formatted; the first cell of a row names it.

    A column whose cells are all numbers, dashes or empty is set flush right.
    """

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LineChart:
    """Curves over a common x axis; ``y_range`` cuts the axis, for example below a steep start."""

    caption: str
    x_label: str
    y_label: str
    series: tuple[Series, ...]
    y_range: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DotChart:
    """One value per category and series, drawn sideways so that names stay readable.

    The axis does not start at zero, which shows small differences that bars would hide.
    """

    caption: str
    x_label: str
    categories: tuple[str, ...]
    series: tuple[Series, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class HeatMap:
    """Values from 0 to ``maximum`` (their largest, if None) as shaded cells of a table.

    Cells are printed as percentages. ``annotations`` are lines below the caption, for example
    the figure that sums the map up beside its null.
    """

    caption: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    values: tuple[tuple[float, ...], ...]
    row_axis: str
    column_axis: str
    annotations: tuple[str, ...] = ()
    maximum: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitCard:
    """All there is to read about one unit; a control is marked as such on the page."""

    record: UnitRecord
    control: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """A remark set apart from the running text."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Blocks side by side where the window is wide enough."""

    blocks: "tuple[Block, ...]"


Block = Table | LineChart | DotChart | HeatMap | UnitCard | Note | Row


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A heading, an introduction (one paragraph per entry) and blocks in order."""

    title: str
    intro: tuple[str, ...]
    blocks: tuple[Block, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """A whole report: what it says in two sentences, the facts of the run, and its sections."""

    title: str
    lead: str
    facts: tuple[tuple[str, str], ...]
    sections: tuple[Section, ...]
