"""fid.py against pytorch-fid, torch-fidelity, prdc and the published procedure: one line a figure.

Real tiles come from shared/data. Peers run in the same process, alternating with ours. A figure is
{"figure", "ours", "peer", "ratio", "target"}: for agreement the ratio is |ours - peer| / |peer| and
must be below the target, for speed it is the peer's seconds over ours and must be above it.

    python3 -m benchmarks.frechet --only agreement distance features table
    python3 -m benchmarks.frechet --only agreement --tiles 40        # a minute or two
    python3 -m benchmarks.frechet --only features table --device cuda
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import io
import json
import multiprocessing
import tempfile
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pandas as pd
import prdc
import torch
from pytorch_fid.fid_score import calculate_frechet_distance
from torch import nn
from torch_fidelity.metric_fid import fid_statistics_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import calculate_precision_recall_full
from torchvision.models import inception_v3

import fid
from benchmarks.peers import features_in_batches, torch_fidelity_inception
from benchmarks.sensitivity import Pixels, real_tiles
from data.tiles import store_path, write_tile_store
from metrics.coverage import coverage_metrics
from metrics.features import FeatureExtractor
from metrics.frechet import frechet_distance
from metrics.kernel import kernel_distance
from metrics.networks import FID_RULE, find_network, prepare_images
from models.betavae import BetaVAE
from models.dcgan import Generator
from models.wgan_vae import Conditioning
from runtime.checkpoint import save_checkpoint
from runtime.files import sha256_of

# CPU time (use one thread) is fair to both sides on a machine that others use too.
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
clock = "wall"
PUBLISHED_BATCH, PUBLISHED_TILES, PUBLISHED_DRAWS = 2, 600, 5
PROBE_TILES = 20  # of the published network, timed between ours


def report(
    figure: str, ours: float, peer: float, target: str, ratio: float | None = None, **more: Any
) -> None:
    """Print one figure; without `ratio` it is the relative difference."""
    ratio = abs(ours - peer) / abs(peer) if ratio is None else ratio
    line = {"figure": figure, "ours": ours, "peer": peer, "ratio": ratio, "target": target}
    if figure.startswith("seconds"):
        line |= {"clock": clock, "threads": torch.get_num_threads()}
    print(json.dumps(line | more), flush=True)


def seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    """Return how long `work` takes by the clock chosen, and what it returns."""
    start = CLOCKS[clock]()
    value = work()
    return CLOCKS[clock]() - start, value


def square_root_distance(one: np.ndarray, two: np.ndarray) -> float:
    """Return the distance of pytorch-fid: moments by numpy, scipy's matrix square root."""
    one, two = one.astype(np.float64), two.astype(np.float64)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore", DeprecationWarning)  # scipy announces sqrtm's change
        return float(
            calculate_frechet_distance(
                one.mean(0), np.cov(one, rowvar=False), two.mean(0), np.cov(two, rowvar=False)
            )
        )


def eigenvalue_distance(one: np.ndarray, two: np.ndarray) -> float:
    """Return the distance of torch-fidelity: eigenvalues of the product of the covariances."""
    sides = [rows.astype(np.float64) for rows in (one, two)]
    statistics = [{"mu": rows.mean(0), "sigma": np.cov(rows, rowvar=False)} for rows in sides]
    return fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]


