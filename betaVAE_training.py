"""Train the betaVAE of gene expression over several healthy tissues.

Reproduces: RNA-GAN (doi 10.1016/j.crmeth.2023.100534), "betaVAE training".
Reads:  the expression tables of the config (`path_csv`).
Writes: in `save_dir`: model_dict_best.pt (lowest validation reconstruction), model_dict_last.pt,
        history.csv, latents.csv, summary.json, evidence.json (reconstruction of each partition),
        run.json; at `split_path`: the donor split of all stages. The same command again continues
        a stopped run.

    python3 betaVAE_training.py --seed 99 --config configs/betavae_tissues.json --log 1 --parallel 0
    python3 betaVAE_training.py --seed 99 --config configs/demo/betavae_tissues.json \
        --log 0 --parallel 0
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from data.expression import ExpressionTable, read_cohort
from data.splits import PARTITIONS, load_split
from metrics.expression_agreement import reconstruction_evidence
from models.betavae import BetaVAE, Reconstruction, betavae_loss
from models.profiles import ExpressionScaler, ProfileEncoder
from runtime.checkpoint import check_genes, check_same_recipe, load_checkpoint, save_checkpoint
from runtime.config import BetaVAEConfig, load_config, unused_keys
from runtime.device import autocast, choose_device, uses_bfloat16
from runtime.errors import UserError, run_script
from runtime.files import sha256_of, write_csv, write_json
from runtime.run import log, start_log, summary_writer, write_run_record
from runtime.seeds import derived_seed, seed_everything, torch_generator

# Keys that may change when a run is continued.
FREE = (
    "flag",
    "n_workers",
    "device",
    "log_interval",
    "summary_path",
    "save_dir",
    "checkpoint_every",
)
ACTIVE_VARIANCE = 0.01  # a dimension is active when mu varies more: Burda et al. 2016 (1509.00519)


def build_parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--config", required=True, help="JSON config")
    parser.add_argument("--seed", type=int, default=99)
    parser.add_argument("--checkpoint", help="start from the weights of this betaVAE checkpoint")
    parser.add_argument("--log", type=int, choices=(0, 1), default=0, help="1: TensorBoard events")
    parser.add_argument("--parallel", type=int, choices=(0, 1), default=0, help="1: all GPUs")
    mirrored = parser.add_argument_group("keys of the config")
    mirrored.add_argument("--num_epochs", type=int)
    mirrored.add_argument("--save_dir")
    mirrored.add_argument("--device")
    mirrored.add_argument("--precision", choices=("auto", "float32", "bfloat16"))
    return parser


def learning_rate(config: BetaVAEConfig, step: int, steps_per_epoch: int) -> float:
    """Return the learning rate of a step; a function of the step alone, so nothing is stored.

    Source: linear warm-up and one cosine over the run (Loshchilov and Hutter 2017, arXiv
    1608.03983, without restarts); "cosine_per_batch" steps an epoch-long cosine once per batch, as
    published.
    """
    if config.lr_schedule == "constant":
        return config.lr
    if config.lr_schedule == "cosine_per_batch":
        return config.lr * 0.5 * (1 + math.cos(math.pi * step / config.num_epochs))
    warmup = config.warmup_epochs * steps_per_epoch
    total = config.num_epochs * steps_per_epoch
    if step < warmup:
        return config.lr * (step + 1) / warmup
    return config.lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(total - warmup, 1)))


def epoch_batches(rows: torch.Tensor, batch_size: int, seed: int, epoch: int) -> list[torch.Tensor]:
    """Return the row numbers of each batch of an epoch; a last one of one row is joined on."""
    order = rows[torch.randperm(len(rows), generator=torch_generator(seed, "epoch", epoch))]
    batches = list(order.split(batch_size))
    if len(batches) > 1 and len(batches[-1]) == 1:
        batches[-2:] = [torch.cat(batches[-2:])]
    return batches


@torch.inference_mode()
def validate(
    model: BetaVAE, scaled: torch.Tensor, beta: float, batch_size: int
) -> dict[str, float]:
    """Return loss, reconstruction and KL of scaled profiles (N, G), decoded from mu."""
    model.eval()
    device = model.mu.weight.device
    totals = np.zeros(3)
    for part in scaled.split(batch_size):
        part = part.to(device)
        mu, logvar = model.encode(part)
        loss = betavae_loss(Reconstruction(model.decode(mu), mu, logvar), part, beta)
        totals += len(part) * np.array([value.item() for value in loss])
    model.train()
    names = ("val_loss", "val_reconstruction", "val_kl")
    return dict(zip(names, (totals / len(scaled)).tolist(), strict=True))


def report_latents(
    encoder: ProfileEncoder, table: ExpressionTable
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Return mu of every profile as a table, and what latents and reconstructions are like."""
    mu = encoder.mu(table.expression)  # (N, D)
    scaled = encoder.scaler.transform(table.expression)
    errors = np.square(encoder.decode(mu) - scaled).mean(axis=1)
    about = pd.DataFrame({"wsi_file_name": table.names, "tissue": table.annotations["tissue"]})
    about["partition"] = [encoder.split[donor] for donor in table.donors]
    mse = about.assign(mse=errors).groupby(["tissue", "partition"]).mse.mean()
    columns = pd.DataFrame(mu.numpy(), columns=[f"mu_{number}" for number in range(mu.shape[1])])
    summary = {
        "profiles": len(table),
        "latent_dim": mu.shape[1],
        "active_latent_dims": int((mu.var(dim=0) > ACTIVE_VARIANCE).sum()),
        "reconstruction_mse": {"/".join(key): float(value) for key, value in mse.items()},
    }
    return pd.concat([about, columns], axis=1), summary


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
    seed_everything(args.seed)
    device = choose_device(config.device)
    bfloat16 = uses_bfloat16(config.precision, device)
    folder = Path(config.save_dir)
    best_path, last_path = folder / "model_dict_best.pt", folder / "model_dict_last.pt"

    # Data
    table = read_cohort(config.path_csv)
    if len(table.genes) != config.rna_features:
        raise UserError(
            f"{args.config}: rna_features is {config.rna_features},"
            f" the tables hold {len(table.genes)} genes"
        )
    split = load_split(config.split_path, table.donors, config.split_seed)
    partition = np.array([split[donor] for donor in table.donors])
    rows = {name: torch.from_numpy(np.flatnonzero(partition == name)) for name in PARTITIONS}
    if len(rows["train"]) < 2 or not len(rows["val"]):
        raise UserError(f"{config.split_path}: 2 training profiles and 1 for validation are needed")
    scaler = ExpressionScaler.fit(
        table.expression[rows["train"].numpy()], config.expression_transform
    )
    scaled = torch.from_numpy(scaler.transform(table.expression))  # (N, G)
    validation = scaled[rows["val"]]

    # Model and optimiser
    model_args = {
        "genes": config.rna_features,
        "hidden_dims": config.hidden_dims,
        "latent_dim": config.latent_dim,
        "dropout": config.dropout,
        "output_activation": config.output_activation,
    }
    model = BetaVAE(**model_args).to(device)
    forward = model
    if args.parallel and device.type == "cuda" and torch.cuda.device_count() > 1:
        forward = torch.nn.DataParallel(model)
    optimizer_class = torch.optim.AdamW if config.optimizer == "AdamW" else torch.optim.Adam
    optimizer = optimizer_class(
        model.parameters(),
        lr=config.lr,
        weight_decay=config.weights_decay,
        fused=device.type != "mps",
    )

    # Resume
    settings = config.model_dump()
    epoch, best, history = 0, {"epoch": 0, "val_reconstruction": math.inf}, []
    if last_path.is_file():
        state = load_checkpoint(last_path, "betavae")
        check_same_recipe(
            state["config"] | {"seed": state["seed"]},
            settings | {"seed": args.seed},
            FREE,
            last_path,
        )
        check_genes(state["genes"], table.genes, ", ".join(config.path_csv))
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        epoch, best, history = state["counters"]["epoch"], state["best"], state["history"]
        log.info("%s: continues after epoch %d", last_path, epoch)
    elif args.checkpoint:
        state = load_checkpoint(args.checkpoint, "betavae")
        check_genes(state["genes"], table.genes, ", ".join(config.path_csv))
        model.load_state_dict(state["model"])
    if epoch >= config.num_epochs:
        log.info("%s: trained to epoch %d, up to date", best_path, epoch)
        return
    write_run_record(folder / "run.json", settings, args.seed)
    log.info(
        "%d profiles: %s; %s%s",
        len(table),
        ", ".join(f"{len(value)} {key}" for key, value in rows.items()),
        device,
        ", bfloat16" if bfloat16 else "",
    )
    if sentence := unused_keys(config):
        log.info("%s: %s", args.config, sentence)
    writer = summary_writer(args.log, config.summary_path)

    def content() -> dict:
        return {
            "model_args": model_args,
            "model": model.state_dict(),
            "genes": table.genes,
            "scaler": scaler.to_checkpoint(),
            "split": split,
            "config": settings,
            "seed": args.seed,
            "counters": {"epoch": epoch},
            "best": best,
            "history": history,
        }

    # Loop
    steps_per_epoch = len(epoch_batches(rows["train"], config.batch_size, args.seed, 0))
    bar = tqdm(total=config.num_epochs, initial=epoch, unit="epoch", desc="betaVAE")
    while epoch < config.num_epochs:
        torch.manual_seed(derived_seed(args.seed, "betavae", epoch))  # dropout and epsilon
        sums = torch.zeros(3, device=device)
        for number, batch in enumerate(
            epoch_batches(rows["train"], config.batch_size, args.seed, epoch)
        ):
            rate = learning_rate(config, epoch * steps_per_epoch + number, steps_per_epoch)
            optimizer.param_groups[0]["lr"] = rate
            target = scaled[batch].to(device)  # (N, G)
            with autocast(device, bfloat16):
                output = forward(target)
            loss = betavae_loss(Reconstruction(*output), target, config.beta)
            optimizer.zero_grad(set_to_none=True)
            loss.total.backward()
            optimizer.step()
            sums += len(batch) * torch.stack(loss).detach()
        epoch += 1
        train = (sums / len(rows["train"])).tolist()
        row = {
            "epoch": epoch,
            **dict(zip(("train_loss", "train_reconstruction", "train_kl"), train, strict=True)),
        }
        row |= validate(model, validation, config.beta, config.batch_size) | {"lr": rate}
        if not all(math.isfinite(value) for value in row.values()):
            raise UserError(
                f"{last_path}: loss not finite in epoch {epoch}; the last good checkpoint is kept"
            )
        history.append(row)
        if row["val_reconstruction"] < best["val_reconstruction"]:
            best = {"epoch": epoch, "val_reconstruction": row["val_reconstruction"]}
            save_checkpoint(best_path, "betavae", content())
        if epoch % config.checkpoint_every == 0 or epoch == config.num_epochs:
            save_checkpoint(last_path, "betavae", content() | {"optimizer": optimizer.state_dict()})
            write_csv(folder / "history.csv", pd.DataFrame(history))
        if writer:
            for key, value in row.items():
                writer.add_scalar(key, value, epoch)
        bar.set_postfix(
            train=f"{row['train_reconstruction']:.4f}", val=f"{row['val_reconstruction']:.4f}"
        )
        bar.update()
    bar.close()

    # Results
    encoder = ProfileEncoder.from_checkpoint(load_checkpoint(best_path, "betavae"), device)
    latents, summary = report_latents(encoder, table)
    write_csv(folder / "latents.csv", latents)
    mu, tissues = encoder.mu(table.expression), table.annotations["tissue"].to_numpy(str)
    original, decoded = encoder.scaler.transform(table.expression), encoder.decode(mu)
    evidence = reconstruction_evidence(original, decoded, mu.numpy(), partition, tissues)
    write_json(folder / "evidence.json", evidence)
    write_json(folder / "summary.json", summary | {"best": best, "sha256": sha256_of(best_path)})
    print(
        f"{best_path}: epoch {best['epoch']}, validation reconstruction"
        f" {best['val_reconstruction']:.4f}, {summary['active_latent_dims']} of"
        f" {summary['latent_dim']} latent dimensions active"
    )


if __name__ == "__main__":
    run_script(main)
