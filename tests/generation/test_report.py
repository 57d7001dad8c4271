"""The report page: what it says, what it refuses to run, and that it works in a real browser."""

import html
import re
import shutil
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from vidgen_ray.generation.report import render_report
from vidgen_ray.schema import (
    ArtifactRecord,
    AttemptRecord,
    BatchSummary,
    ErrorRecord,
    GenerationRecord,
    GenerationRequest,
    ImageRecord,
    ModelRecord,
    StageTimes,
    TemporalScore,
)

START = datetime(2026, 3, 1, 9, 0, tzinfo=UTC)
MODEL = ModelRecord(
    checkpoint="nano",
    fingerprint="f1" * 32,
    trained=True,
    dtype="float32",
    scheduler="dpm",
    offload="none",
    vae_tiling=False,
)
HOSTILE = '<script>document.documentElement.dataset.owned="1"</script> "quoted" & <b>bold</b>'


def score_of(value: float) -> TemporalScore:
    numbers = dict.fromkeys(TemporalScore.model_fields, 0.25)
    return TemporalScore.model_validate(
        {**numbers, "score": value, "is_static": False, "parameters": {"floor": 0.125}}
    )


def request_of(id: str, prompt: str, **fields: Any) -> GenerationRequest:
    return GenerationRequest(id=id, image=f"{id}.png", prompt=prompt, seed=11, **fields)


def clip(id: str, score: float = 0.9, **fields: Any) -> GenerationRecord:
    """A record of a finished clip, accepted unless `fields` says otherwise."""
    known: dict[str, Any] = {
        "id": id,
        "status": "accepted",
        "content_hash": "c0" * 32,
        "request": request_of(id, f"A slow push in on {id}"),
        "seed": 11,
        "attempt": 1,
        "attempts": [
            AttemptRecord(attempt=1, seed=11, temporal_score=score, verdict="accepted"),
        ],
        "image": ImageRecord(path=f"{id}.png", sha256="aa" * 32, width=96, height=64),
        "model": MODEL,
        "artifact": ArtifactRecord(
            filename=f"{id}.mp4",
            sha256="bb" * 32,
            size_bytes=1234,
            num_frames=9,
            height=64,
            width=96,
            fps=8,
            codec="h264",
        ),
        "stages": StageTimes(load_s=40.0, denoise_s=30.0, decode_s=2.5),
        "score": score_of(score),
        "created_at": START + timedelta(seconds=60),
        "run_id": "run-1",
    }
    return GenerationRecord.model_validate(known | fields)


def failure(id: str, message: str, **fields: Any) -> GenerationRecord:
    """A record of a clip that there is not, as bare as the schema allows."""
    known: dict[str, Any] = {
        "id": id,
        "status": "failed",
        "content_hash": "",
        "request": None,
        "error": ErrorRecord(kind="OutOfMemory", message=message, stage="decode"),
        "created_at": START + timedelta(seconds=90),
        "run_id": "run-1",
    }
    return GenerationRecord.model_validate(known | fields)


def summary_of(records: list[GenerationRecord], **fields: Any) -> BatchSummary:
    statuses = [record.status for record in records]
    known: dict[str, Any] = {
        "run_id": "run-1",
        "config": "nano",
        "started_at": START,
        "finished_at": START + timedelta(seconds=120),
        "wall_s": 120.0,
        "total": len(records),
        "pending": 0,
        "made": len(records),
        **{
            name: statuses.count(name)
            for name in ("accepted", "needs_review", "failed", "quarantined")
        },
    }
    return BatchSummary.model_validate(known | fields)


def page_of(*records: GenerationRecord, **fields: Any) -> str:
    return render_report(list(records), summary_of(list(records), **fields), 0.6)


def ids_in(page: str) -> list[str]:
    return re.findall(r'<article[^>]* data-id="([^"]*)"', page)


def text_of(page: str) -> str:
    """What a reader sees, roughly: no styles, scripts or tags, entities resolved."""
    body = re.sub(r"<(style|script)>.*?</\1>", " ", page, flags=re.S)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", body)).split())


def test_empty_batch_says_that_there_is_nothing() -> None:
    page = render_report([], summary_of([]))
    assert "No clips in this batch" in page
    assert "There is nothing to show" in page
    assert ids_in(page) == []