def agreement(tiles: int, cache: Path) -> None:
    """Compare every number on real tiles with the other implementations."""
    half, quarter = tiles // 2, tiles // 4
    breast = real_tiles("matched/her2st/tiles", half + quarter)
    # Set 2 shares a tissue with set 1, so that precision and recall are neither 0 nor 1.
    parts = {
        "breast": breast[:half],
        "more breast": breast[half:],
        "lung": real_tiles("tiles/lung", quarter),
    }
    extractor = FeatureExtractor(find_network("inception"), cache)
    peer = torch_fidelity_inception(cache)
    ours, theirs = [], []
    for name, pixels in parts.items():
        ours.append(extractor.features(Pixels(f"{name} {tiles}", pixels).all(), name))
        kept = cache / f"torch-fidelity {name} {tiles}.npy"
        if not kept.is_file():
            np.save(kept, features_in_batches(peer, pixels, 16))
        theirs.append(np.load(kept, allow_pickle=False))
    ours, theirs = ([side[0], np.concatenate(side[1:])] for side in (ours, theirs))
    note = {"tiles": 2 * half}
    distance = frechet_distance(*ours)
    report(
        "FID, pixels to distance, same weights, against torch-fidelity",
        distance, eigenvalue_distance(*theirs), "<= 1e-3", **note,
    )  # fmt: skip
    exact = [rows.astype(np.float64) for rows in ours]
    report(
        "FID at equal features, against torch-fidelity",
        distance, eigenvalue_distance(*ours), "<= 1e-6", **note,
    )  # fmt: skip
    report(
        "FID at equal features, against pytorch-fid",
        distance, square_root_distance(*ours), "<= 1e-6", **note,
    )  # fmt: skip
    tensors = [torch.from_numpy(rows) for rows in exact]
    own = kernel_distance(*ours, np.random.default_rng(0), 1, half).mean
    other = kid_features_to_metric(*tensors, kid_subsets=1, kid_subset_size=half, verbose=False)
    report(
        "KID at equal features, against torch-fidelity",
        own, other["kernel_inception_distance_mean"], "<= 1e-6", **note,
    )  # fmt: skip
    own = coverage_metrics(*ours)
    precision, recall = calculate_precision_recall_full(tensors[1], tensors[0])
    with contextlib.redirect_stdout(io.StringIO()):
        covered = prdc.compute_prdc(*exact, nearest_k=5)
    for name, theirs_value, source in (
        ("precision", precision, "torch-fidelity"),
        ("recall", recall, "torch-fidelity"),
        ("density", covered["density"], "prdc"),
        ("coverage", covered["coverage"], "prdc"),
    ):
        value = getattr(own, name)
        ratio = abs(value - theirs_value) / max(abs(theirs_value), 1e-12)
        report(
            f"{name} at equal features, against {source}",
            value, float(theirs_value), "<= 1e-6", ratio, **note,
        )  # fmt: skip


def distance(repeats: int) -> None:
    """Time the Frechet distance of 600 against 600 simulated features, 2,048 each."""
    draw = np.random.default_rng(0)
    mixing = draw.normal(size=(2048, 2048)) / 45
    rows = [np.maximum(draw.normal(size=(600, 2048)) @ mixing + shift, 0) for shift in (0.0, 0.1)]
    rows = [values.astype(np.float32) for values in rows]
    taken: dict[str, list[float]] = {"ours": [], "eigvals": [], "sqrtm": []}
    for _ in range(repeats):
        for name, work in (
            ("ours", frechet_distance),
            ("eigvals", eigenvalue_distance),
            ("ours", frechet_distance),
            ("sqrtm", square_root_distance),
        ):
            taken[name].append(seconds(lambda work=work: work(*rows))[0])
    best = {name: min(values) for name, values in taken.items()}
    for name, target in (("sqrtm", ">= 100"), ("eigvals", ">= 20")):
        report(
            f"seconds of a Frechet distance, N = 600, 2,048 features, against {name}",
            best["ours"], best[name], target, best[name] / best["ours"],
        )  # fmt: skip


def published_network() -> nn.Module:
    """Return torchvision's Inception v3 as the published code runs it, weights at random."""
    network = inception_v3(
        weights=None, aux_logits=False, transform_input=False, init_weights=False
    )
    network.fc = nn.Identity()
    return network.eval()


@torch.inference_mode()
def published_features(network: nn.Module, tiles: list[np.ndarray], device: str) -> np.ndarray:
    """Return features as published: batch size 2, float32, images resized by the network's rule."""
    rows = []
    for start in range(0, len(tiles), PUBLISHED_BATCH):
        pixels = torch.from_numpy(np.stack(tiles[start : start + PUBLISHED_BATCH])).to(device)
        rows.append(network(prepare_images(pixels, FID_RULE)).cpu())
    return torch.cat(rows).numpy()


@functools.cache
def _published_probe(device: str) -> tuple[nn.Module, list[np.ndarray]]:
    return published_network().to(device), real_tiles("matched/her2st/tiles", PROBE_TILES)


def published_tile_seconds(device: str, by: str) -> float:
    """Return the seconds of a published tile by a clock, now."""
    network, pixels = _published_probe(device)
    start = CLOCKS[by]()
    published_features(network, pixels, device)
    return (CLOCKS[by]() - start) / len(pixels)


