"""Score the temporal consistency of a clip from Dual TV-L1 optical flow and frame order."""

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from vidgen_ray.errors import RequestError
from vidgen_ray.generation.image_match import image_match_db
from vidgen_ray.generation.patch_grid import patch_grid
from vidgen_ray.schema import TemporalScore, Video

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]
Mask = NDArray[np.bool_]

WORK_PIXELS = 240 * 360
REFERENCE_HEIGHT = 480  # lengths are px of a picture this high
VARIANCE_WEIGHT = 0.9  # random changes of direction (variance 0.5) score 0.64, shuffled frames 0.5
FLOW_FLOOR_PX = 1.0  # slower motion hardly counts: its direction is noise
COHERENCE_FLOOR_PX = 0.3
WOBBLE_FLOOR_PX = 0.2
TVL1: dict[str, Any] = {
    "tau": 0.25,
    "lambda_": 0.15,
    "theta": 0.3,
    "nscales": 3,
    "warps": 1,
    "epsilon": 0.05,
    "innnerIterations": 10,  # OpenCV's spelling
    "outerIterations": 1,
    "scaleStep": 0.5,
    "gamma": 0.0,
    "medianFiltering": 1,
    "useInitialFlow": True,
}
# Bands: the full-size frame, then the working frame, each band twice as coarse as the last. The
# natural residual decreases with coarseness; the weights make bands comparable to per-pixel noise.
TEXTURE_WEIGHTS = (1.0, 0.6, 3.5, 4.5)
MISFIT = (0.1, 0.1, 0.0, 0.0)  # share of detail that subpixel warping may lose
LEVELS_SEEN = (20, 235)  # darker or brighter blocks saturate, which hides changes
BLOCKS = (12, 8)  # columns, rows
LIGHT_BLOCKS = (24, 16)
ORDER_SIZE = (48, 32)  # frame size for the analysis of frame order
CHANGE_SIZE = (96, 64)  # frame size for the detection of any change
CHANGE_LEVELS = 10
STILL_LEVELS = 1
STATIC_FRACTION = 0.003
MIN_FRAMES_FOR_ORDER = 8
MIN_PAIRS_FOR_CUT = 4
CUT_SIDE = 6  # steps before and after that define the usual loss
CHUNK = 64  # pairs whose flow is in memory at once, about 2 MB each

_engines = threading.local()


def score_video(
    video: Video, num_threads: int = 1, image: np.ndarray | None = None
) -> TemporalScore:
    """Score `video`; the result does not depend on `num_threads`. See TemporalScore for units.

    Frames become grey images of at most `WORK_PIXELS`. Flow is computed between neighbours in both
    directions: DIS (Kroeger et al. 2016) gives the initial flow, so that fast motion needs no deep
    pyramid, and Dual TV-L1 (Zach, Pock, Bischof 2007) refines it. A pixel is *valid* where both
    directions agree (Sundaram, Brox, Keutzer 2010). Then both neighbours of a frame are warped onto
    it: where the frame differs from both in the same direction (a positive product of the two
    differences) there is flicker or new texture. Steady change has opposite signs, and a wrong flow
    no preferred sign.

    `image` is the conditioning image, uint8 [height, width, 3], if available. Takes about 9
    core-seconds for 49 frames of 480x720. Raises RequestError unless the frames are uint8
    [num_frames >= 2, height >= 16, width >= 16, 3].
    """
    _check(video.frames)
    opencv_threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        with ThreadPoolExecutor(max(1, num_threads)) as pool:
            score = _measure(video.frames, lambda work, items: list(pool.map(work, items)))
        found = {"patch_grid": patch_grid(video.frames)}
        if image is not None:
            found["image_match_db"] = image_match_db(video.frames[0], image)
        return score.model_copy(update=found)
    finally:
        cv2.setNumThreads(opencv_threads)


