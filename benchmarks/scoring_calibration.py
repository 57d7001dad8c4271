"""Confusion table of the temporal verdict: natural clips, camera moves, clips broken on purpose.

    python benchmarks/scoring_calibration.py --clips FOLDER [--images FOLDER] \\
        --cache scores.jsonl --csv scores.csv --out table.md

Every clip is resampled to 8 fps and to at most 480x720 pixels, and cut into windows of up to
`--limit-frames`. `--cut NAME:FRAME` names a scene cut of a source (a frame at 8 fps), so that no
natural window holds one. Scores are kept in the cache: a change of thresholds needs a second, a
change of `scoring.py` a new cache.
"""

import argparse
import csv
import io
import json
import time
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import av
import cv2
import numpy as np

from vidgen_ray.config import QualityConfig
from vidgen_ray.generation.scoring import score_video
from vidgen_ray.generation.verdict import judge
from vidgen_ray.schema import TemporalScore, Video

FPS = 8
MAX_PIXELS = 480 * 720
MIN_FRAMES = 8
VIDEO_SUFFIXES = {".mp4", ".mkv", ".avi", ".webm", ".mov", ".gif"}
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg"}

Frames = np.ndarray
Generator = np.random.Generator


@dataclass(frozen=True)
class Sample:
    """One clip to judge. `accept` is None where the table only reports what happens."""

    family: str
    variant: str
    source: str
    accept: bool | None
    make: Callable[[], Frames]

    @property
    def key(self) -> str:
        return f"{self.family}|{self.variant}|{self.source}"


def read_frames(path: Path, max_frames: int = 400) -> list[Frames]:
    """Frames at 8 fps, shrunk to at most MAX_PIXELS; what can be read of a damaged file."""
    frames: list[Frames] = []
    start = None
    try:
        with av.open(str(path)) as container:
            for frame in container.decode(video=0):
                start = frame.time or 0.0 if start is None else start
                if (frame.time or 0.0) - start + 1e-6 < len(frames) / FPS:
                    continue
                frames.append(_fit(frame.to_ndarray(format="rgb24")))
                if len(frames) == max_frames:
                    break
    except av.FFmpegError:
        pass
    return frames


def _fit(frame: Frames) -> Frames:
    height, width = frame.shape[:2]
    factor = min(1.0, (MAX_PIXELS / (height * width)) ** 0.5)
    size = int(width * factor) // 2 * 2, int(height * factor) // 2 * 2
    return cv2.resize(frame, size, interpolation=cv2.INTER_AREA)


def windows(frames: list[Frames], cuts: list[int], limit: int) -> list[tuple[int, Frames]]:
    """(start, frames) of the first and the last window in every stretch without a cut."""
    found = []
    edges = [0, *sorted(cuts), len(frames)]
    for begin, end in pairwise(edges):
        starts = {begin, max(begin, end - limit)} if end - begin > 1.5 * limit else {begin}
        for start in sorted(starts):
            if min(end, start + limit) - start >= MIN_FRAMES:
                found.append((start, np.stack(frames[start : min(end, start + limit)])))
    return found


def to_bytes(frames: Frames) -> Frames:
    return np.clip(np.rint(frames), 0, 255).astype(np.uint8)


def shuffled(frames: Frames, rng: Generator) -> Frames:
    return frames[rng.permutation(len(frames))]


