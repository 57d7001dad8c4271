"""The fixed prompts of a validation, and the clips to make of them with and without an adapter."""

import os
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from vidgen_ray.addresses import folder_of, read_address
from vidgen_ray.config import Config, LoRA
from vidgen_ray.errors import RequestError
from vidgen_ray.generation.jobs_file import JobRow, JobsFile, check_rows
from vidgen_ray.generation.jobs_rows import RawRow
from vidgen_ray.schema import (
    GenerationRequest,
)

MAX_PROMPTS_BYTES = 10_000_000


@dataclass(frozen=True)
class ValidationPrompts:
    """A prompts file: `requests` as they stand in it, and `jobs`, each of them in both arms."""

    requests: list[JobRow]
    jobs: JobsFile
    trigger: str | None


def find_prompts(source: str) -> str:
    """The address of a prompts file; a bare name such as `validation_prompts` is one that ships."""
    shipped = Path(str(resources.files("vidgen_ray"))) / "configs" / f"{source}.yaml"
    return str(shipped) if "/" not in source and shipped.is_file() else source


def read_prompts(
    address: str, config: Config, lora: LoRA, trigger: str | None = None
) -> ValidationPrompts:
    """Read a prompts file as the jobs of a validation: each prompt without and with the adapter.

    The YAML file holds `prompts`, a list of rows as in a jobs file, and perhaps `trigger`, a word
    that is put before every prompt; the `trigger` given here counts more. Both clips of a prompt
    have its seed. Raises RequestError for a file that cannot be read.
    """
    found, word = read_requests(address, config, trigger)
    arms = (None, lora)
    jobs = [JobRow(job.line, arm_of(job.request, arm)) for arm in arms for job in found.requests]
    return ValidationPrompts(found.requests, JobsFile(jobs, found.problems), word)


def read_requests(
    address: str, config: Config, trigger: str | None = None
) -> tuple[JobsFile, str | None]:
    """The prompts of a file as requests, with what is wrong with the others, and the trigger.

    Raises RequestError for a file that cannot be read.
    """
    tree, lines = _read_yaml(address)
    word = trigger or tree.get("trigger")
    if word is not None and not (isinstance(word, str) and word.strip()):
        raise RequestError(f"prompts: trigger must be a word, got {word!r}")
    rows = [_row(line, fields) for line, fields in zip(lines, tree["prompts"], strict=True)]
    found = check_rows(rows, _folder(address), config)
    jobs = [JobRow(job.line, _with_trigger(job.request, word)) for job in found.requests]
    return JobsFile(jobs, found.problems), word


def _read_yaml(address: str) -> tuple[dict[str, Any], list[int]]:
    """The file's content, and the line each prompt starts on."""
    data = read_address(address, field="prompts", max_bytes=MAX_PROMPTS_BYTES)
    try:
        tree = yaml.safe_load(data)
        node = yaml.compose(data, yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise RequestError(f"prompts: {address} is not YAML: {error}") from None
    if not isinstance(tree, dict) or not isinstance(tree.get("prompts"), list):
        raise RequestError(f"prompts: {address} must hold `prompts:` with a list of rows")
    if not tree["prompts"]:
        raise RequestError(f"prompts: {address} lists none; write id, image and prompt of some")
    if unknown := sorted(map(str, tree.keys() - {"prompts", "trigger"})):
        raise RequestError(f"prompts: {address} may hold prompts and trigger, got {unknown}")
    assert isinstance(node, yaml.MappingNode)
    rows = next(value for key, value in node.value if key.value == "prompts")
    return tree, [row.start_mark.line + 1 for row in rows.value]


def _folder(address: str) -> str:
    # `configs/` may be a symbolic link, from which `..` leads elsewhere.
    return folder_of(address if "://" in address else os.path.realpath(address))


def _row(line: int, fields: Any) -> RawRow:
    if not isinstance(fields, dict):
        raise RequestError(f"prompts: line {line} must hold id, image and prompt, got {fields!r}")
    fields = {str(name): value for name, value in fields.items()}
    if "lora" in fields:
        raise RequestError(f"prompts: line {line}: lora is what is validated; leave it out")
    if len(str(fields.get("id"))) > 100:
        raise RequestError(f"prompts: line {line}: id must have at most 100 characters")
    return RawRow(line, fields)


def arm_of(request: GenerationRequest, lora: LoRA | None) -> GenerationRequest:
    """The request of one arm."""
    side = "without" if lora is None else "with"
    return request.model_copy(
        update={
            "id": f"{request.id}.{side}",
            "lora": lora,
            "metadata": {**request.metadata, "adapter": side},
        }
    )


def _with_trigger(request: GenerationRequest, trigger: str | None) -> GenerationRequest:
    if trigger is None or trigger.lower() in request.prompt.lower():
        return request
    return request.model_copy(update={"prompt": f"{trigger} {request.prompt}"})
