"""The custom Ray metrics, all in one place. They are exported as `ray_vidgen_...`."""

from ray.util.metrics import Counter, Gauge, Histogram

from vidgen_ray.schema import GenerationRecord

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