def test_head_counts_every_verdict() -> None:
    records = [
        clip("a"),
        clip("b", 0.3, status="needs_review"),
        failure("c", "no memory"),
        failure("d", "no image", status="quarantined"),
    ]
    text = text_of(page_of(*records, total=6, pending=2))
    assert "1 of 6 clips accepted, 1 needs review, 1 failed, 1 quarantined, 2 pending" in text
    for label in ("Accepted", "Needs review", "Failed", "Quarantined", "Pending"):
        assert label in text


def test_needs_review_and_failures_come_first_then_file_order() -> None:
    records = [
        clip("first"),
        failure("broken", "x"),
        clip("second"),
        clip("doubtful", 0.3, status="needs_review"),
        failure("bad-row", "x", status="quarantined"),
    ]
    page = page_of(*records)
    assert ids_in(page) == ["doubtful", "broken", "bad-row", "first", "second"]
    assert 'data-id="second" data-order="2"' in page


def test_clip_refers_to_its_files_by_relative_address() -> None:
    page = page_of(clip("harbour"))
    addresses = re.findall(r'(?:src|href|data-poster)="([^"#]*)"', page)
    assert set(addresses) == {
        "data:,",
        "thumbnails/harbour.jpg",
        "harbour.mp4",
        "harbour.json",
    }


def test_file_name_cannot_become_an_address_elsewhere() -> None:
    artifact = clip("x").artifact
    assert artifact is not None
    for filename in ("//elsewhere.example/x.mp4", "javascript:alert(1)", "a b#c?d%e.mp4"):
        page = page_of(clip("x", artifact=artifact.model_copy(update={"filename": filename})))
        source = re.search(r'<video src="([^"]*)"', page)
        assert source is not None
        assert not set(source[1]) & set(":/#? ")


def test_page_loads_nothing_from_elsewhere() -> None:
    page = page_of(clip("a"), failure("b", "x"))
    assert not re.findall(r"https?://|@import|url\(", page)
    assert "<link " not in page.replace('<link rel="icon" href="data:,">', "")
    assert "<script src" not in page


def test_hostile_text_is_shown_and_not_run() -> None:
    request = request_of("a", HOSTILE, negative_prompt=HOSTILE, metadata={HOSTILE: HOSTILE})
    records = [
        clip("a", request=request, reasons=[HOSTILE], device=HOSTILE, versions={"v": HOSTILE}),
        failure("b", HOSTILE, status="quarantined"),
    ]
    page = page_of(*records, config=HOSTILE, devices=[HOSTILE], versions={HOSTILE: HOSTILE})
    assert page.count("<script>") == 1  # the page's own
    assert "<b>bold</b>" not in page
    assert text_of(page).count('dataset.owned="1"') >= 9


def test_error_stands_in_place_of_the_clip_with_the_image_where_there_is_one() -> None:
    image = ImageRecord(path="p.png", sha256="aa" * 32, width=96, height=64)
    page = page_of(
        failure("seen", "set vae_tiling: true", image=image), failure("unseen", "no file")
    )
    assert "<video" not in page
    assert page.count("<img ") == 1
    assert "OutOfMemory while in decode" in page
    assert "set vae_tiling: true" in page
    assert "no file" in page


def test_card_shows_score_threshold_attempts_reasons_and_time() -> None:
    attempts = [
        AttemptRecord(attempt=1, seed=11, temporal_score=None, verdict="rejected"),
        AttemptRecord(attempt=2, seed=12, temporal_score=0.5984, verdict="rejected"),
    ]
    record = clip(
        "a", 0.5984, status="needs_review", attempt=2, attempts=attempts, reasons=["it jumps"]
    )
    page = page_of(record)
    text = text_of(page)
    assert "Temporal score 0.598 of 1, accepted from 0.60" in page
    assert "Attempts no score 0.598" in text
    assert "it jumps" in text
    assert "Time 32.5 s" in text  # without the 40 s of loading
    assert "0.598, rejected, seed 12" in text


def test_no_threshold_is_drawn_when_none_is_known() -> None:
    records = [clip("a")]
    assert "--min:" not in render_report(records, summary_of(records))
    assert "--min:60.0%" in page_of(*records)


def test_every_measure_of_the_score_is_in_the_details() -> None:
    text = text_of(page_of(clip("a")))
    for name in TemporalScore.model_fields:
        assert name in text
    assert "parameters.floor 0.125" in text


