"""Requests take their fields from the right place, and seeds depend on what they should."""

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from vidgen_ray.config import load_config
from vidgen_ray.request import attempt_seed, derive_seed, resolve_request
from vidgen_ray.schema import ProjectSummary

FIELDS = {"id": "a", "image": "a.png", "prompt": "push in"}


@pytest.mark.smoke
def test_field_beats_command_line_beats_profile_beats_configuration() -> None:
    settings = {"profiles.fast": {"num_inference_steps": 28}, "default_profile": "exact"}
    config = load_config("cogvideox_5b_i2v", settings)
    fast = {**FIELDS, "mode": "optimized", "profile": "fast"}
    assert resolve_request(FIELDS, config).num_inference_steps == 50
    assert resolve_request(fast, config).num_inference_steps == 28
    pinned = load_config("cogvideox_5b_i2v", {**settings, "generation.num_inference_steps": 40})
    assert resolve_request(fast, pinned).num_inference_steps == 40
    assert resolve_request({**fast, "num_inference_steps": 9}, pinned).num_inference_steps == 9


def test_optimized_without_a_profile_means_the_configured_one() -> None:
    config = load_config("nano", {"default_profile": "fast", "generation.mode": "baseline"})
    assert resolve_request({**FIELDS, "mode": "optimized"}, config).profile == "fast"
    assert resolve_request(FIELDS, config).profile is None
    with pytest.raises(ValidationError, match="needs mode: optimized"):
        resolve_request({**FIELDS, "profile": "fast"}, config)


def test_seeds_are_derived_from_the_id_and_the_attempt() -> None:
    config = load_config("nano")
    first = resolve_request(FIELDS, config).seed
    assert first == resolve_request({**FIELDS, "prompt": "pan"}, config).seed == derive_seed("a")
    assert first != resolve_request({**FIELDS, "id": "b"}, config).seed
    assert resolve_request({**FIELDS, "seed": 0}, config).seed == 0
    seeds = [attempt_seed(first, attempt) for attempt in range(1, 50)]
    assert seeds[0] == first
    assert len(set(seeds)) == len(seeds)


@pytest.mark.parametrize("clip_id", ["", "a b", "../a", ".a", "a" * 121, "status", "Summary", "é"])
def test_an_id_must_name_a_file(clip_id: str) -> None:
    with pytest.raises(ValidationError):
        resolve_request({**FIELDS, "id": clip_id}, load_config("nano"))


def test_the_project_summary_keeps_its_schema() -> None:
    text = (Path(__file__).parents[1] / "PROJECT_SUMMARY.json").read_text()
    summary = ProjectSummary.model_validate_json(text)
    assert summary.model_dump(mode="json") == json.loads(text)
    for batch in summary.batches.values():
        assert batch.total == batch.accepted + batch.needs_review + batch.failed + batch.quarantined
        assert batch.clips_per_hour
