"""Charts: well-formed, deterministic, in the page's colours, at the right places."""

import math
import re
import sys
import xml.etree.ElementTree as ET

import pytest

from pellucid.core.errors import MissingExtra
from pellucid.report.charts import describe, draw_chart, short_number
from pellucid.report.page import DotChart, LineChart, Series

LINES = LineChart(
    caption="Loss",
    x_label="tokens",
    y_label="nats",
    series=(
        Series(name="pools", x=(0.0, 1e6, 2e6), y=(3.0, 2.0, 1.5)),
        Series(name="a < b & $c$", x=(0.0, 2e6), y=(3.0, 2.5)),
    ),
)
DOTS = DotChart(
    caption="By domain",
    x_label="bits",
    categories=("chess", "code_c"),
    series=(Series(name="pools", y=(2.0, 1.0)), Series(name="dense", y=(4.0, 0.5))),
)


def _texts(svg: str) -> list[str]:
    return [e.text or "" for e in ET.fromstring(svg).iter() if e.tag.endswith("text")]


def _paths(svg: str, colour: str) -> list[list[tuple[float, float]]]:
    """The corner points of every path drawn in ``colour``."""
    found = []
    for element in ET.fromstring(svg).iter():
        style, d = element.get("style", ""), element.get("d")
        if d and colour in style:
            numbers = [float(n) for n in re.findall(r"-?[\d.]+", d)]
            found.append(list(zip(numbers[::2], numbers[1::2])))
    return found


@pytest.mark.parametrize("chart", [LINES, DOTS])
def test_well_formed_and_equal_twice(chart: LineChart | DotChart):
    svg = draw_chart(chart, "c0")
    assert svg == draw_chart(chart, "c0")
    root = ET.fromstring(svg)
    assert root.tag.endswith("svg")
    assert root.get("viewBox")
    assert root.get("width") is None


@pytest.mark.parametrize("chart", [LINES, DOTS])
def test_colours_and_font_are_the_page_s(chart: LineChart | DotChart):
    svg = draw_chart(chart, "c0")
    assert "var(--series-0)" in svg
    assert "var(--series-1)" in svg
    assert "var(--muted)" in svg
    assert set(re.findall(r"#[0-9a-f]{6}", svg)) == set()
    assert set(re.findall(r"font-family: ([^;\"]+)", svg)) == {"inherit"}
    assert "<style" not in svg
    assert "<metadata" not in svg


def test_ids_of_two_charts_do_not_meet():
    one, two = draw_chart(LINES, "c0"), draw_chart(LINES, "c1")
    ids = [set(re.findall(r'id="([^"]+)"', svg)) for svg in (one, two)]
    assert ids[0].isdisjoint(ids[1])
    for svg, known in zip((one, two), ids):
        used = set(re.findall(r'href="#([^"]+)"', svg)) | set(re.findall(r"url\(#([^)]+)\)", svg))
        assert used <= known


def test_names_are_text_as_written():
    texts = _texts(draw_chart(LINES, "c0"))
    assert "a < b & $c$" in texts
    assert "tokens" in texts
    assert "nats" in texts
    assert {"0", "1M", "2M"} <= set(texts)


def test_a_line_goes_through_its_points():
    line = next(p for p in _paths(draw_chart(LINES, "c0"), "--series-0") if len(p) == 3)
    # x: 0, 1M, 2M are equally spaced. y: 3 → 2 → 1.5 falls by 1, then by .5; SVG counts downwards.
    (x0, y0), (x1, y1), (x2, y2) = line
    # Coordinates are printed to 1e-6.
    assert x1 - x0 == pytest.approx(x2 - x1, abs=1e-3)
    assert y1 - y0 == pytest.approx(2 * (y2 - y1), abs=1e-3)
    assert y0 < y1 < y2


def test_few_points_are_marked():
    def marks(points: int) -> int:
        x = tuple(float(i) for i in range(points))
        series = (Series(name="a", x=x, y=x),)
        return draw_chart(LineChart(caption="", x_label="", y_label="", series=series), "c0").count(
            "<use "
        )

    # One mark a point, and one in the legend; the ticks have none.
    assert marks(1) == 2
    assert marks(5) == 6
    assert marks(100) == 0


def _dots(svg: str, colour: str) -> list[tuple[float, float]]:
    """Where the marks of a series stand, without the one in the legend, from top to bottom."""
    uses = [e for e in ET.fromstring(svg).iter() if e.tag.endswith("use")]
    found = [e for e in uses if colour in e.get("style", "")]
    places = [(float(e.get("x", "nan")), float(e.get("y", "nan"))) for e in found]
    return sorted(places, key=lambda place: place[1])[1:]


def test_dots_stand_at_their_values():
    svg = draw_chart(DOTS, "c0")
    (first_a, first_b), (second_a, second_b) = _dots(svg, "--series-0"), _dots(svg, "--series-1")
    # chess 2 and 4, code_c 1 and 0.5: with x linear in the value, 3.5 is 7 times 0.5.
    # Coordinates are printed to 1e-6.
    assert second_a[0] - second_b[0] == pytest.approx(7 * (first_b[0] - second_b[0]), abs=1e-3)
    assert first_a[0] - first_b[0] == pytest.approx(2 * (first_b[0] - second_b[0]), abs=1e-3)
    # One line a category, the first on top.
    assert first_a[1] == second_a[1] < first_b[1] == second_b[1]


def test_every_category_is_named():
    assert {"chess", "code_c"} <= set(_texts(draw_chart(DOTS, "c0")))


def test_a_missing_value_leaves_a_gap():
    series = (Series(name="a", y=(1.0, math.nan)), Series(name="b", y=(math.nan, math.nan)))
    chart = DotChart(caption="", x_label="", categories=("x", "y"), series=series)
    assert "nan" not in draw_chart(chart, "c0").lower()


def test_y_range_cuts_the_axis():
    chart = LineChart(caption="", x_label="", y_label="", series=LINES.series, y_range=(1.0, 2.0))
    texts = _texts(draw_chart(chart, "c0"))
    assert "1.0" in texts
    assert "3.0" not in texts


def test_what_is_said_of_a_chart():
    assert describe(LINES) == "Loss: pools ends at 1.500; a < b & $c$ ends at 2.500"
    assert describe(DOTS) == "By domain: pools from 1.000 to 2.000; dense from 0.500 to 4.000"


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (0.25, "0.25"), (999.0, "999"), (1500.0, "1.5k"), (2e6, "2M"), (-3e9, "-3G")],
)
def test_short_numbers(value: float, text: str):
    assert short_number(value) == text


def test_without_matplotlib_the_extra_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtra, match=r"pip install 'pellucid\[bench\]'"):
        draw_chart(LINES, "c0")
