"""Tensor names in LoRA files of many trainers, resolved to layers of the transformer."""

import re
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

Role = Literal["A", "B", "alpha"]

# What wrappers of PyTorch put into the path of a module.
_WRAPPERS = re.compile(r"\b(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")

# PEFT, ComfyUI and diffusion-pipe, DiffSynth, VideoX-Fun, DeepSpeed; no layer of the transformer
# has a path that begins with one of these.
_DOTTED_PREFIX = re.compile(
    r"(?:(?:base_model|model|module|diffusion_model|transformer3d|transformer|unet|pipe|dit"
    r"|lora_unet|lora_transformer)\.)+"
)

# kohya, Musubi, VideoX-Fun, OneTrainer and LyCORIS write `_` for `.`
_FLAT_PREFIXES = (
    "lora_unet_",
    "lora_transformer_",
    "lycoris_",
    "lycoris_unet_",
    "lycoris_transformer_",
)

_PAIRS: dict[str, Role] = {"lora_A": "A", "lora_down": "A", "lora_B": "B", "lora_up": "B"}
_PAIR = re.compile(
    r"(?P<layer>.+)\.(?P<side>lora_A|lora_B|lora_down|lora_up)(?:\.(?P<adapter>[^.]+))?\.weight"
)
# diffusers before 0.22: `lora.down`, `lora_linear_layer.down` and attention processors
_OLD_PAIR = re.compile(r"(?P<layer>.+)\.(?:lora|lora_linear_layer)\.(?P<side>down|up)\.weight")
_PROCESSOR_PAIR = re.compile(
    r"(?P<layer>.+)\.processor\.(?P<leaf>to_q|to_k|to_v|to_out)_lora\.(?P<side>down|up)\.weight"
)

_PLAIN = "train or export it as a plain LoRA (A and B alone)"
# What a file may hold beside or instead of A and B, which a sum with B @ A does not express.
_OTHER_METHODS = (
    (r"lora_magnitude_vector|dora_scale", "DoRA", _PLAIN),
    (r"\.hada_", "LoHa", _PLAIN),
    (r"\.lokr_", "LoKr", _PLAIN),
    (r"\.(oft|boft)_|oft_blocks|\.oft_R\.", "OFT", _PLAIN),
    (r"\.lora_mid\b", "a LoCon with a Tucker core", _PLAIN),
    (r"\.lora_E\b|ranknum", "AdaLoRA", _PLAIN),
    (r"ia3_|vera_lambda|\.glora_", "another method than LoRA", _PLAIN),
    (
        r"\.diff(_b)?$|\.(w|b)_norm$|modules_to_save",
        "a change of whole weights",
        "export the LoRA without them",
    ),
    (r"\.lora_[AB](\.[^.]+)?\.bias$|\.bias$", "a bias", "train with bias: none, lora_bias: false"),
    (
        r"\.matrix_[AB]\.\d",
        "SAT, CogVideo's own trainer",
        "convert it with its tools/export_sat_lora_weight.py",
    ),
)
_TEXT_ENCODER = re.compile(r"(?:lora_te\d?_|lora_te\d?\.|text_encoder|te\d?\.|text_model)")
_OTHER_MODELS = (
    (r"single_transformer_blocks", "FLUX or HunyuanVideo"),
    (r"(double|single)_blocks", "FLUX or HunyuanVideo"),
    (r"\bblocks[._]\d+[._](self_attn|cross_attn|ffn)", "Wan"),
    (r"transformer_blocks[._]\d+[._](attn2|img_mlp|txt_mlp|attn[._]add_)", "LTX-Video or Qwen"),
    (r"(down|up|mid|input|output|middle)_blocks?[._]", "Stable Diffusion"),
    (r"joint_transformer_blocks|joint_blocks", "Stable Diffusion 3"),
    (r"\blayers[._]\d+[._](self_attn|mlp|attention)", "a language model or Lumina"),
)


class LoraProblem(ValueError):
    """What is wrong with one tensor or setting of a LoRA; `fix` is what to do about it."""

    def __init__(self, reason: str, fix: str) -> None:
        super().__init__(reason)
        self.fix = fix


@dataclass(frozen=True)
class LayerNames:
    """The linear layers of one transformer, found by the names that trainers give them."""

    layers: Collection[str]

    def resolve(self, key: str) -> tuple[str, Role]:
        """The layer that the tensor `key` belongs to, and its role there. Raises LoraProblem."""
        if _TEXT_ENCODER.match(_strip(key)):
            raise LoraProblem(
                f"{key} is for a text encoder, which is not adapted here",
                "export the LoRA of the transformer alone",
            )
        for pattern, method, fix in _OTHER_METHODS:
            if re.search(pattern, key):
                raise LoraProblem(f"{key} belongs to {method}", fix)
        path, role = _split(key)
        path = _strip(path)
        if path in self.layers:
            return path, role
        for prefix in _FLAT_PREFIXES:
            flat = path.removeprefix(prefix).lstrip("_")
            if flat in self._by_flat_name:
                return self._by_flat_name[flat], role
        for pattern, model in _OTHER_MODELS:
            if re.search(pattern, path):
                raise LoraProblem(
                    f"{key} names a layer of {model}", "use an adapter of this checkpoint"
                )
        raise LoraProblem(
            f"the model has no linear layer {path} ({key})", "use an adapter of this checkpoint"
        )

    @cached_property
    def _by_flat_name(self) -> dict[str, str]:
        return {name.replace(".", "_"): name for name in self.layers}


def _split(key: str) -> tuple[str, Role]:
    """`key` without the part that says which of the layer's tensors it is, and that part."""
    if found := _PAIR.fullmatch(key):
        return found["layer"], _PAIRS[found["side"]]
    if found := _PROCESSOR_PAIR.fullmatch(key):
        leaf = "to_out.0" if found["leaf"] == "to_out" else found["leaf"]
        return f"{found['layer']}.{leaf}", "A" if found["side"] == "down" else "B"
    if found := _OLD_PAIR.fullmatch(key):
        return found["layer"], "A" if found["side"] == "down" else "B"
    if key.endswith(".alpha"):
        return key.removesuffix(".alpha"), "alpha"
    raise LoraProblem(
        f"{key} is not a tensor of a LoRA, such as `transformer.….lora_A.weight`",
        "export the adapter with diffusers' save_lora_weights or PEFT's save_pretrained",
    )


def _strip(path: str) -> str:
    path = _WRAPPERS.sub("", path)
    found = _DOTTED_PREFIX.match(path)
    return path[found.end() :] if found else path
