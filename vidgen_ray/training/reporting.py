"""Report a training run to the user: its plan, its steps and its result."""

import time
from collections.abc import Sequence
from statistics import fmean, median_high

from rich.console import Console

from vidgen_ray.model.lora_file import FINAL_NAME
from vidgen_ray.training.estimate import StepEstimate
from vidgen_ray.training.metrics_log import CSV_NAME, PLOT_NAME, MetricsLog
from vidgen_ray.training.schedule import TrainingSchedule
from vidgen_ray.training.state import StepMetrics

_REPORT_EVERY_S = 5.0


class ProgressReporter:
    """Adds steps to the log, and prints some of them."""

    def __init__(self, log: MetricsLog, console: Console) -> None:
        self._log = log
        self._console = console
        self._reported_at = 0.0

    def report(
        self,
        restored: list[StepMetrics] | None,
        steps: list[StepMetrics],
        messages: list[str],
    ) -> None:
        """Report what was drained from the channel."""
        if restored is not None:
            self._log.restore(restored)
            if restored:
                show(self._console, f"resuming after step {restored[-1].step}")
        for metrics in steps:
            self._log.add(metrics)
        if steps and time.monotonic() - self._reported_at > _REPORT_EVERY_S:
            self._reported_at = time.monotonic()
            show(self._console, _describe_step(steps[-1]))
        for message in messages:
            show(self._console, message)


def describe_plan(
    schedule: TrainingSchedule, num_clips: int, cost: StepEstimate, num_workers: int
) -> str:
    """What the run will do, and its estimated cost."""
    workers = f"{num_workers} workers" if num_workers else "this process"
    hours = cost.step_s * schedule.num_steps / 3600
    return (
        f"{num_clips} clips, {schedule.num_epochs} epochs, {schedule.num_steps} steps of "
        f"{schedule.global_batch} samples on {workers}\n"
        f"estimated for each: {cost.memory_gb:.1f} GB (weights {cost.weights_gb:.1f}, adapter "
        f"and optimizer {cost.adapter_gb:.1f}, activations {cost.activations_gb:.1f}), "
        f"{cost.step_flop / 1e12:.1f} TFLOP and {cost.step_s:.2f} s a step, {hours:.1f} h"
    )


def describe_result(rows: Sequence[StepMetrics], cost: StepEstimate, output: str) -> str:
    """The measured cost beside the estimate, the loss, and where the adapter is."""
    adapter = f"Adapter: {output.rstrip('/')}/{FINAL_NAME}"
    if not rows:
        return adapter
    step_s = median_high(row.step_s for row in rows)
    peak = max((row.peak_vram_gb for row in rows if row.peak_vram_gb is not None), default=None)
    memory = f"{peak:.1f} GB (estimated {cost.memory_gb:.1f}), " if peak is not None else ""
    tenth = max(1, len(rows) // 10)
    first, last = (fmean(row.loss for row in part) for part in (rows[:tenth], rows[-tenth:]))
    return (
        f"measured: {memory}{step_s:.2f} s a step (estimated {cost.step_s:.2f}), "
        f"{cost.step_flop / step_s / 1e12:.2f} TFLOP/s a worker\n"
        f"loss: {first:.4f} in the first tenth, {last:.4f} in the last; see {CSV_NAME} and "
        f"{PLOT_NAME}\n{adapter}"
    )


def show(console: Console, text: str) -> None:
    """Print text as it is."""
    console.print(text, highlight=False, markup=False, soft_wrap=True)


def _describe_step(step: StepMetrics) -> str:
    vram = f", {step.peak_vram_gb:.1f} GB" if step.peak_vram_gb is not None else ""
    return (
        f"step {step.step} (epoch {step.epoch}): loss {step.loss:.4f}, "
        f"{step.step_s:.2f} s a step{vram}"
    )
