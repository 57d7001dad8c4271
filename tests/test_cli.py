"""The commands as people type them: what they print, what they write, how they exit."""

import io
import json
import re
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from unittest.mock import patch

import cv2
import numpy as np
import pytest
from PIL import Image

from vidgen_ray.cli import main
from vidgen_ray.schema import GenerationRecord, Video
from vidgen_ray.video_io import read_video, write_video


@pytest.fixture
def sets(tiny_overrides: dict[str, object]) -> list[str]:
    return [
        word
        for name, value in tiny_overrides.items()
        for word in ("--set", f"{name}={json.dumps(value)}")
    ]


def vidgen(*words: str | Path) -> subprocess.CompletedProcess[str]:
    """The program in this process, which has paid for its imports."""
    typed = ["vidgen", *map(str, words)]
    out, err = io.StringIO(), io.StringIO()
    with (
        patch.object(sys, "argv", typed),
        redirect_stdout(out),
        redirect_stderr(err),
        pytest.raises(SystemExit) as ended,
    ):
        main()
    return subprocess.CompletedProcess(typed, ended.value.code, out.getvalue(), err.getvalue())


def vidgen_process(*words: str | Path) -> subprocess.CompletedProcess[str]:
    """The program as a shell starts it."""
    command = [sys.executable, "-m", "vidgen_ray", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=240)


@pytest.mark.smoke
def test_generate_makes_one_recorded_clip_and_overwrites_only_when_told(
    tmp_path: Path, photo: Path, sets: list[str]
) -> None:
    clip = tmp_path / "clip.mp4"
    words = ["generate", "--image", photo, "--prompt", "push in", "--output", clip]
    words += ["--config", "nano", "--num-inference-steps", "2", *sets]
    made = vidgen_process(*words)
    assert made.returncode in {0, 3}, made.stderr
    assert "untrained" in made.stdout
    record = GenerationRecord.model_validate_json((tmp_path / "clip.json").read_text())
    assert record.id == "clip"
    assert record.request is not None
    assert record.request.num_inference_steps == 2
    assert read_video(clip).frames.shape == (9, 64, 96, 3)
    again = vidgen(*words)
    assert again.returncode == 2
    assert "exists; choose another name, or use --overwrite" in again.stderr
    before = clip.read_bytes()
    assert vidgen(*words, "--overwrite").returncode == made.returncode
    assert clip.read_bytes() == before


def test_generate_prints_score_stage_times_and_vram(
    tmp_path: Path, photo: Path, sets: list[str]
) -> None:
    clip = tmp_path / "clip.mp4"
    words = ["generate", "--image", photo, "--template", "sport", "--output", clip, *sets]
    fields = '{"place": "a rink", "action": "a goal"}'
    words += ["--fields", fields, "--metadata", '{"desk": "sports"}', "--config", "nano"]
    made = vidgen(*words, "--fps", "4", "--lora", "archive-footage")
    assert made.returncode == 2  # an adapter of another model
    made = vidgen(*words, "--fps", "4")
    assert made.returncode in {0, 3}, made.stderr
    printed = " ".join(made.stdout.split())
    assert "temporal score 0." in printed
    for stage in ("load", "text", "image encode", "denoise", "decode", "score", "save"):
        assert re.search(rf"\b{stage} \d+\.\d\b", printed), printed
    assert "peak VRAM: " in printed
    record = GenerationRecord.model_validate_json((tmp_path / "clip.json").read_text())
    assert record.request is not None
    assert record.request.fps == 4
    assert record.request.prompt.startswith("Sport at a rink: a goal;")
    assert record.request.metadata["desk"] == "sports"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--prompt", "p"], "image: required, but missing"),
        (["--image", "a.png"], "prompt: required, but missing"),
        (["--lora-scale", "0.5"], "--lora-scale: needs --lora"),
        (["--fps", "900"], "generation.fps: input should be less than or equal to 60, got 900"),
        (["--metadata", "x"], "--metadata: must be a JSON object, got 'x'"),
        (
            ["--image", "a", "--prompt", "p", "--negative-prompt", "fog"],
            "has no effect at guidance",
        ),
        (["--fields", "{}"], "fields: needs a template"),
    ],
)
def test_generate_names_what_is_wrong(words: list[str], message: str, tmp_path: Path) -> None:
    done = vidgen("generate", "--config", "nano", "--output", tmp_path / "a.mp4", *words)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_score_prints_json_lines_and_names_what_it_cannot_read(tmp_path: Path) -> None:
    texture = np.random.default_rng(0).integers(0, 256, (16, 40, 3), dtype=np.uint8)
    wide = cv2.resize(texture, (320, 128), interpolation=cv2.INTER_CUBIC)
    frames = np.stack([wide[:, 3 * step : 3 * step + 160] for step in range(20)])
    write_video(tmp_path / "pan.mp4", Video(frames, 8))
    write_video(tmp_path / "frozen.mp4", Video(np.repeat(frames[:1], 20, axis=0), 8))
    (tmp_path / "text.mp4").write_text("not a video")
    names = [tmp_path / name for name in ("pan.mp4", "frozen.mp4", "text.mp4", "missing.mp4")]
    result = vidgen("score", *names)
    assert result.returncode == 2
    pan, frozen = map(json.loads, result.stdout.splitlines())
    assert pan["verdict"] == "accepted"
    assert 0.6 <= pan["score"] <= 1
    assert frozen["verdict"] == "rejected"
    assert frozen["reasons"]
    assert "text.mp4" in result.stderr
    assert "missing.mp4" in result.stderr
    assert "Traceback" not in result.stderr
    assert vidgen("score", names[0]).returncode == 0
    assert vidgen("score", names[0], names[1]).returncode == 3
    photos = [tmp_path / name for name in ("own.png", "other.png")]
    for path, pixels in zip(photos, (frames[0], frames[0][::-1]), strict=True):
        Image.fromarray(pixels).save(path)
    own, other = (vidgen("score", names[0], "--image", photo) for photo in photos)
    assert own.returncode == 0
    assert json.loads(own.stdout)["image_match_db"] > 30
    assert other.returncode == 3
    assert "the first frame is not the photo" in other.stdout


