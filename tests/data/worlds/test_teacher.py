"""y is the layer's formula; experts co-occur by group and topic; L0 is solved; refusals."""

from dataclasses import replace

import pytest
import torch

from pellucid.core.config import from_dict, to_dict
from pellucid.core.errors import ConfigError
from pellucid.data.worlds.teacher import Teacher, TeacherConfig
from pellucid.data.worlds.world import WorldRows
from pellucid.stats.recovery import DetectorCounts, match_directions

PLAIN = TeacherConfig()


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    return PLAIN.build()


def _fires(world: Teacher, rows: WorldRows) -> torch.Tensor:
    """A dense [rows, experts] table of firings."""
    table = torch.zeros(rows.x.shape[0], world.num_features)
    return table.scatter_add_(1, rows.truth.unit, (rows.truth.value != 0).float())


@pytest.mark.parametrize("config", [PLAIN, TeacherConfig.tiny()])
def test_y_is_the_formula(config: TeacherConfig):
    """Every expert and group evaluated densely in float64, one row at a time."""
    world = config.build()
    rows = world.sample(40, seed=0, step=0)
    assert world.reads.shape == (config.features, config.d)
    size = config.features // config.groups
    for x, y in zip(rows.x.double(), rows.y):
        score = world.centres.double() @ x
        group_open = torch.zeros(config.groups, dtype=torch.float64)
        group_open[score.topk(config.open_groups).indices] = 1.0
        gate = group_open.repeat_interleave(size)
        act = (world.reads.double() @ x + world.bias).clamp_min(0.0)
        # Float32 sums of products of order 1.
        assert (y - (gate * act) @ world.directions.double()).abs().max() < 1e-4


def test_the_truth_lists_the_experts_of_the_open_groups(teacher: Teacher):
    rows = teacher.sample(50, seed=0, step=0)
    assert rows.truth.unit.shape == (50, 16)
    assert (rows.truth.unit.div(8, rounding_mode="floor").sort(1).values.diff(dim=1) != 0).sum(
        1
    ).tolist() == [1] * 50
    assert all(row.unique().shape[0] == 16 for row in rows.truth.unit)
    assert torch.equal(teacher.truth(rows.x).value, rows.truth.value)
    assert bool((rows.truth.gate == 1).all())


def test_reads_writes_and_centres_are_unit_and_unrelated(teacher: Teacher):
    for table in (teacher.reads, teacher.directions, teacher.centres):
        # Float32 rounding of unit rows.
        assert table.norm(dim=1).sub(1).abs().max() < 1e-6
    cosine = (teacher.reads * teacher.directions).sum(1)
    # Cosines of independent rows have deviation 1/8; their mean over 256 experts .0078.
    assert cosine.mean().abs() < 4 * 0.0078
    assert cosine.abs().max() < 0.7


def test_rows_are_a_function_of_seed_and_step(teacher: Teacher):
    first = teacher.sample(30, seed=3, step=7)
    again = PLAIN.build().sample(30, seed=3, step=7)
    assert torch.equal(first.x, again.x)
    assert torch.equal(first.y, again.y)
    assert not torch.equal(first.x, teacher.sample(30, seed=3, step=8).x)
    assert not torch.equal(first.x, teacher.sample(30, seed=4, step=7).x)
    other = replace(PLAIN, seed=1).build()
    assert not torch.equal(teacher.reads, other.reads)


@pytest.mark.parametrize("l0", [2.0, 8.0, 14.0])
def test_l0_is_solved(l0: float):
    world = replace(PLAIN, l0=l0).build()
    count = (world.sample(20_000, seed=1, step=0).truth.value != 0).sum(1).double()
    # The bias is solved on 16,384 rows and tried on 20,000: four standard errors of both.
    error = count.std().item() * (1 / 16_384 + 1 / 20_000) ** 0.5
    assert count.mean().item() == pytest.approx(l0, abs=4 * error)


def test_an_l0_of_almost_all_candidates():
    # 15.999999 of 16 rounds to every one of them; the least act then still stands above −bias.
    world = replace(PLAIN, l0=15.999999).build()
    count = (world.sample(500, seed=0, step=0).truth.value != 0).sum(1).double()
    assert count.mean() > 15.9


