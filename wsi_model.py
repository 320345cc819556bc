"""Tile classifier: cross-validated scores of a network that tells the labels of tile images.

Reproduces the toy experiment of the publication: lung against brain tiles, real or generated, with
a ResNet-50 in five folds; and what is asked of it since: trained on generated, tested on real. All
arms get the same folds, network, head, start and training. The folds keep the images of one group
(patient, original image) together where the list tells the groups.

Inputs:  a CSV, or several that count as one, with the columns `wsi_file_names` (image file,
         relative to --patch_data_path or absolute) and `Labels`; optionally a column `group`,
         `patient` or `donor`. A slide id such as GTEX-15RJ7-0625 as patient stands for its donor.
         Without such a column the donor is read from the names when each holds a slide id.
         With --generated_csv (tables of generate_tissue_images.py) the arms of --train: real,
         generated, both, or pretrain (generated first, then fine-tuned on real), each tested on the
         held-out real images; generated ones that share a group with these are left out.
         With --test_csv each fold is tested on the images of that list that share no group with
         its training images.
Outputs: <output>/summary.json, folds.csv, confusion.csv, predictions.csv, run.json; with
         --generated_csv one such folder per arm and <output>/arms.csv.

    python3 wsi_model.py --patch_data_path images_form/ --csv_path real_toy_example.csv
    python3 wsi_model.py --patch_data_path images_form/ --csv_path real_toy_example.csv \\
        --generated_csv rna-gan_toy_example.csv --network small
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from data.classifier_folds import ARMS, Lists, read_lists
from data.pixels import pixels_to_images
from metrics.classification import (
    SCORES,
    classification_scores,
    confusion_counts,
    score_intervals,
    score_resamples,
)
from models.classifier import (
    FLIPS,
    NETWORKS,
    PREDICTION_BATCH,
    Recipe,
    TileClassifier,
    few_threads,
    flip_images,
    predict,
    train_classifier,
)
from runtime.checkpoint import load_weights
from runtime.device import PRECISIONS, choose_device, uses_bfloat16
from runtime.dry_run import add_dry_run, dry_run_lines, peak_memory, seconds_per_unit
from runtime.errors import UserError, run_script
from runtime.files import read_json, require_file, sha256_of, write_csv, write_json
from runtime.run import already_done, log, start_log, write_run_record
from runtime.seeds import derived_seed, numpy_generator, seed_everything

# Side in pixels and learning rate; 224 px is what the pretrained ResNet-50 was made for.
DEFAULTS = {"resnet50": {"image_px": 224, "lr": 1e-4}, "small": {"image_px": 64, "lr": 2e-3}}
SMALLEST = {"folds": 2, "num_epochs": 1, "batch_size": 2, "image_px": 16, "lr": 1e-12}
# torchvision's file names of the ImageNet weights of ResNet-50, versions 1 and 2.
CACHED_WEIGHTS = ("resnet50-0676ba61.pth", "resnet50-11ad3fa6.pth")
# Options that the result depends on.
RECIPE = ("network", "freeze", "image_px", "folds", "num_epochs", "batch_size", "lr", "seed")
RESULTS = ("summary.json", "folds.csv", "confusion.csv", "predictions.csv")


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
    files.add_argument(
        "--generated_csv", type=Path, nargs="+", help="lists of generated images to train on"
    )
    files.add_argument("--group", help="column that no two folds share; 'none': folds by image")
    files.add_argument("--output", type=Path, help="default: classifier_results/<name of the CSV>")
    files.add_argument("--overwrite", action="store_true", help="replace another command's result")
    add_dry_run(parser)
    network = parser.add_argument_group("network")
    network.add_argument("--network", choices=NETWORKS, default=NETWORKS[0])
    network.add_argument("--weights", type=Path, help="state dict to start from (default: cache)")
    network.add_argument("--freeze", action="store_true", help="train the head only")
    network.add_argument("--image_px", type=int, help="default 224 (resnet50), 64 (small)")
    training = parser.add_argument_group("training")
    training.add_argument(
        "--train", nargs="+", choices=ARMS, help="arms; default: all with --generated_csv"
    )
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

    def __call__(self, rows: Tensor, flips: Tensor) -> Tensor:
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


@torch.inference_mode()
def frozen_features(classifier: TileClassifier, inputs: Inputs, device: torch.device) -> Tensor:
    """Return features (4, N, F) of the inputs under each flip, the backbone in eval mode."""
    classifier.eval()
    parts = torch.arange(len(inputs.pixels)).split(PREDICTION_BATCH)
    features = []
    for flip in tqdm(range(FLIPS), "features of the frozen network", unit="flip", delay=2):
        batches = (inputs(part, torch.full_like(part, flip)).to(device) for part in parts)
        features.append(torch.cat([classifier.features(batch).cpu() for batch in batches]))
    return torch.stack(features).clone()


def dry_run(args: argparse.Namespace, lists: Lists, recipe: Recipe, output: Path) -> list[str]:
    """Return what the run would need, from one batch of training."""
    rows = torch.arange(min(args.batch_size, len(lists.tiles)))
    device = choose_device(args.device)
    network = build_classifier(args, len(lists.tiles.classes), None).to(device)
    network = network.head if args.freeze else network
    shape = (network.in_features,) if args.freeze else (3, args.image_px, args.image_px)
    batch = torch.zeros(len(rows), *shape)
    targets = torch.zeros(len(rows), dtype=torch.long)
    one = recipe._replace(num_epochs=1)

    def work() -> int:
        with few_threads(args.network):
            train_classifier(
                network, lambda *_: batch, targets, rows, one, (args.seed,), lambda: None
            )
        return len(rows)

    trained = sum(
        args.num_epochs * len(lists.stage_rows(kinds, fold))
        for arm in args.train
        for kinds in ARMS[arm]
        for fold in lists.test_rows
    )
    images = sum(map(len, lists.all))
    facts = {"images": images, "classes": ", ".join(lists.tiles.classes)}
    facts |= {"arms": ", ".join(args.train), "folds": args.folds}
    seconds = trained * seconds_per_unit(work)
    pixels = images * args.image_px**2 * 3
    return dry_run_lines(output, facts, seconds, 200 * images, peak_memory() + pixels)


def save_results(
    output: Path, predictions: pd.DataFrame, train_sizes: dict[int, int], facts: dict[str, Any]
) -> dict[str, Any]:
    """Write predictions, scores per fold, confusion counts and the summary; return the summary."""
    classes = facts["classes"]
    probabilities = predictions[[f"p_{label}" for label in classes]].to_numpy()
    targets = predictions["label"].map(classes.index).to_numpy()
    folds = pd.DataFrame(
        {
            "fold": fold,
            "n_train": train_sizes[fold],
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
    intervals = score_intervals(resampled_scores(predictions, classes, facts["seed"]))
    scores = {
        name: {
            "mean": round(folds[name].mean(), 6),
            "sd": round(folds[name].std(), 6),
            "interval": intervals[name] and [round(end, 6) for end in intervals[name]],
        }
        for name in SCORES
        if folds[name].notna().all()
    }
    summary = {**facts, "confusion": counts.tolist(), "scores": scores}
    write_json(output / "summary.json", summary)
    return summary


def resampled_scores(predictions: pd.DataFrame, classes: list[str], seed: int) -> np.ndarray:
    """Return the scores (R, len(SCORES)) of bootstrap resamples of the tested groups or images."""
    return score_resamples(
        predictions["label"].map(classes.index).to_numpy(),
        predictions[[f"p_{label}" for label in classes]].to_numpy(),
        predictions["unit"].astype(str).to_numpy(),
        predictions["fold"].to_numpy(),
        numpy_generator(seed, "bootstrap"),
    )


def write_arms(output: Path, summaries: dict[str, dict[str, Any]]) -> None:
    """Write arms.csv: every score of every arm, and its difference from the arm `real`."""
    resampled, rows = {}, []
    for arm, summary in summaries.items():
        predictions = pd.read_csv(output / arm / "predictions.csv", dtype={"label": str})
        resampled[arm] = resampled_scores(predictions, summary["classes"], summary["seed"])
    for arm, summary in summaries.items():
        lower = upper = {}
        if "real" in resampled and arm != "real":
            ends = score_intervals(resampled[arm] - resampled["real"])
            lower, upper = ({name: v and v[k] for name, v in ends.items()} for k in (0, 1))
        for name, score in summary["scores"].items():
            low, high = score["interval"] or (None, None)
            row = {"arm": arm, "score": name, "mean": score["mean"], "sd": score["sd"]}
            row |= {"low": low, "high": high}
            if lower:
                row["minus_real"] = score["mean"] - summaries["real"]["scores"][name]["mean"]
                row |= {"minus_real_low": lower[name], "minus_real_high": upper[name]}
            rows.append(row)
    write_csv(output / "arms.csv", pd.DataFrame(rows))


def print_summary(summary: dict[str, Any]) -> None:
    """Print the scores as mean and standard deviation over the folds, with their intervals."""
    split = f"grouped by {summary['grouped_by']}" if summary["grouped_by"] else "split by image"
    print(
        f"{summary['list']}: {summary['images']} images, {summary['network']},"
        f" {summary['folds']} folds {split}, trained on {summary['trained_on']},"
        f" tested on {summary['test_list']}"
    )
    for name, score in summary["scores"].items():
        low, high = score["interval"] or (float("nan"),) * 2
        line = f"{score['mean']:.3f} ± {score['sd']:.3f} (95 % interval {low:.3f} to {high:.3f})"
        print(f"  {name:18s} {line}")


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
    several = args.generated_csv is not None
    args.train = args.train or (list(ARMS) if several else ["real"])
    if not several and args.train != ["real"]:
        raise UserError(f"--train {' '.join(args.train)}: needs --generated_csv")
    output = args.output or Path("classifier_results") / args.csv_path[0].stem
    lists = read_lists(
        args.csv_path,
        args.patch_data_path,
        args.group,
        args.test_csv,
        args.generated_csv,
        args.train,
        args.folds,
        args.seed,
    )
    tiles, test = lists.tiles, lists.test
    device = choose_device(args.device)
    weights = find_weights(args)
    classes = tiles.classes
    facts = {
        "list": ", ".join(map(str, args.csv_path)),
        "test_list": ", ".join(map(str, args.test_csv)) if args.test_csv else "held-out folds",
        "generated_list": ", ".join(map(str, args.generated_csv or [])),
        "weights": weights.name if weights else None,
        **{name: getattr(args, name) for name in RECIPE},
        "classes": classes,
        "images": len(tiles),
        "generated_images": len(lists.generated) if lists.generated else 0,
        "test_images": len(test),
        "grouped_by": tiles.grouped_by,
        "groups": len(set(tiles.groups)) if tiles.groups else None,
    }
    recipe = Recipe(
        args.num_epochs, args.batch_size, args.lr, uses_bfloat16(args.precision, device)
    )
    if args.dry_run:
        print("\n".join(dry_run(args, lists, recipe, output)))
        return

    # Run directory, log, seed
    named = ("list", "test_list", "generated_list")
    request = {
        **{name: value for name, value in facts.items() if name not in named},
        "precision": args.precision,
        "weights_sha256": sha256_of(weights) if weights else None,
        "images_sha256": tiles.digest(),
        "test_images_sha256": test.digest() if args.test_csv else None,
        "generated_images_sha256": lists.generated.digest() if lists.generated else None,
    }
    folders = {arm: output / arm if several else output for arm in args.train}
    todo = []
    for arm, folder in folders.items():
        results = [folder / name for name in RESULTS]
        if not already_done(
            folder / "request.json", request | {"arm": arm}, results, args.overwrite
        ):
            todo.append(arm)
    if todo:
        # Data
        seed_everything(args.seed)
        targets = torch.tensor([classes.index(y) for one in lists.all for y in one.labels])
        inputs = Inputs(torch.cat([one.load_pixels(args.image_px) for one in lists.all]))
        if args.freeze:
            classifier = build_classifier(args, len(classes), weights).to(device)
            inputs.features = frozen_features(classifier, inputs, device)
    units = test.groups or test.names

    # Loop over arms and folds; finished folds are kept, so that the same command continues
    for arm in todo:
        folder, started = folders[arm], time.perf_counter()
        own = facts | {"trained_on": arm if several else "the list"}
        write_run_record(folder / "run.json", own, args.seed)
        digest = hashlib.sha256(repr(request | {"arm": arm}).encode()).hexdigest()[:16]
        unfinished = folder / "unfinished" / digest
        epochs = args.num_epochs * len(ARMS[arm])
        bar = tqdm(total=args.folds * epochs, desc=arm, unit="epoch")
        sizes = {
            fold: sum(len(lists.stage_rows(kinds, fold)) for kinds in ARMS[arm])
            for fold in lists.test_rows
        }
        for fold, rows in lists.test_rows.items():
            path = unfinished / f"fold_{fold}.csv"
            if not path.is_file():
                # The same start in every arm.
                seed_everything(derived_seed(args.seed, "fold", fold))
                classifier = build_classifier(args, len(classes), weights).to(device)
                network = classifier.head if args.freeze else classifier
                with few_threads(args.network):
                    for number, kinds in enumerate(ARMS[arm]):
                        position = (args.seed, "fold", fold, *([number] if number else []))
                        train_rows = torch.from_numpy(lists.stage_rows(kinds, fold))
                        train_classifier(
                            network, inputs, targets, train_rows, recipe, position, bar.update
                        )
                    numbers = torch.from_numpy(rows + lists.test_offset)
                    probabilities = predict(network, inputs, numbers)
                table = pd.DataFrame(probabilities, columns=[f"p_{label}" for label in classes])
                table.insert(0, "fold", fold)
                table.insert(1, "image", [test.names[row] for row in rows])
                table.insert(2, "label", [test.labels[row] for row in rows])
                table.insert(3, "unit", [units[row] for row in rows])
                write_csv(path, table)
            bar.update(fold * epochs - bar.n)
        bar.close()

        # Results
        texts = {"image": str, "label": str, "unit": str}
        parts = [pd.read_csv(unfinished / f"fold_{k}.csv", dtype=texts) for k in sizes]
        own |= {"device": str(device), "elapsed_s": round(time.perf_counter() - started, 1)}
        save_results(folder, pd.concat(parts, ignore_index=True), sizes, own)
        write_json(folder / "request.json", request | {"arm": arm})
        shutil.rmtree(folder / "unfinished")
    summaries = {arm: read_json(folder / "summary.json") for arm, folder in folders.items()}
    if several:
        write_arms(output, summaries)
    for summary in summaries.values():
        print_summary(summary)


if __name__ == "__main__":
    run_script(main)
