"""LoRA files of every trainer: what they say is what acts, and what cannot act is refused."""

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from vidgen_ray.config import LoRA, ModelConfig
from vidgen_ray.errors import RequestError
from vidgen_ray.model.checkpoint import Checkpoint, open_checkpoint
from vidgen_ray.model.loading import load_pipeline

if TYPE_CHECKING:
    import torch
    from diffusers import CogVideoXImageToVideoPipeline

Tensors = dict[str, "torch.Tensor"]
Ranks = dict[str, int]

TO_Q = "transformer_blocks.0.attn1.to_q"
LAYERS = [
    TO_Q,
    "transformer_blocks.0.attn1.to_out.0",
    "transformer_blocks.1.ff.net.0.proj",
    "transformer_blocks.1.norm1.linear",
    "time_embedding.linear_1",
    "patch_embed.text_proj",
    "norm_out.linear",
    "proj_out",
]
RANKS = {name: 2 if name.endswith("linear") else 4 for name in LAYERS}


@pytest.fixture(scope="module")
def checkpoint(tiny_folder: Path) -> Checkpoint:
    return open_checkpoint(ModelConfig(checkpoint=str(tiny_folder)))


@pytest.fixture(scope="module")
def pipeline(checkpoint: Checkpoint) -> "CogVideoXImageToVideoPipeline":
    return load_pipeline(checkpoint, "float32")


@pytest.fixture(scope="module")
def pairs(checkpoint: Checkpoint) -> dict[str, tuple["torch.Tensor", "torch.Tensor"]]:
    """A [rank, in] and B [out, rank] of each layer."""
    import torch

    from vidgen_ray.model.adapters import skeleton

    torch.manual_seed(0)
    transformer = skeleton(checkpoint)
    pairs = {}
    for name, rank in RANKS.items():
        layer = transformer.get_submodule(name)
        pairs[name] = (
            torch.randn(rank, layer.in_features) * 0.1,
            torch.randn(layer.out_features, rank) * 0.1,
        )
    return pairs


class Writer:
    """Writes the pairs as one trainer does, and knows the strength of each layer."""

    def __init__(self, folder: Path, pairs: dict[str, Any]) -> None:
        self.folder, self.pairs = folder, pairs
        self.scales = dict.fromkeys(pairs, 1.0)
        self.path = folder / "lora.safetensors"
        self.metadata: dict[str, str] = {}

    def write(self, name: Callable[[str, str], str], alpha: float | None = None) -> None:
        import torch
        from safetensors.torch import save_file

        tensors = {
            name(layer, side): tensor
            for layer, pair in self.pairs.items()
            for side, tensor in zip("AB", pair, strict=True)
        }
        if alpha is not None:
            for layer, (a, _) in self.pairs.items():
                key = name(layer, "A")
                cut = min(key.index(end) for end in (".lora_", ".lora.") if end in key)
                tensors[f"{key[:cut]}.alpha"] = torch.tensor(alpha)
                self.scales[layer] = alpha / len(a)
        save_file(tensors, self.path, self.metadata)

    def settings(self, **settings: Any) -> dict[str, Any]:
        return {
            "peft_type": "LORA",
            "r": 4,
            "lora_alpha": 8,
            "rank_pattern": {".*linear": 2},
            "target_modules": ["to_q"],
            "init_lora_weights": True,
            "use_dora": False,
            **settings,
        }


def _diffusers(layer: str, side: str) -> str:
    return f"transformer.{layer}.lora_{side}.weight"


def _flat(prefix: str) -> Callable[[str, str], str]:
    sides = {"A": "down", "B": "up"}
    return lambda layer, side: f"{prefix}{layer.replace('.', '_')}.lora_{sides[side]}.weight"


def _dotted(prefix: str, infix: str = "") -> Callable[[str, str], str]:
    return lambda layer, side: f"{prefix}{layer}.lora_{side}{infix}.weight"