def test_experts_of_a_group_fire_together(teacher: Teacher):
    fires = _fires(teacher, teacher.sample(20_000, seed=0, step=0)).double()
    together = fires.t() @ fires / 20_000
    rate = fires.mean(0)
    lift = together / (rate[:, None] * rate[None])
    group = torch.arange(256) // 8
    topic = group % 8
    same_group = (group[:, None] == group) & ~torch.eye(256, dtype=torch.bool)
    same_topic = (topic[:, None] == topic) & (group[:, None] != group)
    apart = topic[:, None] != topic
    # A group is open 1 time in 16 and its experts fire half of that: P(both | open)/P²… ≈ 16.
    assert lift[same_group].mean() > 8
    # Four groups of a topic are preferred e² times: they meet several times as often.
    assert lift[same_topic].mean() > 2.5 * lift[apart].mean()


def test_coherence_is_what_makes_topics():
    """The counterpart: without it, groups of one topic meet as often as others."""
    world = replace(PLAIN, coherence=0.0).build()
    fires = _fires(world, world.sample(20_000, seed=0, step=0)).double()
    together = fires.t() @ fires
    rate = fires.sum(0)
    lift = together / (rate[:, None] * rate[None]) * 20_000
    group = torch.arange(256) // 8
    same_topic = (group[:, None] % 8 == group % 8) & (group[:, None] != group)
    apart = group[:, None] % 8 != group % 8
    # 6,144 pairs of about 20 meetings each.
    assert (lift[same_topic].mean() / lift[apart].mean()).item() == pytest.approx(1.0, abs=0.1)


def test_early_groups_are_common(teacher: Teacher):
    rate = _fires(teacher, teacher.sample(20_000, seed=0, step=0)).mean(0).view(32, 8).mean(1)
    # Zipf weights fall from 1 to 32^-½ = .18.
    assert rate[:4].mean() > 2 * rate[-4:].mean()
    assert rate.min() > 0


def test_drawn_groups_are_mostly_those_opened(teacher: Teacher):
    """Strength makes the router's choice readable from x; without it, x does not show the draw."""
    from pellucid.data.worlds.world import row_generator

    def share(world: Teacher) -> float:
        x = world.sample(2000, seed=0, step=0).x
        opened = (x @ world.centres.t()).topk(2).indices
        # The same stream's first numbers are those that sample drew its groups with.
        drawn = torch.from_numpy(world._preferences(2000, row_generator(0, 0))).topk(2).indices
        return (opened[:, :, None] == drawn[:, None]).any(2).double().mean().item()

    assert share(teacher) > 0.9
    # By chance 2 of 32, Zipf aside.
    assert share(replace(PLAIN, strength=0.0).build()) < 0.3


def test_the_teacher_recovers_itself(teacher: Teacher):
    order = torch.randperm(256)
    found = match_directions(
        teacher.directions,
        teacher.directions[order],
        true_read=teacher.reads,
        learned_read=teacher.reads[order],
    )
    # Products of float64 cosines of float32 rows.
    assert found.mcc == pytest.approx(1.0, abs=1e-12)
    assert found.uniqueness == 1.0
    counts = DetectorCounts(torch.arange(256))
    truth = teacher.sample(500, seed=0, step=0).truth
    counts.update(truth, truth)
    assert counts.mean_f1 == 1.0


def test_noise_moves_x_and_y_follows():
    quiet, loud = TeacherConfig.tiny(), replace(TeacherConfig.tiny(), noise=2.0)
    calm, moved = (c.build().sample(30, seed=0, step=0) for c in (quiet, loud))
    assert not torch.allclose(calm.x, moved.x)
    assert (moved.x - calm.x).square().sum(1).mean() > 1.0


@pytest.mark.parametrize("config", [PLAIN, TeacherConfig.tiny()])
def test_configs_survive_json(config: TeacherConfig):
    assert from_dict(TeacherConfig, to_dict(config)) == config


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("d", 0, "d: expected at least 1, found 0"),
        ("features", 0, "features: expected at least 1"),
        ("groups", 0, "groups: expected at least 1"),
        ("open_groups", 33, "open_groups: expected at most groups = 32, found 33"),
        ("topics", 33, "topics: expected at most groups = 32"),
        ("features", 250, "features: expected a multiple of groups = 32, found 250"),
        ("coherence", -1.0, "coherence: expected 0 or more"),
        ("strength", -1.0, "strength: expected 0 or more"),
        ("noise", -1.0, "noise: expected 0 or more"),
        ("seed", -1, "seed: expected 0 or more"),
        ("drive", 0.0, r"drive: expected a rate in \(0, 1\]"),
        ("l0", 16.0, "l0: expected between 0 and .* = 16, found 16.0; change l0 or open_groups"),
        ("l0", 0.0, "l0: expected between 0"),
        ("spread", 1.0, "spread: expected"),
    ],
)
def test_what_cannot_be_built_is_refused(field: str, value: float, message: str):
    with pytest.raises(ConfigError, match=message):
        from_dict(TeacherConfig, {field: value})
