"""Every damage to a checkpoint folder is one line of ConfigError, before any clip."""

import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from vidgen_ray.config import ModelConfig
from vidgen_ray.errors import ConfigError

FILES = [
    "model_index.json",
    "vidgen.json",
    "scheduler/scheduler_config.json",
    "tokenizer/tokenizer.json",
    "tokenizer/tokenizer_config.json",
    *(f"{part}/config.json" for part in ("transformer", "vae", "text_encoder")),
    "transformer/diffusion_pytorch_model.safetensors",
    "vae/diffusion_pytorch_model.safetensors",
    "text_encoder/model.safetensors",
]
CONFIGS = [name for name in FILES if name.endswith("config.json") and "tokenizer" not in name]


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    """A copy of the tiny checkpoint to damage."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "checkpoint"))


def use(folder: Path) -> None:
    """What every command does before its first clip: open, check a request, load."""
    from vidgen_ray.model.checkpoint import load_pipeline, open_checkpoint

    checkpoint = open_checkpoint(ModelConfig(checkpoint=str(folder)))
    checkpoint._count_tokens("camera pans left")
    load_pipeline(checkpoint, "float32")


def refused(folder: Path, *parts: str) -> None:
    with pytest.raises(ConfigError) as error:
        use(folder)
    message = str(error.value)
    assert message.startswith("model.checkpoint: ")
    assert "\n" not in message
    for part in parts:
        assert part in message


def edit(path: Path, **values: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def remove(path: Path) -> None:
    path.unlink()


def empty(path: Path) -> None:
    path.write_bytes(b"")


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_the_sweep_covers_every_file(tiny_folder: Path) -> None:
    found = {str(p.relative_to(tiny_folder)) for p in tiny_folder.rglob("*") if p.is_file()}
    assert found == set(FILES)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", [remove, empty, truncate])
def test_a_damaged_file_is_named(folder: Path, name: str, damage: Callable[[Path], None]) -> None:
    damage(folder / name)
    if damage is remove and name == "vidgen.json":
        use(folder)
    else:
        refused(folder, name.split("/")[0])


@pytest.mark.parametrize("name", CONFIGS)
def test_an_optional_key_has_the_libraries_default_or_is_named(folder: Path, name: str) -> None:
    from vidgen_ray.model.checkpoint import assemble_pipeline, load_part, open_checkpoint

    path, part = folder / name, name.split("/")[0]
    whole = json.loads(path.read_text())
    messages: list[str] = []
    for key in whole:
        path.write_text(json.dumps({k: v for k, v in whole.items() if k != key}))
        try:
            checkpoint = open_checkpoint(ModelConfig(checkpoint=str(folder)))
            if part == "scheduler":
                none = dict.fromkeys(("transformer", "vae", "text_encoder", "tokenizer"))
                assemble_pipeline(checkpoint, **none)
            else:
                load_part(checkpoint, part, "float32")
        except ConfigError as error:
            messages.append(str(error))
    assert not any("\n" in message for message in messages)


def test_defaults_are_those_of_the_libraries() -> None:
    import inspect

    from diffusers import AutoencoderKLCogVideoX, CogVideoXTransformer3DModel
    from transformers import T5Config

    from vidgen_ray.model import part_configs

    for cls, ours in (
        (CogVideoXTransformer3DModel, part_configs.TransformerConfig()),
        (AutoencoderKLCogVideoX, part_configs.VaeConfig()),
    ):
        theirs = inspect.signature(cls.__init__).parameters
        assert ours.model_dump() == {name: theirs[name].default for name in ours.model_dump()}
    text = part_configs.TextEncoderConfig()
    assert text.model_dump() == {name: getattr(T5Config(), name) for name in text.model_dump()}


def test_parts_of_other_models_are_refused(folder: Path) -> None:
    for name, values, expected in (
        ("transformer/config.json", {"in_channels": 16}, "in_channels must be 32, twice the VAE's"),
        ("transformer/config.json", {"text_embed_dim": 64}, "the text encoder's d_model"),
        ("transformer/config.json", {"_class_name": "WanTransformer3DModel"}, "WanTransformer3D"),
        ("transformer/config.json", {"num_layers": 3}, "missing tensors"),
        ("transformer/config.json", {"num_layers": 1}, "unexpected tensors"),
        ("transformer/config.json", {"sample_frames": "many"}, "sample_frames"),
        ("vae/config.json", {"latent_channels": 4}, "latent_channels"),
        ("vae/config.json", {"scaling_factor": 0}, "scaling_factor"),
        ("text_encoder/config.json", {"architectures": ["BertModel"]}, "BertModel"),
        ("text_encoder/config.json", {"vocab_size": 9}, "vocab_size of 9"),
        ("scheduler/scheduler_config.json", {"_class_name": "EulerDiscreteScheduler"}, "Euler"),
        ("model_index.json", {"scheduler": ["diffusers", "UniPCMultistepScheduler"]}, "UniPC"),
        ("model_index.json", {"vae": [None, None]}, "the vae must be"),
    ):
        before = (folder / name).read_text()
        edit(folder / name, **values)
        refused(folder, expected)
        (folder / name).write_text(before)
    use(folder)


def test_a_command_line_ends_with_one_line_and_exit_2(
    folder: Path, photo: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from vidgen_ray.cli import main

    shutil.rmtree(folder / "tokenizer")
    common = ["--config", "nano", "--set", f"model.checkpoint={folder}"]
    clip = ["--image", str(photo), "--prompt", "x", "--output", str(folder / "c.mp4")]
    for command in (["generate", *clip], ["prefetch"]):
        monkeypatch.setattr(sys, "argv", ["vidgen", *command, *common])
        with pytest.raises(SystemExit) as stop:
            main()
        assert stop.value.code == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert re.match(r"error: model.checkpoint: .*tokenizer holds neither tokenizer.json", line)


def shard(folder: Path, part: str, stem: str) -> Path:
    """Split the weights of a part into two files with an index; the single file is left."""
    from safetensors.torch import load_file, save_file

    single = folder / part / f"{stem}.safetensors"
    tensors = load_file(single)
    names = sorted(tensors)
    files = {}
    for index, some in enumerate((names[::2], names[1::2]), 1):
        file = f"{stem}-0000{index}-of-00002.safetensors"
        save_file({n: tensors[n] for n in some}, single.with_name(file), metadata={"format": "pt"})
        files |= dict.fromkeys(some, file)
    path = single.with_name(f"{stem}.safetensors.index.json")
    path.write_text(json.dumps({"metadata": {}, "weight_map": files}))
    return single


def test_weights_left_beside_those_in_use_change_nothing_and_are_reported(
    folder: Path, tiny_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from safetensors.torch import load_file, save_file

    from vidgen_ray.model.checkpoint import open_checkpoint
    from vidgen_ray.operations.doctor import check_weights

    clean = open_checkpoint(ModelConfig(checkpoint=str(tiny_folder)))
    single = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    stale = single.with_name("diffusion_pytorch_model-00001-of-00002.safetensors")
    save_file({n: t + 1 for n, t in load_file(single).items()}, stale)
    model = ModelConfig(checkpoint=str(folder))
    checkpoint = open_checkpoint(model)
    assert f"also holds {stale.name}, not loaded" in caplog.text
    assert stale.name in check_weights(model).finding
    assert checkpoint.num_parameters == clean.num_parameters
    assert checkpoint.fingerprint == clean.fingerprint
    name = "patch_embed.proj.weight"
    wanted = clean.read_weight("transformer", name)
    assert checkpoint.read_weight("transformer", name).equal(wanted)


def test_an_index_and_a_single_file_are_chosen_between_as_the_libraries_do(folder: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    from vidgen_ray.model.checkpoint import load_part, open_checkpoint

    for part, stem, name in (
        ("transformer", "diffusion_pytorch_model", "patch_embed.proj.bias"),
        ("text_encoder", "model", "shared.weight"),
    ):
        single = shard(folder, part, stem)
        save_file({n: t + 1 for n, t in load_file(single).items()}, single, {"format": "pt"})
        checkpoint = open_checkpoint(ModelConfig(checkpoint=str(folder)))
        loaded = load_part(checkpoint, part, "float32").state_dict()[name]
        assert torch.equal(loaded, checkpoint.read_weight(part, name).float()), part


def test_every_shard_that_an_index_names_is_looked_for(folder: Path) -> None:
    shard(folder, "vae", "diffusion_pytorch_model").unlink()
    use(folder)
    (folder / "vae" / "diffusion_pytorch_model-00002-of-00002.safetensors").unlink()
    refused(folder, "lacks diffusion_pytorch_model-00002-of-00002.safetensors")


def test_a_folder_with_fp16_weights_alone_loads(folder: Path) -> None:
    for path in folder.rglob("*.safetensors"):
        path.rename(path.with_name(f"{path.stem}.fp16.safetensors"))
    use(folder)


def test_a_model_without_learned_positions_has_no_one_shape(folder: Path, photo: Path) -> None:
    from vidgen_ray.model.checkpoint import open_checkpoint
    from vidgen_ray.schema import GenerationRequest

    edit(
        folder / "transformer" / "config.json",
        **{"use_learned_positional_embeddings": False, "patch_size_t": 2, "sample_height": 300},
    )
    checkpoint = open_checkpoint(ModelConfig(checkpoint=str(folder)))
    fields = {"id": "a", "image": str(photo), "prompt": "x", "seed": 1, "num_inference_steps": 2}
    shape = {"num_frames": 81, "height": 768, "width": 1360}
    checkpoint.check_request(GenerationRequest.model_validate({**fields, **shape}))


def test_what_is_not_loaded_is_not_part_of_the_fingerprint(folder: Path, tiny_folder: Path) -> None:
    from vidgen_ray.model.checkpoint import open_checkpoint

    def fingerprint() -> str:
        checkpoint = open_checkpoint(ModelConfig(checkpoint=str(folder)))
        parts = [checkpoint.part_fingerprint(part) for part in ("vae", "tokenizer")]
        return "".join([checkpoint.fingerprint, *parts])

    before = fingerprint()
    for name in (
        ".cache/huggingface/download/model_index.json.metadata",
        "vae/.cache/huggingface/x.metadata",
        "tokenizer/.gitattributes",
        "README.md",
        ".git/HEAD",
        "transformer/README.md",
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("notes")
    assert fingerprint() == before
    edit(folder / "scheduler" / "scheduler_config.json", beta_end=0.013)
    assert fingerprint() != before


@pytest.mark.usefixtures("ray_cluster")
def test_weights_that_do_not_fit_end_a_batch_with_the_same_error(
    folder: Path, photo: Path, tmp_path: Path, tiny_overrides: dict[str, object]
) -> None:
    from rich.console import Console

    from vidgen_ray.batch.driver import BatchArguments, run_batch
    from vidgen_ray.config import load_config

    edit(folder / "transformer" / "config.json", num_layers=3)
    row = {"id": "a", "image": str(photo), "prompt": "x"}
    (tmp_path / "jobs.jsonl").write_text(json.dumps(row))
    config = load_config("nano", {**tiny_overrides, "model.checkpoint": str(folder)})
    arguments = BatchArguments(
        **{"jobs": str(tmp_path / "jobs.jsonl"), "output": str(tmp_path / "out")},
        **{"config": config, "config_name": "nano"},
    )
    with pytest.raises(ConfigError, match="missing tensors"):
        run_batch(arguments, Console(quiet=True))
