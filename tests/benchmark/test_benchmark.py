"""The benchmark measures what it says beside a plain diffusers call, and leaves a whole record."""

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import CogVideoXImageToVideoPipeline, CogVideoXPipeline, CogVideoXTransformer3DModel
from PIL import Image
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

from vidgen_ray.benchmark.calibration import Trial, as_profile, choose
from vidgen_ray.benchmark.difference import compare
from vidgen_ray.benchmark.runner import run_benchmark
from vidgen_ray.cli import app
from vidgen_ray.config import Config, load_config
from vidgen_ray.errors import RequestError
from vidgen_ray.generation.image_match import psnr_db
from vidgen_ray.model.checkpoint import open_checkpoint
from vidgen_ray.model.flops import count_flops
from vidgen_ray.request import GenerationRequest, resolve_request
from vidgen_ray.schema import ProjectSummary

PROFILES = {"exact": {}, "cached": {"step_cache": 0.9}, "flash": {"attention": "flash3"}}


@pytest.fixture(scope="module")
def config(tiny_overrides: dict[str, object]) -> Config:
    return load_config(
        "nano", {**tiny_overrides, "generation.num_inference_steps": 4, "profiles": PROFILES}
    )


@pytest.fixture
def request_(config: Config, photo: Path) -> GenerationRequest:
    return resolve_request({"id": "a", "image": str(photo), "prompt": "pan left"}, config)


