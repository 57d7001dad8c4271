"""One clip in this process: generated, scored, judged and recorded as a batch would."""

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

from pydantic import ValidationError

from vidgen_ray.config import Config, describe
from vidgen_ray.errors import RequestError
from vidgen_ray.generation.artifacts import ArtifactStore
from vidgen_ray.generation.attempt import Attempt, generate, prepare, score, with_content_hash
from vidgen_ray.generation.clip_engine import OnStep
from vidgen_ray.generation.commit import commit_or_retry
from vidgen_ray.model.checkpoint import open_checkpoint
from vidgen_ray.request import resolve_request
from vidgen_ray.schema import GenerationRecord


def generate_clip(
    fields: Mapping[str, Any],
    output: Path,
    config: Config,
    on_step: OnStep | None = None,
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
    prepared = prepare(Attempt(request, 1, f"single-{uuid4().hex[:6]}"))
    from vidgen_ray.generation.engine import Engine  # torch and diffusers, which take seconds

    engine = Engine(config)
    prepared = with_content_hash(prepared, config, engine.checkpoint)
    num_threads = os.cpu_count() or 1
    while True:
        scored = score(generate(engine, prepared, on_step), config.quality, num_threads)
        result = commit_or_retry(store, scored, config.quality.max_attempts)
        if result.retry is None:
            return result.record
        prepared = replace(prepared, attempt=result.retry)
