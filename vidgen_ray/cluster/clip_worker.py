"""The process that holds the model, in a batch and behind HTTP alike."""

from vidgen_ray.cluster.device_loss import exit_on_device_loss
from vidgen_ray.cluster.metrics import DeviceMetrics, Source
from vidgen_ray.cluster.ranks import open_engine
from vidgen_ray.config import Config
from vidgen_ray.generation import attempt as attempts
from vidgen_ray.generation.attempt import GeneratedAttempt, PreparedAttempt
from vidgen_ray.generation.clip_engine import Cancelled, ClipEngine, OnStep
from vidgen_ray.model.device import vram_now


class ClipWorker:
    """An engine with metrics; a lost device ends the process. For one thread at a time."""

    def __init__(self, config: Config, source: Source, engine: ClipEngine | None = None) -> None:
        """`engine` stands in for the one that `config` asks for. Raises ConfigError."""
        self.engine = engine or open_engine(config)
        self._metrics = DeviceMetrics(source)

    def generate(
        self,
        prepared: PreparedAttempt,
        on_step: OnStep,
        cancelled: Cancelled | None = None,
        timeout_s: float | None = None,
    ) -> GeneratedAttempt:
        """Make the clip; see `attempt.generate`."""

        def step(done: int, total: int) -> None:
            self._metrics.step(*vram_now())
            on_step(done, total)

        with exit_on_device_loss():
            return attempts.generate(self.engine, prepared, step, cancelled, timeout_s)

    def vram_reserved_gb(self) -> float | None:
        """VRAM that this process has reserved, in 1e9 bytes; None on a CPU."""
        return vram_now().reserved_gb
