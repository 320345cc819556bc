"""Dry runs: what a command would need, found out before days of compute.

A script adds the flag, does everything up to its first heavy step, measures a few of its units
with `seconds_per_unit`, those that write files with `scratch_trial`, or the first steps of its loop
with `StepTrial`, and ends with
`print("\\n".join(dry_run_lines(...)))` and `return`.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from runtime.errors import UserError

RSS_UNIT = 1 if sys.platform == "darwin" else 1024  # bytes; getrusage counts KiB on Linux


def add_dry_run(parser: argparse.ArgumentParser) -> None:
    """Add `--dry_run` to a script's options."""
    parser.add_argument(
        "--dry_run",
        action="store_true",
        help="check paths, shapes, memory, disk and time, and write nothing",
    )


def dry_run_lines(
    output: str | Path,
    facts: Mapping[str, object],
    seconds: float,
    disk_bytes: int = 0,
    memory_bytes: int | None = None,
) -> list[str]:
    """Return the result of a dry run as lines: the facts, then time, memory and disk.

    Args:
        output: file or folder that the run would write to; it need not exist.
        facts: what was checked, e.g. {"tiles": 600, "shape": "256 x 256"}.
        seconds: of the whole run.
        disk_bytes: that it would write.
        memory_bytes: that it would hold at its peak; None: what this process has held so far,
            right where the measured units are as large as those of the run.

    Raises:
        UserError: the output cannot be written, or memory or disk do not suffice.
    """
    path = folder = Path(output).absolute()
    while not folder.exists():
        folder = folder.parent
    if folder.is_file() and folder != path:
        raise UserError(f"{output}: cannot be written ({folder} is a file)")
    folder = folder if folder.is_dir() else folder.parent
    if not os.access(folder, os.W_OK):
        raise UserError(f"{output}: cannot be written (no permission in {folder})")
    free, total = shutil.disk_usage(folder).free, physical_memory()
    memory = peak_memory() if memory_bytes is None else memory_bytes
    if disk_bytes > free:
        raise UserError(f"{output}: {size_text(disk_bytes)} needed, {size_text(free)} free on disk")
    if memory > total:
        raise UserError(
            f"{size_text(memory)} of memory needed, this machine has {size_text(total)}"
        )
    return [
        *(f"{name}: {value}" for name, value in facts.items()),
        f"time: {time_text(seconds)}",
        f"memory: {size_text(memory)} of {size_text(total)}",
        f"disk: {size_text(disk_bytes)} of {size_text(free)} free at {folder}",
        "dry run: nothing written",
    ]


def seconds_per_unit(work: Callable[[], int]) -> float:
    """Return the seconds that a unit of work takes; `work` does some and returns how many.

    It is called twice and the second time measured: the first call warms up.
    """
    work()
    began = time.perf_counter()
    return (count := work()) and (time.perf_counter() - began) / count


def scratch_trial(work: Callable[[Path], int]) -> tuple[float, float]:
    """Return the seconds and the bytes of files that a unit of work takes, from one call.

    Args:
        work: writes some units into the folder that it is given, which is removed afterwards, and
            returns how many.
    """
    with tempfile.TemporaryDirectory() as scratch:
        began = time.perf_counter()
        count = work(Path(scratch))
        seconds = time.perf_counter() - began
        files = [path.stat().st_size for path in Path(scratch).rglob("*") if path.is_file()]
    return seconds / count, sum(files) / count


class StepTrial:
    """Times the first steps of a training loop, which asks `is_over` after each of them.

    Args:
        steps: to be timed.
        warm_up: steps before them.
    """

    def __init__(self, steps: int, warm_up: int = 1) -> None:
        self.steps, self.warm_up = steps, warm_up
        self.taken, self.began, self.seconds = 0, time.perf_counter(), 0.0

    def is_over(self) -> bool:
        """Return whether the steps are timed, and the loop is to be left."""
        self.taken += 1
        if self.taken == self.warm_up:
            self.began = time.perf_counter()
        self.seconds = time.perf_counter() - self.began
        return self.taken >= self.warm_up + self.steps

    @property
    def seconds_per_step(self) -> float:
        """Seconds of a timed step; of any, where the loop ended before."""
        timed = self.taken - self.warm_up
        return self.seconds / (timed if timed > 0 else max(self.taken, 1))


def peak_memory() -> int:
    """Return the bytes of memory that this process has held at its peak (resident set)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * RSS_UNIT


def physical_memory() -> int:
    """Return the bytes of memory of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def size_text(count: float) -> str:
    """Return bytes as people say them: `196 kB`, `4.2 GB`."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.0f} B"


def time_text(seconds: float) -> str:
    """Return a duration as people say it: `42 s`, `3 min`, `2.5 h`, `4.1 days`."""
    for unit, size in (("days", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.0f} s"
