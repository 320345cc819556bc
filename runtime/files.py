"""Outputs that are written whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from runtime.errors import UserError


class CannotWrite(UserError):
    """An output has no place: a folder that may not be written to, a full disk."""


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success flush it to disk and rename it to `path`.

    The temporary name keeps the suffix, because writers choose a format by it. On any error the
    temporary file is removed and `path` is left as it was.

    Raises:
        CannotWrite: a UserError; the folder cannot be written to.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with open(temporary, "rb") as handle:
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise CannotWrite(f"{path}: cannot be written ({error.strerror or error})") from error
    finally:
        with contextlib.suppress(NotADirectoryError):  # a file where the folder should be
            temporary.unlink(missing_ok=True)


def packaged_file(package: str, name: str) -> Path | None:
    """Return where an installed package has a file, or None; the package is not imported."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        return None
    return Path(spec.origin).parent / name


def write_text(path: str | Path, text: str) -> None:
    """Write `text` as UTF-8, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as indented JSON, whole or not at all; NaN and infinity are refused."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: str | Path) -> Any:
    """Return the content of a JSON file.

    Raises:
        UserError: the file is missing or is not JSON.
    """
    path = require_file(path, "JSON file")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid JSON ({error})") from error


def require_file(path: str | Path, what: str) -> Path:
    """Return `path` when it is a file; `what` names it in the error, which is a UserError."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: {what} not found")
    return path


def require_folder(path: str | Path, what: str) -> Path:
    """Return `path` when it is a folder; `what` names it in the error, which is a UserError."""
    path = Path(path)
    if not path.is_dir():
        raise UserError(f"{path}: {what} not found")
    return path


def sha256_of(path: str | Path) -> str:
    """Return the SHA-256 of a file's content as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as handle:
        while block := handle.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def write_csv(path: str | Path, frame: pd.DataFrame) -> None:
    """Write a table as CSV without its index, whole or not at all; 8 significant digits."""
    with atomic_path(path) as temporary:
        frame.to_csv(temporary, index=False, float_format="%.8g")
