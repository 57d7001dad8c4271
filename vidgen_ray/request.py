"""One request for a clip: its fields, their defaults and its seeds."""

import hashlib
import re
from collections.abc import Mapping
from typing import Any

from pydantic import Field, ValidationInfo, field_validator, model_validator

from vidgen_ray.config import Config, GenerationDefaults

ID_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,119}")

# Files of the output folder that are not records: no clip may take their names.
RESERVED_IDS = frozenset({"status", "summary", "validation"})

_JOBS_ONLY: dict[str, Any] = {"jobs_only": True}  # a client of the server does not set it


class GenerationRequest(GenerationDefaults):
    """One clip to generate, every field effective. `image` is a path or any fsspec address.

    Jobs files, the command line, HTTP, OpenAPI and the tables of the documents take their fields
    from here: annotation, limits, description and, in `json_schema_extra`, `jobs_only`.
    """

    id: str = Field(
        description="Names the output files: letters, digits, `.`, `_`, `-`.",
        json_schema_extra=_JOBS_ONLY,
    )
    image: str = Field(
        min_length=1,
        description="The photo, PNG, JPEG or WebP: a URL or a path, in a jobs file relative to "
        "it. EXIF orientation is applied.",
        json_schema_extra=_JOBS_ONLY,
    )
    prompt: str = Field(
        min_length=1,
        max_length=10_000,
        description="What happens in the clip; up to 226 tokens.",
    )
    seed: int = Field(
        ge=0,
        lt=2**63,
        description="Seed of the first attempt.",
        json_schema_extra={"default": "derived from the id, so a rerun gives the same clip"},
    )
    metadata: dict[str, Any] = Field(
        {}, description="Anything; kept in the record.", json_schema_extra=_JOBS_ONLY
    )

    @field_validator("id")
    @classmethod
    def _id_is_a_file_name(cls, value: str) -> str:
        if not ID_PATTERN.fullmatch(value):
            raise ValueError(
                "must be 1 to 120 letters, digits, '.', '_' or '-', starting with a letter or "
                f"digit, because it names files; got {value!r}"
            )
        if value.lower() in RESERVED_IDS:
            raise ValueError(f"must not be one of {sorted(RESERVED_IDS)}, got {value!r}")
        return value

    @field_validator("prompt")
    @classmethod
    def _prompt_is_not_blank(cls, value: str) -> str:
        if not value.strip():
            raise ValueError("must say what happens in the clip, got only white space")
        return value

    @model_validator(mode="after")
    def _profile_needs_optimized_mode(self) -> "GenerationRequest":
        if self.mode == "baseline" and self.profile is not None:
            raise ValueError(
                f"profile: {self.profile!r} needs mode: optimized; set it or leave profile out"
            )
        return self

    @model_validator(mode="after")
    def _negative_prompt_needs_guidance(self, info: ValidationInfo) -> "GenerationRequest":
        asked = info.context or {}  # what the user set; a record that is read back was checked
        if asked.get("negative_prompt") and self.guidance_scale == 1.0:
            raise ValueError(
                "negative_prompt: has no effect at guidance_scale 1; set guidance_scale above 1, "
                "or leave negative_prompt out"
            )
        return self


def resolve_request(fields: Mapping[str, Any], config: Config) -> GenerationRequest:
    """The effective request for `fields`, which hold only what the user set.

    Precedence: field > command line > profile > configuration file > default. A seed left out is
    derived from the id, so that a rerun gives the same clip. Raises pydantic.ValidationError.
    """
    asked = {**config.pinned, **fields}
    merged = {**config.generation.model_dump(), **asked}
    if merged["mode"] == "optimized":
        merged["profile"] = merged["profile"] or config.default_profile
        if merged["profile"] in config.profiles:
            steps = config.profiles[merged["profile"]].num_inference_steps
            if steps is not None and "num_inference_steps" not in asked:
                merged["num_inference_steps"] = steps
    if merged.get("seed") is None:
        merged["seed"] = derive_seed(str(merged.get("id", "")))
    return GenerationRequest.model_validate(merged, context=asked)


def derive_seed(text: str) -> int:
    """A seed below 2**31 that depends on `text` alone."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1


def attempt_seed(seed: int, attempt: int) -> int:
    """The seed of an attempt, counted from 1; the first one uses the request's own."""
    return seed if attempt == 1 else derive_seed(f"{seed}/{attempt}")
