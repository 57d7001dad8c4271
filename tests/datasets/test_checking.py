"""A check finds what is wrong with each clip, once a clip, and removes no row."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from tests.datasets.scenes import make_scene, write
from vidgen_ray.config import CheckConfig, Config
from vidgen_ray.datasets import check_driver as checking
from vidgen_ray.datasets.check_driver import CheckArguments, CheckSummary, run_check
from vidgen_ray.datasets.metadata import read_metadata, write_metadata
from vidgen_ray.errors import DatasetError
from vidgen_ray.schema import Clip, ClipSource

pytestmark = pytest.mark.usefixtures("ray_cluster")

SOURCE = ClipSource(dataset="folder", licence="own")


def check(metadata: Path, output: Path | None = None) -> CheckSummary:
    arguments = CheckArguments(str(metadata), str(output or metadata), Config())
    return run_check(arguments, Console(quiet=True))


def test_marks_are_beside_every_row_and_on_the_page(tmp_path: Path) -> None:
    scene = make_scene(0, 60, 4)
    write(tmp_path / "good.mp4", scene[:49])
    write(tmp_path / "again.mp4", scene[:49])
    write(tmp_path / "long.mp4", np.concatenate([scene, make_scene(1, 60, 4)]))
    (tmp_path / "broken.mp4").write_bytes(b"nothing")
    rows = [
        {"id": "good#0", "video": "good.mp4"},
        {"id": "good#1", "video": "good.mp4"},
        {"id": "again#0", "video": "again.mp4"},
        {"id": "long#0", "video": "long.mp4", "start_s": 0.0, "end_s": 3.0},
        {"id": "long#1", "video": "long.mp4", "start_s": 6.0, "end_s": 14.0},
        {"id": "broken#0", "video": "broken.mp4"},
        {"id": "gone#0", "video": "gone.mp4"},
        {"id": "later#0", "video": "later.mp4", "missing": "not fetched"},
    ]
    clips = [Clip.model_validate({"prompt": "a", "source": SOURCE, **row}) for row in rows]
    path = tmp_path / "metadata.jsonl"
    write_metadata(str(path), clips)
    summary = check(path)
    found = {clip.id: clip for clip in read_metadata(str(path))}
    assert list(found) == [clip.id for clip in clips]
    assert [clip.prompt for clip in found.values()] == ["a"] * len(rows)
    marks = {name: clip.check.marks for name, clip in found.items() if clip.check}
    assert marks == {
        "good#0": [],
        "good#1": [],
        "again#0": ["duplicate"],
        "long#0": ["short"],
        "long#1": ["cut"],
        "broken#0": ["undecodable"],
        "gone#0": ["undecodable"],
    }
    again = found["again#0"].check
    assert again is not None
    assert again.duplicate_of == "good#0"
    assert (summary.num_rows, summary.num_clips, summary.num_missing_rows) == (8, 6, 1)
    assert summary.marks["undecodable"] == 2
    page = Path(summary.page).read_text()
    assert "1 of 6 clips without a mark" in page
    assert "like good#0" in page
    assert "cuts at 7.50 s" in page


def test_a_second_check_gives_the_same_file(tmp_path: Path) -> None:
    write(tmp_path / "a.mp4", make_scene(0, 49, 4))
    clip = Clip(id="a#0", video="a.mp4", prompt="a", source=SOURCE)
    write_metadata(str(tmp_path / "m.jsonl"), [clip])
    check(tmp_path / "m.jsonl", tmp_path / "once.jsonl")
    check(tmp_path / "once.jsonl", tmp_path / "twice.jsonl")
    assert (tmp_path / "once.jsonl").read_bytes() == (tmp_path / "twice.jsonl").read_bytes()
    (before,) = read_metadata(str(tmp_path / "m.jsonl"))
    assert before.check is None


def test_a_file_of_rows_without_videos_is_checked_too(tmp_path: Path) -> None:
    clip = Clip(id="a#0", video="a.mp4", prompt="a", source=SOURCE, missing="not fetched")
    write_metadata(str(tmp_path / "m.jsonl"), [clip])
    assert check(tmp_path / "m.jsonl").num_clips == 0
    with pytest.raises(DatasetError, match="no such file"):
        check(tmp_path / "none.jsonl")


@pytest.mark.chaos
def test_a_file_that_kills_its_process_costs_no_other_clip(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    probe_row = checking._probe_row

    def probe_or_die(row: dict[str, Any], settings: CheckConfig) -> dict[str, Any]:
        if row["address"].endswith("deadly.mp4"):
            os._exit(1)
        return probe_row(row, settings)

    monkeypatch.setattr(checking, "_probe_row", probe_or_die)
    monkeypatch.setattr(checking, "_MAX_BLOCKS", 2)  # so that others share the deadly one's block
    names = ["a", "deadly", "b", "c"]
    for seed, name in enumerate(names):
        write(tmp_path / f"{name}.mp4", make_scene(seed, 49, 4))
    clips = [Clip(id=name, video=f"{name}.mp4", prompt="a", source=SOURCE) for name in names]
    write_metadata(str(tmp_path / "m.jsonl"), clips)
    summary = check(tmp_path / "m.jsonl")
    assert summary.marks == {"undecodable": 1}
    found = {clip.id: clip.check for clip in read_metadata(str(tmp_path / "m.jsonl"))}
    deadly = found["deadly"]
    assert deadly is not None
    assert deadly.reason == "the process that decoded it died"


@pytest.mark.skipif("VIDGEN_TEST_DATA" not in os.environ, reason="VIDGEN_TEST_DATA is not set")
def test_real_clips(tmp_path: Path) -> None:
    folder = Path(os.environ["VIDGEN_TEST_DATA"]) / "clips"
    names = ["cog_1.mp4", "decord_corrupted.mp4", "decord_rotate90.mov", "nasa_13013.mp4"]
    clips = [Clip(id=name, video=str(folder / name), prompt="a", source=SOURCE) for name in names]
    write_metadata(str(tmp_path / "m.jsonl"), clips)
    check(tmp_path / "m.jsonl")
    found = {clip.id: clip.check for clip in read_metadata(str(tmp_path / "m.jsonl"))}
    assert all(found.values())
    assert [check.marks for check in found.values() if check] == [
        [],
        ["undecodable"],
        ["short"],
        ["small", "cut"],
    ]
    turned = found["decord_rotate90.mov"]
    assert turned is not None
    assert (turned.width, turned.height) == (320, 568)
