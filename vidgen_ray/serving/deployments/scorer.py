"""The deployment that scores, judges and commits clips, on CPUs."""

import asyncio
import logging

from vidgen_ray.cluster.metrics import ClipMetrics
from vidgen_ray.config import QualityConfig
from vidgen_ray.errors import ArtifactError
from vidgen_ray.generation import attempt as attempts
from vidgen_ray.generation.artifacts import ArtifactStore
from vidgen_ray.schema import GenerationRecord, Video
from vidgen_ray.serving.arguments import ServingArguments
from vidgen_ray.serving.deployments.priority import step_aside
from vidgen_ray.serving.deployments.tasks import Made, Settled

logger = logging.getLogger("ray.serve")


class Scorer:
    """What follows the Generator: score, verdict, clip and record in the output store."""

    def __init__(self, arguments: ServingArguments, quality: QualityConfig) -> None:
        step_aside()
        self._arguments = arguments
        self._quality = quality
        self._artifacts = ArtifactStore(arguments.output)
        self._artifacts.check_writable()
        self._failed = False
        self._metrics = ClipMetrics("serving")

    def check_health(self) -> None:
        """After a failure to write, ask for another process, on another node perhaps, for as long
        as this one cannot write. Raises ArtifactError."""
        if self._failed:
            self._artifacts.check_writable()
            self._failed = False

    async def settle(self, made: Made) -> Settled:
        """Commit the attempt, or keep it and ask for another. Raises ArtifactError."""
        work = asyncio.create_task(asyncio.to_thread(self._settle, made))
        try:
            return await asyncio.shield(work)
        except ArtifactError:
            self._failed = True
            raise
        except asyncio.CancelledError:
            await asyncio.wait([work])
            raise

    def _settle(self, made: Made) -> Settled:
        record = GenerationRecord.model_validate_json(made.record)
        video = None
        if made.frames is not None:
            assert record.request is not None
            video = Video(made.frames, record.request.fps)
            num_threads = self._arguments.num_cpus_per_score
            assert made.image is not None
            record = attempts.with_score(record, video, made.image, self._quality, num_threads)
        if made.image is not None:
            self._artifacts.write_thumbnail(record.id, made.image)
        final = attempts.settle(self._artifacts, record, video, self._quality.max_attempts)
        settled = final or record
        self._metrics.settled(settled, final=final is not None)
        logger.info(
            "clip settled",
            extra={
                "video_id": record.id,
                "http_request_id": made.http_request_id,
                "attempt": record.attempt,
                "verdict": settled.status if final else "retry",
                "temporal_score": settled.score.score if settled.score else None,
            },
        )
        return Settled(final.model_dump_json() if final else None)
