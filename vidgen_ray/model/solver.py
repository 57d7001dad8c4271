"""CogVideoX's DPM scheduler without device synchronization, with prefetched noise."""

from concurrent.futures import Future, ThreadPoolExecutor

import torch
from diffusers import CogVideoXDPMScheduler


class SyncFreeDPM(CogVideoXDPMScheduler):  # type: ignore[misc]
    """`CogVideoXDPMScheduler` with the same steps and noise, bit-exact on a CPU.

    diffusers looks up each step's noise level by a timestep on the device, which synchronizes, and
    draws noise on the CPU when the step is reached, so the device idles. Here timesteps are Python
    integers, and a thread draws the noise of the next step during the current one.
    """

    def set_timesteps(
        self, num_inference_steps: int, device: str | torch.device | None = None
    ) -> None:
        """As in diffusers; also resets the state of the last clip."""
        super().set_timesteps(num_inference_steps, "cpu")
        self.timesteps: torch.Tensor
        self._timesteps: list[int] = self.timesteps.tolist()
        self._next = 0
        self._noise: _NoisePrefetcher | None = None
        self.timesteps = self.timesteps.to(device)

    def step(
        self,
        model_output: torch.Tensor,
        old_pred_original_sample: torch.Tensor | None,
        timestep: int | torch.Tensor,
        timestep_back: int | torch.Tensor | None,
        sample: torch.Tensor,
        eta: float = 0.0,
        use_clipped_model_output: bool = False,
        generator: torch.Generator | None = None,
        variance_noise: torch.Tensor | None = None,
        return_dict: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The previous sample and the predicted clean one, both of the sample's shape.

        Steps must come in order. DPM-Solver++ (2M, SDE), arXiv:2211.01095, as CogVideoX uses it.
        """
        index, self._next = self._next, self._next + 1
        current = self._timesteps[index]
        prev = current - self.config.num_train_timesteps // self.num_inference_steps
        alpha_t = self.alphas_cumprod[current]
        alpha_prev = self.alphas_cumprod[prev] if prev >= 0 else self.final_alpha_cumprod
        alpha_back = self.alphas_cumprod[self._timesteps[index - 1]] if index else None
        if self._noise is None:
            self._noise = _NoisePrefetcher(sample, generator)
        # In second-order steps diffusers draws noise twice and uses the second draw.
        is_first_order = old_pred_original_sample is None or prev < 0
        noise = self._noise.draw(1 if is_first_order else 2, self._upcoming_draws())
        clean = alpha_t**0.5 * sample - (1 - alpha_t) ** 0.5 * model_output
        h, r, *_ = self.get_variables(alpha_t, alpha_prev, alpha_back)
        mult = self.get_mult(h, r, alpha_t, alpha_prev, alpha_back)
        mult_noise = (1 - alpha_prev) ** 0.5 * (1 - (-2 * h).exp()) ** 0.5
        if is_first_order:
            return mult[0] * sample - mult[1] * clean + mult_noise * noise, clean
        denoised = mult[2] * clean - mult[3] * old_pred_original_sample
        return mult[0] * sample - mult[1] * denoised + mult_noise * noise, clean

    def _upcoming_draws(self) -> int:
        """How many times the next step will draw noise; 0 after the last."""
        if self._next >= len(self._timesteps):
            return 0
        stride = self.config.num_train_timesteps // self.num_inference_steps
        return 1 if self._timesteps[self._next] < stride else 2


class _NoisePrefetcher:
    """Noise from the caller's generator in step order, drawn one step ahead on a thread."""

    def __init__(self, sample: torch.Tensor, generator: torch.Generator | None) -> None:
        self._shape, self._dtype, self._device = sample.shape, sample.dtype, sample.device
        self._generator = generator
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="noise")
        self._pending: Future[torch.Tensor] | None = None

    def draw(self, times: int, upcoming: int) -> torch.Tensor:
        """The last of `times` draws; starts the `upcoming` draws of the next step."""
        pending, self._pending = self._pending, None
        noise = pending.result() if pending else self._draw(times)
        if upcoming:
            self._pending = self._pool.submit(self._draw, upcoming)
        else:
            self._pool.shutdown(wait=False)
        return noise.to(self._device, non_blocking=True)

    def _draw(self, times: int) -> torch.Tensor:
        device = self._generator.device if self._generator else self._device
        for _ in range(times):
            noise = torch.randn(
                self._shape, generator=self._generator, device=device, dtype=self._dtype
            )
        on_host = self._device.type == "cuda" and device.type == "cpu"
        return noise.pin_memory() if on_host else noise
