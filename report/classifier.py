"""Figure of the tile classifiers: scores of every arm with intervals, confusion, differences."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from report.style import MARKERS, SEQUENTIAL, WIDTH_IN, Drawn, MissingResult, read_table
from runtime.errors import UserError
from runtime.files import read_json

SCORE_NAMES = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "f1_macro": "F1 (macro)",
    "auc_ovr": "AUC",
}
ARMS = ("real", "generated", "both", "pretrain")  # of wsi_model.py, in the order they are shown
KEYS = ("scores", "network", "folds", "images")


def draw_classifier(results: Path) -> Drawn:
    """Return scores with intervals of every tile classifier, and its confusion counts."""
    paths = sorted(results.glob("classifier*/**/summary.json"), key=_place)
    if not paths:
        raise MissingResult("no classifier/<name>/summary.json: run wsi_model.py")
    rows, table, facts = [], [], set()
    for path in paths:
        summary, name = _checked(path), _name(path)
        for key, label in SCORE_NAMES.items():
            if score := summary["scores"].get(key):
                low, high = score.get("interval") or (np.nan, np.nan)
                row = {"classifier": name, "score": label, "mean": score["mean"]}
                rows.append(row | {"sd": score["sd"], "low": low, "high": high})
        table.append(_table_row(path, name, summary))
        facts.add(
            f"{summary['network']}"
            f" ({summary['weights'] or 'random start'}{', frozen' if summary['freeze'] else ''}),"
            f" {summary['image_px']} px, {summary['folds']} folds, {summary['num_epochs']} epochs,"
            f" seed {summary['seed']}"
        )
    numbers = pd.DataFrame(rows, columns=["classifier", "score", "mean", "sd", "low", "high"])
    figure = _figure(numbers, {_name(path): read_json(path) for path in paths})
    caption = (
        "Classifiers of tile labels, all tested on real tiles unless the table says otherwise:"
        " mean over folds, bars are 95 % bootstrap intervals over patients (original images) where"
        " the list tells them, else over images; in the table ± is the standard deviation over"
        " folds. Below, the images of each true class (rows) called each class (columns)."
        f" The same network, start and training in every row: {'; '.join(sorted(facts))}."
    )
    headline = "Tile classifier, accuracy: " + ", ".join(
        f"{row['classifier']} {row['accuracy']}" for row in table
    )
    return Drawn("Tile classifier", caption, figure, numbers, headline, pd.DataFrame(table))


def _place(path: Path) -> tuple:
    arm = path.parent.name
    return (path.parent.parent, ARMS.index(arm) if arm in ARMS else -1, arm)


def _name(path: Path) -> str:
    """Return the arm's name, with its run's where that holds several."""
    parent = path.parent.parent
    return (
        path.parent.name
        if parent.name.startswith("classifier")
        else (f"{parent.name}: {path.parent.name}")
    )


def _table_row(path: Path, name: str, summary: dict[str, Any]) -> dict[str, Any]:
    split = f"grouped by {summary['grouped_by']}" if summary["grouped_by"] else "by image"
    row = {"classifier": name, "images": summary["images"]}
    if summary.get("generated_images"):
        row["generated"] = summary["generated_images"]
    row |= {"tested on": Path(summary["test_list"]).stem, "folds": split}
    for key, label in SCORE_NAMES.items():
        score = summary["scores"].get(key)
        row[label] = f"{score['mean']:.3f} ± {score['sd']:.3f}" if score else "undefined"
    arms = path.parent.parent / "arms.csv"
    if arms.is_file():
        frame = read_table(arms, ("arm", "score"))
        own = frame[(frame.arm == path.parent.name) & (frame.score == "accuracy")]
        if "minus_real" in frame and len(own) and own.minus_real.notna().all():
            one = own.iloc[0]
            ends = f"({one.minus_real_low:+.3f}, {one.minus_real_high:+.3f})"
            row["accuracy minus real"] = f"{one.minus_real:+.3f} {ends}"
        else:
            row["accuracy minus real"] = ""
    return row


def _figure(numbers: pd.DataFrame, summaries: dict[str, dict[str, Any]]) -> Figure:
    shown = {name: one for name, one in summaries.items() if one.get("confusion")}
    columns = max(len(shown), 1)
    side = min(WIDTH_IN / columns, 1.9)
    figure = Figure(figsize=(WIDTH_IN, 2.4 + (side + 0.5 if shown else 0)), layout="constrained")
    parts = figure.subfigures(2, 1, height_ratios=[2.4, side + 0.5]) if shown else [figure]
    _draw_scores(parts[0].subplots(), numbers)
    if shown:
        axes = parts[1].subplots(1, max(columns, 2), squeeze=False)[0]
        for axis in axes[columns:]:
            axis.set_visible(False)
        for axis, (name, summary) in zip(axes, shown.items(), strict=False):
            _draw_confusion(axis, name, summary)
    return figure


def _draw_scores(axis: Axes, numbers: pd.DataFrame) -> None:
    labels = [label for label in SCORE_NAMES.values() if label in set(numbers.score)]
    names = list(dict.fromkeys(numbers.classifier))
    step = min(0.18, 0.8 / len(names))
    for number, name in enumerate(names):
        part = numbers[numbers.classifier == name].set_index("score").reindex(labels)
        place = np.arange(len(labels)) + (number - (len(names) - 1) / 2) * step
        low = part.low.fillna(part["mean"] - part.sd)
        high = part.high.fillna(part["mean"] + part.sd)
        reach = np.clip([part["mean"] - low, high - part["mean"]], 0, None)
        marker = MARKERS[number % len(MARKERS)]
        axis.errorbar(place, part["mean"], reach, fmt=marker, capsize=3, label=name)
    axis.set_xticks(np.arange(len(labels)), labels)
    axis.set(ylabel="score", ylim=(None, 1.02))
    axis.legend(loc="upper left", bbox_to_anchor=(1, 1))


def _draw_confusion(axis: Axes, name: str, summary: dict[str, Any]) -> None:
    counts = np.array(summary["confusion"])
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axis.imshow(shares, cmap=SEQUENTIAL, vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(counts):
        colour = "white" if shares[row, column] < 0.5 else "black"
        axis.text(column, row, str(count), ha="center", va="center", color=colour, fontsize=7)
    classes = summary["classes"]
    axis.set_xticks(range(len(classes)), classes, fontsize=6.5)
    axis.set_yticks(range(len(classes)), classes, fontsize=6.5, rotation=90, va="center")
    axis.spines[:].set_visible(False)
    axis.tick_params(length=0)
    axis.set_title(name, fontsize=7.5)


def _checked(path: Path) -> dict[str, Any]:
    content = read_json(path)
    for key in KEYS:
        if not isinstance(content, dict) or key not in content:
            raise UserError(f"{path}: no key {key!r}; not a result that figures.py knows")
    return content
