"""How far a training run has come: counters, means of the epoch, history, all to be continued."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch

from runtime.errors import UserError


class Progress:
    """Counters, sums of the epoch's measures and history of a run.

    Measures stay on the device until somebody asks, so that a step need not wait for a GPU.

    Args:
        measures: names of what every step adds.
        device: where the measures live.

    Attributes:
        epoch, step: finished so far. batch: steps of the unfinished epoch.
        history: a row per finished epoch.
    """

    def __init__(self, measures: Sequence[str], device: torch.device) -> None:
        self.measures, self.device = tuple(measures), device
        self.epoch = self.batch = self.step = 0
        self.history: list[dict[str, float]] = []
        self.sums = torch.zeros(len(self.measures), device=device)
        self.bad_step = torch.zeros((), dtype=torch.int64, device=device)
        self.began = time.monotonic()

    @property
    def elapsed_s(self) -> float:
        """Time spent on training, s, that of earlier starts included."""
        return time.monotonic() - self.began

    def add(self, values: torch.Tensor) -> None:
        """Count a step with its measures, float32 in the order of their names."""
        self.step, self.batch = self.step + 1, self.batch + 1
        self.sums += values
        first_bad = (self.bad_step == 0) & ~self.sums.isfinite().all()
        self.bad_step += first_bad * self.step

    def means(self) -> dict[str, float]:
        """Return the epoch's mean of every measure so far."""
        return dict(zip(self.measures, (self.sums / self.batch).tolist(), strict=True))

    def check_finite(self, where: str) -> None:
        """Raise a UserError that names the first step with a measure that is not finite."""
        if self.bad_step:
            raise UserError(
                f"{where}: loss not finite at step {int(self.bad_step)}; the last good checkpoint"
                " is kept; lower the learning rates or set precision to float32"
            )

    def end_epoch(self, images: int) -> dict[str, float]:
        """Close the epoch; return its row, which is the last of the history.

        Args:
            images: that the epoch's steps saw, over all processes.
        """
        elapsed = self.elapsed_s
        before = self.history[-1]["elapsed_s"] if self.history else 0.0
        self.epoch += 1
        row = {"epoch": self.epoch, "step": self.step, **self.means()}
        row |= {"images_per_s": images / (elapsed - before), "elapsed_s": elapsed}
        self.history.append(row)
        self.batch = 0
        self.sums.zero_()
        return row

    def to_checkpoint(self) -> dict[str, Any]:
        """Return plain values and tensors for a checkpoint."""
        counters = {"epoch": self.epoch, "batch": self.batch, "step": self.step}
        counters["elapsed_s"] = self.elapsed_s
        return {"counters": counters, "history": self.history, "sums": self.sums.cpu()}

    def load(self, content: dict[str, Any]) -> None:
        """Continue where `to_checkpoint` was called."""
        counters = content["counters"]
        self.epoch, self.batch, self.step = (counters[key] for key in ("epoch", "batch", "step"))
        self.history, self.sums = list(content["history"]), content["sums"].to(self.device)
        self.began = time.monotonic() - counters["elapsed_s"]
