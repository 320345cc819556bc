"""Train the betaVAE of gene expression over several healthy tissues.

Reproduces: RNA-GAN (doi 10.1016/j.crmeth.2023.100534), "betaVAE training".
Reads:  the expression tables of the config (`path_csv`), a few rows at a time.
Writes: in `save_dir`: model_dict_best.pt (lowest validation reconstruction), model_dict_last.pt,
        history.csv, latents.csv, summary.json, evidence.json (reconstruction of each partition),
        run.json; at `split_path`: the donor split of all stages. The same command again continues
        a stopped run, exactly on a CPU.

    python3 betaVAE_training.py --seed 99 --config configs/betavae_tissues.json --log 1 --parallel 0
    python3 betaVAE_training.py --seed 99 --config configs/demo/betavae_tissues.json \
        --log 0 --parallel 0

`--parallel 1` uses all GPUs of the machine. On several machines, on each of them:

    torchrun --nnodes 2 --nproc_per_node 8 --rdzv_backend c10d --rdzv_endpoint HOST:29500 \
        betaVAE_training.py --seed 99 --config configs/betavae_tissues.json
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import math
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from data.expression import ExpressionTable, read_cohort
from data.profile_batches import epoch_batches, read_batches
from data.splits import PARTITIONS, load_split
from metrics.expression_agreement import active_dimensions, reconstruction_evidence
from models.betavae import BetaVAE, Reconstruction, betavae_loss
from models.profiles import BATCH, ExpressionScaler, ProfileEncoder
from models.schedules import kl_weight, learning_rate
from runtime.checkpoint import check_genes, check_same_recipe, load_checkpoint, save_checkpoint
from runtime.config import BetaVAEConfig, load_config, unused_keys
from runtime.device import (
    autocast,
    bfloat16_products,
    choose_device,
    use_large_pages,
    uses_bfloat16,
)
from runtime.distributed import Processes, join_processes, leave_processes, start_on_all_devices
from runtime.dry_run import StepTrial, add_dry_run, dry_run_lines, size_text
from runtime.errors import UserError, run_script
from runtime.files import sha256_of, write_csv, write_json
from runtime.run import log, start_log, summary_writer, write_run_record
from runtime.seeds import derived_seed, numpy_generator, seed_everything

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

# Keys that may change when a run is continued.
FREE = (
    "flag",
    "n_workers",
    "device",
    "log_interval",
    "summary_path",
    "save_dir",
    "checkpoint_every",
    "checkpoint_minutes",
)
TRIAL_STEPS = 3
TOLD_WITHIN_S = 30.0
LOSSES = ("loss", "reconstruction", "kl")
EVIDENCE_PROFILES = 1000  # at most so many are compared in memory


@dataclass
class Progress:
    """Where a run is; all that a checkpoint keeps beside weights and optimiser.

    Attributes:
        epoch: finished epochs.
        step: finished steps of the epoch under way.
        sums: (3,) the losses of its profiles so far, summed.
        best: the epoch with the lowest validation reconstruction, and that.
        history: a row per epoch.
    """

    epoch: int = 0
    step: int = 0
    sums: torch.Tensor = field(default_factory=lambda: torch.zeros(3))
    best: dict[str, Any] = field(
        default_factory=lambda: {"epoch": 0, "val_reconstruction": math.inf}
    )
    history: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def from_checkpoint(cls, state: dict[str, Any]) -> Progress:
        """Return the progress that `to_checkpoint` described."""
        return cls(**state["counters"], best=state["best"], history=state["history"])

    def to_checkpoint(self) -> dict[str, Any]:
        """Return plain values and tensors for a checkpoint."""
        counters = {"epoch": self.epoch, "step": self.step, "sums": self.sums.cpu()}
        return {"counters": counters, "best": self.best, "history": self.history}

    def finished(self, config: BetaVAEConfig) -> bool:
        """Return whether the run has all its epochs, or has stopped early."""
        waited = self.epoch - max(self.best["epoch"], config.kl_warmup_epochs)
        patience = config.early_stopping_patience
        return self.epoch >= config.num_epochs or 0 < patience <= waited


def build_parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--config", required=True, help="JSON config")
    parser.add_argument("--seed", type=int, default=99)
    parser.add_argument("--checkpoint", help="start from the weights of this betaVAE checkpoint")
    parser.add_argument("--log", type=int, choices=(0, 1), default=0, help="1: TensorBoard events")
    parser.add_argument("--parallel", type=int, choices=(0, 1), default=0, help="1: all GPUs")
    add_dry_run(parser)
    mirrored = parser.add_argument_group("keys of the config")
    mirrored.add_argument("--num_epochs", type=int)
    mirrored.add_argument("--save_dir")
    mirrored.add_argument("--device")
    mirrored.add_argument("--precision", choices=("auto", "float32", "bfloat16"))
    return parser


def read_data(
    config: BetaVAEConfig, where: str, write_split: bool
) -> tuple[ExpressionTable, dict, dict]:
    """Return the cohort, the partition of each donor and the row numbers of each partition."""
    table = read_cohort(config.path_csv)
    if len(table.genes) != config.rna_features:
        raise UserError(
            f"{where}: rna_features is {config.rna_features},"
            f" the tables hold {len(table.genes)} genes"
        )
    split = load_split(config.split_path, table.donors, config.split_seed, write_split)
    partition = np.array([split[donor] for donor in table.donors])
    rows = {name: np.flatnonzero(partition == name) for name in PARTITIONS}
    if len(rows["train"]) < 2 or not len(rows["val"]):
        raise UserError(f"{config.split_path}: 2 training profiles and 1 for validation are needed")
    return table, split, rows


def stored_run(
    path: Path, settings: dict[str, Any], table: ExpressionTable, split: dict[str, str]
) -> Progress:
    """Return where the run to be continued is; a checkpoint that is there must be of this run."""
    if not path.is_file():
        return Progress()
    state = load_checkpoint(path, "betavae")
    check_same_recipe(state["config"] | {"seed": state["seed"]}, settings, FREE, path)
    check_genes(state["genes"], table.genes, ", ".join(settings["path_csv"]))
    if state["split"] != split:
        raise UserError(
            f"{path}: was trained with other donors or another donor split; name another save_dir"
        )
    return Progress.from_checkpoint(state)


def initial_weights(
    path: str, config: BetaVAEConfig, table: ExpressionTable
) -> dict[str, torch.Tensor]:
    """Return the weights of a betaVAE checkpoint that training starts from; they must fit."""
    state = load_checkpoint(path, "betavae")
    check_genes(state["genes"], table.genes, ", ".join(config.path_csv))
    for key in ("hidden_dims", "latent_dim"):
        found, needed = state["model_args"][key], getattr(config, key)
        if found != needed:
            raise UserError(f"{path}: {key} is {found}, the config's is {needed}")
    return state["model"]


@torch.inference_mode()
def validate(
    model: BetaVAE,
    scaler: ExpressionScaler,
    expression: np.ndarray,
    rows: np.ndarray,
    config: BetaVAEConfig,
    processes: Processes,
) -> dict[str, float]:
    """Return loss, reconstruction and KL of the profiles of these rows, decoded from mu."""
    model.eval()
    device = model.mu.weight.device
    share = rows[processes.share(len(rows))]
    parts = [share[k : k + config.batch_size] for k in range(0, len(share), config.batch_size)]
    totals = torch.zeros(3, device=device)
    for profiles in read_batches(expression, parts, device):
        target = scaler.scale(profiles)  # (N, G)
        mu, logvar = model.encode(target)
        output = Reconstruction(model.decode(mu), mu, logvar)
        totals += torch.stack(betavae_loss(output, target, config.beta, len(rows)))
    model.train()
    processes.average([totals])
    values = (processes.size * totals).tolist()
    return {f"val_{name}": value for name, value in zip(LOSSES, values, strict=True)}


@dataclass
class Run:
    """Everything a checkpoint is made of."""

    folder: Path
    model_args: dict[str, Any]
    model: BetaVAE
    optimizer: torch.optim.Optimizer
    scaler: ExpressionScaler
    progress: Progress
    constants: dict[str, Any]

    def save(self, name: str, **more: Any) -> None:
        """Write a checkpoint."""
        content = {
            "model_args": self.model_args,
            "model": self.model.state_dict(),
            "scaler": self.scaler.to_checkpoint(),
            **self.constants,
            **self.progress.to_checkpoint(),
            **more,
        }
        save_checkpoint(self.folder / name, "betavae", content)

    def save_last(self) -> None:
        """Write the checkpoint that the run continues from, and its history for people."""
        self.save("model_dict_last.pt", optimizer=self.optimizer.state_dict())
        if self.progress.history:
            write_csv(self.folder / "history.csv", pd.DataFrame(self.progress.history))


def start_or_continue(
    args: argparse.Namespace,
    config: BetaVAEConfig,
    data: tuple[ExpressionTable, dict, dict],
    progress: Progress,
    device: torch.device,
) -> Run:
    """Return the run at its start, from given weights or none, or at its last checkpoint."""
    table, split, rows = data
    model_args = config.model_args()
    model = BetaVAE(**model_args).to(device)
    optimizer_class = torch.optim.AdamW if config.optimizer == "AdamW" else torch.optim.Adam
    optimizer = optimizer_class(
        model.parameters(),
        lr=config.lr,
        weight_decay=config.weights_decay,
        fused=device.type != "mps",
    )
    folder = Path(config.save_dir)
    if progress.epoch or progress.step:
        state = load_checkpoint(folder / "model_dict_last.pt", "betavae")
        scaler = ExpressionScaler.from_checkpoint(state["scaler"])
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        log.info("%s: continues in epoch %d", folder, progress.epoch + 1)
    else:
        scaler = ExpressionScaler.fit(table.expression, config.expression_transform, rows["train"])
        if args.checkpoint:
            model.load_state_dict(initial_weights(args.checkpoint, config, table))
    progress.sums = progress.sums.to(device)
    constants = {
        "genes": table.genes,
        "split": split,
        "config": config.model_dump(),
        "seed": args.seed,
    }
    return Run(folder, model_args, model, optimizer, scaler, progress, constants)


def train(
    run: Run,
    config: BetaVAEConfig,
    seed: int,
    expression: np.ndarray,
    rows: dict[str, np.ndarray],
    processes: Processes,
    bar: tqdm,
    writer: SummaryWriter | None,
    trial: StepTrial | None = None,
) -> None:
    """Train to the end of the run, or through a trial's steps alone; the result is in its files."""
    model, optimizer, progress = run.model, run.optimizer, run.progress
    device = model.mu.weight.device
    bfloat16, on_cpu = uses_bfloat16(config.precision, device), device.type == "cpu"
    steps = len(epoch_batches(rows["train"], config.batch_size, seed, 0))  # per epoch
    total, warmup = config.num_epochs * steps, config.warmup_epochs * steps
    bar.reset(total)
    bar.initial = bar.n = progress.epoch * steps + progress.step
    generator, saved_at = torch.Generator(device), time.monotonic()
    while not progress.finished(config):
        batches = epoch_batches(rows["train"], config.batch_size, seed, progress.epoch)
        shares = [batch[processes.share(len(batch))] for batch in batches[progress.step :]]
        for profiles in read_batches(expression, shares, device):
            # Every process draws the noise of the whole batch: how many there are changes nothing.
            count, step = len(batches[progress.step]), progress.epoch * steps + progress.step
            generator.manual_seed(derived_seed(seed, "betavae", step))
            noise = model.draw_noise(count, generator).rows(processes.share(count))
            rate = learning_rate(config.lr_schedule, config.lr, step, total, warmup)
            optimizer.param_groups[0]["lr"] = rate
            beta = kl_weight(config.beta, step, config.kl_warmup_epochs * steps)
            target = run.scaler.scale(profiles)  # (N, G)
            optimizer.zero_grad(set_to_none=True)
            with bfloat16_products(bfloat16 and on_cpu):
                with autocast(device, bfloat16 and not on_cpu):
                    output = model(target, noise)
                loss = betavae_loss(output, target, beta, count)
                # Shares' losses add up to the batch's; processes are averaged.
                (processes.size * loss.total).backward()
            losses = processes.size * torch.stack(loss).detach()
            processes.average([*(weight.grad for weight in model.parameters()), losses])
            optimizer.step()
            progress.sums += count * losses
            progress.step += 1
            bar.update()
            if trial and losses.isfinite().all() and trial.is_over():  # asking waits for a GPU
                return
            if processes.first and time.monotonic() - saved_at > 60 * config.checkpoint_minutes:
                if progress.sums.isfinite().all():
                    run.save_last()
                saved_at = time.monotonic()
        if trial:
            progress.epoch, progress.step = progress.epoch + 1, 0
            continue
        means = (progress.sums / len(rows["train"])).tolist()
        progress.epoch, progress.step = progress.epoch + 1, 0
        progress.sums = torch.zeros_like(progress.sums)
        row = {"epoch": progress.epoch}
        row |= {f"train_{name}": value for name, value in zip(LOSSES, means, strict=True)}
        if progress.epoch % config.validate_every == 0 or progress.epoch == config.num_epochs:
            row |= validate(model, run.scaler, expression, rows["val"], config, processes)
        row["lr"] = optimizer.param_groups[0]["lr"]
        if not all(math.isfinite(value) for value in row.values()):
            raise UserError(
                f"{run.folder}: loss not finite in epoch {progress.epoch}; the last good"
                " checkpoint, if any, is kept; try a lower lr"
            )
        progress.history.append(row)
        reached = row.get("val_reconstruction", math.inf)
        better = reached < progress.best["val_reconstruction"]
        if better and progress.epoch > config.kl_warmup_epochs:
            progress.best = {"epoch": progress.epoch, "val_reconstruction": reached}
            if processes.first:
                run.save("model_dict_best.pt")
        every = config.checkpoint_every
        due = progress.finished(config) or (every and progress.epoch % every == 0)
        if processes.first and due:
            run.save_last()
            saved_at = time.monotonic()
        for key, value in row.items() if writer else ():
            writer.add_scalar(key, value, progress.epoch)
        best = progress.best["val_reconstruction"]
        bar.set_postfix(epoch=progress.epoch, train=f"{means[1]:.4f}", best=f"{best:.4f}")


