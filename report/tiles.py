"""Figures of the GANs: losses, tile grids over epochs, generated grids and triples."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from report.style import (
    LINES,
    WIDTH_IN,
    Drawn,
    MissingResult,
    bare,
    crop_grid,
    panels,
    picture_panels,
    read_picture,
    read_table,
)
from runtime.files import read_json

SOURCES = ("real", "rna-gan", "gan")
EPOCHS_SHOWN = 4
TILES_SHOWN = 4
HISTORY = ("epoch", "step", "critic_loss", "generator_loss")


def draw_history(results: Path) -> Drawn:
    """Return the losses of every GAN against its steps."""
    paths = sorted(results.glob("checkpoints/**/*.history.csv"))
    if not paths:
        raise MissingResult("no checkpoints/**/*.history.csv: run histopathology_gan.py")
    histories = [read_table(path, HISTORY) for path in paths]
    followed = any("fid" in history for history in histories)
    figure, axes = panels(len(paths), 3 if followed else 2, 1.5 * len(paths) + 0.3)
    tables, seeds = [], set()
    for row, path, history in zip(axes, paths, histories, strict=True):
        run = path.name.removesuffix(".history.csv")
        seeds |= _seeds(path.with_name(f"{run}.run.json"))
        row[0].plot(history.step, history.critic_loss, LINES[0], label="critic")
        row[0].plot(history.step, history.generator_loss, LINES[1], label="generator")
        row[0].set_title(f"{run}: loss")
        if "gradient_penalty" in history:
            row[1].plot(history.step, history.gradient_penalty, color="C2")
            row[1].set_title(f"{run}: gradient penalty")
        else:
            row[1].set_visible(False)
        if "fid" in history:
            measured = history.dropna(subset="fid")
            row[2].plot(measured.step, measured.fid, marker=".", color="C0")
            row[2].set_title(f"{run}: FID, held-out")
        elif followed:
            row[2].set_visible(False)
        for axis in row:
            axis.set_xlabel("step")
        tables.append(history.assign(run=run))
    axes[0, 0].legend()
    numbers = pd.concat(tables, ignore_index=True)
    last = numbers.groupby("run").last()
    summary = last[
        [name for name in ("epoch", "step", "elapsed_s", "images_per_s") if name in last]
    ]
    caption = (
        "Mean losses of each epoch. They tell whether training is stable; their level is no measure"
        f" of the quality of tiles.{_seed_text(seeds)}"
    )
    return Drawn("GAN and RNA-GAN training", caption, figure, numbers, table=summary.reset_index())


def draw_epochs(results: Path) -> Drawn:
    """Return the tile grids of every GAN at a few epochs, from the same seeds."""
    folders = [
        folder
        for name in ("images", "gan_generated_images")
        for folder in sorted((results / name).glob("*"))
        if list(folder.glob("epoch_*.png"))
    ]
    if not folders:
        raise MissingResult("no images/<run>/epoch_*.png: run histopathology_gan.py")
    pictures, titles, rows = [], [], []
    for folder in folders:
        grids = sorted(folder.glob("epoch_*.png"))
        chosen = np.unique(np.linspace(0, len(grids) - 1, EPOCHS_SHOWN).round().astype(int))
        shown = [grids[number] for number in chosen]
        epochs = [int(path.stem.removeprefix("epoch_")) for path in shown]
        empty = EPOCHS_SHOWN - len(shown)
        pictures.append([crop_grid(read_picture(path), TILES_SHOWN) for path in shown])
        pictures[-1] += [None] * empty
        titles.append([f"epoch {epoch}" for epoch in epochs] + [""] * empty)
        rows += [(folder.name, epoch, str(path)) for epoch, path in zip(epochs, shown, strict=True)]
    figure = picture_panels(pictures, [folder.name for folder in folders], titles)
    caption = (
        f"The first {TILES_SHOWN} x {TILES_SHOWN} tiles of the grid of an epoch, the same noise in"
        " every epoch. Rows of an RNA-GAN grid are expression profiles: donors that were held out"
        " of training come first."
    )
    numbers = pd.DataFrame(rows, columns=["run", "epoch", "file"])
    return Drawn("Tiles over epochs", caption, figure, numbers)


def draw_sources(results: Path) -> Drawn:
    """Return real, RNA-GAN and GAN tiles side by side, for each patient they were generated for."""
    caption = (
        "Side by side, in the order of the title: real tiles, tiles of the RNA-GAN from the"
        " patient's expression profile, and tiles of the GAN, which knows no profile."
    )
    found = {
        path: _sources(path.parent) for path in sorted(results.glob("generated*/**/sources.png"))
    }
    compared = {path: sources for path, sources in found.items() if len(sources) > 1}
    titles = [f"{path.parent.name}: {', '.join(names)}" for path, names in compared.items()]
    title = "Real, RNA-GAN and GAN tiles of the same patients"
    return _generated(list(compared), titles, title, caption)


def draw_grids(results: Path) -> Drawn:
    """Return the grids of generated tiles, one for each run of generate_tissue_images.py."""
    caption = (
        "The first tiles of each run of generate_tissue_images.py, seeds in order. Profiles from"
        " outside the cohort are matched gene by gene; a gene that is absent counts as 0."
    )
    series = _series(results)
    paths = [
        path for path in sorted(results.glob("generated*/**/grid.png")) if path.parent not in series
    ]
    return _generated(paths, [path.parent.name for path in paths], "Generated tiles", caption)


def draw_series(results: Path) -> Drawn:
    """Return the grids of profiles changed step by step, a row per step, the noise kept."""
    found = _series(results)
    if not found:
        raise MissingResult(
            "no generated/<run>/ of a series: run generate_tissue_images.py --program or"
            " --interpolate_to"
        )
    grids = [read_picture(folder / "grid.png") for folder in found]
    shape = max(grid.shape[0] / grid.shape[1] for grid in grids)
    columns = min(2, len(grids))
    rows = -(-len(grids) // columns)
    figure, axes = panels(rows, columns, rows * (WIDTH_IN * shape / columns + 0.4))
    numbers, wholes = [], []
    for axis in axes.flat[len(grids) :]:
        axis.set_visible(False)
    for axis, grid, (folder, profiles) in zip(axes.flat, grids, found.items(), strict=False):
        axis.imshow(grid, interpolation="antialiased", interpolation_stage="rgba")
        bare(axis)
        places = (np.arange(len(profiles)) + 0.5) * grid.shape[0] / len(profiles)
        axis.set_yticks(places, [f"{step:+.3g}" for step in profiles.step])
        axis.tick_params(length=0)
        request = read_json(folder / "request.json")
        program, other = request["edits"][2:4]
        what = f"dose of {program}, sd" if program else f"share of {other}"
        axis.set_ylabel(what)
        axis.set_title(f"{folder.name}: {profiles.patient.iloc[0]}")
        numbers.append(profiles.assign(run=folder.name, what=what))
        wholes.append(f"{folder.name} {_sources(folder).get('rna-gan', 0)}, seed {request['seed']}")
    caption = (
        "One profile, changed step by step from row to row; a column keeps its noise, so that only"
        " the expression differs. The CSV says how far each step lies from the training"
        f" population. Tiles made: {'; '.join(wholes)}."
    )
    return Drawn("One profile, changed", caption, figure, pd.concat(numbers, ignore_index=True))


def _generated(paths: list[Path], titles: list[str], title: str, caption: str) -> Drawn:
    if not paths:
        raise MissingResult("no generated/<run>/ with pictures: run generate_tissue_images.py")
    pictures: list[np.ndarray | None] = [read_picture(path) for path in paths]
    columns = 2 if len(paths) > 1 else 1
    empty = -len(pictures) % columns
    pictures += [None] * empty
    titles = titles + [""] * empty
    figure = picture_panels(
        [pictures[start : start + columns] for start in range(0, len(pictures), columns)],
        [""] * (len(pictures) // columns),
        [titles[start : start + columns] for start in range(0, len(pictures), columns)],
    )
    counts = {path: _sources(path.parent) for path in paths}
    numbers = pd.DataFrame(
        {
            "run": path.parent.name,
            "file": str(path),
            **{f"{name}_tiles": counts[path].get(name, 0) for name in SOURCES},
        }
        for path in paths
    )
    sizes = ", ".join(
        f"{path.parent.name} {' + '.join(f'{count} {name}' for name, count in found.items())}"
        for path, found in counts.items()
        if found
    )
    caption += f" Tiles made: {sizes}." if sizes else ""
    caption += _seed_text(set().union(*(_seeds(path.parent / "request.json") for path in paths)))
    return Drawn(title, caption, figure, numbers)


def _series(results: Path) -> dict[Path, pd.DataFrame]:
    """Return the profiles of every run of generate_tissue_images.py that is a series of steps."""
    tables = {
        path.parent: read_table(path, ("patient",))
        for path in sorted(results.glob("generated*/**/profiles.csv"))
    }
    return {folder: table for folder, table in tables.items() if "step" in table}


def _sources(folder: Path) -> dict[str, int]:
    """Return the number of tiles of each source that a run's folder lists."""
    paths = {name: folder / f"tiles_{name}.csv" for name in SOURCES}
    return {name: len(read_table(path)) for name, path in paths.items() if path.is_file()}


def _seeds(record: Path) -> set[int]:
    return {read_json(record)["seed"]} if record.is_file() else set()


def _seed_text(seeds: set[int]) -> str:
    return f" Seed: {', '.join(map(str, sorted(seeds)))}." if seeds else ""
