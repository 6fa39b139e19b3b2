"""The page: one file, valid, escaped, and showing what it was given."""

import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from pellucid.core.errors import MissingExtra
from pellucid.core.unit import Context, UnitRecord
from pellucid.report.page import (
    Block,
    DotChart,
    HeatMap,
    LineChart,
    Note,
    Page,
    Row,
    Section,
    Series,
    Table,
    UnitCard,
)
from pellucid.report.render import check_packages, render_page, write_page

VOID = {"meta", "br", "link", "img", "hr", "input"}
EVIL = "<script>alert('x')</script>"


class Outline(HTMLParser):
    """Every element with its attributes and direct text; fails on tags that do not match."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.stack: list[tuple[str, dict[str, str | None], list[str]]] = []
        self.seen: list[tuple[str, dict[str, str | None], list[str]]] = []
        self.feed(html)
        self.close()
        assert self.stack == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = (tag, dict(attrs), [])
        self.seen.append(element)
        if tag not in VOID:
            self.stack.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs), []))

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        for _, _, text in self.stack:
            text.append(data)

    def texts(self, tag: str, cls: str = "") -> list[str]:
        """The text inside every ``tag`` whose classes include ``cls``."""
        return [
            " ".join("".join(text).split())
            for name, attributes, text in self.seen
            if name == tag and (not cls or cls in (attributes.get("class") or "").split())
        ]


def _record(**changes: object) -> UnitRecord:
    values: dict = {
        "pool": "blocks.0.ffn",
        "unit": 35,
        "address": "blocks.0.ffn@pool=2,slot=3",
        "fires": 1234,
        "tokens": 100_000,
        "selectivity": 0.875,
        "domains": (("chess", 0.75), ("news", 0.25)),
        "reads": ((" the", 0.5),),
        "writes": (("\n", 2.0), (EVIL, 1.0)),
        "contexts": (
            Context(
                tokens=(" e4", EVIL, "\n"),
                values=(1.0, 4.0, -2.0),
                focus=1,
                document="games/1",
                domain="chess",
            ),
        ),
    }
    return UnitRecord(**(values | changes))


def _page(*blocks: Block) -> Page:
    section = Section(title="One & only", intro=("First.", "Second."), blocks=blocks)
    return Page(title="T", lead="L", facts=(("Seed", "0"),), sections=(section,))


def _show(*blocks: Block) -> Outline:
    return Outline(render_page(_page(*blocks)))


def test_head_and_sections():
    shown = _show()
    assert shown.texts("title") == ["T"]
    assert shown.texts("h1") == ["T"]
    assert shown.texts("h2") == ["One & only"]
    assert shown.texts("p", "lead") == ["L"]
    assert shown.texts("p", "intro") == ["First.", "Second."]
    assert shown.texts("dt") + shown.texts("dd") == ["Seed", "0"]
    assert shown.texts("nav") == []


def test_several_sections_get_links_that_lead_somewhere():
    sections = tuple(Section(title=t, intro=(), blocks=()) for t in ("A", "B"))
    shown = Outline(render_page(Page(title="T", lead="", facts=(), sections=sections)))
    links = [a["href"] for tag, a, _ in shown.seen if tag == "a"]
    ids = {a.get("id") for _, a, _ in shown.seen}
    assert len(links) == 2
    assert all(link and link.removeprefix("#") in ids for link in links)


def test_ids_are_unique_on_a_page_with_two_charts():
    chart = LineChart(
        caption="c",
        x_label="x",
        y_label="y",
        series=(Series(name="a", x=(0.0, 1.0), y=(0.0, 1.0)),),
    )
    shown = _show(chart, Row(blocks=(chart,)))
    ids = [a["id"] for _, a, _ in shown.seen if "id" in a]
    assert len(ids) == len(set(ids))


def test_nothing_outside_the_file_and_nothing_to_run():
    shown = _show(UnitCard(record=_record(), control=False))
    assert not {"script", "link", "img", "iframe"} & {tag for tag, _, _ in shown.seen}
    html = render_page(_page(UnitCard(record=_record(), control=False)))
    assert not re.search(r"""(src|href)=["'](?!#)""", html)
    assert "@import" not in html
    assert "url(" not in html
    assert not [a for _, a, _ in shown.seen if any(name.startswith("on") for name in a)]


