"""Checkpoints: one dict of tensors and plain values, written atomically, loaded weights-only."""

from __future__ import annotations

import glob
import os
import pickle
import shutil
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from runtime.errors import UserError
from runtime.files import atomic_path, require_file, sha256_of
from runtime.versions import versions

FORMAT = "rna-gan-suite/1"


def save_checkpoint(path: str | Path, stage: str, content: dict[str, Any], keep: int = 1) -> None:
    """Write a checkpoint atomically: `content` plus format, stage and versions.

    Args:
        path: file to write; an existing one is replaced only once the new one is whole.
        stage: which script's checkpoint this is, e.g. "betavae" or "gan".
        content: tensors, numbers, strings, None, and lists and dicts of those.
        keep: checkpoints to keep; those before are at `previous_path`.

    Raises:
        UserError: the disk is full or the folder cannot be written to; `path` is as it was.
    """
    whole = {"format": FORMAT, "stage": stage, "versions": versions(), **content}
    with atomic_path(path) as temporary:
        try:
            torch.save(whole, temporary)
        except RuntimeError as error:  # torch's own writer names no cause
            reason = "disk full, or a limit on file sizes" if temporary.exists() else str(error)
            raise OSError(None, f"write failed: {reason}") from error
        # Reads the structure, not the tensors: what loading would refuse is noticed here.
        torch.load(temporary, map_location="cpu", weights_only=True, mmap=True)
        _keep_previous(Path(path), keep)


def previous_path(path: str | Path, age: int) -> Path:
    """Return where the checkpoint before `path` is kept: `X.previous1.model` of `X.model`; `age`
    counts back from 1."""
    path = Path(path)
    return path.with_name(f"{path.stem}.previous{age}{path.suffix}")


def remove_leftovers(path: str | Path) -> None:
    """Remove what a killed process left of a half-written `path`; no other may be writing it."""
    path = Path(path)
    for name in path.parent.glob(f".{glob.escape(path.stem)}.*.part{path.suffix}"):
        name.unlink(missing_ok=True)


def _keep_previous(path: Path, keep: int) -> None:
    """Move the older checkpoints one place on; `path` itself stays where it is throughout."""
    if keep < 2 or not path.is_file():
        return
    for age in range(keep - 1, 1, -1):
        if previous_path(path, age - 1).is_file():
            os.replace(previous_path(path, age - 1), previous_path(path, age))
    newest = previous_path(path, 1)
    newest.unlink(missing_ok=True)
    try:
        os.link(path, newest)
    except OSError:  # a file system without hard links
        shutil.copyfile(path, newest)


def load_checkpoint(path: str | Path, stage: str) -> dict[str, Any]:
    """Return a checkpoint of the given stage, on the CPU; nothing it may contain is executed.

    Raises:
        UserError: missing, truncated, not a checkpoint of this suite, or of another stage.
    """
    path = require_file(path, f"{stage} checkpoint")
    content = _load(path)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UserError(f"{path}: not a checkpoint of this suite (no format {FORMAT!r} in it)")
    if content["stage"] != stage:
        raise UserError(
            f"{path}: a {content['stage']!r} checkpoint; a {stage!r} checkpoint is needed here"
        )
    return content


def load_weights(path: str | Path) -> dict[str, torch.Tensor]:
    """Return a plain state dict, such as torchvision's, on the CPU, loaded weights-only.

    Weights kept under `state_dict` and names that begin with `module.` are accepted.

    Raises:
        UserError: missing, truncated or not a state dict.
    """
    path = require_file(path, "weights file")
    content = _load(path)
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict) or not all(torch.is_tensor(v) for v in content.values()):
        raise UserError(f"{path}: not a state dict (a dict of tensors is needed here)")
    return {name.removeprefix("module."): value for name, value in content.items()}


def _load(path: Path) -> Any:
    try:
        # Files of torch before 1.6 are no zip archives and cannot be mapped into memory.
        mapped = zipfile.is_zipfile(path)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except (
        RuntimeError,
        pickle.UnpicklingError,
        EOFError,
        KeyError,
        OSError,
        ValueError,
        zipfile.BadZipFile,
    ) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path}: truncated or not a checkpoint ({reason[:120]})") from error


def check_genes(expected: Sequence[str], found: Sequence[str], where: str | Path) -> None:
    """Raise a UserError naming the first difference unless both lists agree, order included."""
    if list(expected) == list(found):
        return
    for position, (one, other) in enumerate(zip(expected, found, strict=False)):
        if one != other:
            raise UserError(
                f"{where}: gene {position + 1} is {other}, the checkpoint has {one} there"
                " (same genes in the same order are needed)"
            )
    raise UserError(f"{where}: {len(found)} genes, the checkpoint has {len(expected)}")


def check_same_recipe(
    stored: dict[str, Any], config: dict[str, Any], free: Sequence[str], where: str | Path
) -> None:
    """Raise a UserError naming the first key in which a run to be continued differs from its
    config.

    Args:
        stored, config: configurations as plain dicts.
        free: keys that may change without changing the result, or that extend the run.
        where: the checkpoint.
    """
    for key in stored.keys() | config.keys():
        if key not in free and stored.get(key) != config.get(key):
            raise UserError(
                f"{where}: was trained with {key} {stored.get(key)!r}, now {config.get(key)!r};"
                " name another output, or go back to the first value to continue"
            )


def check_betavae(path: str | Path, gan: dict[str, Any], where: str | Path) -> None:
    """Raise a UserError unless `path` is the betaVAE that an RNA-GAN was trained with."""
    found, needed = sha256_of(require_file(path, "betaVAE")), gan["conditioning"]["betavae_sha256"]
    if found != needed:
        raise UserError(
            f"{path}: not the betaVAE that {where} was trained with"
            f" (SHA-256 {found[:12]}, needed {needed[:12]})"
        )
