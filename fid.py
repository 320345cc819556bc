"""Compare tile sets: FID, KID and coverage of real, GAN and RNA-GAN tiles, beside the real floor.

Reproduces: RNA-GAN (doi 10.1016/j.crmeth.2023.100534), FID between real, GAN and RNA-GAN tiles of
        lung and brain: 5 draws of 600 tiles a set.
Reads:  checkpoints of histopathology_gan.py; tile stores and expression tables of the configs; the
        betaVAE for an RNA-GAN's profiles; folders or zips of images.
Writes: one JSON file with every draw, both sets, the feature network and its hash; with --table
        one for each pair, and the table as CSV, JSON, Markdown and heat map. Features are kept in
        --cache by the content of the tiles, so that other pairs reuse them.

One checkpoint: real tiles of --config against that model. Two: model against model. --real: real
tiles of --config against those of --config2. --images and --images2: folders or zips in place of
real tiles and of a model. --patient1 and --patient2 name the slide whose tiles (real set) or
profile (RNA-GAN) sets 1 and 2 use; an RNA-GAN as set 2 gets patient 1's profile when there is no
--patient2. Without patients, tiles and profiles are drawn over all donors of the tissue, those of
the training included, as published. The floor is between disjoint donors.

    python3 fid.py --checkpoint ./checkpoints/rna-gan_lung/rna-gan_lung.model \\
        --config configs/gan_run_lung.json --sample_size 600 --vae \\
        --vae_checkpoint checkpoints/betavae_training_tissues/model_dict_best.pt \\
        --patient1 GTEX-15RJ7-0625.svs
    python3 fid.py --table configs/fid_table.json --output fid_results
    python3 fid.py --checkpoint demo/checkpoints/gan_lung.model \\
        --config configs/demo/gan_run_lung.json --sample_size 32
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from data.cohort import Cohort, Profiles
from data.morphology_truth import known_rows, read_factors, read_programs
from data.pixels import images_to_pixels
from data.splits import untrained_rows
from data.tile_sets import Tiles, TileSet, disjoint_donor_draws, open_images, stored_set
from metrics.comparison import KID_SUBSETS, comparison_notes
from metrics.conditioning import FACTORS, conditioning_cost, measure_conditioning
from metrics.evaluation import (
    combine_runs,
    compare_tiles,
    comparison_cost,
    copying_of,
    recovery_of,
)
from metrics.expression_recovery import log_per_million
from metrics.features import BATCH_SIZE, FeatureExtractor
from metrics.frechet_resampling import RESAMPLES
from metrics.networks import INPUT_RULES, find_network
from models.generated_tiles import GeneratedTiles, profile_images
from report.evaluation import closest_pairs, conditioning_lines, result_lines, save_table
from report.style import DPI, look
from runtime.checkpoint import check_betavae, check_genes, load_checkpoint
from runtime.config import GANConfig, load_config
from runtime.device import choose_device, keep_freed_memory
from runtime.dry_run import add_dry_run, dry_run_lines
from runtime.errors import UserError, run_script
from runtime.fid_table import Pair, PairTable, check_pair
from runtime.files import atomic_path, read_json, sha256_of, write_json
from runtime.versions import versions

CONDITIONING_TILES = 16  # per held-out donor
FLOOR_SAMPLES = 4  # samples of tiles the floor is made of, so that its halves mostly hold one each


def build_parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--config", help="JSON config of set 1")
    parser.add_argument("--config2", help="JSON config of patient 2 or of real set 2")
    parser.add_argument("--seed", type=int, default=99)
    parser.add_argument("--device", help="default: the config's")
    sets = parser.add_argument_group("sets")
    sets.add_argument("--checkpoint", help=".model of a GAN or RNA-GAN")
    sets.add_argument("--checkpoint2", help="second .model: compare model with model")
    sets.add_argument("--real", action="store_true", help="compare real with real tiles")
    sets.add_argument("--images", help="folder or zip of images as set 1, in place of real tiles")
    sets.add_argument("--images2", help="folder or zip of images as set 2, in place of a model")
    sets.add_argument("--patient1", help="slide (wsi_file_name) of set 1")
    sets.add_argument("--patient2", help="slide (wsi_file_name) of set 2, of config2 if given")
    sets.add_argument("--vae", action="store_true", help="accepted; an RNA-GAN always needs it")
    sets.add_argument("--vae_checkpoint", help="betaVAE; default: the one the RNA-GAN names")
    sets.add_argument("--table", help="JSON list of pairs, e.g. configs/fid_table.json")
    sets.add_argument(
        "--allow_mixed_encoding", action="store_true", help="compare JPEG with lossless tiles"
    )
    models = parser.add_argument_group("several seeds and models, against the same real tiles")
    models.add_argument("--seeds", type=int, nargs="+", help="in place of --seed: mean over all")
    models.add_argument("--replicates", nargs="+", default=[], help="other trainings of the model")
    models.add_argument("--against", nargs="+", default=[], help="another model and its replicates")
    protocol = parser.add_argument_group("protocol")
    protocol.add_argument("--sample_size", type=int, default=600, help="tiles per set and draw")
    protocol.add_argument("--draws", type=int, default=5)
    protocol.add_argument("--no_floor", action="store_true", help="leave the real-real floor out")
    protocol.add_argument(
        "--bootstrap", type=int, default=RESAMPLES, help="resamples of the interval; 0: none"
    )
    protocol.add_argument(
        "--copying", type=int, metavar="N", help="nearest of N training tiles per generated tile"
    )
    protocol.add_argument(
        "--expression_recovery", type=int, metavar="N", help="read from N tiles per slide"
    )
    truth = parser.add_argument_group("conditioning, against true factors of held-out donors")
    truth.add_argument("--truth", help="CSV: slide, sample and factor columns")
    truth.add_argument("--programs", help="CSV for the dose response: gene_id, program, weight")
    truth.add_argument("--mpp", type=float, help="um per pixel of the tiles")
    network = parser.add_argument_group("feature network")
    network.add_argument(
        "--features",
        default="inception",
        help="inception, torchvision, a TorchScript file or module:function",
    )
    network.add_argument("--weights", help="weights file of the named network or function")
    network.add_argument("--input_rule", choices=INPUT_RULES, help="of a file or function")
    network.add_argument("--input_px", type=int, help="of a file or function")
    network.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    network.add_argument("--batch_size", type=int, default=BATCH_SIZE, help="tiles per call")
    files = parser.add_argument_group("files")
    files.add_argument("--output", help="JSON result, or the table's folder; in fid_results/")
    files.add_argument("--cache", help="folder of kept features; default: beside the output")
    files.add_argument("--overwrite", action="store_true", help="replace another result")
    add_dry_run(parser)
    return parser


class Plan(NamedTuple):
    """A comparison that is known to be possible: its sets, the floor's, and all it depends on."""

    pair: Pair
    seed: int
    one: TileSet
    two: TileSet
    floor: TileSet | None
    request: dict[str, Any]

    @property
    def name(self) -> str:
        """The labels of both sets, fit for a file name."""
        labels = (self.one.label, self.two.label)
        return "_".join(re.sub(r"[^A-Za-z0-9.+]+", "-", label) for label in labels)


