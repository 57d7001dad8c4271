"""What the service says of itself: looked up in the background, so that asking is always quick."""

import asyncio
import logging
from collections import Counter
from typing import Any, Literal

from pydantic import BaseModel
from ray.serve.context import _get_global_client

from vidgen_ray import __version__
from vidgen_ray.config import Config
from vidgen_ray.errors import ConfigError, StoreError
from vidgen_ray.serving.arguments import ServingArguments
from vidgen_ray.serving.http.create_job import Intake
from vidgen_ray.serving.queue.store import JobStore

logger = logging.getLogger("ray.serve")

_REFRESH_S = 1.0


class DeploymentHealth(BaseModel):
    """A deployment as Serve sees it; `replicas` counts them by state."""

    status: str
    replicas: dict[str, int]


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
    """`ok`: everything runs. `starting`: requests may come, clips not yet. `degraded`: something
    does not run, but the service answers."""

    status: Literal["ok", "starting", "degraded"]
    version: str
    deployments: dict[str, DeploymentHealth]
    model: ModelHealth
    queue: QueueHealth


class Vitals:
    """The latest health, refreshed every second."""

    def __init__(
        self, arguments: ServingArguments, config: Config, store: JobStore, intake: Intake, app: str
    ) -> None:
        self._arguments = arguments
        self._config = config
        self._store = store
        self._intake = intake
        self._app = app
        self._model = self._described()
        self.health = self._judged({}, None)

    async def run(self) -> None:
        """Refresh until cancelled."""
        opening = asyncio.create_task(asyncio.to_thread(self._open))
        while True:
            deployments = await asyncio.to_thread(self._deployments)
            counts = await asyncio.to_thread(self._counts)
            if opening.done():
                self._model = self._described()
            self.health = self._judged(deployments, counts)
            await asyncio.sleep(_REFRESH_S)

    def _open(self) -> None:
        try:
            _ = self._intake.checkpoint.num_parameters
        except ConfigError as error:
            logger.error("%s", error)

    def _described(self) -> ModelHealth:
        facts: dict[str, Any] = {"ready": False}
        checkpoint = vars(self._intake).get("checkpoint")
        if checkpoint is not None:
            counts = vars(checkpoint).get("num_parameters", {})
            facts = {"ready": True, "trained": checkpoint.trained, "num_parameters": _known(counts)}
        defaults = self._config.generation
        names = ("num_frames", "height", "width", "fps", "num_inference_steps")
        return ModelHealth(
            id=self._intake.model_id,
            dtype=self._config.model.dtype,
            profiles=sorted(self._config.profiles),
            loras=sorted(self._intake.loras()),
            **{name: getattr(defaults, name) for name in names},
            **facts,
        )

    def _deployments(self) -> dict[str, DeploymentHealth]:
        # Not `serve.status()`: it pickles every router anew, for which all who ask wait 0.1 s.
        client = _get_global_client()
        try:
            app = client.get_serve_details()["applications"].get(self._app) if client else None
        except Exception as error:  # the controller is away, or comes back
            logger.warning("no status from Serve: %s", error)
            return {}
        return {
            name: DeploymentHealth(
                status=deployment["status"].value,
                replicas=Counter(replica["state"].value for replica in deployment["replicas"]),
            )
            for name, deployment in (app["deployments"] if app else {}).items()
        }

    def _counts(self) -> dict[str, int] | None:
        try:
            return self._store.count()
        except StoreError as error:
            logger.error("%s", error)
            return None

    def _judged(
        self, deployments: dict[str, DeploymentHealth], counts: dict[str, int] | None
    ) -> Health:
        states = {deployment.status for deployment in deployments.values()}
        status: Literal["ok", "starting", "degraded"] = "ok"
        if counts is None or not states <= {"HEALTHY", "UPDATING", "UPSCALING", "DOWNSCALING"}:
            status = "degraded"
        if not deployments or not self._model.ready or any(map(_comes_up, deployments.values())):
            status = "starting"
        return Health(
            status=status,
            version=__version__,
            deployments=deployments,
            model=self._model,
            queue=QueueHealth(
                queued=None if counts is None else counts.get("queued", 0),
                in_progress=None if counts is None else counts.get("in_progress", 0),
                capacity=self._arguments.max_queued_jobs,
            ),
        )


def _comes_up(deployment: DeploymentHealth) -> bool:
    """Whether its first replica is still on its way, loading weights perhaps."""
    return deployment.status == "UPDATING" and not deployment.replicas.get("RUNNING")


def _known(counts: dict[str, int]) -> dict[str, int]:
    """Without the parts whose weights are not on this machine."""
    return {part: count for part, count in counts.items() if count}
