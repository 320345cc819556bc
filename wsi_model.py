"""Tile classifier: cross-validated scores of a network that tells the labels of tile images.

Reproduces the toy experiment of the publication: lung against brain tiles, real or generated, with
a ResNet-50 in five folds. Both arms get the same network, head and training. The folds keep the
images of one group (patient) together where the list tells the groups.

Inputs:  a CSV, or several that count as one, with the columns `wsi_file_names` (image file,
         relative to --patch_data_path or absolute) and `Labels`; optionally a column `group`,
         `patient` or `donor`. A slide id such as GTEX-15RJ7-0625 as patient stands for its donor.
         Without such a column the donor is read from the names when each holds a slide id.
         With --test_csv (real images) the folds of --csv_path (generated ones) train, and each is
         tested on the images of the other list that share no group with its training images.
Outputs: <output>/summary.json, folds.csv, confusion.csv, predictions.csv, run.json.

    python3 wsi_model.py --patch_data_path images_form/ --csv_path real_toy_example.csv
    python3 wsi_model.py --patch_data_path images_form/ --csv_path real_toy_example.csv \\
        --network small
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import math
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from tqdm import tqdm

from data.labelled_tiles import (
    assign_folds,
    check_folds,
    held_out_rows,
    most_folds,
    read_labelled_tiles,
)
from data.pixels import pixels_to_images
from metrics.classification import SCORES, classification_scores, confusion_counts
from models.classifier import FLIPS, NETWORKS, TileClassifier, flip_images
from runtime.checkpoint import load_weights
from runtime.device import PRECISIONS, autocast, choose_device, uses_bfloat16
from runtime.errors import UserError, run_script
from runtime.files import read_json, require_file, sha256_of, write_csv, write_json
from runtime.run import already_done, log, start_log, write_run_record
from runtime.seeds import derived_seed, seed_everything, torch_generator

# Side in pixels and learning rate; 224 px is what the pretrained ResNet-50 was made for.
DEFAULTS = {"resnet50": {"image_px": 224, "lr": 1e-4}, "small": {"image_px": 64, "lr": 2e-3}}
SMALLEST = {"folds": 2, "num_epochs": 1, "batch_size": 2, "image_px": 16, "lr": 1e-12}
# torchvision's file names of the ImageNet weights of ResNet-50, versions 1 and 2.
CACHED_WEIGHTS = ("resnet50-0676ba61.pth", "resnet50-11ad3fa6.pth")
# Options that the result depends on.
RECIPE = ("network", "freeze", "image_px", "folds", "num_epochs", "batch_size", "lr", "seed")
RESULTS = ("summary.json", "folds.csv", "confusion.csv", "predictions.csv")
PREDICTION_BATCH = 64


def build_parser() -> argparse.ArgumentParser:
    """Return the command line of this script."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    files = parser.add_argument_group("inputs and outputs")
    files.add_argument("--patch_data_path", type=Path, required=True, help="folder of the images")
    files.add_argument(
        "--csv_path",
        type=Path,
        nargs="+",
        required=True,
        help="list of images and labels, or several",
    )
    files.add_argument(
        "--test_csv", type=Path, nargs="+", help="lists of images to test on instead"
    )
    files.add_argument("--group", help="column that no two folds share; 'none': folds by image")
    files.add_argument("--output", type=Path, help="default: classifier_results/<name of the CSV>")
    files.add_argument("--overwrite", action="store_true", help="replace another command's result")
    network = parser.add_argument_group("network")
    network.add_argument("--network", choices=NETWORKS, default=NETWORKS[0])
    network.add_argument("--weights", type=Path, help="state dict to start from (default: cache)")
    network.add_argument("--freeze", action="store_true", help="train the head only")
    network.add_argument("--image_px", type=int, help="default 224 (resnet50), 64 (small)")
    training = parser.add_argument_group("training")
    training.add_argument("--folds", type=int, default=5)
    training.add_argument("--num_epochs", type=int, default=20)
    training.add_argument("--batch_size", type=int, default=32)
    training.add_argument("--lr", type=float, help="default 1e-4 (resnet50), 2e-3 (small)")
    training.add_argument("--seed", type=int, default=99)
    training.add_argument("--device", help="cpu, cuda or a GPU number; default: GPU 0 if there")
    training.add_argument("--precision", choices=PRECISIONS, default="auto")
    return parser


