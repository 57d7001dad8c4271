"""The deployment that answers HTTP. It holds no state: any number of replicas may run."""

import logging
import os

from fastapi import FastAPI
from ray import serve
from ray.serve.context import _get_global_client
from ray.serve.handle import DeploymentHandle

from vidgen_ray.config import Config
from vidgen_ray.errors import ConfigError
from vidgen_ray.generation.artifacts import ArtifactStore
from vidgen_ray.serving.arguments import ServingArguments
from vidgen_ray.serving.http.api import build_api
from vidgen_ray.serving.http.context import Context
from vidgen_ray.serving.http.create_job import Intake
from vidgen_ray.serving.http.health import Vitals
from vidgen_ray.serving.http.keys import ApiKeys, read_keys
from vidgen_ray.serving.queue.store import JobStore
from vidgen_ray.serving.queue.watch import Watch

logger = logging.getLogger("ray.serve")

_LOOPBACK = {"127.0.0.1", "localhost", "::1"}


@serve.ingress()
class Ingress:
    """The FastAPI application, built in the replica around its own store and files."""

    def __init__(
        self, arguments: ServingArguments, config: Config, dispatcher: DeploymentHandle
    ) -> None:
        assert arguments.database is not None
        keys = read_keys(arguments.api_keys_file)
        _check_exposure(arguments, keys)
        store = JobStore(arguments.database, retention_s=arguments.retention_s)
        artifacts = ArtifactStore(arguments.output)
        intake = Intake(arguments, config, store, artifacts)
        app = serve.get_replica_context().app_name
        self._context = Context(
            arguments=arguments,
            store=store,
            artifacts=artifacts,
            keys=keys,
            intake=intake,
            watch=Watch(store),
            vitals=Vitals(arguments, config, store, intake, app),
            dispatcher=dispatcher,
        )
        logger.info("ingress started", extra={"pid": os.getpid()})

    def __serve_build_asgi_app__(self) -> FastAPI:
        """What `serve.ingress` asks for."""
        return build_api(self._context)


def _check_exposure(arguments: ServingArguments, keys: ApiKeys) -> None:
    """Refuse to be open to a network without API keys, unless told to. Raises ConfigError."""
    client = _get_global_client()
    host = client.http_config.host if client else None
    if host in _LOOPBACK or keys.are_needed or arguments.allow_open_network:
        return
    raise ConfigError(
        f"http_options.host: {host!r} is open to the network, but there are no API keys; set "
        "api_keys_file (see `vidgen key`), bind 127.0.0.1, or set allow_open_network: true"
    )
