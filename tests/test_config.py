"""Configurations say what they mean, and wrong ones say what is wrong."""

from pathlib import Path

import pytest

from vidgen_ray.config import SHIPPED_LORAS, LoRA, load_config, parse_overrides, shipped_configs
from vidgen_ray.errors import ConfigError


@pytest.mark.smoke
@pytest.mark.parametrize("name", ["nano", "cogvideox_5b_i2v"])
def test_shipped_configs_load_by_name_and_by_path(name: str) -> None:
    assert name in shipped_configs()
    by_path = load_config(Path(__file__).parents[1] / "configs" / f"{name}.yaml")
    assert load_config(name) == by_path
    assert {"exact", "fast", "low_memory"} <= set(by_path.profiles)


def test_the_5b_runs_as_its_authors_advise() -> None:
    config = load_config("cogvideox_5b_i2v")
    generation = config.generation
    assert (generation.num_frames, generation.height, generation.width) == (49, 480, 720)
    assert (generation.num_inference_steps, generation.guidance_scale, generation.fps) == (50, 6, 8)
    assert (config.model.dtype, config.model.scheduler) == ("float16", "dpm")
    assert config.profiles["exact"].dtype is None
    assert config.profiles["fast"].dtype == "bfloat16"
    assert config.profiles["fast"].num_inference_steps is None


def test_the_5b_is_pinned_to_a_commit_and_another_checkpoint_is_not() -> None:
    revision = load_config("cogvideox_5b_i2v").model.revision
    assert revision is not None
    assert len(bytes.fromhex(revision)) == 20
    other = {"model.checkpoint": "desk/own-model"}
    assert load_config("cogvideox_5b_i2v", other).model.revision is None
    pinned = {**other, "model.revision": "v2"}
    assert load_config("cogvideox_5b_i2v", pinned).model.revision == "v2"


def test_encoding_and_training_use_the_commit_that_generation_does() -> None:
    model, training = (load_config(n).model for n in ("cogvideox_5b_i2v", "training/lora_default"))
    assert (training.checkpoint, training.revision) == (model.checkpoint, model.revision)
    assert load_config("training/lora_nano").model.revision is None


def test_all_wrong_keys_are_named_at_once(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("model: {dtyp: float16}\nbatch: {min_workers: 0}\nqualty: {}\n")
    with pytest.raises(ConfigError) as error:
        load_config(path)
    for part in ("model.dtyp: no such field", "batch.min_workers", "got 0", "qualty"):
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("text", "match"),
    [("- a\n", "must hold sections"), ("model: [", "cannot be read"), ("pinned: {}", "pinned")],
)
def test_a_file_that_is_no_tree_is_refused(tmp_path: Path, text: str, match: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=match):
        load_config(path)


def test_an_unknown_name_lists_those_there() -> None:
    with pytest.raises(ConfigError, match=r"neither a .yaml file nor one of .*nano"):
        load_config("nanoo")


def test_a_default_profile_must_exist() -> None:
    with pytest.raises(ConfigError, match="default_profile must be one of"):
        load_config("nano", {"default_profile": "warp"})


def test_overrides_are_yaml_values() -> None:
    overrides = parse_overrides(["batch.max_workers=2", "model.offload=none", "a.b=[1, x]"])
    assert overrides == {"batch.max_workers": 2, "model.offload": "none", "a.b": [1, "x"]}
    with pytest.raises(ConfigError, match=r"section\.key=value, got 'batch'"):
        parse_overrides(["batch"])


def test_an_adapter_that_ships_goes_by_its_name() -> None:
    folder = SHIPPED_LORAS / "archive-footage"
    assert (folder / "pytorch_lora_weights.safetensors").is_file()
    assert LoRA(path="archive-footage").path == str(folder)
    assert LoRA(path="./archive-footage").path == "./archive-footage"
    lora = load_config("nano", {"generation.lora": "archive-footage"}).generation.lora
    assert lora == LoRA(path=str(folder))