def dry_run(
    run: Run,
    config: BetaVAEConfig,
    seed: int,
    table: ExpressionTable,
    rows: dict[str, np.ndarray],
    processes: Processes,
) -> list[str]:
    """Return what the run would need, from its first steps."""
    trial, before = StepTrial(TRIAL_STEPS), run.progress.epoch
    with tqdm(unit="step", desc="dry run", disable=not processes.first) as bar:
        train(run, config, seed, table.expression, rows, processes, bar, None, trial)
    steps = len(epoch_batches(rows["train"], config.batch_size, seed, 0))
    left = (config.num_epochs - before) * steps
    device = run.model.mu.weight.device
    facts = {
        "profiles": ", ".join(f"{len(part)} {name}" for name, part in rows.items()),
        "genes": len(table.genes),
        "steps": f"{left} of {config.batch_size} profiles on {device}",
    }
    if device.type == "cuda":
        facts["GPU memory"] = size_text(torch.cuda.max_memory_allocated(device))
    # The last checkpoint with Adam's two moments, the best without, and one being written.
    stored = 7 * sum(value.nbytes for value in run.model.state_dict().values())
    return dry_run_lines(run.folder, facts, left * trial.seconds_per_step, stored)


def untrained_tissues(table: ExpressionTable, split: dict[str, str]) -> list[str]:
    """Return the tissues none of whose donors is trained on, such as one of a single sample."""
    training = np.array([split[donor] == "train" for donor in table.donors])
    tissues = table.annotations["tissue"].astype(str)
    return sorted(set(tissues) - set(tissues[training]))


