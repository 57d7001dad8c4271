"""The deployment that answers HTTP. It holds no state: any number of replicas may run."""

import logging
import os
from uuid import uuid4

from fastapi import FastAPI
from ray import serve
from ray.serve.context import _get_global_client
from ray.serve.handle import DeploymentHandle

from vidgen_ray.config import Config
from vidgen_ray.generation.artifacts import ArtifactStore
from vidgen_ray.serving.arguments import ServingArguments
from vidgen_ray.serving.exposure import check_exposure
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

logger = logging.getLogger("ray.serve")


@serve.ingress()
class Ingress:
    """The FastAPI application, built in the replica around its own store and files."""

    def __init__(
        self, arguments: ServingArguments, config: Config, dispatcher: DeploymentHandle
    ) -> None:
        assert arguments.database is not None
        keys_file = KeysFile(arguments.api_keys_file)
        client = _get_global_client()
        host = client.http_config.host if client else None
        check_exposure(host, arguments, keys_file.keys)
        store = JobStore(arguments.database, retention_s=arguments.retention_s)
        artifacts = ArtifactStore(arguments.output)
        job_creator = JobCreator(arguments, config, store, artifacts)
        app = serve.get_replica_context().app_name
        background = BackgroundTasks()
        health = HealthMonitor(
            arguments,
            config,
            store,
            job_creator,
            app,
            storage=Storage(store, artifacts, f"ingress-{uuid4().hex[:12]}"),
            keys_file=keys_file,
            background=background,
        )
        self._context = Context(
            arguments=arguments,
            store=store,
            artifacts=artifacts,
            keys_file=keys_file,
            job_creator=job_creator,
            watch=Watch(store),
            health=health,
            background=background,
            metrics=MetricsPage(),
            dispatcher=dispatcher,
        )
        logger.info("ingress started", extra={"pid": os.getpid()})

    def __serve_build_asgi_app__(self) -> FastAPI:
        """What `serve.ingress` asks for."""
        return build_api(self._context)
