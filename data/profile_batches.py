"""Batches of expression profiles by row number, read as they are needed from a table that need not
be in memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from runtime.seeds import torch_generator


def epoch_batches(rows: np.ndarray, batch_size: int, seed: int, epoch: int) -> list[np.ndarray]:
    """Return the row numbers of each batch of an epoch; a last one of one row is joined on."""
    order = rows[torch.randperm(len(rows), generator=torch_generator(seed, "epoch", epoch)).numpy()]
    batches = [order[first : first + batch_size] for first in range(0, len(order), batch_size)]
    if len(batches) > 1 and len(batches[-1]) == 1:
        batches[-2:] = [np.concatenate(batches[-2:])]
    return batches


def read_batches(
    expression: np.ndarray, batches: Sequence[np.ndarray], device: torch.device
) -> Iterator[Tensor]:
    """Yield expression float32 (n, G) of each batch, on the device; the next one is read meanwhile.

    Args:
        expression: (N, G), an array or anything of which rows can be taken by their numbers, such
            as a memory map.
        batches: row numbers (n,) of each.
        device: where the batches go.
    """

    def read(rows: np.ndarray) -> Tensor:
        profiles = torch.from_numpy(np.asarray(expression[rows], np.float32))
        return profiles.pin_memory() if device.type == "cuda" else profiles

    with ThreadPoolExecutor(max_workers=1) as reader:
        ahead = reader.submit(read, batches[0]) if len(batches) else None
        for number in range(len(batches)):
            profiles = ahead.result()
            if number + 1 < len(batches):
                ahead = reader.submit(read, batches[number + 1])
            yield profiles.to(device, non_blocking=True)
