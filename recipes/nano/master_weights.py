"""Train bf16 weights with fp32 master copies, a moving average and two optimizers."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, distributed

WEIGHT_DECAY = 0.01
MAX_GRADIENT_NORM = 1.0


class MasterWeights:
    """fp32 copies of `working` parameters, updated with the gradients of the working ones.

    Muon (Jordan et al. 2024) updates the matrices selected by `by_muon`, treating a convolution
    kernel as one row per output channel; AdamW updates the rest. Gradients are averaged over the
    ranks of torch.distributed if it is initialised.
    """

    def __init__(
        self,
        working: Mapping[str, Tensor],
        *,
        learning_rate: float,
        muon_learning_rate: float = 0.0,
        by_muon: Callable[[str, Tensor], bool] = lambda name, weight: False,
        ema_decay: float = 0.9993,
    ) -> None:
        self.working = dict(working)
        self.masters = {n: w.detach().float().clone() for n, w in working.items()}
        self.averages = {n: m.clone() for n, m in self.masters.items()}
        self.ema_decay = ema_decay
        self.step_count = 0
        self._matrices = {n: m.flatten(1) for n, m in self.masters.items() if by_muon(n, m)}
        others = [(n, m) for n, m in self.masters.items() if not by_muon(n, m)]
        decayed = [m for n, m in others if m.ndim > 1 and "pos_embedding" not in n]
        plain = [m for n, m in others if m.ndim <= 1 or "pos_embedding" in n]
        groups = [
            {"params": decayed, "weight_decay": WEIGHT_DECAY},
            {"params": plain, "weight_decay": 0.0},
        ]
        self.optimizers: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.98), fused=True)
        ]
        if self._matrices:
            self.optimizers.append(
                torch.optim.Muon(
                    list(self._matrices.values()),
                    lr=muon_learning_rate,
                    weight_decay=WEIGHT_DECAY,
                    adjust_lr_fn="match_rms_adamw",
                )
            )
        self._rates = [[g["lr"] for g in o.param_groups] for o in self.optimizers]
        self._write_back()

    @torch.no_grad()
    def step(self, rate: float) -> Tensor:
        """One step with the learning rates times `rate`; returns the gradient norm."""
        self._take_gradients()
        norm = torch.nn.utils.clip_grad_norm_(self.masters.values(), MAX_GRADIENT_NORM)
        for optimizer, rates in zip(self.optimizers, self._rates, strict=True):
            for group, base in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = base * rate
            optimizer.step()
        self.step_count += 1
        decay = min(self.ema_decay, (1 + self.step_count) / (20 + self.step_count))
        torch._foreach_lerp_(list(self.averages.values()), list(self.masters.values()), 1 - decay)
        self._write_back()
        return norm

    @torch.no_grad()
    def put_averages(self) -> None:
        """Copy the moving averages into the working weights."""
        for name, weight in self.working.items():
            weight.copy_(self.averages[name])

    def state_dict(self) -> dict[str, Any]:
        """Everything that a later process needs to continue exactly."""
        return {
            "masters": self.masters,
            "averages": self.averages,
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "step_count": self.step_count,
        }

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a `state_dict`."""
        for name, master in self.masters.items():
            master.copy_(state["masters"][name])
            self.averages[name].copy_(state["averages"][name])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.step_count = state["step_count"]
        self._write_back()

    def _take_gradients(self) -> None:
        present = {n: w.grad for n, w in self.working.items() if w.grad is not None}
        flat = torch.cat([gradient.flatten().float() for gradient in present.values()])
        if distributed.is_initialized():
            distributed.all_reduce(flat)
            flat /= distributed.get_world_size()
        for master in self.masters.values():
            master.grad = None
        parts = flat.split([gradient.numel() for gradient in present.values()])
        for name, part in zip(present, parts, strict=True):
            gradient = part.view_as(self.masters[name])
            self.masters[name].grad = gradient
            if name in self._matrices:
                self._matrices[name].grad = gradient.flatten(1)
            self.working[name].grad = None

    def _write_back(self) -> None:
        with torch.no_grad():
            torch._foreach_copy_(list(self.working.values()), list(self.masters.values()))
