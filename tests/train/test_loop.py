"""The loop on a model small enough to follow: what is summed, clipped, counted and refused."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor, nn

from pellucid.core.errors import TrainingError
from pellucid.train.loop import Callback, Loop, Progress
from pellucid.train.objective import ParamGroup
from pellucid.train.optim import OptimConfig, build_optimizer
from pellucid.train.schedule import ScheduleConfig


@dataclass(frozen=True)
class Regression:
    """Mean squared error of a line, and a weighted penalty: two parts, one group each."""

    line: nn.Linear
    penalty: float = 0.5
    calls: list[str] = field(default_factory=list)
    final: list[float] = field(default_factory=list)

    def losses(self, batch: tuple[Tensor, Tensor]) -> Mapping[str, Tensor]:
        x, y = batch
        return {
            "error": (self.line(x) - y).square().mean(),
            "penalty": self.penalty * self.line.weight.square().sum(),
        }

    def before_step(self, step: int) -> None:
        assert self.line.weight.grad is not None
        self.calls.append(f"before {step}")
        self.final.append(self.line.weight.grad.norm().item())

    def after_step(self, step: int) -> None:
        assert self.line.weight.grad is None
        self.calls.append(f"after {step}")

    def param_groups(self) -> Sequence[ParamGroup]:
        return [
            ParamGroup(name="slopes", params=[self.line.weight], lr_scale=1.0, weight_decay=0.0),
            ParamGroup(name="offsets", params=[self.line.bias], lr_scale=1.0, weight_decay=0.0),
        ]


@dataclass
class Recorder(Callback):
    """Keeps every progress it is shown."""

    seen: list[Progress] = field(default_factory=list)

    def after_step(self, progress: Progress) -> None:
        self.seen.append(progress)


def line(slope: float = 0.0, offset: float = 0.0, width: int = 1) -> nn.Linear:
    found = nn.Linear(width, 1, dtype=torch.float64)
    with torch.no_grad():
        found.weight.fill_(slope)
        found.bias.fill_(offset)
    return found


def make(objective: Regression, batches, *, steps: int = 1, clip: float = 1e9, lr: float = 0.1):
    optim = OptimConfig(lr=lr, clip=clip, weight_decay=0.0)
    return Loop(
        objective=objective,
        optimizer=build_optimizer(objective.param_groups(), optim),
        batches=batches,
        name_batch=lambda batch: f"documents of {len(batch[0])} rows",
        tokens_per_step=10,
        steps=steps,
        optim=optim,
        schedule=ScheduleConfig(),
    )


def batch(*pairs: tuple[float, float]) -> tuple[Tensor, Tensor]:
    table = torch.tensor(pairs, dtype=torch.float64)
    return table[:, :1], table[:, 1:]


def test_one_step_by_hand():
    # w = 1, b = 0 on (2, 5), (1, 0): errors −3 and 1, so the mean square is (9 + 1) / 2 = 5 and
    # the penalty .5 · 1. Gradients: w: (2·(−3)·2 + 2·1·1) / 2 + 2·.5·1 = −5 + 1 = −4,
    # b: (2·(−3) + 2·1) / 2 = −2; their norm is √20. Adam's first step moves each weight by lr = .1
    # against its gradient's sign.
    objective, record = Regression(line(1.0)), Recorder()
    make(objective, lambda _: [batch((2, 5), (1, 0))]).run(0, [record])
    metrics = record.seen[0].metrics
    assert metrics.pop("time/tokens_per_second") > 0
    assert metrics == pytest.approx(
        {
            "train/loss": 5.5,
            "train/error": 5.0,
            "train/penalty": 0.5,
            "lr": 0.1,
            "grad_norm": math.sqrt(20),
        },
        rel=1e-12,
    )
    # Adam's eps = 1e-8 beside gradients of 4 and 2.
    assert objective.line.weight.item() == pytest.approx(1.1, abs=1e-8)
    assert objective.line.bias.item() == pytest.approx(0.1, abs=1e-8)


def test_the_logged_parts_sum_to_the_loss_that_is_trained():
    # The gradient that reaches the optimiser is that of the logged sum, computed independently.
    torch.manual_seed(3)
    data = [(torch.randn(5, 3, dtype=torch.float64), torch.randn(5, 1, dtype=torch.float64))] * 2
    objective, record = Regression(line(0.3, 0.1, width=3)), Recorder()
    before = objective.line.weight.detach().clone(), objective.line.bias.detach().clone()
    grads: list[Tensor] = []
    loop = make(objective, lambda _: data)
    loop.optimizer.register_step_pre_hook(
        lambda *_: grads.extend(p.grad.clone() for p in objective.line.parameters())
    )
    loop.run(0, [record])
    metrics = record.seen[0].metrics
    parts = [metrics["train/error"], metrics["train/penalty"]]
    assert metrics["train/loss"] == pytest.approx(sum(parts), rel=1e-12)
    weight, bias = (tensor.requires_grad_() for tensor in before)
    loss = sum((x @ weight.T + bias - y).square().mean() for x, y in data) / 2
    loss = loss + 0.5 * weight.square().sum()
    assert loss.item() == pytest.approx(metrics["train/loss"], rel=1e-12)
    for mine, expected in zip(grads, torch.autograd.grad(loss, (weight, bias))):
        torch.testing.assert_close(mine, expected, rtol=1e-12, atol=1e-12)


def test_four_micro_batches_are_one_large_batch():
    torch.manual_seed(1)
    x = torch.randn(6, 8, 3, dtype=torch.float64)
    y = torch.randn(6, 8, 1, dtype=torch.float64)
    whole, parts = Regression(line(width=3)), Regression(line(width=3))
    records = Recorder(), Recorder()
    make(whole, lambda s: [(x[s], y[s])], steps=6).run(0, [records[0]])
    make(parts, lambda s: list(zip(x[s].split(2), y[s].split(2))), steps=6).run(0, [records[1]])
    # Sums in another order, in float64, over six steps.
    torch.testing.assert_close(whole.line.weight, parts.line.weight, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(whole.line.bias, parts.line.bias, rtol=1e-9, atol=1e-12)
    for one, four in zip(records[0].seen, records[1].seen):
        assert one.metrics["train/loss"] == pytest.approx(four.metrics["train/loss"], rel=1e-9)
        assert one.metrics["grad_norm"] == pytest.approx(four.metrics["grad_norm"], rel=1e-9)


def test_gradients_are_clipped_to_the_norm_and_the_true_norm_is_logged():
    # Gradients −4 and −2 as in the first test, norm √20 = 4.472; clipped to 1: −.894 and −.447.
    objective, record = Regression(line(1.0)), Recorder()
    loop = make(objective, lambda _: [batch((2, 5), (1, 0))], clip=1.0)
    seen: list[float] = []
    loop.optimizer.register_step_pre_hook(
        lambda *_: seen.extend(p.grad.item() for p in objective.line.parameters())
    )
    loop.run(0, [record])
    # torch adds 1e-6 to the norm it divides by.
    assert seen == pytest.approx([-4 / math.sqrt(20), -2 / math.sqrt(20)], rel=1e-6)
    assert record.seen[0].metrics["grad_norm"] == pytest.approx(math.sqrt(20), rel=1e-12)
    # An objective that projects its gradients does so behind the clip, or the step would not obey.
    assert objective.final == pytest.approx([4 / math.sqrt(20)], rel=1e-6)


def test_a_small_gradient_is_not_clipped_up():
    objective = Regression(line(1.0))
    loop = make(objective, lambda _: [batch((2, 5), (1, 0))], clip=5.0)
    seen: list[float] = []
    loop.optimizer.register_step_pre_hook(lambda *_: seen.append(objective.line.weight.grad.item()))
    loop.run(0, [])
    assert seen == [-4.0]


def test_steps_are_counted_and_the_schedule_is_followed():
    objective, record = Regression(line()), Recorder()
    asked: list[int] = []

    def batches(step: int):
        asked.append(step)
        return [batch((1, 1))]

    progress = make(objective, batches, steps=4).run(0, [record])
    assert asked == [0, 1, 2, 3]
    assert objective.calls == [f"{when} {s}" for s in range(4) for when in ("before", "after")]
    assert [(p.step, p.steps, p.tokens) for p in record.seen] == [
        (1, 4, 10),
        (2, 4, 20),
        (3, 4, 30),
        (4, 4, 40),
    ]
    assert [p.last for p in record.seen] == [False, False, False, True]
    assert (progress.step, progress.stopping) == (4, False)
    # One step of warm-up, then t = 0, 1/3, 2/3 of the cosine: 1, .1 + .9 · .75, .1 + .9 · .25.
    rates = [p.metrics["lr"] for p in record.seen]
    assert rates == pytest.approx([0.1, 0.1, 0.0775, 0.0325], rel=1e-12)


def test_a_run_may_start_in_the_middle():
    record = Recorder()
    make(Regression(line()), lambda _: [batch((1, 1))], steps=5).run(3, [record])
    assert [(p.step, p.tokens) for p in record.seen] == [(4, 40), (5, 50)]


def test_nothing_is_left_of_a_finished_run():
    record = Recorder()
    progress = make(Regression(line()), lambda _: [], steps=5).run(5, [record])
    assert record.seen == []
    assert (progress.step, progress.tokens, progress.last) == (5, 50, True)


def test_a_run_past_a_shortened_plan_does_not_go_on():
    record = Recorder()
    progress = make(Regression(line()), lambda _: [], steps=5).run(7, [record])
    assert record.seen == []
    assert (progress.step, progress.last) == (7, True)


def test_stopping_ends_after_the_step_and_its_callbacks():
    record = Recorder()
    loop = make(Regression(line()), lambda _: [batch((1, 1))], steps=9)
    progress = loop.run(0, [record], stop=lambda: len(record.seen) == 2)
    assert [p.step for p in record.seen] == [1, 2, 3]
    assert [p.last for p in record.seen] == [False, False, True]
    assert (progress.step, progress.stopping) == (3, True)


def test_callbacks_share_the_metrics_in_order():
    class Adds(Callback):
        def after_step(self, progress: Progress) -> None:
            progress.metrics["val/x"] = 1.0

    class Asks(Callback):
        def after_step(self, progress: Progress) -> None:
            assert progress.metrics["val/x"] == 1.0

    make(Regression(line()), lambda _: [batch((1, 1))]).run(0, [Adds(), Asks()])


def test_bf16_autocast_reaches_the_loss():
    # 1 + 2⁻⁹ is 1 in bfloat16: a product with it tells the two precisions apart.
    found: dict[str, float] = {}
    for precision in ("fp32", "bf16"):
        module = nn.Linear(1, 1)
        with torch.no_grad():
            module.weight.fill_(1 + 2**-9)
            module.bias.zero_()
        objective, record = Regression(module, penalty=0.0), Recorder()
        optim = OptimConfig()
        Loop(
            objective=objective,
            optimizer=build_optimizer(objective.param_groups(), optim),
            batches=lambda _: [(torch.ones(1, 1), torch.zeros(1, 1))],
            name_batch=str,
            tokens_per_step=1,
            steps=1,
            optim=optim,
            schedule=ScheduleConfig(),
            precision=precision,
        ).run(0, [record])
        found[precision] = record.seen[0].metrics["train/error"]
        assert module.weight.dtype == torch.float32
    assert found == {"fp32": (1 + 2**-9) ** 2, "bf16": 1.0}


def test_a_loss_that_is_not_finite_names_step_part_and_documents():
    batches = {0: [batch((1, 1))], 1: [batch((1, 1), (1, 2)), batch((1, math.inf))]}
    objective = Regression(line())
    loop = make(objective, lambda step: batches[step], steps=3)
    with pytest.raises(TrainingError) as caught:
        loop.run(0, [])
    assert str(caught.value) == (
        "step 2: loss part 'error' is inf; the batch held documents of 1 rows; lower optim.lr or "
        "look at these documents"
    )
    # The optimiser has not moved on.
    assert objective.calls == ["before 0", "after 0"]


def test_a_nan_part_is_named_though_the_others_are_sound():
    objective = Regression(line(), penalty=math.nan)
    loop = make(objective, lambda _: [batch((1, 1))])
    with pytest.raises(TrainingError, match=r"^step 1: loss part 'penalty' is nan; "):
        loop.run(0, [])


def test_a_gradient_that_is_not_finite_names_its_group_and_documents():
    class Spike(torch.autograd.Function):
        @staticmethod
        def forward(_, x):
            return x.clone()

        @staticmethod
        def backward(_, grad):
            return grad * math.nan

    class Broken(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return nn.functional.linear(input, self.weight, Spike.apply(self.bias))

    objective = Regression(Broken(1, 1, dtype=torch.float64))
    before = [p.detach().clone() for p in objective.line.parameters()]
    with pytest.raises(TrainingError) as caught:
        make(objective, lambda _: [batch((1, 1)), batch((2, 2), (3, 3))]).run(0, [])
    assert str(caught.value) == (
        "step 1: the gradient of the offsets is not finite; the batch held documents of 1 rows; "
        "documents of 2 rows; lower optim.lr or look at these documents"
    )
    for mine, kept in zip(objective.line.parameters(), before):
        assert torch.equal(mine.detach(), kept)


def test_finite_gradients_whose_norm_overflows_are_refused_too():
    # Both gradients are 2e200 or so; their squares are beyond float64.
    objective = Regression(line(), penalty=0.0)
    with pytest.raises(TrainingError, match=r"^step 1: the norm of the gradient is not finite; "):
        make(objective, lambda _: [batch((1e50, 1e150))]).run(0, [])


def test_two_runs_may_take_turns():
    alone = [Regression(line(1.0)) for _ in range(2)]
    loops = [
        make(o, lambda step: [batch((step, 1))], steps=3, lr=lr) for o, lr in zip(alone, (0.1, 0.2))
    ]
    for loop in loops:
        loop.run(0, [])
    turns = [Regression(line(1.0)) for _ in range(2)]
    loops = [
        make(o, lambda step: [batch((step, 1))], steps=3, lr=lr) for o, lr in zip(turns, (0.1, 0.2))
    ]
    progress = [loop.start(0) for loop in loops]
    for _ in range(3):
        progress = [loop.advance(at, []) for loop, at in zip(loops, progress)]
    assert all(at.last and at.tokens == 30 for at in progress)
    for one, other in zip(alone, turns):
        assert one.line.weight.item() == other.line.weight.item()
    assert alone[0].line.weight.item() != alone[1].line.weight.item()
