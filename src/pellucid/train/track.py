"""Optional trackers: tensorboard, wandb or trackio, off by default.

They see what the metrics file sees. A tracker that fails never stops a run: it is dropped with one
warning.
"""

import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from pellucid.core.errors import MissingExtra
from pellucid.train.loop import Callback, Progress

Tracker = Literal["tensorboard", "wandb", "trackio"]
Log = Callable[[Mapping[str, float], int], None]


class Track(Callback):
    """Send every step's metrics to one tracker."""

    def __init__(
        self, tracker: Tracker, run: Path, config: Mapping[str, Any], warn: Callable[[str], None]
    ) -> None:
        check_tracker(tracker)
        self._tracker, self._warn = tracker, warn
        self._log: Log | None = None
        try:
            self._log = _open(tracker, run, config)
        except Exception as error:
            self._give_up(error)

    def after_step(self, progress: Progress) -> None:
        if self._log is None:
            return
        try:
            self._log({"tokens": float(progress.tokens), **progress.metrics}, progress.step)
        except Exception as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        """Whatever a tracker's network or login does, the run goes on."""
        self._log = None
        reason = " ".join(str(error).split()) or type(error).__name__
        self._warn(f"{self._tracker} failed and is off for the rest of the run: {reason}")


def check_tracker(tracker: Tracker) -> None:
    """Whether the tracker's package is installed; if not, a ``MissingExtra`` names it."""
    if importlib.util.find_spec(tracker) is None:
        raise MissingExtra(tracker, "track", f"--track {tracker}")


def _open(tracker: Tracker, run: Path, config: Mapping[str, Any]) -> Log:
    if tracker == "tensorboard":
        from torch.utils.tensorboard import SummaryWriter

        writer = SummaryWriter(str(run / "tensorboard"))

        def write(metrics: Mapping[str, float], step: int) -> None:
            for name, value in metrics.items():
                writer.add_scalar(name, value, step)
            writer.flush()

        return write
    module = importlib.import_module(tracker)
    module.init(project="pellucid", name=run.name, config=dict(config))
    return lambda metrics, step: module.log(dict(metrics), step=step)
