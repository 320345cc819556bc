"""Learning rate and KL weight of a training step, as functions of the step alone."""

from __future__ import annotations

import math

LR_SCHEDULES = ("warmup_cosine", "cosine_per_batch", "constant")
PUBLISHED_WARMUP_STEPS, PUBLISHED_HALF_PERIOD_STEPS = 1000, 500


def learning_rate(
    schedule: str, peak: float, step: int, total_steps: int, warmup_steps: int
) -> float:
    """Return the learning rate of a step.

    Args:
        schedule: "warmup_cosine": linear rise, then one cosine to 0 over the rest of the run;
            "cosine_per_batch": 1,000 steps of linear rise, then a cosine that falls and rises again
            every 1,000 steps, as published; "constant".
        peak: highest rate.
        step: number of the step, from 0.
        total_steps: of the run.
        warmup_steps: of the rise of "warmup_cosine".

    Source: Loshchilov and Hutter 2017 (arXiv 1608.03983), equation 5, without restarts. The
    published code steps epoch-wise schedules once per batch.
    """
    if schedule == "constant":
        return peak
    if schedule == "cosine_per_batch":
        if step < PUBLISHED_WARMUP_STEPS:
            return peak * step / PUBLISHED_WARMUP_STEPS
        angle = math.pi * (step - PUBLISHED_WARMUP_STEPS) / PUBLISHED_HALF_PERIOD_STEPS
        return peak * 0.5 * (1 + math.cos(angle))
    if schedule != "warmup_cosine":
        raise ValueError(f"lr_schedule {schedule!r} is none of {LR_SCHEDULES}")
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    angle = math.pi * (step - warmup_steps) / max(total_steps - warmup_steps, 1)
    return peak * 0.5 * (1 + math.cos(angle))


def kl_weight(beta: float, step: int, warmup_steps: int) -> float:
    """Return the weight of the KL term: rises linearly to `beta` over the warm-up, then stays.

    Source: Sonderby et al. 2016 (arXiv 1602.02282), section 2.3, "warm-up"; scvi-tools'
    `n_epochs_kl_warmup` is the same counted in epochs.
    """
    return beta * min(1.0, (step + 1) / warmup_steps) if warmup_steps else beta
