"""An adapter is compared with the model alone, seed by seed, and passes or fails with a reason."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from rich.console import Console
from safetensors.torch import load_file, save_file

from tests.support.tiny_model import LENIENT
from vidgen_ray.config import Config, LoRA, load_config
from vidgen_ray.errors import RequestError
from vidgen_ray.generation.artifacts import ArtifactStore
from vidgen_ray.model.lora_file import WEIGHTS_NAME
from vidgen_ray.schema import Validation
from vidgen_ray.validation.comparison import measure_look
from vidgen_ray.validation.driver import ValidationArguments, run_validation
from vidgen_ray.video_io import read_video

pytestmark = [pytest.mark.thorough, pytest.mark.usefixtures("ray_cluster")]


@pytest.fixture(scope="module")
def config(tiny_overrides: dict[str, object]) -> Config:
    return load_config("nano", tiny_overrides)


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory, photo: Path) -> Path:
    rows = [
        {"id": "hall", "image": str(photo), "prompt": "slow push in", "seed": 5},
        {
            "id": "street",
            "image": str(photo),
            "template": "street_report",
            "fields": {"place": "the harbour", "subject": "a tug crosses"},
        },
    ]
    path = tmp_path_factory.mktemp("prompts") / "prompts.yaml"
    path.write_text(yaml.safe_dump({"trigger": "nightfall", "prompts": rows}))
    return path


def validate(
    config: Config, prompts: Path, lora: Path, output: Path, **options: object
) -> tuple[int, Validation]:
    arguments = ValidationArguments(
        lora=LoRA(path=str(lora)),
        prompts=str(prompts),
        output=str(output),
        config=config,
        config_name="tiny",
        **options,  # type: ignore[arg-type]
    )
    exit_code = run_validation(arguments, Console(quiet=True))
    return exit_code, Validation.model_validate_json((output / "validation.json").read_text())


def lenient(config: Config) -> Config:
    """A model that is not trained makes noise: every verdict but the score's is switched off."""
    settings = {name.removeprefix("quality."): value for name, value in LENIENT.items()}
    quality = config.quality.model_copy(update=settings)
    return config.model_copy(update={"quality": quality})