def report_latents(
    encoder: ProfileEncoder, table: ExpressionTable
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Return mu of every profile as a table, and what latents and reconstructions are like."""
    mu = encoder.mu(table.expression)  # (N, D)
    errors = np.empty(len(table), np.float32)  # (N,)
    for first in range(0, len(table), BATCH):
        part = slice(first, first + BATCH)
        difference = encoder.decode(mu[part]) - encoder.scaler.transform(table.expression[part])
        errors[part] = np.square(difference).mean(axis=1)
    about = pd.DataFrame({"wsi_file_name": table.names, "tissue": table.annotations["tissue"]})
    about["partition"] = [encoder.split[donor] for donor in table.donors]
    mse = about.assign(mse=errors).groupby(["tissue", "partition"]).mse.mean()
    columns = pd.DataFrame(mu.numpy(), columns=[f"mu_{number}" for number in range(mu.shape[1])])
    summary = {
        "profiles": len(table),
        "tissues_without_training_profile": untrained_tissues(table, encoder.split),
        "latent_dim": mu.shape[1],
        "active_latent_dims": active_dimensions(mu.numpy()),
        "reconstruction_mse": {"/".join(key): float(value) for key, value in mse.items()},
    }
    return pd.concat([about, columns], axis=1), summary


def report_reconstruction(
    encoder: ProfileEncoder, table: ExpressionTable, partitions: np.ndarray, seed: int
) -> dict[str, Any]:
    """Return the evidence of reconstruction; of a large table, from EVIDENCE_PROFILES at random."""
    drawn = numpy_generator(seed, "evidence").permutation(len(table))[:EVIDENCE_PROFILES]
    some = np.sort(drawn)
    rows = table.rows(some)
    mu = encoder.mu(rows.expression)
    return reconstruction_evidence(
        encoder.scaler.transform(rows.expression),
        encoder.decode(mu),
        mu.numpy(),
        partitions[some],
        rows.annotations["tissue"].to_numpy(str),
    )


@contextlib.contextmanager
def told_once() -> Iterator[None]:
    """Let a mistake that all processes meet be named by the first of each machine alone."""
    try:
        yield
    except UserError:
        if int(os.environ.get("LOCAL_RANK", "0")):
            time.sleep(TOLD_WITHIN_S)  # torchrun ends all processes as soon as the first has ended
            raise SystemExit(2) from None
        raise


@told_once()
def main(argv: list[str] | None = None) -> None:
    # Arguments and config
    args = build_parser().parse_args(argv)
    config = load_config(
        BetaVAEConfig,
        args.config,
        num_epochs=args.num_epochs,
        save_dir=args.save_dir,
        device=args.device,
        precision=args.precision,
    )

    # Run directory, log, seed, device
    start_log()
    use_large_pages()
    seed_everything(args.seed)
    device = choose_device(config.device)
    folder = Path(config.save_dir)
    best_path, last_path = folder / "model_dict_best.pt", folder / "model_dict_last.pt"

    # Data
    table, split, rows = data = read_data(config, args.config, not args.dry_run)
    settings = config.model_dump()
    progress = stored_run(last_path, settings | {"seed": args.seed}, table, split)
    if progress.finished(config) and (folder / "summary.json").is_file():
        log.info("%s: trained to epoch %d, up to date", best_path, progress.epoch)
        return
    if args.checkpoint:
        initial_weights(args.checkpoint, config, table)

    # Processes: the mistakes above are told once, before others are started
    if args.parallel and device.type == "cuda":
        start_on_all_devices(argv, __file__)
    processes = join_processes(device.type)
    if processes.size > 1 and device.type == "cuda":
        device = choose_device(f"cuda:{processes.local_rank}")
        torch.cuda.set_device(device)
    if processes.first and not args.dry_run:
        write_run_record(folder / "run.json", settings, args.seed)
        if sentence := unused_keys(config):
            log.info("%s: %s", args.config, sentence)
        if tissues := untrained_tissues(table, split):
            log.info("no training profile, so not learnt: %s", ", ".join(tissues))
    else:
        log.setLevel(logging.WARNING)
    log.info(
        "%s; %d process(es) on %s, %s",
        ", ".join(f"{len(value)} {key}" for key, value in rows.items()),
        processes.size,
        device,
        "bfloat16" if uses_bfloat16(config.precision, device) else "float32",
    )

    # Model, optimiser, resume; loop
    try:
        if not progress.finished(config):
            run = start_or_continue(args, config, data, progress, device)
            if args.dry_run:
                lines = dry_run(run, config, args.seed, table, rows, processes)
                print("\n".join(lines))
                return
            writer = summary_writer(args.log and processes.first, config.summary_path)
            with tqdm(unit="step", desc="betaVAE", disable=not processes.first) as bar:
                train(run, config, args.seed, table.expression, rows, processes, bar, writer)
            if writer:
                writer.close()
            del run  # weights and Adam's moments, before the best weights are loaded
    finally:
        leave_processes()
    if not processes.first:
        return

    # Results
    checkpoint = load_checkpoint(best_path, "betavae")
    encoder, best = ProfileEncoder.from_checkpoint(checkpoint, device), checkpoint["best"]
    latents, summary = report_latents(encoder, table)
    write_csv(folder / "latents.csv", latents)
    evidence = report_reconstruction(encoder, table, latents["partition"].to_numpy(str), args.seed)
    write_json(folder / "evidence.json", evidence)
    write_json(folder / "summary.json", summary | {"best": best, "sha256": sha256_of(best_path)})
    print(
        f"{best_path}: epoch {best['epoch']}, validation reconstruction"
        f" {best['val_reconstruction']:.4f}, {summary['active_latent_dims']} of"
        f" {summary['latent_dim']} latent dimensions active"
    )


if __name__ == "__main__":
    run_script(main)
