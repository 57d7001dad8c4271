"""metadata.jsonl is read with every problem named, written whole, and can be moved."""

import shutil
from pathlib import Path

import pytest

from vidgen_ray.datasets.metadata import read_metadata, write_metadata
from vidgen_ray.errors import DatasetError
from vidgen_ray.schema import Clip, ClipSource

SOURCE = ClipSource(dataset="folder", licence="own")


def make_clip(number: int, **fields: object) -> Clip:
    return Clip.model_validate(
        {"id": f"v{number}#0", "video": f"{number}.mp4", "prompt": "a", "source": SOURCE, **fields}
    )


def test_what_is_written_is_read_back_from_wherever_the_folder_is(tmp_path: Path) -> None:
    here = tmp_path / "here"
    clips = [
        make_clip(1, video=str(here / "videos/1.mp4"), start_s=1.5, end_s=4.0),
        make_clip(2, video="s3://bucket/2.mp4", image=str(here / "2.png"), missing="not fetched"),
        make_clip(3, video=str(tmp_path / "elsewhere/3.mp4")),
    ]
    assert write_metadata(str(here / "metadata.jsonl"), clips) == 3
    assert list(read_metadata(str(here / "metadata.jsonl"))) == clips
    there = tmp_path / "there"
    shutil.move(here, there)
    videos = [clip.video for clip in read_metadata(str(there / "metadata.jsonl"))]
    assert videos == [str(there / "videos/1.mp4"), clips[1].video, clips[2].video]


def test_every_wrong_line_is_named_after_the_sound_ones(tmp_path: Path) -> None:
    path = tmp_path / "metadata.jsonl"
    lines = [make_clip(number).model_dump_json() for number in range(4)]
    lines[1] = '{"id": "x"}'
    lines[2] = make_clip(9, start_s=2.0, end_s=3.0).model_dump_json().replace("3.0", "1.0")
    path.write_text("\n".join([*lines[:2], "", *lines[2:]]) + "\n")
    sound: list[str] = []
    with pytest.raises(DatasetError, match="has 2 invalid lines") as failure:
        sound.extend(clip.id for clip in read_metadata(str(path)))
    assert sound == ["v0#0", "v3#0"]
    assert "line 2: video: required, but missing" in str(failure.value)
    assert "line 4: end_s: must be after start_s, got 2.0 to 1.0" in str(failure.value)


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "metadata.jsonl"
    write_metadata(str(path), [make_clip(1)])
    before = path.read_bytes()

    def broken():  # type: ignore[no-untyped-def]
        yield make_clip(2)
        raise DatasetError("the source ends")

    with pytest.raises(DatasetError, match="the source ends"):
        write_metadata(str(path), broken())
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["metadata.jsonl"]


def test_files_that_are_no_metadata_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="metadata: no such file"):
        list(read_metadata(str(tmp_path / "none.jsonl")))
    (tmp_path / "latin.jsonl").write_bytes(b'{"id": "caf\xe9"}\n')
    with pytest.raises(DatasetError, match="must be UTF-8 text"):
        list(read_metadata(str(tmp_path / "latin.jsonl")))
    (tmp_path / "junk.jsonl").write_text("junk\n" * 1000)
    with pytest.raises(DatasetError, match="20 invalid lines, perhaps more"):
        list(read_metadata(str(tmp_path / "junk.jsonl")))
