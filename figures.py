"""Figures and tables of finished runs, and one report page.

Reproduces: RNA-GAN (doi 10.1016/j.crmeth.2023.100534), the figures on betaVAE, tiles, FID and toy
            classifier, from results on disk only.
Reads:  what it finds below --results: checkpoints/, images/ (or gan_generated_images/),
        expression/, fid/ (or fid_results/), copying/, conditioning/, classifier/ (or
        classifier_results/), generated/, quiz/ (or quiz_results/), timings.csv (columns step,
        seconds).
Writes: <output>/index.html (its pictures are inside; opens without a server; lists what is missing)
        and for each figure <output>/figures/<name>.png, .pdf and .csv (the numbers).

    python3 figures.py --all
    python3 figures.py --results demo --output demo/report --all
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path

from tqdm import tqdm

from report import classifier, dose, expression, feature_map, quality, scores, study, tiles
from report.page import Entry, page_html
from report.style import DPI, Drawn, MissingResult, look
from runtime.dry_run import add_dry_run, dry_run_lines, scratch_trial
from runtime.errors import UserError, run_script
from runtime.files import atomic_path, require_folder, write_csv, write_text
from runtime.run import log, start_log
from runtime.versions import versions

TITLE = "RNA-GAN: report of a run"
# Name of each figure, section of the page, and the function that draws it from the results folder.
FIGURES: dict[str, tuple[str, Callable[[Path], Drawn]]] = {
    "generated_sources": ("Tiles", tiles.draw_sources),
    "generated_grids": ("Tiles", tiles.draw_grids),
    "generated_series": ("Tiles", tiles.draw_series),
    "gan_epochs": ("Tiles", tiles.draw_epochs),
    "gan_history": ("Tiles", tiles.draw_history),
    "gan_quality": ("Evaluation", quality.draw_quality),
    "fid": ("Evaluation", scores.draw_fid),
    "feature_map": ("Evaluation", feature_map.draw_feature_map),
    "nearest_training": ("Evaluation", quality.draw_nearest),
    "conditioning": ("Evaluation", scores.draw_conditioning),
    "dose_response": ("Evaluation", dose.draw_dose_response),
    "classifier": ("Evaluation", classifier.draw_classifier),
    "reader_study": ("Evaluation", study.draw_study),
    "betavae_history": ("Gene expression", expression.draw_history),
    "betavae_latents": ("Gene expression", expression.draw_latents),
    "betavae_reconstruction": ("Gene expression", expression.draw_reconstruction),
    "betavae_evidence": ("Gene expression", expression.draw_evidence),
    "betavae_profiles": ("Gene expression", expression.draw_profiles),
    "betavae_shift": ("Gene expression", expression.draw_shift),
}
SIMULATED = (
    "The slides and profiles of this run are simulated (simulate_cohort.py): they show that the"
    " chain runs and whether tiles follow the profile; they say nothing about real tissue."
)


def build_parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--results", type=Path, default=Path("."), help="default: this folder")
    parser.add_argument("--output", type=Path, help="default: <results>/report")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--all", action="store_true", help="every figure and the page (default)")
    which.add_argument(
        "--figure", nargs="+", choices=FIGURES, metavar="NAME", help="only these, without the page"
    )
    parser.epilog = f"figures: {', '.join(FIGURES)}"
    add_dry_run(parser)
    return parser


def save(drawn: Drawn, folder: Path, name: str) -> list[Path]:
    """Write a figure as PNG and PDF and its numbers as CSV; return the three files."""
    paths = [folder / f"{name}.{kind}" for kind in ("png", "pdf", "csv")]
    for path in paths[:2]:
        # Without dates, the same results give the same bytes.
        metadata = {"CreationDate": None} if path.suffix == ".pdf" else {"Software": None}
        with atomic_path(path) as temporary:
            drawn.figure.savefig(temporary, dpi=DPI, metadata=metadata)
    write_csv(paths[2], drawn.numbers)
    return paths


def make_report(results: Path, output: Path, names: list[str] | None) -> list[str]:
    """Write the named figures, or all and the page; return the names of those drawn.

    Raises:
        UserError: none of the results is there.
    """
    # Figures
    entries = []
    with look():
        for name in tqdm(names or FIGURES, desc="figures", unit="figure"):
            section, draw = FIGURES[name]
            try:
                figure = draw(results)
            except MissingResult as missing:
                entries.append(Entry(name, section, None, str(missing), None, []))
                continue
            paths = save(figure, output / "figures", name)
            links = [path.relative_to(output).as_posix() for path in paths]
            entries.append(Entry(name, section, figure, "", paths[0], links))
    present = [entry for entry in entries if entry.drawn]
    for entry in entries:
        if not entry.drawn:
            log.info("%s is left out: %s", entry.name, entry.missing)
    if not present:
        raise UserError(f"{results}: none of the results that the figures need is there")

    drawn = [entry.name for entry in present]
    if names:
        return drawn

    # Page
    now = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    found = versions()
    facts = (
        f"Results: {results}. Drawn {now}; Python {found['python']}, torch {found['torch']},"
        f" NumPy {found['numpy']}."
    )
    note = SIMULATED if (results / "cohort" / "truth.csv").is_file() else ""
    write_text(
        output / "index.html", page_html(TITLE, facts, note, entries, scores.run_times(results))
    )
    return drawn


def main(argv: list[str] | None = None) -> None:
    """Draw the figures that the command line asks for and write the page."""
    # Arguments
    args = build_parser().parse_args(argv)
    start_log()
    logging.getLogger("fontTools").setLevel(logging.WARNING)
    results = require_folder(args.results, "results folder")
    output = args.output or results / "report"
    drawn: list[str] = []

    def draw(folder: Path) -> int:
        drawn.extend(make_report(results, folder, args.figure))
        return 1

    # Figures and page; a dry run draws them elsewhere
    if args.dry_run:
        seconds, size = scratch_trial(draw)
        facts = {"figures": f"{len(drawn)} of {len(args.figure or FIGURES)}"}
        print("\n".join(dry_run_lines(output, facts, seconds, int(size))))
        return
    draw(output)

    # Results
    if args.figure:
        for name in drawn:
            print(output / "figures" / f"{name}.png")
    else:
        print(f"{output / 'index.html'}: {len(drawn)} of {len(FIGURES)} figures")


if __name__ == "__main__":
    run_script(main)
