"""The HTTP application in this process, around a real store and real files, without Serve."""

import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from serving_process import free_port
from test_dispatcher import Deployment

from vidgen_ray.config import load_config
from vidgen_ray.generation.artifacts import ArtifactStore
from vidgen_ray.serving.arguments import ServingArguments
from vidgen_ray.serving.http.api import build_api
from vidgen_ray.serving.http.cluster_metrics import MetricsPage
from vidgen_ray.serving.http.context import Context
from vidgen_ray.serving.http.create_job import JobCreator
from vidgen_ray.serving.http.health import HealthMonitor
from vidgen_ray.serving.http.keys import KeysFile
from vidgen_ray.serving.queue.background import BackgroundTasks
from vidgen_ray.serving.queue.storage import Storage
from vidgen_ray.serving.queue.store import JobStore
from vidgen_ray.serving.queue.watch import Watch


async def _nothing(*_: Any) -> None:
    pass


def make_context(folder: Path, **args: Any) -> Context:
    """The parts of an Ingress replica."""
    values = {
        "config": "nano",
        "model_id": "tiny",
        "output": str(folder / "out"),
        "database": f"sqlite:///{folder}/jobs.db",
        **args,
    }
    arguments = ServingArguments.model_validate(values)
    config = load_config(arguments.config, arguments.settings)
    store = JobStore(str(arguments.database), retention_s=arguments.retention_s)
    artifacts = ArtifactStore(arguments.output)
    job_creator = JobCreator(arguments, config, store, artifacts)
    keys_file = KeysFile(arguments.api_keys_file)
    background = BackgroundTasks()
    health = HealthMonitor(
        arguments,
        config,
        store,
        job_creator,
        "vidgen",
        storage=Storage(store, artifacts, "ingress-test"),
        keys_file=keys_file,
        background=background,
    )
    return Context(
        arguments=arguments,
        store=store,
        artifacts=artifacts,
        keys_file=keys_file,
        job_creator=job_creator,
        watch=Watch(store),
        health=health,
        background=background,
        metrics=MetricsPage(),
        dispatcher=Deployment(wake=_nothing),  # type: ignore[arg-type]
    )


def client_of(context: Context, **options: Any) -> httpx.AsyncClient:
    """A client of the application around `context`, on this machine."""
    transport = httpx.ASGITransport(build_api(context), raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8000", **options)


@contextlib.contextmanager
def served(context: Context) -> Iterator[str]:
    """The URL of the application around `context`, for clients that speak HTTP themselves."""
    port = free_port()
    app = build_api(context)
    server = uvicorn.Server(
        uvicorn.Config(app, host="127.0.0.1", port=port, log_level="warning", lifespan="off")
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(10)
