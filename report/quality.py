"""Figures of tile quality: distance to held-out tiles over epochs, nearest training tiles."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.ticker import MaxNLocator

from report.style import (
    COLOURS,
    LINES,
    MARKERS,
    Drawn,
    MissingResult,
    bare,
    panels,
    read_picture,
    read_table,
)
from runtime.errors import UserError
from runtime.files import read_json

HISTORY = ("epoch", "step")
MEASURES = {"fid": ("FID", 1), "kid": ("KID x 1000", 1000)}


def draw_quality(results: Path) -> Drawn:
    """Return FID and KID against held-out real tiles over the epochs of every GAN and RNA-GAN."""
    tables, tiles, seeds = [], set(), set()
    for path in sorted(results.glob("checkpoints/**/*.history.csv")):
        history = read_table(path, HISTORY)
        if set(MEASURES) <= set(history):
            run = path.name.removesuffix(".history.csv")
            table = history.dropna(subset="fid")[["epoch", "step", *MEASURES]]
            tables.append(table.assign(run=run))
            record = path.with_name(f"{run}.run.json")
            if record.is_file():
                content = read_json(record)
                seeds.add(content["seed"])
                tiles.add(content.get("config", {}).get("metrics_tiles"))
    if not tables:
        raise MissingResult(
            'no history with FID: set "metrics_every" in the config of histopathology_gan.py'
        )
    numbers = pd.concat(tables, ignore_index=True)
    figure, axes = panels(1, len(MEASURES), 2.6)
    runs = list(dict.fromkeys(numbers.run))
    tissues = list(dict.fromkeys(run.split("_")[-1] for run in runs))
    for axis, (name, (label, factor)) in zip(axes[0], MEASURES.items(), strict=True):
        for run in runs:
            part = numbers[numbers.run == run]
            colour = COLOURS[tissues.index(run.split("_")[-1]) % len(COLOURS)]
            kind = int(not run.startswith("rna"))
            axis.plot(
                part.epoch, factor * part[name], LINES[kind], marker=MARKERS[kind], markersize=3.5,
                color=colour, label=run,
            )  # fmt: skip
        axis.set(xlabel="epoch", ylabel=label, ylim=(0, 1.05 * factor * numbers[name].max()))
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.legend(*axes[0, 0].get_legend_handles_labels(), ncols=4, loc="outside upper center")
    count = ", ".join(str(value) for value in sorted(filter(None, tiles))) or "as many"
    seed = f"; seed {', '.join(map(str, sorted(seeds)))}" if seeds else ""
    caption = (
        f"Distance of generated tiles to real tiles of donors that no network was trained on; up to"
        f" {count} tiles a side, feature network inception{seed}. Solid: RNA-GAN with the profiles"
        " of the real tiles' own slides; dashed: GAN. Few tiles raise the FID, not the KID."
    )
    best = numbers.loc[numbers.groupby("run", sort=False).fid.idxmin()]
    table = best[["run", "epoch", "fid"]].assign(**{"KID x 1000": 1000 * best.kid})
    table = table.rename(columns={"epoch": "best epoch", "fid": "FID"})
    return Drawn("Tile quality over epochs", caption, figure, numbers, table=table)


def draw_nearest(results: Path) -> Drawn:
    """Return the generated tiles closest to training tiles, above these."""
    found = {}
    for pattern in ("copying/*.json", "fid*/*.json"):
        for path in sorted(results.glob(pattern)):
            content = read_json(path)
            if isinstance(content, dict) and content.get("copying"):
                found[path] = content
    if not found:
        raise MissingResult("no result with copies looked for: run fid.py --copying N")
    figure, axes = panels(len(found), 1, 2.4 * len(found) + 0.2)
    rows, shares = [], []
    for axis, (path, content) in zip(axes[:, 0], found.items(), strict=True):
        copying, label = content["copying"], content["sets"][1]["label"]
        sheet = path.parent / copying["sheet"]
        if not sheet.is_file():
            raise UserError(f"{path}: its sheet {sheet.name} is not beside it")
        bare(axis)
        axis.imshow(_without_margin(read_picture(sheet)), interpolation_stage="rgba")
        axis.set_title(f"{label}: the closest pairs, distance in features")
        rows += [{"model": label, **pair} for pair in copying["closest"]]
        low, high = copying["interval"]
        share = f"{copying['closer_to_training']:.2f} ({low:.2f} to {high:.2f})"
        shares.append(
            {
                "model": label,
                "closer to training": share,
                "generated to training": copying["generated_to_training"][1],
                "held-out to training": copying["held_out_to_training"][1],
                "tiles": copying["tiles"],
            }
        )
    network = next(iter(found.values()))["network"]
    caption = (
        "Upper rows: generated tiles; below each the training tile nearest to it in the features of"
        f" {network['network']} (SHA-256 {network['weights_sha256'][:8]}). The table: share of"
        " generated tiles that lie closer to a training tile than to a held-out real one (95 %"
        " interval; 0.5 without copying), and median distances; a copying model lies closer to the"
        " training tiles than held-out real tiles do."
    )
    return Drawn(
        "Nearest training tiles", caption, figure, pd.DataFrame(rows), "", pd.DataFrame(shares)
    )


def _without_margin(pixels: np.ndarray) -> np.ndarray:
    """Return a sheet without the empty places at its right."""
    used = np.flatnonzero((pixels < 250).any(axis=(0, 2)))
    return pixels[:, : used[-1] + 12]
