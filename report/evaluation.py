"""Results of fid.py as lines of text, as a table in every form, and as sheets of tiles."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from report.scores import fid_matrix
from report.style import DPI, look, picture_panels
from runtime.files import atomic_path, write_csv, write_json, write_text

SHEET_COLUMNS = 8
COVERAGE = ("precision", "recall", "density", "coverage")


def result_lines(result: dict[str, Any]) -> list[str]:
    """Return a result as lines: draws, mean and deviation first, then what stands beside them."""
    fid, floor, network = result["fid"], result["real_real_floor"], result["network"]
    counts = " against ".join(str(count) for count in result["tiles"])
    lines = [
        " - ".join(side["label"] for side in result["sets"]),
        str([round(value, 4) for value in fid["draws"]]),
        f"FID: {_mean_sd(fid)} ({len(fid['draws'])} draws of {counts} tiles)",
    ]
    if "bootstrap" in fid:
        interval = fid["bootstrap"]
        line = f"FID of one draw, 95 % interval: {interval['low']:.2f} to {interval['high']:.2f}"
        if fid["infinity"]:
            line += f"; extrapolated to endless sets: {fid['infinity']['value']:.2f}"
        lines.append(line)
    lines.append(f"KID x 1000: {_mean_sd(result['kid'], 1000)}")
    if result["precision"]:
        lines.append(", ".join(f"{name} {result[name]['mean']:.3f}" for name in COVERAGE))
    lines += [
        f"class {name} ({' against '.join(map(str, part['tiles']))} tiles): FID"
        f" {_mean_sd(part['fid'])}"
        for name, part in result.get("classes", {}).items()
    ]
    if floor:
        counts = " against ".join(str(count) for count in floor["tiles"])
        lines.append(
            f"real against real, disjoint donors of {floor['tissue']} ({counts} tiles):"
            f" FID {_mean_sd(floor['fid'])}; KID x 1000 {_mean_sd(floor['kid'], 1000)}"
        )
    lines += _lines_over_runs(result) + _lines_of_model(result)
    precision = f", {network['precision']}" if "precision" in network else ""
    lines.append(
        f"features: {network['network']}, weights {network['file']}"
        f" ({network['weights_sha256'][:12]}), {network['px']} px {network['resize']}{precision}"
    )
    return lines + [f"note: {note}" for note in result["notes"]]


def _lines_over_runs(result: dict[str, Any]) -> list[str]:
    lines = []
    for name, part in result.get("over_runs", {}).items():
        if part["interval"]:
            low, high = part["interval"]
            lines.append(
                f"{name} over {len(part['draws'])} seeds and trainings: mean {part['mean']:.4g},"
                f" 95 % interval {low:.4g} to {high:.4g}"
            )
    against = result.get("against", {})
    for name, part in against.items():
        if isinstance(part, dict):
            low, high = part["interval"]
            verdict = "larger than" if part["larger_than_noise"] else "within"
            others = ", ".join(against["checkpoints"])
            lines.append(
                f"{name} minus that of {others}: {part['difference']:.4g}"
                f" (95 % interval {low:.4g} to {high:.4g}): {verdict} the noise of"
                f" {against['noise']}"
            )
    return lines


def _lines_of_model(result: dict[str, Any]) -> list[str]:
    lines = []
    if copying := result.get("copying"):
        low, high = copying["interval"]
        lines.append(
            f"copying: {copying['closer_to_training']:.3f} of the tiles are closer to a training"
            f" tile than to a held-out one (95 % interval {low:.3f} to {high:.3f}, 0.5 without"
            f" copying; {copying['tiles']} tiles a side); closest pairs: {copying['sheet']}"
        )
    if recovery := result.get("expression_recovery"):
        for name, part in recovery["conditions"].items():
            value = "no gene varies"
            if part["interval"]:
                low, high = part["interval"]
                value = f"{part['median_r']:.3f} (95 % interval {low:.3f} to {high:.3f})"
            lines.append(
                f"expression read from {name} tiles, median r of {recovery['genes']} genes over"
                f" {recovery['held_out_slides']} held-out slides: {value}"
            )
    return lines


def table_frame(results: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """Return one row per pair, all numbers of it; NaN where there is none."""
    rows = []
    for result in results:
        row: dict[str, Any] = {
            "set_1": result["sets"][0]["label"],
            "set_2": result["sets"][1]["label"],
            "tiles_1": result["tiles"][0],
            "tiles_2": result["tiles"][1],
        }
        fid = result["fid"]
        low, high = (fid.get("bootstrap", {}).get(end, np.nan) for end in ("low", "high"))
        row |= {"fid": fid["mean"], "fid_sd": fid["sd"], "fid_low": low, "fid_high": high}
        row["fid_infinity"] = (fid.get("infinity") or {}).get("value", np.nan)
        row |= {"kid": result["kid"]["mean"], "kid_sd": result["kid"]["sd"]}
        row |= {name: result[name]["mean"] if result[name] else np.nan for name in COVERAGE}
        floor = result["real_real_floor"]
        row["floor_fid"] = floor["fid"]["mean"] if floor else np.nan
        row["floor_kid"] = floor["kid"]["mean"] if floor else np.nan
        network = result["network"]
        row |= {"network": network["network"], "weights_sha256": network["weights_sha256"]}
        rows.append(row)
    return pd.DataFrame(rows)


def save_table(results: Sequence[dict[str, Any]], folder: Path) -> list[str]:
    """Write table.csv, .json, .md and .png (heat map) to a folder; return the table as lines."""
    frame = table_frame(results)
    write_csv(folder / "table.csv", frame)
    rows = frame.astype(object).where(frame.notna(), None).to_dict("records")
    notes = list(dict.fromkeys(note for result in results for note in result["notes"]))
    write_json(folder / "table.json", {"pairs": rows, "notes": notes})
    lines = _markdown(frame)
    write_text(folder / "table.md", "\n".join([*lines, "", *(f"- {n}" for n in notes)]) + "\n")
    with look():
        drawn = fid_matrix(results)
        with atomic_path(folder / "table.png") as temporary:
            drawn.figure.savefig(temporary, dpi=DPI, metadata={"Software": None})
    return [*lines, *(f"note: {note}" for note in notes), str(folder / "table.md")]


def closest_pairs(pictures: Sequence[Sequence[np.ndarray]], distances: Sequence[float]) -> Figure:
    """Return a sheet with generated tiles above their nearest training tiles.

    Args:
        pictures: pairs of tiles uint8 (H, W, 3), generated and training.
        distances: of each pair, in feature units.
    """
    # Empty places keep the tiles of a short list as small as those of a full one.
    missing = max(0, SHEET_COLUMNS - len(pictures))
    rows = [[pair[side] for pair in pictures] + [None] * missing for side in (0, 1)]
    titles = [f"{distance:.2f}" for distance in distances] + [""] * missing
    return picture_panels(rows, ["generated", "nearest training"], [titles, [""] * len(titles)])


def _markdown(frame: pd.DataFrame) -> list[str]:
    shown = {
        "set 1": frame.set_1,
        "set 2": frame.set_2,
        "N": [f"{a} / {b}" for a, b in zip(frame.tiles_1, frame.tiles_2, strict=True)],
        "FID": [_plus_minus(*pair) for pair in zip(frame.fid, frame.fid_sd, strict=True)],
        "FID-infinity": frame.fid_infinity.map(_short),
        "KID x 1000": (1000 * frame.kid).map(_short),
        **{name: frame[name].map(lambda value: _short(value, 3)) for name in COVERAGE},
        "floor FID": frame.floor_fid.map(_short),
    }
    columns = list(zip(*shown.values(), strict=True))
    lines = [" | ".join(shown), " | ".join("---" for _ in shown)]
    lines += [" | ".join(map(str, row)) for row in columns]
    return [f"| {line} |" for line in lines]


def _mean_sd(part: dict[str, Any], factor: float = 1.0) -> str:
    sd = "not known" if part["sd"] is None else f"{factor * part['sd']:.4f}"
    return f"mean {factor * part['mean']:.4f}, standard deviation {sd}"


def _plus_minus(mean: float, sd: float | None) -> str:
    return f"{mean:.1f}" if sd is None or np.isnan(sd) else f"{mean:.1f} ± {sd:.1f}"


def _short(value: float, digits: int = 1) -> str:
    return "" if np.isnan(value) else f"{value:.{digits}f}"


def conditioning_lines(content: dict[str, Any]) -> list[str]:
    """Return what `metrics.conditioning.measure_conditioning` found, a line each."""
    lines = [
        f"{factor}: " + ", ".join(f"{name} {value}" for name, value in values.items())
        for factor, values in content["factors"].items()
    ]
    for name, value in content["mean"].items():
        if value["r"] is not None:
            interval = f"{value['low']:.3f} to {value['high']:.3f}"
            lines.append(f"mean {name} {value['r']:.3f} ({interval})")
    for name, value in content["dose_response"].items():
        kind = "monotone" if value["monotone"] else "not monotone"
        own, others = value["slope"][name], value["others"]
        lines.append(f"dose of {name}: {kind}, slope {own}, other factors at most {others}")
    changes = content["profile_change"], content["noise_change"]
    lines.append("profile swapped: {:.2f} of 255; noise swapped: {:.2f} of 255".format(*changes))
    return lines
