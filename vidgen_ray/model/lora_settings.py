"""The settings beside a LoRA's tensors, as diffusers, PEFT and finetrainers write them."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import AliasChoices, BaseModel, Field, ValidationError

from vidgen_ray.model.lora_names import LoraProblem

# Every other initialisation of PEFT changes the base weights too (PiSSA, OLoRA, LoftQ, CorDA).
_PLAIN_INITIALISATIONS = {True, False, None, "gaussian", "eva", "orthogonal"}
# Settings of PEFT under which a layer adds something else than B @ A.
_OTHER_METHODS = {
    "use_dora": "DoRA",
    "use_qalora": "QALoRA",
    "use_bdlora": "block-diagonal LoRA",
    "lora_bias": "a bias",
    "alora_invocation_tokens": "activated LoRA",
    "arrow_config": "Arrow",
    "kasa_config": "KaSA",
    "layer_replication": "replicated layers",
    "target_parameters": "LoRA of single parameters",
    "trainable_token_indices": "trained tokens",
}

_Rank = Annotated[int, Field(ge=1)]
_Alpha = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class PeftSettings(BaseModel):
    """The settings of PEFT's LoraConfig that decide an adapter's strength, with its defaults."""

    r: _Rank = Field(8, validation_alias=AliasChoices("r", "rank"))
    lora_alpha: _Alpha = Field(8, validation_alias=AliasChoices("lora_alpha", "alpha"))
    rank_pattern: dict[str, _Rank] | None = None
    alpha_pattern: dict[str, _Alpha] | None = None
    use_rslora: bool = False

    def of_layer(self, layer: str) -> tuple[int, float]:
        """Rank and alpha of a layer, by PEFT's rule: the first pattern that its name ends in."""
        rank = _match(self.rank_pattern, layer, self.r)
        return rank, _match(self.alpha_pattern, layer, self.lora_alpha)


def read_settings(file: Path | None, metadata: Mapping[str, str]) -> PeftSettings | None:
    """The settings of an adapter, if it has any: those in the metadata of its tensors as diffusers
    writes them, in `file`, PEFT's adapter_config.json, or in the metadata as finetrainers does.

    Raises LoraProblem.
    """
    if metadata.get("lora_adapter_metadata", "{}") not in {"", "{}"}:
        source = "the metadata lora_adapter_metadata"
        tree = _parse(metadata["lora_adapter_metadata"], source)
        prefix = "transformer."
        settings = {
            key.removeprefix(prefix): value for key, value in tree.items() if key.startswith(prefix)
        }
        if not settings:
            raise LoraProblem(
                f"{source} must have keys that begin with `{prefix}`, got {sorted(tree)[:4]}",
                "save it with diffusers' save_lora_weights, or remove the metadata",
            )
        return _check_settings(settings, source)
    if file is not None:
        try:
            text = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise LoraProblem(f"{file.name} cannot be read: {error}", "copy it again") from None
        return _check_settings(_parse(text, file.name), file.name)
    if "lora_config" in metadata:
        source = "the metadata lora_config"
        return _check_settings(_parse(metadata["lora_config"], source), source)
    return None


def _match(pattern: dict[str, Any] | None, layer: str, default: Any) -> Any:
    from peft.utils.other import get_pattern_key

    pattern = pattern or {}
    try:
        return pattern.get(get_pattern_key(list(pattern), layer), default)
    except re.error as error:
        raise LoraProblem(
            f"the adapter's settings hold a pattern that is no regular expression: {error}",
            "export the adapter again",
        ) from None


def _parse(text: str, source: str) -> dict[str, Any]:
    try:
        tree = json.loads(text)
    except ValueError as error:
        raise LoraProblem(f"{source} is not JSON: {error}", "export the adapter again") from None
    if not isinstance(tree, dict):
        raise LoraProblem(f"{source} is not a JSON object", "export the adapter again")
    return tree


def _check_settings(settings: dict[str, Any], source: str) -> PeftSettings:
    methods = [method for name, method in _OTHER_METHODS.items() if settings.get(name)]
    kind = str(settings.get("peft_type") or "LORA").removeprefix("PeftType.")
    if kind != "LORA":
        methods.append(kind)
    start = settings.get("init_lora_weights")
    if isinstance(start, str) and start not in _PLAIN_INITIALISATIONS:
        methods.append(f"{start}, which changes the base weights too")
    if methods:
        raise LoraProblem(
            f"{source} asks for {methods[0]}", "train or export it as a plain LoRA (A and B alone)"
        )
    try:
        return PeftSettings.model_validate(settings)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise LoraProblem(
            f"{source} has {field}: {first['msg']}, got {first['input']!r}",
            "export the adapter again",
        ) from None
