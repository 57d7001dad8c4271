"""The layouts that trainers use are read as they are."""

import json
import os
from pathlib import Path

import pytest

from vidgen_ray.datasets.importing import ImportArguments, ImportReport, import_dataset
from vidgen_ray.datasets.metadata import read_metadata
from vidgen_ray.errors import DatasetError
from vidgen_ray.schema import Clip


def run(source: Path, **options: str) -> tuple[ImportReport, list[Clip]]:
    output = source.parent / "out.jsonl" if source.is_dir() else source.parent.parent / "out.jsonl"
    arguments = ImportArguments("folder", str(source), str(output), **options)  # type: ignore[arg-type]
    return import_dataset(arguments), list(read_metadata(str(output)))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "clips"
    (folder / "videos").mkdir(parents=True)
    for name in ("a.mp4", "b.mov"):
        (folder / "videos" / name).touch()
    return folder


def found(clips: list[Clip]) -> list[tuple[str, str]]:
    return [(Path(clip.video).name, clip.prompt) for clip in clips if clip.missing is None]


BOTH = [("a.mp4", "scene a"), ("b.mov", "scene b")]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("metadata.csv", "video,caption\nvideos/a.mp4,scene a\nvideos/b.mov,scene b\n"),
        ("metadata.csv", "file_name,text\na.mp4,scene a\nb.mov,scene b\n"),
        ("metadata.csv", "prompt,video\nscene a,videos/a.mp4\nscene b,./videos/b.mov\n"),
        ("metadata.csv", "Video;Caption\r\nvideos\\a.mp4;scene a\r\nvideos\\b.mov;scene b\r\n"),
        ("metadata.csv", "sep=\t\nfile_name\ttext\na.mp4\tscene a\nb.mov\tscene b\n"),
        ("metadata.csv", "video,caption\nC:\\Users\\me\\a.mp4,scene a\nD:\\b.mov,scene b\n"),
        ("metadata.csv", "video,caption\n/home/me/clips/a.mp4,scene a\n/b.mov,scene b\n"),
        (
            "metadata.jsonl",
            '{"file_name": "videos/a.mp4", "caption": "scene a"}\n'
            '\n{"video": "videos/b.mov", "prompt": "scene b"}\n',
        ),
        (
            "metadata.json",
            '[{"file_path": "videos/a.mp4", "text": "scene a", "type": "video"},'
            ' {"file_path": "videos/b.mov", "text": "scene b", "type": "video"}]',
        ),
        (
            "videos2caption.json",
            '[{"path": "a.mp4", "cap": ["scene a"]}, {"path": "b.mov", "cap": ["scene b"]}]',
        ),
    ],
)
def test_tables(name: str, text: str, folder: Path) -> None:
    (folder / name).write_text(text)
    report, clips = run(folder, licence="CC0")
    assert found(clips) == BOTH
    assert {clip.source.licence for clip in clips} == {"CC0"}
    assert not report.rejected
    _, clips = run(folder / name)
    assert found(clips) == BOTH


def test_aligned_lists_with_images(folder: Path) -> None:
    (folder / "prompts.txt").write_text("scene a\nscene b\n")
    (folder / "videos.txt").write_text("videos/a.mp4\nvideos/b.mov")
    (folder / "images.txt").write_text("images/a.png\nimages/b.png\n")
    _, clips = run(folder)
    assert found(clips) == BOTH
    assert [clip.image for clip in clips] == [str(folder / f"images/{n}.png") for n in "ab"]
    (folder / "videos.txt").write_text("videos/a.mp4\n")
    with pytest.raises(DatasetError, match="one line a clip each"):
        run(folder)
    (folder / "videos.txt").unlink()
    with pytest.raises(DatasetError, match=r"no videos\.txt beside it"):
        run(folder)