@dataclass(frozen=True)
class _Step:
    """Scalars of frames t and t+1."""

    mean_flow: float
    valid_fraction: float
    matched_fraction: float  # the smaller valid fraction of the two directions
    warp_error: float | None
    dissimilarity: float  # 1 - correlation of t with t+1 warped onto it


@dataclass(frozen=True)
class _Pair:
    """Flow between frames t and t+1 at working size, [height, width, 2]."""

    forward: Floats
    backward: Floats
    valid: Mask  # pixels of t
    valid_back: Mask  # pixels of t+1
    step: _Step


@dataclass(frozen=True)
class _Triple:
    """Frame t compared with both neighbours."""

    energy: float  # mean over the picture of the valid (|v_in|^2 + |v_out|^2) / 2, px^2
    variance: float  # the same of |v_out - v_in|^2 / 4
    valid_fraction: float
    acceleration: float
    block_motion: tuple[Floats, Floats]  # v_in and v_out, [rows, columns, 2]
    local_turn: Floats  # [rows, columns], px^2: local v_in . v_out, negative where it reverses
    local_energy: Floats  # [rows, columns], px^2: mean square of local v_in and v_out
    flicker: float  # product of the two log brightness steps
    texture: Floats  # [bands, rows, columns], levels^2; nan where it cannot be measured


def _check(frames: np.ndarray) -> None:
    if frames.ndim != 4 or frames.shape[3] != 3 or frames.dtype != np.uint8:
        raise RequestError(
            "frames must be uint8 [num_frames, height, width, 3], got "
            f"{frames.dtype} {list(frames.shape)}; convert them to 8-bit RGB"
        )
    num_frames, height, width = frames.shape[:3]
    if num_frames < 2:
        raise RequestError(
            f"num_frames must be at least 2 to score motion, got {num_frames}; make a longer clip"
        )
    if min(height, width) < 16:
        raise RequestError(
            f"height and width must be at least 16 to score motion, got {height}x{width}; "
            "make a larger clip"
        )


def _measure(
    frames: Bytes, run: Callable[[Callable[[Any], Any], Iterable[Any]], list[Any]]
) -> TemporalScore:
    full: list[Bytes] = run(lambda frame: cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), frames)
    size = _work_size(*full[0].shape)
    work: list[Bytes] = run(lambda image: _work_picture(image, size), full)
    steps: list[_Step] = []
    triples: list[_Triple] = []
    pairs: list[_Pair] = []
    for start in range(0, len(work) - 1, CHUNK):
        stop = min(start + CHUNK, len(work) - 1)
        pairs = pairs[-1:] + run(lambda t: _pair(work[t], work[t + 1]), range(start, stop))
        steps += [pair.step for pair in pairs[-(stop - start) :]]
        neighbours = [
            (full[t - 1 : t + 2], work[t - 1 : t + 2], before, after)
            for t, (before, after) in enumerate(pairwise(pairs), stop - len(pairs) + 1)
        ]
        triples += run(lambda arguments: _triple(*arguments), neighbours)
    scale = REFERENCE_HEIGHT / size[1]
    order = np.stack([_shrink(image, ORDER_SIZE) for image in full]).astype(np.float32)
    variance = _motion_variance(triples, FLOW_FLOOR_PX / scale)
    errors = [step.warp_error for step in steps if step.warp_error is not None]
    return TemporalScore(
        score=float(np.exp(-VARIANCE_WEIGHT * (variance or 0.0))),
        motion_variance=variance,
        motion_coherence=_motion_coherence(triples, COHERENCE_FLOOR_PX / scale),
        mean_flow_px=scale * _mean(step.mean_flow for step in steps),
        flow_acceleration=scale * _mean(t.acceleration for t in triples) if triples else None,
        wobble_px=_wobble(triples, scale),
        warp_error=_mean(errors) if errors else None,
        valid_fraction=_mean(step.valid_fraction for step in steps),
        flicker=_root(_mean(t.flicker for t in triples)) if triples else None,
        texture_change=_texture_change(triples),
        frame_difference=_mean(cv2.absdiff(a, b).mean() for a, b in pairwise(work)),
        disorder=_disorder(order),
        cut_strength=_cut_strength(steps, order),
        **_change(work),
        parameters=_parameters(size),
    )


