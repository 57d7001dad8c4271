"""The verdict: which measurement rejects a clip, what it says, and which attempt is kept."""

import pytest

from vidgen_ray.config import QualityConfig
from vidgen_ray.generation.verdict import best_attempt, judge
from vidgen_ray.schema import TemporalScore

GOOD = TemporalScore(
    score=0.9,
    motion_variance=0.1,
    motion_coherence=0.8,
    mean_flow_px=4.0,
    flow_acceleration=0.5,
    wobble_px=0.01,
    warp_error=2.0,
    valid_fraction=0.95,
    flicker=0.002,
    texture_change=0.5,
    frame_difference=6.0,
    disorder=0.4,
    cut_strength=0.05,
    changed_fraction=0.6,
    still_fraction=0.0,
    is_static=False,
    patch_grid=0.01,
    image_match_db=38.0,
)


def clip(**measured: object) -> TemporalScore:
    return TemporalScore.model_validate({**GOOD.model_dump(), **measured})


@pytest.mark.smoke
def test_steady_clip_is_accepted_without_reasons() -> None:
    assert judge(GOOD, QualityConfig()) == ("accepted", [])


@pytest.mark.parametrize(
    ("measured", "words"),
    [
        ({"score": 0.41}, "score 0.41 is below 0.6: the motion jumps"),
        ({"flicker": 0.071}, "brightness flickers by 7.1% a frame"),
        ({"wobble_px": 0.31}, "wobbles by 0.31 px a frame"),
        ({"texture_change": 6.2}, "changes by 6.2 grey levels"),
        ({"disorder": 1.0, "motion_coherence": 0.0}, "out of order"),
        ({"cut_strength": 0.8}, "changes to another one between two frames"),
        ({"is_static": True, "changed_fraction": 0.0}, "never changes"),
        ({"still_fraction": 0.6}, "stands still for 60% of the clip"),
        ({"patch_grid": 0.21}, "blots covers the picture: 21.0% of its detail repeats every 16 px"),
        ({"image_match_db": 22.4}, "not the photo: they agree to 22.4 dB, below 28 dB"),
    ],
)
def test_each_defect_is_rejected_in_plain_words(measured: dict[str, object], words: str) -> None:
    verdict, reasons = judge(clip(**measured), QualityConfig())
    assert verdict == "rejected"
    assert len(reasons) == 1
    assert words in reasons[0]


def test_every_defect_is_named() -> None:
    _, reasons = judge(clip(score=0.2, flicker=0.2, texture_change=9.0), QualityConfig())
    assert len(reasons) == 3


def test_texture_change_and_wobble_share_one_limit() -> None:
    for measured in ({"texture_change": 2.0}, {"wobble_px": 0.06}):
        assert judge(clip(**measured), QualityConfig())[0] == "accepted"
    assert judge(clip(texture_change=2.0, wobble_px=0.06), QualityConfig())[0] == "rejected"


def test_fast_motion_that_keeps_its_direction_is_not_disorder() -> None:
    assert judge(clip(disorder=0.95, motion_coherence=0.8), QualityConfig())[0] == "accepted"


def test_drawings_that_alternate_are_not_disorder() -> None:
    assert judge(clip(disorder=1.34, motion_coherence=0.0), QualityConfig())[0] == "accepted"


def test_what_could_not_be_measured_is_no_reason() -> None:
    short = clip(
        motion_variance=None,
        motion_coherence=None,
        flow_acceleration=None,
        wobble_px=None,
        warp_error=None,
        flicker=None,
        texture_change=None,
        disorder=None,
        cut_strength=None,
        patch_grid=None,
        image_match_db=None,
    )
    assert judge(short, QualityConfig()) == ("accepted", [])


def test_thresholds_come_from_the_configuration() -> None:
    strict = QualityConfig(min_temporal_score=0.95)
    assert judge(GOOD, strict)[0] == "rejected"


def test_still_clips_pass_where_they_are_allowed() -> None:
    still = clip(is_static=True, still_fraction=1.0, changed_fraction=0.0)
    assert judge(still, QualityConfig(allow_static=True))[0] == "accepted"


@pytest.mark.parametrize(
    ("scores", "best"),
    [
        ([clip(score=0.3), clip(score=0.5)], 1),
        ([None, clip(score=0.1)], 1),
        ([clip(score=1.0, is_static=True), clip(score=0.4)], 1),
        ([clip(score=0.9, cut_strength=0.9), clip(score=0.4)], 1),
        ([clip(score=0.8, texture_change=12.0), clip(score=0.5)], 1),
        ([clip(score=0.9, image_match_db=12.0), clip(score=0.5)], 1),
        ([clip(score=0.5), clip(score=0.5)], 0),
        ([None, None], 0),
    ],
)
def test_best_attempt(scores: list[TemporalScore | None], best: int) -> None:
    assert best_attempt(scores) == best
