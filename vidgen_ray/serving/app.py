"""The application builder that Serve config files import: `vidgen_ray.serving.app`.

Serve reads the annotation of `build_app`, so that this module must not postpone annotations.
"""

import os
from pathlib import Path

from ray import serve
from ray.serve import Application
from ray.serve.config import RequestRouterConfig

from vidgen_ray.config import SHIPPED_LORAS, Config, load_config
from vidgen_ray.errors import ConfigError
from vidgen_ray.generation.artifacts import ArtifactStore
from vidgen_ray.serving.arguments import ServingArguments, is_reference
from vidgen_ray.serving.deployments.dispatcher import Dispatcher
from vidgen_ray.serving.deployments.generator import Generator
from vidgen_ray.serving.deployments.ingress import Ingress
from vidgen_ray.serving.deployments.scorer import Scorer
from vidgen_ray.serving.http.keys import read_keys
from vidgen_ray.serving.queue.store import JobStore
from vidgen_ray.serving.queue.webhooks import check_secret

# Serve's router asks a busy Generator again and again whether it is free; by default up to 0.5 s
# after the last time, for which a GPU would wait between two clips.
_LOOK_AGAIN_S = 0.2


def build_app(args: ServingArguments) -> Application:
    """Ingress -> Dispatcher -> Generator and Scorer. Serve wants it with one parameter.

    Raises ConfigError, ArtifactError and StoreError.
    """
    return bind_deployments(args, Generator)


def bind_deployments(args: ServingArguments, generator_class: type[Generator]) -> Application:
    """The application with another Generator. Everything that can be checked is, here.

    Raises ConfigError, ArtifactError and StoreError.
    """
    arguments, config = checked(args)
    # What a config file does not say. One clip at a time; a wait is no load on the ingress.
    # Ranks reserve their GPUs by themselves, beside the replica that leads them.
    num_gpus = 1 if config.model.gpus_per_clip == 1 else 0
    generator = serve.deployment(
        max_ongoing_requests=1,
        ray_actor_options={"num_gpus": num_gpus},
        request_router_config=RequestRouterConfig(max_backoff_s=_LOOK_AGAIN_S),
    )
    num_cpus = arguments.num_cpus_per_score
    scorer = serve.deployment(max_ongoing_requests=1, ray_actor_options={"num_cpus": num_cpus})
    dispatcher = serve.deployment(num_replicas=1, ray_actor_options={"num_cpus": 0})
    ingress = serve.deployment(max_ongoing_requests=10_000, ray_actor_options={"num_cpus": 0})
    application: Application = ingress(Ingress).bind(
        arguments,
        config,
        dispatcher(Dispatcher).bind(
            arguments,
            generator(generator_class).bind(arguments, config),
            scorer(Scorer).bind(arguments, config.quality),
        ),
    )
    return application


def checked(args: ServingArguments) -> tuple[ServingArguments, Config]:
    """`args` with absolute paths, defaults and secrets filled in, and the configuration.

    Raises ConfigError, ArtifactError and StoreError.
    """
    arguments = _effective(args)
    config = load_config(arguments.config, arguments.settings)
    read_keys(arguments.api_keys_file)
    if (arguments.webhook_url or arguments.webhook_hosts) and not arguments.webhook_secret:
        raise ConfigError(
            "webhook_secret: needed to sign webhooks; set VIDGEN_WEBHOOK_SECRET to "
            "whsec_$(openssl rand -base64 32)"
        )
    if arguments.webhook_secret:
        check_secret(arguments.webhook_secret)
    if arguments.lora_folder:
        _make_folder(arguments.lora_folder)
    ArtifactStore(arguments.output).check_writable()
    assert arguments.database is not None
    JobStore(arguments.database)
    return arguments, config


def _effective(args: ServingArguments) -> ServingArguments:
    """With absolute paths, defaults filled in, and secrets from where they are."""
    output = _absolute(args.output)
    database = _secret("database", args.database) or os.environ.get("VIDGEN_DATABASE_URL")
    if database is None:
        if "://" in output:
            raise ConfigError(
                f"database: needed where output is not a local folder ({output}); set it, or "
                "VIDGEN_DATABASE_URL, to a PostgreSQL URL"
            )
        database = f"sqlite:///{output}/jobs.db"
    keys = args.api_keys_file or os.environ.get("VIDGEN_API_KEYS_FILE")
    config = _absolute(args.config) if args.config.endswith((".yaml", ".yml")) else args.config
    secret = _secret("webhook_secret", args.webhook_secret)
    return args.model_copy(
        update={
            "config": config,
            "output": output,
            "database": database,
            "api_keys_file": _absolute(keys) if keys else None,
            "lora_folder": _lora_folder(args.lora_folder),
            "webhook_secret": secret or os.environ.get("VIDGEN_WEBHOOK_SECRET"),
        }
    )


def _secret(field: str, value: str | None) -> str | None:
    """`value`, or what the environment variable or file that it names holds."""
    if value is None or not is_reference(value):
        return value
    kind, _, name = value.partition(":")
    try:
        found = os.environ[name] if kind == "env" else Path(name).expanduser().read_text().strip()
    except (KeyError, OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{field}: {value} cannot be read ({type(error).__name__}); set it, or name another"
        ) from None
    if not found:
        raise ConfigError(f"{field}: {value} is empty; put the secret there")
    return found


def _make_folder(folder: str) -> None:
    """Create the folder of the adapters where it is missing: adapters may be put there later."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"lora_folder: must be a folder, or a place where one can be created, got {folder} "
            f"({error.strerror}); correct it, or leave it out"
        ) from None


def _lora_folder(folder: str | None) -> str | None:
    """`embedded` stands for the adapters of the embedded model."""
    if folder == "embedded":
        return str(SHIPPED_LORAS)
    return _absolute(folder) if folder else None


def _absolute(address: str) -> str:
    return address if "://" in address else os.path.abspath(os.path.expanduser(address))
