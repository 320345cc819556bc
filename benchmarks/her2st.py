"""HER2ST as a cohort of spots: one profile and one tile each, section C4 held out.

Source: Andersson et al. 2021 (doi 10.1038/s41467-021-26271-2); 834 spots of four sections.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from data.expression import read_cohort
from runtime.files import write_csv

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT.parent / "shared" / "data" / "matched" / "her2st"
HELD_OUT = "C4"
GENES = 1000  # the most abundant in the training sections; the rest is mostly zeros
VALIDATION = 8  # every so many training regions choose the betaVAE's best epoch
SPLIT = {"split_path": "split.csv", "path_csv": ["spots.csv"], "rna_features": GENES}
# Four dimensions: of sixteen, all but three or four held the counting noise of the shallow section.
BETAVAE = SPLIT | {
    "hidden_dims": [1024], "latent_dim": 4, "dropout": 0.2, "beta": 0.002, "lr": 0.001,
    "batch_size": 64, "num_epochs": 100, "save_dir": "betavae",
}  # fmt: skip
# Few tiles and minutes: small networks, strong augmentation, no momentum, fast average, noise for
# every place, without which the texture repeats, and a critic that sees tiles through a network
# trained on photographs, bounded by spectral normalisation instead of a penalty. The profile meets
# it by projection alone: a regression of the latents beside it was met by patterns that only the
# critic reads (mean FID of three seeds 107 with it, 99 without).
GAN = SPLIT | {
    "patch_data_path": ["tiles"], "img_size": 64, "n_workers": 0, "step_channels": 32,
    "latent_dim": 64, "noise_dim": 32, "local_noise": True, "generator_modulation": True,
    "tiles_per_step": 16, "generator_lr": 8e-4, "critic_lr": 1e-4, "adam_betas": [0.0, 0.99],
    "ema_decay": 0.995, "augment": "full", "zero_centred_penalty": 0.0,
    "critic_features": "pretrained", "grid_every": 40,
    "train_partitions": ["train", "val"], "vae_checkpoint": "betavae/model_dict_best.pt",
}  # fmt: skip


class Effort(NamedTuple):
    """How long each of our models trains, and where: until minutes or epochs are over."""

    minutes: float
    epochs: int
    processes: int
    device: str

    @classmethod
    def add_flags(cls, parser: argparse.ArgumentParser, **minutes: object) -> None:
        """Add the flags that `from_flags` reads; `minutes`: of its argument."""
        help_ = "training of each model"
        parser.add_argument("--minutes", type=float, help=help_, **minutes)
        parser.add_argument("--epochs", type=int, default=100000, help="of our models, at most")
        parser.add_argument("--processes", type=int, default=1, help="that train one of our models")
        parser.add_argument("--device", default="cpu")

    @classmethod
    def from_flags(cls, args: argparse.Namespace) -> Effort:
        """Return what the flags say."""
        return cls(*(getattr(args, name) for name in cls._fields))

    def options(self) -> str:
        """Return the flags of histopathology_gan.py."""
        limit = f"--num_epochs {self.epochs} --max_minutes {self.minutes}"
        return f"{limit} --device {self.device}"


def prepare(folder: Path) -> pd.DataFrame:
    """Write table, split and tile folders of the spots; return them, a row each, in table order.

    Returns:
        columns wsi_file_name, section, region, held_out (bool).
    """
    counts = pd.read_csv(DATA / "spot_counts.csv.gz")
    spots = pd.read_csv(DATA / "spots.csv").set_index("wsi_file_name").loc[counts.wsi_file_name]
    spots = spots.reset_index()
    spots["held_out"] = spots.section == HELD_OUT
    genes = [name for name in counts.columns if name.startswith("rna_")]
    expression = counts[genes].to_numpy(np.float64)
    expression *= 1e4 / expression.sum(axis=1, keepdims=True)
    top = np.argsort(-expression[~spots.held_out].mean(axis=0))[:GENES]
    table = pd.DataFrame(expression[:, top], columns=[genes[column] for column in top])
    about = spots[["wsi_file_name"]].assign(tissue="breast", donor=spots.region)
    folder.mkdir(parents=True, exist_ok=True)
    write_csv(folder / "spots.csv", pd.concat([about, table], axis=1))
    regions = spots.drop_duplicates("region").sort_values("region")
    partition = np.where(np.arange(len(regions)) % VALIDATION == 0, "val", "train")
    partition = np.where(regions.held_out, "test", partition)
    split = pd.DataFrame({"donor": regions.region, "partition": partition})
    write_csv(folder / "split.csv", split)
    for name, tile in zip(spots.wsi_file_name, spots.tile, strict=True):
        place = folder / "tiles" / name / Path(tile).name
        place.parent.mkdir(parents=True, exist_ok=True)
        if not place.exists():
            place.symlink_to(DATA / tile)
    return spots[["wsi_file_name", "section", "region", "held_out"]]


def expression(folder: Path) -> np.ndarray:
    """Return expression float32 (N, GENES) of the spots, per ten thousand, in table order."""
    return read_cohort([str(folder / "spots.csv")]).expression


def write_config(folder: Path, name: str, keys: dict) -> str:
    """Write a JSON config into the folder; return its name."""
    (folder / f"{name}.json").write_text(json.dumps(keys, indent=2))
    return f"{name}.json"


def run(folder: Path, command: str, processes: int = 1) -> None:
    """Run `<script>.py <options>` of this project in the folder, as a user would.

    Args:
        folder: where it runs.
        command: script and options.
        processes: more than one: torchrun starts them, each with its part of the cores.
    """
    script, *options = command.split()
    start, environment = [sys.executable], dict(os.environ)
    if processes > 1:
        start += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        environment["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // processes))
    subprocess.run([*start, str(ROOT / script), *options], cwd=folder, check=True, env=environment)
