"""The records of a clip, a run, a validation, a benchmark and a training clip."""

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

import numpy as np
from pydantic import Field, model_validator

from vidgen_ray.config import Dtype, Section

# Importers that still name this module; new code imports from `vidgen_ray.request`.
from vidgen_ray.request import ID_PATTERN as ID_PATTERN
from vidgen_ray.request import RESERVED_IDS as RESERVED_IDS
from vidgen_ray.request import GenerationRequest as GenerationRequest
from vidgen_ray.request import attempt_seed as attempt_seed
from vidgen_ray.request import derive_seed as derive_seed
from vidgen_ray.request import resolve_request as resolve_request

Verdict = Literal["accepted", "rejected"]
Status = Literal["accepted", "needs_review", "failed", "quarantined"]


@dataclass(frozen=True)
class Video:
    """Pixels: `frames` is uint8 [num_frames, height, width, 3] in RGB order, at `fps` a second."""

    frames: np.ndarray
    fps: float


class StageTimes(Section):
    """Seconds spent in each stage of a clip; None for a stage that did not run.

    `load_s` is the time to load weights, and counts on the clip that had to wait for it only.
    """

    load_s: float | None = None
    text_s: float | None = None
    image_encode_s: float | None = None
    denoise_s: float | None = None
    decode_s: float | None = None
    score_s: float | None = None
    save_s: float | None = None


class TemporalScore(Section):
    """How a clip behaves over time: measured by `generation/scoring.py`, judged by `quality.py`.

    `score` is the variance of Dual TV-L1 flow, made a number in [0, 1] by an exponential. The flow
    says how a pixel of frame t came (v_in) and how it goes on (v_out); over all valid pixels

        score = exp(-variance_weight * motion_variance)
        motion_variance = sum |v_out - v_in|^2 / 4 / sum((|v_in|^2 + |v_out|^2) / 2 + floor^2)

    It is the variance of flow magnitude with its sign along the path, relative to the motion: even
    motion scores 1 however fast it is, motion that turns at random has variance 0.5, motion that
    turns back every frame 1. Constants are in `parameters`. The score cannot see flicker or new
    texture: the fields below can. Lengths are px of a picture 480 px high, brightness is in grey
    levels of 255, and a field is None where the clip is too short or nothing could be matched.
    `image_match_db` is the PSNR of the first frame against the conditioning image, both made small
    (`generation/image_match.py`); None for a clip that was scored without its image.
    """

    score: float = Field(ge=0.0, le=1.0)
    motion_variance: float | None
    motion_coherence: float | None  # of blocks, from frame to frame: 1 goes on, -1 turns back
    mean_flow_px: float
    flow_acceleration: float | None  # mean |v_out - v_in|, px a frame
    wobble_px: float | None  # of parts of the picture to and fro, all over it
    warp_error: float | None  # mean |I(t) - I(t+1) warped onto it| over valid pixels, grey levels
    valid_fraction: float  # of pixels whose forward and backward flow agree
    flicker: float | None  # of a frame's brightness against both neighbours; 0.1 is 10 %
    texture_change: float | None  # of its detail likewise, as grey levels of per-pixel noise
    frame_difference: float  # mean |I(t+1) - I(t)|, grey levels
    disorder: float | None  # distance of neighbouring frames over that of any two: shuffled is 1
    cut_strength: float | None  # of the worst step: 0 none, 1 nothing of the picture goes on
    changed_fraction: float  # of the picture that changes at any time
    still_fraction: float  # of the clip, the longest stretch in which nothing changes
    is_static: bool
    patch_grid: float | None = None  # share of the detail, see generation/patch_grid.py
    image_match_db: float | None = None
    parameters: dict[str, float | int | str | bool] = {}


class ImageRecord(Section):
    """The conditioning image as it was read: size in pixels after EXIF orientation."""

    path: str
    sha256: str
    width: int
    height: int


class AccelerationRecord(Section):
    """What a profile came to on the machine that made the clip.

    `num_computed_steps` went through all blocks; the others took the step cache's word. `notes`
    say where `auto` took less than the best. `ranks` made the clip together.
    """

    attention: str
    compile: bool
    fuse_vae: bool
    linears: str
    step_cache: float | None
    num_computed_steps: int
    ranks: int = 1
    notes: list[str] = []


