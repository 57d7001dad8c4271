"""Train the transformer and the text encoder together on clips rendered during training."""

import copy
import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLCogVideoX, CogVideoXDPMScheduler, CogVideoXTransformer3DModel
from diffusers.models.embeddings import get_3d_rotary_pos_embed
from torch import Tensor, nn
from transformers import T5Config, T5EncoderModel

from recipes.nano.camera import MOVES, SPEED_SPREAD, SPEEDS, path_of, render
from recipes.nano.config import RecipeConfig, load_recipe
from recipes.nano.fast_vae import make_fast
from recipes.nano.master_weights import MasterWeights
from recipes.nano.photos import training_crops
from recipes.nano.prompts import MAX_TOKENS
from recipes.nano.training_run import Ranks, TrainingRun, cosine, stage_parser
from vidgen_ray.model.untrained import SCHEDULE

ALPHAS_CUMPROD = CogVideoXDPMScheduler(**SCHEDULE).alphas_cumprod.float()
NUM_TIMESTEPS = len(ALPHAS_CUMPROD)
NOISY_SHARE = 0.4  # of the samples, drawn from the noisy end; the others evenly
NOISY_FROM = 700  # timesteps from here on are logged separately
RENDER_AT_ONCE = 8
EMPTY_PROMPT = 1  # the end-of-text token, alone


def main() -> None:
    """Parse the command line and train."""
    parser = stage_parser(__doc__, "photos", "vae", "text", "output")
    parser.add_argument("--begin-with", type=Path, help="a checkpoint folder to initialise from")
    a = parser.parse_args()
    train(a.photos, a.vae, a.text, a.output, load_recipe(a.config), a.limit_s, a.begin_with)


def train(
    photos: Path,
    vae_folder: Path,
    text: Path,
    output: Path,
    recipe: RecipeConfig,
    limit_s: float = math.inf,
    start: Path | None = None,
) -> bool:
    """Train until done or `limit_s`; returns whether it is done, and then the models are written.

    `vae_folder` is an output of `reduce_vae`, `text` of `prepare_text`. Resumes from
    OUTPUT/state.pt. With `transformer.guidance_scale` above 1 the weights of `start` are distilled:
    one pass of the new weights learns what theirs predict under that guidance in two.
    """
    ranks = Ranks.join()
    config = recipe.transformer
    student, teacher = _student_and_teacher(recipe, ranks, start)
    weights = MasterWeights(
        dict(student.named_parameters()),
        learning_rate=config.learning_rate,
        muon_learning_rate=config.muon_learning_rate,
        by_muon=_is_block_matrix,
    )
    run = TrainingRun(output, weights, ranks, config.num_steps, recipe.seed, limit_s)
    clips = _Clips(photos, vae_folder, recipe, ranks)
    clips.catch_up(weights.step_count)
    prompts = Prompts(text, ranks.device, config.prompt_dropout)
    for step in run.steps():
        clips.advance(step)
        latents, image_latents, labels = clips.sample(config.batch)
        token_ids = prompts.sample(labels)
        losses, timesteps = student.losses(latents, image_latents, token_ids, teacher)
        losses.mean().backward()
        norm = weights.step(_rate(step, recipe))
        run.log(norm=norm, **_mean_losses(losses, timesteps))
    if run.finished and ranks.first:
        student.float()
        weights.put_averages()
        student.transformer.save_pretrained(output / "transformer")
        student.text_encoder.save_pretrained(output / "text_encoder")
    return run.finished


def _student_and_teacher(
    recipe: RecipeConfig, ranks: Ranks, start: Path | None
) -> tuple["Student", "Teacher | None"]:
    """The model to train, from the weights of `start` if given, and its teacher if distilled."""
    guidance_scale = recipe.transformer.guidance_scale
    if guidance_scale > 1 and start is None:
        raise ValueError("transformer.guidance_scale above 1 needs --begin-with, the teacher")
    torch.manual_seed(recipe.seed)
    student = Student(recipe)
    if start:
        student.load(start)
    student.to(ranks.device, ranks.dtype)
    teacher = Teacher(copy.deepcopy(student), guidance_scale) if guidance_scale > 1 else None
    if ranks.device.type == "cuda":
        for block in student.transformer.transformer_blocks:
            block.compile(dynamic=False)
    return student, teacher


