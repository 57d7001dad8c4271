"""The DPM solver of CogVideoX without waiting for the device: diffusers' numbers, drawn ahead.

diffusers looks up each step's noise level by a timestep that lies on the device, and draws noise on
the CPU once the step is reached: the device idles meanwhile. Here timesteps are plain numbers, and
a thread draws the noise of the next step during this one.
"""

from concurrent.futures import Future, ThreadPoolExecutor

import torch
from diffusers import CogVideoXDPMScheduler


class SyncFreeDPM(CogVideoXDPMScheduler):  # type: ignore[misc]
    """`CogVideoXDPMScheduler` with the same steps on the same noise, bit for bit on a CPU."""

    def set_timesteps(
        self, num_inference_steps: int, device: str | torch.device | None = None
    ) -> None:
        """As in diffusers; begins a clip."""
        super().set_timesteps(num_inference_steps, "cpu")
        self.timesteps: torch.Tensor
        self._numbers: list[int] = self.timesteps.tolist()
        self._next = 0
        self._noise: _NoiseAhead | None = None
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
        """The sample before `timestep`, and the predicted clean one; steps come in order.

        DPM-Solver++ (2M, SDE), arXiv:2211.01095, as CogVideoX uses it.
        """
        index, self._next = self._next, self._next + 1
        number = self._numbers[index]
        before = number - self.config.num_train_timesteps // self.num_inference_steps
        alpha = self.alphas_cumprod[number]
        alpha_before = self.alphas_cumprod[before] if before >= 0 else self.final_alpha_cumprod
        alpha_back = self.alphas_cumprod[self._numbers[index - 1]] if index else None
        if self._noise is None:
            self._noise = _NoiseAhead(sample, generator)
        # diffusers draws twice in a step with a past, and uses the second: so does the seed.
        is_first_order = old_pred_original_sample is None or before < 0
        noise = self._noise.draw(1 if is_first_order else 2, self._upcoming_draws())
        clean = alpha**0.5 * sample - (1 - alpha) ** 0.5 * model_output
        h, r, *_ = self.get_variables(alpha, alpha_before, alpha_back)
        mult = self.get_mult(h, r, alpha, alpha_before, alpha_back)
        mult_noise = (1 - alpha_before) ** 0.5 * (1 - (-2 * h).exp()) ** 0.5
        if is_first_order:
            return mult[0] * sample - mult[1] * clean + mult_noise * noise, clean
        denoised = mult[2] * clean - mult[3] * old_pred_original_sample
        return mult[0] * sample - mult[1] * denoised + mult_noise * noise, clean

    def _upcoming_draws(self) -> int:
        """How often the next step will draw; 0 after the last."""
        if self._next >= len(self._numbers):
            return 0
        stride = self.config.num_train_timesteps // self.num_inference_steps
        return 1 if self._numbers[self._next] < stride else 2


class _NoiseAhead:
    """Noise of the caller's generator in the order of the steps, drawn one step ahead."""

    def __init__(self, sample: torch.Tensor, generator: torch.Generator | None) -> None:
        self._shape, self._dtype, self._device = sample.shape, sample.dtype, sample.device
        self._generator = generator
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="noise")
        self._waiting: Future[torch.Tensor] | None = None

    def draw(self, times: int, upcoming: int) -> torch.Tensor:
        """The last of `times` draws; starts on the `upcoming` draws of the next step."""
        waiting, self._waiting = self._waiting, None
        noise = waiting.result() if waiting else self._draw(times)
        if upcoming:
            self._waiting = self._pool.submit(self._draw, upcoming)
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