def _parameters(size: tuple[int, int]) -> dict[str, float | int | str | bool]:
    return {
        "method": "Dual TV-L1 refining DIS medium, both ways",
        "opencv": str(cv2.__version__),
        "work_width": size[0],
        "work_height": size[1],
        "reference_height": REFERENCE_HEIGHT,
        "variance_weight": VARIANCE_WEIGHT,
        "flow_floor_px": FLOW_FLOOR_PX,
        "coherence_floor_px": COHERENCE_FLOOR_PX,
        "wobble_floor_px": WOBBLE_FLOOR_PX,
        "texture_weights": " ".join(map(str, TEXTURE_WEIGHTS)),
        "misfit": " ".join(map(str, MISFIT)),
        "change_levels": CHANGE_LEVELS,
        "static_fraction": STATIC_FRACTION,
        **{f"tvl1_{name}": value for name, value in TVL1.items()},
    }


def _work_size(height: int, width: int) -> tuple[int, int]:
    factor = min(1.0, (WORK_PIXELS / (height * width)) ** 0.5)
    return max(16, round(width * factor)), max(16, round(height * factor))


def _work_picture(image: Bytes, size: tuple[int, int]) -> Bytes:
    """Downscale without aliasing, which would flicker in a pan over fine detail."""
    factor = image.shape[0] / size[1]
    soft = cv2.GaussianBlur(image, (0, 0), 0.4 * factor) if factor > 1.2 else image
    picture: Bytes = _shrink(soft, size)
    return picture


def _pair(a: Bytes, b: Bytes) -> _Pair:
    gain = _gain(a, b)
    b_as_bright = cv2.convertScaleAbs(b, alpha=1 / gain)  # TV-L1 assumes constant brightness
    forward, backward = _flow(a, b_as_bright), _flow(b_as_bright, a)
    valid, valid_back = _agreement(forward, backward), _agreement(backward, forward)
    warped = _warp(b, forward) / np.float32(gain)
    errors = np.abs(warped - a)[valid]
    step = _Step(
        mean_flow=float(np.hypot(forward[..., 0], forward[..., 1]).mean()),
        valid_fraction=float(valid.mean()),
        matched_fraction=float(min(valid.mean(), valid_back.mean())),
        warp_error=float(errors.mean()) if errors.size else None,
        dissimilarity=1 - _correlation(warped, a.astype(np.float32)),
    )
    return _Pair(forward, backward, valid, valid_back, step)


def _gain(a: Bytes, b: Bytes) -> float:
    """Brightness of `b` over `a`: the median over lit blocks, robust to moving objects."""
    light_a, light_b = (_shrink(x, LIGHT_BLOCKS) + 4.0 for x in (a, b))
    lit = _lit((light_a + light_b) / 2)
    return float(np.exp(np.median(np.log(light_b / light_a)[lit])))


def _lit(light: np.ndarray) -> Mask:
    """All blocks that are not dark; in a dark image the brighter half."""
    lit: Mask = light >= min(float(np.median(light)), LEVELS_SEEN[0])
    return lit


def _flow(a: Bytes, b: Bytes) -> Floats:
    """The flow from `a` to `b`, [height, width, 2] in px."""
    if not hasattr(_engines, "tvl1"):  # neither object is thread-safe
        _engines.tvl1 = cv2.optflow.DualTVL1OpticalFlow_create(  # type: ignore[attr-defined]
            **TVL1
        )
        _engines.dis = cv2.DISOpticalFlow_create(  # type: ignore[attr-defined]
            cv2.DISOPTICAL_FLOW_PRESET_MEDIUM
        )
    guess = _engines.dis.calc(a, b, None)
    # Flat areas fit any flow: where zero flow explains the image as well, it is used.
    stay, go = (cv2.blur(cv2.absdiff(a, x), (7, 7)) for x in (b, _warp_bytes(b, guess)))
    guess[stay.astype(np.int16) <= go.astype(np.int16) + 1] = 0
    flow: Floats = _engines.tvl1.calc(a, b, guess)
    return flow


