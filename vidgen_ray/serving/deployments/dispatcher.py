"""The deployment that brings leased jobs to the Generator and the Scorer, and ends them."""

import asyncio
import contextlib
import logging
import os
import threading
import time
from functools import partial
from uuid import uuid4

from ray.exceptions import RayActorError
from ray.serve.handle import DeploymentHandle

from vidgen_ray.addresses import one_line
from vidgen_ray.cluster.metrics import JobMetrics, QueueMetrics, RetryMetrics
from vidgen_ray.errors import ArtifactError, StoreError
from vidgen_ray.generation.artifacts import ArtifactStore
from vidgen_ray.generation.commit import AttemptResult
from vidgen_ray.schema import ErrorRecord, GenerationRecord
from vidgen_ray.serving.arguments import ServingArguments
from vidgen_ray.serving.deployments.heartbeat import HeartbeatMonitor
from vidgen_ray.serving.deployments.tasks import ClipTask, GeneratorResult
from vidgen_ray.serving.queue.background import BackgroundTasks
from vidgen_ray.serving.queue.storage import Storage
from vidgen_ray.serving.queue.store import Job, JobResult, JobStore
from vidgen_ray.serving.queue.sweep import Sweeper
from vidgen_ray.serving.queue.uploads import remove_files
from vidgen_ray.serving.queue.webhooks import WebhookSender

logger = logging.getLogger("ray.serve")

_POLL_S = 0.5
_PROBE_S = 10.0


