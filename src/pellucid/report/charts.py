"""Line and dot charts as inline SVG whose colours follow the page.

matplotlib draws with stand-in colours, which become the page's CSS variables afterwards, so that
one picture serves light and dark. Equal charts give equal bytes.
"""

import io
import math
import re
from typing import TYPE_CHECKING

from pellucid.core.errors import MissingExtra
from pellucid.report.page import DotChart, LineChart, Series

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Chart = LineChart | DotChart

NUM_COLOURS = 6
DASHES = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)))
MARKERS = ("o", "D", "s", "^", "v", "P")
INK, MUTED, LINE = "#010203", "#010204", "#010205"
FEW_POINTS = 24  # up to here a line marks its points, so that a single one shows too
WIDTH, LINE_HEIGHT = 6.4, 3.3  # inches of 72 points; the page scales them


def draw_chart(chart: Chart, key: str) -> str:
    """The chart as an ``<svg>`` element; ``key`` keeps its ids apart from other charts'."""
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtra("matplotlib", "bench", "drawing a report") from None
    with matplotlib.rc_context(
        {"svg.fonttype": "none", "svg.hashsalt": "pellucid", "text.parse_math": False}
    ):
        figure = Figure(figsize=(WIDTH, _height(chart)), layout="constrained")
        axes = figure.add_subplot()
        if isinstance(chart, LineChart):
            _draw_lines(axes, chart)
        else:
            _draw_dots(axes, chart)
        _dress(axes, chart)
        figure.legend(
            *axes.get_legend_handles_labels(),
            loc="outside upper left",
            ncols=4,
            frameon=False,
            fontsize=9,
            labelcolor=INK,
        )
        out = io.StringIO()
        figure.savefig(
            out, format="svg", transparent=True, metadata={"Date": None, "Creator": None}
        )
    return _themed(out.getvalue(), key)


def describe(chart: Chart) -> str:
    """What a reader who cannot see the chart is told: its caption and where each series lies."""
    if isinstance(chart, LineChart):
        said = [f"{s.name} ends at {s.y[-1]:.3f}" for s in chart.series if s.y]
    else:
        said = [f"{s.name} from {min(s.y):.3f} to {max(s.y):.3f}" for s in chart.series if s.y]
    return f"{chart.caption}: {'; '.join(said)}"


def short_number(value: float) -> str:
    """An axis label: 1500000 as 1.5M, 2000 as 2k."""
    for scale, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= scale:
            return f"{value / scale:.3g}{letter}"
    return f"{value:.3g}"


def _height(chart: Chart) -> float:
    if isinstance(chart, LineChart):
        return LINE_HEIGHT
    return 0.95 + 0.24 * len(chart.categories)


def _draw_lines(axes: "Axes", chart: LineChart) -> None:
    for i, series in enumerate(chart.series):
        axes.plot(
            series.x,
            series.y,
            color=_colour(i),
            linestyle=DASHES[i // NUM_COLOURS % len(DASHES)],
            linewidth=1.8,
            marker="o" if len(series.x) <= FEW_POINTS else "",
            markersize=3.5,
            solid_capstyle="round",
            label=series.name,
        )
    axes.grid(axis="y", color=LINE, linewidth=0.7)
    axes.xaxis.set_major_formatter(lambda value, _: short_number(value))
    axes.set_ylabel(chart.y_label, color=MUTED, fontsize=9)
    if chart.y_range is not None:
        axes.set_ylim(*chart.y_range)


def _draw_dots(axes: "Axes", chart: DotChart) -> None:
    places = list(range(len(chart.categories)))
    for i, series in enumerate(chart.series):
        marker = MARKERS[i % len(MARKERS)]
        axes.plot(series.y, places, marker, markersize=5.5, color=_colour(i), label=series.name)
    _connect(axes, chart.series)
    axes.set_yticks(places, chart.categories)
    axes.set_ylim(len(places) - 0.4, -0.6)
    axes.grid(axis="x", color=LINE, linewidth=0.7)


def _connect(axes: "Axes", series: tuple[Series, ...]) -> None:
    """A thin line from the lowest to the highest dot of each category."""
    for place, values in enumerate(zip(*(s.y for s in series))):
        known = [value for value in values if math.isfinite(value)]
        if known:
            ends = (min(known), max(known))
            axes.plot(ends, (place, place), color=LINE, linewidth=2.2, zorder=0.6)


def _dress(axes: "Axes", chart: Chart) -> None:
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(LINE)
    axes.tick_params(colors=MUTED, length=0, labelsize=8.5)
    if isinstance(chart, DotChart):
        axes.tick_params(axis="y", labelcolor=INK)
    axes.set_xlabel(chart.x_label, color=MUTED, fontsize=9)


def _colour(i: int) -> str:
    return f"#0102{0x10 + i % NUM_COLOURS:02x}"


def _themed(svg: str, key: str) -> str:
    """Keep the ``<svg>`` element alone, in the page's colours and font, with ids of its own."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.DOTALL)
    names = {INK: "ink", MUTED: "muted", LINE: "line"}
    names |= {_colour(i): f"series-{i}" for i in range(NUM_COLOURS)}
    for colour, name in names.items():
        svg = svg.replace(colour, f"var(--{name})")
    svg = re.sub(r"font-family: [^;\"]+", "font-family: inherit", svg)
    svg = re.sub(r'(id="|href="#|url\(#)', rf"\g<1>{key}-", svg)
    return re.sub(r' (width|height)="[\d.]+pt"', "", svg, count=2)