def _targets(flow: Floats) -> tuple[Floats, Floats]:
    rows, columns = np.indices(flow.shape[:2], dtype=np.float32)
    return columns + flow[..., 0], rows + flow[..., 1]


def _warp_bytes(image: Bytes, flow: Floats) -> Bytes:
    warped: Bytes = cv2.remap(
        image, *_targets(flow), cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
    return warped


def _warp(image: Bytes, flow: Floats) -> Floats:
    """Cubic warp: a linear one blurs, which would look like a change of texture."""
    warped: Bytes = cv2.remap(
        image, *_targets(flow), cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE
    )
    return warped.astype(np.float32)


def _agreement(forward: Floats, backward: Floats) -> Mask:
    """Pixels that stay inside the image and that the backward flow maps back."""
    x, y = _targets(forward)
    inside = (x >= 0) & (x <= x.shape[1] - 1) & (y >= 0) & (y <= y.shape[0] - 1)
    back = cv2.remap(backward, x, y, cv2.INTER_LINEAR)
    gap = ((forward + back) ** 2).sum(-1)
    valid: Mask = inside & (gap < 0.01 * ((forward**2).sum(-1) + (back**2).sum(-1)) + 0.5)
    return valid


def _correlation(a: Floats, b: Floats, floor: float = 4.0) -> float:
    """Correlation of two images; `floor`, levels^2, makes two flat ones equal."""
    a, b = a - a.mean(), b - b.mean()
    scale = ((a * a).mean() + floor) * ((b * b).mean() + floor)
    return float(((a * b).mean() + floor) / np.sqrt(scale))


def _triple(full: list[Bytes], work: list[Bytes], before: _Pair, after: _Pair) -> _Triple:
    flows = before.backward, after.forward
    valid = before.valid_back & after.valid
    turn = ((flows[0] + flows[1]) ** 2).sum(-1)  # flows[0] points backward: this is |out - in|^2
    energy = ((flows[0] ** 2).sum(-1) + (flows[1] ** 2).sum(-1)) / 2
    differences = [_warp(work[i], flow) - work[1] for i, flow in zip((0, 2), flows, strict=True)]
    middle = work[1].astype(np.float32)
    shrunk = full[1].shape != work[1].shape
    misfit = MISFIT[1:] if shrunk else (MISFIT[0], *MISFIT[2:])
    bands = _texture_bands([*differences, middle], valid, misfit)
    if shrunk:
        *layers, large = _full_size_differences(full, flows, valid)
        bands = _texture_bands([*layers, full[1].astype(np.float32)], large, MISFIT[:1]) + bands
    blocks = _shrink(middle, BLOCKS)
    seen = (blocks > LEVELS_SEEN[0]) & (blocks < LEVELS_SEEN[1])
    steps = [_brightness_step(difference, middle, valid) for difference in differences]
    into, out = _local(-flows[0]), _local(flows[1])
    return _Triple(
        energy=float((energy * valid).mean()),
        variance=float((turn * valid).mean() / 4),
        valid_fraction=float(valid.mean()),
        acceleration=float(np.sqrt(turn).mean()),
        block_motion=(_shrink(-flows[0], BLOCKS), _shrink(flows[1], BLOCKS)),
        local_turn=_shrink((into * out).sum(-1), BLOCKS),
        local_energy=_shrink(((into**2).sum(-1) + (out**2).sum(-1)) / 2, BLOCKS),
        flicker=steps[0] * steps[1],
        texture=np.where(seen, np.stack(bands), np.nan).astype(np.float32),
    )


def _local(flow: Floats) -> Floats:
    """Flow relative to the mean flow around it, in a box of 1/8 of the height."""
    side = max(3, flow.shape[0] // 8)
    local: Floats = flow - cv2.blur(flow, (side, side))
    return local


def _full_size_differences(
    full: list[Bytes], flows: tuple[Floats, Floats], valid: Mask
) -> tuple[Floats, Floats, Mask]:
    height, width = full[1].shape
    stretch = np.array([width / valid.shape[1], height / valid.shape[0]], np.float32)
    before, after = (
        _warp(full[i], cv2.resize(flow, (width, height)) * stretch) - full[1]
        for i, flow in zip((0, 2), flows, strict=True)
    )
    large = cv2.resize(valid.astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST)
    return before, after, large > 0


def _texture_bands(layers: list[Floats], valid: Mask, misfit: tuple[float, ...]) -> list[Floats]:
    """Texture change by block, levels^2 [rows, columns], one band per entry of `misfit`.

    `layers` are both differences and the frame, [height, width] each. A band is the mean product of
    the differences, less what a misfit of the frame's own detail explains; bands go from fine to
    coarse.
    """
    weight = valid.astype(np.float32)
    layers = [layer * weight for layer in layers]
    bands = []
    for lost in misfit:
        size = weight.shape[1], weight.shape[0]
        half = max(1, size[0] // 2), max(1, size[1] // 2)
        coarse_weight = _shrink(weight, half)
        coarse_layers = [_shrink(layer, half) for layer in layers]
        before, after, own = (
            layer / np.maximum(weight, 1e-3)
            - cv2.resize(coarse / np.maximum(coarse_weight, 1e-3), size)
            for layer, coarse in zip(layers, coarse_layers, strict=True)
        )
        used = (weight > 0.5).astype(np.float32)
        share = _shrink(used, BLOCKS)
        change = before * after - (lost * own) ** 2
        change = _shrink(change * used, BLOCKS) / np.maximum(share, 1e-3)
        bands.append(np.where(share > 0.3, change, np.float32(np.nan)))
        weight, layers = coarse_weight, coarse_layers
    return bands


def _brightness_step(difference: Floats, image: Floats, valid: Mask) -> float:
    """Log ratio of the neighbour's brightness to the frame's: median over lit, valid blocks."""
    weight = valid.astype(np.float32)
    share = _shrink(weight, LIGHT_BLOCKS)
    light = _shrink(image, LIGHT_BLOCKS) + 4.0
    change = _shrink(difference * weight, LIGHT_BLOCKS) / np.maximum(share, 1e-3)
    used = _lit(light) & (share > 0.3)
    if used.sum() < 10:
        used = _lit(light)
        change = _shrink(difference, LIGHT_BLOCKS)
    return float(np.median(np.log(np.maximum(1 + change[used] / light[used], 0.05))))


def _motion_variance(triples: list[_Triple], floor: float) -> float | None:
    if not triples:
        return None
    energy = sum(t.energy + floor**2 * t.valid_fraction for t in triples)
    return float(sum(t.variance for t in triples) / energy) if energy else 0.0


def _motion_coherence(triples: list[_Triple], floor: float) -> float | None:
    if not triples:
        return None
    into, out = (np.stack([t.block_motion[i] for t in triples]) for i in (0, 1))
    energy = ((into**2 + out**2) / 2).sum(-1) + floor**2
    return float((into * out).sum() / energy.sum())


def _wobble(triples: list[_Triple], scale: float) -> float | None:
    """Extent times correlation of local motion that reverses: medians over the blocks.

    Limbs and leaves reverse in places; boiling texture reverses everywhere.
    """
    if not triples:
        return None
    turn = np.mean([t.local_turn for t in triples], 0) * scale**2
    energy = np.mean([t.local_energy for t in triples], 0) * scale**2
    correlation = float(np.median(turn / (energy + WOBBLE_FLOOR_PX**2)))
    return _root(-np.median(turn)) * max(0.0, -correlation)


def _texture_change(triples: list[_Triple]) -> float | None:
    """Of the calmest tenth of the blocks: real change is local, a defect is everywhere."""
    if not triples:
        return None
    texture = np.stack([t.texture for t in triples])
    shrunk = texture.shape[1] == len(TEXTURE_WEIGHTS)
    weights = TEXTURE_WEIGHTS if shrunk else (TEXTURE_WEIGHTS[0], *TEXTURE_WEIGHTS[2:])
    changes = []
    for weight, band in zip(weights, np.moveaxis(texture, 1, 0), strict=True):
        times = (~np.isnan(band)).sum(0)
        if (times > 0).any():
            means = np.nansum(band, 0)[times > 0] / times[times > 0]
            changes.append(weight * _root(np.quantile(means, 0.1)))
    return max(changes) if changes else None


def _disorder(pictures: Floats) -> float | None:
    """Mean distance of neighbours over the mean distance of any two frames."""
    if len(pictures) < MIN_FRAMES_FOR_ORDER:
        return None
    flat = pictures.reshape(len(pictures), -1).astype(np.float64)
    flat -= flat.mean(1, keepdims=True)
    squares = (flat**2).sum(1)
    distances = np.sqrt(np.maximum(squares[:, None] + squares - 2 * flat @ flat.T, 0))
    overall = distances[np.triu_indices(len(flat), 1)].mean()
    return float(np.diag(distances, 1).mean() / overall) if overall > 0 else None


def _cut_strength(steps: list[_Step], pictures: Floats) -> float | None:
    """The worst step: the fraction of unmatched pixels above that of the calmer side.

    It counts in proportion to how dissimilar the warped frame is, or how much larger the step is
    than its neighbours: fast motion also loses matches, but is neither.
    """
    if len(steps) < MIN_PAIRS_FOR_CUT:
        return None
    matched = [step.matched_fraction for step in steps]
    sizes = np.sqrt(((pictures[1:] - pictures[:-1]) ** 2).mean((1, 2)))
    worst = 0.0
    for t, step in enumerate(steps):
        beside = max(*sizes[max(0, t - 2) : t], *sizes[t + 1 : t + 3])
        isolation = (float(sizes[t]) / (beside + 2) - 1) / 2
        sides = [matched[max(0, t - CUT_SIDE) : t], matched[t + 1 : t + 1 + CUT_SIDE]]
        usual = max(float(np.median(side)) for side in sides if len(side) > 1)
        lost = usual - step.matched_fraction
        worst = max(worst, lost * min(1.0, max(step.dissimilarity / 0.25, isolation)))
    return worst


def _change(work: list[Bytes]) -> dict[str, Any]:
    soft = [_shrink(cv2.GaussianBlur(image, (0, 0), 1.5), CHANGE_SIZE) for image in work]
    pictures = np.stack(soft).astype(np.int16)
    changed = float((np.ptp(pictures, 0) > CHANGE_LEVELS).mean())
    steps = np.abs(np.diff(pictures, axis=0)).reshape(len(work) - 1, -1)
    longest = run = 0
    for still in np.quantile(steps, 0.995, axis=1) < STILL_LEVELS:
        run = run + 1 if still else 0
        longest = max(longest, run)
    return {
        "changed_fraction": changed,
        "still_fraction": longest / len(steps),
        "is_static": changed < STATIC_FRACTION,
    }


def _shrink(image: Any, size: tuple[int, int]) -> Any:
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def _mean(values: Iterable[Any]) -> float:
    return float(np.mean(list(values)))


def _root(square: Any) -> float:
    return float(np.sqrt(max(0.0, float(square))))
