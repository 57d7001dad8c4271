"""Annotations in their publishers' formats become rows, and every row left out has a reason."""

import csv
import gzip
import json
import os
import subprocess
import sys
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import fsspec
import pytest

from vidgen_ray.datasets.entries import VideoFile
from vidgen_ray.datasets.importing import ImportArguments, ImportReport, import_dataset
from vidgen_ray.datasets.metadata import read_metadata
from vidgen_ray.datasets.sources import DatasetName
from vidgen_ray.datasets.videos import VideoIndex
from vidgen_ray.errors import DatasetError
from vidgen_ray.schema import Clip

SAMPLES = Path(__file__).parents[2] / "data/metadata"
NUM_VIDEOS = 1200


def run(
    dataset: DatasetName, source: Path, output: Path, **options: object
) -> tuple[ImportReport, list[Clip]]:
    arguments = ImportArguments(dataset, str(source), str(output), **options)  # type: ignore[arg-type]
    return import_dataset(arguments), list(read_metadata(str(output)))


def write_msr_vtt(path: Path) -> None:
    videos = [
        {
            "category": number % 20,
            "url": f"https://www.youtube.com/watch?v=x{number}",
            "video_id": f"video{number}",
            "start time": 1.5 * number,
            "end time": 1.5 * number + 12.25,
            "split": "train" if number % 10 else "test",
            "id": number,
        }
        for number in range(NUM_VIDEOS)
    ]
    sentences = [
        {"video_id": f"video{number % NUM_VIDEOS}", "sen_id": number, "caption": f"scene {number}"}
        for number in range(2 * NUM_VIDEOS)
    ]
    body = {"info": {"year": "2017"}, "videos": videos, "sentences": sentences}
    path.write_text(json.dumps(body))


def write_vatex(path: Path) -> None:
    items = [
        {
            "videoID": f"a_b-{number}_{number:06d}_{number + 10:06d}",
            "enCap": [f"scene {number}", f"again {number}"],
            "chCap": ["场景"],
        }
        for number in range(NUM_VIDEOS)
    ]
    path.write_text(json.dumps(items, ensure_ascii=False), encoding="utf-8")


def write_panda70m(path: Path, num_videos: int = NUM_VIDEOS) -> None:
    columns = "videoID,url,timestamp,caption,matching_score,desirable_filtering"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*columns.split(","), "shot_boundary_detection"])
        for number in range(num_videos):
            spans = [["0:00:04.004", "0:00:13.113"], ["1:02:03.500", "1:02:09.000"]]
            captions = [f"It's scene {number}", f'A "quoted" scene {number}']
            worths = ["desirable", "2_tiny_camera_movement"]
            row = [f"v_{number}", f"https://www.youtube.com/watch?v=v_{number}", spans, captions]
            writer.writerow([*row, [0.4, 0.5], worths, [spans, spans]])


def write_webvid(path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["videoid", "contentUrl", "duration", "page_dir", "name"])
        for number in range(NUM_VIDEOS):
            url = f"https://example.org/{number}.mp4"
            writer.writerow([number, url, "PT00H00M17S", "000001_000050", f"scene, {number}"])


def write_folder(path: Path) -> None:
    path.mkdir()
    lines = [f"scene {number}" for number in range(NUM_VIDEOS)]
    (path / "prompts.txt").write_text("\n".join(lines) + "\n")
    names = [f"videos/{number}.mp4" for number in range(NUM_VIDEOS)]
    (path / "videos.txt").write_text("\n".join(names) + "\n")


def write_msr_vtt_9k(path: Path) -> None:
    """The form of `msrvtt_train_9k.json`: each video with its captions."""
    videos = [
        {
            "video_id": f"video{number}",
            "video": f"video{number}.mp4",
            "caption": [f"scene {number}", f"again {number}"],
            "source": "MSR-VTT",
            "category": number % 20,
            "url": f"https://www.youtube.com/watch?v=x{number}",
            "start time": 1.5 * number,
            "end time": 1.5 * number + 12.25,
            "id": number,
        }
        for number in range(NUM_VIDEOS)
    ]
    path.write_text(json.dumps(videos))