def test_what_all_clips_share_is_said_once() -> None:
    page = page_of(clip("a"), clip("b"), failure("c", "x"))
    assert page.count("num_inference_steps") == 1
    assert 'id="shared"' in page
    assert 'id="shared"' not in page_of(clip("a"))
    differing = clip("b", request=request_of("b", "p", num_inference_steps=4))
    assert page_of(clip("a"), differing).count("num_inference_steps") == 2


@pytest.mark.parametrize("in_summary", [True, False])
def test_untrained_weights_are_announced(in_summary: bool) -> None:
    untrained = MODEL.model_copy(update={"trained": False})
    page = page_of(clip("a", model=untrained), model=untrained if in_summary else None)
    assert "Untrained weights." in page
    assert "Untrained weights." not in page_of(clip("a"), model=MODEL)


def test_chart_counts_this_run_alone_and_marks_failures() -> None:
    old = clip("old", run_id="run-0", created_at=START - timedelta(days=1))
    page = page_of(old, clip("new"), failure("broken", "x"))
    assert 'd="M0 100H50V0H75V0H100"' in page
    assert "<title>Failed: broken</title>" in page
    assert "1 of the clips below is from earlier runs" in text_of(page)


def test_times_without_a_zone_are_taken_for_utc() -> None:
    record = clip("a", created_at=datetime(2026, 3, 1, 9, 1))
    assert "1 clip in 2 min 00 s" in text_of(page_of(record))


def test_records_with_nothing_optional_can_be_shown() -> None:
    bare = {"request": None, "image": None, "artifact": None, "attempts": []}
    scoreless = clip("b", **bare, stages=StageTimes()).model_copy(update={"score": None})
    page = page_of(failure("a", "x", error=None), scoreless)
    assert page.count("No clip and no error was recorded") == 2


def test_right_to_left_and_long_prompts_keep_their_direction_and_length() -> None:
    prompts = {"rtl": "يتجمع المارة في الساحة", "long": "word " * 1999 + "end"}
    page = page_of(*(clip(id, request=request_of(id, prompt)) for id, prompt in prompts.items()))
    for prompt in prompts.values():
        assert f'<p class="prompt" dir="auto" data-find>{prompt}</p>' in page


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A report beside real clips and thumbnails; file order is not the order of scores."""
    records = []
    for id, score in [("middle", 0.7), ("worst", 0.61), ("best", 0.95)]:
        _write_clip(tmp_path, id)
        records.append(clip(id, score, request=request_of(id, HOSTILE)))
    records.append(failure("broken", HOSTILE))
    (tmp_path / "index.html").write_text(page_of(*records), "utf-8")
    return tmp_path


def _write_clip(folder: Path, id: str) -> None:
    frames = np.random.default_rng(0).integers(0, 255, (4, 64, 96, 3), dtype=np.uint8)
    (folder / "thumbnails").mkdir(exist_ok=True)
    Image.fromarray(frames[0]).save(folder / "thumbnails" / f"{id}.jpg")
    with av.open(str(folder / f"{id}.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=8)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame)))
        container.mux(stream.encode())


def _dom(page: Path, address: str, profile: Path) -> str:
    """The document as chromium leaves it after the scripts have run."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    if browser is None:
        pytest.skip("chromium is not installed")
    flags = [
        *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
        *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
        *(f"--user-data-dir={profile}", "--virtual-time-budget=3000", "--dump-dom"),
    ]
    result = subprocess.run(
        [browser, *flags, page.as_uri() + address], capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize(
    ("address", "order"),
    [
        ("", ["broken", "middle", "worst", "best"]),
        ("#sort=score", ["worst", "middle", "best", "broken"]),
        ("#sort=score&dir=desc", ["best", "middle", "worst", "broken"]),
        ("#sort=id&show=accepted&q=worst", ["worst"]),
    ],
)
def test_browser_sorts_and_filters_by_the_address(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, address: str, order: list[str]
) -> None:
    dom = _dom(folder / "index.html", address, tmp_path_factory.mktemp("profile"))
    head = re.search(r"<html[^>]*>", dom)
    assert head is not None
    assert 'data-ready="1"' in head[0]
    assert "data-error" not in head[0]
    assert "data-owned" not in head[0]
    shown = re.sub(r"<article[^>]* hidden[ =>].*?</article>", "", dom, flags=re.S)
    assert ids_in(shown) == order
    assert 'class="missing"' not in dom
