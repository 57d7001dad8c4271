"""The v-prediction loss of CogVideoX."""

from collections.abc import Callable

from torch import Tensor

from vidgen_ray.training.samples import Sample

Predict = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def velocity_loss(predict: Predict, batch: Sample, alphas_cumprod: Tensor) -> Tensor:
    """Mean squared error of the predicted velocity over a batch, a scalar.

    With a_t of `alphas_cumprod` [num_timesteps], x_t = sqrt(a_t) x + sqrt(1 - a_t) n and the
    velocity is v = sqrt(a_t) n - sqrt(1 - a_t) x (Salimans and Ho, arXiv 2202.00512; CogVideoX,
    arXiv 2408.06072). The diffusers example for this model compares x with its prediction
    sqrt(a_t) x_t - sqrt(1 - a_t) v, weighted by 1 / (1 - a_t): the same loss, but this form does
    not divide by zero at a_t = 1.
    """
    signal = alphas_cumprod[batch.timestep].view(-1, 1, 1, 1, 1)
    noisy = signal.sqrt() * batch.latents + (1 - signal).sqrt() * batch.noise
    velocity = signal.sqrt() * batch.noise - (1 - signal).sqrt() * batch.latents
    predicted = predict(noisy, batch.condition, batch.prompt_embeds, batch.timestep)
    return (predicted - velocity).square().mean()
