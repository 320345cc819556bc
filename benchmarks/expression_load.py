"""Loading and scaling an expression table against the published procedure: one line a figure.

From a CSV to the scaled float32 matrix, in one process, alternating: ours at the first read
(parsed, checked, kept in binary form) and at later ones (mapped); the peer reads with pandas, takes
each row's values from the frame and the natural logarithm of each non-zero value, and fits
scikit-learn's StandardScaler; "vectorised" is the same with pandas' parser and whole-matrix NumPy.
Memory is that of a process which opens a cohort and takes batches of rows. The GCT file has the
size of GTEx v8 (about 2 GB, written to the temporary folder).

    python3 -m benchmarks.expression_load
    python3 -m benchmarks.expression_load --only load --clock cpu    # on a busy machine
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.preprocessing import StandardScaler

from data.expression import GENE_PREFIX, ExpressionTable, read_cohort, write_expression_table
from data.expression_cache import CACHE_FOLDER
from models.profiles import ExpressionScaler

GENES = 19_198
GTEX_GENES, GTEX_SAMPLES, LUNG_SAMPLES = 56_200, 17_382, 578
PARTS = ("load", "memory", "gct")
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
TAKE_BATCHES = """
import resource, sys
import numpy as np
from data.expression import read_cohort
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
def held():
    fields = dict(line.split(":") for line in open("/proc/self/status"))
    return int(fields["RssAnon"].split()[0]) * 1024
before = held()
table = read_cohort(sys.argv[1:])
order = np.random.default_rng(0).permutation(len(table))
for start in range(0, len(table), 128):
    batch = np.log1p(table.expression[order[start : start + 128]])
print(held() - before, table.expression.shape[0] * table.expression.shape[1] * 4, batch.nbytes)
"""


def report(figure: str, ours: float, peer: float, target: str, **more) -> None:
    """Print one figure; the ratio is the peer's over ours."""
    line = {"figure": figure, "ours": ours, "peer": peer, "ratio": peer / ours, "target": target}
    print(json.dumps(line | more), flush=True)


def timed(work: Callable[[], np.ndarray], clock: str) -> tuple[float, np.ndarray]:
    """Return the seconds that `work` takes, and its result."""
    start = CLOCKS[clock]()
    result = work()
    return CLOCKS[clock]() - start, result


def simulated(samples: int, seed: int) -> ExpressionTable:
    """Return TPM-like values of samples (N, 19,198) with a third of zeros."""
    rng = np.random.default_rng(seed)
    mean = rng.lognormal(1, 2.5, GENES)
    values = np.empty((samples, GENES), np.float32)
    for row in range(samples):
        values[row] = mean * rng.lognormal(0, 0.5, GENES) * (rng.random(GENES) > 0.33)
    values *= 1e6 / values.sum(axis=1, keepdims=True)
    names = [f"SIM-{seed:02d}{row:05d}-0225.svs" for row in range(samples)]
    genes = [f"ENSG{number:011d}.{number % 17 + 1}" for number in range(GENES)]
    return ExpressionTable(names, genes, values, pd.DataFrame({"tissue": ["lung"] * samples}))


def ours(path: Path) -> np.ndarray:
    """Return scaled values (N, G) as the stages make them, with the published logarithm."""
    expression = read_cohort([path]).expression
    return ExpressionScaler.fit(expression, "log_nonzero").transform(expression)


def published(path: Path) -> np.ndarray:
    """Return scaled values (N, G) by the published procedure: frame rows, logarithm by value.

    Source: shared description of the published preprocessing (a row at a time from the frame's
    `rna_` columns; natural logarithm of non-zeros; StandardScaler).
    """
    frame = pd.read_csv(path)
    rows = []
    for number in range(len(frame)):
        row = frame.iloc[number]
        rows.append(row[[name for name in row.index if GENE_PREFIX in name]].values)
    values = pd.DataFrame(np.array(rows, dtype=np.float32))
    logged = values.map(lambda value: math.log(value) if value > 0 else 0.0)
    return StandardScaler().fit_transform(logged).astype(np.float32)


def vectorised(path: Path) -> np.ndarray:
    """Return the same with pandas' parser and operations on the whole matrix."""
    frame = pd.read_csv(path)
    values = frame[[name for name in frame if name.startswith(GENE_PREFIX)]].to_numpy(np.float32)
    logged = np.log(values, out=np.zeros_like(values), where=values > 0)
    return StandardScaler().fit_transform(logged)


