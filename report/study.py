"""Figure of the reader study: ROC curves, and how often each source was called real."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from report.style import COLOURS, LINES, MARKERS, Drawn, MissingResult, panels
from runtime.errors import UserError
from runtime.files import read_json

KEYS = ("title", "answers", "readers", "pooled", "mean_reader", "cells", "agreement")
NAMES = {"real": "real", "gan": "GAN", "rna-gan": "RNA-GAN"}


def draw_study(results: Path) -> Drawn:
    """Return the ROC curves of the readers and the share called real by source and tissue."""
    paths = sorted(results.glob("quiz*/study.json"))
    if not paths:
        raise MissingResult("no quiz/study.json: run web_quiz.py --export")
    study = read_json(paths[0])
    lacking = [key for key in KEYS if key not in study]
    if lacking:
        raise UserError(f"{paths[0]}: no {lacking[0]!r} (written by web_quiz.py --export)")
    if not study["answers"]:
        raise MissingResult(f"{paths[0]}: no answers yet")
    figure, axes = panels(1, 2, 3.4)
    _draw_curves(axes[0, 0], study)
    _draw_cells(axes[0, 1], study["cells"])
    rows = [{**reader, "reader": reader["name"]} for reader in study["readers"]]
    rows += [{**study["pooled"], "reader": "all answers"}]
    rows += [{**study["mean_reader"], "reader": "mean reader"}]
    numbers = pd.DataFrame(rows)[["reader", "auc", "low", "high", "p", "positives", "negatives"]]
    kappa = study["agreement"]["fleiss_kappa_called_real"]
    agreement = "" if kappa is None else f" Fleiss' kappa of called real: {kappa:.2f}."
    caption = (
        f"{study['title']}: {study['answers']} answers of {len(study['readers'])} readers, each"
        " tile rated from 1 (generated) to 5 (real). Left: ROC curves, real against generated;"
        " the mean reader has the mean confidence of each tile that all have rated. Right: tiles"
        " rated 4 or 5 with exact 95 % intervals, which take answers as independent."
        f" Intervals of the AUC: DeLong.{agreement}"
    )
    mean = study["mean_reader"] if study["mean_reader"]["auc"] is not None else study["pooled"]
    headline = ""
    if mean["auc"] is not None:
        headline = f"Reader study: AUC {mean['auc']:.2f} of telling real from generated tiles"
    return Drawn("Reader study", caption, figure, numbers, headline, numbers)


def _draw_curves(axis: Axes, study: dict) -> None:
    axis.plot([0, 1], [0, 1], color="0.8", linewidth=0.8, linestyle="--")
    for number, reader in enumerate(study["readers"]):
        if reader["roc"]:
            style = LINES[number % len(LINES)]
            label = f"{reader['name']} {reader['auc']:.2f}"
            colour = COLOURS[1 + number % (len(COLOURS) - 2)]
            axis.plot(*np.transpose(reader["roc"]), style, linewidth=0.9, color=colour, label=label)
    for key, name, colour in (("pooled", "all answers", "0.45"), ("mean_reader", "mean", "0")):
        if study[key]["roc"]:
            label = f"{name} {study[key]['auc']:.2f}"
            axis.plot(*np.transpose(study[key]["roc"]), color=colour, linewidth=2, label=label)
    axis.set(xlabel="1 - specificity", ylabel="sensitivity", xlim=(-0.01, 1), ylim=(0, 1.01))
    axis.set_aspect("equal")
    axis.set_title("Real against generated, AUC")
    axis.legend(loc="lower right", fontsize=6.5, frameon=True, framealpha=0.85, edgecolor="none")


def _draw_cells(axis: Axes, cells: list[dict]) -> None:
    tissues = sorted({cell["tissue"] for cell in cells})
    sources = [name for name in NAMES if any(cell["source"] == name for cell in cells)]
    for number, tissue in enumerate(tissues):
        own = {cell["source"]: cell["called_real"] for cell in cells if cell["tissue"] == tissue}
        shown = [source for source in sources if source in own]
        place = [
            sources.index(source) + 0.16 * (number - (len(tissues) - 1) / 2) for source in shown
        ]
        share = np.array([own[source]["share"] for source in shown])
        low = share - [own[source]["low"] for source in shown]
        high = [own[source]["high"] for source in shown] - share
        axis.errorbar(
            place, share, [low, high], fmt=MARKERS[number % len(MARKERS)], capsize=2,
            color=COLOURS[number % len(COLOURS)], label=tissue, markersize=4,
        )  # fmt: skip
    axis.axhline(0.5, color="0.8", linewidth=0.8, linestyle="--")
    axis.set(ylim=(0, 1.02), ylabel="share called real", xlim=(-0.6, len(sources) - 0.4))
    axis.set_xticks(range(len(sources)), [NAMES[source] for source in sources])
    axis.set_title("Called real, by source and tissue")
    axis.legend(frameon=True, framealpha=0.85, edgecolor="none")