@pytest.fixture(scope="module")
def text_to_video(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another pipeline of diffusers, which takes no image."""
    parts = CogVideoXImageToVideoPipeline.from_pretrained(tiny_folder).components
    config = CogVideoXTransformer3DModel.load_config(tiny_folder / "transformer")
    config |= {"in_channels": 16, "use_learned_positional_embeddings": False}
    transformer = CogVideoXTransformer3DModel.from_config(config)
    folder = tmp_path_factory.mktemp("checkpoints") / "text-to-video"
    CogVideoXPipeline(**{**parts, "transformer": transformer}).save_pretrained(folder)
    return folder


@pytest.mark.thorough
def test_profiles_are_measured_against_a_plain_call(
    config: Config, request_: GenerationRequest, text_to_video: Path
) -> None:
    other = str(text_to_video)
    report, clips = run_benchmark(
        config,
        "tiny",
        request_,
        profiles=["exact", "cached", "flash"],
        alternatives=[other, "no/such-pipeline"],
        repeat=2,
    )
    rows = {row.name: row for row in report.rows}
    assert list(rows) == ["baseline", "exact", "cached", "flash", other, "no/such-pipeline"]
    assert set(clips) == {"baseline", "exact", "cached", other}
    for name in clips:
        row = rows[name]
        assert row.seconds["total"].least <= row.seconds["total"].median
        assert row.clips_per_hour == pytest.approx(3600 / row.seconds["total"].median)
        assert clips[name].video.frames.shape == (9, 64, 96, 3)
    assert set(rows["baseline"].seconds) == {
        "text_s", "image_encode_s", "denoise_s", "decode_s", "total"
    }  # fmt: skip
    assert rows["baseline"].speedup == 1
    assert rows["baseline"].difference is None
    exact = rows["exact"].difference
    assert exact is not None
    assert (exact.latents, exact.ssim) == (0, pytest.approx(1))
    assert exact.psnr_db is None or exact.psnr_db > 80  # the decoder's last digit
    cached = rows["cached"].difference
    assert cached is not None
    assert cached.latents is not None
    assert cached.latents > 0
    assert (rows["cached"].num_computed_steps or 9) < 4
    assert rows["cached"].tflop is not None
    assert rows["cached"].tflop < (rows["exact"].tflop or 0)
    assert "attention: flash3 needs an NVIDIA GPU" in (rows["flash"].error or "")
    assert "cannot be loaded" in (rows["no/such-pipeline"].error or "")


@pytest.mark.slow
def test_a_profile_in_another_dtype_gets_a_baseline_of_its_own(
    config: Config, request_: GenerationRequest
) -> None:
    profiles = {"half": {"dtype": "bfloat16", "num_inference_steps": 2}}
    config = Config.model_validate(
        {**config.model_dump(), "profiles": profiles, "default_profile": "half"}
    )
    report, _ = run_benchmark(config, "tiny", request_, profiles=["half"], repeat=1)
    assert [(row.name, row.dtype, row.num_inference_steps) for row in report.rows] == [
        ("baseline", "float32", 4),
        ("baseline bfloat16", "bfloat16", 4),
        ("half", "bfloat16", 2),
    ]
    assert set(report.matrix_tflop_per_s) == {"float32", "bfloat16"}
    with pytest.raises(RequestError, match=r"profile: must be one of \['half'\], got 'quick'"):
        run_benchmark(config, "tiny", request_, profiles=["quick"])


def test_operations_are_those_of_a_real_pass(config: Config, request_: GenerationRequest) -> None:
    checkpoint = open_checkpoint(config.model)
    flops = count_flops(checkpoint, request_)
    pipeline = CogVideoXImageToVideoPipeline.from_pretrained(checkpoint.folder)
    # The CPU's own attention kernel is one that torch does not count.
    plain = sdpa_kernel(SDPBackend.MATH)
    with FlopCounterMode(display=False) as counter, torch.no_grad(), plain:
        pipeline.transformer(
            hidden_states=torch.randn(2, 3, 32, 8, 12),
            encoder_hidden_states=torch.randn(2, 226, 32),
            timestep=torch.tensor([1, 1]),
        )
    assert flops.step == counter.get_total_flops()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        pipeline.vae.decode(torch.randn(1, 16, 3, 8, 12))
    assert flops.decode == counter.get_total_flops()


def test_differences_are_measured_on_known_pairs() -> None:
    frames = np.full((2, 32, 32, 3), 100, np.uint8)
    brighter = frames + 10
    assert psnr_db(frames, frames) is None
    assert psnr_db(brighter, frames) == pytest.approx(20 * np.log10(255 / 10))
    latents = torch.ones(1, 2, 3)
    difference = compare(brighter, frames, 1.1 * latents, latents)
    assert difference.latents == pytest.approx(0.1)
    assert 0.9 < difference.ssim < 1


@pytest.mark.thorough
def test_the_command_leaves_table_plot_page_clips_and_summary(tmp_path: Path, photo: Path) -> None:
    Image.open(photo).save(tmp_path / "photo.png")
    words = ["benchmark", "--image", str(tmp_path / "photo.png"), "--prompt", "pan left"]
    words += ["--config", "nano", "--random-weights", "--architecture", "tiny", "--repeat", "1"]
    words += ["--num-inference-steps", "2", "--profile", "exact"]
    words += ["--csv", str(tmp_path / "b.csv"), "--summary", str(tmp_path / "summary.json")]
    ran = CliRunner().invoke(app, words)
    assert ran.exit_code == 0, ran.output + repr(ran.exception)
    lines = list(csv.DictReader((tmp_path / "b.csv").open()))
    assert [line["name"] for line in lines] == ["baseline", "exact"]
    assert all(float(line["total_median_s"]) > 0 for line in lines)
    with Image.open(tmp_path / "b.png") as plot:
        assert plot.size[0] > 500
    page = (tmp_path / "b.html").read_text()
    assert "exact" in page
    assert "b.png" in page
    text = (tmp_path / "summary.json").read_text()
    summary = ProjectSummary.model_validate_json(text)
    assert summary.model_dump(mode="json") == json.loads(text)
    for artifact in summary.benchmarks["b"].artifacts:
        assert Path(artifact).is_file()
    (tmp_path / "summary.json").write_text('{"project": "another"}')
    refused = CliRunner().invoke(app, words)
    assert isinstance(refused.exception, RequestError)
    assert "is not a project summary" in str(refused.exception)


def test_calibration_takes_the_fewest_computed_steps_that_pass() -> None:
    config = load_config("nano")
    trials = [
        Trial(20, None, 20, 9.0, None, True),
        Trial(20, 0.1, 15, 7.0, 35.0, True),
        Trial(20, 0.2, 12, 6.0, 31.0, False),
        Trial(20, 0.3, 10, 5.0, 29.4, True),
    ]
    chosen = choose(trials, 30.0)
    assert chosen is trials[1]
    assert choose(trials[2:], 30.0) is None
    text = as_profile("fast", config.profiles["exact"], chosen)
    assert text == "profiles:\n  fast:\n    num_inference_steps: 20\n    step_cache: 0.1\n"


@pytest.mark.thorough
def test_the_command_calibrates_on_the_jobs_of_a_file(
    tmp_path: Path, photo: Path, tiny_overrides: dict[str, object]
) -> None:
    jobs = tmp_path / "jobs.jsonl"
    jobs.write_text(json.dumps({"id": "a", "image": str(photo), "prompt": "pan left"}))
    settings = {**tiny_overrides, "quality.allow_static": True}
    sets = [
        word
        for name, value in settings.items()
        for word in ("--set", f"{name}={json.dumps(value)}")
    ]
    words = ["calibrate", str(jobs), "--config", "nano", "--profile", "exact", *sets]
    words += ["--steps", "4", "--thresholds", "0,0.5", "--output", str(tmp_path / "p.yaml")]
    words += ["--set", "generation.num_inference_steps=4"]
    ran = CliRunner().invoke(app, words)
    assert ran.exit_code == 0, ran.output + repr(ran.exception)
    off = re.search(r"4 steps, step_cache off: 4 computed, (\S+)(?: dB)?, same verdict", ran.output)
    assert off
    assert off[1] == "equal" or float(off[1]) > 80  # the decoder's last digit
    assert (tmp_path / "p.yaml").read_text() in ran.output + "\n"
    wrong = CliRunner().invoke(app, ["calibrate", str(jobs), "--steps", "x", "--config", "nano"])
    assert "steps: must be numbers" in str(wrong.exception)
