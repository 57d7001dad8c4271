"""What the temporal score says of steady clips, and of clips broken in one way each.

Synthetic clips are 17 to 25 frames of 120x180. Real files need VIDGEN_TEST_DATA, a folder with
`clips/` and `flow/`.
"""

import os
from collections.abc import Callable
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from vidgen_ray.config import QualityConfig
from vidgen_ray.errors import RequestError
from vidgen_ray.generation import scoring
from vidgen_ray.generation.scoring import score_video
from vidgen_ray.generation.verdict import judge
from vidgen_ray.schema import TemporalScore, Video

NUM_FRAMES, HEIGHT, WIDTH = 17, 120, 180
DATA = os.environ.get("VIDGEN_TEST_DATA", "")
needs_data = pytest.mark.skipif(
    not (DATA and (Path(DATA) / "clips").is_dir()),
    reason="VIDGEN_TEST_DATA does not name a folder that holds clips/",
)


def texture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """A still picture with detail of every size, as natural ones have: uint8 [h, w, 3]."""
    rng = np.random.default_rng(seed)
    picture = np.zeros((height, width, 3), np.float32)
    for grain in (3, 6, 12, 24, 48):
        seeds = rng.standard_normal((height // grain + 2, width // grain + 2, 3))
        picture += grain**0.5 * cv2.resize(
            seeds.astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC
        )
    return to_bytes(128 + 40 * picture / picture.std())


def to_bytes(frames: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(frames), 0, 255).astype(np.uint8)


def pan(step: float = 3.0, seed: int = 0, size: int = 1) -> np.ndarray:
    """The camera moves `step` px a frame to the right; `size` multiplies the picture and step."""
    room = int(abs(step) * NUM_FRAMES) + 8
    large = texture(HEIGHT + 8, WIDTH + room, seed)
    frames = []
    for t in range(NUM_FRAMES):
        matrix = np.array([[1, 0, -step * t], [0, 1, -4]], np.float32)
        frames.append(cv2.warpAffine(large, matrix, (WIDTH, HEIGHT)))
    if size > 1:
        scaled = (WIDTH * size, HEIGHT * size)
        frames = [cv2.resize(frame, scaled, interpolation=cv2.INTER_CUBIC) for frame in frames]
    return np.stack(frames)


def zoom(first: float, last: float) -> np.ndarray:
    large = texture(2 * HEIGHT, 2 * WIDTH)
    frames = []
    for scale in np.geomspace(first, last, NUM_FRAMES):
        matrix = np.array(
            [[scale, 0, WIDTH / 2 - scale * WIDTH], [0, scale, HEIGHT / 2 - scale * HEIGHT]]
        )
        frames.append(cv2.warpAffine(large, matrix, (WIDTH, HEIGHT)))
    return np.stack(frames)


def still_camera(sigma: float = 1.5) -> np.ndarray:
    """A small figure crosses a scene that does not move; the sensor adds a little noise."""
    frames = np.repeat(texture(HEIGHT, WIDTH)[None], NUM_FRAMES, 0)
    figure = 255 - texture(30, 14, seed=5)
    for t, frame in enumerate(frames):
        frame[50:80, 20 + 5 * t : 34 + 5 * t] = figure
    return noisy(frames, sigma)


def noise_layer() -> np.ndarray:
    return np.random.default_rng(6).standard_normal((HEIGHT, WIDTH, 3))


def noisy(frames: np.ndarray, sigma: float) -> np.ndarray:
    rng = np.random.default_rng(1)
    return to_bytes(frames + sigma * rng.standard_normal(frames.shape, dtype=np.float32))


def boiling(frames: np.ndarray, grain: int) -> np.ndarray:
    rng = np.random.default_rng(2)
    shape = HEIGHT // grain + 2, WIDTH // grain + 2
    clouds = [
        cv2.resize(rng.standard_normal(shape), (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
        for _ in frames
    ]
    return to_bytes(frames * (1 + 0.12 * np.stack(clouds)[..., None]))


def flickering(frames: np.ndarray, alternating: bool) -> np.ndarray:
    rng = np.random.default_rng(3)
    signs = np.resize([1, -1], len(frames)) if alternating else rng.uniform(-1, 1, len(frames))
    return to_bytes(frames * (1 + 0.15 * signs)[:, None, None, None])


def shuffled(frames: np.ndarray) -> np.ndarray:
    return frames[np.random.default_rng(4).permutation(len(frames))]


def cut(frames: np.ndarray, at: int) -> np.ndarray:
    return np.concatenate([frames[:at], pan(seed=9)[at:]])


def frozen(frames: np.ndarray) -> np.ndarray:
    return np.repeat(frames[:1], len(frames), 0)


def score(frames: np.ndarray) -> TemporalScore:
    return score_video(Video(frames, 8.0))


def verdict(frames: np.ndarray) -> tuple[str, list[str]]:
    return judge(score(frames), QualityConfig())


STEADY: dict[str, Callable[[], np.ndarray]] = {
    "pan 2 px of 480 lines": lambda: pan(0.5),
    "pan 15 px of 480 lines": lambda: pan(3.75),
    "push in": lambda: zoom(0.8, 1.4),
    "zoom out": lambda: zoom(1.6, 0.8),
    "still camera, moving figure": still_camera,
    "noise that stays": lambda: to_bytes(still_camera() + 10.0 * noise_layer()),
}
BROKEN: dict[str, tuple[Callable[[], np.ndarray], str]] = {
    "shuffled pan": (lambda: shuffled(pan()), "out of order"),
    "shuffled figure": (lambda: shuffled(still_camera()), "out of order"),
    "alternating flicker": (lambda: flickering(pan(), True), "brightness flickers"),
    "random flicker": (lambda: flickering(still_camera(), False), "brightness flickers"),
    "noise on a pan": (lambda: noisy(pan(), 12), "texture boils, or is noise"),
    "noise on a still camera": (lambda: noisy(still_camera(), 12), "texture boils, or is noise"),
    "fine boiling": (lambda: boiling(pan(), 4), "texture boils, or is noise"),
    "coarse boiling": (lambda: boiling(pan(), 12), "texture boils, or is noise"),
    "cut in the middle": (lambda: cut(pan(), 8), "changes to another one"),
    "early cut": (lambda: cut(still_camera(), 4), "changes to another one"),
    "frozen": (lambda: frozen(pan()), "never changes"),
    "frozen with constant noise": (lambda: frozen(noisy(pan(), 10)), "never changes"),
}


@pytest.mark.parametrize("name", STEADY)
def test_steady_clip_is_accepted(name: str) -> None:
    assert verdict(STEADY[name]()) == ("accepted", [])


@pytest.mark.parametrize("name", BROKEN)
def test_broken_clip_is_rejected_for_its_defect(name: str) -> None:
    make, words = BROKEN[name]
    answer, reasons = verdict(make())
    assert answer == "rejected"
    assert any(words in reason for reason in reasons), reasons


def test_random_motion_scores_below_even_motion() -> None:
    assert score(shuffled(pan())).score < 0.6 < 0.9 < score(pan()).score


@pytest.mark.smoke
def test_pan_is_measured_in_px_of_480_lines() -> None:
    measured = score(pan(3.0))
    assert measured.mean_flow_px == pytest.approx(3.0 * 480 / HEIGHT, rel=0.1)
    assert measured.flow_acceleration == pytest.approx(0, abs=1)
    assert measured.valid_fraction > 0.9


def test_size_of_the_picture_does_not_matter() -> None:
    small, large = score(pan(3.0)), score(pan(3.0, size=4))
    assert large.mean_flow_px == pytest.approx(small.mean_flow_px, rel=0.1)
    assert large.score == pytest.approx(small.score, abs=0.05)
    assert large.disorder == pytest.approx(small.disorder, abs=0.05)


def test_threads_do_not_change_the_result() -> None:
    video = Video(noisy(pan(), 4), 8.0)
    assert score_video(video, num_threads=1) == score_video(video, num_threads=2)


def test_grey_pictures_and_tiny_ones_are_scored() -> None:
    grey = pan()[..., :1].repeat(3, -1)
    assert judge(score(grey), QualityConfig())[0] == "accepted"
    assert score(grey[:, :64, :64]).score > 0.6


def test_flat_pictures_are_static_and_break_nothing() -> None:
    for level in (0, 128, 255):
        assert score(np.full((9, 64, 64, 3), level, np.uint8)).is_static


def test_portrait_and_landscape_agree() -> None:
    wide = score(pan(3.0))
    tall = score(np.ascontiguousarray(pan(3.0).swapaxes(1, 2)))
    assert tall.score == pytest.approx(wide.score, abs=0.05)


@pytest.mark.parametrize("num_frames", [2, 3, 5])
def test_short_clip_is_scored_without_made_up_numbers(num_frames: int) -> None:
    measured = score(pan()[:num_frames])
    assert measured.disorder is None
    assert (measured.flicker is None) == (num_frames == 2)
    assert measured.mean_flow_px > 0


@pytest.mark.smoke
def test_one_frame_is_refused_with_the_fix() -> None:
    with pytest.raises(RequestError, match=r"num_frames must be at least 2 .* got 1"):
        score(pan()[:1])


@pytest.mark.parametrize("frames", [pan()[..., 0], pan().astype(np.float32), pan()[:, :8]])
def test_wrong_pixels_are_refused(frames: np.ndarray) -> None:
    with pytest.raises(RequestError, match="must be"):
        score(frames)


def test_long_clip_measured_in_chunks_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = score(still_camera())
    monkeypatch.setattr(scoring, "CHUNK", 5)
    assert score(still_camera()) == whole


def test_record_holds_what_reproduces_the_score() -> None:
    parameters = score(pan()[:3]).parameters
    assert parameters["tvl1_lambda_"] == scoring.TVL1["lambda_"]
    assert parameters["variance_weight"] == scoring.VARIANCE_WEIGHT
    assert (parameters["work_width"], parameters["work_height"]) == (WIDTH, HEIGHT)


def test_score_follows_its_formula() -> None:
    measured = score(still_camera())
    assert measured.motion_variance is not None
    assert measured.score == pytest.approx(
        np.exp(-scoring.VARIANCE_WEIGHT * measured.motion_variance)
    )


def read_clip(name: str, num_frames: int) -> np.ndarray:
    """Frames at 8 fps, 240 px wide."""
    frames: list[np.ndarray] = []
    with av.open(str(Path(DATA) / "clips" / name)) as container:
        for frame in container.decode(video=0):
            if frame.time + 1e-6 >= len(frames) / 8:
                height = round(frame.height * 240 / frame.width)
                image = frame.to_ndarray(format="rgb24")
                frames.append(cv2.resize(image, (240, height), interpolation=cv2.INTER_AREA))
            if len(frames) == num_frames:
                break
    return np.stack(frames)


@needs_data
@pytest.mark.parametrize(
    "name", ["cog_1.mp4", "cog_train_running.mp4", "intel_asl_walk.mkv", "moviepy_chaplin.mp4"]
)
def test_natural_clip_is_accepted(name: str) -> None:
    assert verdict(read_clip(name, 17)) == ("accepted", [])


@needs_data
@pytest.mark.slow
@pytest.mark.parametrize("name", ["skv_bigbuckbunny.mp4", "intel_asl_book.mkv"])
@pytest.mark.parametrize(
    "break_clip",
    [shuffled, frozen, lambda v: flickering(v, False), lambda v: noisy(v, 12)],
    ids=["shuffled", "frozen", "flicker", "noise"],
)
def test_natural_clip_broken_is_rejected(
    name: str, break_clip: Callable[[np.ndarray], np.ndarray]
) -> None:
    frames = read_clip(name, 17)
    assert verdict(frames) == ("accepted", [])
    assert verdict(break_clip(frames))[0] == "rejected"


@needs_data
def test_flow_agrees_with_ground_truth() -> None:
    """Middlebury RubberWhale: mean end-point error; Farneback has 0.43 there."""
    folder = Path(DATA) / "flow"
    raw = np.fromfile(folder / "rubberwhale_gt.flo", np.float32)
    width, height = raw[1:3].view(np.int32)
    truth = raw[3:].reshape(height, width, 2)
    known = (np.abs(truth) < 1e8).all(-1)
    images = [cv2.imread(str(folder / f"rubberwhale{i}.png"), cv2.IMREAD_GRAYSCALE) for i in (1, 2)]
    error = np.linalg.norm(scoring._flow(*images) - truth, axis=-1)[known]
    assert error.mean() < 0.3
