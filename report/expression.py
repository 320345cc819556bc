"""Figures of the betaVAE: training, latent space, sampled profiles, shifts between groups."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.decomposition import PCA

from report.embedding import SEED, umap_plane
from report.style import (
    COLOURS,
    LINES,
    MARKERS,
    Drawn,
    MissingResult,
    first_folder,
    panels,
    read_table,
)
from runtime.files import read_json

HISTORY = (
    "epoch",
    "train_loss",
    "train_reconstruction",
    "train_kl",
    "val_loss",
    "val_reconstruction",
    "val_kl",
)
GENES_SHOWN = 15
COVERAGE = ("precision", "recall", "density", "coverage")
PARTITIONS = {"train": "training", "val": "validation", "test": "held-out"}
THIN = {"elinewidth": 0.7, "capsize": 1.5}


def betavae_folder(results: Path) -> Path:
    """Return the folder of the betaVAE: the first under checkpoints/ that holds a history.csv."""
    folder = first_folder(results, "checkpoints/*/history.csv", "history.csv")
    if folder is None:
        raise MissingResult("no checkpoints/<betaVAE>/history.csv: run betaVAE_training.py")
    return folder


def draw_history(results: Path) -> Drawn:
    """Return the loss curves of the betaVAE."""
    folder = betavae_folder(results)
    history = read_table(folder / "history.csv", HISTORY)
    figure, axes = panels(1, 3, 2.2)
    for axis, (key, title) in zip(
        axes[0],
        (("loss", "loss"), ("reconstruction", "reconstruction (MSE)"), ("kl", "KL (nats)")),
        strict=True,
    ):
        for number, (part, label) in enumerate((("train", "training"), ("val", "validation"))):
            axis.plot(history.epoch, history[f"{part}_{key}"], LINES[number], label=label)
        axis.set_title(title)
        axis.set_xlabel("epoch")
    best = history.loc[history.val_reconstruction.idxmin()]
    axes[0, 1].axvline(best.epoch, color="0.6", linewidth=0.8, zorder=0)
    axes[0, 0].legend()
    caption = (
        f"betaVAE over {len(history)} epochs. Training values hold dropout and the sampled latent,"
        " validation values decode the mean. The grey line is the epoch with the lowest validation"
        f" reconstruction ({best.epoch:.0f}), which later stages use."
    )
    headline = f"betaVAE: validation reconstruction {best.val_reconstruction:.3f}"
    table = None
    if (folder / "summary.json").is_file():
        summary = read_json(folder / "summary.json")
        caption += (
            f" {summary['active_latent_dims']} of {summary['latent_dim']} latent dimensions are"
            f" active; {summary['profiles']} profiles. Below: reconstruction error (mean squared,"
            " scaled expression) of each part."
        )
        headline += (
            f", {summary['active_latent_dims']} of {summary['latent_dim']} latent dimensions active"
        )
        rows = [(*key.split("/"), value) for key, value in summary["reconstruction_mse"].items()]
        frame = pd.DataFrame(rows, columns=["tissue", "partition", "mse"])
        parts = [name for name in ("train", "val", "test") if name in set(frame.partition)]
        table = frame.pivot(index="tissue", columns="partition", values="mse")[parts].reset_index()
    return Drawn("betaVAE training", caption, figure, history, headline, table)


def draw_latents(results: Path) -> Drawn:
    """Return the principal components of the betaVAE's latent means, by tissue and partition."""
    path = betavae_folder(results) / "latents.csv"
    if not path.is_file():
        raise MissingResult(f"no {path.relative_to(results)}: run betaVAE_training.py to its end")
    frame = read_table(path, ("wsi_file_name", "tissue", "partition", "mu_0"))
    columns = [name for name in frame if name.startswith("mu_")]
    mu = frame[columns].to_numpy(np.float64)
    is_train = (frame.partition == "train").to_numpy()
    if is_train.sum() < 2 or len(columns) < 2:
        raise MissingResult(f"{path.name} holds fewer than 2 training profiles or latents")
    components = PCA(2, random_state=0).fit(mu[is_train])
    share = components.explained_variance_ratio_
    numbers = frame[["wsi_file_name", "tissue", "partition"]].copy()
    numbers[["pc1", "pc2"]] = components.transform(mu)
    figure, axes = panels(1, 2, 3.2)
    variance = np.sort(mu[is_train].var(axis=0))[::-1]
    _scatter(axes[0, 0], numbers, "tissue", "partition")
    axes[0, 0].set_title("latent means")
    axes[0, 0].set_xlabel(f"component 1 ({share[0]:.0%})")
    axes[0, 0].set_ylabel(f"component 2 ({share[1]:.0%})")
    axes[0, 1].plot(np.arange(1, len(variance) + 1), variance, marker=".", markersize=3)
    axes[0, 1].set_yscale("log")
    axes[0, 1].set_title("variance per dimension, sorted")
    axes[0, 1].set_xlabel("dimension")
    caption = (
        f"Principal components of the latent means of {len(frame)} profiles, fitted on the"
        f" {is_train.sum()} training profiles. Colour: tissue; shape: part of the donor split."
    )
    return Drawn("Latent space of the betaVAE", caption, figure, numbers)


