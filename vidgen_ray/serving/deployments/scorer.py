"""The deployment that scores, judges and commits clips, on CPUs."""

import asyncio
import logging

from vidgen_ray.cluster.metrics import ClipMetrics
from vidgen_ray.config import QualityConfig
from vidgen_ray.errors import ArtifactError
from vidgen_ray.generation import attempt as attempts
from vidgen_ray.generation.artifacts import ArtifactStore
from vidgen_ray.generation.attempt import FailedAttempt, GeneratedAttempt, ScoredAttempt
from vidgen_ray.generation.commit import AttemptResult, commit_or_retry
from vidgen_ray.serving.arguments import ServingArguments
from vidgen_ray.serving.deployments.priority import lower_priority
from vidgen_ray.serving.deployments.tasks import GeneratorResult

logger = logging.getLogger("ray.serve")


class Scorer:
    """What follows the Generator: score, verdict, clip and record in the output store."""

    def __init__(self, arguments: ServingArguments, quality: QualityConfig) -> None:
        lower_priority()
        self._arguments = arguments
        self._quality = quality
        self._artifacts = ArtifactStore(arguments.output)
        self._artifacts.check_writable()
        self._failed = False
        self._metrics = ClipMetrics("serving")

    def check_health(self) -> None:
        """After a failed write, report unhealthy while this process cannot write, so that Serve
        replaces it, perhaps on another node. Raises ArtifactError."""
        if self._failed:
            self._artifacts.check_writable()
            self._failed = False

    async def commit_or_retry(self, made: GeneratorResult) -> AttemptResult:
        """Commit the attempt, or keep it aside and ask for another. Raises ArtifactError."""
        work = asyncio.create_task(asyncio.to_thread(self._commit_or_retry, made))
        try:
            return await asyncio.shield(work)
        except ArtifactError:
            self._failed = True
            raise
        except asyncio.CancelledError:
            await asyncio.wait([work])
            raise

    def _commit_or_retry(self, made: GeneratorResult) -> AttemptResult:
        attempt = made.attempt
        ended = attempt if isinstance(attempt, FailedAttempt) else self._score(attempt)
        result = commit_or_retry(self._artifacts, ended, self._quality.max_attempts)
        record = result.record
        self._metrics.attempt_ended(record, final=result.retry is None)
        logger.info(
            "attempt rejected" if result.retry else "clip committed",
            extra={
                "video_id": record.id,
                "http_request_id": made.http_request_id,
                "attempt": record.attempt,
                "verdict": "rejected" if result.retry else record.status,
                "temporal_score": record.score.score if record.score else None,
            },
        )
        return result

    def _score(self, generated: GeneratedAttempt) -> ScoredAttempt:
        return attempts.score(generated, self._quality, self._arguments.num_cpus_per_score)
