"""Figures of the evaluation: FID matrix, conditioning, and the run times."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from report.style import SEQUENTIAL, Drawn, MissingResult, panels, read_table
from runtime.errors import UserError
from runtime.files import read_json

# Names in the JSON of a conditioning measurement, and how they are shown.
CONTROLS = {
    "r": "own profile",
    "r_shuffled": "shuffled profiles",
    "r_zero": "zero profile",
    "r_class_mean": "tissue mean",
}


def draw_fid(results: Path) -> Drawn:
    """Return the FID matrix of tile sets, the floor of real against real tiles on its diagonal."""
    paths = sorted(results.glob("fid*/*.json"))
    if not paths:
        raise MissingResult("no fid/*.json: run fid.py")
    pairs = [
        _checked(path, ("sets", "fid", "kid", "tiles", "network", "request")) for path in paths
    ]
    return fid_matrix(pairs)


def fid_matrix(pairs: Sequence[dict[str, Any]]) -> Drawn:
    """Return the same of results of fid.py at hand."""
    numbers = pd.DataFrame([_fid_row(pair) for pair in pairs])
    networks = numbers.network.unique()
    figure, axes = panels(1, len(networks), 4.2)
    for axis, network in zip(axes[0], networks, strict=True):
        _draw_matrix(axis, numbers[numbers.network == network])
        axis.set_title(f"FID, {network}")
    sizes = [count for pair in pairs for count in pair["tiles"]]
    draws = sorted({len(pair["fid"]["draws"]) for pair in pairs})
    seeds = sorted({_seed(pair) for pair in pairs})
    caption = (
        "Frechet distance between tile sets, mean and standard deviation over"
        f" {', '.join(map(str, draws))} draws of {_range(sizes)} tiles a set; seed"
        f" {', '.join(map(str, seeds))}; feature network {_networks_text(pairs)}. Outlined on the"
        " diagonal: real against real tiles of disjoint donors, the floor that no model can be"
        " expected to pass. Few tiles raise the FID: compare values of equal N only. KID has no"
        " such bias. Where a pair was measured more than once, the matrix shows the first."
    )
    shown = pd.DataFrame(
        {
            "set 1": numbers.set_1,
            "set 2": numbers.set_2,
            "FID": [_mean_sd(m, s) for m, s in zip(numbers.fid, numbers.fid_sd, strict=True)],
            "KID x 1000": [
                _mean_sd(1000 * m, 1000 * s)
                for m, s in zip(numbers.kid, numbers.kid_sd, strict=True)
            ],
            "floor FID": [
                _mean_sd(m, s) for m, s in zip(numbers.floor, numbers.floor_sd, strict=True)
            ],
            "N": [f"{a} / {b}" for a, b in zip(numbers.n_1, numbers.n_2, strict=True)],
        }
    )
    against_real = [
        f"{row.group_2} {row.fid:.0f}"
        + ("" if np.isnan(row.floor) else f" (floor {row.floor:.0f})")
        for row in numbers.drop_duplicates(["group_1", "group_2"]).itertuples()
        if row.group_1.startswith("real ")
        and row.group_2.endswith(f"GAN {row.group_1.removeprefix('real ')}")
    ]
    headline = f"FID against real tiles: {', '.join(against_real)}" if against_real else ""
    return Drawn("FID between tile sets", caption, figure, numbers, headline, shown)


def _fid_row(pair: dict[str, Any]) -> dict[str, Any]:
    one, two = pair["sets"]
    floor = pair.get("real_real_floor") or {}
    return {
        "set_1": one["label"],
        "set_2": two["label"],
        "group_1": f"{one['kind']} {one['tissue']}",
        "group_2": f"{two['kind']} {two['tissue']}",
        "fid": pair["fid"]["mean"],
        "fid_sd": _number(pair["fid"]["sd"]),
        "kid": pair["kid"]["mean"],
        "kid_sd": _number(pair["kid"]["sd"]),
        "n_1": pair["tiles"][0],
        "n_2": pair["tiles"][1],
        "floor_group": f"real {floor['tissue']}" if floor else "",
        "floor": floor["fid"]["mean"] if floor else np.nan,
        "floor_sd": _number(floor["fid"]["sd"]) if floor else np.nan,
        "network": pair["network"]["network"],
        "weights_sha256": pair["network"]["weights_sha256"],
        "seed": _seed(pair),
    }


def _seed(pair: dict[str, Any]) -> int:
    request = pair["request"]
    return request["runs"][0]["seed"] if "runs" in request else request["seed"]


def _draw_matrix(axis: Axes, numbers: pd.DataFrame) -> None:
    kinds = ("real", "GAN", "RNA-GAN", "images")
    groups = sorted(
        {*numbers.group_1, *numbers.group_2, *numbers.floor_group} - {""},
        key=lambda group: (group.split(" ", 1)[1], kinds.index(group.split(" ", 1)[0])),
    )
    matrix = np.full((len(groups), len(groups)), np.nan)
    spread = matrix.copy()
    for row in numbers.iloc[::-1].itertuples():
        one, two = groups.index(row.group_1), groups.index(row.group_2)
        matrix[one, two] = matrix[two, one] = row.fid
        spread[one, two] = spread[two, one] = row.fid_sd
    for row in numbers[numbers.floor_group != ""].iloc[::-1].itertuples():
        place = groups.index(row.floor_group)
        matrix[place, place], spread[place, place] = row.floor, row.floor_sd
        axis.add_patch(
            Rectangle((place - 0.48, place - 0.48), 0.96, 0.96, fill=False, linewidth=2, zorder=3)
        )
    picture = axis.imshow(matrix, cmap=SEQUENTIAL)
    middle = np.nanmean([np.nanmin(matrix), np.nanmax(matrix)])
    for (one, two), value in np.ndenumerate(matrix):
        if not np.isnan(value):
            text = f"{value:.0f}" + (
                "" if np.isnan(spread[one, two]) else f"\n± {spread[one, two]:.1f}"
            )
            colour = "white" if value < middle else "black"
            axis.text(two, one, text, ha="center", va="center", color=colour, fontsize=7)
    axis.set_xticks(range(len(groups)), groups, rotation=35, ha="right")
    axis.set_yticks(range(len(groups)), groups)
    axis.spines[:].set_visible(False)
    axis.tick_params(length=0)
    axis.figure.colorbar(picture, ax=axis, shrink=0.7)


def _mean_sd(mean: float, sd: float) -> str:
    if np.isnan(mean):
        return ""
    return f"{mean:.1f}" + ("" if np.isnan(sd) else f" ± {sd:.1f}")


def _number(value: float | None) -> float:
    return np.nan if value is None else value


def _range(values: list[int]) -> str:
    low, high = min(values), max(values)
    return str(low) if low == high else f"{low} to {high}"


def _networks_text(pairs: list[dict[str, Any]]) -> str:
    found = {
        f"{pair['network']['network']} (SHA-256 {pair['network']['weights_sha256'][:8]})"
        for pair in pairs
    }
    return " and ".join(sorted(found))


def draw_conditioning(results: Path) -> Drawn:
    """Return how well generated tiles follow the profile's true factors, with controls."""
    paths = sorted(results.glob("conditioning/*.json"))
    if not paths:
        raise MissingResult("no conditioning/*.json: measure the RNA-GAN's tiles first")
    rows, changes, donors = [], [], set()
    for path in paths:
        content = _checked(path, ("factors", "n_donors"))
        donors.add(content["n_donors"])
        for factor, values in content["factors"].items():
            rows.append(
                {"model": path.stem, "factor": factor}
                | {name: _number(values.get(name)) for name in CONTROLS}
            )
        if content.get("noise_change"):
            ratio = content["profile_change"] / content["noise_change"]
            changes.append(f"{path.stem} {ratio:.2f}")
    numbers = pd.DataFrame(rows)
    names = [name for name in CONTROLS if numbers[name].notna().any()]
    figure, axes = panels(1, len(paths), 2.5)
    for axis, path in zip(axes[0], paths, strict=True):
        part = numbers[numbers.model == path.stem]
        place = np.arange(len(part))
        for number, name in enumerate(names):
            offset = (number - (len(names) - 1) / 2) * 0.2
            axis.bar(place + offset, part[name], 0.18, label=CONTROLS[name])
        axis.axhline(0, color="black", linewidth=0.6)
        axis.set_xticks(place, [text.replace("_", "\n") for text in part.factor])
        axis.set_title(path.stem)
        axis.set_ylim(min(-0.3, numbers[names].min().min() - 0.05), 1)
    axes[0, 0].set_ylabel("correlation with the donor's truth")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), ncols=4, loc="outside upper center")
    caption = (
        "Correlation over donors between a factor measured on generated tiles and the truth of the"
        f" donor whose profile was given (N = {', '.join(map(str, sorted(donors)))} donors),"
        " with the controls that a model that follows the profile must beat."
    )
    if changes:
        caption += (
            " Change of a tile with the profile, noise kept, relative to its change with the noise,"
            f" profile kept: {'; '.join(changes)}."
        )
    medians = numbers.groupby("model")[names].median()
    headline = "Conditioning, median r over factors: " + ", ".join(
        f"{model} {row.r:.2f}"
        + (f" (shuffled {row.r_shuffled:.2f})" if "r_shuffled" in names else "")
        for model, row in medians.iterrows()
    )
    shown = numbers.rename(columns=CONTROLS)[["model", "factor", *(CONTROLS[n] for n in names)]]
    return Drawn("Do tiles follow the profile?", caption, figure, numbers, headline, shown)


def run_times(results: Path) -> pd.DataFrame:
    """Return step and seconds: of `timings.csv`, else of the clocks that results carry."""
    path = results / "timings.csv"
    if path.is_file():
        return read_table(path, ("step", "seconds"))[["step", "seconds"]]
    rows = []
    for history in sorted(results.glob("checkpoints/**/*.history.csv")):
        table = read_table(history)
        if "elapsed_s" in table:
            rows.append((history.name.removesuffix(".history.csv"), table.elapsed_s.iloc[-1]))
    for path in sorted(results.glob("classifier*/**/summary.json")):
        rows.append((f"classifier {path.parent.name}", read_json(path).get("elapsed_s")))
    return pd.DataFrame(rows, columns=["step", "seconds"])


def _checked(path: Path, keys: tuple[str, ...]) -> dict[str, Any]:
    content = read_json(path)
    for key in keys:
        if not isinstance(content, dict) or key not in content:
            raise UserError(f"{path}: no key {key!r}; not a result that figures.py knows")
    return content
