"""``pellucid sizes``: the table, the JSON behind it, and how numbers are shortened."""

import json

import pytest

from pellucid.cli.sizes import _si
from pellucid.models.cost import model_cost
from pellucid.models.presets import ARCHITECTURES, PRESETS, preset


def test_every_preset_and_architecture_has_a_row(cli):
    answer = cli("sizes")
    assert answer.code == 0
    assert answer.err == ""
    rows = [line.split()[:2] for line in answer.out.splitlines()[1:]]
    assert rows == [[size, architecture] for size in PRESETS for architecture in ARCHITECTURES]
    # One line a row, however narrow the terminal: nothing is folded.
    assert len(answer.out.splitlines()) == 1 + len(rows)


def test_a_row_of_the_table(cli):
    line = next(
        line for line in cli("sizes").out.splitlines() if line.split()[:2] == ["tiny", "pools"]
    )
    # 9,242,752 parameters, 1,355,904 active; 3,223,552 and 7,598,080 FLOPs; 4 and 8 bytes each.
    assert line.split()[2:] == (
        "128 9.24 M 1.36 M 3.22 M 7.6 M 37 MB 73.9 MB".split()  # noqa: SIM905
    )


def test_numbers_for_machines_are_whole(cli):
    rows = json.loads(cli("sizes", "--json").out)
    assert len(rows) == len(PRESETS) * len(ARCHITECTURES)
    for row in rows:
        config = preset(row["architecture"], row["preset"])
        cost = model_cost(config)
        assert row == {
            "preset": row["preset"],
            "architecture": row["architecture"],
            "free_size": config.slot(0).free_size,
            "params_total": cost.total,
            "params_active": cost.active,
            "forward_flops_per_token": cost.forward,
            "train_flops_per_token": cost.training,
            "weights_bytes": 4 * cost.total,
            "optimizer_bytes": 8 * cost.total,
        }


def test_one_preset(cli):
    rows = json.loads(cli("sizes", "--preset", "base", "--json").out)
    assert [row["preset"] for row in rows] == ["base"] * len(ARCHITECTURES)
    assert len(cli("sizes", "--preset", "base").out.splitlines()) == 1 + len(ARCHITECTURES)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--preset", "tyni"), "--preset 'tyni': did you mean 'tiny'?"),
        (("--preset", "xxl"), "--preset 'xxl': expected one of: 1b, 8b, base, demo, large, small"),
        (("tiny",), "sizes: unknown argument tiny; see pellucid sizes --help"),
    ],
)
def test_what_is_refused(cli, args: tuple[str, ...], message: str):
    assert cli("sizes", *args).only_error.startswith(message)


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"),
        (999, "999"),
        (1000, "1 k"),
        (1234, "1.23 k"),
        (999_499, "999 k"),
        # Rounded to three digits these reach the next unit.
        (999_500, "1 M"),
        (999_999_999, "1 G"),
        (92_515_345_536, "92.5 G"),
        (5_000_000_000_000, "5 T"),
    ],
)
def test_three_digits_and_a_unit(number: int, text: str):
    assert _si(number) == text
