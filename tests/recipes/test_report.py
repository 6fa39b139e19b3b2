"""The report page: every figure where it belongs, and the doubts beside the claims."""

import math
from dataclasses import replace

import pytest
import torch

from pellucid.core.unit import Context, PoolSpec, Site, UnitRecord
from pellucid.explore.activity import DomainMap, PoolActivity
from pellucid.recipes.report import ArmReport, Curve, language_report
from pellucid.report.page import DotChart, HeatMap, LineChart, Note, Page, Row, Table, UnitCard
from pellucid.report.render import render_page
from pellucid.stats.specialisation import AgainstNull


def _null(value: float, mean: float = 0.1, std: float = 0.01) -> AgainstNull:
    return AgainstNull(value=value, null_mean=mean, null_std=std, normaliser=1.0)


def _pool(name: str = "blocks.0.ffn", given: float = 0.5, grains: int = 3) -> PoolActivity:
    used = torch.linspace(0.1, 0.9, 2 * grains).view(2, grains)
    return PoolActivity(
        spec=PoolSpec(
            name=name,
            reads=Site(module=name, port="in"),
            writes=Site(module=name, port="out"),
            axes=(("pool", grains), ("slot", 4)),
            d_in=2,
            d_out=2,
        ),
        domains=("chess", "news"),
        tokens=torch.tensor([[600, 400], [500, 500]]),
        fires=torch.tensor([[[1, 0]] * (4 * grains), [[0, 0]] * (4 * grains)]),
        parents=torch.tensor([[1] * (4 * grains), [0] * (4 * grains)]),
        l0=12.0,
        effective_l0=7.25,
        map=DomainMap(
            used=used, used_permuted=used.flip(0), nmi=_null(0.3), nmi_given_token=_null(given)
        ),
    )


def _record(unit: int) -> UnitRecord:
    context = Context(tokens=("a",), values=(1.0,), focus=0, document="d", domain="chess")
    return UnitRecord(
        pool="blocks.0.ffn",
        unit=unit,
        address=f"blocks.0.ffn@pool={unit},slot=0",
        fires=10,
        tokens=100,
        selectivity=0.5,
        domains=(("chess", 1.0),),
        reads=(),
        writes=(),
        contexts=(context,),
    )


def _arm(name: str, bpb: float, steps: int = 4, **more: object) -> ArmReport:
    tokens = tuple(256 * (i + 1) for i in range(steps))
    values: dict = {
        "name": name,
        "train_loss": Curve(tokens=tokens, values=tuple(4.0 - i / steps for i in range(steps))),
        "val_bpb": Curve(tokens=(0, tokens[-1]), values=(5.0, bpb)),
        "bpb": bpb,
        "bpb_by_domain": {"news": bpb + 0.5, "chess": bpb - 0.5},
    }
    return ArmReport(**(values | more))


def _find(page: Page, kind: type) -> list:
    found = []
    for section in page.sections:
        for block in section.blocks:
            inner = block.blocks if isinstance(block, Row) else (block,)
            found += [part for part in inner if isinstance(part, kind)]
    return found


def test_lead_compares_with_the_last_arm():
    page = language_report([_arm("pools", 2.7), _arm("dense", 3.0)])
    # 2.7 / 3 − 1 = −10 %.
    assert "dense ends at 3.000 bits per byte" in page.lead
    assert "pools at 2.700 (−10.0 %)" in page.lead
    assert "no spread between seeds" in page.lead


def test_summary_has_every_fact_of_every_arm():
    page = language_report(
        [
            _arm("pools", 2.7, facts={"parameters": "9.2 M", "L0": "12"}),
            _arm("dense", 3.0, facts={"parameters": "1.4 M"}),
        ],
        title="Demo",
        facts=[("Seed", "0")],
    )
    table = _find(page, Table)[0]
    assert table.columns == ("arm", "bits per byte", "against dense", "parameters", "L0")
    assert table.rows == (
        ("pools", "2.700", "−10.0 %", "9.2 M", "12"),
        ("dense", "3.000", "", "1.4 M", ""),
    )
    assert (page.title, page.facts) == ("Demo", (("Seed", "0"),))


def test_one_arm_is_compared_with_nothing():
    table = _find(language_report([_arm("pools", 2.7)]), Table)[0]
    assert table.columns == ("arm", "bits per byte")
    assert table.rows == (("pools", "2.700"),)


def test_curves():
    page = language_report([_arm("pools", 2.7), _arm("dense", 3.0)])
    train, validation = _find(page, LineChart)
    assert [series.name for series in train.series] == ["pools", "dense"]
    assert train.series[0].y == (4.0, 3.75, 3.5, 3.25)
    assert train.y_range is None
    assert validation.series[1].x == (0.0, 1024.0)
    assert validation.series[1].y == (5.0, 3.0)


def test_long_curves_are_averaged_and_cut():
    page = language_report([_arm("pools", 2.7, steps=1000)])
    [train, _] = _find(page, LineChart)
    [series] = train.series
    # 1000 steps in buckets of 5; the first is the mean of 4 − (0 + 1 + 2 + 3 + 4) / 5 / 1000.
    assert len(series.y) == 200
    assert series.y[0] == pytest.approx(3.998)
    assert series.x[0] == pytest.approx(256 * 3)
    # Cut at the value after a tenth, 3.898; the last is 3.003, and 5 % of the span lie below.
    assert train.y_range == pytest.approx((3.003 - 0.05 * 0.895, 3.898))


