"""Encoding makes every clip once, whatever happens, and says what it left out and why."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from vidgen_ray.config import load_config
from vidgen_ray.encoding.driver import EncodingArguments, run_encoding
from vidgen_ray.encoding.result import EncodingSummary
from vidgen_ray.encoding.shards import ClipEntry, EncodedClips, read_entries
from vidgen_ray.errors import ConfigError, DatasetError
from vidgen_ray.model.checkpoint import open_checkpoint
from vidgen_ray.model.encoders import VideoEncoder
from vidgen_ray.schema import Video, derive_seed
from vidgen_ray.video_io import read_span, write_video

SOURCE = {"dataset": "test", "licence": "CC0", "terms": "do as you like"}


class Desk:
    """A folder with videos, a metadata file, and what was encoded of it."""

    def __init__(self, folder: Path, overrides: dict[str, object]) -> None:
        self.folder = folder
        self.output = folder / "latents"
        self.overrides = overrides
        self.said = ""

    def film(self, name: str, shade: int = 0, num_frames: int = 24, fps: float = 16) -> None:
        y, x, t = np.mgrid[0:64, 0:96, 0:num_frames]
        waves = [x * 2 + t * 3 + shade, y * 3, x + y]
        frames = np.stack(waves, -1).transpose(2, 0, 1, 3).astype(np.uint8)
        write_video(self.folder / name, Video(frames, fps))

    def write(self, *rows: dict[str, Any]) -> None:
        lines = [json.dumps({"source": SOURCE, "prompt": "pan left", **row}) for row in rows]
        (self.folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")

    def encode(self, **overrides: object) -> int:
        console = Console(file=io.StringIO(), width=200)
        config = load_config("training/lora_nano", {**self.overrides, **overrides})
        metadata = str(self.folder / "metadata.jsonl")
        try:
            return run_encoding(EncodingArguments(metadata, str(self.output), config), console)
        finally:
            self.said = console.file.getvalue()  # type: ignore[attr-defined]

    def entries(self) -> dict[str, ClipEntry]:
        return {entry.id: entry for entry in read_entries(str(self.output))}

    def outcomes(self) -> dict[str, str]:
        return {clip_id: entry.outcome for clip_id, entry in self.entries().items()}


@pytest.fixture
def desk(tmp_path: Path, tiny_training: dict[str, object]) -> Desk:
    desk = Desk(tmp_path, tiny_training)
    desk.film("a.mp4")
    desk.film("b.mp4", shade=90)
    return desk


@pytest.mark.thorough
@pytest.mark.usefixtures("ray_cluster")
def test_rows_become_latents_once_and_what_is_wrong_has_a_reason(desk: Desk) -> None:
    (desk.folder / "broken.mp4").write_bytes((desk.folder / "a.mp4").read_bytes()[:900])
    rows = [
        {"id": "a#1", "video": "a.mp4"},
        {"id": "a#2", "video": "a.mp4", "prompt": "another caption"},
        {"id": "b", "video": "b.mp4", "prompt": "push in " * 300},
        {"id": "b-later", "video": "b.mp4", "start_s": 0.3},
        {"id": "broken", "video": "broken.mp4"},
        {"id": "gone", "video": "gone.mp4"},
        {"id": "short", "video": "a.mp4", "end_s": 0.5},
        {"id": "unfetched", "video": "c.mp4", "missing": "not fetched yet"},
        {"id": "marked", "video": "a.mp4", "check": {"marks": ["cut"]}},
    ]
    desk.write(*rows)
    assert desk.encode(**{"encoding.skip_marks": ["cut"]}) == 3
    assert desk.outcomes() == {
        "a#1": "encoded",
        "a#2": "encoded",
        "b": "encoded",
        "b-later": "encoded",
        "broken": "rejected",
        "gone": "rejected",
        "short": "rejected",
        "unfetched": "skipped",
        "marked": "skipped",
    }
    entries = desk.entries()
    assert entries["a#1"].latents == entries["a#2"].latents != entries["b"].latents
    assert entries["b"].latents != entries["b-later"].latents
    assert entries["b"].truncated
    assert not entries["a#1"].truncated
    reasons = {clip_id: entry.reason or "" for clip_id, entry in entries.items()}
    assert "does not decode" in reasons["broken"]
    assert "no such file" in reasons["gone"]
    assert "must last 1.00 s for 9 frames at 8 fps, got 0.50 s" in reasons["short"]
    assert (reasons["unfetched"], reasons["marked"]) == ("not fetched yet", "marked cut")
    assert "Terms:   do as you like" in desk.said
    clips = EncodedClips(str(desk.output))
    assert len(clips) == 4
    assert clips.shape == (16, 3, 8, 12)

    # The tensors are those of the encoder alone, called here.
    config = load_config("training/lora_nano", desk.overrides)
    cpu = torch.device("cpu")
    encoder = VideoEncoder(open_checkpoint(config.model), "float32", cpu, tiling=False)
    video = read_span(desk.folder / "a.mp4", num_frames=9, fps=8)
    clip = clips.read(0)
    torch.testing.assert_close(
        clip.posterior, encoder.encode_video(video.frames), atol=1e-4, rtol=1e-4
    )
    seed = derive_seed(entries["a#1"].latents or "")
    images = encoder.encode_image(video.frames[0], 2, seed)
    torch.testing.assert_close(clip.image_posteriors, images, atol=1e-4, rtol=1e-4)
    assert clip.prompt_embeds.shape == (226, 32)
    assert not torch.equal(clip.prompt_embeds, clips.read(1).prompt_embeds)
    assert clips.picture(0).startswith(b"\x89PNG")

    # Again: nothing is made, what was rejected is tried.
    shards = {path: path.stat().st_mtime_ns for path in desk.output.rglob("*.parquet")}
    desk.film("gone.mp4", shade=30)
    desk.write(*rows[:6])
    assert desk.encode() == 3
    assert desk.outcomes() == {
        **dict.fromkeys(["a#1", "a#2", "b", "b-later"], "reused"),
        "broken": "rejected",
        "gone": "encoded",
    }
    assert {path: path.stat().st_mtime_ns for path in shards} == shards
    summary = EncodingSummary.model_validate_json((desk.output / "summary.json").read_text())
    assert (summary.encoded, summary.reused, summary.rejected) == (1, 4, 1)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_a_changed_setting_encodes_anew(desk: Desk) -> None:
    desk.write({"id": "a", "video": "a.mp4"})
    assert desk.encode() == 0
    assert desk.encode(**{"generation.image_fit": "pad", "encoding.num_noised_images": 0}) == 0
    assert desk.outcomes() == {"a": "encoded"}
    assert desk.encode(**{"generation.image_fit": "pad", "encoding.num_noised_images": 0}) == 0
    assert desk.outcomes() == {"a": "reused"}


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_a_model_that_cannot_load_stops_the_run_with_one_error(
    desk: Desk, tiny_folder: Path, tmp_path: Path
) -> None:
    import shutil

    from vidgen_ray.errors import EngineError

    desk.write({"id": "a", "video": "a.mp4"})
    broken = tmp_path / "broken"
    shutil.copytree(tiny_folder, broken)
    (broken / "vae" / "diffusion_pytorch_model.safetensors").write_bytes(b"cut short")
    with pytest.raises((EngineError, ConfigError), match=r"model\.checkpoint: .*vae cannot be"):
        desk.encode(**{"model.checkpoint": str(broken)})
    assert not (desk.output / "clips.jsonl").exists()


def test_metadata_without_clips_is_refused(desk: Desk) -> None:
    (desk.folder / "metadata.jsonl").write_text("\n")
    with pytest.raises(DatasetError, match=r"metadata: .* has no clip"):
        desk.encode()
