"""What is written beside every output before the work starts."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runtime.errors import UserError
from runtime.files import read_json, write_json
from runtime.versions import versions

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

log = logging.getLogger("suite")


def start_log() -> None:
    """Send the suite's log lines to stderr, one plain line each."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr, force=True)


def write_run_record(path: str | Path, config: dict[str, Any], seed: int) -> None:
    """Write the merged configuration, command line, seed, versions and git commit as JSON."""
    write_json(
        path,
        {
            "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
            "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "seed": seed,
            "config": config,
            "versions": versions(),
            "git_commit": _git_commit(),
        },
    )


def _git_commit() -> str | None:
    folder = Path(__file__).resolve().parent
    try:
        answer = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=folder,
            capture_output=True,
            text=True,
        )
    except FileNotFoundError:
        return None
    return answer.stdout.strip() or None


def already_done(
    record: str | Path, request: dict[str, Any], outputs: list[Path], overwrite: bool = False
) -> bool:
    """Return whether `outputs` are the finished result of the very same request.

    A script calls this before its first heavy step and `write_json(record, request)` after its
    last, so that the same command again repeats nothing and another command never replaces a
    result
    unasked.

    Args:
        record: JSON file in which the finished request is kept.
        request: everything the result depends on: options, seed, SHA-256 of the input files.
        outputs: the files the script writes.
        overwrite: replace what is there (the script's `--overwrite`).

    Raises:
        UserError: an output exists that belongs to another request.
    """
    existing = [path for path in outputs if Path(path).exists()]
    if overwrite or not existing:
        return False
    same = Path(record).is_file() and read_json(record) == json.loads(json.dumps(request))
    if not same:
        raise UserError(
            f"{existing[0]}: made by another command; name another output or add --overwrite"
        )
    if len(existing) < len(outputs):
        return False
    log.info("%s: up to date", outputs[0])
    return True


def summary_writer(wanted: int, folder: str | Path) -> SummaryWriter | None:
    """Return a TensorBoard writer for `--log 1`, None for `--log 0`."""
    if not wanted:
        return None
    from torch.utils.tensorboard import SummaryWriter  # slow to import, seldom needed

    return SummaryWriter(str(folder))