def test_domains_side_by_side():
    page = language_report([_arm("pools", 2.7), _arm("dense", 3.0)])
    [chart] = _find(page, DotChart)
    assert chart.categories == ("chess", "news")
    assert [series.y for series in chart.series] == [(2.2, 3.2), (2.5, 3.5)]
    table = _find(page, Table)[1]
    # 2.2 / 2.5 − 1 = −12 %; 3.2 / 3.5 − 1 = −8.6 %.
    assert table.rows == (
        ("chess", "2.200", "2.500", "−12.0 %"),
        ("news", "3.200", "3.500", "−8.6 %"),
    )


def test_a_domain_that_one_arm_lacks():
    page = language_report([_arm("pools", 2.7, bpb_by_domain={"chess": 2.0}), _arm("dense", 3.0)])
    assert _find(page, Table)[1].rows[1] == ("news", "nan", "3.500", "–")
    assert math.isnan(_find(page, DotChart)[0].series[0].y[1])


def test_activity_and_information_by_layer():
    arm = _arm("pools", 2.7, activity=(_pool(given=0.5),))
    activity, information = _find(language_report([arm]), Table)[2:]
    assert activity.caption == "Units of pools over 2,000 held-out tokens"
    assert activity.rows == (("blocks.0.ffn", "12", "12.0", "7.2", "100.0 %", "0.0 %"),)
    # (.5 − .1) / .01 = 40 null deviations.
    assert information.rows == (
        (
            "blocks.0.ffn",
            "0.300",
            "0.100 ± 0.0100",
            "0.200",
            "0.500",
            "0.100 ± 0.0100",
            "0.400",
            "40",
        ),
    )


def test_the_verdict_names_the_layers_that_fail():
    good, bad = _pool("blocks.2.ffn", given=0.5), _pool("blocks.3.ffn", given=0.15)
    [note] = _find(language_report([_arm("pools", 2.7, activity=(good, bad))]), Note)
    assert note.text.startswith("In blocks.3.ffn the figure given the token is less than 20")
    assert "blocks.2.ffn" not in note.text
    [note] = _find(language_report([_arm("pools", 2.7, activity=(good,))]), Note)
    assert note.text.startswith("In every layer the domain adds to the token")
    assert "0.40 above it" in note.text


def test_maps_stand_beside_their_null_on_one_scale():
    page = language_report([_arm("pools", 2.7, activity=(_pool(),))])
    real, null = _find(page, HeatMap)
    # used is [.1 .26 .42; .58 .74 .9]: every pool is used most by news, the last one most of all.
    assert real.columns == ("2", "1", "0")
    assert real.rows == ("chess", "news")
    assert real.values[1] == pytest.approx((0.9, 0.74, 0.58))
    assert "NMI 0.300 (null 0.100 ± 0.0100)" in real.annotations[0]
    assert null.values[0] == pytest.approx((0.9, 0.74, 0.58))
    assert real.maximum == null.maximum == pytest.approx(0.9)
    assert "permuted" in null.caption


def test_columns_are_sorted_by_the_domain_that_uses_them():
    pool = _pool()
    assert pool.map is not None
    used = torch.tensor([[0.1, 0.8, 0.6], [0.5, 0.2, 0.1]])
    found = DomainMap(
        used=used, used_permuted=used, nmi=pool.map.nmi, nmi_given_token=pool.map.nmi_given_token
    )
    sorted_pool = PoolActivity(
        spec=pool.spec,
        domains=pool.domains,
        tokens=pool.tokens,
        fires=pool.fires,
        parents=pool.parents,
        l0=1.0,
        effective_l0=1.0,
        map=found,
    )
    real, _ = _find(language_report([_arm("pools", 2.7, activity=(sorted_pool,))]), HeatMap)
    # Pools 1 and 2 belong to chess, .8 before .6; pool 0 to news.
    assert real.columns == ("1", "2", "0")


def test_wide_maps_show_the_most_used():
    page = language_report([_arm("pools", 2.7, activity=(_pool(grains=100),))])
    real, _ = _find(page, HeatMap)
    assert len(real.columns) == 64
    assert "36" in real.columns
    assert "35" not in real.columns
    assert real.annotations[0].startswith("The 64 most used of 100.")


def test_controls_stand_among_the_selective_units_and_are_marked():
    arm = _arm(
        "pools",
        2.7,
        selective=tuple(map(_record, range(12))),
        controls=tuple(map(_record, (20, 21))),
    )
    page = language_report([arm])
    cards = _find(page, UnitCard)
    assert [card.record.unit for card in cards if not card.control] == list(range(12))
    assert [i for i, card in enumerate(cards) if card.control] == [1, 8]
    assert page.sections[-1].title == "12 selective units and 2 controls: pools"
    assert "explains nothing" in page.sections[-1].intro[0]


def test_units_without_a_second_half_are_explained():
    seen = _record(0)
    for tokens, explained in ((seen.tokens, False), (0, True)):
        arm = _arm("pools", 2.7, selective=(replace(seen, tokens=tokens),))
        notes = [note.text for note in _find(language_report([arm]), Note)]
        assert [
            text.startswith("Each domain's held-out text is of one file") for text in notes
        ] == ([True] if explained else [])


def test_an_arm_without_units_or_pools_gets_no_empty_sections():
    page = language_report([_arm("dense", 3.0)])
    assert [section.title for section in page.sections] == ["Summary", "Learning", "Domains"]


def test_the_page_renders():
    arm = _arm("pools", 2.7, activity=(_pool(),), selective=(_record(0),), controls=(_record(1),))
    html = render_page(language_report([arm, _arm("dense", 3.0)]))
    assert html.count("<svg") == 3
    assert html.count("control: drawn at random") == 1
