"""The verdict on a clip from its measurements, with reasons that a person can act on."""

from collections.abc import Sequence

from vidgen_ray.config import QualityConfig
from vidgen_ray.schema import TemporalScore, Verdict

ALIKE_DB = 30.0  # from here a first frame is as good as its photo
ALTERNATING_DISORDER = 1.25  # chance gives 1, and 1.2 at most to a shuffled clip of 20 frames


def judge(score: TemporalScore, quality: QualityConfig) -> tuple[Verdict, list[str]]:
    """`accepted` and no reasons, or `rejected` and every reason, the most serious first.

    A measurement that is None (the clip is too short for it) is no reason.
    """
    reasons = [reason for reason in _reasons(score, quality) if reason]
    return ("rejected" if reasons else "accepted"), reasons


def best_attempt(scores: Sequence[TemporalScore | None]) -> int:
    """Index of the rejected attempt to keep: a moving clip before a still one, one scene before
    two, then the steadiest and most like its photo.

    None stands for an attempt that could not be scored, and loses to any other. The earliest of
    equals wins. `scores` must not be empty.
    """
    return max(range(len(scores)), key=lambda index: _worth(scores[index]))


def _worth(score: TemporalScore | None) -> tuple[float, ...]:
    if score is None:
        return (0.0,)
    unsteadiness = (score.texture_change or 0.0) + 100 * (score.flicker or 0.0)
    one_scene = 1 - round(score.cut_strength or 0.0)
    match = ALIKE_DB if score.image_match_db is None else score.image_match_db
    merit = score.score * min(match, ALIKE_DB) / (1 + unsteadiness)
    return 1.0, float(not score.is_static), float(one_scene), merit


def _reasons(score: TemporalScore, quality: QualityConfig) -> list[str | None]:
    return [
        _is_another_picture(score, quality),
        _is_still(score, quality),
        _is_cut(score, quality),
        _is_disordered(score, quality),
        _jumps(score, quality),
        _flickers(score, quality),
        _boils(score, quality),
        _is_grid(score, quality),
    ]


def _is_another_picture(score: TemporalScore, quality: QualityConfig) -> str | None:
    if score.image_match_db is None or score.image_match_db >= quality.min_image_match_db:
        return None
    return (
        f"the first frame is not the photo: they agree to {score.image_match_db:.1f} dB, below "
        f"{quality.min_image_match_db:g} dB"
    )


def _is_still(score: TemporalScore, quality: QualityConfig) -> str | None:
    if quality.allow_static:
        return None
    if score.is_static:
        return (
            f"the picture never changes: {score.changed_fraction:.1%} of it differs at any time, "
            "so the clip is a still image"
        )
    if score.still_fraction > quality.max_still_fraction:
        return (
            f"the picture stands still for {score.still_fraction:.0%} of the clip without a "
            f"break, above {quality.max_still_fraction:.0%}: the motion freezes"
        )
    return None


def _is_cut(score: TemporalScore, quality: QualityConfig) -> str | None:
    if score.cut_strength is None or score.cut_strength <= quality.max_cut_strength:
        return None
    return (
        f"cut strength {score.cut_strength:.2f} is above {quality.max_cut_strength:g}: "
        "the picture changes to another one between two frames"
    )


def _is_disordered(score: TemporalScore, quality: QualityConfig) -> str | None:
    if score.disorder is None or score.motion_coherence is None:
        return None
    # Fast motion leaves neighbours as far apart as any two frames, but it keeps its direction.
    disorder = score.disorder - score.motion_coherence / 2
    # Drawings that alternate, such as a mouth that talks, are further apart than chance.
    if disorder <= quality.max_disorder or score.disorder > ALTERNATING_DISORDER:
        return None
    return (
        f"disorder {disorder:.2f} is above {quality.max_disorder:g}: neighbouring frames are as "
        "unlike as distant ones, as if they were out of order"
    )


def _jumps(score: TemporalScore, quality: QualityConfig) -> str | None:
    if score.score >= quality.min_temporal_score:
        return None
    return (
        f"score {score.score:.2f} is below {quality.min_temporal_score:g}: "
        "the motion jumps to and fro between frames"
    )


def _flickers(score: TemporalScore, quality: QualityConfig) -> str | None:
    if score.flicker is None or score.flicker <= quality.max_flicker:
        return None
    return (
        f"brightness flickers by {score.flicker:.1%} a frame, above {quality.max_flicker:.1%}: "
        "frames differ in exposure from both neighbours"
    )


def _boils(score: TemporalScore, quality: QualityConfig) -> str | None:
    if score.texture_change is None or score.wobble_px is None:
        return None
    # Flow takes coarse boiling for motion and leaves fine boiling as texture: they share a limit.
    share = score.texture_change / quality.max_texture_change
    share += score.wobble_px / quality.max_wobble_px
    if share <= 1:
        return None
    return (
        f"texture boils, or is noise: all over the picture it changes by "
        f"{score.texture_change:.1f} grey levels and wobbles by {score.wobble_px:.2f} px a frame, "
        f"{share:.0%} of what {quality.max_texture_change:g} levels and "
        f"{quality.max_wobble_px:g} px allow together"
    )


def _is_grid(score: TemporalScore, quality: QualityConfig) -> str | None:
    if score.patch_grid is None or score.patch_grid <= quality.max_patch_grid:
        return None
    return (
        f"a grid of blots covers the picture: {score.patch_grid:.1%} of its detail repeats every "
        f"16 px, above {quality.max_patch_grid:.1%}"
    )