def draw_profiles(results: Path) -> Drawn:
    """Return the principal components of real and of sampled expression profiles."""
    real_paths = [
        path
        for path in sorted((results / "expression").glob("*.csv*"))
        if any(name.startswith("rna_") for name in pd.read_csv(path, nrows=0).columns)
    ]
    if not real_paths:
        raise MissingResult("no expression/*.csv with rna_ columns: run prepare_expression.py")
    sampled_paths = sorted(betavae_folder(results).glob("samples*.csv"))
    if not sampled_paths:
        raise MissingResult("no samples*.csv beside the betaVAE: run betaVAE_sample.py")
    real = {path.name.split(".")[0]: read_table(path) for path in real_paths}
    sampled = {path.name.split(".")[0]: read_table(path) for path in sampled_paths}
    tables = [*real.values(), *sampled.values()]
    genes = [
        name
        for name in tables[0]
        if name.startswith("rna_") and all(name in table for table in tables)
    ]
    if len(genes) < 2:
        raise MissingResult("the real and the sampled tables share fewer than 2 genes")
    logged = {
        name: np.log1p(table[genes].to_numpy(np.float64))
        for name, table in (real | sampled).items()
    }
    components = PCA(2, random_state=0).fit(np.concatenate([logged[name] for name in real]))
    share = components.explained_variance_ratio_
    parts = []
    for name in real | sampled:
        label = name.removeprefix("samples_").replace("_to_", " to ")
        label = "sampled" if name == "samples" else label
        part = pd.DataFrame(components.transform(logged[name]), columns=["pc1", "pc2"])
        part.insert(0, "profiles", label)
        part.insert(1, "source", "real" if name in real else "sampled")
        parts.append(part)
    numbers = pd.concat(parts, ignore_index=True)
    figure, axes = panels(1, 1, 3.4)
    _scatter(axes[0, 0], numbers, "profiles", "source")
    axes[0, 0].set_xlabel(f"component 1 ({share[0]:.0%} of real variance)")
    axes[0, 0].set_ylabel(f"component 2 ({share[1]:.0%})")
    counts = ", ".join(f"{len(part)} {part.profiles.iloc[0]}" for part in parts)
    caption = (
        f"Principal components of log(1 + expression) over {len(genes)} genes, fitted on the real"
        f" profiles; sampled profiles are projected. N: {counts}. 'a to b' are real profiles of a,"
        " shifted by the latent difference between the groups."
    )
    return Drawn("Real and sampled expression profiles", caption, figure, numbers)


def draw_shift(results: Path) -> Drawn:
    """Return the genes that move most between two groups, by the latent difference."""
    paths = sorted(betavae_folder(results).glob("interpolation_*.csv"))
    if not paths:
        raise MissingResult(
            "no interpolation_*.csv beside the betaVAE: run betaVAE_interpolation.py"
        )
    tables = []
    figure, axes = panels(1, max(len(paths), 2), 3.2)
    for axis in axes[0, len(paths) :]:
        axis.set_visible(False)
    for axis, path in zip(axes[0], paths, strict=False):
        table = read_table(path, ("gene", "scaled_shift"))
        groups = [
            name.removeprefix("expression_") for name in table if name.startswith("expression_")
        ]
        top = table.head(GENES_SHOWN).iloc[::-1]
        colours = [COLOURS[0] if value < 0 else COLOURS[1] for value in top.scaled_shift]
        axis.barh(top.gene, top.scaled_shift, color=colours)
        axis.axvline(0, color="black", linewidth=0.6)
        axis.set_title(" to ".join(groups) or path.stem)
        axis.set_xlabel("shift (standard deviations)")
        axis.tick_params(axis="y", labelsize=6)
        tables.append(table.head(100).assign(interpolation=path.stem))
    caption = (
        f"The {GENES_SHOWN} genes that move most, of {len(table)}, when the mean latent of one"
        " group is replaced by that of the other; in per-gene standard deviations of the training"
        " profiles. The CSV holds the first 100."
    )
    return Drawn("Shift between groups", caption, figure, pd.concat(tables))


