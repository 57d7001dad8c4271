"""The engine on one device: one request in, one video out, with how it was made."""

import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

from vidgen_ray.config import Config, GenerationDefaults, LoRA, Profile
from vidgen_ray.errors import (
    EngineError,
    OutOfMemory,
    VidgenError,
)
from vidgen_ray.generation.clip_engine import Cancelled, Generation, OnStep, StepCallbacks
from vidgen_ray.generation.content_hash import find_profile
from vidgen_ray.generation.stage_clock import StageClock
from vidgen_ray.image_io import ConditioningImage, read_request_image
from vidgen_ray.model import adapters
from vidgen_ray.model.acceleration import (
    Applied,
    Options,
    Speedups,
    apply_options,
    choose_options,
)
from vidgen_ray.model.adapters import Adapter
from vidgen_ray.model.checkpoint import Checkpoint, open_checkpoint
from vidgen_ray.model.device import (
    choose_device,
    describe_device,
    is_out_of_memory,
    use_cpu,
)
from vidgen_ray.model.loading import load_pipeline
from vidgen_ray.model.parallel import RankMesh
from vidgen_ray.model.positions import positions_for
from vidgen_ray.request import GenerationRequest
from vidgen_ray.schema import AdapterRecord, ModelRecord, StageTimes, Video

if TYPE_CHECKING:
    from vidgen_ray.model.loading import Pipeline

_PROMPTS_KEPT = 32  # embeddings of 4 MB at full size
_NO_FRAMES = torch.empty(0, 0, 0, 3, dtype=torch.uint8)  # of a rank that leaves decoding to another


