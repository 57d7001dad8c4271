"""One clip in this process: generated, scored, judged and recorded as a batch would."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

from pydantic import ValidationError

from vidgen_ray.config import Config, describe
from vidgen_ray.errors import RequestError
from vidgen_ray.generation import attempt as attempts
from vidgen_ray.generation.artifacts import ArtifactStore
from vidgen_ray.generation.content_hash import hash_content
from vidgen_ray.image_io import read_image
from vidgen_ray.model.checkpoint import open_checkpoint
from vidgen_ray.schema import GenerationRecord, resolve_request


def generate_clip(
    fields: Mapping[str, Any],
    output: Path,
    config: Config,
    on_step: Callable[[int, int], None] | None = None,
    *,
    overwrite: bool = False,
) -> GenerationRecord:
    """Make the clip of `fields` (image, prompt, ...) at `output`, its record beside it.

    The id is the output's name without `.mp4`. A rejected clip is made again with another seed,
    up to `quality.max_attempts`. Raises RequestError, EngineError and ArtifactError.
    """
    if output.suffix != ".mp4":
        raise RequestError(f"output: must end in .mp4, got {output}")
    if output.exists() and not overwrite:
        raise RequestError(f"output: {output} exists; choose another name, or use --overwrite")
    try:
        request = resolve_request({"id": output.stem, **fields}, config)
    except ValidationError as error:
        raise RequestError("; ".join(describe(error))) from None
    store = ArtifactStore(str(output.parent))
    store.check_writable()
    open_checkpoint(config.model, weights=False).check_request(request)
    image = read_image(
        request.image, height=request.height, width=request.width, fit=request.image_fit
    )
    from vidgen_ray.generation.engine import Engine  # torch and diffusers, which take seconds
    from vidgen_ray.model.adapters import open_adapter

    engine = Engine(config)
    adapter = open_adapter(request.lora, engine.checkpoint) if request.lora else None
    digest = hash_content(
        request, image.sha256, adapter.sha256 if adapter else None, config, engine.checkpoint
    )
    final = None
    attempt = 0
    while final is None:
        attempt += 1
        record = attempts.with_image(attempts.begin(request, attempt, digest, _run_id()), image)
        generation = engine.generate(attempts.seeded_request(record), on_step, image=image)
        record = attempts.with_generation(record, generation)
        record = attempts.with_score(
            record, generation.video, image.pixels, config.quality, os.cpu_count() or 1
        )
        final = attempts.settle(store, record, generation.video, config.quality.max_attempts)
    return final


def _run_id() -> str:
    return f"single-{uuid4().hex[:6]}"