class Dispatcher:
    """Leases jobs and calls the deployments, so that Serve counts, queues, scales and drains."""

    def __init__(
        self, arguments: ServingArguments, generator: DeploymentHandle, scorer: DeploymentHandle
    ) -> None:
        assert arguments.database is not None
        self._arguments = arguments
        self._generator = generator
        self._scorer = scorer
        self._id = f"dispatcher-{uuid4().hex[:12]}"
        self._store = JobStore(arguments.database, retention_s=arguments.retention_s)
        self._artifacts = ArtifactStore(arguments.output)
        self._storage = Storage(self._store, self._artifacts, self._id)
        self._storage_problems: dict[str, str] = {}
        self._probe_now = asyncio.Event()
        self._webhooks = WebhookSender(self._store.deliveries, arguments.webhook_secret)
        self._metrics = JobMetrics()
        self._queue = QueueMetrics("serving")
        self._retries = RetryMetrics("serving")
        self._awake = asyncio.Event()
        self._running: dict[str, asyncio.Task[None]] = {}
        self._waiting: set[str] = set()  # those of them that no Generator has begun
        self._releasing: set[asyncio.Task[None]] = set()
        self._draining = False
        self._renew_every_s = arguments.lease_s / 4
        self._heartbeats = HeartbeatMonitor(self._store.reports, self._renew_every_s)
        self._beating = threading.Event()
        threading.Thread(target=self._beat, daemon=True).start()
        sweeper = Sweeper(self._store, self._artifacts, arguments.retention_s)
        self._background = BackgroundTasks()
        self._background.start("dispatch", self._dispatch)
        self._background.start("storage", self._probe)
        self._background.start("sweep", sweeper.run)
        self._background.start("webhooks", self._webhooks.run)
        logger.info("dispatcher started", extra={"dispatcher": self._id, "pid": os.getpid()})

    async def wake(self) -> None:
        """Look for jobs now: one was added or cancelled."""
        self._awake.set()

    def check_health(self) -> None:
        """Ask for another process when a background task of this one cannot be kept running."""
        if not self._draining and not self._background.are_running:
            raise RuntimeError("a background task of the dispatcher has ended")

    async def __del__(self) -> None:
        """Drain: lease nothing more, see the running clips to their end, give back the rest."""
        self._draining = True
        self._awake.set()
        if self._running:
            logger.info("draining", extra={"jobs": sorted(self._running)})
            await asyncio.wait(self._running.values(), timeout=self._arguments.drain_s)
        for task in self._running.values():
            task.cancel()
        if self._running:
            await asyncio.wait(self._running.values(), timeout=5)
        self._beating.set()
        self._background.stop()
        with contextlib.suppress(StoreError):
            await asyncio.to_thread(self._store.forget, self._id)
            await asyncio.to_thread(self._store.reports.remove, self._id)

    async def _dispatch(self) -> None:
        arguments = self._arguments
        while True:
            room = arguments.max_dispatched_jobs - len(self._running)
            if self._draining or self._storage_problems:
                room = 0  # a clip that cannot be kept is not worth generating
            try:
                leased = await asyncio.to_thread(
                    self._store.lease, self._id, room, arguments.lease_s, arguments.max_tries
                )
                await self._drop_lost({job.id for job in leased})
            except StoreError as error:
                logger.error("%s", error)
                leased = []
                await asyncio.sleep(_POLL_S)
            for job in leased:
                task = asyncio.create_task(self._make(job))
                self._running[job.id] = task
                task.add_done_callback(partial(self._ended, job.id))
            self._awake.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._awake.wait(), _POLL_S)

    def _ended(self, job_id: str, _task: "asyncio.Task[None]") -> None:
        self._running.pop(job_id, None)
        self._awake.set()

    async def _drop_lost(self, new: set[str]) -> None:
        """Stop waiting for jobs that were cancelled, removed or lost before a Generator had them.

        One that a Generator works on stops by itself, after its step.
        """
        if not self._running:
            return
        held = await asyncio.to_thread(self._store.get_many, list(self._running))
        self._waiting = {job_id for job_id, job in held.items() if job.status == "queued"}
        for job_id, task in list(self._running.items()):
            job = held.get(job_id)
            if job_id not in new and (job is None or job.lease_owner != self._id):
                task.cancel()

    async def _make(self, job: Job) -> None:
        log = {"video_id": job.id, "http_request_id": job.http_request_id}
        assert job.lease_token is not None
        token = job.lease_token
        try:
            record = await self._clip(job, token)
            if record is not None:
                await self._finish(job, token, record)
        except asyncio.CancelledError:
            await self._release(job, token, blame=False)
        except RayActorError as error:
            logger.warning("worker lost: %s", one_line(error), extra=log)
            await self._release(job, token, blame=True)
        except (ArtifactError, StoreError) as error:  # storage is away: no fault of the job's
            logger.error("%s", one_line(error), extra=log)
            self._output_failed(error)
            await self._release(job, token, blame=False, delay_s=self._arguments.lease_s / 3)
        except Exception as error:  # Serve, or a defect: another try, later
            logger.exception("clip could not be made: %s", one_line(error), extra=log)
            await self._release(job, token, blame=True, delay_s=self._arguments.lease_s / 3)

    async def _clip(self, job: Job, token: str) -> GenerationRecord | None:
        """The committed record. None: the lease was lost."""
        if job.tries > 1:
            committed = await asyncio.to_thread(self._artifacts.read_record, job.id)
            if committed is not None:
                return committed
        number = job.attempt
        while True:
            made = await self._generate(
                ClipTask(job.id, token, number, job.request, job.http_request_id)
            )
            if made is None:
                return None
            result: AttemptResult | None = await self._scorer.commit_or_retry.remote(made)
            if result is None:
                return None
            if result.retry is None:
                return result.record
            number = result.retry.number
            if not await asyncio.to_thread(self._store.next_attempt, job.id, token):
                return None

    async def _generate(self, task: ClipTask) -> GeneratorResult | None:
        response = self._generator.generate.remote(task)
        try:
            made: GeneratorResult | None = await response
        except asyncio.CancelledError:
            response.cancel()
            raise
        return made

    async def _finish(self, job: Job, token: str, record: GenerationRecord) -> None:
        outcome = _job_result(record)
        if await asyncio.to_thread(self._store.finish, job.id, token, outcome):
            seconds = time.time() - job.created_at
            self._metrics.ended(outcome.status, seconds)
            extra = {"video_id": job.id, "http_request_id": job.http_request_id}
            logger.info("job %s", outcome.status, extra={**extra, "seconds": round(seconds, 3)})
            self._webhooks.wake()
        elif await asyncio.to_thread(self._store.get, job.id) is None:
            # It was removed while its clip was being committed.
            await asyncio.to_thread(remove_files, self._artifacts, job.id)

    async def _release(self, job: Job, token: str, *, blame: bool, delay_s: float = 0) -> None:
        if blame:
            self._retries.retried("worker_lost")
        # A task of its own: nothing may cancel it, or this process would renew the lease for ever.
        task = asyncio.create_task(self._release_until_stored(job.id, token, blame, delay_s))
        self._releasing.add(task)
        task.add_done_callback(self._releasing.discard)
        await asyncio.shield(task)

    async def _release_until_stored(
        self, job_id: str, token: str, blame: bool, delay_s: float
    ) -> None:
        release = partial(self._store.release, job_id, token, blame=blame, delay_s=delay_s)
        while True:
            try:
                await asyncio.to_thread(release)
                return
            except StoreError as error:
                logger.error("%s", error, extra={"video_id": job_id})
            if self._draining:
                return  # the lease ends with this process
            await asyncio.sleep(_POLL_S)

    def _beat(self) -> None:
        """Renew the leases and watch the Generators, from a thread: the loop may be busy."""
        while not self._beating.wait(self._renew_every_s):
            try:
                self._store.renew_all(self._id, self._arguments.lease_s)
                counts, age_s = self._store.count(), self._store.oldest_wait_s()
                self._queue.queue(counts.get("queued", 0), counts.get("in_progress", 0), age_s)
                self._heartbeats.check()
            except StoreError as error:
                self._heartbeats.reset()
                logger.error("%s", error)
            except Exception:  # a defect; without this thread every lease would run out
                logger.exception("leases could not be renewed")

    async def _probe(self) -> None:
        """Find out whether clips can be kept, and report what this process does."""
        while True:
            self._probe_now.clear()
            report = self._background.report()
            if self._storage_problems:
                report["dispatch"] = f"paused: {', '.join(self._storage_problems)}"
            found = await self._storage.problems(report)
            if found.keys() != self._storage_problems.keys():
                logger.warning("dispatch %s", "paused" if found else "resumed", extra=found)
            self._storage_problems = found
            if found:
                self._recall()
            self._awake.set()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._probe_now.wait(), _PROBE_S)

    def _output_failed(self, error: Exception) -> None:
        if isinstance(error, ArtifactError):
            self._storage.output_failed()
            self._probe_now.set()

    def _recall(self) -> None:
        """Give back the jobs that no Generator has begun."""
        for job_id in self._waiting:
            if task := self._running.get(job_id):
                task.cancel()


def _job_result(record: GenerationRecord) -> JobResult:
    if record.artifact is not None:
        return JobResult("completed", record.model_dump_json())
    error = record.error or ErrorRecord(kind="EngineError", message="", stage="generate")
    code, message = _PUBLIC.get(error.kind, _PUBLIC["EngineError"])
    return JobResult("failed", record.model_dump_json(), code, message)


# What a client is told; the whole error is in the logs and in the record.
_PUBLIC = {
    "RequestError": ("invalid_request", "the request does not fit the model as it is loaded now"),
    "ClipTimeout": ("timeout", "the clip took longer than its limit; use fewer steps"),
    "OutOfMemory": ("out_of_memory", "the device ran out of memory; ask the operator"),
    "EngineError": ("generation_failed", "the model could not make this clip; try another seed"),
}
