"""Who is shown: the ranking, its rounds, and the draw of the controls."""

import torch

from pellucid.core.unit import PoolSpec, Site
from pellucid.explore.activity import PoolActivity
from pellucid.explore.choose import ChosenUnit, choose_units


def _activity(
    fires: list[list[int]],
    slots: int = 1,
    tokens: tuple[int, ...] = (1000, 1000),
    shown: list[list[int]] | None = None,
    parents: list[int] | None = None,
) -> PoolActivity:
    count = torch.tensor(fires)
    spread = torch.tensor([9] * len(fires) if parents is None else parents)
    axes = (("pool", len(fires) // slots), ("slot", slots))
    return PoolActivity(
        spec=PoolSpec(
            name="blocks.0.ffn",
            reads=Site(module="blocks.0.ffn", port="in"),
            writes=Site(module="blocks.0.ffn", port="out"),
            axes=axes,
            d_in=1,
            d_out=1,
        ),
        domains=tuple(f"d{i}" for i in range(len(tokens))),
        tokens=torch.tensor([tokens, tokens]),
        fires=torch.stack(
            [count, torch.zeros_like(count) if shown is None else torch.tensor(shown)]
        ),
        parents=torch.stack([spread, torch.zeros_like(spread)]),
        l0=1.0,
        effective_l0=1.0,
        map=None,
    )


def _units(chosen: tuple[ChosenUnit, ...], *, control: bool) -> list[tuple[int, int]]:
    return [(c.position, c.unit) for c in chosen if c.control == control]


def test_most_selective_first_and_only_those_that_fire_enough():
    # Unit 2 is perfectly selective but fires 29 times; then 0 (99 to 1), 3 (9 to 1), 1 (even).
    activity = _activity([[990, 10], [500, 500], [29, 0], [90, 10]])
    chosen = choose_units([activity], selective=3, controls=0)
    assert _units(chosen, control=False) == [(0, 0), (0, 3), (0, 1)]


def test_what_fires_in_one_file_only_is_not_shown_while_there_is_more():
    # Unit 0 is the most selective, and the same burst made it so.
    activity = _activity([[990, 0], [90, 10], [60, 40]], parents=[3, 4, 4])
    chosen = choose_units([activity], selective=1, controls=1)
    assert _units(chosen, control=False) == [(0, 1)]
    assert _units(chosen, control=True) == [(0, 2)]
    # A page that would be short takes it after all.
    chosen = choose_units([activity], selective=2, controls=1)
    assert _units(chosen, control=False) == [(0, 0), (0, 1)]


def test_the_other_half_has_no_say():
    # On the half that is shown the order would be the opposite.
    activity = _activity([[90, 10], [60, 40]], shown=[[50, 50], [100, 0]])
    chosen = choose_units([activity], selective=1, controls=0)
    assert _units(chosen, control=False) == [(0, 0)]


def test_equal_tokens_decide_not_counts():
    # Domain 1 has a tenth of the tokens: rates of unit 0 are equal, those of unit 1 are 1 to 9.
    activity = _activity([[100, 10], [50, 45]], tokens=(1000, 100))
    chosen = choose_units([activity], selective=1, controls=0)
    assert _units(chosen, control=False) == [(0, 1)]


def test_one_pool_and_one_domain_do_not_fill_the_page():
    # Pool 0 (units 0, 1, 2) holds the three best, all for domain 0.
    fires = [[100, 0, 0], [99, 1, 0], [98, 2, 0], [90, 10, 0], [10, 85, 5], [10, 10, 80]]
    activity = _activity(fires, slots=3, tokens=(1000, 1000, 1000))
    chosen = choose_units([activity], selective=2, controls=0)
    # Unit 0 first; 1 and 2 share its pool, 3 its domain; 4 is the next that shares neither.
    assert _units(chosen, control=False) == [(0, 0), (0, 4)]
    # With room for all, later rounds let them in, and the order is that of selectivity.
    everyone = choose_units([activity], selective=6, controls=0)
    assert _units(everyone, control=False) == [(0, u) for u in range(6)]


def test_sites_share_the_page():
    best = _activity([[100, 0], [0, 100], [100, 1], [1, 100]])
    worse = _activity([[70, 30], [30, 70], [60, 40], [40, 60]])
    chosen = choose_units([best, worse], selective=4, controls=0)
    assert sorted(position for position, _ in _units(chosen, control=False)) == [0, 0, 1, 1]
    # A site that has nothing to give leaves its place to the other.
    silent = _activity([[1, 1]] * 4)
    chosen = choose_units([best, silent], selective=4, controls=0)
    assert [position for position, _ in _units(chosen, control=False)] == [0] * 4


def test_controls_are_eligible_new_and_follow_the_seed():
    activity = _activity([[100, i] for i in range(50)] + [[1, 1]] * 50)
    draws = [choose_units([activity], selective=4, controls=10, seed=seed) for seed in (0, 0, 1)]
    assert draws[0] == draws[1]
    assert _units(draws[0], control=True) != _units(draws[2], control=True)
    for chosen in draws:
        controls = _units(chosen, control=True)
        assert len(set(controls)) == 10
        assert all(unit < 50 for _, unit in controls)
        assert not set(controls) & set(_units(chosen, control=False))


def test_controls_ignore_selectivity():
    # A third of the units is selective; so is about a third of many controls (binomial, 4 sd).
    activity = _activity([[100, 0], [50, 50], [50, 50]] * 400)
    drawn = _units(choose_units([activity], selective=0, controls=300), control=True)
    selective = sum(unit % 3 == 0 for _, unit in drawn)
    assert abs(selective - 100) < 4 * (300 * 2 / 9) ** 0.5


def test_few_eligible_units_make_a_short_page():
    activity = _activity([[100, 0], [0, 3], [2, 2]])
    chosen = choose_units([activity], selective=12, controls=2)
    assert chosen == (ChosenUnit(position=0, unit=0, control=False),)
    assert choose_units([], selective=12, controls=2) == ()
