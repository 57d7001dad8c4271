"""From the API's fields to those of a GenerationRequest: adapters, sizes, durations, templates."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vidgen_ray.config import Config
from vidgen_ray.errors import RequestError
from vidgen_ray.generation.templates import expand
from vidgen_ray.request import GenerationRequest
from vidgen_ray.serving.http.problems import invalid
from vidgen_ray.serving.http.request_fields import ApiFields


class ClipSettings:
    """What the fields of a client mean on this server.

    `loras` are the adapters by name, `aliases` other names of the model and its adapters.
    """

    def __init__(
        self, config: Config, model_id: str, loras: dict[str, Path], aliases: Mapping[str, str]
    ) -> None:
        self._config = config
        self._model_id = model_id
        self._loras = loras
        self._aliases = aliases

    def read(self, fields: ApiFields) -> tuple[dict[str, Any], str | None]:
        """The fields of a GenerationRequest that the client set, and the adapter's name.

        Raises ApiError.
        """
        given = fields.given()
        if fields.user is not None:
            given["metadata"] = {"user": fields.user}
        try:
            given = expand(given, self._config.prompt_templates)
        except RequestError as error:
            raise invalid(str(error)) from None
        chosen = {name: given[name] for name in given if name in GenerationRequest.model_fields}
        chosen.pop("lora", None)
        lora = self._lora(fields)
        if lora is not None:
            scale = fields.lora.scale if fields.lora else 1.0
            chosen["lora"] = {"path": str(self._loras[lora]), "scale": scale}
        chosen |= _size(fields, given)
        if fields.seconds is not None:
            num_frames = given.get("num_frames", self._config.generation.num_frames)
            chosen["fps"] = fps_of(fields.seconds, num_frames, given.get("fps"))
        return chosen, lora

    def _lora(self, fields: ApiFields) -> str | None:
        """The adapter that `lora` or `model` names; None: the model alone."""
        lora = self._aliases.get(fields.lora.name, fields.lora.name) if fields.lora else None
        model = self._aliases.get(fields.model or self._model_id, fields.model)
        if lora is not None and lora not in self._loras:
            if not self._loras:
                raise invalid(f"lora: this server has none, got {lora!r}; leave it out")
            raise invalid(f"lora: must be one of {sorted(self._loras)}, got {lora!r}")
        if model in {None, self._model_id}:
            return lora
        if model not in self._loras:
            names = [self._model_id, *sorted(self._loras), *sorted(self._aliases)]
            raise invalid(f"model: must be one of {names}, got {model!r}")
        if lora not in {None, model}:
            raise invalid("model: names another adapter than lora; leave one of them out")
        return model


def fps_of(seconds: str | int, num_frames: int, fps: int | None) -> int:
    """The whole frame rate at which `num_frames` last `seconds`, rounded to a second.

    Raises ApiError with the durations that can be had.
    """
    try:
        wanted = float(seconds)
    except ValueError:
        wanted = 0.0
    if not (wanted.is_integer() and wanted >= 1):
        got = str(seconds)[:80]
        raise invalid(f"seconds: must be a whole number such as 6, got {got!r}")
    rates = range(1, 61) if fps is None else [fps]
    best = min(rates, key=lambda rate: abs(num_frames / rate - wanted))
    if whole_seconds(num_frames, best) == wanted:
        return best
    possible = sorted({whole_seconds(num_frames, rate) for rate in rates} - {0})
    at = "" if fps is None else f" at fps {fps}"
    raise invalid(
        f"seconds: {num_frames} frames last one of {possible} s{at}, got {wanted:.0f}; "
        "choose one of these, or set fps alone"
    )


def whole_seconds(num_frames: int, fps: int) -> int:
    """The duration of a clip, rounded."""
    return int(num_frames / fps + 0.5)


def _size(fields: ApiFields, given: Mapping[str, Any]) -> dict[str, int]:
    if fields.size is None:
        return {}
    size = dict(zip(("width", "height"), map(int, fields.size.split("x")), strict=True))
    if any(given.get(name, value) != value for name, value in size.items()):
        raise invalid("size: must agree with width and height; send one of them")
    return size
