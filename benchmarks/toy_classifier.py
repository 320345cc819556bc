"""Classifiers of real lung tiles: trained on real tiles, on those of GANs, on both, pretrained.

LC25000's benign lung, adenocarcinoma and squamous cell carcinoma at 64 px (shared/data). The
original images (`group`) are divided once: a GAN per class sees the tiles of the training ones
only, and every classifier is tested on the held-out ones, whose augmented copies nobody has seen.
Five starts per arm; intervals are over held-out originals. One JSON line per figure.

    python3 -m benchmarks.toy_classifier --minutes 5             # about 20 minutes on two cores
    python3 -m benchmarks.toy_classifier --minutes 0.1 --num_epochs 2
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd

from data.pixels import read_image, resize_pixels, write_png
from runtime.checkpoint import load_checkpoint
from runtime.seeds import numpy_generator

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT.parent / "shared" / "data"
CLASSES = ("lung_n", "lung_aca", "lung_scc")
PX = 64
HELD_OUT = 0.4  # share of each class's original images
# Few tiles and minutes: small networks, strong augmentation, lazy penalty, fast average.
GAN = {
    "img_size": PX, "n_workers": 0, "step_channels": 32, "latent_dim": 64, "tiles_per_step": 16,
    "rna_features": 1, "generator_lr": 2e-4, "critic_lr": 2e-4, "adam_betas": [0.5, 0.99],
    "ema_decay": 0.998, "augment": "full", "penalty_interval": 8, "zero_centred_penalty": 0.5,
    "grid_every": 100000, "train_partitions": ["train", "val", "test"], "split_path": "split.csv",
}  # fmt: skip


def prepare(work: Path, seed: int) -> pd.DataFrame:
    """Write the tiles at 64 px and their lists; return a row per tile, with column held_out."""
    tiles = pd.read_csv(DATA / "tiles" / "manifest.csv")
    tiles = tiles[tiles["class"].isin(CLASSES)].reset_index(drop=True)
    held_out: set[str] = set()
    for name, part in tiles.groupby("class"):
        groups = numpy_generator(seed, name).permutation(sorted(part.group.unique()))
        held_out |= set(groups[: round(HELD_OUT * len(groups))])
    tiles["held_out"] = tiles.group.isin(held_out)
    stems = tiles.file.map(lambda name: f"{Path(name).stem}.png")
    tiles["name"] = "real/" + tiles["class"] + "/" + tiles.group + "/" + stems
    for file, name in zip(tiles.file, tiles.name, strict=True):
        if not (work / name).exists():
            write_png(work / name, resize_pixels(read_image(DATA / file), PX))
    listed = tiles.rename(columns={"name": "wsi_file_names", "class": "Labels"})
    columns = ["wsi_file_names", "Labels", "group"]
    listed[~listed.held_out][columns].to_csv(work / "train.csv", index=False)
    listed[listed.held_out][columns].to_csv(work / "test.csv", index=False)
    return tiles


def run(work: Path, command: str, threads: int) -> None:
    """Run `<script>.py <options>` of this project in the folder, as a user would."""
    script, *options = command.split()
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    with open(work / "messages.txt", "a", encoding="utf-8") as messages:
        subprocess.run(
            [sys.executable, str(ROOT / script), *options],
            cwd=work, check=True, env=environment, stdout=messages, stderr=messages,
        )  # fmt: skip


def generate(
    work: Path, name: str, groups: list[str], minutes: float, count: int, seed: int
) -> None:
    """Train the GAN of a class on the tiles of its training groups, and write `count` tiles.

    The table of profiles that the script pairs tiles with is empty of meaning: a GAN takes noise.
    """
    table = pd.DataFrame({"wsi_file_name": groups, "tissue": name, "donor": groups, "rna_none": 1})
    table.to_csv(work / f"{name}.csv", index=False)
    keys = GAN | {"path_csv": [f"{name}.csv"], "patch_data_path": [f"real/{name}"]}
    keys["split_path"] = f"split_{name}.csv"
    (work / f"{name}.json").write_text(json.dumps(keys))
    run(
        work,
        f"histopathology_gan.py --config {name}.json --seed {seed} --loss_type relativistic"
        f" --num_epochs 100000 --max_minutes {minutes} --image_dir images/{name}"
        f" --model_dir models/{name}",
        threads=1,
    )
    run(
        work,
        f"generate_tissue_images.py --checkpoint models/{name}.model --config {name}.json"
        f" --sample_size {count} --seed {seed} --all_patients --save_path generated/{name}",
        threads=1,
    )
    made = pd.read_csv(work / f"generated/{name}/tiles_gan.csv")
    made["wsi_file_names"] = "generated/" + made.wsi_file_names
    made = made.assign(group=[f"{name}_gan_{number}" for number in range(len(made))])
    made[["wsi_file_names", "Labels", "group"]].to_csv(work / f"gan_{name}.csv", index=False)


def main(argv: list[str] | None = None) -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--minutes", type=float, default=5.0, help="of GAN training per class")
    parser.add_argument("--tiles", type=int, default=200, help="generated per class")
    parser.add_argument("--num_epochs", type=int, default=30, help="of the classifiers")
    parser.add_argument("--processes", type=int, default=2, help="GANs trained at a time")
    parser.add_argument("--seed", type=int, default=99)
    parser.add_argument("--work", help="folder that keeps models and tiles")
    args = parser.parse_args(argv)
    began = time.perf_counter()
    work = Path(args.work or tempfile.mkdtemp()).resolve()
    work.mkdir(parents=True, exist_ok=True)
    tiles = prepare(work, args.seed)
    training = tiles[~tiles.held_out]
    with ThreadPoolExecutor(args.processes) as pool:
        jobs = [
            pool.submit(
                generate, work, name, sorted(training[training["class"] == name].group.unique()),
                args.minutes, args.tiles, args.seed,
            )
            for name in CLASSES
        ]  # fmt: skip
        for job in jobs:
            job.result()
    generated = " ".join(f"gan_{name}.csv" for name in CLASSES)
    run(
        work,
        f"wsi_model.py --patch_data_path . --csv_path train.csv --generated_csv {generated}"
        f" --test_csv test.csv --network small --num_epochs {args.num_epochs} --seed {args.seed}"
        " --output classifier",
        threads=args.processes,
    )
    arms = pd.read_csv(work / "classifier" / "arms.csv")
    counts = {
        "train": training["class"].value_counts().to_dict(),
        "held_out": tiles[tiles.held_out]["class"].value_counts().to_dict(),
        "held_out_originals": int(tiles[tiles.held_out].group.nunique()),
        "generated": dict.fromkeys(CLASSES, args.tiles),
    }
    steps = {
        name: load_checkpoint(work / f"models/{name}.model", "gan")["counters"]["step"]
        for name in CLASSES
    }
    real = arms[arms.arm == "real"].set_index("score")["mean"]
    for row in arms.to_dict("records"):
        line = {"figure": f"{row['score']}, trained on {row['arm']}", "ours": row["mean"]}
        line |= {"interval": [row["low"], row["high"]]}
        if row["arm"] != "real":
            peer = real[row["score"]]
            line |= {"peer": peer, "ratio": row["mean"] / peer, "target": None}
            line["minus_real"] = row["minus_real"]
            line["minus_real_interval"] = [row["minus_real_low"], row["minus_real_high"]]
        print(json.dumps(line), flush=True)
    elapsed = round(time.perf_counter() - began)
    line = {"figure": "setting", "minutes": args.minutes, "gan_steps": steps, **counts}
    print(json.dumps(line | {"elapsed_s": elapsed, "seed": args.seed}))
    baseline = max(counts["held_out"].values()) / sum(counts["held_out"].values())
    print(json.dumps({"figure": "accuracy of the most frequent class", "ours": round(baseline, 4)}))


if __name__ == "__main__":
    main()
