"""What a probe finds in files that were made to have it."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from tests.datasets.scenes import FPS, make_disc, make_scene, write, write_coded
from vidgen_ray.config import CheckConfig
from vidgen_ray.datasets.duplicates import find_duplicates
from vidgen_ray.datasets.probing import probe
from vidgen_ray.schema import ClipCheck


def look(address: str, start_s: float | None = None, end_s: float | None = None) -> ClipCheck:
    return probe(address, start_s, end_s, CheckConfig())


def test_a_sound_clip_has_no_marks_and_its_facts(tmp_path: Path) -> None:
    found = look(write(tmp_path / "a.mp4", make_scene(0, 49, 4)))
    assert found.marks == []
    assert (found.num_frames, found.width, found.height, found.rotation) == (49, 256, 256, 0)
    assert (found.duration_s, found.fps, found.cuts_s) == (6.125, 8.0, [])
    assert found.size_bytes == (tmp_path / "a.mp4").stat().st_size
    # 4 px a frame, 8 frames a second, 256 of 480 lines
    assert found.motion_px == pytest.approx(4 * 8 * 480 / 256, rel=0.35)


def test_short_small_slow_and_static_clips_are_marked(tmp_path: Path) -> None:
    assert look(write(tmp_path / "a.mp4", make_scene(0, 47, 4))).marks == ["short"]
    assert look(write(tmp_path / "b.mp4", make_scene(0, 49, 2, size=128))).marks == ["small"]
    assert look(write(tmp_path / "c.mp4", make_scene(0, 49, 4), fps=5)).marks == ["slow"]
    still = make_scene(0, 49, 0).astype(int)
    grain = np.random.default_rng(0).normal(0, 2, still.shape)
    noisy = np.clip(still + grain, 0, 255).astype(np.uint8)
    assert look(write(tmp_path / "d.mp4", noisy)).marks == ["static"]


def test_size_is_that_shown_with_square_pixels(tmp_path: Path) -> None:
    path = tmp_path / "pal.mp4"
    write_coded(path, make_disc(49), sample_aspect_ratio=Fraction(64, 45), fps=8)
    found = look(str(path))
    assert (found.width, found.height) == (512, 288)
    assert "interlaced" not in found.marks


def test_interlaced_clips_are_marked(tmp_path: Path) -> None:
    path = tmp_path / "fields.mp4"
    write_coded(path, make_disc(49), fps=8, options={"x264-params": "interlaced=1"})
    assert "interlaced" in look(str(path)).marks


def test_cuts_are_found_where_they_are(tmp_path: Path) -> None:
    scenes = np.concatenate([make_scene(seed, 25, 3) for seed in (1, 2)])
    found = look(write(tmp_path / "a.mp4", scenes))
    assert found.marks == ["cut"]
    assert found.cuts_s == [25 / FPS]


def test_a_span_is_looked_at_alone(tmp_path: Path) -> None:
    scenes = np.concatenate([make_scene(seed, 60, 3) for seed in (1, 2)])
    address = write(tmp_path / "a.mp4", scenes)
    assert look(address).cuts_s == [7.5]
    for start_s, end_s in ((0.5, 7.5), (7.5, 14.5)):
        found = look(address, start_s, end_s)
        assert found.marks == []
        assert (found.num_frames, found.duration_s) == (56, 7.0)
    assert look(address, 9.0, None).num_frames == 48
    beyond = look(address, 20.0, 30.0)
    assert beyond.marks == ["undecodable"]
    assert "has no frame from 20 s on" in str(beyond.reason)


def test_files_that_do_not_decode_are_a_finding(tmp_path: Path) -> None:
    whole = Path(write(tmp_path / "a.mp4", make_scene(0, 49, 4))).read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.mp4").write_text("not a video")
    (tmp_path / "empty.mp4").touch()
    for name in ("cut.mp4", "text.mp4", "empty.mp4", "gone.mp4"):
        found = look(str(tmp_path / name))
        assert found.marks == ["undecodable"]
        assert name in str(found.reason)


def test_the_same_scene_in_other_clothes_is_a_duplicate(tmp_path: Path) -> None:
    scene = make_scene(3, 49, 4)
    files = [
        write(tmp_path / "a.mp4", scene),
        write(tmp_path / "b.mp4", make_scene(4, 49, 4)),
        write(tmp_path / "darker.mp4", (scene * 0.8).astype(np.uint8)),
        write(tmp_path / "smaller.mp4", scene[:, ::2, ::2]),
        write(tmp_path / "later.mp4", make_scene(5, 49, 4)),
    ]
    hashes = [look(address).perceptual_hash for address in files]
    assert find_duplicates([*hashes, None], CheckConfig().max_hash_distance) == {2: 0, 3: 0}


def test_duplicates_are_those_that_a_plain_comparison_finds() -> None:
    generator = np.random.default_rng(0)
    values = [generator.bytes(24) for _ in range(300)]
    for _ in range(100):  # some of them again, with up to 30 bits turned
        changed = bytearray(values[generator.integers(300)])
        for bit in generator.integers(0, 192, generator.integers(0, 31)):
            changed[bit // 8] ^= 1 << (bit % 8)
        values.append(bytes(changed))
    numbers = [int.from_bytes(value, "big") for value in values]
    expected = {}
    for index, number in enumerate(numbers):
        for earlier in range(index):
            if (number ^ numbers[earlier]).bit_count() <= 18:
                expected[index] = earlier
                break
    assert expected
    assert find_duplicates([value.hex() for value in values], 18) == expected