@pytest.mark.parametrize(
    ("dataset", "write", "num_rows"),
    [
        ("msr-vtt", write_msr_vtt, 2400),
        ("msr-vtt", write_msr_vtt_9k, 2400),
        ("vatex", write_vatex, 2400),
        ("panda70m", write_panda70m, 2400),
        ("webvid", write_webvid, 1200),
        ("folder", write_folder, 1200),
    ],
)
def test_a_thousand_entries_of_each_format(
    dataset: DatasetName, write: Callable[[Path], None], num_rows: int, tmp_path: Path
) -> None:
    write(tmp_path / "source.csv" if dataset == "webvid" else tmp_path / "source")
    source = next(tmp_path.iterdir())
    report, clips = run(dataset, source, tmp_path / "metadata.jsonl")
    assert len(clips) == report.num_rows == report.num_missing_rows == num_rows
    assert len({clip.id for clip in clips}) == num_rows
    assert all(clip.source.dataset == dataset and clip.source.licence for clip in clips)
    assert all("no --videos" in str(clip.missing) or dataset == "folder" for clip in clips)
    with (tmp_path / "metadata.to_fetch.csv").open() as file:
        to_fetch = list(csv.DictReader(file))
    assert len(to_fetch) == report.num_clips == report.num_missing_clips
    report, clips = run(dataset, source, tmp_path / "metadata.jsonl", limit=1001)
    assert len(clips) == report.num_rows == 1001


def test_rows_say_what_the_annotations_say(tmp_path: Path) -> None:
    write_msr_vtt(tmp_path / "m.json")
    _, clips = run("msr-vtt", tmp_path / "m.json", tmp_path / "m.jsonl", category="news")
    assert {clip.source.category for clip in clips} == {"news/events/politics"}
    assert [clip.id for clip in clips[:2]] == ["video4#4", "video4#1204"]
    assert (clips[0].prompt, clips[0].source.split) == ("scene 4", "train")
    _, clips = run("msr-vtt", tmp_path / "m.json", tmp_path / "m.jsonl", split="test")
    assert {clip.source.split for clip in clips} == {"test"}
    assert len(clips) == 240
    write_panda70m(tmp_path / "p.csv", 3)
    _, clips = run("panda70m", tmp_path / "p.csv", tmp_path / "p.jsonl", category="desirable")
    assert [clip.id for clip in clips] == ["v_0#0", "v_1#0", "v_2#0"]
    assert clips[0].prompt == "It's scene 0"


def test_a_file_is_found_as_a_cut_clip_or_inside_its_whole_video(tmp_path: Path) -> None:
    write_panda70m(tmp_path / "p.csv", 3)
    videos = tmp_path / "videos"
    (videos / "deep").mkdir(parents=True)
    (videos / "v_0_1.mp4").touch()
    (videos / "deep/v_1.webm").touch()
    (videos / "v_2.txt").touch()
    report, clips = run("panda70m", tmp_path / "p.csv", tmp_path / "p.jsonl", videos=str(videos))
    by_id = {clip.id: clip for clip in clips}
    cut, whole = by_id["v_0#1"], by_id["v_1#1"]
    assert (cut.video, cut.start_s, cut.missing) == (str(videos / "v_0_1.mp4"), None, None)
    assert (whole.video, whole.start_s, whole.end_s) == (
        str(videos / "deep/v_1.webm"),
        3723.5,
        3729.0,
    )
    assert "no single file named v_2_0 or v_2 in" in str(by_id["v_2#0"].missing)
    assert (report.num_missing_rows, report.num_rows) == (3, 6)
    # Another import, when all is there, leaves no list of what to fetch.
    assert (tmp_path / "p.to_fetch.csv").exists()
    for name in ("v_0", "v_2"):
        (videos / f"{name}.mp4").touch()
    report, _ = run("panda70m", tmp_path / "p.csv", tmp_path / "p.jsonl", videos=str(videos))
    assert report.num_missing_rows == 0
    assert not (tmp_path / "p.to_fetch.csv").exists()


