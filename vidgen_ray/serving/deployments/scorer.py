"""The deployment that scores, judges and commits clips, on CPUs."""

import asyncio
import logging

from vidgen_ray.cluster.metrics import ClipMetrics
from vidgen_ray.config import QualityConfig
from vidgen_ray.errors import ArtifactError, StoreError
from vidgen_ray.generation import attempt as attempts
from vidgen_ray.generation.artifacts import ArtifactStore
from vidgen_ray.generation.attempt import FailedAttempt, GeneratedAttempt, ScoredAttempt
from vidgen_ray.generation.commit import AttemptResult, commit_or_retry
from vidgen_ray.serving.arguments import ServingArguments
from vidgen_ray.serving.deployments.priority import lower_priority
from vidgen_ray.serving.deployments.tasks import GeneratorResult
from vidgen_ray.serving.queue.store import JobStore

logger = logging.getLogger("ray.serve")


class Scorer:
    """What follows the Generator: score, verdict, clip and record in the output store."""

    def __init__(self, arguments: ServingArguments, quality: QualityConfig) -> None:
        lower_priority()
        self._arguments = arguments
        self._quality = quality
        assert arguments.database is not None
        self._store = JobStore(arguments.database)
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

    async def commit_or_retry(self, made: GeneratorResult) -> AttemptResult | None:
        """Commit the attempt, or keep it aside and ask for another. None: the lease was lost,
        and nothing was written. Raises ArtifactError."""
        work = asyncio.create_task(asyncio.to_thread(self._commit_or_retry, made))
        try:
            return await asyncio.shield(work)
        except ArtifactError:
            self._failed = True
            raise
        except asyncio.CancelledError:
            await asyncio.wait([work])
            raise

    def _commit_or_retry(self, made: GeneratorResult) -> AttemptResult | None:
        attempt = made.attempt
        ended = attempt if isinstance(attempt, FailedAttempt) else self._score(attempt)
        if not self._is_wanted(made):
            return None
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

    def _is_wanted(self, made: GeneratorResult) -> bool:
        job_id = made.attempt.attempt.id
        log = {"video_id": job_id, "http_request_id": made.http_request_id}
        try:
            if self._store.holds_lease(job_id, made.lease_token):
                return True
        except StoreError as error:
            # A clip outlives a database that is away for a while.
            logger.warning("%s", error, extra=log)
            return True
        logger.info("clip dropped, its lease was lost", extra=log)
        return False

    def _score(self, generated: GeneratedAttempt) -> ScoredAttempt:
        return attempts.score(generated, self._quality, self._arguments.num_cpus_per_score)