def features(tiles: int, cache: Path, device: str) -> None:
    """Time the features of 600 tiles, and compare them with batch size 2 of the same weights."""
    pixels = real_tiles("matched/her2st/tiles", tiles)
    peer = torch_fidelity_inception(cache).to(device)
    published = published_network().to(device)
    warm = pixels[: 2 * PUBLISHED_BATCH]
    features_in_batches(peer, warm, PUBLISHED_BATCH, device)
    published_features(published, warm, device)
    taken: dict[str, float] = {"ours": 0, "bfloat16": 0, "torch-fidelity": 0, "published": 0}
    rows: dict[str, list[np.ndarray]] = {"ours": [], "bfloat16": [], "torch-fidelity": []}
    source = Pixels("features", pixels)
    network = find_network("inception")
    with tempfile.TemporaryDirectory() as folder:
        extractors = {
            name: FeatureExtractor(network, folder, device, bfloat16=name == "bfloat16")
            for name in ("ours", "bfloat16")
        }
        for one in extractors.values():
            one.features([(Pixels("warm", pixels[:2]), 0)])
        for start in range(0, tiles, 100):  # alternating, so that a busy machine is fair to all
            part = range(start, min(start + 100, tiles))
            for name, one in extractors.items():
                took, found = seconds(
                    lambda one=one, part=part: one.features([(source, k) for k in part])
                )
                taken[name] += took
                rows[name].append(found)
            chunk = [pixels[k] for k in part]
            with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):  # as in ours
                took, found = seconds(
                    lambda chunk=chunk: features_in_batches(peer, chunk, 2, device)
                )
            taken["torch-fidelity"] += took
            rows["torch-fidelity"].append(found)
            took, _ = seconds(lambda chunk=chunk: published_features(published, chunk, device))
            taken["published"] += took
    whole = {name: np.concatenate(parts) for name, parts in rows.items()}
    scale = np.abs(whole["torch-fidelity"]).max()
    error = float(np.abs(whole["ours"] - whole["torch-fidelity"]).max() / scale)
    for name, label in (
        ("published", "the published network and batch size 2"),
        ("torch-fidelity", "torch-fidelity, same weights, batch size 2"),
    ):
        report(
            f"seconds for features of {tiles} tiles, float32, against {label}",
            taken["ours"], taken[name], ">= 2.5", taken[name] / taken["ours"],
            largest_difference=error,
        )  # fmt: skip
    report(
        f"seconds for features of {tiles} tiles, bfloat16, against published float32",
        taken["bfloat16"], taken["published"], "none", taken["published"] / taken["bfloat16"],
    )  # fmt: skip
    half = tiles // 2
    report(
        "FID in bfloat16 against float32, the same tiles",
        frechet_distance(whole["bfloat16"][:half], whole["bfloat16"][half:]),
        frechet_distance(whole["ours"][:half], whole["ours"][half:]),
        "none",
    )


def write_world(folder: Path, tile_px: int, step_channels: int) -> None:
    """Write real tiles as two cohorts, with generators of random weights, as --table expects."""
    torch.manual_seed(0)
    draw = np.random.default_rng(0)
    genes = [f"ENSG{number:011d}" for number in range(100)]
    zeros = torch.zeros(len(genes))
    vae = {"genes": len(genes), "hidden_dims": [64], "latent_dim": 64}
    content = {"model_args": vae, "model": BetaVAE(**vae).state_dict(), "genes": genes, "split": {}}
    content["scaler"] = {"transform": "log1p", "mean": zeros, "std": zeros + 1}
    save_checkpoint(folder / "betavae.pt", "betavae", content)
    for tissue, block, source, count in (
        ("lung", "0625", "tiles/lung", 420),
        ("brain", "3025", "tiles/brain", 294),
    ):
        names = [f"BENCH-{number:04d}-{block}.svs" for number in range(4)]
        for name, pixels in zip(names, np.array_split(real_tiles(source, count), 4), strict=True):
            tiles = [(k * tile_px, 0, 1.0, one) for k, one in enumerate(pixels)]
            path = store_path(folder / tissue, name)
            write_tile_store(path, name, tiles, pixels.shape[1], 0.5, {})
        table = pd.DataFrame(
            draw.uniform(0, 500, (4, len(genes))), columns=[f"rna_{g}" for g in genes]
        )
        table.insert(0, "wsi_file_name", names)
        table.to_csv(folder / f"{tissue}.csv", index=False)
        config = {"path_csv": [f"{folder}/{tissue}.csv"], "patch_data_path": [f"{folder}/{tissue}"]}
        config |= {"img_size": tile_px, "rna_features": len(genes)}
        (folder / f"{tissue}.json").write_text(json.dumps(config))
        arguments = {"latent_dim": 64, "image_px": tile_px, "step_channels": step_channels}
        for kind in ("gan", "rna-gan"):
            conditioning = None
            if kind == "rna-gan":
                conditioning = Conditioning(torch.zeros(64), torch.ones(64)).to_checkpoint() | {
                    "betavae_sha256": sha256_of(folder / "betavae.pt"),
                    "betavae_path": f"{folder}/betavae.pt",
                }
            state = {
                "generator_args": arguments,
                "gan_type": "dcgan",
                "generator_ema": Generator(**arguments).state_dict(),
                "image_px": tile_px,
                "conditioning": conditioning,
                "genes": genes,
                "config": {"path_csv": [f"{folder}/{tissue}.csv"]},
                "counters": {"epoch": 1},
                "train_slides": names[:2],
            }
            save_checkpoint(folder / f"{kind}_{tissue}.model", "gan", state)


