"""The Python API: what `vidgen_ray` itself offers is enough to make, score and keep a clip."""

import subprocess
import sys
from pathlib import Path

import pytest

import vidgen_ray


def test_a_clip_is_made_scored_and_saved(
    tmp_path: Path, photo: Path, tiny_overrides: dict[str, object]
) -> None:
    config = vidgen_ray.load_config("nano", tiny_overrides)
    request = vidgen_ray.resolve_request(
        {"id": "harbour", "image": str(photo), "prompt": "slow push in"}, config
    )
    assert isinstance(request, vidgen_ray.GenerationRequest)
    clip: vidgen_ray.Generation = vidgen_ray.Engine(config).generate(request)
    score = vidgen_ray.score_video(clip.video, image=clip.image.pixels)
    verdict, reasons = vidgen_ray.judge(score, config.quality)
    assert (verdict == "accepted") == (not reasons)
    vidgen_ray.write_video(tmp_path / "harbour.mp4", clip.video)
    saved = vidgen_ray.read_video(str(tmp_path / "harbour.mp4"))
    assert saved.frames.shape == clip.video.frames.shape
    with pytest.raises(vidgen_ray.VidgenError, match="prompt"):
        vidgen_ray.generate_clip({"image": str(photo)}, tmp_path / "other.mp4", config)


def test_every_name_loads_and_nothing_else() -> None:
    for name in vidgen_ray.__all__:
        assert getattr(vidgen_ray, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = vidgen_ray.nothing


def test_importing_the_package_loads_neither_torch_nor_ray() -> None:
    code = "import sys, vidgen_ray; sys.exit(bool({'torch', 'ray', 'cv2'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