def _down_up(form: str) -> Callable[[str, str], str]:
    sides = {"A": "down", "B": "up"}
    return lambda layer, side: form.format(layer=layer, side=sides[side])


def _metadata(writer: Writer) -> None:
    settings = {f"transformer.{name}": value for name, value in writer.settings().items()}
    writer.metadata = {"lora_adapter_metadata": json.dumps(settings), "format": "pt"}
    writer.scales = {layer: 8 / rank for layer, rank in RANKS.items()}
    writer.write(_diffusers)


def _patterns(writer: Writer) -> None:
    settings = writer.settings(
        rank_pattern={r"norm\d\.linear": 2, "norm_out.linear": 2},
        alpha_pattern={"to_q": 1.0, "transformer_blocks.1.ff.net.0.proj": 2.0},
    )
    settings = {f"transformer.{name}": value for name, value in settings.items()}
    writer.metadata = {"lora_adapter_metadata": json.dumps(settings)}
    writer.scales = {layer: 8 / rank for layer, rank in RANKS.items()}
    writer.scales |= {TO_Q: 1 / 4, "transformer_blocks.1.ff.net.0.proj": 2 / 4}
    writer.write(_diffusers)


def _rslora(writer: Writer) -> None:
    settings = {f"transformer.{k}": v for k, v in writer.settings(use_rslora=True).items()}
    writer.metadata = {"lora_adapter_metadata": json.dumps(settings)}
    writer.scales = {layer: 8 / math.sqrt(rank) for layer, rank in RANKS.items()}
    writer.write(_diffusers)


def _peft_folder(writer: Writer) -> None:
    (writer.folder / "adapter_config.json").write_text(json.dumps(writer.settings()))
    writer.path = writer.folder / "adapter_model.safetensors"
    writer.scales = {layer: 8 / rank for layer, rank in RANKS.items()}
    writer.write(_dotted("base_model.model."))
    writer.path = writer.folder


def _diffusion_pipe(writer: Writer) -> None:
    _peft_folder(writer)
    writer.path = writer.folder / "adapter_model.safetensors"
    writer.write(_dotted("diffusion_model."))


def _one_of_peft_epochs(writer: Writer) -> None:
    _peft_folder(writer)
    writer.path = writer.folder / "epoch_2.safetensors"
    writer.write(_dotted("base_model.model."))


def _export_beside_peft(writer: Writer) -> None:
    _peft_folder(writer)
    writer.path = writer.folder / "comfy.safetensors"
    writer.scales = dict.fromkeys(writer.pairs, 1.0)
    writer.write(_dotted("diffusion_model."))


def _finetrainers(writer: Writer) -> None:
    settings = {"r": 4, "lora_alpha": 2, "init_lora_weights": True, "target_modules": ["to_q"]}
    writer.pairs = {name: pair for name, pair in writer.pairs.items() if RANKS[name] == 4}
    writer.metadata = {"lora_config": json.dumps(settings)}
    writer.scales = dict.fromkeys(writer.pairs, 0.5)
    writer.write(_diffusers)


def _old_processors(writer: Writer) -> None:
    writer.pairs = {name: pair for name, pair in writer.pairs.items() if ".attn1." in name}
    sides = {"A": "down", "B": "up"}

    def name(layer: str, side: str) -> str:
        block, leaf = layer.split(".attn1.")
        leaf = leaf.removesuffix(".0")
        return f"transformer.{block}.attn1.processor.{leaf}_lora.{sides[side]}.weight"

    writer.write(name)


def _compiled(writer: Writer) -> None:
    writer.write(
        lambda layer, side: (
            "transformer._orig_mod."
            + layer.replace("blocks.0.", "blocks.0._checkpoint_wrapped_module.")
            + f".lora_{side}.weight"
        )
    )