@pytest.fixture(scope="module")
def run(
    config: Config, prompts: Path, tiny_adapter: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[int, Validation, Path]:
    output = tmp_path_factory.mktemp("validation")
    return *validate(lenient(config), prompts, tiny_adapter, output), output


def test_both_arms_have_the_same_seeds_and_prompts_and_differ_by_the_adapter(
    run: tuple[int, Validation, Path], tiny_adapter: Path
) -> None:
    exit_code, validation, output = run
    assert (exit_code, validation.passed) == (0, True)
    assert validation.trigger == "nightfall"
    assert validation.adapter is not None
    assert [prompt.id for prompt in validation.prompts] == ["hall", "street"]
    records = ArtifactStore(str(output)).read_records()
    assert sorted(records) == ["hall.with", "hall.without", "street.with", "street.without"]
    for prompt in validation.prompts:
        without, with_ = records[prompt.without_id], records[prompt.with_id]
        assert without.seed == with_.seed
        assert without.request
        assert with_.request
        assert without.request.prompt == with_.request.prompt == prompt.prompt
        assert prompt.prompt.startswith("nightfall ")
        assert without.adapter is None
        assert with_.adapter is not None
        assert with_.adapter.sha256 == validation.adapter.sha256
        assert prompt.pixel_difference is not None
        assert prompt.pixel_difference > 0.05
        looks = [
            measure_look(read_video(output / f"{clip_id}.mp4").frames)
            for clip_id in (prompt.without_id, prompt.with_id)
        ]
        assert [prompt.look_without, prompt.look_with] == looks
        assert prompt.score_difference == pytest.approx(
            with_.score.score - without.score.score  # type: ignore[union-attr]
        )
    assert records["hall.with"].seed == 5
    assert "the harbour" in validation.prompts[1].prompt
    assert records["street.with"].request.metadata["template"]["name"] == "street_report"  # type: ignore[union-attr]


def test_the_report_shows_the_pairs_side_by_side(run: tuple[int, Validation, Path]) -> None:
    _, validation, output = run
    page = (output / "index.html").read_text()
    assert validation.verdict in page.replace("&#39;", "'")
    for prompt in validation.prompts:
        pair = page.partition(f'data-pair="{prompt.id}"')[2].partition("</article>")[0]
        assert pair.index(f'src="{prompt.id}.without.mp4"') < pair.index(
            f'src="{prompt.id}.with.mp4"'
        )
        assert f"{prompt.pixel_difference:.2f} grey levels" in pair
        assert prompt.look_without is not None
        assert prompt.look_with is not None
        assert (
            f"{prompt.look_without.colour:.0f} without, {prompt.look_with.colour:.0f} with" in pair
        )


def test_the_same_call_again_makes_nothing_and_says_the_same(
    run: tuple[int, Validation, Path], config: Config, prompts: Path, tiny_adapter: Path
) -> None:
    _, before, output = run
    times = {path: path.stat().st_mtime_ns for path in output.glob("*.mp4")}
    exit_code, after = validate(lenient(config), prompts, tiny_adapter, output)
    assert exit_code == 0
    assert after.prompts == before.prompts
    assert {path: path.stat().st_mtime_ns for path in output.glob("*.mp4")} == times
    assert json.loads((output / "summary.json").read_text())["made"] == 4


def test_clips_below_the_threshold_fail_the_adapter(
    run: tuple[int, Validation, Path], config: Config, prompts: Path, tiny_adapter: Path
) -> None:
    strict = lenient(config)
    quality = strict.quality.model_copy(update={"min_temporal_score": 1.0})
    strict = strict.model_copy(update={"quality": quality})
    # The clips are there: only the judgement is repeated.
    exit_code, validation = validate(strict, prompts, tiny_adapter, run[2])
    assert (exit_code, validation.passed) == (3, False)
    assert "temporal score" in validation.prompts[0].reasons[0]
    assert validation.verdict.startswith("0 of 2 prompts pass")
    assert ">FAIL</b>" in (run[2] / "index.html").read_text()


@pytest.mark.slow
def test_an_adapter_that_changes_nothing_fails(
    config: Config, prompts: Path, tiny_adapter: Path, tmp_path: Path
) -> None:
    weights = load_file(tiny_adapter / WEIGHTS_NAME)
    idle = {
        key: torch.zeros_like(tensor) if "lora_B" in key else tensor
        for key, tensor in weights.items()
    }
    save_file(idle, tmp_path / "idle.safetensors")
    exit_code, validation = validate(
        lenient(config), prompts, tmp_path / "idle.safetensors", tmp_path / "out"
    )
    assert exit_code == 3
    assert [prompt.pixel_difference for prompt in validation.prompts] == [0.0, 0.0]
    assert "does not act" in validation.verdict


def test_bad_input_is_refused_before_anything_is_made(
    config: Config, prompts: Path, tiny_adapter: Path, tmp_path: Path
) -> None:
    def refused(match: str, text: str | None = None, lora: Path = tiny_adapter) -> None:
        path = prompts
        if text is not None:
            path = tmp_path / "wrong.yaml"
            path.write_text(text)
        with pytest.raises(RequestError, match=match):
            validate(config, path, lora, tmp_path / "out")
        assert not list(tmp_path.glob("out/*.mp4"))

    refused("lora: must be a folder", lora=tmp_path / "nowhere")
    refused("is not YAML", "prompts: [")
    refused("must hold `prompts:`", "- a\n")
    refused("lists none", "prompts: []\n")
    refused("may hold prompts and trigger", "prompts: [{id: a}]\nseeds: 3\n")
    refused("lora is what is validated", "prompts:\n  - {id: a, lora: x}\n")
    refused("trigger must be a word", "trigger: 5\nprompts: [{id: a}]\n")
    row = "prompts:\n  - {id: a, image: a.png, template: nothing}\n"
    refused("1 problem in", row)
