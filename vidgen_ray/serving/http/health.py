"""The health of the service, refreshed in the background so that /health answers at once."""

import asyncio
import logging
from collections import Counter
from typing import Any, Literal

import ray
from pydantic import BaseModel
from ray.serve.context import _get_global_client

from vidgen_ray import __version__
from vidgen_ray.config import Config
from vidgen_ray.errors import ConfigError, StoreError
from vidgen_ray.serving.arguments import ServingArguments
from vidgen_ray.serving.http.create_job import JobCreator
from vidgen_ray.serving.http.keys import KeysFile
from vidgen_ray.serving.queue.background import BackgroundTasks
from vidgen_ray.serving.queue.storage import Storage
from vidgen_ray.serving.queue.store import JobStore

logger = logging.getLogger("ray.serve")

_REFRESH_S = 1.0
_PROBE_S = 10.0
_REPORT_AGE_S = 45.0


class DeploymentHealth(BaseModel):
    """A deployment as Serve sees it; `replicas` counts them by state.

    `waits_for`: what the cluster lacks for the next replica to start.
    """

    status: str
    replicas: dict[str, int]
    waits_for: str | None = None


class ModelHealth(BaseModel):
    """The served model. `ready` says whether its facts are known, so that requests are checked."""

    id: str
    ready: bool
    trained: bool | None = None
    dtype: str
    num_frames: int
    height: int
    width: int
    fps: int
    num_inference_steps: int
    num_parameters: dict[str, int] = {}
    profiles: list[str]
    loras: list[str]


class QueueHealth(BaseModel):
    """Jobs that wait, up to `capacity`, and run. None: the store does not answer."""

    queued: int | None
    in_progress: int | None
    capacity: int


class Health(BaseModel):
    """`ok`: everything runs. `starting`: jobs are accepted, clips are not generated yet.
    `degraded`: `problems` names what does not work. `tasks` are the background tasks of this
    Ingress and of the Dispatcher."""

    status: Literal["ok", "starting", "degraded"]
    problems: list[str] = []
    tasks: dict[str, str] = {}
    version: str
    deployments: dict[str, DeploymentHealth]
    model: ModelHealth
    queue: QueueHealth


