"""Log the steps of a run to metrics.csv, loss.png, TensorBoard, MLflow and Weights & Biases."""

import csv
import io
import posixpath
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from statistics import fmean as mean
from typing import Any

from accelerate.tracking import LOGGER_TYPE_TO_CLASS
from matplotlib.figure import Figure

from vidgen_ray.addresses import one_line
from vidgen_ray.errors import ConfigError
from vidgen_ray.generation.artifacts import ArtifactStore
from vidgen_ray.training.state import StepMetrics

CSV_NAME, PLOT_NAME, TENSORBOARD = "metrics.csv", "loss.png", "tensorboard"

_FLUSH_EVERY_S = 10.0
_NUM_SMOOTHED = 50  # a single loss depends on its timestep far more than on progress


class MetricsLog:
    """The steps of a run, written to the store and sent to trackers."""

    def __init__(
        self,
        store: ArtifactStore,
        address: str,
        trackers: Sequence[str],
        settings: dict[str, Any],
        num_committed_steps: int,
    ) -> None:
        """Start the trackers. `address` is the store's, `settings` are shown beside the run.

        Raises ConfigError if a tracker cannot start.
        """
        self._store = store
        self._rows: dict[int, StepMetrics] = {}
        self._name = posixpath.basename(address.rstrip("/"))
        self._is_local = "://" not in address
        self._folder = Path(address) if self._is_local else Path(tempfile.mkdtemp())
        self._settings = settings
        self._flushed_at = time.monotonic()
        names = ("tensorboard", *trackers)
        self._trackers = [self._start(name, num_committed_steps + 1) for name in names]

    def restore(self, history: Sequence[StepMetrics]) -> None:
        """Replace all steps by `history`; the later ones will be repeated."""
        self._rows = {row.step: row for row in history}

    def add(self, row: StepMetrics) -> None:
        """Log a step."""
        self._rows[row.step] = row
        values = {name: v for name, v in asdict(row).items() if v is not None and name != "step"}
        for tracker in self._trackers:
            tracker.log({f"train/{name}": value for name, value in values.items()}, step=row.step)
        if time.monotonic() - self._flushed_at > _FLUSH_EVERY_S:
            self.flush()

    @property
    def rows(self) -> list[StepMetrics]:
        """All steps in order."""
        return [self._rows[step] for step in sorted(self._rows)]

    def flush(self) -> None:
        """Write the table and the plot."""
        self._flushed_at = time.monotonic()
        if self._rows:
            self._store.write(CSV_NAME, _csv(self.rows))
            self._store.write(PLOT_NAME, _plot(self.rows))

    def close(self) -> None:
        """Flush and close the trackers."""
        self.flush()
        for tracker in self._trackers:
            tracker.finish()
        if not self._is_local:
            for path in (self._folder / TENSORBOARD).rglob("*"):
                if path.is_file():
                    name = path.relative_to(self._folder).as_posix()
                    self._store.write(name, path.read_bytes())

    def _start(self, name: str, first_step: int) -> Any:
        kind = LOGGER_TYPE_TO_CLASS[name]
        try:
            if name == "tensorboard":
                tracker = kind(TENSORBOARD, str(self._folder), purge_step=first_step)
            elif name == "mlflow":
                tracker = kind(experiment_name="vidgen", run_name=self._name)
            else:
                tracker = kind("vidgen", name=self._name)
            tracker.start()
            if name != "tensorboard":
                tracker.store_init_configuration(self._settings)
        except Exception as error:  # trackers and their servers raise errors of their own
            raise ConfigError(
                f"training.trackers: {name} cannot start: {one_line(error)}; pip install "
                f"vidgen-ray[{name}], set its address and key in the environment, or leave it out"
            ) from error
        return tracker


def _csv(rows: Sequence[StepMetrics]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(
        text, [field.name for field in fields(StepMetrics)], lineterminator="\n"
    )
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    return text.getvalue().encode()


def _plot(rows: Sequence[StepMetrics]) -> bytes:
    """PNG of the loss of each step, its running mean, and the learning rate."""
    steps = [row.step for row in rows]
    losses = [row.loss for row in rows]
    window = max(1, min(_NUM_SMOOTHED, len(rows) // 5))
    smooth = [mean(losses[max(0, end - window) : end]) for end in range(1, len(losses) + 1)]
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    axes.plot(steps, losses, color="#9bb7d4", linewidth=0.8, label="loss")
    axes.plot(steps, smooth, color="#1f4e79", linewidth=2, label=f"mean of {window}")
    axes.set(xlabel="step", ylabel="v-prediction loss", ylim=(0, None))
    axes.grid(alpha=0.3)
    right = axes.twinx()
    right.plot(steps, [row.learning_rate for row in rows], color="#c07000", linewidth=1)
    right.set(ylim=(0, None))
    right.set_ylabel("learning rate", color="#c07000")
    axes.legend(loc="upper right")
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=100)
    return picture.getvalue()
