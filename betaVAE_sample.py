"""Synthetic expression from a trained betaVAE: new profiles, real ones shifted, or paths.

Reproduces: RNA-GAN (doi 10.1016/j.crmeth.2023.100534), synthetic and shifted expression.
Reads:  a betaVAE checkpoint and the config's tables (not for `--prior normal --residual_noise
        none`, the published form, unless held-out profiles are there to compare with).
Writes: in `save_dir`, tables in the form of the input, so that they can be fed to any stage:
        samples.csv (samples_<tissue>.csv with `--tissue`), or, with `--interpolation`,
        samples_<a>_to_<b>.csv and back, with `--steps` path_<a>_to_<b>.csv; for each
        evidence_<name>.json: how far samples agree with held-out profiles, and for new profiles
        evidence_<name>_genes.csv and evidence_<name>_profiles.csv, which figures.py draws.

    python3 betaVAE_sample.py --seed 99 --config configs/betavae_tissues.json --log 0 --parallel 0
    python3 betaVAE_sample.py --seed 99 --config configs/demo/betavae_tissues.json --num_samples 200
"""

from __future__ import annotations

import argparse
import re
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from data.expression import ExpressionTable, read_cohort, write_expression_table
from metrics.expression_agreement import gene_agreement, profile_components
from metrics.sample_evidence import sample_evidence
from metrics.two_sample import transfer_accuracy
from models.latent_prior import (
    NOISES,
    PRIORS,
    ResidualNoise,
    TrainingLatents,
    set_zeros,
)
from models.profiles import ProfileEncoder
from runtime.checkpoint import check_genes, load_checkpoint
from runtime.config import BetaVAEConfig, load_config
from runtime.device import choose_device
from runtime.dry_run import add_dry_run, dry_run_lines, peak_memory, scratch_trial
from runtime.errors import UserError, run_script
from runtime.files import require_file, sha256_of, write_csv, write_json
from runtime.run import already_done, log, start_log
from runtime.seeds import numpy_generator, seed_everything

SHIFT_KEYS = ("difference", "groups", "members_0", "members_1")
TRIAL_PROFILES = 32


def build_parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--config", required=True, help="JSON config of the betaVAE")
    parser.add_argument("--seed", type=int, default=99)
    parser.add_argument("--checkpoint", help="betaVAE; default <save_dir>/model_dict_best.pt")
    parser.add_argument("--num_samples", type=int, default=600, help="profiles per table")
    new = parser.add_argument_group("new profiles")
    new.add_argument(
        "--prior",
        choices=PRIORS,
        help="z of random training profiles (posterior, the default), of Gaussians fitted to them"
        " per tissue (mixture), or N(0, I) as published (normal)",
    )
    new.add_argument("--tissue", help="of this tissue only")
    new.add_argument(
        "--residual_noise",
        choices=NOISES,
        help="spread of training profiles around decoded ones that is added: gene by gene (the"
        " default), or none as published (the default of shifts and paths)",
    )
    shift = parser.add_argument_group("shifted profiles and paths")
    shift.add_argument("--interpolation", help="interpolation_<type>.npz: shift real profiles")
    shift.add_argument("--alpha", type=float, default=1.0, help="shift in units of the difference")
    shift.add_argument(
        "--steps", type=int, help="profiles of a path between the groups' means, ends included"
    )
    shift.add_argument(
        "--between", nargs=2, metavar="NAME", help="path between these two samples instead"
    )
    parser.add_argument(
        "--log", type=int, choices=(0, 1), default=0, help="accepted; no events here"
    )
    parser.add_argument(
        "--parallel", type=int, choices=(0, 1), default=0, help="accepted; one device"
    )
    parser.add_argument("--device")
    parser.add_argument("--overwrite", action="store_true", help="replace another command's result")
    add_dry_run(parser)
    return parser


def check_arguments(args: argparse.Namespace) -> None:
    """Raise a UserError that names options out of range or at odds with each other."""
    if args.num_samples < 1:
        raise UserError(f"--num_samples {args.num_samples}: 1 or more is needed")
    if not np.isfinite(args.alpha):
        raise UserError(f"--alpha {args.alpha}: a finite number is needed")
    if args.steps is not None and args.steps < 2:
        raise UserError(f"--steps {args.steps}: 2 or more are needed")
    if args.between and args.interpolation:
        raise UserError("--between: a path has the ends of --interpolation or these, not both")
    if bool(args.between) > bool(args.steps) or (
        args.steps and not (args.between or args.interpolation)
    ):
        raise UserError("--steps: a path needs --steps and --interpolation FILE or --between A B")
    if (args.interpolation or args.between) and (args.prior or args.tissue):
        raise UserError("--prior and --tissue are for new profiles, not for shifts and paths")
    if args.tissue and args.prior == "normal":
        raise UserError("--tissue: N(0, I) knows no tissues; choose --prior posterior or mixture")


