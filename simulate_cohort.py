"""Simulate a small cohort: H&E slides, matched expression counts, and the known truth behind both.

Two tissues, lung and brain, of the same donors. Four factors per donor and tissue (nuclear density,
nuclear diameter, stain ratio, airspace fraction) drive both the slide and one gene set each of the
profile, so that every later stage can be measured against what was put in. No figure of the
publication is reproduced; the files have the layout of the downloads that it starts from.

Input: nothing. Output, below --output:
    slides/<tissue>/SIM-0001-0625.svs       Aperio pyramids of the first --donors donors
    expression/<tissue>_counts.csv.gz       genes in rows; all --profiles donors
    annotations.tsv                         SUBJID, SEX (1 male, 2 female)
    truth.csv, programs.csv                 factors of each donor and tissue; gene sets and weights
    external_<tissue>_counts.csv.gz         outsiders, samples in rows; truth_external.csv
    simulation.json                         the parameters; the same command again repeats nothing

    python3 simulate_cohort.py --output demo/cohort
    python3 simulate_cohort.py --output tiny --donors 2 --profiles 8 --genes 200 --slide_px 768
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from multiprocessing import get_all_start_methods, get_context
from multiprocessing.context import BaseContext
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from data.aperio import write_aperio
from data.synthetic_canvas import DRAW_MPP, draw_pen, enlarge_scan, random_staining
from data.synthetic_expression import MAX_GENES, MIN_GENES, GenePrograms, make_programs
from data.synthetic_tables import write_csv, write_expression, write_external
from data.synthetic_tissue import TissueFactors, draw_section
from data.synthetic_truth import FACTORS, make_truth
from runtime.dry_run import add_dry_run, dry_run_lines, scratch_trial
from runtime.errors import UserError, run_script
from runtime.files import read_json, write_json
from runtime.run import log, start_log
from runtime.seeds import numpy_generator

FORMAT = "simulated-cohort/1"
SLIDE_GRID_PX = 256
TRIAL_PROFILES = 20


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of this script's options."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--output", type=Path, required=True, help="folder of the cohort")
    parser.add_argument("--seed", type=int, default=99)
    size = parser.add_argument_group("size")
    size.add_argument("--donors", type=int, default=96, help="donors with slides (default 96)")
    size.add_argument(
        "--profiles", type=int, default=400, help="profiles per tissue, >= donors (default 400)"
    )
    size.add_argument(
        "--genes", type=int, default=2000, help=f"{MIN_GENES} to {MAX_GENES} (default 2000)"
    )
    size.add_argument(
        "--slide_px",
        type=int,
        default=1024,
        help="side of a slide at 0.5 um per pixel, a multiple of 256 (default 1024)",
    )
    run = parser.add_argument_group("run")
    run.add_argument(
        "--workers", type=int, default=2, help="processes that draw slides (default 2)"
    )
    add_dry_run(parser)
    return parser


def check_arguments(arguments: argparse.Namespace) -> None:
    """Raise a UserError that names the first option out of range."""
    slide_px = arguments.slide_px
    rules = (
        ("donors", arguments.donors >= 1, "1 or more"),
        (
            "profiles",
            arguments.profiles >= arguments.donors,
            f"--donors ({arguments.donors}) or more",
        ),
        ("genes", MIN_GENES <= arguments.genes <= MAX_GENES, f"{MIN_GENES} to {MAX_GENES}"),
        (
            "slide_px",
            512 <= slide_px <= 8192 and slide_px % SLIDE_GRID_PX == 0,
            "512 to 8192, a multiple of 256",
        ),
        ("workers", arguments.workers >= 1, "1 or more"),
        ("seed", arguments.seed >= 0, "0 or more"),
    )
    for name, right, allowed in rules:
        if not right:
            raise UserError(f"--{name} {getattr(arguments, name)}: must be {allowed}")


def claim_folder(output: Path, parameters: dict, write: bool) -> None:
    """Write the parameters into a new folder, or check that an old one was made with the same."""
    record = output / "simulation.json"
    if record.is_file():
        found = read_json(record)
        for key, value in parameters.items():
            if not isinstance(found, dict) or found.get(key) != value:
                there = found.get(key) if isinstance(found, dict) else None
                raise UserError(
                    f"{record}: made with {key} {there}, now {value}; choose another --output"
                )
    elif output.is_file() or (output.is_dir() and any(output.iterdir())):
        raise UserError(f"{output}: not empty and not a simulated cohort; choose another --output")
    elif write:
        write_json(record, parameters)


# Slides


@dataclass(frozen=True)
class SlideTask:
    """One slide to draw; everything random follows from seed, donor and tissue."""

    path: Path
    seed: int
    donor: str
    tissue: str
    factors: TissueFactors
    size_px: int
    has_pen: bool
    has_fold: bool
    magnification: int


def draw_slide(task: SlideTask) -> str:
    """Draw and write one slide; return its name."""
    staining = random_staining(numpy_generator(task.seed, "staining", task.donor))
    rng = numpy_generator(task.seed, "slide", task.donor, task.tissue)
    picture = draw_section(
        task.tissue, task.factors, staining, task.size_px, rng, fold=task.has_fold
    )
    if task.has_pen:
        picture = draw_pen(picture, rng)
    mpp = DRAW_MPP
    if task.magnification == 40:
        picture, mpp = enlarge_scan(picture, rng), DRAW_MPP / 2
    write_aperio(task.path, picture, mpp, task.magnification)
    return task.path.name


def slide_tasks(output: Path, truth: pd.DataFrame, parameters: dict) -> list[SlideTask]:
    """Return the slides that are not there yet, the large ones first."""
    tasks = [
        SlideTask(
            output / "slides" / row.tissue / row.slide,
            parameters["seed"],
            row.donor,
            row.tissue,
            TissueFactors(*(getattr(row, name) for name in FACTORS)),
            parameters["slide_px"],
            bool(row.has_pen),
            bool(row.has_fold),
            int(row.scan_magnification),
        )
        for row in truth.itertuples()
        if row.slide
    ]
    missing = [task for task in tasks if not task.path.is_file()]
    return sorted(missing, key=lambda task: -task.magnification)


def _process_context() -> BaseContext:
    """Return how workers start: where possible from a server that has pandas loaded once."""
    if "forkserver" not in get_all_start_methods():
        return get_context("spawn")
    context = get_context("forkserver")
    context.set_forkserver_preload(["pandas", "scipy.spatial"])
    return context


def draw_all(tasks: list[SlideTask], workers: int) -> Iterator[str]:
    """Yield the name of each slide once it is written."""
    if workers == 1:
        yield from map(draw_slide, tasks)
        return
    with ProcessPoolExecutor(workers, mp_context=_process_context()) as pool:
        try:
            for future in as_completed([pool.submit(draw_slide, task) for task in tasks]):
                yield future.result()
        except BrokenProcessPool as error:
            raise UserError(
                "a drawing process was ended (out of memory?); repeat the command with --workers 1"
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def dry_run(
    arguments: argparse.Namespace, truth: pd.DataFrame, programs: GenePrograms, parameters: dict
) -> list[str]:
    """Return what the cohort would need, from few profiles and a slide of each magnification."""
    output, seed = arguments.output, arguments.seed
    seconds = disk = 0.0

    def write_profiles(folder: Path) -> int:
        few = truth.groupby("tissue", sort=False).head(TRIAL_PROFILES)
        write_expression(folder, few, programs, seed)
        return few.donor.nunique()

    def write_rest(folder: Path) -> int:
        write_external(folder, programs, seed)
        write_csv(folder / "programs.csv", programs.table())
        write_csv(folder / "truth.csv", truth)
        return 1

    if not (output / "truth.csv").is_file():
        for count, work in ((arguments.profiles, write_profiles), (1, write_rest)):
            each, size = scratch_trial(work)
            seconds, disk = seconds + count * each, disk + count * size
    tasks = slide_tasks(output, truth, parameters)
    workers = min(arguments.workers, os.cpu_count() or 1, max(1, len(tasks)))
    for task in {task.magnification: task for task in tasks}.values():
        count = sum(other.magnification == task.magnification for other in tasks)
        each, size = scratch_trial(
            lambda folder, task=task: bool(draw_slide(replace(task, path=folder / task.path.name)))
        )
        seconds, disk = seconds + count * each / workers, disk + count * size
    facts = {"profiles": f"{arguments.profiles} per tissue", "genes": arguments.genes}
    facts |= {"slides": f"{len(tasks)} to draw by {workers} process(es)"}
    return dry_run_lines(output, facts, seconds, int(disk))


def main(argv: list[str] | None = None) -> int | None:
    """Run the script; return the exit code."""
    # arguments
    arguments = build_parser().parse_args(argv)
    check_arguments(arguments)
    start_log()
    output = arguments.output
    parameters = {
        "format": FORMAT,
        **{
            key: getattr(arguments, key)
            for key in ("seed", "donors", "profiles", "genes", "slide_px")
        },
    }
    claim_folder(output, parameters, not arguments.dry_run)

    # truth and expression; the truth is written last: where it is, all tables are
    programs = make_programs(arguments.genes, numpy_generator(arguments.seed, "programs"))
    truth = make_truth(arguments.donors, arguments.profiles, arguments.seed)
    if arguments.dry_run:
        print("\n".join(dry_run(arguments, truth, programs, parameters)))
        return 0
    if not (output / "truth.csv").is_file():
        log.info("%d profiles x %d genes x 2 tissues", arguments.profiles, arguments.genes)
        write_expression(output, truth, programs, arguments.seed)
        write_external(output, programs, arguments.seed)
        write_csv(output / "programs.csv", programs.table())
        write_csv(output / "truth.csv", truth)

    # slides; a killed run may have left pieces of some
    for piece in (output / "slides").glob("*/.*.part.svs"):
        piece.unlink()
    tasks = slide_tasks(output, truth, parameters)
    names = draw_all(tasks, min(arguments.workers, max(1, len(tasks))))
    for _ in tqdm(names, total=len(tasks), desc="slides", disable=not tasks):
        pass
    log.info("%s: %d slides drawn, %d profiles per tissue", output, len(tasks), arguments.profiles)
    return 0


if __name__ == "__main__":
    run_script(main)
