"""The recipe of the embedded model, on drawn pictures and a model of a few thousand weights."""

import copy
import json
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from diffusers import AutoencoderKLCogVideoX, CogVideoXImageToVideoPipeline
from PIL import Image

from recipes.nano import fit_decoder, reduce_vae, train_transformer, train_vae, training_run
from recipes.nano.assemble import assemble
from recipes.nano.camera import MOVES, SPEEDS, path_of, render
from recipes.nano.config import DEFAULT, RecipeConfig, load_recipe
from recipes.nano.fast_vae import make_fast
from recipes.nano.master_weights import MasterWeights
from recipes.nano.motion import recognise
from recipes.nano.photos import collages, load_crops
from recipes.nano.prompts import MAX_TOKENS, labelled_prompts
from recipes.nano.tokenizer import train_tokenizer


def draw_photo(seed: int, height: int = 320, width: int = 480) -> Image.Image:
    """Soft blobs of many sizes: something to see everywhere."""
    rng = np.random.default_rng(seed)
    picture = sum(
        np.asarray(
            Image.fromarray((255 * rng.random((side, side * 3 // 2, 3))).astype(np.uint8)).resize(
                (width, height), Image.Resampling.BICUBIC
            ),
            dtype=np.float64,
        )
        for side in (4, 10, 24, 60)
    )
    return Image.fromarray((picture / 4).astype(np.uint8))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for split, seeds in (("train", (0, 1)), ("held_out", (2,))):
        (folder / split).mkdir()
        for seed in seeds:
            draw_photo(seed).save(folder / split / f"{seed}.jpg", quality=92)
    return folder


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> RecipeConfig:
    """The recipe with everything made small."""
    tree = yaml.safe_load(DEFAULT.read_text())
    tree.update(height=48, width=64, num_frames=9)
    tree["photos"].update(height=96, width=128, crops_per_photo=2)
    tree["text"].update(vocab_size=260, num_prompts=300)
    tree["vae"]["architecture"].update(
        block_out_channels=[8, 8, 8, 8], latent_channels=6, norm_num_groups=4
    )
    tree["vae"].update(
        kept_channels=4,
        still_steps=4,
        num_steps=8,
        still_batch=2,
        clip_batch=2,
        long_clip_batch=1,
        warm_up_steps=2,
        muon_learning_rate=1e-3,
    )
    tree["decoder"].update(clips=3, num_inference_steps=1, num_steps=6, batch=2, warm_up_steps=1)
    tree["transformer"]["architecture"].update(num_layers=1, num_attention_heads=1)
    tree["transformer"]["text_encoder"].update(num_layers=1, d_ff=32)
    tree["transformer"].update(num_steps=4, batch=2, clips_at_start=8, clips_kept=16)
    path = tmp_path_factory.mktemp("recipe") / "small.yaml"
    path.write_text(yaml.safe_dump(tree))
    return load_recipe(path)


@pytest.mark.parametrize("speed", SPEEDS)
@pytest.mark.parametrize("move", MOVES)
def test_a_rendered_move_is_recognised(move: str, speed: str) -> None:
    pixels = torch.from_numpy(np.array(draw_photo(5))).permute(2, 0, 1)[None]
    torch.manual_seed(3)
    path = path_of(
        torch.tensor([MOVES.index(move)]),
        torch.tensor([SPEEDS[speed]]),
        torch.linspace(0, 1, 49)[None],
    )
    clip = render(pixels, path, (160, 240))[0].permute(1, 2, 3, 0)
    found, motion = recognise(((clip + 1) * 127.5).round().byte().numpy())
    assert found == move, motion


def test_the_first_frame_of_a_render_is_the_photo() -> None:
    pixels = torch.from_numpy(np.array(draw_photo(5))).permute(2, 0, 1)[None]
    moves = torch.arange(len(MOVES))
    path = path_of(moves, torch.ones(len(MOVES)), torch.zeros(len(MOVES), 1))
    first = render(pixels.expand(len(MOVES), -1, -1, -1), path, (160, 240))[:, :, 0]
    halved = torch.nn.functional.avg_pool2d(pixels.float(), 2) / 127.5 - 1
    assert (first - halved).abs().max() < 0.02


def test_prompts_name_their_move_and_repeat_with_a_seed() -> None:
    prompts = list(islice(labelled_prompts(0, ["zebra"]), 400))
    assert prompts == list(islice(labelled_prompts(0, ["zebra"]), 400))
    assert {prompt.move for prompt in prompts} == set(MOVES)
    for prompt in prompts:
        text = prompt.text.lower()
        if prompt.move == "pan_left":
            assert "pan" in text, prompt
            assert "left" in text, prompt


@pytest.mark.thorough
def test_the_tokenizer_reads_capitals_accents_and_dashes_as_plain(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(tmp_path, ["zebra"], 300)
    assert tokenizer("Pan LEFT — Zürich’s tram").input_ids == (
        tokenizer("pan left - zurich's tram").input_ids
    )


def test_crops_and_collages_fill_the_frame(photos: Path) -> None:
    crops = load_crops(photos / "train", (96, 128), 3)
    assert crops.shape[1:] == (3, 96, 128)
    assert (crops == load_crops(photos / "train", (96, 128), 3)).all()
    made = collages(crops, 5)
    assert made.shape == (5, 3, 96, 128)
    assert (made == collages(crops, 5)).all()
    assert (made[0] != made[1]).any()
    with pytest.raises(FileNotFoundError, match=r"has no \.jpg"):
        load_crops(photos, (96, 128), 3)


@pytest.mark.parametrize("num_frames", [1, 9, 17])
def test_the_fast_vae_computes_what_diffusers_does(small: RecipeConfig, num_frames: int) -> None:
    torch.manual_seed(0)
    vae = train_vae.make_vae(small)
    clip = torch.randn(1, 3, num_frames, 32, 48)
    with torch.no_grad():
        moments = vae._encode(clip)
        latents = moments.chunk(2, dim=1)[0]
        decoded = vae._decode(latents).sample
        make_fast(vae)
        torch.testing.assert_close(vae._encode(clip), moments, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(vae._decode(latents).sample, decoded, atol=1e-5, rtol=1e-4)


def test_training_begins_with_a_model_of_fewer_latent_channels(
    small: RecipeConfig, tmp_path: Path
) -> None:
    known = small.vae.architecture["latent_channels"]
    wider = {**small.vae.architecture, "latent_channels": known + 2}
    recipe = small.model_copy(update={"vae": small.vae.model_copy(update={"architecture": wider})})
    torch.manual_seed(0)
    old, new = train_vae.make_vae(small), train_vae.make_vae(recipe)
    old.save_pretrained(tmp_path)
    train_vae.begin_with(new, tmp_path)
    still = torch.rand(1, 3, 1, 32, 48) * 2 - 1
    with torch.no_grad():
        moments, wanted = new._encode(still), old._encode(still)
        means, log_variances = moments.split(known + 2, dim=1)
        torch.testing.assert_close(means[:, :known], wanted[:, :known])
        torch.testing.assert_close(log_variances[:, :known], wanted[:, known:])
        assert means[:, known:].std() > 0  # the new channels can learn
        torch.testing.assert_close(new._decode(means).sample, old._decode(wanted[:, :known]).sample)
    with pytest.raises(ValueError, match="must grow"):
        train_vae.begin_with(old, _saved(new, tmp_path / "wider"))


def test_a_reduced_vae_keeps_what_its_components_hold(
    photos: Path, small: RecipeConfig, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    vae = train_vae.make_vae(small).eval()
    channels, kept = vae.config.latent_channels, small.vae.kept_channels
    still = torch.rand(1, 3, 1, 32, 48) * 2 - 1
    with torch.no_grad():
        latents = vae.encode(still).latent_dist.mode()
        flat = latents.movedim(1, -1).flatten(0, -2)
        turn = torch.linalg.qr(torch.randn(channels, channels)).Q
        torch.testing.assert_close(reduce_vae.rotation(flat, flat @ turn), turn)
        basis = reduce_vae.components(flat, channels) @ turn
        whole = reduce_vae.reduced(vae, basis, torch.full((channels,), 0.25))
        turned = whole.encode(still).latent_dist
        torch.testing.assert_close(turned.mode().movedim(1, -1), latents.movedim(1, -1) @ basis)
        torch.testing.assert_close(turned.std, torch.full_like(turned.std, 0.5))
        torch.testing.assert_close(whole.decode(turned.mode()).sample, vae.decode(latents).sample)

        reduce_vae.reduce_vae(_saved(vae, tmp_path / "old"), photos, tmp_path, small)
        reduce_vae.reduce_vae(tmp_path / "old", photos, tmp_path / "l", small, tmp_path / "vae")
        smaller, like = (
            AutoencoderKLCogVideoX.from_pretrained(folder).encode(still).latent_dist.mode()
            for folder in (tmp_path / "vae", tmp_path / "l" / "vae")
        )
    assert smaller.shape[1] == kept
    torch.testing.assert_close(like, smaller)
    with pytest.raises(ValueError, match="cannot be kept"):
        reduce_vae.components(flat, channels + 1)


def _saved(vae: AutoencoderKLCogVideoX, folder: Path) -> Path:
    vae.save_pretrained(folder)
    return folder


@pytest.mark.thorough
def test_every_stage_goes_on_where_it_stopped_and_makes_a_pipeline(
    photos: Path, small: RecipeConfig, tmp_path: Path
) -> None:
    text, vae, parts = _write_text(tmp_path / "text", small), tmp_path / "wide", tmp_path / "parts"

    assert not train_vae.train(photos, vae, small, limit_s=0)  # stops before the first step
    assert train_vae.train(photos, vae, small)
    assert json.loads((vae / "vae.json").read_text())["still_psnr_db"] > 0
    assert train_vae.train(photos, vae, small)  # done: does nothing more
    reduce_vae.reduce_vae(vae / "vae", photos, tmp_path, small)
    assert train_transformer.train(photos, tmp_path / "vae", text, parts, small)
    assert assemble(tmp_path, text, parts, tmp_path / "checkpoint") < 30e6

    pipeline = CogVideoXImageToVideoPipeline.from_pretrained(
        tmp_path / "checkpoint", dtype=torch.float32
    )
    frames = pipeline(
        image=Image.new("RGB", (64, 48)),
        prompt="pan left",
        height=48,
        width=64,
        num_frames=9,
        num_inference_steps=1,
        output_type="np",
    ).frames
    assert frames.shape == (1, 9, 48, 64, 3)

    fitted = tmp_path / "fitted"
    assert not fit_decoder.fit(photos, tmp_path / "checkpoint", text, fitted, small, limit_s=0)
    assert fit_decoder.fit(photos, tmp_path / "checkpoint", text, fitted, small)
    before = AutoencoderKLCogVideoX.from_pretrained(tmp_path / "checkpoint" / "vae").float()
    after = AutoencoderKLCogVideoX.from_pretrained(fitted / "vae")
    assert after.config.scaling_factor == before.config.scaling_factor
    reached = torch.load(fitted / "state.pt", weights_only=True)["averages"]
    for name, weight in before.state_dict().items():
        if name in reached:
            assert not torch.equal(reached[name], weight), name
            weight = weight.lerp(reached[name], small.decoder.share_of_way)
        assert torch.equal(after.state_dict()[name], weight), name
    assert all(name.startswith("decoder.") for name in reached)
    assert assemble(fitted, text, tmp_path / "checkpoint", tmp_path / "last") < 30e6


@pytest.mark.thorough
def test_a_fitted_decoder_gives_made_clips_more_of_the_texture_that_they_lack(
    small: RecipeConfig,
) -> None:
    """The wanted clips are what the decoder draws, with noise on it."""
    torch.manual_seed(0)
    vae = train_vae.make_vae(small)
    latents = torch.randn(2, small.vae.architecture["latent_channels"], 5, 6, 8)
    with torch.no_grad():
        bland = vae._decode(latents).sample
    wanted = (bland + 0.3 * torch.randn_like(bland)).clamp(-1, 1)
    clips = fit_decoder.GeneratedClips(latents, ((wanted + 1) * 127.5).round().byte())

    def missing() -> float:
        with torch.no_grad():
            decoded = vae._decode(latents).sample[:, :, 9:]
        made, true = (train_vae.fine_energy(c.flatten(0, 1)) for c in (decoded, wanted[:, :, 9:]))
        return float((true - made).mean())

    before = missing()
    weights = MasterWeights(dict(vae.decoder.named_parameters()), learning_rate=3e-3)
    for _ in range(15):
        loss, _ = clips.loss(vae, count=2, texture=3.0)
        loss.backward()
        weights.step(1.0)
    assert missing() < 0.7 * before


def test_kernels_are_stepped_as_matrices() -> None:
    """Muon's step of a kernel has singular values alike, whatever the gradient's are."""
    kernel = torch.nn.Parameter(torch.zeros(6, 4, 3, 3, 3))
    weights = MasterWeights(
        {"kernel": kernel}, learning_rate=1e-3, muon_learning_rate=1e-2, by_muon=lambda *_: True
    )
    scales = torch.logspace(0, 1, 6).view(6, 1, 1, 1, 1)
    (
        kernel * scales * torch.randn(kernel.shape, generator=torch.Generator().manual_seed(0))
    ).sum().backward()
    weights.step(1.0)
    step = torch.linalg.svdvals(kernel.detach().flatten(1))
    assert step.min() > 0.5 * step.max() > 0


def test_half_of_the_stills_show_more_than_the_photo() -> None:
    torch.manual_seed(0)
    log_scale = train_vae.from_further(1000, torch.device("cpu")).log_scale
    assert 0.4 < (log_scale == 0).float().mean() < 0.6
    assert 0.5 < log_scale.max() <= train_vae.FURTHEST
    assert log_scale.min() == 0


def test_first_frames_count_for_their_error_and_later_ones_for_their_texture() -> None:
    torch.manual_seed(0)
    clip = torch.rand(1, 3, 5, 16, 16)

    def more(frame: int, **weights: float) -> float:
        """What a weight adds to the loss of a clip with noise in one frame."""
        noisy = clip.clone()
        noisy[:, :, frame] += 0.1 * torch.randn(3, 16, 16)
        none = {"texture": 0.0, "first_frame_error": 0.0}
        losses = [
            train_vae.reconstruction_loss(noisy, clip, **some) for some in (none | weights, none)
        ]
        return float(losses[0] - losses[1])

    assert more(0, first_frame_error=20.0) > 0.1
    assert more(3, first_frame_error=20.0) == more(0, texture=2.0) == 0
    assert more(3, texture=2.0) > 0


def test_a_student_learns_to_say_in_one_pass_what_guidance_says_in_two(
    small: RecipeConfig,
) -> None:
    student = _speaking_student(small)
    same, guided = (
        train_transformer.Teacher(copy.deepcopy(student), scale) for scale in (1.0, 8.0)
    )
    channels = small.vae.kept_channels
    latents, image_latents = torch.randn(4, 3, channels, 6, 8), torch.randn(4, channels, 6, 8)
    token_ids = torch.randint(2, 200, (4, MAX_TOKENS))

    def loss(teacher: train_transformer.Teacher) -> torch.Tensor:
        torch.manual_seed(1)  # the same noise
        return student.losses(latents, image_latents, token_ids, teacher)[0].mean()

    assert loss(same) < 1e-9
    before = loss(guided).item()
    assert before > 1e-6
    optimizer = torch.optim.Adam(student.parameters(), lr=1e-3)
    for _ in range(30):
        optimizer.zero_grad()
        loss(guided).backward()
        optimizer.step()
    assert loss(guided) < 0.5 * before


@pytest.mark.thorough
def test_training_under_guidance_begins_with_what_its_teacher_says(
    photos: Path, small: RecipeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_run, "LOG_EVERY", 2)
    _save_parts(_speaking_student(small), tmp_path / "start")
    vae = _saved(train_vae.make_vae(_narrow(small)), tmp_path / "vae")
    text = _write_text(tmp_path / "text", small)
    stays = {"num_steps": 2, "learning_rate": 1e-9, "muon_learning_rate": 1e-9}

    def loss_of(name: str, guidance_scale: float, start: Path | None) -> float:
        config = small.transformer.model_copy(update={"guidance_scale": guidance_scale, **stays})
        recipe = small.model_copy(update={"transformer": config})
        train_transformer.train(photos, vae, text, tmp_path / name, recipe, start=start)
        (line,) = (tmp_path / name / "log.jsonl").read_text().splitlines()
        return float(json.loads(line)["loss"])

    truth = loss_of("truth", 1.0, tmp_path / "start")
    assert 0 < loss_of("guided", 1.5, tmp_path / "start") < 0.05 * truth
    with pytest.raises(ValueError, match="needs --begin-with"):
        loss_of("alone", 1.5, None)


def _speaking_student(recipe: RecipeConfig) -> train_transformer.Student:
    """Random weights whose output depends on the prompt; training begins with no output."""
    torch.manual_seed(0)
    student = train_transformer.Student(recipe).float()
    torch.nn.init.normal_(student.transformer.proj_out.weight, std=0.1)
    torch.nn.init.normal_(student.text_encoder.shared.weight)
    return student


def _narrow(recipe: RecipeConfig) -> RecipeConfig:
    """With a VAE of the channels that the transformer sees, as if it had been reduced."""
    architecture = {**recipe.vae.architecture, "latent_channels": recipe.vae.kept_channels}
    vae = recipe.vae.model_copy(update={"architecture": architecture})
    return recipe.model_copy(update={"vae": vae})


def _save_parts(student: train_transformer.Student, folder: Path) -> None:
    student.transformer.save_pretrained(folder / "transformer")
    student.text_encoder.save_pretrained(folder / "text_encoder")


def _write_text(folder: Path, recipe: RecipeConfig) -> Path:
    """What `prepare_text` leaves: one prompt for every label."""
    tokenizer = train_tokenizer(folder / "tokenizer", ["zebra"], recipe.text.vocab_size)
    ids = tokenizer(["pan left"] * 30, padding="max_length", max_length=226).input_ids
    labels = np.arange(len(MOVES) * len(SPEEDS), dtype=np.int16)
    np.savez(folder / "prompts.npz", ids=np.array(ids, dtype=np.int16), label=labels)
    return folder


@pytest.mark.thorough
def test_training_alone_or_in_two_parts_gives_the_same_weights(
    photos: Path, small: RecipeConfig, tmp_path: Path
) -> None:
    train_vae.train(photos, tmp_path / "once", small)
    _train_vae_in_two_parts(photos, tmp_path / "twice", small)
    once, twice = (
        torch.load(tmp_path / name / "state.pt", weights_only=True)["masters"]
        for name in ("once", "twice")
    )
    for name, weight in once.items():
        torch.testing.assert_close(twice[name], weight, msg=name)


def _train_vae_in_two_parts(photos: Path, folder: Path, recipe: RecipeConfig) -> None:
    """Interrupted after half the steps, as a killed process would be after its last save."""
    steps = train_vae.TrainingRun.steps

    def interrupted(run: train_vae.TrainingRun):  # type: ignore[no-untyped-def]
        for step in steps(run):
            if step == recipe.vae.num_steps // 2:
                run.save()
                return
            yield step

    train_vae.TrainingRun.steps = interrupted  # type: ignore[method-assign]
    try:
        assert not train_vae.train(photos, folder, recipe)
    finally:
        train_vae.TrainingRun.steps = steps  # type: ignore[method-assign]
    assert train_vae.train(photos, folder, recipe)
