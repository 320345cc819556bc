"""What tiling a folder of slides would do, and what it would cost, before anything is written."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from data.slide_files import SlideError
from data.tiles import store_path
from data.tiling import TilingSettings, plan_slide, tile_slide
from runtime.workers import Lost, run_in_workers

PROBED_SLIDES, PROBED_TILES = 3, 48
PRELOAD = ("__main__", "data.tiling", "pandas")


class Cost(NamedTuple):
    """What tiling would need at most: minutes, and bytes of disk."""

    minutes: float
    bytes: float


def plan_row(slide: Path, settings: TilingSettings | str) -> dict[str, Any]:
    """Return what tiling a slide would do: action (tile, empty, fail), format, resolution, tiles.

    Args:
        settings: or why the slide has none.
    """
    started = time.monotonic()
    row = _row(slide.name, "fail")
    try:
        if isinstance(settings, str):
            raise SlideError(settings)
        plan = plan_slide(slide, settings)
    except SlideError as error:
        return row | {"reason": str(error)}
    return row | {
        "action": "tile" if plan.candidates else "empty",
        "format": plan.vendor,
        "size": f"{plan.size[0]}x{plan.size[1]}",
        "mpp": f"{plan.mpp:.4g}",
        "from": plan.mpp_source.removeprefix("openslide."),
        "level": plan.grid.level,
        "tiles": plan.candidates,
        "seconds": time.monotonic() - started,
    }


def plan_all(
    slides: Mapping[Path, TilingSettings | str],
    finished: Mapping[str, Mapping[str, Any]],
    workers: int,
) -> Iterator[dict[str, Any]]:
    """Yield what tiling each slide would do, as it is known; `finished` are kept as they are.

    Args:
        slides: settings by slide, or why it has none.
        finished: rows of slides.csv by slide name.
        workers: processes.
    """
    for slide, row in finished.items():
        yield _row(slide, "keep") | {"tiles": int(row["tiles"])}
    tasks = [(slide, settings) for slide, settings in slides.items() if slide.name not in finished]
    for (slide, _), row in run_in_workers(plan_row, tasks, workers, PRELOAD):
        yield _row(slide.name, "fail") | {"reason": row.reason} if isinstance(row, Lost) else row


def estimate_cost(
    rows: Mapping[str, Mapping[str, Any]], slides: Mapping[Path, Any], workers: int
) -> Cost | None:
    """Return what tiling needs, measured by tiling a few slides in part, or None without a slide.

    Args:
        rows: of `plan_all`, by slide name.
        slides: settings by slide.
        workers: processes.
    """
    waiting = [slide for slide in slides if rows[slide.name]["action"] == "tile"]
    seconds, size = [], []
    for slide in waiting[:: max(1, len(waiting) // PROBED_SLIDES)][:PROBED_SLIDES]:
        with tempfile.TemporaryDirectory() as folder:
            done = tile_slide(slide, Path(folder), replace(slides[slide], max_tiles=PROBED_TILES))
            if done["tiles"]:
                looking = rows[slide.name]["seconds"]
                seconds.append(max(done["seconds"] - looking, 0.0) / done["tiles"])
                size.append(store_path(folder, slide.name).stat().st_size / done["tiles"])
    if not seconds:
        return None
    tiles = sum(rows[slide.name]["tiles"] for slide in waiting)
    looking = sum(rows[slide.name]["seconds"] for slide in waiting)
    work = tiles * sum(seconds) / len(seconds) + looking
    return Cost(work / min(workers, len(waiting)) / 60, tiles * sum(size) / len(size))


def _row(name: str, action: str) -> dict[str, Any]:
    texts = dict.fromkeys(("format", "size", "mpp", "from", "level"), "")
    return {"slide": name, "action": action, **texts, "tiles": 0, "seconds": 0.0, "reason": ""}