def test_lines_of_lists_end_at_line_feeds_alone(folder: Path) -> None:
    for separator in "\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029":
        prompts = f"push in{separator}to the hall\r\nscene b\n"
        (folder / "prompts.txt").write_text(prompts, encoding="utf-8", newline="")
        (folder / "videos.txt").write_text("videos/a.mp4\nvideos/b.mov\n")
        _, clips = run(folder)
        assert found(clips) == [("a.mp4", f"push in{separator}to the hall"), BOTH[1]]


def test_a_table_keeps_span_category_url_and_licence(folder: Path) -> None:
    (folder / "metadata.csv").write_text(
        "video;caption;start_s;end_s;category;url;license\n"
        "a.mp4;scene a;1,5;0:00:08.25;news;https://example.org/a;CC0\n"
        "b.mov;scene b;;;;;\n"
        "b.mov;scene b;nine;12;;;\n"
        "b.mov;scene b;9;3;;;\n"
    )
    report, clips = run(folder)
    assert (clips[0].start_s, clips[0].end_s) == (1.5, 8.25)
    source = clips[0].source
    assert (source.category, source.url) == ("news", "https://example.org/a")
    assert [clip.source.licence for clip in clips] == ["CC0", "not stated"]
    assert (clips[1].start_s, clips[1].end_s) == (None, None)
    assert report.rejected == {"has no valid time span": 2}


def test_an_image_on_a_windows_drive_is_rejected_with_the_reason(folder: Path) -> None:
    rows = "video,caption,image\na.mp4,scene a,C:\\p\\a.png\nb.mov,scene b,images\\b.png\n"
    (folder / "metadata.csv").write_text(rows)
    report, clips = run(folder)
    assert report.rejected == {"names an image by a Windows drive; use a relative path": 1}
    assert [clip.image for clip in clips] == [str(folder / "images/b.png")]


def test_a_text_beside_each_clip(folder: Path) -> None:
    (folder / "videos/a.txt").write_text("scene a\n")
    (folder / "videos/c.MP4").touch()
    (folder / "videos/c.txt").write_text("")
    report, clips = run(folder)
    assert found(clips) == BOTH[:1]
    assert clips[0].id == "videos/a#0"
    assert report.rejected == {"has no caption file beside it": 1, "has no caption": 1}


def test_rows_that_are_no_clips_are_rejected(folder: Path) -> None:
    rows = [
        {"file_path": "videos/a.mp4", "text": "scene a", "type": "video"},
        {"file_path": "a.png", "text": "a picture", "type": "image"},
        {"file_path": "a.png", "text": "a picture"},
        {"text": "no file"},
        {"file_path": "videos/b.mov"},
        {"path": "videos/b.mov", "cap": ["one", "two"]},
        "nonsense",
        {"file_path": "videos/gone.mp4", "text": "lost"},
    ]
    (folder / "metadata.json").write_text(json.dumps(rows))
    report, clips = run(folder)
    assert [clip.id for clip in clips] == [
        "videos/a#0",
        "videos/b#5.0",
        "videos/b#5.1",
        "videos/gone#7",
    ]
    assert sum(report.rejected.values()) == 5
    assert "no single file named videos/gone.mp4" in str(clips[-1].missing)


def test_a_folder_of_nothing_known_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "clips"
    folder.mkdir()
    (folder / "notes.md").touch()
    with pytest.raises(DatasetError, match="must hold one of"):
        run(folder)


@pytest.mark.skipif("VIDGEN_TEST_DATA" not in os.environ, reason="VIDGEN_TEST_DATA is not set")
def test_a_real_finetrainers_file_with_its_video_elsewhere(tmp_path: Path) -> None:
    data = Path(os.environ["VIDGEN_TEST_DATA"])
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos/hiker.mp4").symlink_to(data / "clips/ft_hiker.mp4")
    output = str(tmp_path / "m.jsonl")
    source = str(data / "annotations/finetrainers")
    import_dataset(ImportArguments("folder", source, output, videos=str(tmp_path)))
    (clip,) = read_metadata(output)
    assert clip.missing is None
    assert Path(clip.video).stat().st_size > 0
