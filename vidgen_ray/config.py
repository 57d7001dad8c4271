"""The configuration tree that the YAML files under `configs/` fill, with its defaults.

A file lists only what differs from the defaults. Precedence, lowest first: default, configuration
file, profile, command line, request field.
"""

from collections.abc import Mapping
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from vidgen_ray.errors import ConfigError

Mode = Literal["baseline", "optimized"]
Dtype = Literal["float16", "bfloat16", "float32"]
DtypeSetting = Literal["auto", "float16", "bfloat16", "float32"]
Offload = Literal["auto", "none", "text", "model", "sequential", "group"]
Attention = Literal["auto", "auto_fp8", "native", "cudnn", "flash3", "flash3_fp8"]
Linears = Literal["exact", "fp8", "int8", "fp8_weights"]
Scheduler = Literal["dpm", "ddim", "checkpoint"]

# The one place that names the model: encoding, training and generation use the same commit of it.
CHECKPOINT = "zai-org/CogVideoX-5b-I2V"
PINNED_REVISION = "a6f0f4858a8395e7429d82493864ce92bf73af11"  # the hub cannot change a commit

SHIPPED_LORAS = Path(str(resources.files("vidgen_ray"))) / "model" / "nano_loras"


class Section(BaseModel):
    """A frozen section of the tree that rejects unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class LoRA(Section):
    """A LoRA adapter: a folder, a `.safetensors` file or the name of one that ships; its weight.

    A folder of your own that is called like one that ships is `./name`.
    """

    path: str = Field(min_length=1)
    scale: float = Field(1.0, ge=-4.0, le=4.0)

    @model_validator(mode="before")
    @classmethod
    def _path_alone(cls, value: Any) -> Any:
        return {"path": value} if isinstance(value, str) else value

    @field_validator("path")
    @classmethod
    def _shipped_by_name(cls, path: str) -> str:
        return str(SHIPPED_LORAS / path) if path in shipped_loras() else path


class GenerationDefaults(Section):
    """The fields of a request that have a default; a request may set any of them.

    Shapes are those CogVideoX-5B-I2V was trained for: 49 frames of 480x720 pixels at 8 fps. A field
    is written here or in `vidgen_ray/request.py` alone: what accepts or documents it reads this.
    """

    negative_prompt: str = Field(
        "",
        max_length=10_000,
        description="What must not appear in the clip; needs a `guidance_scale` above 1.",
    )
    num_inference_steps: int = Field(50, ge=1, le=1000, description="Denoising steps.")
    guidance_scale: float = Field(
        6.0, ge=1.0, le=30.0, description="Strength of classifier-free guidance; 1 is without."
    )
    num_frames: int = Field(
        49, ge=1, le=1000, description="Frames of the clip: what the checkpoint was trained for."
    )
    height: int = Field(
        480, ge=16, le=4096, description="In pixels: what the checkpoint was trained for."
    )
    width: int = Field(
        720, ge=16, le=4096, description="In pixels: what the checkpoint was trained for."
    )
    fps: int = Field(8, ge=1, le=60, description="Frames per second of playback.")
    mode: Mode = Field(
        "baseline", description="`baseline` is plain diffusers; `optimized` uses a profile."
    )
    profile: str | None = Field(
        None,
        min_length=1,
        description="A profile of the configuration; needs `mode: optimized`.",
    )
    lora: LoRA | None = Field(
        None,
        description="LoRA adapter: a folder (a training run's too), a `.safetensors` file, or the "
        "name of one that ships.",
    )
    image_fit: Literal["crop", "pad"] = Field(
        "crop", description="Crop the image to the frame, or pad it with black."
    )
    allow_untrained_shape: bool = Field(
        False,
        description="Accept a shape that the checkpoint was not trained for.",
        json_schema_extra={"jobs_only": True},
    )


class ModelConfig(Section):
    """Which checkpoint to load and how.

    `checkpoint` is `embedded`, a diffusers folder, or a hub id. `auto` is resolved where the model
    loads, and recorded: `dtype` from what the device multiplies (bfloat16 on GPUs and on CPUs that
    can, else float32), `offload` and `vae_tiling` from the free VRAM.
    """

    checkpoint: str = CHECKPOINT
    revision: str | None = None  # of CHECKPOINT: PINNED_REVISION, unless another is named
    dtype: DtypeSetting = "float16"
    device: Literal["auto", "cuda", "cpu"] = "auto"
    scheduler: Scheduler = "dpm"
    offload: Offload = "auto"
    vae_tiling: bool | Literal["auto"] = "auto"
    cpu_threads: int | None = Field(None, ge=1)
    gpus_per_clip: int = Field(1, ge=1, le=64)  # ranks that generate one clip together
    compile_cache: str | None = "~/.cache/vidgen_ray/compile"  # a folder that every node sees

    @model_validator(mode="before")
    @classmethod
    def _pin(cls, fields: Any) -> Any:
        if not isinstance(fields, dict) or fields.get("revision") is not None:
            return fields
        checkpoint = fields.get("checkpoint", CHECKPOINT)
        return {**fields, "revision": PINNED_REVISION if checkpoint == CHECKPOINT else None}

    def under(self, profile: "Profile | None") -> "ModelConfig":
        """With the options that `profile` sets replacing its own."""
        if profile is None:
            return self
        shared = {"dtype", "scheduler", "offload", "vae_tiling"}
        return self.model_copy(update=profile.model_dump(exclude_none=True, include=shared))


class Profile(Section):
    """Named, independent options of `mode: optimized`.

    The first five replace those of `model` and the request's default; None keeps them. `auto` is
    the best that the machine has, recorded with the clip; an option that is named and not available
    is an error.
    """

    num_inference_steps: int | None = Field(None, ge=1, le=1000)
    dtype: DtypeSetting | None = None
    scheduler: Scheduler | None = None
    offload: Offload | None = None
    vae_tiling: bool | Literal["auto"] | None = None
    attention: Attention = "auto"  # only auto_fp8 picks fp8, which changes the picture
    compile: bool | Literal["auto"] = False  # the transformer's blocks; auto: on a GPU
    fuse_vae: bool | Literal["auto"] = "auto"  # its decoder's norms; auto: unless weights move
    linears: Linears = "exact"  # fp8_weights: stored in 8 bits, multiplied in dtype
    step_cache: float | None = Field(None, gt=0, le=1)  # threshold: skip steps that change less


class QualityConfig(Section):
    """When a clip is accepted, and how often a rejected one is retried with another seed.

    Thresholds are on the fields of TemporalScore, and come from docs/benchmarks.md.
    """

    max_attempts: int = Field(2, ge=1, le=20)
    min_temporal_score: float = Field(0.6, ge=0.0, le=1.0)  # of 1
    max_flicker: float = Field(0.028, ge=0.0)  # fraction of brightness a frame
    max_texture_change: float = Field(3.0, gt=0.0)  # grey levels of 255 a frame, without wobble
    max_wobble_px: float = Field(0.09, gt=0.0)  # px at 480 lines, without texture change
    max_disorder: float = Field(0.9, ge=0.0)  # disorder - motion_coherence / 2; shuffled is 1
    max_cut_strength: float = Field(0.55, ge=0.0)  # of 1
    max_still_fraction: float = Field(0.45, ge=0.0, le=1.0)  # of the clip, in one stretch
    max_patch_grid: float = Field(0.04, ge=0.0, le=1.0)  # of the detail
    # dB at 40 lines; 0 for an adapter that changes the look from the first frame
    min_image_match_db: float = Field(28.0, ge=0.0)
    allow_static: bool = False  # accept still images and frozen clips


class BatchConfig(Section):
    """Resources and limits of a batch. `max_workers: null` is as many as fit in the cluster now."""

    num_gpus_per_worker: float = Field(1, ge=0)
    num_cpus_per_worker: float = Field(1, gt=0)
    min_workers: int = Field(1, ge=1)
    max_workers: int | None = Field(None, ge=1)
    num_cpus_per_score: float = Field(1, gt=0)
    max_worker_deaths: int = Field(3, ge=1)
    max_failures_before_first_success: int = Field(3, ge=1)
    clip_timeout_s: float | None = Field(3600, gt=0)
    worker_start_timeout_s: float = Field(600, gt=0)


class CheckConfig(Section):
    """Thresholds of `dataset check`. Marks are advice: they remove no clip.

    `max_hash_distance` is of 192 bits, 64 of each of three frames.
    """

    min_duration_s: float = Field(6.0, ge=0.0)  # 49 frames at 8 fps
    min_fps: float = Field(8.0, ge=0.0)
    min_side_px: int = Field(240, ge=0)  # of the shorter side
    min_motion_px: float = Field(2.0, ge=0.0)  # px a second at 480 lines; film grain gives up to 2
    max_hash_distance: int = Field(18, ge=0, le=192)
    num_cpus_per_task: float = Field(1, gt=0)


class EncodingConfig(Section):
    """How clips are encoded to latents. Shape, frame rate and fit are those of `generation`.

    `num_noised_images` copies of the conditioning image are encoded with pixel noise, of which
    training samples one; 0 for a model that was trained on clean images.
    """

    dtype: DtypeSetting = "bfloat16"
    num_noised_images: int = Field(2, ge=0, le=64)
    max_video_gb: float = Field(4.0, gt=0)  # of 1e9 bytes, the file
    skip_marks: list[str] = []  # leave out clips that `dataset check` marked with one of these
    clips_per_shard: int = Field(8, ge=1)  # a killed worker loses at most so many
    prompts_per_batch: int = Field(8, ge=1)
    num_gpus_per_worker: float = Field(1, ge=0)
    num_cpus_per_worker: float = Field(1, gt=0)
    num_cpus_per_decode: float = Field(1, gt=0)
    min_workers: int = Field(1, ge=1)
    max_workers: int | None = Field(None, ge=1)
    max_worker_deaths: int = Field(3, ge=1)
    worker_start_timeout_s: float = Field(600, gt=0)


class SamplePrompt(Section):
    """A sample clip of an adapter in training: the same image, prompt and seed each time."""

    image: str = Field(min_length=1)
    prompt: str = Field(min_length=1)
    seed: int = Field(0, ge=0, lt=2**63)


class TrainingConfig(Section):
    """How a LoRA adapter is trained. The base weights load in `model.dtype`, the adapter in fp32.

    A step takes `batch_size * gradient_accumulation_steps` samples on each worker.
    """

    rank: int = Field(128, ge=1)
    alpha: float | None = Field(None, gt=0)  # None: as large as rank, so that the scale is 1
    targets: list[str] = Field(["to_q", "to_k", "to_v", "to_out.0"], min_length=1)
    learning_rate: float = Field(1e-4, ge=0)
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup_steps: int = Field(100, ge=0)
    num_epochs: int = Field(10, ge=1)
    max_steps: int | None = Field(None, ge=1)
    batch_size: int = Field(1, ge=1)
    gradient_accumulation_steps: int = Field(1, ge=1)
    max_grad_norm: float = Field(1.0, gt=0)
    optimizer: Literal["adamw", "adamw8bit"] = "adamw"
    adam_betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = Field(1e-4, ge=0)
    ema_decay: float | None = Field(None, gt=0, lt=1)
    image_dropout: float = Field(0.05, ge=0, le=1)
    prompt_dropout: float = Field(0.1, ge=0, le=1)
    gradient_checkpointing: Literal["none", "full", "selective"] = "selective"
    compile_blocks: bool | Literal["auto"] = "auto"  # auto: where there is a GPU
    seed: int = Field(0, ge=0, lt=2**31)
    checkpoint_every_steps: int = Field(100, ge=1)
    num_checkpoints_kept: int = Field(2, ge=1)
    # Clips generated at the end of an epoch: these; or the first num_samples of a prompts file,
    # or of the training data.
    samples: list[SamplePrompt] | str = []
    num_samples: int = Field(1, ge=0)
    sample_every_epochs: int = Field(1, ge=1)
    trackers: list[Literal["mlflow", "wandb"]] = []
    max_trainable_fraction: float = Field(0.1, gt=0, le=1)
    num_gpus_per_worker: float = Field(1, ge=0)
    num_cpus_per_worker: float = Field(1, gt=0)
    max_failures: int = Field(3, ge=0)
    collective_timeout_s: int = Field(7200, ge=60)  # the others wait while a rank samples


class Config(Section):
    """The whole tree. `pinned` holds the generation fields that the command line set."""

    model: ModelConfig = ModelConfig()
    generation: GenerationDefaults = GenerationDefaults()
    default_profile: str = "exact"
    profiles: dict[str, Profile] = {}
    quality: QualityConfig = QualityConfig()
    batch: BatchConfig = BatchConfig()
    check: CheckConfig = CheckConfig()
    prompt_templates: str | None = None  # a YAML file in place of the templates that ship
    encoding: EncodingConfig = EncodingConfig()
    training: TrainingConfig = TrainingConfig()
    pinned: dict[str, Any] = Field({}, exclude=True)

    @model_validator(mode="after")
    def _default_profile_exists(self) -> "Config":
        if self.profiles and self.default_profile not in self.profiles:
            raise ValueError(
                f"default_profile must be one of {sorted(self.profiles)}, "
                f"got {self.default_profile!r}"
            )
        return self


def load_config(source: str | Path, overrides: Mapping[str, Any] | None = None) -> Config:
    """Read `source` and apply `overrides`, a mapping of dotted keys to values.

    `source` is a path, or the name of a configuration that ships with the package (`nano`).
    Raises ConfigError listing every wrong key at once.
    """
    tree = _read_yaml(_locate(source))
    for key, value in (overrides or {}).items():
        _set(tree, key, value)
    if "model.checkpoint" in (overrides or {}) and "model.revision" not in (overrides or {}):
        tree["model"].pop("revision", None)  # a revision belongs to its checkpoint
    pinned = {
        key.split(".", 1)[1].split(".")[0]: tree["generation"][key.split(".")[1]]
        for key in overrides or {}
        if key.startswith("generation.")
    }
    if "pinned" in tree:
        raise ConfigError(f"{source}: pinned is not a setting; remove it")
    try:
        return Config.model_validate({**tree, "pinned": pinned})
    except ValidationError as error:
        raise ConfigError(f"{source}: " + "; ".join(describe(error))) from None


def parse_overrides(assignments: list[str]) -> dict[str, Any]:
    """Turn `["batch.max_workers=2"]` into a mapping; values are read as YAML."""
    overrides = {}
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"--set takes section.key=value, got {assignment!r}")
        try:
            overrides[key.strip()] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ConfigError(f"--set {key.strip()}: not valid YAML: {error}") from None
    return overrides


def describe(error: ValidationError) -> list[str]:
    """One line for each problem: the dotted field, the rule, the value."""
    lines = []
    for problem in error.errors():
        field = ".".join(str(part) for part in problem["loc"])
        value = problem["input"]
        if problem["type"] == "extra_forbidden":
            lines.append(f"{field}: no such field; remove it or fix its name")
        elif problem["type"] == "missing":
            lines.append(f"{field}: required, but missing")
        elif problem["type"] == "value_error":
            lines.append(": ".join(filter(None, [field, str(problem["ctx"]["error"])])))
        else:
            rule = problem["msg"][0].lower() + problem["msg"][1:]
            lines.append(f"{field}: {rule}, got {_short(value)}")
    return lines


def has_nvidia_gpu() -> bool:
    """Whether an NVIDIA driver is loaded, by its device file."""
    return Path("/dev/nvidiactl").exists()


def shipped_configs() -> list[str]:
    """Names of the configurations inside the package."""
    folder = resources.files("vidgen_ray") / "configs"
    names = [entry.name[:-5] for entry in folder.iterdir() if entry.name.endswith(".yaml")]
    others = ("serve_", "prompt_", "validation_")  # Ray Serve's, templates, what to validate with
    return sorted(name for name in names if not name.startswith(others))


@cache
def shipped_loras() -> list[str]:
    """Names of the adapters of the embedded model inside the package."""
    return sorted(path.name for path in SHIPPED_LORAS.glob("*/") if path.is_dir())


def _locate(source: str | Path) -> Path:
    path = Path(source)
    if path.suffix in {".yaml", ".yml"}:
        if path.is_file():
            return path
        raise ConfigError(f"--config: no such file: {path}")
    shipped = Path(str(resources.files("vidgen_ray"))) / "configs" / f"{source}.yaml"
    if shipped.is_file():
        return shipped
    raise ConfigError(
        f"--config: {source!r} is neither a .yaml file nor one of {shipped_configs()}"
    )


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: must hold sections such as `model:`, got {_short(tree)}")
    return tree


def _set(tree: dict[str, Any], key: str, value: Any) -> None:
    *sections, leaf = key.split(".")
    for section in sections:
        tree = tree.setdefault(section, {})
        if not isinstance(tree, dict):
            raise ConfigError(f"--set {key}: {section} is a value, not a section")
    tree[leaf] = value


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
