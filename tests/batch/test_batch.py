"""A batch makes every clip once, keeps what it made, and says what is wrong."""

import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from rich.console import Console

from tests.support.tiny_model import LENIENT
from vidgen_ray.batch.driver import BatchArguments, run_batch
from vidgen_ray.config import load_config
from vidgen_ray.errors import ArtifactError, ConfigError, EngineError, RequestError
from vidgen_ray.schema import BatchSummary, GenerationRecord, RunStatus, attempt_seed
from vidgen_ray.video_io import read_video

STRICT = {"quality.min_temporal_score": 1.0, "quality.max_texture_change": 1e-6}

pytestmark = pytest.mark.usefixtures("ray_cluster")


class Desk:
    """A folder with photos, a jobs file, and the batches run on it."""

    def __init__(self, folder: Path, overrides: dict[str, object]) -> None:
        self.folder = folder
        self.output = folder / "out"
        self.overrides = overrides
        self.said = ""

    def add_photo(self, name: str, shade: int) -> str:
        Image.linear_gradient("L").resize((96, 64)).point(lambda v: (v + shade) % 256).save(
            self.folder / name
        )
        return name

    def write_jobs(self, *rows: dict[str, Any] | str) -> None:
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        (self.folder / "jobs.jsonl").write_text("\n".join(lines) + "\n")

    def run(self, overrides: dict[str, object] | None = None, **options: Any) -> int:
        console = Console(file=io.StringIO(), width=200)
        arguments = BatchArguments(
            jobs=str(self.folder / "jobs.jsonl"),
            output=str(self.output),
            config=load_config("nano", {**self.overrides, **LENIENT, **(overrides or {})}),
            config_name="nano",
            **options,
        )
        try:
            return run_batch(arguments, console)
        finally:
            self.said = console.file.getvalue()  # type: ignore[attr-defined]

    def record(self, clip_id: str) -> GenerationRecord:
        return GenerationRecord.model_validate_json((self.output / f"{clip_id}.json").read_text())

    def files(self) -> dict[str, int]:
        """Modification times of clips and records, by name."""
        paths = [*self.output.glob("*.mp4"), *self.output.glob("*.json")]
        return {
            path.name: path.stat().st_mtime_ns
            for path in paths
            if path.stem not in {"status", "summary"}
        }

    def figures(self) -> dict[str, Any]:
        """The summary, but for the run that wrote it."""
        summary: dict[str, Any] = json.loads((self.output / "summary.json").read_text())
        del summary["run_id"]
        return summary


@pytest.fixture
def desk(tmp_path: Path, tiny_overrides: dict[str, object]) -> Desk:
    return make_desk(tmp_path, tiny_overrides)


@pytest.fixture(scope="module")
def finished_batch(
    tmp_path_factory: pytest.TempPathFactory, tiny_overrides: dict[str, object]
) -> Path:
    desk = make_desk(tmp_path_factory.mktemp("finished"), tiny_overrides)
    assert desk.run() == 0
    return desk.folder


@pytest.fixture
def finished(finished_batch: Path, tmp_path: Path, tiny_overrides: dict[str, object]) -> Desk:
    """A desk whose batch was made, for this test alone."""
    shutil.copytree(finished_batch, tmp_path, dirs_exist_ok=True)
    return Desk(tmp_path, tiny_overrides)


def make_desk(folder: Path, overrides: dict[str, object]) -> Desk:
    desk = Desk(folder, overrides)
    desk.add_photo("a.png", 0)
    desk.add_photo("b.png", 100)
    desk.write_jobs(
        {"id": "a", "image": "a.png", "prompt": "slow push in", "metadata": {"desk": "city"}},
        {"id": "b", "image": "b.png", "prompt": "pan left", "seed": 5},
    )
    return desk


