"""The server's configuration is read once, where the application is built."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any


def bound_arguments(application: Any) -> Iterator[tuple[str, Any]]:
    """The arguments of every deployment of an application, with the deployment's name."""
    deployment = application._bound_deployment
    for argument in deployment.init_args:
        if hasattr(argument, "_bound_deployment"):
            yield from bound_arguments(argument)
        else:
            yield deployment.name, argument


def test_deployments_get_the_configuration_and_not_its_path(tmp_path: Path) -> None:
    from vidgen_ray.config import Config, QualityConfig
    from vidgen_ray.serving.app import build_app
    from vidgen_ray.serving.arguments import ServingArguments

    path = tmp_path / "desk.yaml"
    path.write_text("model: {checkpoint: embedded, dtype: auto}\nquality: {max_attempts: 7}\n")
    arguments = ServingArguments(config=str(path), output=str(tmp_path / "out"))
    found = list(bound_arguments(build_app(arguments)))
    configs = {name: each for name, each in found if isinstance(each, Config)}
    assert set(configs) == {"Ingress", "Generator"}
    assert all(config.quality.max_attempts == 7 for config in configs.values())
    assert all(config.model.dtype == "auto" for config in configs.values())
    (quality,) = (each for _, each in found if isinstance(each, QualityConfig))
    assert quality.max_attempts == 7
