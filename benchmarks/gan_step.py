"""A training step at full size against torchgan's train_ops: speed, peak memory, processes.

256 px, batch 8, 111.8 M + 44.7 M parameters. Ours is the script itself, on random tiles; the peer
is the published recipe through torchgan 0.1.0, and for the memory it holds a betaVAE per loss, as
published. Every measurement is a process of its own, peer and ours in turn. One JSON line per
figure. Nothing else should run meanwhile; 16 GB of memory and 8 GB of disk are needed.

    python3 -m benchmarks.gan_step                        # about ten minutes on two cores
    python3 -m benchmarks.gan_step --only speed --rounds 1
    python3 -m benchmarks.gan_step --only speed --device cuda --steps 100 --epochs 11
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from data.expression import ExpressionTable, write_expression_table
from data.tiles import Tile, store_path, write_tile_store
from models.betavae import BetaVAE
from models.profiles import ExpressionScaler
from runtime.checkpoint import save_checkpoint
from runtime.run import log

ROOT = Path(__file__).resolve().parent.parent
PX, BATCH, GENES = 256, 8, 19198
DONORS, SLIDE_TILES = 8, 6
LENGTH = (3, 2)  # steps in an epoch, which are the tiles of each donor, and epochs
PARTS = ("speed", "memory", "processes")
TARGETS = {"bfloat16": 4.0, "float32": 1.8, "memory": 0.4}


def write_cohort(folder: Path, slide_tiles: int = SLIDE_TILES) -> None:
    """Write a table of profiles, tile stores and a donor split with all donors in training."""
    draw = np.random.default_rng(1)
    names = [f"SIM-{donor:04d}-0625.svs" for donor in range(DONORS)]
    genes = [f"ENSG{number:011d}.1" for number in range(GENES)]
    expression = draw.gamma(2, 20, (DONORS, GENES)).astype(np.float32)
    annotations = pd.DataFrame({"tissue": ["lung"] * DONORS})
    table = ExpressionTable(names, genes, expression, annotations)
    write_expression_table(folder / "lung.csv", table)
    for name in names:
        pixels = draw.integers(0, 255, (slide_tiles, PX, PX, 3), dtype=np.uint8)
        tiles = [Tile(PX * place, 0, 0.5, tile) for place, tile in enumerate(pixels)]
        write_tile_store(store_path(folder / "tiles", name), name, tiles, PX, 0.5, {})
    donors = ["-".join(name.split("-")[:2]) for name in names]
    split = pd.DataFrame({"donor": donors, "partition": "train"})
    split.to_csv(folder / "split.csv", index=False)


def write_betavae(folder: Path) -> None:
    """Write a full-size betaVAE that has learnt nothing: memory does not depend on its weights."""
    table = np.ones((2, GENES), np.float32)
    model_args = {"genes": GENES}
    content = {
        "model_args": model_args,
        "model": BetaVAE(**model_args).state_dict(),
        "genes": [f"ENSG{number:011d}.1" for number in range(GENES)],
        "scaler": ExpressionScaler.fit(table).to_checkpoint(),
        "split": {},
    }
    save_checkpoint(folder / "betavae.pt", "betavae", content)


def measured(command: list[str], folder: Path, threads: int, gpu: bool = False) -> tuple:
    """Run a process; return its output, its peak memory (bytes) and mean GPU use (%)."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": path}
    with open(folder / "messages.log", "a") as messages, open(folder / "out.txt", "w") as out:
        process = subprocess.Popen(
            command, cwd=folder, stdout=out, stderr=messages, env=environment
        )
        used = []
        while gpu and process.poll() is None:
            query = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"]
            answer = subprocess.run(query, capture_output=True, text=True, check=True)
            used.append(float(answer.stdout.splitlines()[0]))
            time.sleep(0.5)
        peak = 0
        if not gpu:
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            peak = usage.ru_maxrss * 1024
    if process.returncode:
        raise SystemExit(f"{command}: see {folder / 'messages.log'}")
    busy = sorted(used)[len(used) // 2 :]
    return (folder / "out.txt").read_text(), peak, np.mean(busy) if busy else None


def ours(
    folder: Path, threads: int, loss_type: str, launcher: tuple = (), length: tuple = LENGTH, **keys
) -> tuple:
    """Train by the script; return s per step after the first epoch, peak memory and GPU use.

    Args:
        folder: of `write_cohort`.
        threads, launcher: of the process; what starts the script.
        loss_type: of the script.
        length: as LENGTH.
        keys: of the config.
    """
    config = {
        "path_csv": ["lung.csv"], "patch_data_path": ["tiles"], "split_path": "split.csv",
        "n_workers": 0, "grid_every": 1000, "grid_columns": 1, "keep_checkpoints": 1,
        "tiles_per_step": BATCH, "img_size": PX, "vae_checkpoint": "betavae.pt", "device": "cpu",
    } | keys  # fmt: skip
    (folder / "gan.json").write_text(json.dumps(config))
    for old in folder.glob("models/*"):
        old.unlink()
    command = [sys.executable, *launcher, str(ROOT / "histopathology_gan.py")]
    command += ["--config", "gan.json", "--loss_type", loss_type, "--num_epochs", str(length[1])]
    command += ["--num_patches", str(length[0]), "--image_dir", "images", "--model_dir"]
    command += ["models/gan"]
    _, peak, used = measured(command, folder, threads, config["device"] != "cpu")
    history = pd.read_csv(folder / "models/gan.history.csv")
    if history.elapsed_s.iloc[0] > 30:  # the script then saves between the epochs
        sys.stderr.write("machine busy: the time per step includes a checkpoint\n")
    first, last = history.iloc[0], history.iloc[-1]
    return (last.elapsed_s - first.elapsed_s) / (last.step - first.step), peak, used


def published(
    folder: Path, threads: int, betavaes: int, device: str = "cpu", length: tuple = LENGTH
) -> tuple:
    """Train by torchgan in a process of its own; return s per step, peak memory, GPU use."""
    command = [sys.executable, "-m", "benchmarks.gan_step", "--peer", str(betavaes)]
    command += ["--steps", str(length[0]), "--epochs", str(length[1])]
    text, peak, used = measured([*command, "--device", device], folder, threads, device != "cpu")
    return float(text), peak, used


def run_peer(betavaes: int, device: torch.device, count: int) -> float:
    """Return s per step, of so many, of torchgan's train_ops; with betaVAEs, latents come from one
    per loss."""
    from benchmarks.published_gan import PublishedSteps

    encoders = [BetaVAE(GENES).to(device) for _ in range(betavaes)]
    steps = PublishedSteps(PX, encoders, device)
    images = torch.rand(BATCH, 3, PX, PX, device=device) * 2 - 1
    profiles = torch.randn(BATCH, GENES, device=device)
    steps.step(images, profiles)
    began = time.perf_counter()
    for _ in range(count):
        steps.step(images, profiles)  # ends by reading the loss, which waits for a GPU
    return (time.perf_counter() - began) / count


def report(figure: str, ours_: float, peer: float, target: float | None, **more) -> None:
    """Print one figure."""
    ratio = ours_ / peer if figure.startswith("peak") else peer / ours_
    line = {"figure": figure, "ours": ours_, "peer": peer, "ratio": round(ratio, 3)}
    print(json.dumps(line | {"target": target} | more), flush=True)


def speed(folder: Path, rounds: int, threads: int, device: str, length: tuple) -> None:
    """Measure seconds per step, peer and ours in turn; the least of each counts."""
    taken: dict[str, list[float]] = {"published": [], "bfloat16": [], "float32": []}
    used = {}
    for _ in range(rounds):
        seconds, _, used["published"] = published(folder, threads, 0, device, length)
        taken["published"].append(seconds)
        for precision in ("bfloat16", "float32"):
            seconds, _, used[precision] = ours(
                folder, threads, "wgan", length=length, precision=precision, device=device
            )
            taken[precision].append(seconds)
    for precision in ("bfloat16", "float32"):
        best = min(taken[precision])
        more = {"all": taken, "images_per_s": BATCH / best, "gpu_use_percent": used[precision]}
        more["peer_gpu_use_percent"] = used["published"]
        figure = f"s per step at 256 px, {device}, {precision}"
        report(figure, best, min(taken["published"]), TARGETS[precision], **more)


def memory(folder: Path, threads: int) -> None:
    """Measure the peak memory of RNA-GAN training."""
    if not (folder / "betavae.pt").exists():
        write_betavae(folder)
    _, peer, _ = published(folder, threads, 3)
    recipe = {"critic_conditioning": "none", "ema_decay": 0.0}
    for label, keys in (("as published, without average", recipe), ("default config", {})):
        _, peak, _ = ours(folder, threads, "wganvae", **keys)
        figure = f"peak memory of RNA-GAN training, bytes, {label}"
        report(figure, peak, peer, TARGETS["memory"])


def processes(folder: Path) -> None:
    """Measure two processes of one thread against one process of two, on two cores."""
    small = {"img_size": 64, "step_channels": 24, "latent_dim": 64, "tiles_per_step": 16}
    small |= {"length": (SLIDE_TILES, 2)}
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
    one, two = [], []
    for _ in range(3):
        one.append(ours(folder, 2, "relativistic", **small)[0])
        two.append(ours(folder, 1, "relativistic", launcher, **small)[0])
    report("s per step at 64 px, two processes against one on two cores", min(two), min(one), None)


def main(argv: list[str] | None = None) -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--rounds", type=int, default=3, help="of the speed, the best counts")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--device", default="cpu", help="of the speed")
    parser.add_argument("--steps", type=int, default=LENGTH[0], help="in an epoch")
    parser.add_argument("--epochs", type=int, default=LENGTH[1], help="the first is not timed")
    parser.add_argument("--work", help="folder that is kept; default: a temporary one")
    parser.add_argument("--peer", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    log.setLevel("ERROR")
    if args.peer is not None:
        print(run_peer(args.peer, torch.device(args.device), args.steps * (args.epochs - 1)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(args.work or temporary).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        write_cohort(folder, max(SLIDE_TILES, args.steps))
        if "speed" in args.only:
            speed(folder, args.rounds, args.threads, args.device, (args.steps, args.epochs))
        if "memory" in args.only:
            memory(folder, args.threads)
        if "processes" in args.only:
            processes(folder)


if __name__ == "__main__":
    main()