def read_interpolation(path: str, latent_dim: int) -> dict[str, np.ndarray]:
    """Return the arrays of an interpolation file, checked against the latent dimension."""
    try:
        with np.load(require_file(path, "interpolation"), allow_pickle=False) as archive:
            content = {key: archive[key] for key in SHIFT_KEYS}
    except (KeyError, ValueError, OSError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: not a result of betaVAE_interpolation.py ({error})") from error
    if content["difference"].shape != (latent_dim,):
        raise UserError(
            f"{path}: {content['difference'].size} latent dimensions, the betaVAE has {latent_dim}"
        )
    return content


def shifted_latents(mu: np.ndarray, shift: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Return z + shift (count, D) for profiles drawn from mu (N, D), all used equally often."""
    order = numpy_generator(seed, "shift").permutation(len(mu))
    return mu[np.resize(order, count)] + shift


class Cohort:
    """The profiles that a betaVAE was trained on and those it was not, scaled and encoded.

    Args:
        table: of the config. encoder: the betaVAE. where: the tables, for errors.

    Raises:
        UserError: no training profile.
    """

    def __init__(self, table: ExpressionTable, encoder: ProfileEncoder, where: str) -> None:
        check_genes(encoder.genes, table.genes, where)
        self.table, self.encoder, self.where = table, encoder, where
        self.tissues = table.annotations["tissue"].astype(str).to_numpy(str)
        partition = np.array([encoder.split.get(donor, "") for donor in table.donors])
        self.training = np.flatnonzero(partition == "train")
        self.held_out = np.flatnonzero(partition == "test")
        if not len(self.training):
            raise UserError(f"{where}: no profile of a donor that the betaVAE was trained on")
        self.scaled = encoder.scaler.transform(table.expression)  # (N, G)
        mu, sigma = encoder.model.posterior(torch.from_numpy(self.scaled))
        self.mu, self.sigma = mu.numpy(), sigma.numpy()  # (N, D)

    def of_tissue(self, rows: np.ndarray, tissue: str | None) -> np.ndarray:
        """Return those rows that are of a tissue; None: all."""
        if tissue is None:
            return rows
        if tissue not in self.tissues[self.training]:
            found = ", ".join(dict.fromkeys(self.tissues[self.training].tolist()))
            raise UserError(f"--tissue {tissue}: no training profile of it (there are: {found})")
        return rows[self.tissues[rows] == tissue]

    @property
    def latents(self) -> TrainingLatents:
        """Latents of the training profiles."""
        rows = self.training
        return TrainingLatents(self.mu[rows], self.sigma[rows], self.tissues[rows])

    def residuals(self, seed: int) -> ResidualNoise:
        """Return the residuals of the training profiles."""
        rows = self.training
        draw = numpy_generator(seed, "residuals")
        decoded = self.decode(self.latents.posterior(np.arange(len(rows)), draw))
        return ResidualNoise.fit(self.scaled[rows], decoded, self.tissues[rows])

    def decode(self, latents: np.ndarray) -> np.ndarray:
        """Return scaled expression (N, G) of latents (N, D)."""
        return self.encoder.decode(torch.from_numpy(np.asarray(latents, np.float32)))

    def expression(
        self,
        latents: np.ndarray,
        tissues: Sequence[str],
        residuals: ResidualNoise | None,
        seed: int,
        name: str,
    ) -> np.ndarray:
        """Return expression float32 (N, G) >= 0 of latents, with residual noise or without.

        With noise, a gene is 0 as often as in training profiles of the tissue.
        """
        scaled = self.decode(latents)
        if residuals is None:
            return self.encoder.scaler.inverse(scaled)
        scaled += residuals.draw(tissues, numpy_generator(seed, "noise", name))
        values = self.encoder.scaler.inverse(scaled)
        rows = self.training
        set_zeros(values, tissues, self.table.expression[rows], self.tissues[rows])
        return values


def write_evidence(
    cohort: Cohort,
    samples: np.ndarray,
    tissues: np.ndarray,
    tissue: str | None,
    seed: int,
    about: dict[str, str],
    stem: Path,
) -> str | None:
    """Write what held-out profiles say of new samples (M, G), as JSON and as two tables.

    Return the numbers to remember; None where there are too few profiles.

    Args:
        cohort: real profiles. samples: expression as written. tissues: of each, "" for none.
        tissue: the one that was asked for, or None. seed: of draws. about: kept in the JSON.
        stem: path of the outputs without their ends.
    """
    rows, training = (cohort.of_tissue(r, tissue) for r in (cohort.held_out, cohort.training))
    labels = cohort.tissues
    scaled = cohort.encoder.scaler.transform(samples)
    evidence, real, generated = sample_evidence(
        cohort.scaled[rows],
        labels[rows],
        scaled,
        tissues,
        cohort.scaled[training],
        labels[training],
        seed,
    )
    if not evidence:
        log.info("%s: too few held-out profiles, no evidence", cohort.where)
        return None
    real = rows[real]
    sets = {
        "real": (cohort.scaled[real], labels[real]),
        "reconstructed": (cohort.decode(cohort.mu[real]), labels[real]),
        "generated": (scaled[generated], np.where(tissues == "", "none", tissues)[generated]),
    }
    logged = {
        "real": np.log1p(cohort.table.expression[real]),
        "generated": np.log1p(samples[generated]),
    }
    evidence["log_expression"] = gene_agreement(*logged.values())
    genes = pd.DataFrame({"gene": cohort.table.genes})
    for name, profiles in logged.items():
        genes[f"mean_{name}"], genes[f"sd_{name}"] = profiles.mean(axis=0), profiles.std(axis=0)
    points = profile_components(cohort.scaled[training], {k: v[0] for k, v in sets.items()})
    points.insert(1, "tissue", np.concatenate([value[1] for value in sets.values()]))
    write_csv(Path(f"{stem}_genes.csv"), genes)
    write_csv(Path(f"{stem}_profiles.csv"), points)
    write_json(Path(f"{stem}.json"), about | evidence)
    return f"{stem}.json: {headline(evidence)}"


def main(argv: list[str] | None = None) -> None:
    # Arguments and config
    args = build_parser().parse_args(argv)
    check_arguments(args)
    config = load_config(BetaVAEConfig, args.config, device=args.device)
    checkpoint_path = Path(args.checkpoint or Path(config.save_dir) / "model_dict_best.pt")
    is_new = not (args.interpolation or args.between)
    prior = args.prior or "posterior"
    noise = args.residual_noise or ("gene" if is_new else "none")

    # Run directory, log, seed, device
    start_log()
    seed_everything(args.seed)
    device = choose_device(config.device)
    checkpoint = load_checkpoint(checkpoint_path, "betavae")
    encoder = ProfileEncoder.from_checkpoint(checkpoint, device)
    inputs = [checkpoint_path, *config.path_csv]
    ends, groups = args.between, None
    if args.interpolation:
        groups = read_interpolation(args.interpolation, encoder.model.latent_dim)
        ends = groups["groups"].tolist()
        inputs.append(args.interpolation)
    if is_new:
        names = ["samples" + (f"_{file_part(args.tissue)}" if args.tissue else "")]
    else:
        one, other = map(file_part, ends)
        names = [f"samples_{one}_to_{other}", f"samples_{other}_to_{one}"]
        if args.steps:
            names = [f"path_{one}_to_{other}"]
    folder = Path(config.save_dir)
    outputs = [folder / f"{name}.csv" for name in names]
    record = folder / f"{names[0]}.json"
    request = {
        "seed": args.seed,
        "num_samples": args.num_samples,
        "prior": prior if is_new else None,
        "residual_noise": noise,
        "tissue": args.tissue,
        "alpha": args.alpha if args.interpolation else None,
        "steps": args.steps,
        "between": args.between,
        "inputs": {str(path): sha256_of(require_file(path, "input")) for path in inputs},
    }
    if already_done(record, request, outputs, args.overwrite):
        return

    # Data
    where = ", ".join(config.path_csv)
    cohort = Cohort(read_cohort(config.path_csv), encoder, where)
    draw = numpy_generator(args.seed, "prior")
    if is_new:
        cohort.of_tissue(cohort.training, args.tissue)
        z, tissues = cohort.latents.draw(prior, args.num_samples, draw, args.tissue)
        made = [(z, tissues, np.where(tissues == "", "synthetic", tissues), None)]
    elif args.steps:
        members = [[name] for name in ends]
        if groups is not None:
            members = [groups[f"members_{side}"].tolist() for side in (0, 1)]
        rows = [[cohort.table.row_of(name, where) for name in side] for side in members]
        first, last = (cohort.mu[side].mean(axis=0) for side in rows)
        alphas = np.linspace(0, 1, args.steps)
        z = (first + alphas[:, None] * (last - first)).astype(np.float32)
        made = [(z, np.full(args.steps, ""), np.full(args.steps, "path"), alphas)]
    else:
        made = []
        for sign, side in ((1, 0), (-1, 1)):
            members = groups[f"members_{side}"].tolist()
            rows = [cohort.table.row_of(name, args.interpolation) for name in members]
            move = np.float32(sign * args.alpha) * groups["difference"]
            z = shifted_latents(cohort.mu[rows], move, args.num_samples, args.seed)
            kind = names[side].removeprefix("samples_")
            labels = np.full(args.num_samples, kind)
            made.append((z, np.full(args.num_samples, ""), labels, None))

    residuals = cohort.residuals(args.seed) if noise != "none" else None
    if args.dry_run:
        print("\n".join(dry_run(cohort, made, residuals, args, outputs[0])))
        return

    # Results
    for path, name, (z, tissues, labels, alphas) in zip(outputs, names, made, strict=True):
        expression = cohort.expression(z, tissues, residuals, args.seed, name)
        about = pd.DataFrame({"tissue": labels})
        if alphas is not None:
            about["alpha"] = alphas
        # Names differ between the tables of one config, so that they can be read as one cohort.
        kind = name.replace("samples", "SYNTHETIC", 1)
        write_expression_table(
            path,
            ExpressionTable(
                [f"{kind}-{number:06d}" for number in range(len(z))],
                encoder.genes, expression, about,
            ),
        )  # fmt: skip
        print(f"{path}: {len(z)} profiles of {len(encoder.genes)} genes")
        stem = folder / f"evidence_{name}"
        if is_new:
            about = {"prior": prior, "residual_noise": noise}
            given = (cohort, expression, tissues, args.tissue, args.seed, about, stem)
            if line := write_evidence(*given):
                print(line)
        elif not args.steps:
            target = ends[1 - names.index(name)]
            share = shift_accuracy(cohort, groups, expression, target)
            content = {"classified_as": target, "share": share, "alpha": args.alpha}
            write_json(Path(f"{stem}.json"), content)
            if share is not None:
                print(f"{stem}.json: {share:.3f} classified as {target}")
    write_json(record, request)


def dry_run(
    cohort: Cohort,
    made: list[tuple],
    residuals: ResidualNoise | None,
    args: argparse.Namespace,
    output: Path,
) -> list[str]:
    """Return what the tables `made` would need, from a few profiles made and written elsewhere."""
    z, tissues = made[0][:2]
    genes, profiles = cohort.encoder.genes, sum(len(part[0]) for part in made)

    def some(count: int) -> tuple[np.ndarray, np.ndarray]:
        labels = tissues[:count]
        return cohort.expression(z[:count], labels, residuals, args.seed, "trial"), labels

    def write(folder: Path) -> int:
        values, labels = some(TRIAL_PROFILES)
        names = [str(number) for number in range(len(values))]
        table = ExpressionTable(names, genes, values, pd.DataFrame({"tissue": labels}))
        write_expression_table(folder / "trial.csv", table)
        return len(values)

    def compare(folder: Path) -> int:  # as many as held-out profiles are compared, no more
        given = (*some(len(cohort.held_out)), args.tissue, args.seed, {}, folder / "evidence")
        write_evidence(cohort, *given)
        return 1

    each, size = scratch_trial(write)
    seconds, more = (0.0, 0.0) if args.interpolation or args.between else scratch_trial(compare)
    # The largest table decoded, as expression, and scaled again for the evidence.
    memory = peak_memory() + 3 * 4 * len(genes) * max(len(part[0]) for part in made)
    facts = {"profiles": profiles, "genes": len(genes), "training profiles": len(cohort.training)}
    return dry_run_lines(
        output, facts, seconds + profiles * each, int(more + profiles * size), memory
    )


def shift_accuracy(
    cohort: Cohort, groups: dict[str, np.ndarray], samples: np.ndarray, target: str
) -> float | None:
    """Return the share of samples (M, G) that a classifier of both groups takes for `target`.

    None where a group has a single member.
    """
    rows, labels = [], []
    for side, name in enumerate(groups["groups"].tolist()):
        members = groups[f"members_{side}"].tolist()
        rows += [cohort.table.row_of(member, cohort.where) for member in members]
        labels += [name] * len(members)
    scaled = cohort.encoder.scaler.transform(samples)
    return transfer_accuracy(
        cohort.scaled[rows], np.array(labels), scaled, np.full(len(scaled), target)
    )


def headline(evidence: dict[str, Any]) -> str:
    """Return the numbers to remember in one line."""
    parts = [f"spread {evidence['genes']['sd_ratio']:.2f} of the real"]
    parts += [f"AUC {kind} {auc['mean']:.2f}" for kind, auc in evidence["auc"].items() if auc]
    if evidence["coverage"]:  # a narrow set in the middle has a high coverage, and no recall
        parts.append(f"recall {evidence['coverage']['recall']:.2f}")
    return ", ".join(parts)


def file_part(text: str) -> str:
    """Return a name with everything but letters, digits, dot, dash and underscore replaced."""
    return re.sub(r"[^\w.-]+", "-", text)


if __name__ == "__main__":
    run_script(main)