@pytest.mark.smoke
def test_a_batch_leaves_clips_records_manifest_and_report(desk: Desk) -> None:
    assert desk.run() == 0
    for clip_id in ("a", "b"):
        record = desk.record(clip_id)
        assert record.status == "accepted"
        assert record.artifact is not None
        assert record.score is not None
        assert record.model is not None
        assert not record.model.trained
        video = read_video(desk.output / f"{clip_id}.mp4")
        assert video.frames.shape == (9, 64, 96, 3)
        assert video.fps == 8
        assert (desk.output / "thumbnails" / f"{clip_id}.jpg").is_file()
    assert desk.record("b").seed == 5
    assert desk.record("a").request.metadata == {"desk": "city"}  # type: ignore[union-attr]
    lines = (desk.output / "manifest.jsonl").read_text().splitlines()
    manifest = [GenerationRecord.model_validate_json(line) for line in lines]
    assert manifest == [desk.record("a"), desk.record("b")]
    summary = BatchSummary.model_validate_json((desk.output / "summary.json").read_text())
    assert (summary.total, summary.accepted, summary.made) == (2, 2, 2)
    status = RunStatus.model_validate_json((desk.output / "status.json").read_text())
    assert (status.state, status.exit_code, status.running) == ("finished", 0, [])
    page = (desk.output / "index.html").read_text()
    assert "untrained" in page
    assert 'src="a.mp4"' in page or "a.mp4" in page
    assert "weights are untrained" in desk.said
    assert not list((desk.output / ".vidgen").iterdir())


def test_a_rerun_makes_nothing_twice_and_refuses_changed_content(finished: Desk) -> None:
    desk = finished
    before, figures = desk.files(), desk.figures()
    assert desk.run({"batch.max_workers": 2, "model.offload": "model"}) == 0
    assert desk.files() == before
    assert desk.figures() == figures
    assert "0 of 2 clips to make" in desk.said
    desk.write_jobs(
        {"id": "a", "image": "a.png", "prompt": "tilt up", "metadata": {"desk": "city"}},
        {"id": "b", "image": "b.png", "prompt": "pan left", "seed": 5},
    )
    with pytest.raises(RequestError, match=r"id: a \(line 1\) is finished .*\(prompt\)"):
        desk.run()
    desk.write_jobs({"id": "b", "image": "a.png", "prompt": "pan left", "seed": 5})
    with pytest.raises(RequestError, match=r"id: b .*the image, the model"):
        desk.run()
    assert desk.files() == before


@pytest.mark.thorough
def test_a_rerun_makes_the_same_clip_again_where_one_is_gone(finished: Desk) -> None:
    desk = finished
    before = (desk.output / "a.mp4").read_bytes()
    (desk.output / "a.mp4").write_bytes(before[:100])
    assert desk.run() == 0
    assert "1 of 2 clips to make" in desk.said
    assert (desk.output / "a.mp4").read_bytes() == before
    assert desk.figures()["made"] == 3


@pytest.mark.parametrize(("address", "first"), [(None, "checking"), ("auto", "connecting to Ray")])
def test_every_problem_is_reported_before_anything_is_made(
    desk: Desk, tiny_folder: Path, address: str | None, first: str
) -> None:
    (desk.folder / "cut.png").write_bytes((desk.folder / "a.png").read_bytes()[:60])
    desk.write_jobs(
        {"id": "a", "image": "a.png", "prompt": "push in"},
        {"id": "b", "image": "cut.png", "prompt": "push in"},
        {"id": "c", "image": "a.png", "promt": "push in"},
        "{not json",
        {"id": "e", "image": "missing.png", "prompt": "push in"},
        {"id": "f", "image": "a.png", "prompt": "push in", "num_frames": 25},
        {"id": "g", "image": "a.png", "prompt": "push in", "lora": "nowhere"},
        {"id": "h", "image": "a.png", "prompt": "push in " * 300},
    )
    with pytest.raises(RequestError, match=r"--on-invalid skip"):
        desk.run(ray_address=address)
    assert desk.said.startswith(first)
    assert "starting Ray" not in desk.said
    assert desk.files() == {}
    for line, field in [
        (2, "image"),
        (3, "promt"),
        (4, ""),
        (5, "image"),
        (6, "num_frames"),
        (7, "lora"),
        (8, "prompt"),
    ]:
        assert any(
            said.startswith(f"line {line}") and field in said for said in desk.said.splitlines()
        ), (line, field, desk.said)


@pytest.mark.thorough
def test_invalid_rows_can_be_skipped_recorded_and_mended(desk: Desk) -> None:
    rows = [
        {"id": "a", "image": "a.png", "prompt": "push in"},
        {"id": "b", "image": "late.png", "prompt": "push in"},
        {"id": "a", "image": "a.png", "prompt": "the same id"},
    ]
    desk.write_jobs(*rows, "{not json")
    assert desk.run(on_invalid="skip") == 3
    assert desk.record("a").status == "accepted"
    failed = desk.record("b")
    assert failed.status == "failed"
    assert failed.error is not None
    assert "image" in failed.error.message
    assert desk.record("line-4").error is not None
    assert desk.record("line-3").error is not None
    assert "late.png" in (desk.output / "index.html").read_text()
    desk.add_photo("late.png", 50)
    desk.write_jobs(*rows[:2])
    assert desk.run() == 3
    assert desk.record("b").status == "failed"
    assert "--retry-failed" in desk.said
    assert desk.run(retry_failed=True) == 0
    assert desk.record("b").status == "accepted"