def swapped(frames: Frames, rng: Generator) -> Frames:
    """A quarter of the frames trade places in pairs."""
    order = np.arange(len(frames))
    picked = rng.permutation(len(frames))[: len(frames) // 8 * 2]
    order[picked] = order[np.roll(picked, len(picked) // 2)]
    return frames[order]


def flicker(frames: Frames, rng: Generator, depth: float, alternating: bool) -> Frames:
    signs = np.resize([1.0, -1.0], len(frames))
    gains = 1 + depth * (signs if alternating else rng.uniform(-1, 1, len(frames)))
    return to_bytes(frames * gains[:, None, None, None])


def noisy(frames: Frames, rng: Generator, sigma: float, colour: bool = True) -> Frames:
    shape = frames.shape[1:] if colour else (*frames.shape[1:3], 1)
    return np.stack(
        [to_bytes(f + sigma * rng.standard_normal(shape, dtype=np.float32)) for f in frames]
    )


def cloud(rng: Generator, height: int, width: int, grain: int) -> Frames:
    """Smooth noise of unit variance whose blobs are about `grain` px wide."""
    seed = rng.standard_normal((height // grain + 4, width // grain + 4)).astype(np.float32)
    large = cv2.resize(seed, None, fx=grain, fy=grain, interpolation=cv2.INTER_CUBIC)
    large = large[grain : grain + height, grain : grain + width]
    return large / large.std()


def boiling(frames: Frames, rng: Generator, kind: str, strength: float, grain: int) -> Frames:
    height, width = frames.shape[1:3]
    rows, columns = np.indices((height, width), dtype=np.float32)
    broken = []
    for frame in frames:
        noise = cloud(rng, height, width, grain)
        if kind == "warped":
            x, y = columns + strength * noise, rows + strength * cloud(rng, height, width, grain)
            broken.append(cv2.remap(frame, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT))
        elif kind == "added":
            broken.append(to_bytes(frame + strength * noise[..., None]))
        else:
            broken.append(to_bytes(frame * (1 + strength * noise[..., None])))
    return np.stack(broken)


def cut(frames: Frames, other: Frames, at: int) -> Frames:
    size = frames.shape[2], frames.shape[1]
    rest = [cv2.resize(other[i % len(other)], size) for i in range(at, len(frames))]
    return np.concatenate([frames[:at], np.stack(rest)])


def frozen(frames: Frames, start: int = 0) -> Frames:
    return np.concatenate(
        [frames[:start], np.repeat(frames[start : start + 1], len(frames) - start, 0)]
    )


def coded(frames: Frames, crf: int = 18) -> Frames:
    """There and back through H.264."""
    height, width = (side // 2 * 2 for side in frames.shape[1:3])
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"crf": str(crf)})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.thread_count = 1
        for frame in frames[:, :height, :width]:
            image = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            container.mux(stream.encode(image))
        container.mux(stream.encode())
    buffer.seek(0)
    with av.open(buffer) as container:
        return np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)])


def camera_move(
    image: Frames,
    num_frames: int,
    pan: tuple[float, float] = (0, 0),
    zoom: tuple[float, float] = (1, 1),
    eased: bool = False,
) -> Frames:
    """480x720 frames of a still image. `pan` is px a frame, `zoom` the first and last scale."""
    height, width, last = 480, 720, num_frames - 1
    room = width + abs(pan[0]) * last + 4, height + abs(pan[1]) * last + 4
    fit = max(room[0] / image.shape[1], room[1] / image.shape[0])
    smooth = cv2.INTER_CUBIC if fit > 1 else cv2.INTER_AREA
    large = cv2.resize(image, None, fx=fit, fy=fit, interpolation=smooth)
    middle = large.shape[1] / 2, large.shape[0] / 2
    frames = []
    for t in np.linspace(0, 1, num_frames):
        u = t * t * (3 - 2 * t) if eased else t
        scale = zoom[0] * (zoom[1] / zoom[0]) ** u
        x, y = (middle[i] + pan[i] * last * (u - 0.5) for i in (0, 1))
        matrix = np.array([[scale, 0, width / 2 - scale * x], [0, scale, height / 2 - scale * y]])
        frames.append(cv2.warpAffine(large, matrix, (width, height), borderMode=cv2.BORDER_REFLECT))
    return np.stack(frames)


MOVES = {
    "pan 2 px": {"pan": (2, 0)},
    "pan 5 px": {"pan": (-5, 0)},
    "pan 9.3 px": {"pan": (9.3, 0)},
    "pan 15 px": {"pan": (15, 0)},
    "diagonal pan": {"pan": (8, 3)},
    "eased pan": {"pan": (8, 0), "eased": True},
    "push in": {"zoom": (1, 1.8)},
    "zoom out": {"zoom": (2, 1)},
}

# family: whether it is to be accepted (None: reported), and its variants by name. Every clip takes
# the next variant of each family in turn.
Break = Callable[[Frames, Generator, Frames], Frames]
BROKEN: dict[str, dict[str, Break]] = {
    "shuffled": {
        "raw": lambda v, r, o: shuffled(v, r),
        "h264": lambda v, r, o: coded(shuffled(v, r)),
    },
    "flicker 15 %": {
        "alternating": lambda v, r, o: flicker(v, r, 0.15, True),
        "random": lambda v, r, o: flicker(v, r, 0.15, False),
        "random h264": lambda v, r, o: coded(flicker(v, r, 0.15, False)),
    },
    "noise": {
        "sigma 10": lambda v, r, o: noisy(v, r, 10),
        "sigma 10 h264": lambda v, r, o: coded(noisy(v, r, 10)),
        "sigma 25": lambda v, r, o: noisy(v, r, 25),
        "sigma 15 grey": lambda v, r, o: noisy(v, r, 15, False),
        "sigma 15 h264": lambda v, r, o: coded(noisy(v, r, 15)),
    },
    "boiling": {
        "added 10, grain 4": lambda v, r, o: boiling(v, r, "added", 10, 4),
        "times 0.12, grain 24": lambda v, r, o: boiling(v, r, "times", 0.12, 24),
        "added 8, grain 12": lambda v, r, o: boiling(v, r, "added", 8, 12),
        "warped 2.5 px, grain 24": lambda v, r, o: boiling(v, r, "warped", 2.5, 24),
        "times 0.1, grain 8, h264": lambda v, r, o: coded(boiling(v, r, "times", 0.1, 8)),
    },
    "hard cut": {
        "middle": lambda v, r, o: cut(v, o, len(v) // 2),
        "frame 5": lambda v, r, o: cut(v, o, 5),
        "frame -5, h264": lambda v, r, o: coded(cut(v, o, len(v) - 5)),
    },
    "frozen": {
        "raw": lambda v, r, o: frozen(v),
        "h264": lambda v, r, o: coded(frozen(v)),
        "constant noise": lambda v, r, o: frozen(noisy(v[:1].repeat(len(v), 0), r, 10)),
        "h264 crf 28": lambda v, r, o: coded(frozen(v), 28),
    },
}
REPORTED: dict[str, dict[str, Break]] = {
    "a quarter of frames swapped": {"raw": lambda v, r, o: swapped(v, r)},
    "flicker 8 %": {
        "alternating": lambda v, r, o: flicker(v, r, 0.08, True),
        "random": lambda v, r, o: flicker(v, r, 0.08, False),
    },
    "flicker 5 %": {
        "alternating": lambda v, r, o: flicker(v, r, 0.05, True),
        "random": lambda v, r, o: flicker(v, r, 0.05, False),
    },
    "second half frozen": {"raw": lambda v, r, o: frozen(v, len(v) // 2)},
}


def all_samples(args: argparse.Namespace) -> Iterator[Sample]:
    cuts = defaultdict(list)
    for entry in args.cut:
        name, _, frame = entry.rpartition(":")
        cuts[name].append(int(frame))
    paths = sorted(p for p in args.clips.iterdir() if p.suffix.lower() in VIDEO_SUFFIXES)
    clips = []
    for path in paths:
        if path.name not in args.skip:
            for start, frames in windows(read_frames(path), cuts[path.name], args.limit_frames):
                clips.append((f"{path.name}@{start}", frames))
    for index, (name, frames) in enumerate(clips):
        yield Sample("natural", "raw", name, True, lambda f=frames: f)
        yield Sample(
            "natural, h264", "crf 18", name, True, lambda f=frames: coded(f[: args.broken_frames])
        )
        other = clips[(index + len(clips) // 2) % len(clips)][1]
        for families, accept in ((BROKEN, False), (REPORTED, None)):
            for family, variants in families.items():
                if len(frames) >= args.min_broken_frames:
                    variant = list(variants)[index % len(variants)]
                    yield Sample(
                        family,
                        variant,
                        name,
                        accept,
                        _broken(args, variants[variant], frames, other),
                    )
    if args.images:
        for path in sorted(p for p in args.images.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES):
            image = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)
            for variant, move in MOVES.items():
                yield Sample(
                    "camera move", variant, path.name, True,
                    lambda i=image, m=move: camera_move(i, args.broken_frames, **m),
                )  # fmt: skip
    yield from _untrained(args.broken_frames)


def _broken(
    args: argparse.Namespace, make: Break, frames: Frames, other: Frames
) -> Callable[[], Frames]:
    seed = zlib.crc32(frames[0].tobytes())
    part = frames[: args.broken_frames]
    return lambda: make(part, np.random.default_rng(seed), other[: args.broken_frames])


def _untrained(num_frames: int) -> Iterator[Sample]:
    """What an untrained model makes: noise, and grey blobs that differ or stay."""
    shape = num_frames, 160, 240, 3

    def blobs(seed: int) -> Frames:
        rng = np.random.default_rng(seed)
        return to_bytes(
            np.stack(
                [
                    128 + 20 * cloud(rng, 160, 240, 16)[..., None].repeat(3, 2)
                    for _ in range(num_frames)
                ]
            )
        )

    noise = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    yield Sample("untrained output", "colour noise", "-", False, lambda: noise)
    yield Sample("untrained output", "new blobs", "-", False, lambda: blobs(0))
    yield Sample("untrained output", "same blobs", "-", False, lambda: frozen(blobs(1)))


def measure(samples: Iterator[Sample], cache: Path | None) -> list[tuple[Sample, TemporalScore]]:
    known = {}
    if cache and cache.exists():
        for line in cache.read_text().splitlines():
            entry = json.loads(line)
            known[entry["key"]] = TemporalScore.model_validate(entry["score"])
    results = []
    for sample in samples:
        if sample.key not in known:
            begin = time.process_time()
            known[sample.key] = score_video(Video(sample.make(), FPS))
            print(f"{time.process_time() - begin:5.1f} s  {sample.key}", flush=True)
            if cache:
                line = {"key": sample.key, "score": known[sample.key].model_dump()}
                with cache.open("a") as out:
                    out.write(json.dumps(line) + "\n")
        results.append((sample, known[sample.key]))
    return results


def table(results: list[tuple[Sample, TemporalScore]], quality: QualityConfig) -> str:
    counts: dict[tuple[str, bool | None], list[int]] = defaultdict(lambda: [0, 0])
    wrong = []
    for sample, score in results:
        verdict, reasons = judge(score, quality)
        counts[sample.family, sample.accept][0] += verdict == "accepted"
        counts[sample.family, sample.accept][1] += 1
        if sample.accept is not None and sample.accept != (verdict == "accepted"):
            wrong.append(f"- {sample.key}: {verdict}. {'; '.join(reasons)}")
    lines = ["| family | should be | accepted | total |", "|---|---|---|---|"]
    words = {True: "accepted", False: "rejected", None: "reported only"}
    for (family, accept), (accepted, total) in counts.items():
        lines.append(f"| {family} | {words[accept]} | {accepted} | {total} |")
    return "\n".join([*lines, "", f"Wrong ({len(wrong)}):", *wrong]) + "\n"


def write_csv(path: Path, results: list[tuple[Sample, TemporalScore]], quality: QualityConfig):
    fields = [name for name in TemporalScore.model_fields if name != "parameters"]
    with path.open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow(["family", "variant", "source", "accept", "verdict", *fields])
        for sample, score in results:
            values = [getattr(score, name) for name in fields]
            rounded = [round(v, 4) if isinstance(v, float) else v for v in values]
            verdict = judge(score, quality)[0]
            out.writerow(
                [sample.family, sample.variant, sample.source, sample.accept, verdict, *rounded]
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--clips", type=Path, required=True)
    parser.add_argument("--images", type=Path, help="still images for camera moves")
    parser.add_argument("--limit-frames", type=int, default=49)
    parser.add_argument("--broken-frames", type=int, default=49, help="of all but natural clips")
    parser.add_argument("--min-broken-frames", type=int, default=12)
    parser.add_argument("--cut", action="append", default=[], metavar="NAME:FRAME")
    parser.add_argument("--skip", action="append", default=[], metavar="NAME")
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--csv", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    quality = QualityConfig()
    results = measure(all_samples(args), args.cache)
    args.out.write_text(table(results, quality))
    if args.csv:
        write_csv(args.csv, results, quality)
    print(args.out.read_text())


if __name__ == "__main__":
    main()