class Evaluation:
    """What all comparisons of one call share: options, feature network, tables read, floors."""

    def __init__(self, args: argparse.Namespace, device: torch.device) -> None:
        self.args, self.device = args, device
        self.network = find_network(args.features, args.weights, args.input_rule, args.input_px)
        self.extractor: FeatureExtractor | None = None  # known once the cache's folder is
        self.cohort = functools.cache(self._cohort)
        self._floors: dict[str, dict[str, Any] | None] = {}

    def plan(self, pair: Pair, seed: int) -> Plan:
        """Return the comparison, checked as far as possible without a tile."""
        check_pair(pair)
        args = self.args
        one, two = self._sets(pair, seed)
        if one.identity == two.identity:
            raise UserError(f"{one.label}: both sets hold the same tiles; name another second set")
        for tile_set in (one, two):
            if len(tile_set.draws[0]) < 2:
                raise UserError(f"{tile_set.label}: 1 tile; a distance needs at least 2")
        if len(one.lossy() | two.lossy()) > 1 and not args.allow_mixed_encoding:
            encodings = [f"{side.label}: {'/'.join(side.facts['encoding'])}" for side in (one, two)]
            raise UserError(
                f"{'; '.join(encodings)}: JPEG on one side alone moves the FID; store both as PNG,"
                " or add --allow_mixed_encoding"
            )
        if args.copying or args.expression_recovery:
            self._slides(pair, two.draws[0][0][0])
        if args.truth:
            self._truth(pair, two.draws[0][0][0])
        floor = self._floor_set(pair, one, seed)
        request = {
            "sets": [one.identity, two.identity],
            "floor": floor and floor.identity,
            "network": self.network.identity(),
            "sample_size": args.sample_size,
            "draws": args.draws,
            "seed": seed,
            "kid_subsets": KID_SUBSETS,
            "resamples": args.bootstrap,
            "precision": args.precision,
            "copying": args.copying,
            "expression_recovery": args.expression_recovery,
            "truth": [args.mpp] + [sha256_of(f) for f in (args.truth, args.programs) if f],
        }
        return Plan(pair, seed, one, two, floor, request)

    def compare(self, plan: Plan) -> dict[str, Any]:
        """Return the result of a comparison, ready for JSON."""
        one, two, args = plan.one, plan.two, self.args
        labels = [one.label, two.label]
        numbers = compare_tiles(
            self.extractor,
            labels,
            [one.draws, two.draws],
            plan.seed,
            args.bootstrap,
            [one.classes(), two.classes()],
        )
        floor = self._floor(plan)
        notes = comparison_notes(numbers["tiles"], labels, args.sample_size)
        if len(one.lossy() | two.lossy()) > 1:
            notes.append("JPEG on one side only: that alone moves the FID")
        if floor is None and not args.no_floor:
            notes.append("no real-real floor: it needs tiles of two donors of the config's tissue")
        return {
            "request": plan.request,
            "sets": [{"label": side.label, **side.facts} for side in (one, two)],
            **numbers,
            "real_real_floor": floor,
            "network": self.extractor.identity() | {"file": self.network.path.name},
            "notes": notes,
            "versions": versions(),
        }

    def copying(self, plan: Plan, sheet: Path) -> dict[str, Any]:
        """Return whether draw 1 of the model repeats training tiles; write the closest pairs."""
        generated, (training, held_out) = plan.two.draws[0], self._copied_from(plan)
        scores, closest = copying_of(self.extractor, generated, training, held_out, plan.seed)
        pairs, pictures = [], []
        for place, number, distance in closest:
            index, (store, tile) = generated[place][1], training[number]
            pictures.append(
                [next(iter(source.read([k]))) for source, k in (generated[place], training[number])]
            )
            name = f"{store.slide}/{store.store.names[tile]}"
            pairs.append({"generated": index, "training": name, "distance": distance})
        with look(), atomic_path(sheet) as temporary:
            figure = closest_pairs(pictures, [pair["distance"] for pair in pairs])
            figure.savefig(temporary, dpi=DPI, metadata={"Software": None})
        return scores | {"closest": pairs, "sheet": sheet.name}

    def _copied_from(self, plan: Plan) -> list[Tiles]:
        """Return the training tiles and the held-out ones that generated tiles are held against."""
        model = plan.two.draws[0][0][0]
        stores = self.cohort(plan.pair.config)[1].stores(model.checkpoint["image_px"])
        sides = [
            [store for store in stores if store.slide in side]
            for side in self._slides(plan.pair, model)
        ]
        count = self.args.copying
        return [stored_set("", side, count, 1, plan.seed, {}).draws[0] for side in sides]

    def expression_recovery(self, plan: Plan) -> dict[str, Any]:
        """Return how well expression is read from held-out slides' real and generated tiles."""
        return recovery_of(self.extractor, *self._recovery(plan))

    def _recovery(self, plan: Plan) -> tuple:
        """Return what `recovery_of` takes."""
        source = self.cohort(plan.pair.config)
        cohort = source[1]
        model, count = plan.two.draws[0][0][0], self.args.expression_recovery
        sides = self._slides(plan.pair, model)
        rows = [[cohort.rows_of(name)[0] for name in side] for side in sides]

        def real(names: list[str]) -> list[Tiles]:
            px = model.checkpoint["image_px"]
            return [cohort.real_set(name, px, count, 1, plan.seed).draws[0] for name in names]

        def generated(profiles: Profiles) -> list[Tiles]:
            model = self._generated(
                plan.pair.checkpoint, plan.pair, plan.seed, source, profiles, count
            )
            numbers = range(len(profiles.expression) * count)
            return [[(model, k) for k in numbers[i : i + count]] for i in numbers[::count]]

        expression = [cohort.table.rows(side).expression for side in rows]
        given = Profiles(expression[1], cohort.table.genes, [], "held-out slides")
        conditions = {
            "real": real(sides[1]),
            "generated": generated(given),
            "zero": generated(given._replace(expression=np.zeros_like(expression[1]))),
        }
        logged = [log_per_million(values) for values in expression]
        donors = [cohort.table.donors[row] for row in rows[1]]
        return real(sides[0]), logged[0], conditions, logged[1], donors, plan.seed

    def conditioning(self, plan: Plan) -> dict[str, Any]:
        """Return whether tiles follow the profiles of held-out donors with known factors."""
        return measure_conditioning(*self._conditioning(plan))

    def _conditioning(self, plan: Plan) -> tuple:
        """Return what `measure_conditioning` takes."""
        model, args = plan.two.draws[0][0][0], self.args
        rows, held_out, truth, programs = self._truth(plan.pair, model)
        config, cohort = self.cohort(plan.pair.config)
        path = self._find_betavae(plan.pair.checkpoint, model.checkpoint, plan.pair, config)
        betavae = load_checkpoint(path, "betavae")
        sample = profile_images(model.checkpoint, betavae, plan.seed, self.device)
        expression = cohort.table.expression
        return (
            lambda *given: images_to_pixels(sample(*given)).numpy(),
            expression[rows],
            truth[rows],
            expression[~held_out].mean(axis=0),
            programs,
            args.mpp,
            CONDITIONING_TILES,
            plan.seed,
        )

    def _truth(self, pair: Pair, model: GeneratedTiles) -> tuple[np.ndarray, ...]:
        """Return rows of held-out donors with known factors, who is held out, factors, programs."""
        if not pair.config or not self.args.mpp or model.expression is None:
            raise UserError("--truth needs an RNA-GAN, --config and --mpp")
        config, cohort = self.cohort(pair.config)
        table, genes = cohort.table, model.checkpoint["genes"]
        path = self._find_betavae(pair.checkpoint, model.checkpoint, pair, config)
        split = load_checkpoint(path, "betavae")["split"]
        truth = read_factors(self.args.truth, table.names, FACTORS)
        held_out = untrained_rows(table, split, model.checkpoint["train_slides"])
        rows = known_rows(self.args.truth, truth, held_out)
        file = self.args.programs
        return rows, held_out, truth, read_programs(file, genes, FACTORS) if file else {}

    def _cohort(self, path: str) -> tuple[GANConfig, Cohort]:
        config = load_config(GANConfig, path)
        return config, Cohort(path, config.path_csv, config.patch_data_path)

    def _slides(self, pair: Pair, model: GeneratedTiles) -> tuple[list[str], list[str]]:
        """Return the slides with tiles that the model was trained on, and those it was not."""
        if not pair.config:
            raise UserError("--copying and --expression_recovery need the --config of the slides")
        if self.args.expression_recovery and model.expression is None:
            raise UserError(f"{pair.checkpoint}: a plain GAN; expression is read from an RNA-GAN's")
        trained = set(model.checkpoint["train_slides"])
        slides = list(self.cohort(pair.config)[1].store_paths())
        sides = [[name for name in slides if (name in trained) == seen] for seen in (True, False)]
        least = 3 if self.args.expression_recovery else 1
        if min(map(len, sides)) < least:
            raise UserError(
                f"{pair.config}: {len(sides[0])} slides with tiles that {pair.checkpoint} was"
                f" trained on and {len(sides[1])} others; {least} of each are needed"
            )
        return sides[0], sides[1]

    def _sets(self, pair: Pair, seed: int) -> tuple[TileSet, TileSet]:
        first = self.cohort(pair.config) if pair.config else None
        second = self.cohort(pair.config2) if pair.config2 else first
        protocol = (self.args.sample_size, self.args.draws, seed)
        if pair.real:
            return tuple(
                cohort.real_set(patient, config.img_size, *protocol)
                for (config, cohort), patient in ((first, pair.patient1), (second, pair.patient2))
            )
        # Set 2 follows patient 1 unless it has a patient, or a config without any patient, its own.
        source2 = (first, pair.patient1)
        if pair.patient2 or not pair.patient1:
            source2 = (second, pair.patient2)
        if pair.checkpoint2:
            one = self._model_set(pair.checkpoint, pair, seed, first, pair.patient1)
            two = self._model_set(pair.checkpoint2, pair, seed, *source2)
            if one.identity["checkpoint_sha256"] == two.identity["checkpoint_sha256"]:
                # The same generator twice must not meet its own noise.
                own = protocol[0] * protocol[1]
                two = self._model_set(pair.checkpoint2, pair, seed, *source2, own)
            return one, two
        if pair.checkpoint:
            two = self._model_set(pair.checkpoint, pair, seed, *source2)
        else:
            two = self._image_set(pair.images2, None, seed)
        # Tiles are brought to the size of set 2.
        image_px = two.facts["image_px"]
        if pair.images:
            return self._image_set(pair.images, image_px, seed), two
        return first[1].real_set(pair.patient1, image_px, *protocol), two

    def _model_set(
        self,
        path: str,
        pair: Pair,
        seed: int,
        source: tuple[GANConfig, Cohort] | None,
        patient: str | None,
        first: int = 0,
    ) -> TileSet:
        """Return generated tiles, numbered from `first`; every draw has tiles of its own."""
        checkpoint = load_checkpoint(path, "gan")
        tissues = checkpoint["config"]["path_csv"]
        facts = {
            "kind": "GAN",
            "tissue": "+".join(Path(table).name.split(".")[0] for table in tissues),
            "checkpoint": str(path),
            "epoch": checkpoint["counters"]["epoch"],
            "encoding": ["lossless"],
            "image_px": checkpoint["image_px"],
        }
        profiles = None
        if checkpoint["conditioning"] is not None:
            if source is None:
                raise UserError(f"{path}: an RNA-GAN needs profiles; name a --config")
            profiles = source[1].profiles(patient)
            facts |= {
                "kind": "RNA-GAN",
                "betavae": self._find_betavae(path, checkpoint, pair, source[0]),
                "profiles_from": source[0].path_csv,
                "profiles": profiles.origin,
            }
        tiles = self._generated(path, pair, seed, source, profiles)
        label = f"{facts['kind']} {facts['tissue']}"
        if profiles and patient:
            label += f" {patient}"
        size = self.args.sample_size
        draws = [
            [(tiles, first + draw * size + index) for index in range(size)]
            for draw in range(self.args.draws)
        ]
        identity = tiles.identity() | {"first": first}
        return TileSet(label, identity, facts | tiles.identity(), draws)

    def _generated(
        self,
        path: str,
        pair: Pair,
        seed: int,
        source: tuple[GANConfig, Cohort] | None,
        profiles: Profiles | None,
        tiles_per_profile: int | None = None,
    ) -> GeneratedTiles:
        checkpoint = load_checkpoint(path, "gan")
        arguments = (checkpoint, sha256_of(path), seed, self.device, images_to_pixels)
        if profiles is None:
            return GeneratedTiles(*arguments)
        config, cohort = source
        check_genes(checkpoint["genes"], profiles.genes, cohort.where)
        betavae = self._find_betavae(path, checkpoint, pair, config)
        check_betavae(betavae, checkpoint, path)
        load = functools.partial(load_checkpoint, betavae, "betavae")
        return GeneratedTiles(
            *arguments, profiles.expression, profiles.tissues, load, tiles_per_profile
        )

    def _find_betavae(
        self, path: str, checkpoint: dict[str, Any], pair: Pair, config: GANConfig
    ) -> str:
        if pair.vae_checkpoint is not None:
            return pair.vae_checkpoint
        named = checkpoint["conditioning"]["betavae_path"], config.vae_checkpoint
        found = next((name for name in named if Path(name).is_file()), None)
        if found is None:
            raise UserError(
                f"{path}: an RNA-GAN needs its betaVAE; none at {' or '.join(named)};"
                " name it with --vae_checkpoint"
            )
        return found

    def _image_set(self, path: str, image_px: int | None, seed: int) -> TileSet:
        sources = open_images(path, image_px)
        if image_px is None:
            image_px = len(next(iter(sources[0].read([0]))))
        facts = {"kind": "images", "tissue": Path(path).stem, "path": path, "image_px": image_px}
        size, draws = self.args.sample_size, self.args.draws
        return stored_set(f"images {Path(path).stem}", sources, size, draws, seed, facts)

    def _floor_set(self, pair: Pair, one: TileSet, seed: int) -> TileSet | None:
        """Return the real tiles of the config's tissue, from which the floor is taken."""
        if self.args.no_floor or not pair.config:
            return None
        cohort = self.cohort(pair.config)[1]
        if not cohort.store_paths():
            return None
        if one.facts["kind"] == "real" and one.facts["patient"] is None:
            return one
        size, draws = self.args.sample_size, self.args.draws
        return cohort.real_set(None, one.facts["image_px"], size, draws, seed)

    def _floor(self, plan: Plan) -> dict[str, Any] | None:
        """Return the same numbers between disjoint donors of a tissue; None where there are not
        two.

        The tiles are those that the set draws first, so that few more features are needed.
        """
        sides = self._floor_draws(plan)
        if not sides:
            return None
        key = _digest([plan.floor.identity, plan.seed])
        if key not in self._floors:
            labels = [f"{plan.floor.label}, donors {half}" for half in "AB"]
            numbers = compare_tiles(self.extractor, labels, sides, plan.seed, 0)
            self._floors[key] = {"tissue": plan.floor.facts["tissue"], **numbers}
        return self._floors[key]

    def _floor_draws(self, plan: Plan) -> tuple[list[Tiles], ...]:
        """Return the draws of both sides of the floor; nothing where there are not two donors."""
        if plan.floor is None:
            return ()
        args = self.args
        tiles = plan.floor.pool[: args.sample_size * max(args.draws, FLOOR_SAMPLES)]
        sides = disjoint_donor_draws(tiles, args.sample_size, args.draws, plan.seed) or ()
        too_few = any(len(draw) < 2 for side in sides for draw in side)
        return () if too_few else sides

    def dry_run(self, plans: list[Plan], output: Path) -> list[str]:
        """Return what comparisons would need, from features of a few tiles and a draw of noise."""
        floors = {
            _digest([plan.floor.identity, plan.seed]): sides
            for plan in plans
            if (sides := self._floor_draws(plan))
        }
        facts: dict[str, Any] = {"comparisons": len(plans), "real-real floors": len(floors)}
        args, others, seconds = self.args, [], 0.0
        if plans and args.copying:
            others += self._copied_from(plans[0])
        if plans and args.expression_recovery:
            training, _, conditions, *_ = self._recovery(plans[0])
            others += [tiles for part in (training, *conditions.values()) for tiles in part]
        if plans and args.truth:
            facts["tiles of the conditioning"], seconds = conditioning_cost(
                *self._conditioning(plans[0])
            )
        pairs = [(plan.one.draws, plan.two.draws) for plan in plans]
        cost = comparison_cost(self.extractor, pairs, list(floors.values()), others, args.bootstrap)
        facts["features"] = f"{cost.width} of {cost.tiles} tiles on {self.device}"
        seconds += cost.seconds
        return dry_run_lines(output, facts, seconds, cost.disk_bytes)