@pytest.mark.thorough
def test_a_rejected_clip_gets_other_seeds_and_the_best_is_kept_for_review(desk: Desk) -> None:
    assert desk.run({**STRICT, "quality.max_attempts": 2}) == 3
    record = desk.record("b")
    assert record.status == "needs_review"
    assert [attempt.seed for attempt in record.attempts] == [attempt_seed(5, n) for n in (1, 2)]
    assert len({attempt.seed for attempt in record.attempts}) == 2
    assert record.seed == record.attempts[(record.attempt or 0) - 1].seed
    assert record.reasons
    assert read_video(desk.output / "b.mp4").frames.shape == (9, 64, 96, 3)
    assert not list((desk.output / "attempts").iterdir())
    # Judged less strictly, the kept clip would be another content: thresholds are no content.
    assert desk.run() == 3
    assert "0 of 2 clips to make" in desk.said


@pytest.mark.thorough
def test_a_run_whose_first_clips_all_fail_stops_with_one_error(desk: Desk) -> None:
    with pytest.raises(EngineError, match=r"the first 2 clips all failed.*clip took longer"):
        desk.run({"batch.clip_timeout_s": 1e-6, "batch.max_failures_before_first_success": 2})
    status = RunStatus.model_validate_json((desk.output / "status.json").read_text())
    assert (status.state, status.exit_code) == ("failed", 1)
    assert desk.run(retry_failed=True) == 0


@pytest.mark.thorough
def test_a_model_that_cannot_load_stops_the_run(
    desk: Desk, tiny_folder: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(tiny_folder, broken)
    (broken / "vae" / "diffusion_pytorch_model.safetensors").write_bytes(b"cut short")
    with pytest.raises((EngineError, ConfigError), match=r"model\.checkpoint: .* cannot be"):
        desk.run({"model.checkpoint": str(broken)})
    assert desk.files() == {}


def test_an_output_that_cannot_be_written_is_one_clear_error(desk: Desk) -> None:
    (desk.folder / "file").write_text("in the way")
    desk.output = desk.folder / "file" / "out"
    with pytest.raises(ArtifactError, match=r"output: cannot write .*; check the address"):
        desk.run()


def test_an_output_that_another_run_writes_to_is_refused(finished: Desk) -> None:
    import os
    import subprocess
    import sys
    from datetime import UTC, datetime

    import psutil

    other = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        status = RunStatus(
            run_id="other",
            state="running",
            host=os.uname().nodename,
            pid=other.pid,
            pid_started_at=psutil.Process(other.pid).create_time(),
            started_at=datetime.now(UTC),
            updated_at=datetime.now(UTC),
            **dict.fromkeys(
                ("total", "accepted", "needs_review", "failed", "quarantined", "pending", "made"), 0
            ),
        )
        (finished.output / "status.json").write_text(status.model_dump_json())
        with pytest.raises(ArtifactError, match=rf"in use by run other \(process {other.pid}"):
            finished.run()
    finally:
        other.communicate(b"\n")
    assert finished.run() == 0


@pytest.mark.thorough
def test_a_profile_and_an_adapter_are_recorded(desk: Desk, tiny_adapter: Path) -> None:
    desk.write_jobs(
        {
            "id": "a",
            "image": "a.png",
            "prompt": "push in",
            "mode": "optimized",
            "profile": "low_memory",
            "lora": {"path": str(tiny_adapter), "scale": 0.5},
        }
    )
    assert desk.run() == 0
    record = desk.record("a")
    assert record.model is not None
    assert record.model.vae_tiling
    assert record.adapter is not None
    assert record.adapter.scale == 0.5
    assert record.request is not None
    assert record.request.profile == "low_memory"


def test_a_gpu_that_is_not_there_is_named(desk: Desk) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(ConfigError, match=r"num_gpus_per_worker: 1, but .* --config nano"):
        desk.run({"batch.num_gpus_per_worker": 1})