def _halves(writer: Writer, dtype: str) -> None:
    import torch

    kind = getattr(torch, dtype)
    writer.pairs = {
        layer: tuple(side.to(kind) for side in pair) for layer, pair in writer.pairs.items()
    }
    writer.write(_diffusers)


FAMILIES: dict[str, Callable[[Writer], None]] = {
    "diffusers": lambda writer: writer.write(_diffusers),
    "diffusers with alpha": lambda writer: writer.write(_diffusers, alpha=2.0),
    "diffusers with metadata": _metadata,
    "rank and alpha patterns": _patterns,
    "rsLoRA": _rslora,
    "finetrainers": _finetrainers,
    "PEFT folder": _peft_folder,
    "diffusion-pipe": _diffusion_pipe,
    "one of PEFT's epochs": _one_of_peft_epochs,
    "an export beside a PEFT folder": _export_beside_peft,
    "PEFT state dict": lambda writer: writer.write(_dotted("base_model.model.", ".default")),
    "DiffSynth": lambda writer: writer.write(_dotted("", ".default")),
    "DiffSynth with its prefix": lambda writer: writer.write(_dotted("pipe.dit.", ".default")),
    "ComfyUI": lambda writer: writer.write(_dotted("diffusion_model.")),
    "no prefix": lambda writer: writer.write(_dotted("")),
    "DeepSpeed": lambda writer: writer.write(_dotted("module.")),
    "Musubi and kohya": lambda writer: writer.write(_flat("lora_unet_"), alpha=1.0),
    "VideoX-Fun": lambda writer: writer.write(_flat("lora_unet__"), alpha=3.0),
    "VideoX-Fun without alpha": lambda writer: writer.write(_flat("lora_unet__")),
    "OneTrainer": lambda writer: writer.write(_flat("lora_transformer_"), alpha=1.0),
    "LyCORIS": lambda writer: writer.write(_flat("lycoris_"), alpha=1.0),
    "down and up": lambda writer: writer.write(_down_up("transformer.{layer}.lora_{side}.weight")),
    "old diffusers": lambda writer: writer.write(_down_up("{layer}.lora.{side}.weight"), 2.0),
    "old attention processors": _old_processors,
    "compiled and wrapped": _compiled,
    "bfloat16": lambda writer: _halves(writer, "bfloat16"),
    "float64": lambda writer: _halves(writer, "float64"),
    "float8": lambda writer: _halves(writer, "float8_e4m3fn"),
}


@pytest.fixture
def writer(tmp_path: Path, pairs: dict[str, Any]) -> Writer:
    return Writer(tmp_path, pairs)


def _expected(writer: Writer) -> Iterator[tuple[str, "torch.Tensor"]]:
    """What the file says is added to each layer, computed in float64."""
    for layer, (a, b) in writer.pairs.items():
        yield layer, (writer.scales[layer] * (b.double() @ a.double())).float()


@pytest.mark.parametrize("family", FAMILIES)
def test_loading_and_fusing_add_what_the_file_says(
    family: str,
    writer: Writer,
    checkpoint: Checkpoint,
    pipeline: "CogVideoXImageToVideoPipeline",
) -> None:
    import torch

    from vidgen_ray.model.adapters import (
        fuse_lora,
        load_lora,
        open_adapter,
        unfuse_lora,
        unload_lora,
    )

    FAMILIES[family](writer)
    adapter = open_adapter(LoRA(path=str(writer.path)), checkpoint)
    expected = dict(_expected(writer))
    assert adapter.deltas.keys() == expected.keys()
    transformer = pipeline.transformer
    plain = {name: tensor.clone() for name, tensor in transformer.state_dict().items()}

    load_lora(pipeline, adapter, 0.5)
    assert not any(weight.is_meta for weight in transformer.parameters())
    for layer, delta in expected.items():
        loaded = transformer.get_submodule(layer).get_delta_weight("adapter")
        torch.testing.assert_close(loaded, 0.5 * delta, atol=1e-6, rtol=1e-5)
    unload_lora(pipeline)

    fuse_lora(pipeline, adapter, 0.5, checkpoint)
    for name, weight in transformer.state_dict().items():
        delta = expected.get(name.removesuffix(".weight"))
        if delta is None or not name.endswith(".weight"):
            assert torch.equal(weight, plain[name])
        else:
            torch.testing.assert_close(weight, plain[name] + 0.5 * delta, atol=1e-6, rtol=1e-5)
    unfuse_lora(pipeline, adapter, checkpoint)
    assert all(
        torch.equal(plain[name], tensor) for name, tensor in transformer.state_dict().items()
    )