def check_arguments(args: argparse.Namespace) -> None:
    """Raise a UserError for numbers out of range and options that do not go together."""
    for name, least in (("sample_size", 2), ("draws", 1), ("batch_size", 1), ("bootstrap", 0)):
        if getattr(args, name) < least:
            raise UserError(f"--{name} {getattr(args, name)}: at least {least} is needed")
    if args.bootstrap == 1:
        raise UserError("--bootstrap 1: 0, or at least 2 resamples are needed")
    for name in ("copying", "expression_recovery"):
        if getattr(args, name) is not None and getattr(args, name) < 2:
            raise UserError(f"--{name} {getattr(args, name)}: at least 2 tiles are needed")
    for name in ("copying", "expression_recovery", "truth"):
        if getattr(args, name) and (args.table or not args.checkpoint or args.checkpoint2):
            raise UserError(f"--{name} is of one model: name one --checkpoint, and no --table")
    if (args.replicates or args.against) and (not args.checkpoint or args.checkpoint2):
        raise UserError("--replicates and --against need one --checkpoint to be compared with")
    if args.table and any(getattr(args, name) for name in (*Pair.model_fields, "seeds")):
        raise UserError("--table: the sets are those of the file; leave their options out")


def stored_result(output: Path, request: Any, overwrite: bool) -> dict[str, Any] | None:
    """Return the result of the same request, None where there is none; refuse another one's."""
    if not output.is_file() or overwrite:
        return None
    stored = read_json(output)
    if not isinstance(stored, dict) or stored.get("request") != request:
        raise UserError(
            f"{output}: exists and belongs to another request; name another --output or add"
            " --overwrite"
        )
    return stored


