"""betaVAE training at full size: time of a step, peak memory, tables larger than memory allows.

Each measurement is a process of its own that runs betaVAE_training.py on a random table. A figure
is {"figure", "ours", "peer", "ratio", "target"}. Parts:

- step: seconds per step, 19198-6000-4000-2048, latent 2048, batch 128; the peer is the same network
  in float32 with torch's default Adam, alternating with ours. Ratio: peer over ours.
- memory: peak of the same runs, checkpoints included, less that after the imports, in GiB; the peer
  is weights + gradients + Adam's two moments + one batch. Ratio: ours over peer.
- table: peak of training a small network on a large mapped table, in GiB; the peer is one float32
  copy of the table. Ratio: ours over peer.

    python3 -m benchmarks.betavae        # all: about 5 minutes, 7 GB of memory, 7 GB of disk
    python3 -m benchmarks.betavae --only step --hidden 600 400 256 --genes 2000     # a try
    python3 -m benchmarks.betavae --only table --samples 20000 --genes 2000
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

import betaVAE_training
from data.expression import ExpressionTable
from models.betavae import BetaVAE, betavae_loss

PARTS = ("step", "memory", "table")
BATCH, SMALL_HIDDEN, SMALL_LATENT = 128, [64, 32], 8
STEPS_PER_EPOCH, EPOCHS = 4, 2
GIB = 2**30


def peak_bytes() -> int:
    """Return the largest resident memory of this process so far, mapped files included.

    Linux only. `getrusage` would not do: its maximum is inherited from the parent process.
    """
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * int(re.search(r"VmHWM:\s+(\d+) kB", status)[1])


def random_table(folder: Path, samples: int, genes: int) -> Path:
    """Write float32 (samples, genes) of exponential draws as .npy, a part at a time."""
    path = folder / f"table_{samples}_{genes}.npy"
    if not path.is_file():
        values = np.lib.format.open_memmap(path, "w+", np.float32, (samples, genes))
        draw = np.random.default_rng(0)
        for first in range(0, samples, BATCH):
            part = values[first : first + BATCH]
            part[:] = 50 * draw.standard_exponential(part.shape, np.float32)
        values.flush()
    return path


def train_ours(folder: Path, job: dict[str, Any]) -> list[float]:
    """Train on the mapped table through the script's `main`; return the seconds of each step."""
    values = np.load(job["table"], mmap_mode="r")
    names = [f"D-{number}" for number in range(len(values))]
    table = ExpressionTable(
        names,
        [f"G{number}" for number in range(values.shape[1])],
        values,
        pd.DataFrame({"tissue": ["lung"] * len(values)}),
    )
    betaVAE_training.read_cohort = lambda paths: table
    read, starts, seconds = betaVAE_training.read_batches, [], []

    def timed(*arguments: Any) -> Iterator[torch.Tensor]:
        starts.clear()
        for batch in read(*arguments):
            starts.append(time.perf_counter())
            yield batch
        if torch.is_grad_enabled():  # not of a validation; the last step ends where this resumes
            ends = [*starts[1:], time.perf_counter()]
            seconds.extend(end - start for start, end in zip(starts, ends, strict=True))

    betaVAE_training.read_batches = timed
    config = {
        "path_csv": ["random.csv"],
        "rna_features": values.shape[1],
        "hidden_dims": job["hidden"],
        "latent_dim": job["latent"],
        "num_epochs": job["epochs"],
        "batch_size": BATCH,
        "save_dir": str(folder / "ours"),
        "split_path": str(folder / "split.csv"),
        "device": job["device"],
    }
    (folder / "config.json").write_text(json.dumps(config))
    betaVAE_training.main(["--config", str(folder / "config.json")])
    return seconds


def train_plainly(job: dict[str, Any]) -> list[float]:
    """Train the same network in float32 with torch's default Adam; return the seconds of each
    step."""
    device = torch.device(job["device"])
    values = np.load(job["table"], mmap_mode="r")
    model = BetaVAE(values.shape[1], job["hidden"], job["latent"]).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-5)
    batch = torch.from_numpy(np.log1p(values[:BATCH])).to(device)
    generator = torch.Generator(device)
    seconds = []
    for _ in range(job["epochs"] * STEPS_PER_EPOCH):
        start = time.perf_counter()
        output = model(batch, model.draw_noise(BATCH, generator))
        optimizer.zero_grad()
        betavae_loss(output, batch).total.backward()
        optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return seconds


