"""Templates become prompts, leave their trace, and are refused with a list of what there is."""

import json
from pathlib import Path
from typing import Any

import pytest

from vidgen_ray.config import Config, load_config, shipped_configs
from vidgen_ray.errors import ConfigError, RequestError
from vidgen_ray.generation.jobs_file import JobsFile, read_jobs
from vidgen_ray.generation.templates import expand, load_templates
from vidgen_ray.model.checkpoint import open_checkpoint
from vidgen_ray.schema import resolve_request


def read(tmp_path: Path, *rows: dict[str, Any], config: Config | None = None) -> JobsFile:
    path = tmp_path / "jobs.jsonl"
    path.write_text("\n".join(json.dumps({"id": "a", "image": "a.png", **row}) for row in rows))
    return read_jobs(str(path), config or Config())


STREET = {"template": "street_report", "fields": {"place": "Lyon", "subject": "a tram stops"}}


def test_a_template_with_its_fields_is_the_prompt_and_is_recorded(tmp_path: Path) -> None:
    (job,) = read(tmp_path, {**STREET, "metadata": {"desk": "news"}}).requests
    assert job.request.prompt == (
        "Street report from Lyon, in daylight: a tram stops; people and traffic pass behind. "
        "Handheld camera that keeps its distance."
    )
    assert job.request.metadata == {
        "desk": "news",
        "template": {
            "name": "street_report",
            "fields": {
                "place": "Lyon",
                "conditions": "in daylight",
                "subject": "a tram stops",
                "camera": "Handheld camera that keeps its distance",
            },
        },
    }


def test_a_prompt_beside_a_template_is_added_to_it(tmp_path: Path) -> None:
    (job,) = read(tmp_path, {**STREET, "prompt": "Rain sets in."}).requests
    assert job.request.prompt.endswith("keeps its distance. Rain sets in.")


def test_braces_in_a_value_stay_text(tmp_path: Path) -> None:
    fields = {"place": "{subject}", "subject": "{0.__class__} % {{", "conditions": 5}
    (job,) = read(tmp_path, {"template": "street_report", "fields": fields}).requests
    assert job.request.prompt.startswith("Street report from {subject}, 5: {0.__class__} % {{;")


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"template": "brieffing"}, "template: must be one of ['arrival', 'briefing', "),
        ({"template": "briefing"}, "fields: template briefing misses ['place', 'speaker']"),
        (
            {**STREET, "fields": {"place": "Lyon", "subject": "x", "weather": "rain"}},
            "has no ['weather']; it takes ['place', 'subject'] and, if wanted, ['conditions', ",
        ),
        ({**STREET, "fields": {"place": " ", "subject": ["x"]}}, "['place', 'subject']"),
        ({**STREET, "fields": "Lyon"}, "fields: must be an object"),
        ({"template": 5}, "template: must be text, got 5"),
        ({"fields": {"place": "Lyon"}, "prompt": "x"}, "fields: needs a template"),
        ({**STREET, "metadata": {"template": 1}}, "metadata: must not hold template"),
        ({**STREET, "seed": "x"}, "seed: must be an integer"),
        ({"tempalte": "briefing"}, "did you mean 'template'?"),
    ],
)
def test_what_cannot_be_filled_in_is_refused(
    row: dict[str, Any], words: str, tmp_path: Path
) -> None:
    found = read(tmp_path, row)
    assert not found.requests
    assert words in "\n".join(str(problem) for problem in found.problems)
    assert "prompt" not in {problem.field for problem in found.problems if row.get("template")}


def test_one_mistake_is_told_once(tmp_path: Path) -> None:
    for row in ({**STREET, "fields": 3}, {**STREET, "template": 3}, {**STREET, "template": "x"}):
        assert len(read(tmp_path, row).problems) == 1
    guess = {"tempalte": "street_report", "fields": STREET["fields"]}
    assert [problem.field for problem in read(tmp_path, guess).problems] == ["tempalte"]


def test_csv_files_may_name_templates(tmp_path: Path) -> None:
    path = tmp_path / "jobs.csv"
    fields = '"{""place"": ""a rink"", ""action"": ""a goal""}"'
    path.write_text(f"id,image,template,fields\na,a.png,sport,{fields}\n")
    (job,) = read_jobs(str(path), Config()).requests
    assert job.request.prompt.startswith("Sport at a rink: a goal;")


def test_a_desk_may_have_its_own_templates(tmp_path: Path) -> None:
    own = tmp_path / "desk.yaml"
    own.write_text("skyline:\n  prompt: 'Skyline of {city}.'\n")
    config = Config(prompt_templates=str(own))
    row = {"template": "skyline", "fields": {"city": "Oslo"}}
    (job,) = read(tmp_path, row, config=config).requests
    assert job.request.prompt == "Skyline of Oslo."
    assert read(tmp_path, STREET, config=config).problems

    def refused(text: str, match: str) -> None:
        path = tmp_path / f"{abs(hash(text))}.yaml"
        path.write_text(text)
        with pytest.raises(ConfigError, match=match):
            load_templates(str(path))

    refused("a: {prompt: 'x {place!r}'}", "fields such as {place} only")
    refused("a: {prompt: 'x {a.b}'}", "fields such as {place} only")
    refused("a: {prompt: 'x {open'}", "a.prompt|cannot be read|prompt:")
    refused("a: {prompt: 'x', defaults: {y: z}}", r"the prompt has no fields \['y'\]")
    refused("- a", "templates by name")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_templates(str(tmp_path / "none.yaml"))


def test_the_shipped_templates_fit_the_model_when_filled_in() -> None:
    templates = load_templates(None)
    wanted = {"briefing", "interview", "market_desk", "street_report", "weather", "sport"}
    assert wanted <= set(templates)
    config = load_config("nano")
    checkpoint = open_checkpoint(config.model, weights=False)
    words = "the central station of the capital in heavy rain"
    for name, template in templates.items():
        filled = {"template": name, "fields": dict.fromkeys(template.fields, words)}
        fields = {"id": "a", "image": "a.png", **expand(filled, None)}
        checkpoint.check_request(resolve_request(fields, config))  # at most 226 tokens


def test_shipped_configurations_are_not_mistaken_for_templates() -> None:
    assert shipped_configs() == ["cogvideox_5b_i2v", "nano"]


def test_a_template_is_not_text_to_run() -> None:
    with pytest.raises(RequestError, match="template: must be one of"):
        expand({"template": "{0}"}, None)
