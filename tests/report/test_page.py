"""The records of a page are frozen, and every kind of block has a rendering."""

import dataclasses
import typing

import pytest

from pellucid.report.page import Block, HeatMap, LineChart, Note, Page, Row, Table


def test_records_are_frozen_and_named():
    note = Note(text="a")
    with pytest.raises(dataclasses.FrozenInstanceError):
        note.text = "b"  # type: ignore[misc]
    with pytest.raises(TypeError):
        Note("a")  # type: ignore[misc]


def test_equal_records_are_equal():
    # A page is data: what two runs report can be compared before it is rendered.
    page = Page(title="t", lead="l", facts=(("a", "b"),), sections=())
    assert page == dataclasses.replace(page)
    assert page != dataclasses.replace(page, lead="other")
    assert hash(page) == hash(dataclasses.replace(page))


def test_blocks_nest_in_rows_only():
    kinds = {kind.__name__ for kind in typing.get_args(Block)}
    assert kinds == {"Table", "LineChart", "DotChart", "HeatMap", "UnitCard", "Note", "Row"}
    row = Row(blocks=(Note(text="a"), Row(blocks=(Note(text="b"),))))
    assert isinstance(row.blocks[1], Row)


def test_defaults_leave_axes_to_the_data():
    line = LineChart(caption="", x_label="", y_label="", series=())
    heat = HeatMap(caption="", rows=(), columns=(), values=(), row_axis="", column_axis="")
    assert line.y_range is None
    assert heat.maximum is None
    assert Table(caption="", columns=(), rows=()).rows == ()