def _mean_losses(losses: Tensor, timesteps: Tensor) -> dict[str, Tensor]:
    """The mean of `losses` [batch], and those of its noisy and of its clear timesteps."""
    noisy = (timesteps >= NOISY_FROM).float()
    return {
        "loss": losses.mean(),
        "noisy": (losses * noisy).sum() / noisy.sum().clamp(min=1),
        "clear": (losses * (1 - noisy)).sum() / (1 - noisy).sum().clamp(min=1),
    }


class Student(nn.Module):
    """The transformer, with its learned positions as a parameter, and the text encoder."""

    def __init__(self, recipe: RecipeConfig) -> None:
        super().__init__()
        channels = recipe.vae.kept_channels
        self.first_frame_weight = recipe.transformer.first_frame_weight
        self.transformer = CogVideoXTransformer3DModel(
            in_channels=2 * channels,
            out_channels=channels,
            sample_height=recipe.height // 8,
            sample_width=recipe.width // 8,
            sample_frames=recipe.num_frames,
            patch_size=2,
            max_text_seq_length=MAX_TOKENS,
            use_rotary_positional_embeddings=True,
            use_learned_positional_embeddings=True,
            **recipe.transformer.architecture,
        )
        self.text_encoder = T5EncoderModel(text_config(recipe))
        self._initialise()

    def load(self, checkpoint: Path) -> None:
        """Load the weights of an assembled checkpoint."""
        for part, kind in (
            ("transformer", CogVideoXTransformer3DModel),
            ("text_encoder", T5EncoderModel),
        ):
            old = kind.from_pretrained(checkpoint / part)
            getattr(self, part).load_state_dict(old.state_dict())

    def losses(
        self,
        latents: Tensor,
        image_latents: Tensor,
        token_ids: Tensor,
        teacher: "Teacher | None" = None,
    ) -> tuple[Tensor, Tensor]:
        """The v-prediction loss (Salimans, Ho 2022) of each clip at a random timestep, and the
        timesteps.

        `latents` are [batch, latent_frames, channels, h, w] as the transformer's input,
        `image_latents` [batch, channels, h, w], `token_ids` [batch, MAX_TOKENS]. The first latent
        frame, the photo, has `first_frame_weight` times the weight of another. With a `teacher` the
        target is its velocity instead of the true one.
        """
        timesteps = _timesteps(len(latents), latents.device)
        signal = ALPHAS_CUMPROD.to(latents.device)[timesteps].view(-1, 1, 1, 1, 1)
        latents, noise = latents.float(), torch.randn_like(latents, dtype=torch.float32)
        noisy = signal.sqrt() * latents + (1 - signal).sqrt() * noise
        condition = torch.zeros_like(noisy)
        condition[:, 0] = image_latents
        seen = torch.cat([noisy, condition], dim=2)
        if teacher:
            velocity = teacher.velocity(seen, token_ids, timesteps)
        else:
            velocity = signal.sqrt() * noise - (1 - signal).sqrt() * latents
        errors = (self.velocity(seen, token_ids, timesteps) - velocity).square().mean(dim=(2, 3, 4))
        weights = torch.ones_like(errors[0])
        weights[0] = self.first_frame_weight
        return errors @ (weights / weights.sum()), timesteps

    def velocity(self, seen: Tensor, token_ids: Tensor, timesteps: Tensor) -> Tensor:
        """The predicted velocity, [batch, latent_frames, channels, h, w] in float32.

        `seen` has twice the channels: the noisy latents, and the photo's latents in the first
        frame.
        """
        predicted: Tensor = self.transformer(
            hidden_states=seen.to(self.transformer.dtype),
            encoder_hidden_states=self.text_encoder(token_ids)[0],
            timestep=timesteps,
            image_rotary_emb=_rotary_positions(self.transformer, seen),
            return_dict=False,
        )[0]
        return predicted.float()

    def _initialise(self) -> None:
        """Start with zero output, and with learned positions small enough not to dominate the
        content.
        """
        nn.init.zeros_(self.transformer.proj_out.weight)
        nn.init.zeros_(self.transformer.proj_out.bias)
        embed = self.transformer.patch_embed
        positions = embed.pos_embedding.detach().clone() * 0.3
        positions[:, :MAX_TOKENS] = 0
        del embed.pos_embedding  # a buffer in diffusers
        embed.pos_embedding = nn.Parameter(positions)
        with torch.no_grad():
            self.text_encoder.shared.weight.mul_(0.3)


