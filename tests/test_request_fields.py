"""A field of GenerationRequest is accepted, checked and documented by every channel."""

import contextlib
import inspect
import json
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import pytest
from pydantic import TypeAdapter, ValidationError

from vidgen_ray.cli.batch import batch
from vidgen_ray.cli.generate import generate
from vidgen_ray.config import Config, GenerationDefaults, Profile, load_config
from vidgen_ray.generation.job_fields import JOB_FIELDS, KINDS, Kind, server_fields
from vidgen_ray.generation.jobs_file import read_jobs
from vidgen_ray.request import GenerationRequest
from vidgen_ray.serving.http.openapi import form_and_json
from vidgen_ray.serving.http.request_fields import VIDEO_FIELDS
from vidgen_ray.serving.http.responses import VideoResource

DOCS = Path(__file__).parents[1] / "docs"
CONFIG = Config(profiles={"exact": Profile(), "fast": Profile()})
BASE = {"id": "a", "image": "/a.png", "prompt": "rain falls", "mode": "optimized"}

# Values of each kind, of which a field takes the first that is within its limits.
VALUES: dict[Kind, list[Any]] = {
    "text": ["fast"],
    "integer": [32, 1, 0],
    "number": [7.5, 0.5, 1.0],
    "boolean": [True],
    "object": [{"a": 1}],
    "lora": [{"path": "/l.safetensors", "scale": 0.5}],
}
FIELDS = list(GenerationRequest.model_fields)


def value_of(name: str) -> Any:
    if name == "image":
        return "/b.png"  # a relative path would be resolved
    field = GenerationRequest.model_fields[name]
    choices = [*get_args(field.annotation)][::-1] if get_origin(field.annotation) is Literal else []
    rule: TypeAdapter[Any] = TypeAdapter(Annotated[field.annotation, *field.metadata, None])
    for value in (*choices, *VALUES[KINDS[name]]):
        with contextlib.suppress(ValidationError):
            rule.validate_python(value)
            return value
    raise AssertionError(f"add a value that {name} takes")


def effective(request: GenerationRequest, name: str) -> Any:
    value = getattr(request, name)
    return value.model_dump() if name == "lora" else value


@pytest.mark.parametrize("name", FIELDS)
def test_a_jobs_file_takes_it(tmp_path: Path, name: str) -> None:
    (tmp_path / "jobs.jsonl").write_text(json.dumps({**BASE, name: value_of(name)}))
    file = read_jobs(str(tmp_path / "jobs.jsonl"), CONFIG)
    assert file.problems == []
    assert effective(file.requests[0].request, name) == value_of(name)


@pytest.mark.parametrize("name", FIELDS)
def test_a_csv_file_takes_it(tmp_path: Path, name: str) -> None:
    value = value_of(name)
    cells = {**BASE, name: json.dumps(value) if isinstance(value, dict) else str(value)}
    quoted = ['"' + str(cell).replace('"', '""') + '"' for cell in cells.values()]
    (tmp_path / "jobs.csv").write_text(",".join(cells) + "\n" + ",".join(quoted) + "\n")
    file = read_jobs(str(tmp_path / "jobs.csv"), CONFIG)
    assert file.problems == []
    assert effective(file.requests[0].request, name) == value


@pytest.mark.parametrize("name", FIELDS)
def test_a_wrong_value_is_refused_by_its_name(tmp_path: Path, name: str) -> None:
    (tmp_path / "jobs.jsonl").write_text(json.dumps({**BASE, name: [1]}))
    (problem,) = read_jobs(str(tmp_path / "jobs.jsonl"), CONFIG).problems
    assert problem.field == name
    assert "got [1]" in problem.message


@pytest.mark.parametrize("name", server_fields())
def test_the_api_takes_it_as_json_and_as_text_of_a_form(name: str) -> None:
    value = {"name": "press", "scale": 0.5} if name == "lora" else value_of(name)
    as_text = json.dumps(value) if isinstance(value, dict) else str(value)
    for sent in (value, as_text):
        given = VIDEO_FIELDS.model_validate({name: sent}).given()[name]
        assert (given.model_dump() if name == "lora" else given) == value


@pytest.mark.parametrize("name", server_fields())
def test_the_api_has_the_same_limits(name: str) -> None:
    wrong = [*(-1, 10**30), "", "x" * 20_000, [1], True]
    for value in wrong:
        try:
            VIDEO_FIELDS.model_validate({name: value})
        except ValidationError:
            continue
        assert (KINDS[name], value) in {("text", "x" * 20_000), ("text", "")}, value
    described = VIDEO_FIELDS.model_json_schema()["properties"][name]["description"]
    assert described


@pytest.mark.parametrize("name", set(FIELDS) - set(server_fields()))
def test_the_api_refuses_what_only_jobs_have(name: str) -> None:
    with pytest.raises(ValidationError, match="Extra inputs"):
        VIDEO_FIELDS.model_validate({name: value_of(name)})


@pytest.mark.parametrize("name", server_fields())
def test_openapi_describes_it(name: str) -> None:
    content = form_and_json("image")["requestBody"]["content"]
    for kind in ("multipart/form-data", "application/json"):
        assert content[kind]["schema"]["properties"][name]["description"]


@pytest.mark.parametrize("name", server_fields())
def test_the_answer_repeats_it(name: str) -> None:
    assert name in VideoResource.model_json_schema()["properties"]


@pytest.mark.parametrize("name", FIELDS)
def test_the_command_line_has_it(name: str) -> None:
    options = inspect.signature(generate).parameters
    assert name in options or name == "id"  # the output's name
    if name in GenerationDefaults.model_fields:
        assert name in inspect.signature(batch).parameters
        setting = load_config("nano", {f"generation.{name}": value_of(name)})
        assert name in setting.pinned


@pytest.mark.parametrize("name", JOB_FIELDS)
def test_the_documents_describe_it(name: str) -> None:
    assert f"| `{name}` |" in (DOCS / "batch.md").read_text()
    if name in VIDEO_FIELDS.model_fields:
        assert f"| `{name}` |" in (DOCS / "api.md").read_text()


def test_the_tables_of_the_documents_are_up_to_date() -> None:
    from scripts.field_tables import updated

    for path in (DOCS / "batch.md", DOCS / "api.md"):
        text = path.read_text()
        assert updated(path.name, text) == text, "run `python scripts/field_tables.py`"