def test_text_is_escaped_everywhere():
    blocks = (
        Table(caption=EVIL, columns=(EVIL, EVIL), rows=((EVIL, EVIL),)),
        Note(text=EVIL),
        HeatMap(
            caption=EVIL,
            rows=(EVIL,),
            columns=(EVIL,),
            values=((0.5,),),
            row_axis=EVIL,
            column_axis='"' + EVIL,
            annotations=(EVIL,),
        ),
        DotChart(
            caption=EVIL, x_label=EVIL, categories=(EVIL,), series=(Series(name=EVIL, y=(1.0,)),)
        ),
        UnitCard(record=_record(address=EVIL, domains=((EVIL, 1.0),)), control=True),
    )
    section = Section(title=EVIL, intro=(EVIL,), blocks=blocks)
    page = Page(title=EVIL, lead=EVIL, facts=((EVIL, EVIL),), sections=(section,))
    assert "<script" not in render_page(page)


def test_table():
    table = Table(
        caption="Figures",
        columns=("arm", "bits", "note", "delta"),
        rows=(("pools", "2.719", "best", "−1.3 %"), ("dense", "2.754", "", "–")),
    )
    shown = _show(table)
    assert shown.texts("caption") == ["Figures"]
    assert shown.texts("td") == ["2.719", "best", "−1.3 %", "2.754", "", "–"]
    assert shown.texts("td", "number") == ["2.719", "−1.3 %", "2.754", "–"]
    rows = [text for (tag, a, t) in shown.seen if a.get("scope") == "row" for text in t]
    assert rows == ["pools", "dense"]


@pytest.mark.parametrize(
    ("cell", "numeric"),
    [
        ("1,234", True),
        ("9.2 M", True),
        ("0.4 %", True),
        (".004 ± .0007", True),
        ("+1.3 %", True),
        ("", True),
        ("∞", True),
        ("blocks.1.ffn", False),
        ("3 seeds", False),
    ],
)
def test_numbers_are_set_flush_right(cell: str, numeric: bool):
    shown = _show(Table(caption="", columns=("a", "b"), rows=(("x", cell),)))
    assert (shown.texts("td", "number") == [" ".join(cell.split())]) == numeric


def test_chart_speaks():
    chart = LineChart(
        caption="Loss",
        x_label="x",
        y_label="y",
        series=(Series(name="a", x=(0.0, 1.0), y=(2.0, 1.0)),),
    )
    shown = _show(chart)
    labels = [a["aria-label"] for _, a, _ in shown.seen if a.get("role") == "img"]
    assert labels == ["Loss: a ends at 1.000"]
    assert shown.texts("figcaption") == ["Loss"]
    assert len([1 for tag, _, _ in shown.seen if tag == "svg"]) == 1


def _heat(values: tuple[tuple[float, ...], ...], maximum: float | None = None) -> HeatMap:
    return HeatMap(
        caption="Map",
        rows=tuple(f"row {i}" for i in range(len(values))),
        columns=tuple(str(i) for i in range(len(values[0]))),
        values=values,
        row_axis="domain",
        column_axis="pool",
        annotations=("NMI .2",),
        maximum=maximum,
    )


def test_heat_map_cells():
    shown = _show(_heat(((0.2, 0.4), (0.0, 0.8))))
    assert shown.texts("td") == ["20", "40", "0", "80"]
    cells = [a for tag, a, _ in shown.seen if tag == "td"]
    # Strength is relative to the largest value, .8.
    assert [a["style"] for a in cells] == ["--v:0.250", "--v:0.500", "--v:0.000", "--v:1.000"]
    assert [a.get("class") for a in cells] == [None, None, None, "hot"]
    assert cells[1]["title"] == "row 0, pool 1: 40.0 %"
    assert shown.texts("span", "annotation") == ["NMI .2"]


def test_heat_map_with_a_scale_of_its_own():
    shown = _show(_heat(((0.2, 0.9),), maximum=0.4))
    styles = [a["style"] for tag, a, _ in shown.seen if tag == "td"]
    assert styles == ["--v:0.500", "--v:1.000"]