def test_loaded_and_fused_make_the_same_clip(
    writer: Writer, checkpoint: Checkpoint, photo: Path
) -> None:
    import torch
    from PIL import Image

    from vidgen_ray.model.adapters import fuse_lora, load_lora, open_adapter

    _patterns(writer)
    adapter = open_adapter(LoRA(path=str(writer.path)), checkpoint)
    plain, loaded, fused = (load_pipeline(checkpoint, "float32") for _ in range(3))
    load_lora(loaded, adapter, 1.0)
    fuse_lora(fused, adapter, 1.0, checkpoint)

    def latents(pipeline: "CogVideoXImageToVideoPipeline") -> "torch.Tensor":
        return pipeline(
            image=Image.open(photo).convert("RGB"),
            prompt="slow push in",
            num_frames=9,
            num_inference_steps=2,
            generator=torch.Generator().manual_seed(1),
            output_type="latent",
        ).frames

    expected = latents(loaded)
    assert (expected - latents(plain)).abs().max() > 0.01
    torch.testing.assert_close(latents(fused), expected, atol=1e-4, rtol=1e-4)


def test_fusing_into_8_bit_layers_rounds_the_sum(writer: Writer, checkpoint: Checkpoint) -> None:
    import torch

    from vidgen_ray.model.adapters import fuse_lora, open_adapter
    from vidgen_ray.model.quantization import EightBitLinear, quantize_linears, quantize_rows

    FAMILIES["Musubi and kohya"](writer)
    adapter = open_adapter(LoRA(path=str(writer.path)), checkpoint)
    pipeline = load_pipeline(checkpoint, "float32")
    weight = pipeline.transformer.get_submodule(TO_Q).weight.detach().clone()
    quantize_linears(pipeline.transformer, "int8")
    fuse_lora(pipeline, adapter, 1.0, checkpoint)
    layer = pipeline.transformer.get_submodule(TO_Q)
    assert isinstance(layer, EightBitLinear)
    rows, scale = quantize_rows(weight + dict(_expected(writer))[TO_Q], torch.int8)
    torch.testing.assert_close(
        layer.weight.float() * layer.weight_scale, rows.float() * scale, atol=1e-3, rtol=1e-3
    )


def _tensors(**extra: Any) -> Tensors:
    import torch

    pair = {_diffusers(TO_Q, "A"): torch.ones(4, 32), _diffusers(TO_Q, "B"): torch.ones(32, 4)}
    return pair | {key.replace("__", "."): value for key, value in extra.items()}


def _ones(*shape: int) -> "torch.Tensor":
    import torch

    return torch.ones(shape)


def _renamed(old: str, new: str) -> Tensors:
    return {key.replace(old, new): tensor for key, tensor in _tensors().items()}


def _with(side: str, tensor: "torch.Tensor") -> Tensors:
    return _tensors() | {_diffusers(TO_Q, side): tensor}