@dataclass(frozen=True)
class Teacher:
    """Frozen weights under guidance (Meng et al. 2023, arXiv:2210.03142)."""

    model: Student
    guidance_scale: float

    @torch.no_grad()
    def velocity(self, seen: Tensor, token_ids: Tensor, timesteps: Tensor) -> Tensor:
        """The guided velocity of a student's inputs."""
        unconditional = self.model.velocity(seen, _empty_like(token_ids), timesteps)
        conditional = self.model.velocity(seen, token_ids, timesteps)
        return unconditional + self.guidance_scale * (conditional - unconditional)


def _rotary_positions(
    transformer: CogVideoXTransformer3DModel, latents: Tensor
) -> tuple[Tensor, Tensor]:
    """Rotary positions as in the pipeline, cosine and sine."""
    grid = (latents.shape[3] // 2, latents.shape[4] // 2)
    head_dim = transformer.config.attention_head_dim
    cosine, sine = get_3d_rotary_pos_embed(
        head_dim, ((0, 0), grid), grid, latents.shape[1], device=latents.device
    )
    return cosine, sine


def text_config(recipe: RecipeConfig) -> T5Config:
    """The text encoder's configuration."""
    return T5Config(
        vocab_size=recipe.text.vocab_size,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
        is_encoder_decoder=False,
        use_cache=False,
        pad_token_id=0,
        eos_token_id=1,
        **recipe.transformer.text_encoder,
    )


def _is_block_matrix(name: str, weight: Tensor) -> bool:
    inside = "transformer_blocks" in name and (".attn1.to_" in name or ".ff.net" in name)
    return inside and weight.ndim == 2


def _rate(step: int, recipe: RecipeConfig) -> float:
    config = recipe.transformer
    falling = (step / config.num_steps - config.constant_share) / (1 - config.constant_share)
    return min(1.0, (step + 1) / config.warm_up_steps) * cosine(falling)


def _timesteps(count: int, device: torch.device) -> Tensor:
    """Random timesteps [count], more of them at the noisy end, where the motion is decided."""
    even = (torch.arange(count, device=device) + torch.rand(count, device=device)) / count
    noisy = torch.rand(count, device=device) < NOISY_SHARE
    levels = torch.where(noisy, 1 - NOISY_SHARE * even**2, even)
    return (levels * NUM_TIMESTEPS).long().clamp(0, NUM_TIMESTEPS - 1)


class Prompts:
    """Token ids of prompts by label (move and speed), from `prepare_text`."""

    def __init__(self, folder: Path, device: torch.device, dropout: float) -> None:
        with np.load(folder / "prompts.npz") as arrays:
            order = np.argsort(arrays["label"], kind="stable")
            self.ids = torch.from_numpy(arrays["ids"][order]).to(device)
            counts = np.bincount(arrays["label"], minlength=len(MOVES) * len(SPEEDS))
        self.counts = torch.from_numpy(counts).to(device)
        self.starts = self.counts.cumsum(0) - self.counts
        self.shares = self.counts / self.counts.sum()
        self.dropout = dropout

    def sample(self, labels: Tensor) -> Tensor:
        """Token ids [batch, MAX_TOKENS]; some are the empty prompt, for guidance."""
        draw = torch.rand(len(labels), device=labels.device)
        chosen = self.starts[labels] + (draw * self.counts[labels]).long()
        ids = self.ids[chosen].long()
        dropped = torch.rand_like(draw)[:, None] < self.dropout
        return torch.where(dropped, _empty_like(ids), ids)


def _empty_like(token_ids: Tensor) -> Tensor:
    """Token ids of the empty prompt."""
    empty = torch.zeros_like(token_ids)
    empty[:, 0] = EMPTY_PROMPT
    return empty


@dataclass
class _Clips:
    """A buffer of the latest rendered and encoded clips, determined by the step number alone."""

    photos: Path
    vae_folder: Path
    recipe: RecipeConfig
    ranks: Ranks
    num_rendered: int = 0
    latents: Tensor = field(init=False)
    image_latents: Tensor = field(init=False)
    labels: Tensor = field(init=False)

    def __post_init__(self) -> None:
        device = self.ranks.device
        self.crops = training_crops(self.photos, self.recipe, device)
        vae = AutoencoderKLCogVideoX.from_pretrained(self.vae_folder).to(device, self.ranks.dtype)
        self.vae = make_fast(vae).eval().requires_grad_(False)
        kept, channels = self.recipe.transformer.clips_kept, vae.config.latent_channels
        frames = (self.recipe.num_frames - 1) // 4 + 1
        picture = (channels, self.recipe.height // 8, self.recipe.width // 8)
        dtype = self.ranks.dtype
        self.latents = torch.empty(kept, frames, *picture, dtype=dtype, device=device)
        self.image_latents = torch.empty(kept, *picture, dtype=dtype, device=device)
        self.labels = torch.zeros(kept, dtype=torch.long, device=device)

    def catch_up(self, step: int) -> None:
        """Fill the buffer as if all steps before `step` had run."""
        config = self.recipe.transformer
        rendered = config.clips_at_start + RENDER_AT_ONCE * -(-step // config.steps_per_render)
        self.num_rendered = max(0, rendered - config.clips_kept) // RENDER_AT_ONCE * RENDER_AT_ONCE
        while self.num_rendered < rendered:
            self._render()

    def advance(self, step: int) -> None:
        """Replace the oldest clips by RENDER_AT_ONCE new ones every few steps."""
        config = self.recipe.transformer
        if step % config.steps_per_render == 0:
            self._render()

    def sample(self, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """Latents, image latents and labels of random clips."""
        held = min(self.num_rendered, len(self.labels))
        chosen = torch.randint(held, (count,), device=self.labels.device)
        return self.latents[chosen], self.image_latents[chosen], self.labels[chosen]

    @torch.no_grad()
    def _render(self, count: int = RENDER_AT_ONCE) -> None:
        with torch.random.fork_rng(self._cuda_devices()):
            number = self.recipe.seed * 7_368_787 + self.num_rendered
            torch.manual_seed(number * self.ranks.count + self.ranks.rank)
            pixels, labels = render_clips(self.crops, count, self.recipe)
            latents, image_latents = self._encode(pixels.to(self.vae.dtype))
        places = torch.arange(self.num_rendered, self.num_rendered + count) % len(self.labels)
        places = places.to(self.labels.device)
        self.latents[places] = latents
        self.image_latents[places] = image_latents
        self.labels[places] = labels
        self.num_rendered += count

    def _encode(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Latents [count, frames, channels, h, w] and those of the first frame alone, scaled."""
        scale = self.vae.config.scaling_factor
        latents = self.vae._encode(pixels).chunk(2, dim=1)[0]
        image = self.vae.encode(pixels[:, :, :1]).latent_dist.sample()
        return (latents * scale).transpose(1, 2), image.squeeze(2) * scale

    def _cuda_devices(self) -> list[int]:
        device = self.ranks.device
        return [device.index or 0] if device.type == "cuda" else []


def render_clips(crops: Tensor, count: int, recipe: RecipeConfig) -> tuple[Tensor, Tensor]:
    """Clips of every move at every speed, with their labels."""
    device = crops.device
    moves = torch.randint(len(MOVES), (count,), device=device)
    speeds = torch.multinomial(torch.tensor([0.45, 0.4, 0.15], device=device), count, True)
    factors = torch.tensor(list(SPEEDS.values()), device=device)[speeds]
    amounts = factors * (1 + SPEED_SPREAD * (2 * torch.rand(count, device=device) - 1))
    times = torch.linspace(0, 1, recipe.num_frames, device=device).expand(count, -1)
    photos = crops[torch.randint(len(crops), (count,), device=device)]
    mirrored = (torch.rand(count, device=device) < 0.5)[:, None, None, None]
    photos = torch.where(mirrored, photos.flip(3), photos)
    pixels = render(photos, path_of(moves, amounts, times), (recipe.height, recipe.width))
    return pixels, label_of(moves, speeds)


def label_of(moves: Tensor, speeds: Tensor) -> Tensor:
    """One number for a move and a speed; a static camera has one speed."""
    normal = list(SPEEDS).index("normal")
    speeds = torch.where(moves == MOVES.index("static"), normal, speeds)
    return moves * len(SPEEDS) + speeds


if __name__ == "__main__":
    main()
