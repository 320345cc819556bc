"""Adam for weights in any layout, without torch's compiler."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adam import adam

EPSILON = 1e-8


class Adam:
    """Adam, as `torch.optim.Adam` without weight decay and with the same kernels.

    torch's class imports torch's compiler, 0.15 GB and seconds at every start, and its fused kernel
    for CPUs first copies weights, gradients and moments that are channels-last: three times the
    time, and 0.1 GB at full size. Here it gets them as they lie in memory.

    Args:
        parameters: those that require a gradient are trained.
        rate: learning rate.
        betas: of the first and second moment.

    Source: Kingma and Ba 2015 (arXiv 1412.6980), algorithm 1.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], rate: float, betas: tuple[float, float]
    ) -> None:
        self.parameters = [weight for weight in parameters if weight.requires_grad]
        self.rate, self.betas = rate, betas
        self.moments = [
            {
                "step": torch.zeros((), device=weight.device),
                "exp_avg": torch.zeros_like(weight),
                "exp_avg_sq": torch.zeros_like(weight),
            }
            for weight in self.parameters
        ]

    @torch.no_grad()
    def step(self) -> None:
        """Change every weight that has a gradient."""
        used = [
            (weight, of_weight)
            for weight, of_weight in zip(self.parameters, self.moments, strict=True)
            if weight.grad is not None
        ]
        if not used:
            return
        device = used[0][0].device.type
        adam(
            [_as_stored(weight, weight) for weight, _ in used],
            [_as_stored(weight.grad, weight).contiguous() for weight, _ in used],
            [_as_stored(of_weight["exp_avg"], weight) for weight, of_weight in used],
            [_as_stored(of_weight["exp_avg_sq"], weight) for weight, of_weight in used],
            [],
            [of_weight["step"] for _, of_weight in used],
            fused=device != "mps",
            capturable=device == "cuda",
            amsgrad=False,
            beta1=self.betas[0],
            beta2=self.betas[1],
            lr=self.rate,
            weight_decay=0.0,
            eps=EPSILON,
            maximize=False,
        )

    def zero_grad(self) -> None:
        """Let go of all gradients."""
        for weight in self.parameters:
            weight.grad = None

    def state_dict(self) -> dict[str, Any]:
        """Return the moments, in the places of `torch.optim.Adam`'s."""
        return {"state": dict(enumerate(self.moments))}

    @torch.no_grad()
    def load_state_dict(self, content: dict[str, Any]) -> None:
        """Take the moments of a `state_dict`, of this class or of `torch.optim.Adam`."""
        for number, kept in content["state"].items():
            for name, moment in self.moments[number].items():
                moment.copy_(kept[name])


def _as_stored(tensor: Tensor, weight: Tensor) -> Tensor:
    """Return a view of the tensor that is contiguous where the weight's memory is channels-last."""
    if weight.is_contiguous() or not weight.is_contiguous(memory_format=torch.channels_last):
        return tensor
    return tensor.permute(0, 2, 3, 1)
