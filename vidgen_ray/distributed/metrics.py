"""The custom Ray metrics, all in one place. They are exported as `ray_vidgen_...`."""

from ray.util.metrics import Counter, Gauge, Histogram

from vidgen_ray.schema import GenerationRecord
from vidgen_ray.training.state import StepMetrics

_SECONDS = [0.1, 0.3, 1, 3, 10, 30, 60, 90, 120, 180, 300, 600, 1800, 3600]
_SCORES = [number / 20 for number in range(1, 20)]


class GeneratorMetrics:
    """Of a replica that holds a model."""

    def __init__(self) -> None:
        self._stage = Histogram(
            "vidgen_stage_seconds", "Time of a clip's stage.", _SECONDS, ("stage",)
        )
        self._vram = Gauge(
            "vidgen_vram_gb", "VRAM reserved by the replica, 1e9 bytes.", ("device",)
        )
        self._peak = Gauge(
            "vidgen_peak_vram_gb", "Most VRAM of the last clip, 1e9 bytes.", ("device",)
        )

    def vram(self, reserved_gb: float, device: str) -> None:
        """Note the VRAM of now."""
        self._vram.set(reserved_gb, {"device": device})

    def made(self, record: GenerationRecord) -> None:
        """Note the stages of a clip."""
        for stage, seconds in record.stages.model_dump(exclude_none=True).items():
            self._stage.observe(seconds, {"stage": stage.removesuffix("_s")})
        if record.peak_vram_gb is not None:
            self._peak.set(record.peak_vram_gb, {"device": record.device or ""})


class ScorerMetrics:
    """Of a replica that scores."""

    def __init__(self) -> None:
        self._score = Histogram("vidgen_temporal_score", "Temporal score of clips.", _SCORES, ())
        self._last = Gauge("vidgen_last_temporal_score", "Temporal score of the last clip.")

    def scored(self, record: GenerationRecord) -> None:
        """Note the score of a clip that has one."""
        if record.score:
            self._score.observe(record.score.score)
            self._last.set(record.score.score)


class DispatcherMetrics:
    """Of the queue and the jobs that ended."""

    def __init__(self) -> None:
        self._jobs = Counter("vidgen_jobs", "Jobs that ended.", ("status",))
        self._latency = Histogram(
            "vidgen_job_seconds", "From accepted to the end.", _SECONDS, ("status",)
        )
        self._queue = Gauge("vidgen_queue_length", "Jobs by status.", ("status",))

    def ended(self, status: str, seconds: float) -> None:
        """Note a job that ended `seconds` after it was accepted."""
        self._jobs.inc(1, {"status": status})
        self._latency.observe(seconds, {"status": status})

    def queue(self, counts: dict[str, int]) -> None:
        """Note how many jobs wait and run."""
        for status in ("queued", "in_progress"):
            self._queue.set(counts.get(status, 0), {"status": status})


class EncodingMetrics:
    """Of clips that become latents."""

    def __init__(self) -> None:
        self._clips = Counter("vidgen_encoded_clips", "Clips that were encoded.", ("outcome",))
        self._seconds = Histogram(
            "vidgen_encode_seconds", "Time of a clip's stage.", _SECONDS, ("stage",)
        )

    def done(self, outcome: str, seconds: dict[str, float]) -> None:
        """Note a clip that ended, and what its stages took."""
        self._clips.inc(1, {"outcome": outcome})
        for stage, value in seconds.items():
            self._seconds.observe(value, {"stage": stage})


class TrainingMetrics:
    """Of a rank that trains. The loss is the mean over all ranks, VRAM each rank's own."""

    def __init__(self, rank: int) -> None:
        self._tags = {"rank": str(rank)}
        self._first = rank == 0
        self._loss = Gauge("vidgen_train_loss", "Loss of the last step.")
        self._steps = Counter("vidgen_train_steps", "Optimiser steps.")
        self._rate = Gauge("vidgen_train_samples_per_s", "Samples a second, all ranks together.")
        self._seconds = Histogram(
            "vidgen_train_step_seconds", "Time of a step.", _SECONDS, ("rank",)
        )
        self._vram = Gauge("vidgen_train_vram_gb", "Most VRAM of a step, 1e9 bytes.", ("rank",))

    def step(self, metrics: StepMetrics) -> None:
        """Note a step."""
        if self._first:
            self._loss.set(metrics.loss)
            self._steps.inc(1)
            self._rate.set(metrics.samples_per_s)
        self._seconds.observe(metrics.step_s, self._tags)
        if metrics.vram_gb is not None:
            self._vram.set(metrics.vram_gb, self._tags)
