"""torchgan's DCGAN weights as weights of our networks: the same function, other names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def from_torchgan(
    generator: Mapping[str, Tensor], critic: Mapping[str, Tensor]
) -> dict[str, dict[str, Any]]:
    """Return `generator_args`, `generator`, `critic_args` and `critic` for `models.networks`.

    Args:
        generator, critic: state dicts of torchgan 0.1.0's DCGANGenerator and DCGANDiscriminator,
            with batch normalisation, three colours and the default activations, also when they were
            saved from DataParallel.

    Raises:
        ValueError: names or shapes are not theirs.
    """
    generator, critic = (
        {name.removeprefix("module."): weight.float() for name, weight in state.items()}
        for state in (generator, critic)
    )
    first = _of(generator, "model.0.0.weight")  # (D, C, 4, 4)
    latent_dim, channels = first.shape[:2]
    halvings = max(int(name.split(".")[1]) for name in generator) - 1
    shape = {"image_px": 2 ** (halvings + 3), "step_channels": channels // 2**halvings}
    made = {"project.weight": first.flatten(1).T.contiguous()}  # (16 C, D)
    _norm(made, "project_norm.0", generator, "model.0.1")
    for block in range(halvings):
        made[f"blocks.{3 * block}.weight"] = _of(generator, f"model.{block + 1}.0.weight")
        _norm(made, f"blocks.{3 * block + 1}", generator, f"model.{block + 1}.1")
    judge = {}
    for part in ("weight", "bias"):
        made[f"to_rgb.{part}"] = _of(generator, f"model.{halvings + 1}.0.{part}")
        judge[f"blocks.0.{part}"] = _of(critic, f"model.0.0.{part}")
    for block in range(halvings):
        judge[f"blocks.{3 * block + 2}.weight"] = _of(critic, f"model.{block + 1}.0.weight")
        _norm(judge, f"blocks.{3 * block + 3}", critic, f"model.{block + 1}.1")
    judge["score.weight"] = _of(critic, "disc.0.weight").flatten(1)  # (1, 16 C)
    published = {"norm": "batch", "output": "leaky_relu", "latent_dim": 0, "conditioning": "none"}
    return {
        "generator_args": {"latent_dim": latent_dim, **shape},
        "generator": made,
        "critic_args": shape | published,
        "critic": judge,
    }


def _norm(made: dict[str, Tensor], name: str, state: Mapping[str, Tensor], theirs: str) -> None:
    for part in ("weight", "bias", "running_mean", "running_var"):
        made[f"{name}.{part}"] = _of(state, f"{theirs}.{part}")
    batches = state.get(f"{theirs}.num_batches_tracked", torch.zeros(()))
    made[f"{name}.num_batches_tracked"] = batches.long()


def _of(state: Mapping[str, Tensor], name: str) -> Tensor:
    if name not in state:
        raise ValueError(f"no {name!r}: not torchgan's DCGAN with batch normalisation")
    return state[name]