def test_a_name_never_stands_for_another_folders_file(tmp_path: Path) -> None:
    for name in ("x/1.mp4", "y/1.mp4", "y/2.mp4", "z/3.mov", "z/3.mp4", "top.v1.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    index = VideoIndex(str(tmp_path))

    def find(name: str) -> str | None:
        found = index.find([VideoFile(name)])
        return None if found is None else str(Path(found[0]).relative_to(tmp_path))

    assert find("x/1.mp4") == "x/1.mp4"
    assert find("far/away/y/1") == "y/1.mp4"
    assert find("1.mp4") is None  # of x or of y
    assert find("x/2.mp4") is None  # another one is in y
    assert find("2") == find("2.mp4") == "y/2.mp4"
    assert find("3") == "z/3.mov"
    assert find("3.mp4") == "z/3.mp4"
    assert find("top.v1") == "top.v1.mp4"
    assert find("top") is None


def test_every_rejected_row_has_its_reason(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    write_panda70m(path, 2)
    good = "\"[['0:00:04.004', '0:00:13.113']]\""
    with path.open("a") as file:
        file.write(f"a,u,{good},__import__('os').abort(),[1],['desirable'],[]\n")
        file.write(f"b,u,{good},\"['one', 'two']\",[1],['desirable'],[]\n")
        file.write("c,u,\"[['0:00:09', '0:00:04']]\",['x'],[1],['desirable'],[]\n")
        file.write(f"d,u,{good},[''],[1],['desirable'],[]\n")
        file.write(f",u,{good},['x'],[1],['desirable'],[]\n")
        file.write(f"e,u,{good},{'[' * 5000},[1],['desirable'],[]\n")
    report, clips = run("panda70m", path, tmp_path / "p.jsonl")
    assert len(clips) == 4
    assert report.rejected == {
        "has a cell that is no list": 2,
        "has lists of different lengths": 1,
        "has no time span": 1,
        "has no caption": 1,
        "has no videoID": 1,
    }
    lines = (tmp_path / "p.rejected.jsonl").read_text().splitlines()
    assert Counter(json.loads(line)["rule"] for line in lines) == report.rejected
    assert json.loads(lines[0])["where"] == "line 4"
    assert json.loads((tmp_path / "p.report.json").read_text())["rejected"] == report.rejected


def test_faults_of_json_annotations_are_rejected_one_by_one(tmp_path: Path) -> None:
    video = {"video_id": "v", "url": None, "start time": 0, "end time": 1, "split": "train"}
    body = {
        "sentences": [
            {"video_id": "v", "sen_id": 1, "caption": "a"},
            {"video_id": "v", "sen_id": 2, "caption": " "},
            {"video_id": "lost", "sen_id": 3, "caption": "a"},
            {"video_id": "backward", "sen_id": 4, "caption": "a"},
            "no object",
        ],
        "videos": [video, {**video, "video_id": "dumb"}, {"video_id": "backward"}, {}],
    }
    (tmp_path / "m.json").write_text(json.dumps(body))
    report, clips = run("msr-vtt", tmp_path / "m.json", tmp_path / "m.jsonl")
    assert [clip.id for clip in clips] == ["v#1"]
    assert sum(report.rejected.values()) == 6
    items = [
        {"videoID": "x_000001_000011", "enCap": ["a", ""]},
        {"videoID": "x", "enCap": ["a"]},
        {"videoID": "y_000001_000011"},
        3,
    ]
    (tmp_path / "v.json").write_text(json.dumps(items))
    report, clips = run("vatex", tmp_path / "v.json", tmp_path / "v.jsonl")
    assert [clip.id for clip in clips] == ["x_000001_000011#0"]
    assert sum(report.rejected.values()) == 4


def test_a_source_that_is_wrong_is_refused_and_the_output_kept(tmp_path: Path) -> None:
    output = tmp_path / "m.jsonl"
    run("webvid", SAMPLES / "webvid.csv", output)
    before = output.read_bytes()

    def refused(dataset: DatasetName, source: Path, match: str, **options: object) -> None:
        with pytest.raises(DatasetError, match=match):
            run(dataset, source, output, **options)
        assert output.read_bytes() == before

    refused("panda70m", SAMPLES / "webvid.csv", "must have the columns")
    refused(
        "msr-vtt",
        SAMPLES / "vatex.json",
        "holds no usable row of msr-vtt: . x is no video with a video_id",
    )
    refused("vatex", SAMPLES / "webvid.csv", "is not complete JSON")
    refused("vatex", tmp_path / "nowhere.json", "no such file")
    refused("folder", tmp_path / "nowhere", "must be a folder that exists|no such file")
    refused("webvid", SAMPLES / "webvid.csv", "videos: must be a folder", videos="/nowhere")
    refused("msr-vtt", SAMPLES / "msr_vtt.json", r"the categories \['news", category="cooking")
    (tmp_path / "cut.json").write_text((SAMPLES / "vatex.json").read_text()[:-40])
    refused("vatex", tmp_path / "cut.json", "is not complete JSON")
    (tmp_path / "empty.csv").write_text("")
    refused("webvid", tmp_path / "empty.csv", "must have the columns")


def test_the_stubs_that_ship_are_what_the_importers_read_and_write(tmp_path: Path) -> None:
    for dataset, name in [
        ("vatex", "vatex.json"),
        ("panda70m", "panda70m.csv"),
        ("webvid", "webvid.csv"),
        ("folder", "folder"),
    ]:
        report, _ = run(dataset, SAMPLES / name, tmp_path / "m.jsonl")  # type: ignore[arg-type]
        assert report.num_rows >= 2
        assert not report.rejected
    run("msr-vtt", SAMPLES / "msr_vtt.json", tmp_path / "metadata.jsonl")
    written = (tmp_path / "metadata.jsonl").read_text()
    assert written == (SAMPLES / "metadata.jsonl").read_text()


def test_the_mirrors_form_of_msr_vtt(tmp_path: Path) -> None:
    items = [
        {"caption": f"scene {number}", "image_id": f"video{number // 2}", "id": number}
        for number in range(6)
    ]
    (tmp_path / "MSR_VTT.json").write_text(json.dumps({"info": {}, "annotations": items}))
    _, clips = run("msr-vtt", tmp_path / "MSR_VTT.json", tmp_path / "m.jsonl")
    assert [clip.id for clip in clips][:3] == ["video0#0", "video0#1", "video1#2"]


_IMPORT = """
import resource, sys
from vidgen_ray.datasets.entries import VideoFile
from vidgen_ray.datasets.importing import ImportArguments, import_dataset
report = import_dataset(ImportArguments("panda70m", sys.argv[1], sys.argv[2]))
print(report.num_rows, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.thorough
def test_panda70m_takes_the_same_memory_however_long_it_is(tmp_path: Path) -> None:
    def measure(num_videos: int) -> tuple[int, int]:
        write_panda70m(tmp_path / "p.csv", num_videos)
        paths = [str(tmp_path / "p.csv"), str(tmp_path / "p.jsonl")]
        found = subprocess.run(
            [sys.executable, "-c", _IMPORT, *paths], capture_output=True, text=True, check=True
        )
        num_rows, peak_kb = map(int, found.stdout.split())
        return num_rows, peak_kb

    (few, peak_few), (many, peak_many) = measure(100), measure(20_000)
    assert (few, many) == (200, 40_000)
    # Holding the rows would cost 1 kB each and more: 40 MB.
    assert peak_many - peak_few < 4_000


@pytest.mark.skipif("VIDGEN_TEST_DATA" not in os.environ, reason="VIDGEN_TEST_DATA is not set")
def test_slices_of_the_published_files(tmp_path: Path) -> None:
    folder = Path(os.environ["VIDGEN_TEST_DATA"]) / "annotations"
    expected: list[tuple[DatasetName, str, int, int]] = [
        ("msr-vtt", "msrvtt/videodatainfo_2017_it_slice.json", 7000, 350),
        ("msr-vtt", "msrvtt/MSRVTT_JSFUSION_test.csv", 1000, 1000),
        ("vatex", "vatex/vatex_5rows.json", 50, 5),
        ("panda70m", "panda70m/panda70m_published_samples.csv", 138, 138),
        ("webvid", "webvid/test_webvid.csv", 20, 20),
        ("folder", "finetrainers", 1, 1),
    ]
    for dataset, name, num_rows, num_clips in expected:
        report, clips = run(dataset, folder / name, tmp_path / "m.jsonl")
        assert (
            (report.num_rows, report.num_clips) == (len(clips), num_clips) == (num_rows, num_clips)
        )
        assert not report.rejected


def test_sources_may_be_compressed_or_in_an_archive_and_outputs_anywhere(tmp_path: Path) -> None:
    data = (SAMPLES / "msr_vtt.json").read_bytes()
    with gzip.open(tmp_path / "m.json.gz", "wb") as packed:
        packed.write(data)
    with zipfile.ZipFile(tmp_path / "m.zip", "w") as archive:
        archive.writestr("annotation/m.json", data)
    store = fsspec.filesystem("memory")
    store.pipe("/import/videos/video1.mp4", b"")
    for source in (tmp_path / "m.json.gz", f"zip://annotation/m.json::{tmp_path}/m.zip"):
        arguments = ImportArguments(
            "msr-vtt", str(source), "memory://import/m.jsonl", videos="memory://import/videos"
        )
        assert import_dataset(arguments).num_rows == 4
        clips = list(read_metadata("memory://import/m.jsonl"))
        assert clips[3].video == "memory://import/videos/video1.mp4"
        assert [clip.missing is None for clip in clips] == [False, False, True, True]
    assert b"videos/video1.mp4" in store.cat("/import/m.jsonl")


def test_a_video_with_its_captions_keeps_category_url_and_span(tmp_path: Path) -> None:
    video = {"video_id": "video7", "video": "video7.mp4", "category": 4, "url": "https://y/?v=abc"}
    span = {"start time": 137.72, "end time": 149.44}
    rows = [
        {**video, **span, "caption": ["a car", "  "]},
        {**video, **span, "video_id": "video8", "caption": "one caption, as in the test split"},
        {**video, "video_id": "video9", "start time": 9, "end time": 3, "caption": ["no span"]},
        "nonsense",
    ]
    (tmp_path / "test_1k.json").write_text(json.dumps(rows))
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos/abc.mp4").touch()  # the whole video that the clips are cut from
    (tmp_path / "videos/video8.mp4").touch()
    options = {"videos": str(tmp_path / "videos"), "category": "news"}
    report, clips = run("msr-vtt", tmp_path / "test_1k.json", tmp_path / "m.jsonl", **options)
    assert [(Path(c.video).name, c.start_s, c.end_s) for c in clips] == [
        ("abc.mp4", 137.72, 149.44),
        ("video8.mp4", None, None),
    ]
    for clip in clips:
        assert clip.source.category == "news/events/politics"
        assert (clip.source.start_s, clip.source.end_s) == (137.72, 149.44)
        assert clip.source.url == "https://y/?v=abc"
        assert clip.source.licence == "none stated; research use"
    assert report.rejected == {
        "has no caption": 1,
        "has no time span": 1,
        "is no video with a video_id": 1,
    }


def test_a_list_with_files_and_captions_alone_is_read(tmp_path: Path) -> None:
    rows = [{"video": "video1.mp4", "caption": "a"}, {"video": "all\\video2.mp4", "caption": "b"}]
    (tmp_path / "train.json").write_text(json.dumps(rows))
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos/video2.mp4").touch()
    videos = str(tmp_path / "videos")
    _, clips = run("msr-vtt", tmp_path / "train.json", tmp_path / "m.jsonl", videos=videos)
    assert [(clip.id, clip.missing is None) for clip in clips] == [
        ("video1#0", False),
        ("video2#0", True),
    ]


@pytest.mark.parametrize("dataset", ["msr-vtt", "vatex", "folder"])
def test_json_of_another_kind_is_refused_with_its_keys(dataset: str, tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text('{"images": [], "licences": {"id": 1}}')
    with pytest.raises(DatasetError, match=r"keys \['images', 'licences'\]"):
        run(dataset, tmp_path / "other.json", tmp_path / "m.jsonl")  # type: ignore[arg-type]
    assert not (tmp_path / "m.jsonl").exists()
