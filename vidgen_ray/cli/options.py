"""What the commands share: options, and paths as workers will find them."""

import functools
import inspect
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic.fields import FieldInfo

from vidgen_ray.config import GenerationDefaults, Offload, parse_overrides, shipped_loras
from vidgen_ray.errors import RequestError
from vidgen_ray.generation.job_fields import JOB_FIELDS, Kind, accepts_none, kind_of

ConfigOption = Annotated[
    str, typer.Option(help="Name of a shipped configuration (nano, ...) or a .yaml file.")
]
AddressOption = Annotated[
    str | None,
    typer.Option(help="Ray cluster (auto, host:port); default RAY_ADDRESS, else this machine."),
]
LoraScaleOption = Annotated[float | None, typer.Option(help="Scale of --lora; default 1.")]
OffloadOption = Annotated[
    Offload | None,
    typer.Option(help="Keep weights in main memory; auto goes by the free VRAM."),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", help="Any other setting: section.key=value, repeatable; an option beats it."
    ),
]
Command = Callable[..., None]


def with_generation_options(*left_out: str) -> Callable[[Command], Command]:
    """Add --offload, --set and an option for each field of GenerationDefaults to a command.

    The command gets them as `overrides`, the settings that they stand for.
    """
    fields = {
        name: field
        for name, field in GenerationDefaults.model_fields.items()
        if name not in left_out
    }
    options = [_option(name, field) for name, field in fields.items()]
    if "lora" in fields:
        options.append(_keyword("lora_scale", LoraScaleOption))
    options += [_keyword("offload", OffloadOption), _keyword("settings", SetOption)]

    def overrides(given: dict[str, Any]) -> dict[str, Any]:
        settings = parse_overrides(given.pop("settings") or [])
        named = {"model.offload": given.pop("offload"), **_generation_settings(given)}
        named = {name: value for name, value in named.items() if value is not None}
        return {**settings, **named}

    return _adding(options, "overrides", overrides)


def with_clip_options(command: Command) -> Command:
    """Add an option for each field of a job without a default to a command.

    The command gets those that were given as `fields`.
    """
    fields = {
        name: field
        for name, field in JOB_FIELDS.items()
        if name not in GenerationDefaults.model_fields and name != "id"
    }
    options = [_option(name, field) for name, field in fields.items()]

    def given_fields(given: dict[str, Any]) -> dict[str, Any]:
        return {
            name: _json_object(name, value) if kind_of(fields[name]) == "object" else value
            for name, value in given.items()
            if value is not None
        }

    return _adding(options, "fields", given_fields)(command)


def ray_address(address: str | None) -> str | None:
    """The cluster to join: --address, else RAY_ADDRESS, else None for this machine."""
    return address or os.environ.get("RAY_ADDRESS")


def check_output(output: str) -> str:
    """An output as workers will find it. Raises RequestError for a Ray job's temporary folder."""
    relative = "://" not in output and not os.path.isabs(os.path.expanduser(output))
    if relative and "runtime_resources" in Path.cwd().parts:
        raise RequestError(
            "output: must be an absolute path or a URL in a Ray job, whose working folder is "
            f"removed after it, got {output!r}"
        )
    return absolute(output)


def absolute(address: str) -> str:
    """A local path from here, so that workers with another folder find it; URLs as they are."""
    return address if "://" in address else os.path.abspath(os.path.expanduser(address))


def lora_address(lora: str) -> str:
    """An adapter as workers will find it: the name of one that ships, else as `absolute`."""
    return lora if lora in shipped_loras() else absolute(lora)


# ---------------------------------------------------------------------------- options of fields

_TYPES: dict[Kind, type] = {
    "text": str,
    "integer": int,
    "number": float,
    "boolean": bool,
    "lora": str,
    "object": str,
}


def _option(name: str, field: FieldInfo) -> inspect.Parameter:
    """The option for a field; None where it is not given."""
    kind = kind_of(field)
    help_text = (field.description or "").replace("`", "")
    if kind == "boolean":
        flag = f"--{name.replace('_', '-')}"
        return _keyword(name, Annotated[bool | None, typer.Option(flag, help=help_text)])
    is_choice = kind == "text" and field.annotation is not str and not accepts_none(field)
    annotation: Any = field.annotation if is_choice else _TYPES[kind]
    return _keyword(name, Annotated[annotation | None, typer.Option(help=help_text)])


def _keyword(name: str, annotation: Any) -> inspect.Parameter:
    kind = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(name, kind, default=None, annotation=annotation)


def _adding(
    options: list[inspect.Parameter], name: str, combine: Callable[[dict[str, Any]], Any]
) -> Callable[[Command], Command]:
    """A decorator that gives a command `options`, and their values combined as `name`."""

    def decorate(command: Command) -> Command:
        signature = inspect.signature(command)
        own = [part for part in signature.parameters.values() if part.name != name]

        @functools.wraps(command)
        def with_options(**given: Any) -> None:
            values = {option.name: given.pop(option.name, None) for option in options}
            command(**given, **{name: combine(values)})

        parameters = [
            part.replace(kind=inspect.Parameter.KEYWORD_ONLY) for part in (*own, *options)
        ]
        with_options.__signature__ = signature.replace(  # type: ignore[attr-defined]
            parameters=parameters
        )
        with_options.__annotations__ = {part.name: part.annotation for part in parameters}
        return with_options

    return decorate


def _generation_settings(given: Mapping[str, Any]) -> dict[str, Any]:
    """Values of options by their settings; an adapter and its scale are one setting."""
    settings = {f"generation.{name}": value for name, value in given.items()}
    scale = settings.pop("generation.lora_scale", None)
    lora = settings.get("generation.lora")
    if lora is not None:
        settings["generation.lora"] = {
            "path": lora_address(lora),
            "scale": 1.0 if scale is None else scale,
        }
    elif scale is not None:
        raise RequestError("--lora-scale: needs --lora; name the adapter, or leave it out")
    return settings


def _json_object(name: str, text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise RequestError(f"--{name}: must be a JSON object, got {text[:80]!r}")
    return value
