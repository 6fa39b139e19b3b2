"""Tables for stdout."""

from pellucid.cli.table import table


def test_columns_line_up_and_nothing_trails():
    text = table(["name", "fvu"], [["topk", 0.25], ["a-long-name", None], ["b", 123456.0]])
    assert text.splitlines() == [
        "name         fvu",
        "topk         0.25",
        "a-long-name  –",
        "b            1.235e+05",
    ]


def test_no_rows():
    assert table(["a", "b"], []) == "a  b"
