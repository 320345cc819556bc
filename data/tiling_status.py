"""The state of a tiling run: one small file per slide, and `slides.csv`, the table of all.

Several processes on several machines may write to one folder of tile stores (the shards of a job
array): each writes the state files of its own slides, and whoever writes the table writes what all
have found so far.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from data.tiles import open_tile_store, store_path
from data.tiling import TilingSettings, source_bytes
from runtime.errors import UserError
from runtime.files import atomic_path, read_json, write_json

STATUS_COLUMNS = ["slide", "status", "tiles", "seconds", "mpp", "reason"]
STATUS_NAME, STATUS_FOLDER, LOCK_NAME = "slides.csv", "status", ".slides.lock"


def write_state(
    patch_path: Path, row: dict[str, Any], slide: Path, settings: TilingSettings
) -> None:
    """Keep a slide's row of the table with what it depends on."""
    state = {"row": row, "settings": asdict(settings), "source_bytes": _bytes_of(slide)}
    write_json(_state_path(patch_path, slide.name), state)


def finished_row(slide: Path, patch_path: Path, settings: TilingSettings) -> dict[str, Any] | None:
    """Return the row of a slide that an earlier run finished, or None when it is to be tiled.

    A store is believed, a record is not: done is a slide whose store can be opened whole and was
    made with the same settings from a file of the same size.
    """
    state = _read_state(patch_path, slide.name)
    row = state.get("row", {})
    if row.get("status") == "empty":
        return row if _same(state, slide, settings) else None
    try:
        store = open_tile_store(store_path(patch_path, slide.name))
        info = store.info
    except UserError:
        return None
    if not _same(info, slide, settings):
        return None
    known = {"slide": slide.name, "status": "done", "tiles": len(store), "reason": ""}
    return {"seconds": "", **row, **known, "mpp": info["source_mpp"]}


def damaged_tiles(slide: Path, patch_path: Path) -> list[str]:
    """Return the names of the damaged tiles of a slide's store, having read all of them."""
    return open_tile_store(store_path(patch_path, slide.name)).damaged()


def write_table(patch_path: Path, rows: dict[str, dict[str, Any] | None]) -> None:
    """Write slides.csv: these rows, and those that other runs and shards have left.

    Args:
        rows: of this run's slides; None where a slide is still to be tiled.
    """
    with _locked(patch_path / LOCK_NAME):
        merged = _read_table(patch_path / STATUS_NAME) | _read_states(patch_path) | rows
        known = [row for _, row in sorted(merged.items()) if row is not None]
        with atomic_path(patch_path / STATUS_NAME) as temporary:
            pd.DataFrame(known, columns=STATUS_COLUMNS).to_csv(temporary, index=False)


def read_table(patch_path: Path) -> list[dict[str, Any]]:
    """Return the rows of slides.csv."""
    return list(_read_table(patch_path / STATUS_NAME).values())


def _read_table(path: Path) -> dict[str, dict[str, Any]]:
    if not path.is_file():
        return {}
    frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    if list(frame.columns) != STATUS_COLUMNS:
        raise UserError(f"{path}: not a status table ({', '.join(STATUS_COLUMNS)}); remove it")
    return {row["slide"]: row for row in frame.to_dict("records")}


def _read_states(patch_path: Path) -> dict[str, dict[str, Any]]:
    names = (path.stem for path in (patch_path / STATUS_FOLDER).glob("[!.]*.json"))
    states = {name: _read_state(patch_path, name) for name in names}
    return {name: state["row"] for name, state in states.items() if state}


def _read_state(patch_path: Path, slide: str) -> dict[str, Any]:
    """Return a slide's state; empty where there is none or it is no state."""
    path = _state_path(patch_path, slide)
    if not path.is_file():
        return {}
    with contextlib.suppress(UserError):
        state = read_json(path)
        if isinstance(state, dict) and set(state.get("row", ())) == set(STATUS_COLUMNS):
            return state
    return {}


def _state_path(patch_path: Path, slide: str) -> Path:
    return patch_path / STATUS_FOLDER / f"{slide}.json"


def _same(record: dict[str, Any], slide: Path, settings: TilingSettings) -> bool:
    """Return whether a record is of this slide and these settings."""
    # As JSON would give them back.
    made = record.get("settings")
    return (
        isinstance(made, dict)
        and settings.difference(json.loads(json.dumps(made))) is None
        and record.get("source_bytes") == _bytes_of(slide)
    )


def _bytes_of(slide: Path) -> int | None:
    try:
        return source_bytes(slide)
    except OSError:
        return None


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Let one process at a time, of all machines, into this context."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as handle:
        # A file system without locks: the last to write has read the other state files too, and
        # at worst a row appears with the next run.
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
