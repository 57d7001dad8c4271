"""Frames of a span come out at the rate that was asked for, at the right moments."""

import os
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from tests.datasets.scenes import make_disc, write_coded
from vidgen_ray.errors import RequestError
from vidgen_ray.image_io import fit_pixels
from vidgen_ray.schema import Video
from vidgen_ray.video_io import read_span, read_video, write_video

DATA = os.environ.get("VIDGEN_TEST_DATA")


def _grey(value: float) -> np.ndarray:
    return np.full((32, 48, 3), value, np.uint8)


def _levels(video: Video) -> list[int]:
    """The grey level of each frame, to the nearest multiple of 5."""
    return [5 * round(frame.mean() / 5) for frame in video.frames]


@pytest.fixture
def counting(tmp_path: Path) -> Path:
    """Two seconds at 24 fps whose frame number n is grey level 5 n."""
    path = tmp_path / "counting.mp4"
    write_video(path, Video(np.stack([_grey(5 * n) for n in range(48)]), 24.0), crf=1)
    return path


def test_the_frame_on_screen_is_taken_at_each_moment(counting: Path) -> None:
    video = read_span(counting, num_frames=9, fps=8)
    assert video.fps == 8
    assert _levels(video) == [15 * n for n in range(9)]
    later = read_span(counting, num_frames=5, fps=8, start_s=1.25)
    assert _levels(later) == [5 * 30 + 15 * n for n in range(5)]


@pytest.mark.parametrize(
    ("name", "codec", "sar"),
    [
        ("pal_wide.mp4", "libx264", Fraction(64, 45)),
        ("pal.mpg", "mpeg2video", Fraction(16, 15)),
        ("ntsc.mkv", "libx264", Fraction(10, 11)),
        ("hdv.mov", "libx264", Fraction(4, 3)),
        ("mpeg4.avi", "mpeg4", Fraction(40, 33)),
    ],
)
def test_a_disc_of_non_square_pixels_is_read_round(
    name: str, codec: str, sar: Fraction, tmp_path: Path
) -> None:
    write_coded(tmp_path / name, make_disc(30), sample_aspect_ratio=sar, codec=codec)
    for video in (
        read_span(tmp_path / name, num_frames=5, fps=8),
        read_video(tmp_path / name, max_frames=5),
    ):
        assert video.frames.shape[1] == 288
        assert abs(video.frames.shape[2] - 512) <= 2
        rows, columns = np.nonzero(video.frames[0].mean(-1) > 150)
        assert np.ptp(columns) == pytest.approx(np.ptp(rows), abs=3)


def test_a_rotated_file_of_non_square_pixels_is_upright_and_round(tmp_path: Path) -> None:
    path = tmp_path / "turned.mp4"
    write_coded(path, make_disc(8), sample_aspect_ratio=Fraction(4, 3), rotation=90)
    assert read_video(path).frames.shape[1:3] == (512, 288)


def test_an_absurd_pixel_aspect_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "absurd.mp4"
    write_coded(path, make_disc(8), sample_aspect_ratio=Fraction(5))
    with pytest.raises(RequestError, match=r"sample aspect ratio is 5.*square pixels"):
        read_video(path)


def test_a_slower_source_repeats_its_frames(counting: Path) -> None:
    video = read_span(counting, num_frames=7, fps=48)
    assert _levels(video) == [0, 0, 5, 5, 10, 10, 15]


def test_varying_frame_rates_come_out_even(tmp_path: Path) -> None:
    path, rng = tmp_path / "varying.mkv", np.random.default_rng(0)
    times_ms = np.cumsum(rng.integers(15, 90, 60)) - 15
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30, options={"crf": "1"})
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        for index, time_ms in enumerate(times_ms):
            frame = av.VideoFrame.from_ndarray(_grey(4 * index), format="rgb24")
            frame.pts, frame.time_base = int(time_ms), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    video = read_span(path, num_frames=17, fps=8)
    moments = (times_ms[0] + 125 * np.arange(17)) - times_ms[0]
    expected = np.searchsorted(times_ms - times_ms[0], moments + 2, side="right") - 1
    assert [round(frame.mean() / 4) for frame in video.frames] == expected.tolist()


def test_the_last_frame_lasts_until_the_end_and_no_longer(counting: Path) -> None:
    assert len(read_span(counting, num_frames=16, fps=8).frames) == 16
    with pytest.raises(RequestError, match=r"must last 2\.00 s for 17 frames .* got 2\.00 s"):
        read_span(counting, num_frames=17, fps=8)
    with pytest.raises(RequestError, match=r"must last 1\.00 s .* got 0\.50 s"):
        read_span(counting, num_frames=9, fps=8, start_s=0.5, end_s=1.0)
    with pytest.raises(RequestError, match=r"got 0\.00 s"):
        read_span(counting, num_frames=9, fps=8, start_s=30)


def test_each_frame_is_prepared_alone(counting: Path) -> None:
    video = read_span(
        counting,
        num_frames=3,
        fps=8,
        prepare=lambda pixels: fit_pixels(pixels, height=16, width=16, fit="pad"),
    )
    assert video.frames.shape == (3, 16, 16, 3)
    assert video.frames[2, 0].max() == 0  # bars of a picture wider than its place
    assert video.frames[2, 8].min() > 20


@pytest.mark.skipif(not DATA, reason="VIDGEN_TEST_DATA is not set")
def test_real_clips_are_read_and_turned_upright() -> None:
    folder = Path(str(DATA)) / "clips"
    whole = read_span(folder / "cog_1.mp4", num_frames=49, fps=8)
    assert np.array_equal(whole.frames, read_video(folder / "cog_1.mp4").frames)
    late = read_span(folder / "intel_car-detection.mp4", num_frames=49, fps=8, start_s=20)
    assert late.frames.shape == (49, 432, 768, 3)
    turned = read_span(folder / "decord_rotate90.mov", num_frames=1, fps=8)
    assert turned.frames.shape[1] > turned.frames.shape[2]