def draw_reconstruction(results: Path) -> Drawn:
    """Return how well profiles are reconstructed, for each part of the split and tissue."""
    path = betavae_folder(results) / "evidence.json"
    if not path.is_file():
        raise MissingResult("no evidence.json beside the betaVAE: run betaVAE_training.py")
    evidence = read_json(path)
    parts = [name for name in PARTITIONS if name in evidence]
    rows = [
        {
            "tissue": tissue,
            "partition": part,
            **{key: group.get(key) for key in ("profiles", "mse")},
        }
        | {"gene_r": group.get("gene_r")}
        | dict(zip(("low", "high"), group.get("gene_r_quartiles") or (None, None), strict=True))
        | {"sd_ratio": group.get("genes", {}).get("sd_ratio")}
        for part in parts
        for tissue, group in evidence[part]["groups"].items()
    ]
    numbers = pd.DataFrame(rows)
    tissues = numbers.tissue.unique()
    figure, axes = panels(1, 2, 2.4)
    for number, part in enumerate(parts):
        drawn = numbers[numbers.partition == part].set_index("tissue").reindex(tissues)
        places = np.arange(len(tissues)) + (number - (len(parts) - 1) / 2) * 0.25
        r = drawn.gene_r.to_numpy(float)
        reach = np.abs(drawn[["low", "high"]].to_numpy(float).T - r)
        label = PARTITIONS[part]
        axes[0, 0].bar(
            places, r, 0.23, yerr=reach, color=COLOURS[number], label=label, error_kw=THIN
        )
        axes[0, 1].bar(places, drawn.mse, 0.23, color=COLOURS[number], label=label)
    for axis, title in zip(
        axes[0], ("r of a gene over profiles", "mean squared error"), strict=True
    ):
        axis.set_xticks(np.arange(len(tissues)), tissues)
        axis.set_title(title)
    axes[0, 1].legend(loc="upper left", bbox_to_anchor=(1, 1))
    last = evidence[parts[-1]]
    caption = (
        "Reconstruction of scaled expression. Left: median over genes of Pearson's r between"
        " profiles and their reconstructions, with quartiles; 'all' holds the differences between"
        " tissues, a tissue only those within it."
    )
    if last["tissue_accuracy"] is not None:
        caption += (
            " A tissue classifier of real training profiles is right on"
            f" {last['tissue_accuracy']:.0%} of the {PARTITIONS[parts[-1]]} reconstructions"
            " (balanced)."
        )
    return Drawn("Reconstruction of expression profiles", caption, figure, numbers)