class Engine:
    """One model on one device: a `ClipEngine`. Calls from several threads wait for each other.

    A pipeline stays loaded between requests; a request whose options need another one (dtype,
    scheduler, offload, tiling, speed-ups) reloads it, so that no state of one clip reaches the
    next.
    """

    def __init__(self, config: Config, ranks: RankMesh | None = None) -> None:
        """Find the checkpoint and the device; weights load with the first request, or `load`.

        With `ranks`, every one of them must be given the same calls. Raises ConfigError.
        """
        self.config = config
        self.checkpoint: Checkpoint = open_checkpoint(config.model)
        self.device = choose_device(config.model.device)
        self._ranks = ranks
        self._lock = threading.Lock()
        self._loaded: _Loaded | None = None
        self._choices: dict[tuple[Profile | None, int], Options] = {}
        if self.device.type == "cpu":
            use_cpu(config.model.cpu_threads, config.model.dtype)
        elif config.model.cpu_threads:
            torch.set_num_threads(config.model.cpu_threads)

    def load(self) -> float:
        """Load the weights that a plain request needs; seconds taken. Raises ConfigError."""
        defaults = self.config.generation
        profile = None
        if defaults.mode == "optimized":
            profile = self.config.profiles.get(defaults.profile or self.config.default_profile)
        clock = StageClock(self.device)
        with self._lock:
            self._pipeline_for(self._options_for(profile, _num_pixels(defaults)), None, clock)
        return clock.seconds.get("load_s", 0.0)

    def generate(
        self,
        request: GenerationRequest,
        on_step: OnStep | None = None,
        cancelled: Cancelled | None = None,
        *,
        image: ConditioningImage | None = None,
        timeout_s: float | None = None,
    ) -> Generation:
        """Make the clip of `request`; see `ClipEngine.generate`.

        The noise comes from a CPU generator seeded with `request.seed`, so it is the same on every
        device.
        """
        self.checkpoint.check_request(request)
        profile = find_profile(request, self.config)
        active_lora = None
        if request.lora:
            active_lora = ActiveLoRA(
                adapters.open_adapter(request.lora, self.checkpoint), request.lora
            )
        if image is None:
            image = read_request_image(request)
        call = _Call(request, image, active_lora, StepCallbacks(on_step, cancelled, timeout_s))
        clock = StageClock(self.device)
        with self._lock:
            options = self._options_for(profile, _num_pixels(request))
            made = self._generate_with(call, options, clock)
            fell_back = made is None and options.dtype == "float16"
            if fell_back:
                options = replace(options, dtype="bfloat16")
                made = self._generate_with(call, options, clock)
            if made is None:
                raise EngineError(
                    f"{request.id}: the model's output is not finite in {options.dtype}; "
                    "check the checkpoint and the adapter"
                )
            return Generation(
                video=Video(made.frames.numpy(), request.fps),
                latents=made.latents.cpu(),
                image=image,
                model=self._model_record(options, fell_back, made.num_computed_steps),
                adapter=active_lora.record() if active_lora else None,
                stages=StageTimes(**clock.seconds),
                peak_vram_gb=max(clock.peaks_gb.values(), default=None),
                stage_peaks_gb={
                    name.removesuffix("_s"): peak for name, peak in clock.peaks_gb.items()
                },
                device=describe_device(self.device),
            )

    def close(self) -> None:
        """Free the device's memory."""
        with self._lock:
            self._unload()

    def _generate_with(
        self, call: "_Call", options: Options, clock: StageClock
    ) -> "_Decoded | None":
        """The decoded clip; None when it is not finite."""
        try:
            pipeline = self._pipeline_for(options, call.active_lora, clock)
            try:
                with torch.no_grad():
                    made = self._run(pipeline, call, clock)
                self._save_compile_cache()
                return made
            finally:
                # Offloaded parts go back and step caches are emptied, whatever ended the clip.
                pipeline.maybe_free_model_hooks()
        except VidgenError:
            raise
        except Exception as error:
            if not is_out_of_memory(error):
                raise EngineError(
                    f"{call.request.id}: {type(error).__name__} in {_stage(clock)}: {error}"
                ) from error
        # Outside the handler, where no traceback keeps tensors of the failed clip alive.
        advice = _out_of_memory_advice(call.request, options, self.device, clock)
        self._unload()
        raise OutOfMemory(advice)

    def _run(self, pipeline: "Pipeline", call: "_Call", clock: StageClock) -> "_Decoded | None":
        request, callbacks = call.request, call.callbacks
        assert self._loaded is not None
        denoiser = self._loaded.applied.denoiser
        if denoiser:
            denoiser.begin()
        callbacks.check()
        with clock.stage("text_s"):
            prompt_embeds, negative_prompt_embeds = self._encode(pipeline, request)

        def after_step(_pipeline: "Pipeline", step: int, _t: Any, tensors: dict[str, Any]) -> Any:
            callbacks.step(step + 1, request.num_inference_steps)
            return tensors

        shape = {name: getattr(request, name) for name in ("num_frames", "height", "width")}
        with (
            clock.stage("denoise_s"),
            clock.stage_of(pipeline, "prepare_latents", "image_encode_s"),
            positions_for(pipeline.transformer, self.checkpoint, **shape),
        ):
            latents = pipeline(
                image=Image.fromarray(call.image.pixels),
                prompt_embeds=prompt_embeds,
                negative_prompt_embeds=negative_prompt_embeds,
                num_inference_steps=request.num_inference_steps,
                guidance_scale=request.guidance_scale,
                generator=torch.Generator().manual_seed(request.seed),
                output_type="latent",
                callback_on_step_end=after_step,
                callback_on_step_end_tensor_inputs=[],
                **shape,
            ).frames
        if not torch.isfinite(latents).all():
            return None
        callbacks.check()
        num_computed = denoiser.num_computed if denoiser else request.num_inference_steps
        with clock.stage("decode_s"):
            video = None
            if self._ranks is None or self._ranks.rank == 0 or self._loaded.options.vae_tiling:
                video = pipeline.decode_latents(latents)
            wrong = video is not None and not bool(torch.isfinite(video).all())
            if self._ranks.any(wrong) if self._ranks else wrong:
                return None
            frames = _NO_FRAMES if video is None else _to_uint8(video)
            return _Decoded(frames, latents, num_computed)

    def _encode(
        self, pipeline: "Pipeline", request: GenerationRequest
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Embeddings of the prompts, cached for the last few."""
        assert self._loaded is not None
        kept = self._loaded.prompts
        key = (request.prompt, request.negative_prompt, request.guidance_scale > 1.0)
        if key not in kept:
            if len(kept) >= _PROMPTS_KEPT:
                kept.pop(next(iter(kept)))
            kept[key] = pipeline.encode_prompt(
                request.prompt,
                request.negative_prompt,
                do_classifier_free_guidance=request.guidance_scale > 1.0,
                device=pipeline._execution_device,
            )
        return kept[key]

    def _save_compile_cache(self) -> None:
        """Save the compiled code once a clip has run through all of it."""
        assert self._loaded is not None
        cache = self._loaded.applied.compile_cache
        if cache and (self._ranks is None or self._ranks.rank == 0):
            cache.save()

    def _options_for(self, profile: Profile | None, num_pixels: int) -> Options:
        key = (profile, num_pixels)
        if key not in self._choices:
            if self.device.type == "cuda":
                self._unload()  # what is loaded would count as memory that is taken
            self._choices[key] = choose_options(
                self.config.model, self.checkpoint, self.device, num_pixels, profile=profile
            )
        return self._choices[key]

    def _pipeline_for(
        self, options: Options, active_lora: "ActiveLoRA | None", clock: StageClock
    ) -> "Pipeline":
        """The pipeline with these options and this adapter, reloaded only where it must be."""
        if self._loaded is None or self._loaded.options != options:
            self._unload()
            with clock.stage("load_s"), _hashing_beside(self.checkpoint):
                pipeline = load_pipeline(self.checkpoint, options.dtype, self.device)
                applied = apply_options(
                    pipeline,
                    options,
                    self.device,
                    compile_cache=self.config.model.compile_cache,
                    mesh=self._ranks,
                )
                self._loaded = _Loaded(options, pipeline, applied)
        if self._loaded.active_lora != active_lora:
            loaded, self._loaded = self._loaded, None  # a half-changed pipeline is never used again
            self._switch_lora(loaded, active_lora)
            self._loaded = replace(loaded, active_lora=active_lora)
        return self._loaded.pipeline

    def _switch_lora(self, loaded: "_Loaded", active_lora: "ActiveLoRA | None") -> None:
        """Unload the active LoRA and load another, fused into the weights where the options ask."""
        pipeline, fuses = loaded.pipeline, loaded.options.fuses_adapters
        if loaded.active_lora and fuses:
            adapters.unfuse_lora(pipeline, loaded.active_lora.adapter, self.checkpoint)
        elif loaded.active_lora:
            adapters.unload_lora(pipeline)
        if active_lora and fuses:
            scale = active_lora.lora.scale
            adapters.fuse_lora(pipeline, active_lora.adapter, scale, self.checkpoint)
        elif active_lora:
            adapters.load_lora(pipeline, active_lora.adapter, active_lora.lora.scale)

    def _unload(self) -> None:
        if self._loaded and self._loaded.applied.compiled:
            torch.compiler.reset()  # which holds on to the blocks, and counts them against a limit
        self._loaded = None
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _model_record(
        self, options: Options, fell_back: bool, num_computed_steps: int
    ) -> ModelRecord:
        assert self._loaded is not None
        speedups = options.speedups or (Speedups() if self._ranks else None)
        num_ranks = self._ranks.size if self._ranks else 1
        return ModelRecord(
            checkpoint=self.checkpoint.source,
            fingerprint=self.checkpoint.fingerprint,
            trained=self.checkpoint.trained,
            dtype=options.dtype,
            scheduler=type(self._loaded.pipeline.scheduler).__name__,
            offload=options.offload,
            vae_tiling=options.vae_tiling,
            bf16_fallback=fell_back,
            acceleration=speedups.record(num_computed_steps, num_ranks) if speedups else None,
        )


@dataclass(frozen=True)
class ActiveLoRA:
    """The adapter that acts on the loaded pipeline, and its weight."""

    adapter: Adapter
    lora: LoRA

    def record(self) -> AdapterRecord:
        return AdapterRecord(path=self.lora.path, sha256=self.adapter.sha256, scale=self.lora.scale)


@dataclass(frozen=True)
class _Loaded:
    options: Options
    pipeline: "Pipeline"
    applied: Applied
    active_lora: ActiveLoRA | None = None
    prompts: dict[tuple[str, str, bool], tuple[torch.Tensor, torch.Tensor | None]] = field(
        default_factory=dict
    )


@dataclass(frozen=True)
class _Decoded:
    """Frames as uint8 [F, H, W, 3] on the CPU, the latents they came from, and the steps that were
    computed in full."""

    frames: torch.Tensor
    latents: torch.Tensor
    num_computed_steps: int


@dataclass(frozen=True)
class _Call:
    request: GenerationRequest
    image: ConditioningImage
    active_lora: ActiveLoRA | None
    callbacks: StepCallbacks


@contextmanager
def _hashing_beside(checkpoint: Checkpoint) -> Iterator[None]:
    """Hash the checkpoint in another thread during the block, unless its fingerprint is known."""
    if "fingerprint" in vars(checkpoint):  # a cached property
        yield
        return
    thread = threading.Thread(target=lambda: checkpoint.fingerprint)
    thread.start()
    try:
        yield
    finally:
        thread.join()


def _to_uint8(video: torch.Tensor) -> torch.Tensor:
    """[1, 3, F, H, W] in -1..1 -> uint8 [F, H, W, 3], rounded exactly as diffusers does."""
    unit = (video[0] * 0.5 + 0.5).clamp(0, 1).float()
    return (unit * 255).round().to(torch.uint8).permute(1, 2, 3, 0).contiguous().cpu()


def _num_pixels(shape: GenerationDefaults) -> int:
    return shape.num_frames * shape.height * shape.width


def _stage(clock: StageClock) -> str:
    return clock.last.removesuffix("_s")


def _out_of_memory_advice(
    request: GenerationRequest, options: Options, device: torch.device, clock: StageClock
) -> str:
    shape = f"{request.num_frames} frames of {request.height}x{request.width}"
    message = f"{request.id}: out of memory in {_stage(clock)}, {shape}"
    advice = []
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory / 1e9
        peak_gb = max(clock.peaks_gb.values(), default=0.0)
        message += f" (offload {options.offload}, peak {peak_gb:.1f} of {total:.1f} GB)"
        if options.offload in {"none", "model"}:
            advice.append("set model.offload to group or sequential")
        if not options.vae_tiling:
            advice.append("set model.vae_tiling to true")
        if advice:
            advice.append("use mode: optimized with profile: low_memory")
        advice.append("free the GPU of other programs")
    if request.allow_untrained_shape:
        advice.append("ask for fewer or smaller frames")
    return f"{message}; {', or '.join(advice) or 'use a machine with more memory'}"
