"""Loads a checkpoint as a diffusers pipeline, or one part of it."""

from typing import TYPE_CHECKING, Any, TypeAlias

from vidgen_ray.config import Dtype
from vidgen_ray.errors import ConfigError
from vidgen_ray.model.checkpoint import Checkpoint
from vidgen_ray.model.quiet import quiet
from vidgen_ray.model.tokenizer import load_tokenizer
from vidgen_ray.model.weights import PARTS, cannot_load, find_weights

if TYPE_CHECKING:
    import torch
    from diffusers import CogVideoXImageToVideoPipeline

    Pipeline: TypeAlias = CogVideoXImageToVideoPipeline


def load_pipeline(
    checkpoint: Checkpoint, dtype: Dtype, device: "torch.device | None" = None
) -> "Pipeline":
    """The checkpoint as a diffusers pipeline on the CPU, in `dtype`. Raises ConfigError.

    Weights that are initialized on load (`make_checkpoint(weights=False)`) are made on `device`.
    """
    import torch

    quiet()
    if checkpoint.initialized_on_load:
        from vidgen_ray.model.untrained import make_weights

        pipeline = make_weights(
            checkpoint.folder, dtype=getattr(torch, dtype), device=str(device or "cpu")
        )
    else:
        parts = {part: load_part(checkpoint, part, dtype) for part in PARTS}
        pipeline = assemble_pipeline(checkpoint, **parts, tokenizer=tokenizer_of(checkpoint))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def load_part(checkpoint: Checkpoint, part: str, dtype: Dtype) -> Any:
    """One of `PARTS` with its weights on the CPU, in `dtype`. Raises ConfigError.

    Every tensor of the model must come from the files and every tensor of the files go into the
    model: the libraries would fill the former with random numbers and drop the latter silently.
    """
    import torch
    from diffusers import AutoencoderKLCogVideoX, CogVideoXTransformer3DModel
    from transformers import T5EncoderModel

    quiet()
    classes = {
        "transformer": CogVideoXTransformer3DModel,
        "vae": AutoencoderKLCogVideoX,
        "text_encoder": T5EncoderModel,
    }
    folder = checkpoint.folder / part
    files = find_weights(checkpoint.folder, part)
    try:
        module, info = classes[part].from_pretrained(
            folder,
            dtype=getattr(torch, dtype),
            variant=files.variant,
            local_files_only=True,
            use_safetensors=True,  # a pickle would run whatever is in it
            output_loading_info=True,
        )
    except Exception as error:  # the loaders raise anything from KeyError to SafetensorError
        raise cannot_load(folder, error) from error
    for kind in ("missing", "unexpected", "mismatched"):
        if names := info[f"{kind}_keys"]:
            raise ConfigError(
                f"model.checkpoint: {folder}: {len(names)} {kind} tensors, such as "
                f"{sorted(map(str, names))[0]}: the weights do not fit config.json; download or "
                "copy the folder again"
            )
    return module


def assemble_pipeline(checkpoint: Checkpoint, **parts: Any) -> "Pipeline":
    """The pipeline of `parts`, some of which may be None, with the checkpoint's scheduler.

    Raises ConfigError.
    """
    from diffusers import CogVideoXImageToVideoPipeline

    try:
        return CogVideoXImageToVideoPipeline.from_pretrained(
            checkpoint.folder, **parts, local_files_only=True
        )
    except Exception as error:
        raise cannot_load(checkpoint.folder, error) from error


def tokenizer_of(checkpoint: Checkpoint) -> Any:
    """The tokenizer of the checkpoint's text encoder. Raises ConfigError."""
    vocab_size = checkpoint.configs.text_encoder.vocab_size
    return load_tokenizer(checkpoint.folder / "tokenizer", vocab_size)
