"""Compare two tile sets: FID and KID of real, GAN and RNA-GAN tiles, beside the real-real floor.

Reproduces: RNA-GAN (doi 10.1016/j.crmeth.2023.100534), FID between real, GAN and RNA-GAN tiles of
        lung and brain: 5 draws of 600 tiles a set.
Reads:  checkpoints of histopathology_gan.py; tile stores and expression tables of the configs; the
        betaVAE for an RNA-GAN's profiles.
Writes: one JSON file with every draw, both sets, the feature network and its hash. Features are
        kept in --cache by the content of the tiles, so that other pairs reuse them.

One checkpoint: real tiles of --config against that model. Two: model against model. --real: real
tiles of --config against those of --config2. --patient1 and --patient2 name the slide whose tiles
(real set) or profile (RNA-GAN) sets 1 and 2 use; an RNA-GAN as set 2 gets patient 1's profile when
there is no --patient2. Without patients, tiles and profiles are drawn over all donors of the
tissue, those of the training included, as published. The floor is between disjoint donors.

    python3 fid.py --checkpoint ./checkpoints/rna-gan_lung/rna-gan_lung.model \\
        --config configs/gan_run_lung.json --sample_size 600 --vae \\
        --vae_checkpoint checkpoints/betavae_training_tissues/model_dict_best.pt \\
        --patient1 GTEX-15RJ7-0625.svs
    python3 fid.py --checkpoint demo/checkpoints/gan_lung.model \\
        --config configs/demo/gan_run_lung.json --sample_size 32
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data.expression import ExpressionTable, donor_of, read_cohort
from data.pixels import images_to_pixels
from data.tile_sets import StoredTiles, disjoint_donor_draws, draw_tiles
from data.tiles import find_tile_stores, open_tile_store
from metrics.comparison import KID_SUBSETS, compare_draws, comparison_notes
from metrics.features import BATCH_SIZE, FeatureExtractor, TileSource, find_network
from models.networks import load_generator
from models.profiles import ProfileEncoder
from models.sampling import sample_images
from models.wgan_vae import Conditioning
from runtime.checkpoint import check_betavae, check_genes, load_checkpoint, versions
from runtime.config import GANConfig, load_config
from runtime.device import choose_device
from runtime.errors import UserError, run_script
from runtime.files import read_json, sha256_of, write_json
from runtime.seeds import numpy_generator

FLOOR_SAMPLES = 4  # samples of tiles the floor is made of, so that its halves mostly hold one each

Tiles = list[tuple[TileSource, int]]


def build_parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--config", required=True, help="JSON config of set 1")
    parser.add_argument("--config2", help="JSON config of patient 2 or of real set 2")
    parser.add_argument("--seed", type=int, default=99)
    parser.add_argument("--device", help="default: the config's")
    sets = parser.add_argument_group("sets")
    sets.add_argument("--checkpoint", help=".model of a GAN or RNA-GAN")
    sets.add_argument("--checkpoint2", help="second .model: compare model with model")
    sets.add_argument("--real", action="store_true", help="compare real with real tiles")
    sets.add_argument("--patient1", help="slide (wsi_file_name) of set 1")
    sets.add_argument("--patient2", help="slide (wsi_file_name) of set 2, of config2 if given")
    sets.add_argument("--vae", action="store_true", help="accepted; an RNA-GAN always needs it")
    sets.add_argument("--vae_checkpoint", help="betaVAE; default: the one the RNA-GAN names")
    protocol = parser.add_argument_group("protocol")
    protocol.add_argument("--sample_size", type=int, default=600, help="tiles per set and draw")
    protocol.add_argument("--draws", type=int, default=5)
    protocol.add_argument("--no_floor", action="store_true", help="leave the real-real floor out")
    protocol.add_argument(
        "--features", default="inception", help="inception, torchvision or a TorchScript file"
    )
    protocol.add_argument("--weights", help="weights file of the named network")
    protocol.add_argument("--batch_size", type=int, default=BATCH_SIZE, help="tiles per call")
    files = parser.add_argument_group("files")
    files.add_argument("--output", help="JSON result; default: a name in fid_results/")
    files.add_argument("--cache", help="folder of kept features; default: beside the output")
    files.add_argument("--overwrite", action="store_true", help="replace another result")
    return parser


class Cohort:
    """Expression table and real tiles of one config; both read when first asked for."""

    def __init__(self, path: str) -> None:
        self.path, self.config = path, load_config(GANConfig, path)

    @functools.cached_property
    def table(self) -> ExpressionTable:
        return read_cohort(self.config.path_csv)

    @property
    def tissue(self) -> str:
        return "+".join(dict.fromkeys(self.table.annotations["tissue"].astype(str)))

    def rows_of(self, patient: str | None) -> list[int]:
        """Return the table row of a slide, or all rows."""
        if patient is None:
            return list(range(len(self.table)))
        return [self.table.row_of(patient, ", ".join(self.config.path_csv))]

    def store_paths(self, patient: str | None = None) -> dict[str, Path]:
        """Return the tile store of one slide, or of every slide that has one."""
        names = [self.table.names[row] for row in self.rows_of(patient)]
        return find_tile_stores(self.config.patch_data_path, names)

    def stores(self, image_px: int, patient: str | None = None) -> list[StoredTiles]:
        """Return the opened tile stores; a UserError when there is none."""
        found = self.store_paths(patient)
        if not found:
            folders = ", ".join(self.config.patch_data_path) or "no folder (patch_data_path)"
            whose = patient or "any slide of path_csv"
            raise UserError(f"{self.path}: no tile store of {whose} under {folders}")
        return [
            StoredTiles(open_tile_store(path), name, donor_of(name), image_px)
            for name, path in found.items()
        ]


class GeneratedTiles:
    """Tiles of a checkpoint's generator; tile k depends on the seed, k and its profile alone.

    Args:
        checkpoint_path: a .model of histopathology_gan.py.
        cohort, patient: where an RNA-GAN's profiles come from: one slide's, or every tile's own,
            drawn over the whole table.
        vae_checkpoint: betaVAE file; None: the one the checkpoint, then the config names.
        seed: of the noise and of the drawn profiles.
        device: where the generator runs.
    """

    def __init__(
        self,
        checkpoint_path: str,
        cohort: Cohort,
        patient: str | None,
        vae_checkpoint: str | None,
        seed: int,
        device: torch.device,
    ) -> None:
        self.path, self.seed, self.device = checkpoint_path, seed, device
        self.checkpoint = load_checkpoint(checkpoint_path, "gan")
        self.image_px = self.checkpoint["image_px"]
        self.conditional = self.checkpoint["conditioning"] is not None
        self.sha256 = sha256_of(checkpoint_path)
        self._identity = {"checkpoint_sha256": self.sha256, "seed": seed}
        if not self.conditional:
            return
        self.cohort, self.patient, self.rows = cohort, patient, cohort.rows_of(patient)
        check_genes(self.checkpoint["genes"], cohort.table.genes, cohort.path)
        self.betavae_path = self._find_betavae(vae_checkpoint)
        check_betavae(self.betavae_path, self.checkpoint, self.path)
        profiles = cohort.table.expression[self.rows].tobytes()
        self._identity |= {
            "betavae_sha256": self.checkpoint["conditioning"]["betavae_sha256"],
            "profiles_sha256": hashlib.sha256(profiles).hexdigest(),
        }

    def identity(self) -> dict[str, Any]:
        """Return plain values that change whenever a tile would."""
        return self._identity

    def facts(self) -> dict[str, Any]:
        """Return what the set is, for the result."""
        tissues = self.checkpoint["config"]["path_csv"]
        facts = {
            "kind": "RNA-GAN" if self.conditional else "GAN",
            "tissue": "+".join(Path(path).name.split(".")[0] for path in tissues),
            "checkpoint": str(self.path),
            "epoch": self.checkpoint["counters"]["epoch"],
            "encoding": ["lossless"],
            "image_px": self.image_px,
        }
        if self.conditional:
            facts |= {
                "betavae": self.betavae_path,
                "profiles_from": self.cohort.config.path_csv,
                "profiles": self.patient or f"drawn from all {len(self.rows)}",
            }
        return facts | self._identity

    def read(self, indices: Sequence[int]) -> Iterator[np.ndarray]:
        """Yield pixels uint8 (H, W, 3) of tiles of ascending numbers."""
        generator, conditioning, mu = self._networks
        if conditioning is not None:
            mu = mu[[self._profile_of(index) for index in indices]]
        for _, image in sample_images(generator, self.seed, indices, conditioning, mu):
            yield images_to_pixels(image[None])[0].numpy()

    @functools.cached_property
    def _networks(self) -> tuple[torch.nn.Module, Conditioning | None, torch.Tensor | None]:
        generator = load_generator(self.checkpoint, self.device)
        if not self.conditional:
            return generator, None, None
        betavae = load_checkpoint(self.betavae_path, "betavae")
        encoder = ProfileEncoder.from_checkpoint(betavae, self.device)
        mu = encoder.mu(self.cohort.table.expression[self.rows])  # (P, D)
        return generator, Conditioning.from_checkpoint(self.checkpoint["conditioning"]), mu

    def _profile_of(self, index: int) -> int:
        return int(numpy_generator(self.seed, "profile", index).integers(len(self.rows)))

    def _find_betavae(self, given: str | None) -> str:
        if given is not None:
            return given
        named = self.checkpoint["conditioning"]["betavae_path"], self.cohort.config.vae_checkpoint
        found = next((path for path in named if Path(path).is_file()), None)
        if found is None:
            raise UserError(
                f"{self.path}: an RNA-GAN needs its betaVAE; none at {' or '.join(named)};"
                " name it with --vae_checkpoint"
            )
        return found


@dataclass
class TileSet:
    """One side of a pair.

    label: its name. identity: what its tiles depend on. facts: what it is. draws: the tiles of each
    draw. pool: all tiles of a real set, in random order.
    """

    label: str
    identity: dict[str, Any]
    facts: dict[str, Any]
    draws: list[Tiles]
    pool: Tiles


def real_set(
    cohort: Cohort, patient: str | None, image_px: int, args: argparse.Namespace
) -> TileSet:
    """Return real tiles of a slide or a tissue, drawn at random over all slides."""
    stores = cohort.stores(image_px, patient)
    pool = [(store, index) for store in stores for index in range(len(store))]
    digest = _digest([store.identity() for store in stores])
    label = f"real {cohort.tissue}" + (f" {patient}" if patient else "")
    facts = {
        "kind": "real",
        "tissue": cohort.tissue,
        "patient": patient,
        "slides": len(stores),
        "donors": len({store.donor for store in stores}),
        "tiles_available": len(pool),
        "encoding": sorted(set().union(*(store.encodings() for store in stores))),
        "image_px": image_px,
    }
    draw = numpy_generator(args.seed, "real", digest)
    shuffled = [pool[number] for number in draw.permutation(len(pool))]
    draws = draw_tiles(shuffled, args.sample_size, args.draws, draw)
    return TileSet(label, {"real": digest}, facts, draws, shuffled)


def model_set(tiles: GeneratedTiles, first: int, args: argparse.Namespace) -> TileSet:
    """Return generated tiles, numbered from `first`; every draw has tiles of its own."""
    facts, size = tiles.facts(), args.sample_size
    label = f"{facts['kind']} {facts['tissue']}"
    if tiles.conditional and tiles.patient:
        label += f" {tiles.patient}"
    draws = [
        [(tiles, first + draw * size + index) for index in range(size)]
        for draw in range(args.draws)
    ]
    return TileSet(label, tiles.identity() | {"first": first}, facts, draws, [])


def choose_sets(
    cohort: Cohort, cohort2: Cohort, device: torch.device, args: argparse.Namespace
) -> tuple[TileSet, TileSet, TileSet | None]:
    """Return set 1, set 2 and the floor's real tiles (of the config's tissue), or None without."""
    # Set 2 follows patient 1 unless it has a patient, or a config without any patient, of its own.
    source2 = (cohort, args.patient1)
    if args.patient2 or not args.patient1:
        source2 = (cohort2, args.patient2)

    def generated(checkpoint: str, source: tuple[Cohort, str | None]) -> GeneratedTiles:
        return GeneratedTiles(checkpoint, *source, args.vae_checkpoint, args.seed, device)

    if args.real:
        one = real_set(cohort, args.patient1, cohort.config.img_size, args)
        two = real_set(cohort2, args.patient2, cohort2.config.img_size, args)
        if one.identity == two.identity:
            raise UserError("--real: both sets hold the same tiles; name --config2 or --patient2")
    elif args.checkpoint2:
        model1 = generated(args.checkpoint, (cohort, args.patient1))
        model2 = generated(args.checkpoint2, source2)
        # The same generator twice must not meet its own noise.
        first = args.draws * args.sample_size if model1.sha256 == model2.sha256 else 0
        one, two = model_set(model1, 0, args), model_set(model2, first, args)
    else:
        model = generated(args.checkpoint, source2)
        one = real_set(cohort, args.patient1, model.image_px, args)
        two = model_set(model, 0, args)
    if args.no_floor or not cohort.store_paths():
        return one, two, None
    if one.facts["kind"] == "real" and one.facts["patient"] is None:
        return one, two, one
    return one, two, real_set(cohort, None, one.facts["image_px"], args)


def compare(
    extractor: FeatureExtractor, labels: Sequence[str], sides: Sequence[list[Tiles]], seed: int
) -> dict[str, Any]:
    """Return FID and KID of every draw of two sets, with mean and standard deviation."""
    features = []
    for label, draws in zip(labels, sides, strict=True):
        rows = extractor.features([tile for draw in draws for tile in draw], label)
        features.append(np.split(rows, np.cumsum([len(draw) for draw in draws])[:-1]))
    try:
        return compare_draws(*features, seed)
    except (ValueError, np.linalg.LinAlgError) as error:
        raise UserError(f"{' against '.join(labels)}: {error}") from error


def compare_floor(
    extractor: FeatureExtractor, real: TileSet | None, args: argparse.Namespace
) -> dict[str, Any] | None:
    """Return the same numbers between disjoint donors of a tissue; None where there are not two.

    The tiles are those that `real` draws first, so that few more features are needed.
    """
    if real is None:
        return None
    tiles = real.pool[: args.sample_size * max(args.draws, FLOOR_SAMPLES)]
    sides = disjoint_donor_draws(tiles, args.sample_size, args.draws, args.seed)
    if sides is None or min(len(draw) for side in sides for draw in side) < 2:
        return None
    labels = [f"{real.label}, donors {half}" for half in "AB"]
    return {"tissue": real.facts["tissue"], **compare(extractor, labels, sides, args.seed)}


def report(result: dict[str, Any]) -> None:
    """Print a result: the draws, mean and standard deviation, then what stands beside them."""
    fid, floor, network = result["fid"], result["real_real_floor"], result["network"]
    print(" - ".join(side["label"] for side in result["sets"]))
    print([round(value, 4) for value in fid["draws"]])
    counts = " against ".join(str(count) for count in result["tiles"])
    print(f"FID: {_text(fid)} ({len(fid['draws'])} draws of {counts} tiles)")
    print(f"KID x 1000: {_text(result['kid'], 1000)}")
    if floor:
        counts = " against ".join(str(count) for count in floor["tiles"])
        print(
            f"real against real, disjoint donors of {floor['tissue']} ({counts} tiles):"
            f" FID {_text(floor['fid'])}; KID x 1000 {_text(floor['kid'], 1000)}"
        )
    print(
        f"features: {network['network']}, weights {network['file']}"
        f" ({network['weights_sha256'][:12]}), {network['px']} px {network['resize']}"
    )
    for note in result["notes"]:
        print(f"note: {note}")


def main(argv: list[str] | None = None) -> None:
    # Arguments and config
    args = build_parser().parse_args(argv)
    check_arguments(args)
    network = find_network(args.features, args.weights)

    cohort = Cohort(args.config)
    cohort2 = Cohort(args.config2) if args.config2 else cohort

    # Device; every draw takes the seed and its own name
    device = choose_device(cohort.config.device if args.device is None else args.device)

    # Data and models
    one, two, real = choose_sets(cohort, cohort2, device, args)
    for tile_set in (one, two):
        if len(tile_set.draws[0]) < 2:
            raise UserError(f"{tile_set.label}: 1 tile; a distance needs at least 2")
    request = {
        "sets": [one.identity, two.identity],
        "floor": real and real.identity,
        "network": network.identity(),
        "sample_size": args.sample_size,
        "draws": args.draws,
        "seed": args.seed,
        "kid_subsets": KID_SUBSETS,
    }
    names = [re.sub(r"[^A-Za-z0-9.+]+", "-", tile_set.label) for tile_set in (one, two)]
    name = "_".join([*names, _digest(request)[:8]])
    output = Path(args.output or f"fid_results/{name}.json")
    if output.is_file() and not args.overwrite:
        stored = read_json(output)
        if not isinstance(stored, dict) or stored.get("request") != request:
            raise UserError(
                f"{output}: exists and belongs to another request; name another --output or add"
                " --overwrite"
            )
        report(stored)
        print(f"{output}: up to date, nothing computed")
        return

    # Features and distances
    cache = args.cache or output.parent / "features"
    extractor = FeatureExtractor(network, cache, device, args.batch_size)
    labels = [one.label, two.label]
    numbers = compare(extractor, labels, [one.draws, two.draws], args.seed)
    floor = compare_floor(extractor, real, args)
    notes = comparison_notes(numbers["tiles"], labels, args.sample_size)
    if floor is None and not args.no_floor:
        notes.append("no real-real floor: it needs tiles of two donors of the config's tissue")

    # Results
    result = {
        "request": request,
        "sets": [{"label": side.label, **side.facts} for side in (one, two)],
        **numbers,
        "real_real_floor": floor,
        "network": network.identity() | {"file": network.path.name},
        "notes": notes,
        "versions": versions(),
    }
    write_json(output, result)
    report(result)
    print(output)


def check_arguments(args: argparse.Namespace) -> None:
    """Raise a UserError unless the options name one pair."""
    if args.real and (args.checkpoint or args.checkpoint2):
        raise UserError("--real compares real with real tiles; leave --checkpoint out")
    if not args.real and not args.checkpoint:
        raise UserError("name --checkpoint (one or two models), or --real for two real sets")
    for name, least in (("sample_size", 2), ("draws", 1), ("batch_size", 1)):
        if getattr(args, name) < least:
            raise UserError(f"--{name} {getattr(args, name)}: at least {least} is needed")


def _text(summary: dict[str, Any], factor: float = 1.0) -> str:
    sd = "not known" if summary["sd"] is None else f"{factor * summary['sd']:.4f}"
    return f"mean {factor * summary['mean']:.4f}, standard deviation {sd}"


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


if __name__ == "__main__":
    run_script(main)