class ModelRecord(Section):
    """The weights that made the clip. `trained` is False for weights made for trying out."""

    checkpoint: str
    fingerprint: str
    trained: bool
    dtype: Dtype
    scheduler: str
    offload: str
    vae_tiling: bool
    bf16_fallback: bool = False
    acceleration: AccelerationRecord | None = None  # None: plain diffusers on one device


class AdapterRecord(Section):
    """The LoRA adapter that acted on the clip."""

    path: str
    sha256: str
    scale: float


class ArtifactRecord(Section):
    """The video file beside the record."""

    filename: str
    sha256: str
    size_bytes: int
    num_frames: int
    height: int
    width: int
    fps: float
    codec: str


class AttemptRecord(Section):
    """One try at a clip, kept or not."""

    attempt: int
    seed: int
    temporal_score: float | None
    verdict: Verdict


class ErrorRecord(Section):
    """Why there is no clip: the error's class and its message, and the stage it happened in."""

    kind: str
    message: str
    stage: str


class GenerationRecord(Section):
    """Everything known about one id of a batch: a line of `manifest.jsonl`, and `<id>.json`.

    The record is written last: a clip without one does not exist. `content_hash` covers the
    request, the image's bytes, model, adapter and profile options, not where or how wide it ran.
    """

    id: str
    status: Status
    content_hash: str
    request: GenerationRequest | None
    seed: int | None = None
    attempt: int | None = None
    attempts: list[AttemptRecord] = []
    image: ImageRecord | None = None
    model: ModelRecord | None = None
    adapter: AdapterRecord | None = None
    artifact: ArtifactRecord | None = None
    stages: StageTimes = StageTimes()
    peak_vram_gb: float | None = None
    stage_peaks_gb: dict[str, float] = {}  # most VRAM by stage, in 1e9 bytes; empty on a CPU
    score: TemporalScore | None = None
    reasons: list[str] = []
    error: ErrorRecord | None = None
    device: str | None = None
    versions: dict[str, str] = {}
    created_at: datetime
    run_id: str


class BatchSummary(Section):
    """All runs of a batch on one output in figures: `summary.json`, and the head of the report.

    Counts are of the ids of the jobs file; `made` counts every attempt. `wall_s` adds up the runs
    that made something; medians and `clips_per_hour` are over all clips. `run_id` is the last run.
    """

    run_id: str
    config: str
    started_at: datetime
    finished_at: datetime
    wall_s: float
    total: int
    accepted: int
    needs_review: int
    failed: int
    quarantined: int
    pending: int
    made: int
    clips_per_hour: float | None = None
    median_stages: StageTimes = StageTimes()
    median_temporal_score: float | None = None
    peak_vram_gb: float | None = None
    devices: list[str] = []
    model: ModelRecord | None = None
    versions: dict[str, str] = {}


class Look(Section):
    """Means over the last frame of a clip, in levels of 255: where an adapter's look shows most."""

    brightness: float  # of the luma (BT.601)
    colour: float  # of the largest less the smallest of red, green and blue; 0 is grey


class ValidatedPrompt(Section):
    """One prompt of a validation: the clip without the adapter and the one with it, same seed.

    `pixel_difference` is the mean of |with - without| over all pixels of all frames, in grey levels
    of 255; `score_difference` is with minus without. Both are None where a clip is not there.
    """

    id: str
    prompt: str
    without_id: str
    with_id: str
    score_without: float | None
    score_with: float | None
    score_difference: float | None
    pixel_difference: float | None
    look_without: Look | None
    look_with: Look | None
    passed: bool
    reasons: list[str]


class Validation(Section):
    """`validation.json`: what an adapter does to fixed prompts, and whether that is good enough."""

    passed: bool
    verdict: str
    threshold: float
    adapter: AdapterRecord | None  # None where no clip with it was made
    trigger: str | None
    prompts: list[ValidatedPrompt]
    run_id: str
    created_at: datetime


class RunningClip(Section):
    """A clip in work: where, and how far its denoising is. VRAM in units of 1e9 bytes."""

    id: str
    stage: str
    node: str
    pid: int
    step: int
    num_steps: int
    vram_reserved_gb: float | None


class RunStatus(Section):
    """`status.json`: a run as it stands, rewritten while it goes on.

    `pid_started_at` tells a live driver from another process with its number.
    """

    run_id: str
    state: Literal["running", "finished", "interrupted", "failed"]
    host: str
    pid: int
    pid_started_at: float
    started_at: datetime
    updated_at: datetime
    total: int
    accepted: int
    needs_review: int
    failed: int
    quarantined: int
    pending: int
    made: int
    clips_per_hour: float | None = None
    eta_s: float | None = None
    vram_reserved_gb: float | None = None
    running: list[RunningClip] = []
    error: str | None = None
    exit_code: int | None = None