def main(argv: list[str] | None = None) -> None:
    keep_freed_memory()

    # Arguments and config
    args = build_parser().parse_args(argv)
    check_arguments(args)
    if args.table:
        pairs = load_config(PairTable, args.table).pairs
    else:
        own = Pair(**{name: getattr(args, name) for name in Pair.model_fields})
        models = [args.checkpoint, *args.replicates, *args.against]
        pairs = [own.model_copy(update={"checkpoint": model}) for model in models]

    # Device; every draw takes the seed and its own name
    first = next((pair.config for pair in pairs if pair.config), None)
    wanted = load_config(GANConfig, first).device if args.device is None and first else args.device
    evaluation = Evaluation(args, choose_device(wanted))

    # Data and models: everything is checked before the first tile is read
    seeds = args.seeds or [args.seed]
    plans = [evaluation.plan(pair, seed) for pair in pairs for seed in seeds]
    requests = [plan.request for plan in plans]
    if args.table:
        folder = Path(args.output or f"fid_results/{Path(args.table).stem}_{_digest(requests)[:8]}")
        outputs = [folder / f"{n:02d}_{plan.name}.json" for n, plan in enumerate(plans, 1)]
    else:
        request = requests[0] if len(plans) == 1 else {"runs": requests}
        output = Path(args.output or f"fid_results/{plans[0].name}_{_digest(request)[:8]}.json")
        outputs, folder = [output], output.parent
        requests = [request]
    results = [
        stored_result(path, request, args.overwrite)
        for path, request in zip(outputs, requests, strict=True)
    ]
    evaluation.extractor = FeatureExtractor(
        evaluation.network,
        args.cache or folder / "features",
        evaluation.device,
        args.batch_size,
        args.precision == "bfloat16",
    )

    if args.dry_run:
        left = plans if results == [None] else []
        if args.table:
            left = [plan for plan, result in zip(plans, results, strict=True) if not result]
        print("\n".join(evaluation.dry_run(left, folder)))
        return

    # Features and distances, results
    if args.table:
        for number in tqdm(range(len(plans)), "pairs", unit="pair", disable=all(results)):
            if results[number] is None:
                results[number] = evaluation.compare(plans[number])
                write_json(outputs[number], results[number])
        for line in save_table(results, folder / "table"):
            print(line)
        return
    known = results[0] is not None
    if not known:
        runs = [evaluation.compare(plan) for plan in plans]
        result = runs[0]
        if len(runs) > 1:
            own = len(seeds) * (1 + len(args.replicates))
            result = combine_runs(runs[:own], runs[own:], args.against, bool(args.replicates))
            result |= {"request": requests[0]}
        if args.copying:
            result["copying"] = evaluation.copying(plans[0], output.with_suffix(".copies.png"))
        if args.truth:
            result["conditioning"] = evaluation.conditioning(plans[0])
        if args.expression_recovery:
            result["expression_recovery"] = evaluation.expression_recovery(plans[0])
        write_json(output, result)
        results = [result]
    for line in result_lines(results[0]):
        print(line)
    if "conditioning" in results[0]:
        print("\n".join(conditioning_lines(results[0]["conditioning"])))
    print(f"{output}: up to date, nothing computed" if known else output)


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


if __name__ == "__main__":
    run_script(main)
