"""Parsed expression tables kept beside their text, so that a table is parsed once and then mapped.

For `folder/lung.csv` the folder `folder/.expression_cache` holds `lung.csv.<key>.npy`, the values,
and `lung.csv.<key>.json`, the rest. The key is of the text's size and time of change, so a changed
table is parsed again. Both may be deleted at any time.
"""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple, Protocol

import numpy as np
from numpy.lib import format as npy

from runtime.errors import UserError
from runtime.files import CannotWrite, atomic_path, read_json, write_json

CACHE_FOLDER = ".expression_cache"
FORMAT = 1


class Parsed(NamedTuple):
    """A table's values float32 (N, G), mapped from a file, and its other facts, plain values."""

    values: np.ndarray
    facts: dict[str, Any]


class Parser(Protocol):
    """What reads a table's text: `blocks` first, then `facts`."""

    columns: int

    def blocks(self) -> Iterator[np.ndarray]:
        """Yield the values float32 (n, columns), block by block."""

    def facts(self) -> dict[str, Any]:
        """Return the rest, as JSON keeps it."""


def read_cached(path: Path, make_parser: Callable[[Path], Parser]) -> Parsed:
    """Return a table from its cache, which is written at the first read or after a change.

    The values are mapped copy-on-write: they take no memory until they are read, and a change to
    them never reaches the file. Where nothing can be written beside the table, they are mapped from
    a temporary file that goes with the process.

    Args:
        path: the table's text; it exists.
        make_parser: called with `path` when there is no cache; its errors pass through.

    Raises:
        UserError: the table changed while it was read, or there is no room for it at all.
    """
    key = _key(path)
    stem = path.parent / CACHE_FOLDER / f"{path.name}.{key}"
    matrix, rest = stem.with_name(stem.name + ".npy"), stem.with_name(stem.name + ".json")
    found = _open(matrix, rest)
    if found is not None:
        return found
    parser = make_parser(path)
    try:
        with atomic_path(matrix) as temporary:
            with open(temporary, "wb") as handle:
                _write(handle, parser)
            facts = parser.facts()
            _check_unchanged(path, key)
        write_json(rest, facts)
        _remove_older(path, keep={matrix, rest})
        return Parsed(np.load(matrix, mmap_mode="c", allow_pickle=False), facts)
    except (CannotWrite, FileNotFoundError):  # or removed by a reader of a newer table
        return _read_uncached(path, make_parser)
    finally:
        with contextlib.suppress(OSError):
            matrix.parent.rmdir()  # only where it is empty


def _read_uncached(path: Path, make_parser: Callable[[Path], Parser]) -> Parsed:
    key, parser = _key(path), make_parser(path)
    try:
        with tempfile.TemporaryFile() as handle:
            shape, offset = _write(handle, parser)
            facts = parser.facts()
            handle.flush()
            values = np.memmap(handle, np.float32, "c", offset, shape)
    except OSError as error:
        raise UserError(f"{path}: no room for its values ({error.strerror or error})") from error
    _check_unchanged(path, key)
    return Parsed(values, facts)


def _key(path: Path) -> str:
    state = path.stat()
    text = f"{FORMAT} {state.st_size} {state.st_mtime_ns}"
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _check_unchanged(path: Path, key: str) -> None:
    if _key(path) != key:
        raise UserError(f"{path}: changed while it was read; read it again when it is complete")


def _open(matrix: Path, rest: Path) -> Parsed | None:
    """Return what is there, or None when a part is missing or is not what was written."""
    try:
        facts = read_json(rest)
        values = np.load(matrix, mmap_mode="c", allow_pickle=False)
    except (UserError, ValueError, EOFError, OSError):
        return None
    is_whole = isinstance(facts, dict) and len(values) == len(facts.get("names", ()))
    return Parsed(values, facts) if is_whole else None


def _write(handle: IO[bytes], parser: Parser) -> tuple[tuple[int, int], int]:
    """Write the blocks of `parser` as one .npy; return its shape and where the values begin."""

    def header(rows: int) -> int:
        # NumPy leaves room in the header for the number of rows to grow.
        handle.seek(0)
        shape = (rows, parser.columns)
        npy.write_array_header_1_0(handle, {"descr": "<f4", "fortran_order": False, "shape": shape})
        return handle.tell()

    rows, offset = 0, header(0)
    for block in parser.blocks():
        handle.write(np.ascontiguousarray(block, "<f4").data)
        rows += len(block)
    if header(rows) != offset:
        raise RuntimeError("the .npy header changed its length")
    return (rows, parser.columns), offset


def _remove_older(path: Path, keep: set[Path]) -> None:
    for old in (path.parent / CACHE_FOLDER).glob(f"{path.name}.*"):
        is_of_this = len(old.name) == len(path.name) + len(".") + 12 + len(old.suffix)
        if is_of_this and old.suffix in (".npy", ".json") and old not in keep:
            old.unlink(missing_ok=True)


class StackedRows:
    """Matrices over the same columns, one below the other, without a copy.

    Rows are taken as from an array: by a number, a slice, numbers (n,) or a mask (N,). Whatever
    asks for an array (NumPy functions, `numpy.asarray`) gets a copy of all rows.

    Args:
        parts: arrays (n, G) of one dtype.
    """

    ndim = 2

    def __init__(self, parts: Sequence[np.ndarray]) -> None:
        self.parts = list(parts)
        self.ends = np.cumsum([len(part) for part in parts])
        self.shape = (int(self.ends[-1]), parts[0].shape[1])
        self.dtype = parts[0].dtype

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any) -> np.ndarray:
        if isinstance(key, tuple):
            return self.__array__()[key]
        rows = np.arange(len(self))[key]
        part_of = np.searchsorted(self.ends, rows, side="right")
        starts = self.ends - [len(part) for part in self.parts]
        if rows.ndim == 0:
            return np.array(self.parts[part_of][rows - starts[part_of]])
        taken = np.empty((len(rows), self.shape[1]), self.dtype)
        for number, part in enumerate(self.parts):
            here = np.flatnonzero(part_of == number)
            taken[here] = part[rows[here] - starts[number]]
        return taken

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError("rows of several tables are one array only as a copy")
        return np.concatenate(self.parts, dtype=dtype)