def draw_evidence(results: Path) -> Drawn:
    """Return how far sampled profiles agree with real held-out ones."""
    folder = betavae_folder(results)
    paths = [folder / f"evidence_samples{end}" for end in (".json", "_genes.csv", "_profiles.csv")]
    if not all(path.is_file() for path in paths):
        raise MissingResult("no evidence_samples.json beside the betaVAE: run betaVAE_sample.py")
    evidence = read_json(paths[0])
    genes = read_table(paths[1], ("gene", "mean_real", "mean_generated", "sd_real", "sd_generated"))
    points = read_table(paths[2], ("set", "tissue", "pc1", "pc2"))
    figure, axes = panels(2, 2, 5.2)
    for axis, key, title in (
        (axes[0, 0], "mean", "mean of each gene, log(1 + expression)"),
        (axes[0, 1], "sd", "standard deviation of each gene"),
    ):
        real, generated = genes[f"{key}_real"], genes[f"{key}_generated"]
        axis.scatter(real, generated, s=3, alpha=0.4, linewidth=0, rasterized=True)
        ends = [min(real.min(), generated.min()), max(real.max(), generated.max())]
        axis.plot(ends, ends, color="0.4", linewidth=0.8)
        axis.set_title(title)
        axis.set_xlabel("real, held-out")
        axis.set_ylabel("generated")
    components = [column for column in points if column.startswith("pc")]
    points[["umap1", "umap2"]] = umap_plane(points[components].to_numpy())
    for number, (name, part) in enumerate(points.groupby("set", sort=False)):
        axes[1, 0].scatter(
            part.umap1, part.umap2, s=9, color=COLOURS[number], marker=MARKERS[number], alpha=0.5,
            linewidth=0, label=f"{name} ({len(part)})",
        )  # fmt: skip
    axes[1, 0].set_title("UMAP of real, reconstructed and generated profiles")
    axes[1, 0].set(xlabel="UMAP 1", ylabel="UMAP 2", xticks=[], yticks=[])
    axes[1, 0].legend(handletextpad=0.2, markerscale=1.6)
    table = _evidence_table(evidence)
    shown = table[table.measure.str.startswith(("AUC", "recall"))]
    places = np.arange(len(shown))
    for number, (column, label) in enumerate(
        (("generated", "generated"), ("training", "real training profiles"))
    ):
        axes[1, 1].barh(places + 0.2 - 0.4 * number, shown[column].astype(float), 0.38, label=label)
    axes[1, 1].set_yticks(places, shown.measure)
    axes[1, 1].invert_yaxis()
    axes[1, 1].axvline(0.5, color="0.4", linewidth=0.8)
    axes[1, 1].set_xlim(0, 1)
    axes[1, 1].legend(loc="upper left", bbox_to_anchor=(0, -0.12), ncols=2)
    counts = evidence["profiles"]
    caption = (
        f"{counts[1]} sampled profiles (prior {evidence['prior']}, residual noise"
        f" {evidence['residual_noise']}) against {counts[0]} real profiles of held-out donors."
        " AUC of classifiers that tell generated from real, cross-validated (0.5: they cannot);"
        " beside it the same for real training profiles in the generated ones' place. UMAP"
        f" (seed {SEED}) of {len(components)} principal components, fitted on training profiles."
    )
    worst = max((part["mean"] for part in evidence["auc"].values() if part), default=None)
    headline = f"Sampled expression: spread {evidence['genes']['sd_ratio']:.2f} of the real"
    headline += f", AUC at most {worst:.2f}" if worst is not None else ""
    return Drawn("Real and sampled expression", caption, figure, genes, headline, table)


def _evidence_table(evidence: dict[str, Any]) -> pd.DataFrame:
    """Return one row per measure: of generated and of real training profiles."""
    rows = []
    for content in (evidence, evidence["floor"]):
        genes, pairs = content["genes"], content["correlations"]
        row = {f"AUC {kind}": part and part["mean"] for kind, part in content["auc"].items()}
        row |= {key: (content["coverage"] or {}).get(key) for key in COVERAGE}
        row |= {
            "spread over real (median gene)": genes["sd_ratio"],
            "r of gene-gene correlations": pairs["r"],
            "MMD squared, Gaussian kernel": content["mmd"] and content["mmd"]["squared"],
        }
        rows.append(row)
    logged, transfer = evidence["log_expression"], evidence.get("tissue_accuracy") or {}
    rows[0]["r of gene means, log expression"] = logged["mean_r"]
    rows[0]["r of gene standard deviations, log expression"] = logged["sd_r"]
    rows[0]["tissue accuracy, real to generated"] = transfer.get("real_to_generated")
    rows[0]["tissue accuracy, generated to real"] = transfer.get("generated_to_real")
    table = pd.DataFrame(rows, index=["generated", "training"]).astype(float).round(4)
    return table.T.rename_axis("measure").reset_index()


def _scatter(axis, points: pd.DataFrame, colour_by: str, shape_by: str) -> None:
    colour_of = {
        name: COLOURS[k % len(COLOURS)] for k, name in enumerate(points[colour_by].unique())
    }
    shape_of = {name: MARKERS[k % len(MARKERS)] for k, name in enumerate(points[shape_by].unique())}
    for (colour, shape), part in points.groupby([colour_by, shape_by], sort=False):
        axis.scatter(
            part.pc1,
            part.pc2,
            s=16,
            color=colour_of[colour],
            marker=shape_of[shape],
            alpha=0.75,
            linewidth=0,
            label=f"{colour}, {shape} ({len(part)})",
        )
    axis.legend(loc="upper left", bbox_to_anchor=(1, 1), handletextpad=0.2)