@dataclass
class Inputs:
    """What the network gets: pixels, or with a frozen backbone their features under each flip.

    Attributes:
        pixels: uint8 (N, H, W, 3).
        features: float32 (4, N, F), or None when the whole network is trained.
    """

    pixels: Tensor
    features: Tensor | None = None

    def batch(self, rows: Tensor, flips: Tensor) -> Tensor:
        """Return images (n, 3, H, W), or features (n, F), of rows (n,) under flips (n,) 0 to 3."""
        if self.features is not None:
            return self.features[flips, rows]
        return flip_images(pixels_to_images(self.pixels[rows]), flips)


def find_weights(args: argparse.Namespace) -> Path | None:
    """Return the weights file to start from, or None for a random start, and say which."""
    path = require_file(args.weights, "weights file") if args.weights else None
    if path is None and args.network == "resnet50":
        cache = Path(torch.hub.get_dir()) / "checkpoints"
        path = next((cache / name for name in CACHED_WEIGHTS if (cache / name).is_file()), None)
    if path is None and args.freeze:
        raise UserError("--freeze: needs pretrained weights and none are here; give --weights FILE")
    if path is None and args.network == "resnet50":
        log.info("no pretrained ResNet-50 in %s: random start (or give --weights FILE)", cache)
    return path


def build_classifier(
    args: argparse.Namespace, classes: int, weights: Path | None
) -> TileClassifier:
    """Return a new classifier: its head random, its backbone from `weights` where given."""
    classifier = TileClassifier(args.network, classes)
    if weights is not None:
        classifier.load_backbone(load_weights(weights), weights)
    return classifier


def train(
    network: nn.Module,
    inputs: Inputs,
    targets: Tensor,
    rows: Tensor,
    args: argparse.Namespace,
    fold: int,
    after_epoch: Callable[[], object],
) -> None:
    """Train `network` on `rows` of the inputs: AdamW, warm-up and one cosine, random flips."""
    device = next(network.parameters()).device
    bfloat16 = uses_bfloat16(args.precision, device)
    # A last batch of one image is left out: batch normalisation needs two.
    batches = [part for part in torch.arange(len(rows)).split(args.batch_size) if len(part) > 1]
    optimizer = torch.optim.AdamW(network.parameters(), lr=args.lr, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, args.lr, total_steps=args.num_epochs * len(batches), pct_start=0.1
    )
    network.train()
    for epoch in range(args.num_epochs):
        generator = torch_generator(args.seed, "fold", fold, "epoch", epoch)
        order = rows[torch.randperm(len(rows), generator=generator)]
        flips = torch.randint(FLIPS, (len(rows),), generator=generator)
        for part in batches:
            with autocast(device, bfloat16):
                logits = network(inputs.batch(order[part], flips[part]).to(device))  # (n, K)
            loss = nn.functional.cross_entropy(logits.float(), targets[order[part]].to(device))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
        if not math.isfinite(loss.item()):
            raise UserError(f"fold {fold}, epoch {epoch + 1}: the loss is not finite; lower --lr")
        after_epoch()


