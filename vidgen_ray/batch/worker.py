"""What the stage of a batch that holds the model does there."""

import logging
import os
from dataclasses import replace

import torch

from vidgen_ray.batch.stages import Row, Run
from vidgen_ray.cluster.board import activity
from vidgen_ray.cluster.metrics import DeviceMetrics
from vidgen_ray.cluster.ranks import RankGroup, open_engine
from vidgen_ray.errors import VidgenError
from vidgen_ray.generation import attempt as attempts
from vidgen_ray.generation.engine import Engine
from vidgen_ray.image_io import ConditioningImage
from vidgen_ray.model.device import vram_now
from vidgen_ray.schema import GenerationRecord

logger = logging.getLogger(__name__)


class ClipWorker:
    """The engine of a worker, or the ranks that stand for one, loaded for the first row."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._engine: Engine | RankGroup | None = None
        self._metrics = DeviceMetrics("batch")

    def work(self, row: Row, record: GenerationRecord) -> tuple[Row, GenerationRecord]:
        """Put the frames of the clip into the row, what was measured into its record."""
        assert record.image is not None
        if self._engine is None:
            self._engine = open_engine(self._run.config)
        entry = activity(record.id, "generate")

        def on_step(step: int, num_steps: int) -> None:
            vram = vram_now()
            self._metrics.step(*vram)
            self._run.board.step.remote(
                replace(entry, step=step, num_steps=num_steps, vram_reserved_gb=vram.reserved_gb)
            )

        facts = record.image
        image = ConditioningImage(row["image"], facts.sha256, facts.width, facts.height)
        try:
            generation = self._engine.generate(
                attempts.seeded_request(record),
                on_step,
                image=image,
                timeout_s=self._run.config.batch.clip_timeout_s,
            )
        except VidgenError as error:
            if isinstance(error.__cause__, torch.AcceleratorError):
                # The CUDA context is gone: no later clip can work in this process. Ray starts
                # another, and the row is tried again a bounded number of times.
                logger.critical("%s", error)
                os._exit(1)
            raise
        record = attempts.with_generation(record, generation)
        return {**row, "frames": generation.video.frames}, record
