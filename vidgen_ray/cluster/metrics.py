"""The custom Ray metrics, exported as `ray_vidgen_...`.

`source` is `batch` or `serving`: the same clip means the same in both.
"""

from typing import Literal

from ray.util.metrics import Counter, Gauge, Histogram

from vidgen_ray.schema import GenerationRecord

Source = Literal["batch", "serving"]

_SECONDS = [0.1, 0.3, 1, 3, 10, 30, 60, 90, 120, 180, 300, 600, 1800, 3600]
_SCORES = [number / 20 for number in range(1, 20)]


class DeviceMetrics:
    """Of a process that holds a model, step by step."""

    def __init__(self, source: Source) -> None:
        self._tags = {"source": source}
        self._steps = Counter("vidgen_steps", "Denoising steps.", ("source",))
        self._reserved = Gauge(
            "vidgen_vram_reserved_gb",
            "VRAM reserved by the process, 1e9 bytes.",
            ("source", "device"),
        )
        self._allocated = Gauge(
            "vidgen_vram_allocated_gb", "VRAM held by tensors, 1e9 bytes.", ("source", "device")
        )

    def step(self, device: str, reserved_gb: float | None, allocated_gb: float | None) -> None:
        """Note a step and the VRAM after it; None where there is no GPU."""
        self._steps.inc(1, self._tags)
        if reserved_gb is not None and allocated_gb is not None:
            tags = {**self._tags, "device": device}
            self._reserved.set(reserved_gb, tags)
            self._allocated.set(allocated_gb, tags)


class ClipMetrics:
    """Of attempts at clips, where they are committed or rejected."""

    def __init__(self, source: Source) -> None:
        self._tags = {"source": source}
        self._clips = Counter("vidgen_clips", "Clips that ended.", ("source", "outcome"))
        self._retries = RetryMetrics(source)
        self._stage = Histogram(
            "vidgen_stage_seconds", "Time of a clip's stage.", _SECONDS, ("source", "stage")
        )
        self._score = Histogram(
            "vidgen_temporal_score", "Temporal score of clips.", _SCORES, ("source",)
        )
        self._last = Gauge(
            "vidgen_last_temporal_score", "Temporal score of the last clip.", ("source",)
        )
        self._peak = Gauge(
            "vidgen_peak_vram_gb",
            "Most VRAM of a stage of the last clip, 1e9 bytes.",
            ("source", "device", "stage"),
        )

    def attempt_ended(self, record: GenerationRecord, *, final: bool) -> None:
        """Note an attempt with its stages, score and VRAM; one that is not final is retried."""
        if final:
            self._clips.inc(1, {**self._tags, "outcome": record.status})
        else:
            self._retries.retried("rejected")
        for stage, seconds in record.stages.model_dump(exclude_none=True).items():
            self._stage.observe(seconds, {**self._tags, "stage": stage.removesuffix("_s")})
        for stage, peak_gb in record.stage_peaks_gb.items():
            device = record.device or ""
            self._peak.set(peak_gb, {**self._tags, "device": device, "stage": stage})
        if record.score:
            self._score.observe(record.score.score, self._tags)
            self._last.set(record.score.score, self._tags)


class RetryMetrics:
    """Of work that is repeated."""

    def __init__(self, source: Source) -> None:
        self._tags = {"source": source}
        self._retries = Counter("vidgen_retries", "Attempts made again.", ("source", "reason"))

    def retried(self, reason: Literal["rejected", "worker_lost"]) -> None:
        """Note one more attempt: the clip was rejected, or its worker was lost."""
        self._retries.inc(1, {**self._tags, "reason": reason})


class QueueMetrics:
    """Of what waits. `age` is of the oldest that waits, 0 when nothing does."""

    def __init__(self, source: Source) -> None:
        self._tags = {"source": source}
        self._length = Gauge("vidgen_queue_length", "Clips by status.", ("source", "status"))
        self._age = Gauge("vidgen_queue_age_seconds", "Wait of the oldest clip.", ("source",))

    def queue(self, queued: int, in_progress: int, age_s: float) -> None:
        """Note how many wait and run, and how long the oldest has waited."""
        self._length.set(queued, {**self._tags, "status": "queued"})
        self._length.set(in_progress, {**self._tags, "status": "in_progress"})
        self._age.set(age_s, self._tags)


class JobMetrics:
    """Of the jobs of the server that ended."""

    def __init__(self) -> None:
        self._jobs = Counter("vidgen_jobs", "Jobs that ended.", ("status",))
        self._latency = Histogram(
            "vidgen_job_seconds", "From accepted to the end.", _SECONDS, ("status",)
        )

    def ended(self, status: str, seconds: float) -> None:
        """Note a job that ended `seconds` after it was accepted."""
        self._jobs.inc(1, {"status": status})
        self._latency.observe(seconds, {"status": status})


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
        self._vram = Gauge(
            "vidgen_train_peak_vram_gb", "Most VRAM of a step, 1e9 bytes.", ("rank",)
        )

    def step(
        self, *, loss: float, samples_per_s: float, step_s: float, peak_vram_gb: float | None
    ) -> None:
        """Note a step; `peak_vram_gb` is None where there is no GPU."""
        if self._first:
            self._loss.set(loss)
            self._steps.inc(1)
            self._rate.set(samples_per_s)
        self._seconds.observe(step_s, self._tags)
        if peak_vram_gb is not None:
            self._vram.set(peak_vram_gb, self._tags)