@contextlib.contextmanager
def few_threads(network: str) -> Iterator[None]:
    """Run the small network on one CPU thread inside this context.

    Its layers are too small to share: a second thread gains nothing, and on a busy machine the two
    wait for each other (measured: 10 times slower). One thread also gives the same sums everywhere.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1 if network == "small" else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@torch.inference_mode()
def predict(network: nn.Module, inputs: Inputs, rows: Tensor) -> np.ndarray:
    """Return class probabilities (len(rows), K) of unflipped inputs."""
    device = next(network.parameters()).device
    network.eval()
    parts = [
        network(inputs.batch(part, torch.zeros_like(part)).to(device)).softmax(dim=1).cpu()
        for part in rows.split(PREDICTION_BATCH)
    ]
    return torch.cat(parts).numpy()


@torch.inference_mode()
def frozen_features(classifier: TileClassifier, inputs: Inputs, device: torch.device) -> Tensor:
    """Return features (4, N, F) of the inputs under each flip, the backbone in eval mode."""
    classifier.eval()
    parts = torch.arange(len(inputs.pixels)).split(PREDICTION_BATCH)
    features = []
    for flip in tqdm(range(FLIPS), "features of the frozen network", unit="flip", delay=2):
        batches = (inputs.batch(part, torch.full_like(part, flip)).to(device) for part in parts)
        features.append(torch.cat([classifier.features(batch).cpu() for batch in batches]))
    return torch.stack(features).clone()


def save_results(
    output: Path, predictions: pd.DataFrame, fold_of: np.ndarray, facts: dict[str, Any]
) -> dict[str, Any]:
    """Write predictions, scores per fold, confusion counts and the summary; return the summary."""
    classes = facts["classes"]
    probabilities = predictions[[f"p_{label}" for label in classes]].to_numpy()
    targets = predictions["label"].map(classes.index).to_numpy()
    folds = pd.DataFrame(
        {
            "fold": fold,
            "n_train": int((fold_of != fold).sum()),
            "n_test": len(rows),
            **classification_scores(targets[rows], probabilities[rows]),
        }
        for fold, rows in predictions.groupby("fold").indices.items()
    )
    counts = confusion_counts(targets, probabilities.argmax(axis=1), len(classes))
    confusion = pd.DataFrame(counts, columns=classes)
    confusion.insert(0, "true_label", classes)
    tables = {"folds": folds, "confusion": confusion, "predictions": predictions}
    for name, table in tables.items():
        write_csv(output / f"{name}.csv", table)
    # A score that is undefined in a fold (AUC without every class in the test images) is left out.
    scores = {
        name: {"mean": round(folds[name].mean(), 6), "sd": round(folds[name].std(), 6)}
        for name in SCORES
        if folds[name].notna().all()
    }
    summary = {**facts, "scores": scores}
    write_json(output / "summary.json", summary)
    return summary


def print_summary(summary: dict[str, Any]) -> None:
    """Print the scores as mean and standard deviation over the folds."""
    split = f"grouped by {summary['grouped_by']}" if summary["grouped_by"] else "split by image"
    print(
        f"{summary['list']}: {summary['images']} images, {summary['network']},"
        f" {summary['folds']} folds {split}, tested on {summary['test_list']}"
    )
    for name, score in summary["scores"].items():
        print(f"  {name:18s} {score['mean']:.3f} ± {score['sd']:.3f}")


def main(argv: list[str] | None = None) -> None:
    """Run the cross-validation that the command line asks for."""
    # Arguments
    args = build_parser().parse_args(argv)
    start_log()
    for name, value in DEFAULTS[args.network].items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    for name, smallest in SMALLEST.items():
        if not getattr(args, name) >= smallest:
            raise UserError(f"--{name} {getattr(args, name)}: must be {smallest} or more")
    output = args.output or Path("classifier_results") / args.csv_path[0].stem
    csv_names = ", ".join(map(str, args.csv_path))
    tiles = test = read_labelled_tiles(args.csv_path, args.patch_data_path, args.group)
    if args.test_csv:
        test = read_labelled_tiles(args.test_csv, args.patch_data_path, args.group)
        unknown = sorted(set(test.labels) - set(tiles.labels))
        if unknown:
            raise UserError(f"--test_csv: label {unknown[0]} is not in {csv_names}")
    if tiles.groups and args.group is None and most_folds(tiles) == 1:
        # The published lists hold one patient per class, who cannot be in both parts.
        log.info(
            "%s: a class has a single %s, so folds are split by image; scores may be optimistic",
            csv_names,
            tiles.grouped_by,
        )
        tiles.groups = tiles.grouped_by = None
    check_folds(tiles, args.folds, csv_names)
    fold_of = assign_folds(tiles, args.folds, derived_seed(args.seed, "folds"))
    test_rows = {
        fold: held_out_rows(tiles, test, np.flatnonzero(fold_of != fold))
        for fold in range(1, args.folds + 1)
    }
    for fold, rows in test_rows.items():
        if not len(rows):
            raise UserError(f"fold {fold}: no test image left that shares no group with training")
    device = choose_device(args.device)
    weights = find_weights(args)
    facts = {
        "list": csv_names,
        "test_list": ", ".join(map(str, args.test_csv)) if args.test_csv else "held-out folds",
        "weights": weights.name if weights else None,
        **{name: getattr(args, name) for name in RECIPE},
        "classes": tiles.classes,
        "images": len(tiles),
        "test_images": len(test),
        "grouped_by": tiles.grouped_by,
        "groups": len(set(tiles.groups)) if tiles.groups else None,
    }

    # Run directory, log, seed
    request = {
        **{name: value for name, value in facts.items() if name not in ("list", "test_list")},
        "precision": args.precision,
        "weights_sha256": sha256_of(weights) if weights else None,
        "images_sha256": tiles.digest(),
        "test_images_sha256": test.digest() if args.test_csv else None,
    }
    results = [output / name for name in RESULTS]
    if already_done(output / "request.json", request, results, args.overwrite):
        print_summary(read_json(output / "summary.json"))
        return
    started = time.perf_counter()
    write_run_record(output / "run.json", facts, args.seed)
    seed_everything(args.seed)

    # Data
    classes = tiles.classes
    targets = torch.tensor([classes.index(label) for label in tiles.labels])
    inputs = test_inputs = Inputs(tiles.load_pixels(args.image_px))
    if args.test_csv:
        test_inputs = Inputs(test.load_pixels(args.image_px))
    if args.freeze:
        classifier = build_classifier(args, len(classes), weights).to(device)
        inputs.features = frozen_features(classifier, inputs, device)
        if args.test_csv:
            test_inputs.features = frozen_features(classifier, test_inputs, device)

    # Loop over folds; finished ones are kept, so that the same command continues
    unfinished = output / "unfinished" / hashlib.sha256(repr(request).encode()).hexdigest()[:16]
    bar = tqdm(total=args.folds * args.num_epochs, desc="training", unit="epoch")
    for fold, rows in test_rows.items():
        path = unfinished / f"fold_{fold}.csv"
        if not path.is_file():
            seed_everything(derived_seed(args.seed, "fold", fold))
            classifier = build_classifier(args, len(classes), weights).to(device)
            network = classifier.head if args.freeze else classifier
            train_rows = torch.from_numpy(np.flatnonzero(fold_of != fold))
            with few_threads(args.network):
                train(network, inputs, targets, train_rows, args, fold, bar.update)
                probabilities = predict(network, test_inputs, torch.from_numpy(rows))
            table = pd.DataFrame(probabilities, columns=[f"p_{label}" for label in classes])
            table.insert(0, "fold", fold)
            table.insert(1, "image", [test.names[row] for row in rows])
            table.insert(2, "label", [test.labels[row] for row in rows])
            write_csv(path, table)
        bar.update(fold * args.num_epochs - bar.n)
    bar.close()

    # Results
    folds = [
        pd.read_csv(unfinished / f"fold_{fold}.csv", dtype={"image": str, "label": str})
        for fold in test_rows
    ]
    facts |= {"device": str(device), "elapsed_s": round(time.perf_counter() - started, 1)}
    summary = save_results(output, pd.concat(folds), fold_of, facts)
    write_json(output / "request.json", request)
    shutil.rmtree(output / "unfinished")
    print_summary(summary)


if __name__ == "__main__":
    run_script(main)
