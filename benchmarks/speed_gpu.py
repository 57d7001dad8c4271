"""Where a clip's seconds go on one GPU, and what each option of the profiles gives and costs.

    python benchmarks/speed_gpu.py --output OUT [--only profiles,vae] [--num-steps 6]

Needs no hub: weights of the full size are made on the device. Each part runs in a process of its
own within `--limit-s`, so that one that fails or hangs is reported and the others go on. Prints a
line for each figure and keeps them as OUT/<part>.json. `--size tiny` tries the script on a CPU.
Ratios are within one run, medians of device time. Nothing is extrapolated: a time for N steps is
that of N steps.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from vidgen_ray.benchmark.page import page, plot, table
from vidgen_ray.benchmark.runner import run_benchmark
from vidgen_ray.config import Config, Profile, load_config
from vidgen_ray.generation.engine import Engine
from vidgen_ray.generation.image_match import psnr_db
from vidgen_ray.model import denoiser
from vidgen_ray.model.checkpoint import open_checkpoint
from vidgen_ray.model.decoder import fuse_decoder
from vidgen_ray.model.flops import count_flops
from vidgen_ray.model.loading import load_pipeline
from vidgen_ray.model.parallel import join, leave
from vidgen_ray.model.step_cache import AllReduce, StepCache
from vidgen_ray.model.untrained import make_checkpoint
from vidgen_ray.request import GenerationRequest, resolve_request
from vidgen_ray.schema import BenchmarkRow

Figures = dict[str, Any]

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DTYPE = torch.bfloat16
SAMPLES = Path(__file__).parents[1] / "data" / "samples"

# Each differs from one before it in one option, which is that option's gain and price.
LADDER: dict[str, dict[str, object]] = {
    "attention native": {"attention": "native"},
    "attention auto": {},
    "exact": {"compile": True},
    "fp8 linears": {"compile": True, "linears": "fp8"},
    "fp8": {"compile": True, "linears": "fp8", "attention": "flash3_fp8"},
    "int8 linears": {"compile": True, "linears": "int8"},
    "int8": {"compile": True, "linears": "int8", "attention": "flash3_fp8"},
    "fast": {
        "compile": True,
        "linears": "int8",
        "attention": "flash3_fp8",
        "step_cache": 0.2,
    },
    "exact without fused VAE": {"compile": True, "fuse_vae": False},
}
# On the embedded model, against its own bf16 baseline.
EMBEDDED: dict[str, dict[str, object]] = {
    "exact": {},
    "linears fp8": {"linears": "fp8"},
    "linears int8": {"linears": "int8"},
    "linears int8, attention fp8": {"linears": "int8", "attention": "flash3_fp8"},
    "attention fp8": {"attention": "flash3_fp8"},
    "both fp8": {"linears": "fp8", "attention": "flash3_fp8"},
    **{
        f"linears int8, attention fp8, step cache {threshold}": {
            "linears": "int8",
            "attention": "flash3_fp8",
            "step_cache": threshold,
        }
        for threshold in (0.1, 0.15, 0.2, 0.3)
    },
    **{f"step cache {threshold}": {"step_cache": threshold} for threshold in (0.1, 0.15, 0.2, 0.3)},
}
PLACEMENTS: dict[str, dict[str, object]] = {
    "none tiled": {"vae_tiling": True},
    "none tiled fp8 weights": {"vae_tiling": True, "linears": "fp8_weights"},
    "text tiled": {"offload": "text", "vae_tiling": True},
    "text tiled fp8 weights": {"offload": "text", "vae_tiling": True, "linears": "fp8_weights"},
    "group tiled": {"offload": "group", "vae_tiling": True},
    "group tiled fp8 weights": {"offload": "group", "vae_tiling": True, "linears": "fp8_weights"},
}


def vae(arguments: argparse.Namespace, say: Callable[[str], None]) -> Figures:
    """Decoding a clip: as it is, and with fused norms, with the peak of each."""
    with tempfile.TemporaryDirectory() as folder:
        config, request, _ = _setup(arguments, Path(folder))
        checkpoint = open_checkpoint(config.model)
        pipeline = load_pipeline(checkpoint, "bfloat16", DEVICE)
        flop = count_flops(checkpoint, request).decode
    decoder = pipeline.vae.to(DEVICE)
    del pipeline.transformer, pipeline.text_encoder
    latents = torch.randn(
        1,
        decoder.config.latent_channels,
        (request.num_frames - 1) // 4 + 1,
        request.height // 8,
        request.width // 8,
        device=DEVICE,
        dtype=DTYPE,
    )
    figures: Figures = {}
    plain = None
    for name in ("diffusers", "fused"):
        if name == "fused":
            fuse_decoder(decoder)
        begun = time.perf_counter()
        frames = decoder.decode(latents).sample
        _wait()
        first_s = time.perf_counter() - begun
        plain = frames if plain is None else plain
        error = float((frames - plain).float().norm() / plain.float().norm())
        _reset_peak()
        milliseconds = _time(lambda: decoder.decode(latents).sample, repeats=3)
        rated = flop / milliseconds / 1e9
        say(
            f"decode {name}: {milliseconds:.0f} ms, {rated:.0f} TFLOP/s, first {first_s:.1f} s, "
            f"peak {_peak_gb():.1f} GB, error {error:.4f}"
        )
        figures[name] = {
            "ms": milliseconds,
            "first_call_s": first_s,
            "peak_gb": _peak_gb(),
            "error": error,
        }
    return figures


def profiles(arguments: argparse.Namespace, say: Callable[[str], None]) -> Figures:
    """Stock diffusers and the ladder of options on whole clips of `--num-steps` steps, bf16."""
    return _benchmark(arguments, say, "bfloat16", LADDER)


def fp16(arguments: argparse.Namespace, say: Callable[[str], None]) -> Figures:
    """Stock diffusers and `exact` in fp16, where cuDNN has the attention."""
    return _benchmark(arguments, say, "float16", {"exact": {"compile": True}})


def memory(arguments: argparse.Namespace, say: Callable[[str], None]) -> Figures:
    """Peak VRAM of the placements for small cards, over clips of `--num-steps` steps."""
    return _benchmark(arguments, say, "bfloat16", PLACEMENTS, baseline=False)


def embedded(arguments: argparse.Namespace, say: Callable[[str], None]) -> Figures:
    """What each option costs the trained model: worst of the sample clips against its own bf16."""
    base = load_config("nano")
    fields = [json.loads(line) for line in (SAMPLES / "jobs.jsonl").read_text().splitlines()]
    fields = [{**row, "image": str(SAMPLES / row["image"])} for row in fields]
    if arguments.size == "tiny":
        fields = [{**row, "num_inference_steps": 2} for row in fields[:1]]
    requests = [resolve_request(row, base) for row in fields if not row.get("lora")]
    figures: Figures = {}
    engine = Engine(base)
    for num_steps in (20, 50):
        wanted = [
            request.model_copy(update={"num_inference_steps": num_steps})
            if arguments.size == "full"
            else request
            for request in requests
        ]
        engine.config = base
        expected = [engine.generate(request) for request in wanted]
        for name, options in EMBEDDED.items():
            profile = Profile.model_validate(options)
            engine.config = base.model_copy(update={"profiles": {"tried": profile}})
            update = {"mode": "optimized", "profile": "tried"}
            label = f"{num_steps} steps, {name}"
            try:
                made = [engine.generate(r.model_copy(update=update)) for r in wanted]
            except Exception as problem:
                say(f"{label}: {_first_line(problem)}")
                figures[label] = {"error": _first_line(problem)}
                continue
            pairs = list(zip(made, expected, strict=True))
            errors = [
                float((one.latents - other.latents).norm() / other.latents.norm())
                for one, other in pairs
            ]
            psnr = [psnr_db(one.video.frames, other.video.frames) or 99.0 for one, other in pairs]
            computed = [
                one.model.acceleration.num_computed_steps if one.model.acceleration else num_steps
                for one in made
            ]
            say(
                f"{label}: latents median {statistics.median(errors):.4f}, most {max(errors):.4f}; "
                f"PSNR median {statistics.median(psnr):.1f}, least {min(psnr):.1f} dB; "
                f"computed {min(computed)} to {max(computed)}"
            )
            figures[label] = {"latents": errors, "psnr_db": psnr, "computed": computed}
    return figures


def startup(arguments: argparse.Namespace, say: Callable[[str], None]) -> Figures:
    """From process start to the end of the first step, with nothing compiled and with the cache."""
    figures: Figures = {}
    with tempfile.TemporaryDirectory() as folder:
        make_checkpoint(arguments.architecture, Path(folder) / "model", weights=False)
        for profile in ("exact", "int8"):
            for run in ("cold", "warm"):
                # torch's own cache lies elsewhere each time, as on another node.
                environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": f"{folder}/{profile}-{run}"}
                command = [sys.executable, __file__, "--size", arguments.size]
                command += ["--first-step", profile, "--output", folder]
                begun = time.time()
                process = subprocess.run(
                    command, env=environment, capture_output=True, text=True, timeout=400
                )
                lines = process.stdout.strip().splitlines()
                if process.returncode or not lines:
                    problem = (process.stderr.strip().splitlines() or ["no output"])[-1]
                    say(f"{profile}, {run}: {problem}")
                    figures[f"{profile} {run}"] = {"error": problem}
                    continue
                seconds = float(lines[-1]) - begun
                say(f"{profile}, {run}: first step after {seconds:.1f} s")
                figures[f"{profile} {run}"] = {"first_step_s": seconds}
    return figures


def first_step(arguments: argparse.Namespace) -> None:
    """Print the time at which the first step of a fresh process ended."""
    folder = Path(arguments.output)
    overrides = {"profiles": LADDER, "default_profile": "exact", "model.dtype": "bfloat16"}
    overrides["model.checkpoint"] = str(folder / "model")
    overrides["model.compile_cache"] = str(folder / "compiled")
    config, request, _ = _setup(arguments, folder, overrides, write=False)
    ended: list[float] = []

    def on_step(done: int, _total: int) -> None:
        _wait()
        ended.append(time.time())

    update = {"mode": "optimized", "profile": arguments.first_step, "num_inference_steps": 2}
    Engine(config).generate(request.model_copy(update=update), on_step)
    print(ended[0])


def lora(arguments: argparse.Namespace, say: Callable[[str], None]) -> Figures:
    """Seconds to put a rank-128 adapter on and off a compiled int8 model; what is recompiled."""
    from diffusers import CogVideoXImageToVideoPipeline, CogVideoXTransformer3DModel
    from peft import LoraConfig, get_peft_model_state_dict

    figures: Figures = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_checkpoint(arguments.architecture, folder / "model", dtype=DTYPE, device=str(DEVICE))
        shape = CogVideoXTransformer3DModel.load_config(folder / "model" / "transformer")
        with torch.device("meta"):
            skeleton = CogVideoXTransformer3DModel.from_config(shape)
        targets = ["to_q", "to_k", "to_v", "to_out.0"]
        rank = 16 if arguments.size == "tiny" else 128
        skeleton.add_adapter(LoraConfig(r=rank, target_modules=targets))
        tensors = {
            key: 0.01 * torch.randn(tensor.shape)
            for key, tensor in get_peft_model_state_dict(skeleton).items()
        }
        CogVideoXImageToVideoPipeline.save_lora_weights(
            folder / "adapter", transformer_lora_layers=tensors
        )
        overrides = {"profiles": LADDER, "default_profile": "exact", "model.dtype": "bfloat16"}
        overrides["model.checkpoint"] = str(folder / "model")
        config, request, _ = _setup(arguments, folder, overrides, write=False)
        engine = Engine(config)
        counters = torch._dynamo.utils.counters["stats"]
        update = {"mode": "optimized", "profile": "int8", "num_inference_steps": 2}
        request = request.model_copy(update=update)
        adapter = {"path": str(folder / "adapter"), "scale": 1.0}
        with_lora = GenerationRequest.model_validate({**request.model_dump(), "lora": adapter})
        for label, wanted in (
            ("plain", request),
            ("on", with_lora),
            ("off", request),
            ("on", with_lora),
        ):
            graphs, begun = counters["unique_graphs"], time.perf_counter()
            made = engine.generate(wanted)
            inside = sum(made.stages.model_dump(exclude_none=True).values())
            swap = time.perf_counter() - begun - inside
            compiled = counters["unique_graphs"] - graphs
            say(f"adapter {label}: {swap:.2f} s outside the stages, {compiled} graphs compiled")
            figures[f"{len(figures)} {label}"] = {"swap_s": swap, "graphs": compiled}
    return figures


def ranks(arguments: argparse.Namespace, say: Callable[[str], None]) -> Figures:
    """One clip on 1, 2, 4, ... GPUs of this host: seconds, scaling, and how far from one GPU's."""
    most = torch.cuda.device_count() if DEVICE.type == "cuda" else 2
    profiles = arguments.profiles.split(",") if arguments.profiles else ["exact"]
    figures: Figures = {}
    with tempfile.TemporaryDirectory() as folder:
        make_checkpoint(arguments.architecture, Path(folder) / "model", weights=False)
        for profile in profiles:
            alone: dict[str, float] | None = None
            for size in (size for size in (1, 2, 4, 8) if size <= most):
                found = _on_ranks(arguments, folder, profile, size)
                figures[f"{profile} {size}"] = found
                if "error" in found:
                    say(f"{profile} on {size}: {found['error']}")
                    continue
                alone = alone or found["seconds"]
                total, step = sum(found["seconds"].values()), found["seconds"]["denoise_s"]
                found["speedup"] = sum(alone.values()) / total
                found["latents"] = _latents_error(folder, profile, size)
                say(
                    f"{profile} on {size}: {total:.2f} s, {found['speedup']:.3f}x, step "
                    f"{1e3 * step / arguments.num_steps:.0f} ms, latents {found['latents']:.5f}, "
                    f"first clip {found['first_clip_s']:.0f} s, {found['seconds']}"
                )
    return figures