class HealthMonitor:
    """The latest health, refreshed every second."""

    def __init__(
        self,
        arguments: ServingArguments,
        config: Config,
        store: JobStore,
        job_creator: JobCreator,
        app: str,
        *,
        storage: Storage,
        keys_file: KeysFile,
        background: BackgroundTasks,
    ) -> None:
        self._arguments = arguments
        self._config = config
        self._store = store
        self._job_creator = job_creator
        self._app = app
        self._storage = storage
        self._keys_file = keys_file
        self._background = background
        self._model = self._described()
        self._storage_problems: dict[str, str] = {}
        self.health = self._judged({}, None, [])

    async def run(self) -> None:
        """Refresh until cancelled."""
        opening = asyncio.create_task(asyncio.to_thread(self._open))
        while True:
            deployments = await asyncio.to_thread(self._deployments)
            counts = await asyncio.to_thread(self._counts)
            reports = await asyncio.to_thread(self._reports)
            if opening.done():
                self._model = self._described()
            self.health = self._judged(deployments, counts, reports)
            await asyncio.sleep(_REFRESH_S)

    async def probe(self) -> None:
        """Write to the output and to the store, again and again, until cancelled."""
        while True:
            self._storage_problems = await self._storage.problems({})
            await asyncio.sleep(_PROBE_S)

    def _open(self) -> None:
        """Read the checkpoint's small files, and import what checks adapters: it takes seconds,
        which no request should wait for."""
        try:
            _ = self._job_creator.checkpoint.num_parameters
            if self._arguments.lora_folder:
                import vidgen_ray.model.adapters  # noqa: F401
        except ConfigError as error:
            logger.error("%s", error)

    def _described(self) -> ModelHealth:
        facts: dict[str, Any] = {"ready": False}
        checkpoint = vars(self._job_creator).get("checkpoint")
        if checkpoint is not None:
            counts = vars(checkpoint).get("num_parameters", {})
            facts = {"ready": True, "trained": checkpoint.trained, "num_parameters": _known(counts)}
        defaults = self._config.generation
        names = ("num_frames", "height", "width", "fps", "num_inference_steps")
        return ModelHealth(
            id=self._job_creator.model_id,
            dtype=self._config.model.dtype,
            profiles=sorted(self._config.profiles),
            loras=sorted(self._job_creator.loras()),
            **{name: getattr(defaults, name) for name in names},
            **facts,
        )

    def _deployments(self) -> dict[str, DeploymentHealth]:
        # Not `serve.status()`: it pickles every router, for which all requests wait 0.1 s.
        client = _get_global_client(raise_if_no_controller_running=False)
        try:
            app = client.get_serve_details()["applications"].get(self._app) if client else None
            deployments = app["deployments"] if app else {}
            return {name: _deployment(details) for name, details in deployments.items()}
        except Exception as error:  # the controller is away, or restarts
            logger.warning("no status from Serve: %s", error)
            return {}

    def _counts(self) -> dict[str, int] | None:
        try:
            return self._store.count()
        except StoreError as error:
            logger.error("%s", error)
            return None

    def _reports(self) -> list[dict[str, str]]:
        """What the Dispatchers last said of their background tasks."""
        try:
            return self._store.reports.read("dispatcher-", _REPORT_AGE_S)
        except StoreError:  # `_counts` has logged it
            return []

    def _judged(
        self,
        deployments: dict[str, DeploymentHealth],
        counts: dict[str, int] | None,
        reports: list[dict[str, str]],
    ) -> Health:
        tasks = {f"ingress.{name}": state for name, state in self._background.report().items()}
        for report in reports:
            tasks |= {f"dispatcher.{name}": state for name, state in report.items()}
        problems = self._problems(deployments, counts, tasks)
        status: Literal["ok", "starting", "degraded"] = "degraded" if problems else "ok"
        if not deployments or not self._model.ready or any(map(_is_starting, deployments.values())):
            status = "starting"
        return Health(
            status=status,
            problems=problems,
            tasks=tasks,
            version=__version__,
            deployments=deployments,
            model=self._model,
            queue=QueueHealth(
                queued=None if counts is None else counts.get("queued", 0),
                in_progress=None if counts is None else counts.get("in_progress", 0),
                capacity=self._arguments.max_queued_jobs,
            ),
        )

    def _problems(
        self,
        deployments: dict[str, DeploymentHealth],
        counts: dict[str, int] | None,
        tasks: dict[str, str],
    ) -> list[str]:
        found = list(self._storage_problems.values())
        if counts is None and "database" not in self._storage_problems:
            found.append("database: cannot be read; the log says why")
        if self._keys_file.problem:
            found.append("api_keys_file: cannot be used; the keys read before stay valid")
        found += [f"{name}: {state}" for name, state in tasks.items() if state != "running"]
        found += [
            f"{name}: {entry.status}{f', waits for {entry.waits_for}' if entry.waits_for else ''}"
            for name, entry in deployments.items()
            if entry.status not in _WELL or entry.waits_for
        ]
        return found


_WELL = {"HEALTHY", "UPDATING", "UPSCALING", "DOWNSCALING"}


def _deployment(details: dict[str, Any]) -> DeploymentHealth:
    states = Counter(replica["state"].value for replica in details["replicas"])
    options = details["deployment_config"].get("ray_actor_options") or {}
    starts = bool(states.get("STARTING")) and not states.get("RUNNING")
    return DeploymentHealth(
        status=details["status"].value,
        replicas=states,
        waits_for=_missing(options) if starts else None,
    )


def _missing(options: dict[str, Any]) -> str | None:
    """Which resource of the cluster is too scarce for a replica with these options to start."""
    needed = {"CPU": options.get("num_cpus") or 0, "GPU": options.get("num_gpus") or 0}
    free, total = ray.available_resources(), ray.cluster_resources()
    scarce = [
        f"{amount:g} {name} ({free.get(name, 0):g} of {total.get(name, 0):g} free)"
        for name, amount in needed.items()
        if amount > free.get(name, 0)
    ]
    return ", ".join(scarce) or None


def _is_starting(deployment: DeploymentHealth) -> bool:
    """Whether its first replica is not there yet; it may be loading weights."""
    return deployment.status == "UPDATING" and not deployment.replicas.get("RUNNING")


def _known(counts: dict[str, int]) -> dict[str, int]:
    """Without the parts whose weights are not on this machine."""
    return {part: count for part, count in counts.items() if count}
