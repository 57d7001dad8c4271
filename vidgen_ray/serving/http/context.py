"""The parts of an Ingress replica that routes use, and authentication."""

import ipaddress
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from ray.serve.handle import DeploymentHandle

from vidgen_ray.generation.artifacts import ArtifactStore
from vidgen_ray.schema import ID_PATTERN
from vidgen_ray.serving.arguments import ServingArguments
from vidgen_ray.serving.http.cluster_metrics import MetricsPage
from vidgen_ray.serving.http.create_job import JobCreator
from vidgen_ray.serving.http.health import HealthMonitor
from vidgen_ray.serving.http.keys import ApiKeys, KeysFile
from vidgen_ray.serving.http.problems import ApiError, not_found
from vidgen_ray.serving.queue.background import BackgroundTasks
from vidgen_ray.serving.queue.store import Job, JobStore
from vidgen_ray.serving.queue.watch import Watch


@dataclass(frozen=True)
class Context:
    """One ingress replica's parts."""

    arguments: ServingArguments
    store: JobStore
    artifacts: ArtifactStore
    keys_file: KeysFile
    job_creator: JobCreator
    watch: Watch
    health: HealthMonitor
    background: BackgroundTasks
    metrics: MetricsPage
    dispatcher: DeploymentHandle

    @property
    def keys(self) -> ApiKeys:
        """The API keys as they are now."""
        return self.keys_file.keys

    def is_operator(self, owner: str) -> bool:
        """Whether `owner` may see what concerns all owners."""
        return not self.keys.are_needed or owner in self.arguments.operators

    def wake(self) -> None:
        """Tell the dispatcher that there is something to do. It would find out by itself, later."""
        self.dispatcher.wake.remote()

    async def find(self, video_id: str, owner: str) -> Job:
        """The owner's job. Raises ApiError 404."""
        job = await self.watch.look(video_id) if ID_PATTERN.fullmatch(video_id) else None
        if job is None or job.owner != owner:
            raise not_found(f"video {video_id[:120]!r}")
        return job


_bearer = HTTPBearer(auto_error=False, description="A key that `vidgen key` made.")


async def context_of(request: Request) -> Context:
    """The context of the application that answers `request`."""
    context: Context = request.app.state.context
    return context


async def authenticate(
    request: Request, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]
) -> str:
    """The owner that the request's API key names; ``""`` where no keys are configured.

    Raises ApiError 401, and 403 for strangers where there are no keys.
    """
    context = await context_of(request)
    if not context.keys.are_needed:
        if not context.arguments.allow_open_network and not _is_this_machine(request):
            raise ApiError(
                403,
                "forbidden",
                "this server has no API keys and answers its own machine alone; "
                "configure api_keys_file, or allow_open_network",
            )
        return ""
    owner = context.keys.owner_of(credentials.credentials if credentials else None)
    if owner is None:
        what = "is wrong" if credentials else "is needed: `Authorization: Bearer vg_...`"
        headers = {"WWW-Authenticate": "Bearer"}
        raise ApiError(401, "unauthorized", f"an API key {what}", headers=headers)
    return owner


def _is_this_machine(request: Request) -> bool:
    try:
        return request.client is None or ipaddress.ip_address(request.client.host).is_loopback
    except ValueError:
        return False


Serving = Annotated[Context, Depends(context_of)]
Owner = Annotated[str, Depends(authenticate)]
