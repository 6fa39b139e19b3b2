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


class Track(Callback):
    """Send every step's metrics to one tracker."""

    def __init__(
        self, tracker: Tracker, run: Path, config: Mapping[str, Any], warn: Callable[[str], None]
    ) -> None:
        if importlib.util.find_spec(tracker) is None:
            raise MissingExtra(tracker, "track", f"--track {tracker}")
        self._tracker, self._warn = tracker, warn
        self._log: Callable[[Mapping[str, float], int], None] | None = _open(tracker, run, config)

    def after_step(self, progress: Progress) -> None:
        if self._log is None:
            return
        try:
            self._log({"tokens": progress.tokens, **progress.metrics}, progress.step)
        except Exception as error:  # whatever a tracker's network does, the run goes on
            self._warn(f"{self._tracker} failed and is off for the rest of the run: {error}")
            self._log = None


def _open(
    tracker: Tracker, run: Path, config: Mapping[str, Any]
) -> Callable[[Mapping[str, float], int], None]:
    if tracker == "tensorboard":
        from torch.utils.tensorboard import SummaryWriter

        writer = SummaryWriter(str(run / "tensorboard"))

        def write(metrics: Mapping[str, float], step: int) -> None:
            for name, value in metrics.items():
                writer.add_scalar(name, value, step)

        return write
    module = importlib.import_module(tracker)
    module.init(project="pellucid", name=run.name, config=dict(config))
    return lambda metrics, step: module.log(dict(metrics), step=step)
