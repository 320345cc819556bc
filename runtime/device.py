"""Where the work runs and in which precision."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from collections.abc import Iterator

import torch

from runtime.errors import UserError

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4  # malloc.h
BFLOAT16_FLAGS = ("amx_bf16", "avx512_bf16")  # of /proc/cpuinfo: Intel's and AMD's products
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
            flags = handle.read()
            return any(flag in flags for flag in BFLOAT16_FLAGS)
    return False


def use_large_pages() -> None:
    """Have torch ask for 2 MiB pages for large tensors on a CPU; to be called before any is made.

    Gradients that are made anew in every step are then mapped in a fraction of the time.

    Source: c10/core/impl/alloc_cpu.cpp, THP_MEM_ALLOC_ENABLE; Linux only, elsewhere without effect.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


def return_freed_memory() -> None:
    """Have the C library give a block of 2 MiB or more back to the system when it is freed.

    Its limit otherwise grows with the blocks that are freed, up to 32 MiB: at full size a training
    run then holds half a gigabyte that nothing uses. The limit on free memory at the heap's end is
    set too, since it otherwise falls to 128 KiB with the first. glibc only, elsewhere without
    effect.

    Source: mallopt(3), M_MMAP_THRESHOLD and M_TRIM_THRESHOLD.
    """
    _set_malloc({M_MMAP_THRESHOLD: 2 * 2**20, M_TRIM_THRESHOLD: 128 * 2**20})


def keep_freed_memory() -> None:
    """Have the C library keep what is freed for the next use, in place of new pages at every batch.

    For a network's inference over many batches of one size: a quarter of its time on a CPU goes
    into pages otherwise. glibc only, elsewhere without effect.

    Source: mallopt(3), M_MMAP_MAX and M_TRIM_THRESHOLD.
    """
    _set_malloc({M_MMAP_MAX: 0, M_TRIM_THRESHOLD: 2**31 - 1})


def _set_malloc(options: dict[int, int]) -> None:
    with contextlib.suppress(OSError, AttributeError, TypeError):
        set_option = ctypes.CDLL(None).mallopt
        for option, value in options.items():
            set_option(option, value)


@contextlib.contextmanager
def bfloat16_products(enabled: bool) -> Iterator[None]:
    """Within, have a CPU multiply float32 matrices in bfloat16 and add up in float32.

    Backward passes are to be inside too. For layers of many weights and few rows this is faster
    than autocast, which writes bfloat16 copies of all weights and of their gradients to memory.

    Source: torch.set_float32_matmul_precision, "medium"; for a GPU it means something else.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium" if enabled else before)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return a tensor of the CPU on a device; a GPU goes on with its work meanwhile."""
    if device.type == "cuda" and not tensor.is_pinned():
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def autocast(device: torch.device, bfloat16: bool) -> torch.autocast:
    """Return the autocast context of a training or sampling step."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=bfloat16)
