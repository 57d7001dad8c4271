"""Encoded clips are found again by what decided them, and by nothing else."""

import pytest

from vidgen_ray.encoding.shards import EncodingSettings

SETTINGS = EncodingSettings(
    num_frames=9,
    height=64,
    width=96,
    fps=8,
    image_fit="crop",
    dtype="float32",
    num_noised_images=2,
    vae_tiling=False,
    vae="a",
    text_encoder="b",
    tokenizer="c",
)
CLIP = ("0" * 64, 1.5, "")
CHANGES = {
    "num_frames": 13,
    "height": 128,
    "width": 128,
    "fps": 16,
    "image_fit": "pad",
    "dtype": "bfloat16",
    "num_noised_images": 0,
    "vae_tiling": True,
    "vae": "x",
    "text_encoder": "x",
    "tokenizer": "x",
}


@pytest.mark.parametrize("field", EncodingSettings.model_fields)
def test_a_changed_setting_encodes_anew_what_it_decides(field: str) -> None:
    changed = SETTINGS.model_copy(update={field: CHANGES[field]})
    of_text = field in {"text_encoder", "tokenizer"}
    assert (changed.latents_key(*CLIP) == SETTINGS.latents_key(*CLIP)) == of_text
    of_both = of_text or field == "dtype"
    assert (changed.prompt_key("pan left") != SETTINGS.prompt_key("pan left")) == of_both


def test_another_span_file_or_image_is_another_clip() -> None:
    keys = {
        SETTINGS.latents_key(*clip)
        for clip in [CLIP, ("1" * 64, 1.5, ""), ("0" * 64, 2.0, ""), ("0" * 64, 1.5, "2" * 64)]
    }
    assert len(keys) == 4
    assert SETTINGS.latents_key("0" * 64, None, "") == SETTINGS.latents_key("0" * 64, 0.0, "")