def work(job: dict[str, Any]) -> None:
    """Do one measurement in this process and print what was measured."""
    before = peak_bytes()
    with tempfile.TemporaryDirectory(dir=job["scratch"]) as folder:
        seconds = train_plainly(job) if job["plain"] else train_ours(Path(folder), job)
    print(json.dumps({"seconds": seconds, "bytes": peak_bytes() - before}))


def measure(**job: Any) -> dict[str, Any]:
    """Return what a process of its own measured; the last line it prints."""
    command = [sys.executable, "-m", "benchmarks.betavae", "--job", json.dumps(job)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def report(figure: str, ours: float, peer: float, ratio: float, target: str) -> None:
    """Print one figure."""
    values = {"ours": round(ours, 4), "peer": round(peer, 4), "ratio": round(ratio, 3)}
    print(json.dumps({"figure": figure, **values, "target": target}), flush=True)


def step_and_memory(args: argparse.Namespace, folder: Path) -> None:
    """Measure the parts "step" and "memory"."""
    samples = round(STEPS_PER_EPOCH * BATCH / 0.64)
    job = {
        "table": str(random_table(folder, samples, args.genes)),
        "hidden": args.hidden,
        "latent": args.hidden[-1],
        "epochs": EPOCHS,
        "device": args.device,
        "scratch": str(folder),
    }
    runs = {False: [], True: []}
    for _, plain in itertools.product(range(args.rounds), (False, True)):
        if plain and "step" not in args.only:
            continue
        runs[plain].append(measure(plain=plain, **job))
    size = "-".join(str(width) for width in (args.genes, *args.hidden))
    if "step" in args.only:
        # The first epoch warms up: memory is touched for the first time, Adam's state is made.
        ours, peer = (
            statistics.median(t for run in runs[plain] for t in run["seconds"][STEPS_PER_EPOCH:])
            for plain in (False, True)
        )
        report(f"seconds per step, {size}, batch {BATCH}", ours, peer, peer / ours, ">= 2")
    if "memory" in args.only:
        with torch.device("meta"):
            model = BetaVAE(args.genes, args.hidden, args.hidden[-1])
        weights = sum(weight.numel() for weight in model.parameters())
        needed = (16 * weights + 4 * BATCH * args.genes) / GIB
        used = max(run["bytes"] for run in runs[False]) / GIB
        report(f"peak GiB of training, {size}", used, needed, used / needed, "<= 1.15")


def large_table(args: argparse.Namespace, folder: Path) -> None:
    """Measure the part "table"."""
    path = random_table(folder, args.samples, args.genes)
    done = measure(
        table=str(path),
        hidden=SMALL_HIDDEN,
        latent=SMALL_LATENT,
        epochs=1,
        device=args.device,
        scratch=str(folder),
        plain=False,
    )
    used, one_copy = done["bytes"] / GIB, 4 * args.samples * args.genes / GIB
    figure = f"peak GiB of training on {args.samples} x {args.genes}"
    report(figure, used, one_copy, used / one_copy, "< 2: never two copies")
    path.unlink()


def main(argv: list[str] | None = None) -> None:
    """Measure the parts asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--genes", type=int, default=19198)
    parser.add_argument("--hidden", type=int, nargs="+", default=[6000, 4000, 2048])
    parser.add_argument("--samples", type=int, default=20000, help="rows of the large table")
    parser.add_argument("--rounds", type=int, default=2, help="runs of each side of a step")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--scratch", help="folder for tables and checkpoints; a temporary one")
    parser.add_argument("--job", type=json.loads, help="one measurement, for a process of its own")
    args = parser.parse_args(argv)
    if args.job:
        work(args.job)
        return
    with tempfile.TemporaryDirectory(dir=args.scratch) as folder:
        if {"step", "memory"} & set(args.only):
            step_and_memory(args, Path(folder))
        if "table" in args.only:
            large_table(args, Path(folder))


if __name__ == "__main__":
    main()
