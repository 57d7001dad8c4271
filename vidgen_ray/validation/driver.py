"""An adapter's validation: one batch of clips with and without it, and their comparison."""

from dataclasses import dataclass

from rich.console import Console

from vidgen_ray.batch.driver import (
    EXIT_ACCEPTED,
    EXIT_NEEDS_REVIEW,
    BatchArguments,
    make_clips,
)
from vidgen_ray.config import Config, LoRA
from vidgen_ray.errors import ArtifactError
from vidgen_ray.generation.artifacts import ArtifactStore
from vidgen_ray.generation.report import render_report
from vidgen_ray.model.adapters import open_adapter
from vidgen_ray.model.checkpoint import open_checkpoint
from vidgen_ray.schema import BatchSummary
from vidgen_ray.validation.comparison import compare
from vidgen_ray.validation.prompts import read_prompts


@dataclass(frozen=True)
class ValidationArguments:
    """What the user asked for. Addresses are local paths or anything fsspec opens."""

    lora: LoRA
    prompts: str
    output: str
    config: Config
    config_name: str
    trigger: str | None = None
    ray_address: str | None = None


def run_validation(arguments: ValidationArguments, console: Console) -> int:
    """Make the clips that are missing, compare, and write `validation.json` and the report.

    Returns 0 where the adapter passes, 3 where it fails. Raises what `run_batch` raises. The same
    call afterwards goes on where it stopped.
    """
    # One attempt alone: a retry has another seed, and seeds must be the same on both sides.
    quality = arguments.config.quality.model_copy(update={"max_attempts": 1})
    config = arguments.config.model_copy(update={"quality": quality})
    open_adapter(arguments.lora, open_checkpoint(config.model, weights=False))
    prompts = read_prompts(arguments.prompts, config, arguments.lora, arguments.trigger)
    batch = BatchArguments(
        jobs=arguments.prompts,
        output=arguments.output,
        config=config,
        config_name=arguments.config_name,
        retry_failed=True,
        ray_address=arguments.ray_address,
    )
    make_clips(prompts.jobs, batch, console)
    store = ArtifactStore(arguments.output)
    data = store.read("summary.json")
    if data is None:
        raise ArtifactError(f"output: {arguments.output} has lost its summary.json; run again")
    summary = BatchSummary.model_validate_json(data)
    validation = compare(prompts, store, quality.min_temporal_score, summary.run_id)
    store.write("validation.json", (validation.model_dump_json(indent=2) + "\n").encode())
    records = store.read_records()
    mine = [records[job.request.id] for job in prompts.jobs.requests if job.request.id in records]
    page = render_report(mine, summary, quality.min_temporal_score, validation)
    store.write("index.html", page.encode())
    for prompt in validation.prompts:
        for reason in prompt.reasons:
            console.print(f"{prompt.id}: {reason}", markup=False, highlight=False, soft_wrap=True)
    verdict = f"{'PASS' if validation.passed else 'FAIL'}: {validation.verdict}"
    console.print(verdict, markup=False, highlight=False, soft_wrap=True)
    return EXIT_ACCEPTED if validation.passed else EXIT_NEEDS_REVIEW