class ClipSource(Section):
    """Where a training clip comes from and under which terms it may be used.

    `start_s` and `end_s` are the clip's span in the original video at `url`.
    """

    dataset: str = Field(min_length=1)
    url: str | None = None
    licence: str = Field(min_length=1)
    terms: str | None = None
    split: str | None = None
    category: str | None = None
    start_s: float | None = None
    end_s: float | None = None


class ClipCheck(Section):
    """What `dataset check` measured in a clip's span; None for what the file does not report.

    `width` and `height` are those shown: upright and with square pixels. `motion_px` is the mean
    optical flow in px a second of a picture 480 px high. `duplicate_of` is the id of the first clip
    that looks the same.
    """

    marks: list[str] = []  # "undecodable", "short", "interlaced", "cut", "static", "duplicate", ...
    reason: str | None = None  # the error of a file that does not decode
    duration_s: float | None = None
    num_frames: int | None = None
    width: int | None = None
    height: int | None = None
    fps: float | None = None
    rotation: int | None = None
    size_bytes: int | None = None
    cuts_s: list[float] = []
    motion_px: float | None = None
    perceptual_hash: str | None = None
    duplicate_of: str | None = None


class Clip(Section):
    """A line of `metadata.jsonl`: one training clip and one caption.

    `video` and `image` are paths or fsspec addresses; a relative one counts from the file's folder.
    Without an `image` the clip's first frame conditions it. `start_s` and `end_s` are a span inside
    the video. `missing` says why there is no video file yet.
    """

    id: str = Field(min_length=1)
    video: str = Field(min_length=1)
    image: str | None = Field(None, min_length=1)
    prompt: str = Field(min_length=1, max_length=10_000)
    start_s: float | None = Field(None, ge=0)
    end_s: float | None = Field(None, gt=0)
    source: ClipSource
    missing: str | None = None
    check: ClipCheck | None = None

    @model_validator(mode="after")
    def _span_is_forward(self) -> "Clip":
        if self.end_s is not None and self.end_s <= (self.start_s or 0.0):
            raise ValueError(f"end_s: must be after start_s, got {self.start_s} to {self.end_s}")
        return self


class Spread(Section):
    """A quantity over the repeats of a benchmark."""

    least: float
    median: float
    most: float


class Difference(Section):
    """How far a clip is from the baseline's with the same seed and dtype.

    `latents` is the relative error |x - baseline| / |baseline| of the final latents. `psnr_db` is
    None for frames that are equal; `ssim` is that of Wang et al. 2004, averaged over the frames.
    """

    latents: float | None
    psnr_db: float | None
    ssim: float


class BenchmarkRow(Section):
    """One way to make the clip, measured. `error` says why the rest is missing.

    `seconds` has the stages of StageTimes without load, and `total`, their sum. `first_clip_s` is
    from nothing loaded to the end of the first clip, with what is compiled on the way. `speedup` is
    against the baseline in the same dtype and `utilisation` against the matrix rate of the run:
    the operations of the steps that were computed, over the seconds of denoising.
    """

    name: str
    dtype: Dtype
    num_inference_steps: int
    num_computed_steps: int | None = None
    model: ModelRecord | None = None
    seconds: dict[str, Spread] = {}
    first_clip_s: float | None = None
    clips_per_hour: float | None = None
    speedup: float | None = None
    peak_vram_gb: float | None = None
    temporal_score: float | None = None
    verdict: Verdict | None = None
    difference: Difference | None = None
    tflop: float | None = None
    utilisation: float | None = None
    error: str | None = None


class BenchmarkReport(Section):
    """One run of `vidgen benchmark`. The matrix rate is of dense products, by dtype."""

    created_at: datetime
    config: str
    request: GenerationRequest
    repeat: int
    device: str
    versions: dict[str, str]
    matrix_tflop_per_s: dict[str, float]
    rows: list[BenchmarkRow]
    artifacts: list[str] = []


class ProjectSummary(Section):
    """`PROJECT_SUMMARY.json`: a snapshot of measured batches and benchmarks by name, and where to
    read on."""

    project: str
    version: str
    batches: dict[str, BatchSummary]
    benchmarks: dict[str, BenchmarkReport] = {}
    documents: list[str]