def test_heat_map_of_zeros():
    shown = _show(_heat(((0.0, 0.0),)))
    assert shown.texts("td") == ["0", "0"]


def test_wide_heat_maps_are_dense():
    for count, name in ((20, "cells"), (64, "cells dense")):
        shown = _show(_heat(((0.1,) * count,)))
        assert [a["class"] for tag, a, _ in shown.seen if tag == "table"] == [name]
        assert shown.texts("td") == ["10"] * count


def test_unit_card():
    shown = _show(UnitCard(record=_record(), control=False))
    [article] = [a for tag, a, _ in shown.seen if tag == "article"]
    assert article["class"] == "unit"
    assert shown.texts("h3") == ["blocks.0.ffn@pool=2,slot=3"]
    # 1,234 of 100,000 is 1.234 %.
    assert shown.texts("p", "figures") == [
        "1,234 firings in 100,000 tokens (1.23 %) selectivity 0.88"
    ]
    assert shown.texts("ul", "bars") == ["chess75 % news25 %"]
    assert shown.texts("code")[1:] == ["·the", "↵", EVIL]
    assert shown.texts("p", "source") == ["chess · 4"]


def test_many_domains_are_summed_up():
    domains = tuple((f"d{i}", share) for i, share in enumerate([0.3, *[0.07] * 10]))
    shown = _show(UnitCard(record=_record(domains=domains), control=False))
    [bars] = shown.texts("ul", "bars")
    # Seven are listed; the other four have .28.
    assert bars.startswith("d030 % d17 %")
    assert bars.endswith("d67 % 4 others28 %")


def test_shading_of_a_context():
    shown = _show(UnitCard(record=_record(), control=False))
    spans = [
        (a["class"], a["style"])
        for tag, a, _ in shown.seen
        if tag == "span" and "--v" in (a.get("style") or "")
    ]
    # Relative to the largest magnitude, 4.
    assert [style for _, style in spans] == ["--v:0.25", "--v:1.00", "--v:0.50"]
    assert [(cls or "").split() for cls, _ in spans] == [[], ["focus"], ["neg"]]


def test_a_control_is_marked_in_words():
    card = _show(UnitCard(record=_record(), control=True))
    [article] = [a for tag, a, _ in card.seen if tag == "article"]
    assert article["class"] == "unit control"
    assert card.texts("strong", "badge") == ["control: drawn at random"]
    assert _show(UnitCard(record=_record(), control=False)).texts("strong") == []


def test_a_unit_with_nothing_to_show():
    record = _record(fires=0, tokens=0, contexts=(), reads=(), writes=())
    shown = _show(UnitCard(record=record, control=False))
    assert shown.texts("p", "none") == [
        "It did not fire in these documents.",
        "not available",
        "not available",
    ]


def test_rows_hold_blocks_in_order():
    shown = _show(Row(blocks=(Note(text="left"), Note(text="right"))))
    assert shown.texts("p", "note") == ["left", "right"]
    assert shown.texts("div", "row") == ["left right"]


def test_rendering_repeats():
    page = _page(_heat(((0.2,),)), UnitCard(record=_record(), control=True))
    assert render_page(page) == render_page(page)


def test_write_replaces_and_leaves_nothing_aside(tmp_path: Path):
    path = tmp_path / "new" / "report.html"
    write_page(_page(Note(text="one")), path)
    write_page(_page(Note(text="two é")), path)
    assert path.read_text(encoding="utf-8") == render_page(_page(Note(text="two é")))
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]


def test_a_page_that_cannot_be_rendered_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "report.html"
    write_page(_page(Note(text="old")), path)
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(MissingExtra, match="writing a report needs the package jinja2"):
        write_page(_page(Note(text="new")), path)
    assert "old" in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("package", ["jinja2", "matplotlib"])
def test_packages_can_be_asked_for_before_there_is_a_page(
    package: str, monkeypatch: pytest.MonkeyPatch
):
    check_packages()
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtra, match=rf"package {package}, .* 'pellucid\[bench\]'"):
        check_packages()
