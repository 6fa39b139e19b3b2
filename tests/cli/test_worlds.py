"""``pellucid worlds``: one table over worlds and dictionaries."""

import json
from pathlib import Path

import pytest

SMALL = ("--tokens", "512", "--batch", "128")


def test_one_table_over_all_dictionaries(cli, tmp_path: Path):
    out = tmp_path / "worlds.json"
    answer = cli(
        *("worlds", "--world", "flat", "--dictionary", "topk", "--dictionary", "jumprelu"),
        *("--out", out, *SMALL),
    )
    assert answer.code == 0, answer.err
    head, *rows = answer.out.splitlines()
    assert head.split()[:2] == ["world", "dictionary"]
    assert [row.split()[:2] for row in rows] == [["flat", "topk"], ["flat", "jumprelu"]]
    records = json.loads(out.read_text())
    assert [record["dictionary"] for record in records] == ["topk", "jumprelu"]
    assert all(0 <= record["mcc"] <= 1 for record in records)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--world", "flatt", "--dictionary", "topk"], "did you mean 'flat'?"),
        (["--world", "flat", "--dictionary", "topkk"], "did you mean 'topk'?"),
        (["--world", "flat"], "expected --world and --dictionary"),
        (["--dictionary", "topk"], "expected --world and --dictionary"),
        (["--world", "teacher", "--dictionary", "topk", "--dictionary", "pursuit"], "a pursuit"),
    ],
)
def test_what_is_refused_is_one_line(cli, more, said):
    assert said in cli("worlds", *more, *SMALL).error
