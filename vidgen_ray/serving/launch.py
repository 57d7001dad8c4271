"""`vidgen serve`: check a Serve config file, so that a mistake ends the process, then run it."""

import errno
import os
import socket
import sys
from pathlib import Path
from typing import NoReturn

import yaml
from pydantic import ValidationError
from ray.serve.schema import ServeDeploySchema

from vidgen_ray.config import describe
from vidgen_ray.errors import ConfigError
from vidgen_ray.serving.app import checked
from vidgen_ray.serving.arguments import ServingArguments
from vidgen_ray.serving.exposure import check_exposure
from vidgen_ray.serving.http.keys import read_keys

_IMPORT_PATH = "vidgen_ray.serving.app:build_app"
_PROXY_CALLBACK = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"


def serve(config_file: str, address: str | None) -> NoReturn:
    """Check the file and become `serve run`. Raises ConfigError, ArtifactError and StoreError."""
    check(config_file)
    os.environ.setdefault(_PROXY_CALLBACK, "vidgen_ray.serving.http.proxy.middlewares")
    program = str(Path(sys.executable).parent / "serve")
    command = [program, "run", config_file, *(["--address", address] if address else [])]
    os.execv(program, command)


def check(config_file: str) -> None:
    """Everything that can be known before Ray starts.

    Raises ConfigError, ArtifactError and StoreError.
    """
    schema = _read(config_file)
    for application in schema.applications:
        if application.import_path != _IMPORT_PATH:
            continue
        try:
            given = ServingArguments.model_validate(application.args)
        except ValidationError as error:
            raise ConfigError(f"{config_file}: args: {'; '.join(describe(error))}") from None
        arguments, _ = checked(given)
        check_exposure(schema.http_options.host, arguments, read_keys(arguments.api_keys_file))
    _check_port(schema.http_options.host, schema.http_options.port)


def _read(config_file: str) -> ServeDeploySchema:
    try:
        return ServeDeploySchema.model_validate(yaml.safe_load(Path(config_file).read_text()))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{config_file}: must be a Serve config file: {reason}") from None


def _check_port(host: str, port: int) -> None:
    """Refuse a port that is in use: Serve's proxies would share it, each with half the requests."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            what = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be used: {error}"
            raise ConfigError(
                f"http_options.port: {port} on {host} {what}; stop the other server, or choose "
                "another port; to redeploy on a running Ray use `serve deploy`"
            ) from None