def load(folder: Path, samples: int, repeats: int, clock: str) -> None:
    """Report seconds from CSV to scaled matrix, at the first and at later starts."""
    path = folder / "lung.csv"
    write_expression_table(path, simulated(samples, 0))
    seconds: dict[str, list[float]] = {}
    for _ in range(repeats):
        shutil.rmtree(folder / CACHE_FOLDER, ignore_errors=True)
        works = {"first": ours, "second": ours, "published": published, "vectorised": vectorised}
        results = {}
        for name, work in works.items():
            spent, results[name] = timed(lambda work=work: work(path), clock)
            seconds.setdefault(name, []).append(spent)
        for name, result in results.items():
            np.testing.assert_allclose(result, results["first"], atol=2e-3, err_msg=name)
    best = {name: min(values) for name, values in seconds.items()}
    for name, target in (("first", ">= 4"), ("second", ">= 20")):
        figure = f"load and scale {samples} x {GENES} from CSV, {name} start, {clock} s"
        report(figure, best[name], best["published"], target, vectorised_peer=best["vectorised"])


def memory(folder: Path, samples: int) -> None:
    """Report memory of its own that a process takes which trains from a cohort of two tables."""
    paths = []
    for number in range(2):
        paths.append(str(folder / f"part_{number}.csv"))
        write_expression_table(paths[-1], simulated(samples // 2, number))
    for start in ("first", "second"):
        answer = subprocess.run(
            [sys.executable, "-c", TAKE_BATCHES, *paths], capture_output=True, text=True, check=True
        )
        held, size, batch = map(int, answer.stdout.split())
        report(
            f"memory held besides the mapped file, {start} start, {samples} x {GENES}, bytes",
            held, size, ">= 3", batch_bytes=batch,
        )  # fmt: skip


def write_gct(path: Path, names: list[str]) -> None:
    """Write TPM-like values of GTEx's genes; rows repeat, compressed once, under their own ids."""
    rng = np.random.default_rng(0)
    texts = np.array([f"{value:.4g}" for value in rng.lognormal(0, 2, 4096)])
    bodies = ["\t".join(texts[rng.integers(0, 4096, len(names))]) + "\n" for _ in range(64)]
    members = [gzip.compress(body.encode(), 6) for body in bodies]
    header = f"#1.2\n{GTEX_GENES}\t{len(names)}\nName\tDescription\t" + "\t".join(names) + "\n"
    with open(path, "wb") as handle:
        handle.write(gzip.compress(header.encode()))
        for gene in range(GTEX_GENES):
            handle.write(gzip.compress(f"ENSG{gene:011d}.{gene % 9}\tG{gene}\t".encode(), 1))
            handle.write(members[gene % len(members)])


def gct(folder: Path, samples: int) -> None:
    """Report seconds and peak memory of preparing lung out of a GCT file of GTEx's size."""
    names = [f"GTEX-{number:05d}-0226-SM-XXXXX" for number in range(samples)]
    path, attributes = folder / "tpm.gct.gz", folder / "attributes.txt"
    write_gct(path, names)
    draw = np.random.default_rng(0)
    lung = set(draw.choice(samples, min(LUNG_SAMPLES, samples), replace=False).tolist())
    lines = [f"{name}\t{'Lung' if k in lung else 'Liver'}\n" for k, name in enumerate(names)]
    attributes.write_text("SAMPID\tSMTSD\n" + "".join(lines))
    genes = folder / "genes.txt"
    genes.write_text("".join(f"ENSG{gene:011d}\n" for gene in range(0, GTEX_GENES, 3))[:-1])
    options = [
        "--input", str(path), "--attributes", str(attributes), "--tissue", "Lung",
        "--genes", str(genes), "--output", str(folder / "gtex_lung.csv"),
    ]  # fmt: skip
    code = (
        "import resource, sys, prepare_expression\nprepare_expression.main(sys.argv[1:])\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)"
    )
    start = time.perf_counter()
    answer = subprocess.run(
        [sys.executable, "-c", code, *options], capture_output=True, text=True, check=True
    )
    line = {
        "figure": f"prepare lung from {GTEX_GENES} x {samples} .gct.gz, s",
        "ours": time.perf_counter() - start,
        "peak_memory_bytes": int(answer.stdout.split()[-1]),
        "file_bytes": path.stat().st_size,
        "peer": None, "ratio": None, "target": None,
    }  # fmt: skip
    print(json.dumps(line), flush=True)


def main() -> None:
    """Measure the parts asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=PARTS, default=["load", "memory"])
    parser.add_argument("--samples", type=int, default=500, help="of load")
    parser.add_argument("--memory_samples", type=int, default=4000)
    parser.add_argument("--gct_samples", type=int, default=GTEX_SAMPLES)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="of load")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if "load" in arguments.only:
            load(folder, arguments.samples, arguments.repeats, arguments.clock)
        if "memory" in arguments.only:
            memory(folder, arguments.memory_samples)
        if "gct" in arguments.only:
            gct(folder, arguments.gct_samples)


if __name__ == "__main__":
    main()