BLOCK = f"transformer.{TO_Q}"
REFUSED: dict[str, tuple[Callable[[], Tensors], str]] = {
    "DoRA": (lambda: _tensors() | {f"{BLOCK}.lora_magnitude_vector": _ones(32)}, "to DoRA; train"),
    "kohya's DoRA": (lambda: _tensors() | {f"{BLOCK}.dora_scale": _ones(32, 1)}, "to DoRA"),
    "LoHa": (lambda: {f"{BLOCK}.hada_w1_a": _ones(32, 4)}, "to LoHa"),
    "LoKr": (lambda: {"lycoris_transformer_blocks_0_attn1_to_q.lokr_w1": _ones(4, 4)}, "to LoKr"),
    "LoCon": (lambda: _tensors() | {f"{BLOCK}.lora_mid.weight": _ones(4, 4)}, "Tucker"),
    "full weights": (lambda: _tensors() | {"proj_out.diff": _ones(4, 4)}, "change of whole"),
    "bias": (lambda: _tensors() | {f"{BLOCK}.lora_B.bias": _ones(32)}, "a bias; train with"),
    "SAT": (
        lambda: {"model.diffusion_model.layers.0.attention.dense.matrix_A.0": _ones(4, 32)},
        "SAT, CogVideo's own trainer; convert",
    ),
    "text encoder": (
        lambda: _tensors() | {"lora_te_text_model_q.lora_down.weight": _ones(4, 4)},
        "for a text encoder",
    ),
    "only A": (
        lambda: {_diffusers(TO_Q, "A"): _ones(4, 32)},
        r"lora_A\.weight lacks its partner, B of transformer_blocks\.0",
    ),
    "alpha alone": (
        lambda: _tensors() | {"transformer.proj_out.alpha": _ones()},
        r"proj_out\.alpha lacks its partner, A and B",
    ),
    "rank 0": (
        lambda: _with("A", _ones(0, 32)) | {_diffusers(TO_Q, "B"): _ones(32, 0)},
        r"lora_A\.weight has rank 0",
    ),
    "two ranks": (lambda: _with("A", _ones(2, 32)), "have different ranks"),
    "another size": (lambda: _with("A", _ones(4, 64)), "where the model needs 32 on axis 1"),
    "convolution's shape": (lambda: _with("A", _ones(4, 32, 1, 1)), "where the model needs 32"),
    "NaN": (lambda: _with("A", _ones(4, 32) * math.nan), "holds NaN or infinity"),
    "integers": (lambda: _with("A", _ones(4, 32).int()), "is I32, not a floating-point"),
    "alpha 0": (lambda: _tensors() | {f"{BLOCK}.alpha": 0 * _ones()}, "one positive number"),
    "two adapters": (
        lambda: _tensors() | {f"{BLOCK}.lora_A.second.weight": _ones(4, 32)},
        "are both A of",
    ),
    "a layer too many": (
        lambda: _renamed("blocks.0", "blocks.41"),
        r"no linear layer transformer_blocks\.41",
    ),
    "a convolution": (lambda: _renamed(TO_Q, "patch_embed.proj"), "no linear layer patch_embed"),
    "Wan": (lambda: _renamed(TO_Q, "blocks.0.self_attn.q"), "names a layer of Wan"),
    "FLUX": (lambda: _renamed(TO_Q, "single_transformer_blocks.0.attn.to_q"), "of FLUX"),
    "Stable Diffusion": (
        lambda: {"lora_unet_down_blocks_0_attentions_0_proj_in.lora_up.weight": _ones(4, 4)},
        "of Stable Diffusion",
    ),
    "whole weights": (lambda: {f"{BLOCK}.weight": _ones(32, 32)}, "is not a tensor of a LoRA"),
    "nothing": (dict, "holds no tensors"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_act_is_refused_by_its_name(
    kind: str, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    from safetensors.torch import save_file

    from vidgen_ray.model.adapters import open_adapter

    make, message = REFUSED[kind]
    save_file(make(), tmp_path / "lora.safetensors")
    with pytest.raises(RequestError, match=message):
        open_adapter(LoRA(path=str(tmp_path)), checkpoint)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ("{not json", "is not JSON"),
        ("[1]", "is not a JSON object"),
        ('{"r": 4, "lora_alpha": 4}', "must have keys that begin with `transformer.`"),
        ('{"transformer.r": 4, "transformer.use_dora": true}', "asks for DoRA"),
        ('{"transformer.r": 4, "transformer.lora_bias": true}', "asks for a bias"),
        ('{"transformer.r": 4, "transformer.peft_type": "LOHA"}', "asks for LOHA"),
        ('{"transformer.r": 4, "transformer.init_lora_weights": "pissa"}', "pissa, which changes"),
        ('{"transformer.r": 8}', "rank 8, its tensors have 4"),
        ('{"transformer.r": "many"}', "has r: .* got 'many'"),
        ('{"transformer.r": 4, "transformer.lora_alpha": 0}', "has lora_alpha: .*greater than 0"),
        ('{"transformer.r": 4, "transformer.alpha_pattern": {"(": 1}}', "no regular expression"),
        ('{"transformer.r": 4, "transformer.alpha_pattern": {"to_q": -1}}', "alpha_pattern.to_q"),
    ],
)
def test_unusable_settings_are_refused(
    metadata: str, message: str, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    from safetensors.torch import save_file

    from vidgen_ray.model.adapters import open_adapter

    save_file(_tensors(), tmp_path / "lora.safetensors", {"lora_adapter_metadata": metadata})
    with pytest.raises(RequestError, match=message):
        open_adapter(LoRA(path=str(tmp_path)), checkpoint)
    if "transformer." in metadata:  # the same in PEFT's file
        save_file(_tensors(), tmp_path / "lora.safetensors")
        settings = metadata.replace("transformer.", "")
        (tmp_path / "adapter_config.json").write_text(settings)
        with pytest.raises(RequestError, match=r"adapter_config\.json|rank 8|regular"):
            open_adapter(LoRA(path=str(tmp_path)), checkpoint)


def test_alpha_that_disagrees_with_the_settings_is_refused(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    from safetensors.torch import save_file

    from vidgen_ray.model.adapters import open_adapter

    tensors = _tensors() | {f"{BLOCK}.alpha": 2 * _ones()}
    settings = {"lora_adapter_metadata": '{"transformer.r": 4, "transformer.lora_alpha": 4}'}
    save_file(tensors, tmp_path / "lora.safetensors", settings)
    with pytest.raises(RequestError, match=r"alpha is 2, the adapter's settings say 4"):
        open_adapter(LoRA(path=str(tmp_path)), checkpoint)


def test_a_training_run_means_its_final_adapter(tmp_path: Path) -> None:
    from vidgen_ray.model.lora_file import FINAL_NAME, WEIGHTS_NAME, find_lora, is_lora_folder

    for name in ("adapter_epoch_0001", "adapter_epoch_0002", "state"):
        (tmp_path / name).mkdir()
        (tmp_path / name / WEIGHTS_NAME).write_bytes(b"")
    with pytest.raises(RequestError, match=r"has not ended; .* such as .*adapter_epoch_0002"):
        find_lora(tmp_path)
    assert not is_lora_folder(tmp_path)
    (tmp_path / FINAL_NAME).mkdir()
    (tmp_path / FINAL_NAME / WEIGHTS_NAME).write_bytes(b"")
    assert find_lora(tmp_path) == tmp_path / FINAL_NAME / WEIGHTS_NAME
    assert is_lora_folder(tmp_path)


def test_a_folder_that_is_ambiguous_or_holds_pickles_is_refused(tmp_path: Path) -> None:
    from vidgen_ray.model.lora_file import find_lora

    (tmp_path / "adapter_model.bin").write_bytes(b"")
    with pytest.raises(RequestError, match="pickles can run code"):
        find_lora(tmp_path)
    for name in ("a", "b"):
        (tmp_path / f"{name}.safetensors").write_bytes(b"")
    with pytest.raises(RequestError, match=r"got \['a.safetensors', 'b.safetensors'\]"):
        find_lora(tmp_path)
