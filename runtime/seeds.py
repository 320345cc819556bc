"""Randomness as a function of (seed, position): nothing to store, nothing to replay on resume."""

from __future__ import annotations

import hashlib
import random
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch, and ask torch for deterministic algorithms on the CPU."""
    import torch  # seconds, and not needed by every script

    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def derived_seed(seed: int, *position: int | str) -> int:
    """Return a 63-bit seed that depends on `seed` and every part of `position` alone."""
    text = "/".join(str(part) for part in (seed, *position))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def torch_generator(seed: int, *position: int | str) -> torch.Generator:
    """Return a CPU torch.Generator for one position of a run, e.g. `(seed, "step", 120)`."""
    import torch

    return torch.Generator().manual_seed(derived_seed(seed, *position))


def numpy_generator(seed: int, *position: int | str) -> np.random.Generator:
    """Return a NumPy Generator for one position of a run."""
    return np.random.default_rng(derived_seed(seed, *position))