def table(size: int, draws: int, precision: str, device: str) -> None:
    """Time the 15-pair table against 15 runs of the published procedure.

    The published procedure computes, for each pair and draw, both sets' tiles and features at batch
    size 2 and one matrix square root. Every draw is the same work, so that its parts are timed and
    counted: the whole would be hours. Its tiles are timed in turn with ours, some at every write of
    features, so that a machine whose speed changes is fair to both.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_world(folder, 64, 24)
        rows = json.loads(Path("configs/fid_table.json").read_text())["pairs"]
        patients = {"GTEX-15RJ7-0625.svs": "BENCH-0000-0625.svs"}
        patients["GTEX-1C6WA-3025.svs"] = "BENCH-0000-3025.svs"
        for row in rows:
            for key, value in row.items():
                if key.startswith("checkpoint"):
                    row[key] = f"{folder}/{Path(value).name}"
                elif key.startswith("config"):
                    row[key] = f"{folder}/{Path(value).stem.split('_')[-1]}.json"
                elif key.startswith("patient"):
                    row[key] = patients[value]
                elif key == "vae_checkpoint":
                    row[key] = f"{folder}/betavae.pt"
        (folder / "table.json").write_text(json.dumps({"pairs": rows}))
        draw = np.random.default_rng(0)
        made = [np.maximum(draw.normal(size=(count, 2048)), 0) for count in (90, 100)]
        root = seconds(lambda: square_root_distance(*made))[0]
        options = ["--table", f"{folder}/table.json", "--output", f"{folder}/out"]
        options += ["--sample_size", str(size), "--draws", str(draws), "--precision", precision]
        options += ["--device", device]
        probes = []
        save = FeatureExtractor._save
        # A process of its own: what ours sets for its memory helps the peer too.
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as peers:

            def probe() -> float:
                return peers.submit(published_tile_seconds, device, clock).result()

            def save_and_probe(*given: Any) -> None:
                save(*given)
                taken, found = seconds(probe)
                probes.append((taken, found))

            probe()  # the first makes the network
            with (
                contextlib.redirect_stdout(io.StringIO()),
                mock.patch.object(FeatureExtractor, "_save", save_and_probe),
            ):
                ours = seconds(lambda: fid.main(options))[0]
        ours -= sum(taken for taken, _ in probes)
        per_tile = float(np.mean([found for _, found in probes]))
    peer = len(rows) * draws * (2 * size * per_tile + root)
    report(
        f"seconds of the 15-pair table, {draws} draws of {size} tiles, {precision}, {device},"
        " against 15 published runs",
        ours, peer, ">= 20", peer / ours, published_tile_s=per_tile, published_root_s=root,
    )  # fmt: skip


def main(argv: list[str] | None = None) -> None:
    """Measure what is asked for."""
    global clock
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    every = ("agreement", "distance", "features", "table")
    parser.add_argument("--only", nargs="+", choices=every, default=every)
    parser.add_argument("--tiles", type=int, default=1000, help="of the agreement, both sets")
    parser.add_argument("--repeats", type=int, default=3, help="of the distance")
    parser.add_argument("--feature_tiles", type=int, default=PUBLISHED_TILES)
    parser.add_argument("--sample_size", type=int, default=PUBLISHED_TILES, help="of the table")
    parser.add_argument("--draws", type=int, default=PUBLISHED_DRAWS, help="of the table")
    parser.add_argument("--precision", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--device", default="cpu", help="of features and table, and of their peers")
    parser.add_argument("--clock", choices=CLOCKS, default=clock)
    parser.add_argument("--cache", type=Path, default=Path("fid_results/features"))
    args = parser.parse_args(argv)
    clock = args.clock
    args.cache.mkdir(parents=True, exist_ok=True)
    if "agreement" in args.only:
        agreement(args.tiles, args.cache)
    if "distance" in args.only:
        distance(args.repeats)
    if "features" in args.only:
        features(args.feature_tiles, args.cache, args.device)
    if "table" in args.only:
        for precision in args.precision:
            table(args.sample_size, args.draws, precision, args.device)


if __name__ == "__main__":
    main()