def test_doctor_says_whether_a_clip_can_be_made(sets: list[str], tmp_path: Path) -> None:
    healthy = vidgen("doctor", "--config", "nano", *sets)
    assert healthy.returncode == 0, healthy.stdout
    for part in (
        "torch",
        "codecs",
        "H.264",
        "Dual TV-L1",
        "loaded in",
        "offload",
        "can make clips",
    ):
        assert part in healthy.stdout
    sick = vidgen("doctor", "--config", "nano", "--set", f"model.checkpoint={tmp_path}")
    assert sick.returncode == 1
    assert "cannot make clips yet" in sick.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["batch", "missing.jsonl", "--output", "out", "--config", "nano"], "jobs: "),
        (["batch", "x.jsonl", "--output", "o", "--config", "nanoo"], "neither a .yaml file nor"),
        (["batch", "x.jsonl", "--output", "o", "--set", "batch.workers=2"], "no such field"),
        (["score", "x.mp4", "--config", "no.yaml"], "no such file"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = vidgen(*words)
    assert result.returncode == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_dataset_import_says_what_it_wrote_and_under_which_terms(tmp_path: Path) -> None:
    source = Path(__file__).parents[1] / "data/metadata/msr_vtt.json"
    output = tmp_path / "metadata.jsonl"
    words = ["dataset", "import", "msr-vtt", source, "--output", output]
    done = vidgen(*words, "--category", "news", "--limit", "1")
    assert done.returncode == 0, done.stderr
    assert "licence: none stated; research use" in done.stdout
    assert "1 row of 1 clip" in done.stdout
    assert "metadata.to_fetch.csv lists them" in done.stdout
    assert len(output.read_text().splitlines()) == 1
    wrong = vidgen(*words, "--category", "opera")
    assert wrong.returncode == 2
    assert "'news/events/politics', 'sports/actions'" in wrong.stderr
    assert vidgen(*words[:-1], "metadata.json").returncode == 2


def test_dataset_download_says_how_panda70m_is_had() -> None:
    done = vidgen("dataset", "download", "panda70m", "--output", "nowhere")
    assert done.returncode == 2
    assert "wait for the publisher's approval" in done.stdout
    assert not Path("nowhere").exists()


def test_prompts_lists_the_templates_and_their_fields() -> None:
    done = vidgen("prompts")
    assert done.returncode == 0, done.stderr
    assert "Sport at {place}: {action};" in done.stdout
    assert "place: to give" in done.stdout
    assert "camera: default: The camera follows from the side line" in done.stdout
