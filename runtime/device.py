"""Where the work runs and in which precision."""

from __future__ import annotations

import contextlib
import sys

import torch

from runtime.errors import UserError

PRECISIONS = ("auto", "float32", "bfloat16")


def choose_device(wanted: str | int | None) -> torch.device:
    """Return the torch device for a flag or config value.

    Args:
        wanted: "cpu", "cuda", "cuda:1", "mps", or a GPU number as the published configs give it. A
            number means "that GPU, or the CPU where there is none"; None means GPU 0 likewise.

    Raises:
        UserError: a device named outright is not there.
    """
    if wanted is None or str(wanted).lstrip("-").isdigit():
        number = int(wanted or 0)
        if number >= 0 and torch.cuda.is_available():
            if number >= torch.cuda.device_count():
                raise UserError(
                    f"device {number}: this machine has {torch.cuda.device_count()} GPU(s)"
                )
            return torch.device("cuda", number)
        return torch.device("cpu")
    try:
        device = torch.device(wanted)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {wanted}: {str(error).splitlines()[0]}") from error
    return device


def uses_bfloat16(precision: str, device: torch.device) -> bool:
    """Return whether to autocast to bfloat16; "auto": where the hardware multiplies in it."""
    if precision != "auto":
        return precision == "bfloat16"
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu" and sys.platform == "linux":
        with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as handle:
            return "amx_bf16" in handle.read()
    return False


def autocast(device: torch.device, bfloat16: bool) -> torch.autocast:
    """Return the autocast context of a training or sampling step."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=bfloat16)
