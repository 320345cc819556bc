"""Dose response: how tiles change when the genes of one morphology program are moved."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from report.style import COLOURS, LINES, Drawn, MissingResult, panels
from runtime.files import read_json


def draw_dose_response(results: Path) -> Drawn:
    """Return each factor of the tiles against the dose of each gene program, a row per model."""
    found = {path.stem: read_json(path) for path in sorted(results.glob("conditioning/*.json"))}
    found = {name: content for name, content in found.items() if content.get("dose_response")}
    if not found:
        raise MissingResult("no dose response: run measure_conditioning.py with --programs")
    programs = list(next(iter(found.values()))["dose_response"])
    figure, axes = panels(len(found), len(programs), 1.7 * len(found) + 0.4)
    rows, monotone = [], 0
    for row, (model, content) in zip(axes, found.items(), strict=True):
        for axis, program in zip(row, programs, strict=True):
            response = content["dose_response"][program]
            monotone += response["monotone"]
            for number, (factor, change) in enumerate(response["change"].items()):
                own = factor == program
                values = np.array(change, float) - float(change[len(change) // 2] or 0)
                axis.plot(
                    response["doses"], values, LINES[number], color=COLOURS[number],
                    linewidth=2.2 if own else 0.9, label=factor.replace("_", " "),
                )  # fmt: skip
                rows += [
                    {"model": model, "program": program, "factor": factor, "dose": dose}
                    | {"change_sd": value}
                    for dose, value in zip(response["doses"], values, strict=True)
                ]
            axis.axhline(0, color="black", linewidth=0.4)
            axis.set_title(program.replace("_um", "").replace("_", " "))
            axis.set_ylim(-4, 4)
        row[0].set_ylabel(f"{model}\nchange of tiles, sd of donors")
    for axis in axes[-1]:
        axis.set_xlabel("dose of program, sd")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), ncols=4, loc="outside upper center")
    caption = (
        "The genes of one morphology program are moved by -2 to +2 standard deviations, other genes"
        " and the noise kept; what the tiles show changes in the same units. Thick: the factor that"
        f" the program drives; it rises with every step for {monotone} of"
        f" {len(found) * len(programs)} programs."
    )
    headline = f"Dose response: {monotone} of {len(found) * len(programs)} programs monotone"
    return Drawn("Dose response of gene programs", caption, figure, pd.DataFrame(rows), headline)