def _on_ranks(arguments: argparse.Namespace, folder: str, profile: str, size: int) -> Figures:
    """What rank 0 of `size` processes says of its second clip."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{probe.getsockname()[1]}"
    command = [sys.executable, __file__, "--size", arguments.size, "--output", folder]
    command += ["--num-steps", str(arguments.num_steps), "--profiles", profile]
    command += ["--unguided"] if arguments.unguided else []
    processes = [
        subprocess.Popen(
            [*command, "--rank", f"{rank}/{size}/{address}"],
            env={**os.environ, "CUDA_VISIBLE_DEVICES": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]
    try:
        said = [process.communicate(timeout=arguments.limit_s) for process in processes]
    finally:
        for process in processes:
            process.kill()
    if any(process.returncode for process in processes) or not said[0][0]:
        return {"error": [(errors.strip().splitlines() or ["no output"])[-1] for _, errors in said]}
    figures: Figures = json.loads(said[0][0].strip().splitlines()[-1])
    return figures


def _latents_error(folder: str, profile: str, size: int) -> float:
    """Of the latents of `size` ranks, relative to those of one."""
    alone, ours = (torch.load(Path(folder) / f"{profile}-{count}.pt") for count in (1, size))
    return float((ours - alone).norm() / alone.norm())


def one_rank(arguments: argparse.Namespace) -> None:
    """One rank of a clip; rank 0 prints the seconds of the second clip by stage."""
    rank, size, address = arguments.rank.split("/", 2)
    folder = Path(arguments.output)
    overrides = {"profiles": LADDER, "default_profile": "exact", "model.dtype": "bfloat16"}
    overrides["model.checkpoint"] = str(folder / "model")
    overrides["model.compile_cache"] = str(folder / "compiled")
    config, request, _ = _setup(arguments, folder / f"of-{rank}-{size}", overrides, write=False)
    guided = not arguments.unguided
    group = None
    if int(size) > 1:
        group = join(int(rank), int(size), address, DEVICE, 240, guided=guided)
    engine = Engine(config, group)
    request = request.model_copy(update={"mode": "optimized", "profile": arguments.profiles})
    request = request if guided else request.model_copy(update={"guidance_scale": 1.0})
    begun = time.perf_counter()
    engine.generate(request.model_copy(update={"num_inference_steps": 2}))
    first_clip_s = time.perf_counter() - begun
    made = engine.generate(request)
    if rank == "0":
        torch.save(made.latents, folder / f"{arguments.profiles}-{size}.pt")
        seconds = made.stages.model_dump(exclude_none=True)
        print(json.dumps({"first_clip_s": first_clip_s, "seconds": seconds}))
    leave()


class CountedCache(StepCache):
    """A step cache that computes so many steps of a clip, evenly, and adds up as the real one does.

    Random weights change more from step to step than trained ones, and leave out none.
    """

    def __init__(
        self, num_computed: int, num_steps: int, _: float, all_reduce: AllReduce | None
    ) -> None:
        super().__init__(float("inf"), all_reduce)
        self._computed = {index * num_steps // num_computed for index in range(num_computed)}

    def lookup(self, first: torch.Tensor) -> torch.Tensor | None:
        rest = super().lookup(first)
        return None if len(self.changes) in self._computed else rest


PARTS = {
    "profiles": profiles,
    "vae": vae,
    "startup": startup,
    "embedded": embedded,
    "memory": memory,
    "fp16": fp16,
    "lora": lora,
    "ranks": ranks,
}


def _benchmark(
    arguments: argparse.Namespace,
    say: Callable[[str], None],
    dtype: str,
    ladder: dict[str, dict[str, object]],
    *,
    baseline: bool = True,
) -> Figures:
    if arguments.num_computed:
        counts = (arguments.num_computed, arguments.num_steps)
        denoiser.StepCache = partial(CountedCache, *counts)  # type: ignore[misc,assignment]
    with tempfile.TemporaryDirectory() as folder:
        overrides = {"profiles": ladder, "default_profile": next(iter(ladder))}
        overrides["model.dtype"] = dtype  # type: ignore[assignment]
        config, request, _ = _setup(arguments, Path(folder), overrides)
        rows: list[Figures] = []

        def on_row(row: BenchmarkRow) -> None:
            """Say it and keep it now: the next one may run out of time."""
            say(_line(row))
            rows.append(row.model_dump(mode="json", exclude={"model"}))
            path = Path(arguments.output) / f"{arguments.part}.json"
            path.write_text(json.dumps({"rows": rows}, indent=2) + "\n")

        wanted = arguments.profiles.split(",") if arguments.profiles else list(ladder)
        report, _ = run_benchmark(
            config,
            f"{arguments.architecture}, random weights, {arguments.num_steps} steps",
            request,
            profiles=[name for name in ladder if name in wanted],
            baseline=baseline,
            repeat=arguments.repeat,
            warm_up_steps=arguments.warm_up_steps,
            on_row=on_row,
        )
    stem = Path(arguments.output) / arguments.part
    stem.with_suffix(".csv").write_text(table(report))
    stem.with_suffix(".png").write_bytes(plot(report))
    stem.with_suffix(".html").write_text(page(report, f"{stem.name}.png", f"{stem.name}.csv"))
    return report.model_dump(mode="json")


def _line(row: BenchmarkRow) -> str:
    if row.error:
        return f"{row.name}: {row.error}"
    step_ms = 1e3 * row.seconds["denoise_s"].median / row.num_inference_steps
    words = [f"{row.name}: {row.seconds['total'].median:.2f} s", f"step {step_ms:.0f} ms"]
    words += [f"decode {row.seconds['decode_s'].median:.2f} s"]
    words += [f"{row.num_computed_steps} of {row.num_inference_steps} computed"]
    words += [f"first clip {row.first_clip_s:.0f} s", f"VRAM {row.peak_vram_gb or 0:.1f} GB"]
    words += [f"FLOP use {row.utilisation or 0:.0%}", f"{row.speedup or 0:.3f}x"]
    if row.difference:
        words.append(f"latents {row.difference.latents:.5f}, PSNR {row.difference.psnr_db}")
        words.append(f"SSIM {row.difference.ssim:.4f}")
    return ", ".join(words)


def _setup(
    arguments: argparse.Namespace,
    folder: Path,
    overrides: dict[str, Any] | None = None,
    *,
    write: bool = True,
) -> tuple[Config, GenerationRequest, Path]:
    """A configuration for weights made on load, and a request for a picture drawn here."""
    if write:
        make_checkpoint(arguments.architecture, folder / "model", weights=False)
    checkpoint = (overrides or {}).get("model.checkpoint", str(folder / "model"))
    base = load_config("nano", {"model.checkpoint": checkpoint})
    found = open_checkpoint(base.model)
    shape = {name: getattr(found, name) for name in ("num_frames", "height", "width")}
    folder.mkdir(parents=True, exist_ok=True)
    picture = folder / "picture.png"
    y, x = np.mgrid[0 : found.height, 0 : found.width] / found.height
    pixels = np.stack([x / 2, y, 0.5 + 0.5 * np.sin(9 * x * y)], axis=-1)
    Image.fromarray((255 * pixels).astype(np.uint8)).save(picture)
    settings = {f"generation.{name}": value for name, value in shape.items()}
    settings |= {"model.checkpoint": checkpoint, "model.offload": "none"}
    settings |= {"generation.num_inference_steps": arguments.num_steps}
    config = load_config("cogvideox_5b_i2v", {**settings, **(overrides or {})})
    fields = {"id": "speed", "image": str(picture), "prompt": "slow push in", "seed": 0}
    return config, resolve_request(fields, config), picture


def _time(call: Callable[[], object], repeats: int = 10) -> float:
    """Median milliseconds of device time, after two calls to warm up."""
    with torch.no_grad():
        for _ in range(2):
            call()
        times = []
        for _ in range(repeats if DEVICE.type == "cuda" else 2):
            if DEVICE.type == "cuda":
                start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                start.record()
                call()
                end.record()
                end.synchronize()
                times.append(start.elapsed_time(end))
            else:
                begun = time.perf_counter()
                call()
                times.append(1e3 * (time.perf_counter() - begun))
    return statistics.median(times)


def _wait() -> None:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def _reset_peak() -> None:
    if DEVICE.type == "cuda":
        torch.cuda.reset_peak_memory_stats()


def _peak_gb() -> float:
    return torch.cuda.max_memory_allocated() / 1e9 if DEVICE.type == "cuda" else 0.0


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", required=True)
    parser.add_argument("--only", default=",".join(PARTS), help=f"of {', '.join(PARTS)}")
    parser.add_argument("--size", choices=["full", "tiny"], default="full")
    parser.add_argument("--profiles", help=f"of {', '.join([*LADDER, *PLACEMENTS])}; default all")
    parser.add_argument("--num-steps", type=int, default=6)
    parser.add_argument("--repeat", type=int, default=1, help="clips of each, after one to warm up")
    parser.add_argument("--warm-up-steps", type=int, help="of the first clip; default as all")
    parser.add_argument("--num-computed", type=int, help="steps that a step cache computes")
    parser.add_argument("--unguided", action="store_true", help="ranks share the sequence alone")
    parser.add_argument("--limit-s", type=float, default=240, help="for each part")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--first-step", help=argparse.SUPPRESS)
    parser.add_argument("--rank", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.architecture = {"full": "cogvideox_5b_i2v", "tiny": "tiny"}[arguments.size]
    return arguments


def main() -> None:
    arguments = _parse()
    if arguments.first_step:
        first_step(arguments)
        return
    if arguments.rank:
        one_rank(arguments)
        return
    output = Path(arguments.output)
    output.mkdir(parents=True, exist_ok=True)
    if arguments.part:
        with torch.no_grad():
            figures = PARTS[arguments.part](
                arguments, lambda line: print(f"{arguments.part:9} {line}", flush=True)
            )
        text = json.dumps(figures, indent=2, default=str) + "\n"
        (output / f"{arguments.part}.json").write_text(text)
        return
    unknown = set(arguments.only.split(",")) - set(PARTS)
    if unknown:
        raise SystemExit(f"--only: must be of {', '.join(PARTS)}, got {', '.join(sorted(unknown))}")
    name = torch.cuda.get_device_name() if DEVICE.type == "cuda" else "CPU"
    print(f"{name}, torch {torch.__version__}, cuDNN {torch.backends.cudnn.version()}", flush=True)
    for part in arguments.only.split(","):
        words = [sys.executable, __file__, "--part", part, "--output", arguments.output]
        words += ["--size", arguments.size, "--num-steps", str(arguments.num_steps)]
        words += ["--repeat", str(arguments.repeat)]
        words += ["--profiles", arguments.profiles] if arguments.profiles else []
        warm_up = arguments.warm_up_steps
        words += ["--warm-up-steps", str(warm_up)] if warm_up else []
        words += ["--limit-s", str(arguments.limit_s)]
        words += ["--unguided"] if arguments.unguided else []
        computed = arguments.num_computed
        words += ["--num-computed", str(computed)] if computed else []
        begun = time.monotonic()
        try:
            code = subprocess.run(words, timeout=arguments.limit_s).returncode
            end = "done" if code == 0 else f"FAILED with exit code {code}"
        except subprocess.TimeoutExpired:
            end = f"STOPPED at its limit of {arguments.limit_s:g} s"
        print(f"{part:9} {end} after {time.monotonic() - begun:.0f} s", flush=True)


if __name__ == "__main__":
    main()
