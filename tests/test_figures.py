"""figures.py: draws what is there, names what is missing, and writes a page that stands alone."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import figures
from metrics.expression_agreement import (
    compare_profiles,
    gene_agreement,
    profile_components,
    reconstruction_evidence,
)
from report.page import duration_text
from report.style import MissingResult, crop_grid
from runtime.errors import UserError

SETS = ("real", "reconstructed", "generated")


def write_csv(path: Path, **columns) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(columns).to_csv(path, index=False)


def write_json(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def tile_grid(tiles: int, px: int = 8, seed: int = 0) -> np.ndarray:
    """Return a grid (H, W, 3) of `tiles` x `tiles` random tiles with white lines between."""
    draw = np.random.default_rng(seed)
    side = tiles * (px + 2) - 2
    pixels = draw.integers(0, 250, (side, side, 3), dtype=np.uint8)
    lines = [line for k in range(1, tiles) for line in (k * (px + 2) - 2, k * (px + 2) - 1)]
    pixels[lines] = 255
    pixels[:, lines] = 255
    return pixels


def write_picture(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def fid_result(sets: list[tuple[str, str]], value: float, floor: float | None) -> dict:
    """Return a result in the format of fid.py."""

    def summary(mean: float) -> dict:
        return {"draws": [mean - 1, mean + 1], "mean": mean, "sd": 2**0.5}

    return {
        "request": {"sample_size": 16, "draws": 2, "seed": 7},
        "sets": [{"label": f"{k} {t} X", "kind": k, "tissue": t} for k, t in sets],
        "tiles": [16, 12],
        "fid": summary(value),
        "kid": summary(value / 1000),
        "real_real_floor": floor
        and {"tissue": sets[0][1], "fid": summary(floor), "kid": summary(0.0)},
        "network": {"network": "inception", "weights_sha256": "7ff4a85c3a6378f0"},
    }


def study_result() -> dict:
    """Return a reader study in the format of web_quiz.py --export."""
    curve = {"auc": 0.75, "low": 0.5, "high": 1.0, "p": 0.04, "positives": 4, "negatives": 8}
    curve["roc"] = [[0, 0], [0.25, 0.75], [1, 1]]
    share = {"hits": 3, "trials": 4, "share": 0.75, "low": 0.2, "high": 0.99}
    return {
        "title": "Study",
        "answers": 24,
        "readers": [{"name": "A", **curve}, {"name": "B", **curve, "auc": None, "roc": []}],
        "pooled": curve,
        "mean_reader": curve,
        "cells": [
            {"source": source, "tissue": tissue, "called_real": share}
            for source in ("real", "gan")
            for tissue in ("lung", "brain")
        ],
        "agreement": {"fleiss_kappa_called_real": 0.25},
    }


def write_evidence(folder: Path, draw: np.random.Generator) -> None:
    """Write evidence as betaVAE_training.py and betaVAE_sample.py do."""
    real, made = draw.normal(size=(2, 24, 20))
    tissues, partitions = np.repeat(["lung", "brain"], 12), np.array(["train", "val", "test"] * 8)
    evidence = reconstruction_evidence(real, 0.5 * real, real[:, :3], partitions, tissues)
    write_json(folder / "evidence.json", evidence)
    found = compare_profiles([(real, made)])
    found |= {"prior": "posterior", "residual_noise": "gene"}
    found["floor"] = compare_profiles([(real, real)])
    found["log_expression"] = gene_agreement(real, made)
    found["tissue_accuracy"] = {"real_to_generated": 1.0, "generated_to_real": None}
    write_json(folder / "evidence_samples.json", found)
    values = {f"{key}_{name}": draw.random(20) for key in ("mean", "sd") for name in SETS[::2]}
    write_csv(folder / "evidence_samples_genes.csv", gene=range(20), **values)
    points = profile_components(real, dict.fromkeys(SETS, real)).assign(tissue="lung")
    points.to_csv(folder / "evidence_samples_profiles.csv", index=False)


def write_arms(folder: Path) -> None:
    """Write the arms `real` and `generated` of a run of wsi_model.py."""
    for arm, accuracy in (("real", 0.9), ("generated", 0.7)):
        score = {"mean": accuracy, "sd": 0.05, "interval": [accuracy - 0.1, accuracy + 0.08]}
        write_json(
            folder / arm / "summary.json",
            {
                "test_list": "held-out folds", "network": "small", "weights": None,
                "freeze": False, "image_px": 64, "folds": 5, "num_epochs": 6, "seed": 99,
                "images": 40, "generated_images": 50, "grouped_by": "patient", "elapsed_s": 1.0,
                "scores": {"accuracy": score}, "classes": ["brain", "lung"],
                "confusion": [[18, 2], [3, 17]],
            },
        )  # fmt: skip
    write_csv(
        folder / "arms.csv", arm=["real", "generated"], score="accuracy", mean=[0.9, 0.7],
        minus_real=[None, -0.2], minus_real_low=[None, -0.31], minus_real_high=[None, -0.09],
    )  # fmt: skip


def write_generation(folder: Path, draw: np.random.Generator) -> None:
    """Write a series of steps, and features of patients of two tissues that lie far apart."""
    write_picture(folder / "dose" / "grid.png", tile_grid(3, seed=3))
    write_csv(folder / "dose" / "profiles.csv", patient="SIM-1", tissue="lung", step=[-2, 0, 2])
    write_csv(folder / "dose" / "tiles_rna-gan.csv", wsi_file_names=list("abcdefghi"))
    edits = [[], "programs.csv", "nuclear_density", None]
    write_json(folder / "dose" / "request.json", {"edits": edits, "seed": 77})
    sources = np.repeat(["real", "rna-gan", "gan"], 12)
    tissues = np.tile(["lung", "brain"], 18)
    features = draw.normal(size=(36, 8)) + 50 * (tissues == "lung")[:, None]
    features[1] += 60  # a real brain patient beside the lungs
    np.savez(
        folder / "dose" / "patient_features.npz",
        patients=np.array([f"SIM-{k % 12}" for k in range(36)]),
        sources=sources, tissues=tissues, tiles=np.full(36, 5), features=features.astype("f4"),
        network=np.array(["inception", "7ff4a85c3a6378f0"]),
    )  # fmt: skip


def copying_result() -> dict:
    """Return the part of a result of fid.py --copying that is drawn."""
    return fid_result([("real", "lung"), ("RNA-GAN", "lung")], 190.0, 55.0) | {
        "copying": {
            "closer_to_training": 0.25,
            "interval": [0.1, 0.45],
            "tiles": 32,
            "generated_to_training": [17.0, 18.0, 19.0],
            "held_out_to_training": [11.0, 12.0, 13.0],
            "closest": [{"generated": 10, "training": "SIM-0/0_0.png", "distance": 16.8}],
            "sheet": "rna-gan_lung.copies.png",
        }
    }


def write_results(folder: Path) -> None:
    """Write a small result of every kind, in the formats of the scripts."""
    draw = np.random.default_rng(0)
    betavae, epochs = folder / "checkpoints" / "betavae", [1, 2, 3]
    names = ("loss", "reconstruction", "kl")
    losses = {f"{part}_{name}": [3.0, 2.0, 2.5] for part in ("train", "val") for name in names}
    write_csv(betavae / "history.csv", epoch=epochs, lr=0.001, **losses)
    write_json(
        betavae / "summary.json",
        {
            "latent_dim": 3,
            "active_latent_dims": 2,
            "profiles": 8,
            "reconstruction_mse": {"lung/train": 0.5, "lung/test": 0.7, "brain/train": 0.4},
        },
    )
    latents = {f"mu_{k}": draw.normal(size=8) for k in range(3)}
    tissues, parts = ["lung", "brain"] * 4, ["train"] * 6 + ["test"] * 2
    write_csv(
        betavae / "latents.csv",
        wsi_file_name=[f"SIM-{k}" for k in range(8)],
        tissue=tissues,
        partition=parts,
        **latents,
    )
    genes = [f"ENSG{k}" for k in range(20)]
    write_csv(
        betavae / "interpolation_tissue.csv",
        gene=genes,
        scaled_shift=np.linspace(2, -1, 20),
        expression_lung=1.0,
        expression_brain=2.0,
    )
    for path in ("expression/lung.csv", "expression/brain.csv", "checkpoints/betavae/samples.csv"):
        values = {f"rna_{gene}": draw.gamma(2, 5, 6) for gene in genes}
        write_csv(folder / path, wsi_file_name=[f"S{k}" for k in range(6)], tissue="x", **values)
    write_evidence(betavae, draw)
    for run in ("gan_lung", "rna-gan_lung"):
        write_csv(
            folder / "checkpoints" / f"{run}.history.csv",
            epoch=epochs,
            step=[10, 20, 30],
            critic_loss=[-1.0, -2.0, -1.5],
            generator_loss=[1.0, 0.5, 0.2],
            gradient_penalty=[0.1, 0.2, 0.1],
            images_per_s=50.0,
            elapsed_s=[5.0, 10.0, 15.0],
            **(
                {"fid": [300.0, np.nan, 200.0], "kid": [0.4, np.nan, 0.2]}
                if run == "rna-gan_lung"
                else {}
            ),
        )
        record = {"seed": 41, "config": {"metrics_tiles": 48}}
        write_json(folder / "checkpoints" / f"{run}.run.json", record)
        for epoch in epochs:
            write_picture(folder / "images" / run / f"epoch_{epoch:04d}.png", tile_grid(4))
    for run, sources in {"lung_SIM-1": ("real", "rna-gan", "gan"), "external": ("gan",)}.items():
        write_picture(folder / "generated" / run / "grid.png", tile_grid(4, seed=1))
        write_picture(folder / "generated" / run / "sources.png", tile_grid(4, seed=2))
        for source in sources:
            write_csv(folder / "generated" / run / f"tiles_{source}.csv", wsi_file_names=["a", "b"])
    for number, (sets, value, floor) in enumerate(
        (
            ([("real", "lung"), ("GAN", "lung")], 210.0, 55.0),
            ([("real", "lung"), ("RNA-GAN", "lung")], 190.0, 55.0),
            ([("RNA-GAN", "lung"), ("GAN", "lung")], 80.0, None),
        )
    ):
        write_json(folder / "fid" / f"{number}.json", fid_result(sets, value, floor))
    write_json(
        folder / "conditioning" / "rna-gan_lung.json",
        {
            "factors": {
                "nuclear_density": {"r": 0.8, "r_shuffled": 0.1, "r_zero": None},
                "stain_ratio": {"r": 0.6, "r_shuffled": -0.1, "r_zero": None},
            },
            "dose_response": {
                "nuclear_density": {
                    "doses": [-1.0, 0.0, 1.0],
                    "change": {"nuclear_density": [0.0, 0.7, 1.5], "stain_ratio": [0.0, 0.1, None]},
                    "monotone": True,
                }
            },
            "profile_change": 0.2,
            "noise_change": 0.4,
            "n_donors": 24,
        },
    )
    write_json(
        folder / "classifier" / "real" / "summary.json",
        {
            "test_list": "held-out folds",
            "network": "small",
            "weights": None,
            "freeze": False,
            "image_px": 64,
            "folds": 5,
            "num_epochs": 12,
            "seed": 99,
            "images": 240,
            "grouped_by": "patient",
            "elapsed_s": 4.5,
            "scores": {"accuracy": {"mean": 0.9, "sd": 0.05}},
        },
    )
    write_arms(folder / "classifier" / "rna-gan")
    write_csv(folder / "cohort" / "truth.csv", donor=["SIM-1"])
    write_json(folder / "quiz" / "study.json", study_result())
    write_generation(folder / "generated", draw)
    write_json(folder / "copying" / "rna-gan_lung.json", copying_result())
    write_picture(folder / "copying" / "rna-gan_lung.copies.png", tile_grid(4))


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> tuple[Path, str]:
    """The report of a complete results folder: its folder and its page."""
    results = tmp_path_factory.mktemp("results")
    write_results(results)
    figures.main(["--results", str(results), "--all"])
    return results / "report", (results / "report" / "index.html").read_text()


def test_every_figure_is_written_as_png_pdf_and_numbers(report):
    folder, _ = report
    for name in figures.FIGURES:
        with Image.open(folder / "figures" / f"{name}.png") as image:
            assert image.width > 600
            assert len(np.unique(np.asarray(image.convert("L")))) > 5
        assert (folder / "figures" / f"{name}.pdf").read_bytes().startswith(b"%PDF")
        assert len(pd.read_csv(folder / "figures" / f"{name}.csv"))


def test_the_page_stands_alone_and_its_links_exist(report):
    folder, page = report
    sources = re.findall(r'src="([^"]*)"', page)
    assert len(sources) == len(figures.FIGURES)
    assert all(source.startswith("data:image/") for source in sources)
    for link in re.findall(r'href="([^"]*)"', page):
        if link.startswith("#"):
            assert f'id="{link[1:]}"' in page
        else:
            assert (folder / link).is_file()
    assert "http" not in page
    assert "$" not in re.sub(r'src="[^"]*"', "", page)


def test_the_page_states_n_seeds_network_and_that_the_cohort_is_simulated(report):
    _, page = report
    for text in (
        "simulated (simulate_cohort.py)",
        "GAN lung 210 (floor 55), RNA-GAN lung 190 (floor 55)",
        "2 draws of 12 to 16 tiles a set",
        "seed 7",
        "inception (SHA-256 7ff4a85c)",
        "N = 24 donors",
        "median r over factors: rna-gan_lung 0.70 (shuffled 0.00)",
        "rna-gan_lung 0.50",
        "0.900 ± 0.050",
        "grouped by patient",
        "2 of 3 latent dimensions active",
        "Seed: 41",
        "24 answers of 2 readers",
        "AUC 0.75 of telling real from generated tiles",
        "-0.200 (-0.310, -0.090)",
        "rna-gan: generated 0.700 ± 0.050",
        "up to 48 tiles a side",
        "0.25 (0.10 to 0.45)",
        "dose 9, seed 77",
        "60 real, 60 RNA-GAN, 60 GAN tiles, 5 a patient",
        "nearest real patient is of their tissue: real 92%, RNA-GAN 100%",
    ):
        assert text in page, text
    assert "Not there yet" not in page


def test_numbers_are_those_of_the_results(report):
    folder, _ = report
    fid = pd.read_csv(folder / "figures" / "fid.csv")
    assert fid.fid.tolist() == [210, 190, 80]
    assert fid.floor.tolist()[:2] == [55, 55]
    assert np.isnan(fid.floor[2])
    conditioning = pd.read_csv(folder / "figures" / "conditioning.csv")
    assert conditioning.r.tolist() == [0.8, 0.6]
    history = pd.read_csv(folder / "figures" / "gan_history.csv")
    assert history[history.run == "rna-gan_lung"].fid.dropna().tolist() == [300.0, 200.0]
    dose = pd.read_csv(folder / "figures" / "dose_response.csv")
    assert dose.change_sd.dropna().round(6).tolist() == [-0.7, 0.0, 0.8, -0.1, 0.0]
    sources = pd.read_csv(folder / "figures" / "generated_sources.csv")
    assert sources.run.tolist() == ["lung_SIM-1"]  # the external run has one source only
    quality = pd.read_csv(folder / "figures" / "gan_quality.csv")
    assert quality[["epoch", "fid", "kid"]].to_numpy().tolist() == [[1, 300, 0.4], [3, 200, 0.2]]
    series = pd.read_csv(folder / "figures" / "generated_series.csv")
    assert series.step.tolist() == [-2, 0, 2]
    assert pd.read_csv(folder / "figures" / "nearest_training.csv").distance.tolist() == [16.8]
    feature_map = pd.read_csv(folder / "figures" / "feature_map.csv")
    side = (
        feature_map.umap1 > feature_map.umap1.mean(),
        feature_map.umap2 > feature_map.umap2.mean(),
    )
    lung = (feature_map.tissue == "lung").to_numpy(copy=True)
    lung[1] = True  # the stray
    assert max(abs(np.corrcoef(one, lung)[0, 1]) for one in side) > 0.99
    scores = pd.read_csv(folder / "figures" / "classifier.csv").set_index("classifier")
    assert scores.loc["rna-gan: real"][["mean", "low", "high"]].tolist() == [0.9, 0.8, 0.98]


def test_a_missing_result_is_named_on_the_page_and_is_no_error(tmp_path):
    write_results(tmp_path)
    for name in ("fid", "classifier", "conditioning", "images", "generated", "expression"):
        shutil.rmtree(tmp_path / name)
    figures.main(["--results", str(tmp_path), "--output", str(tmp_path / "page")])
    page = (tmp_path / "page" / "index.html").read_text()
    assert "Not there yet" in page
    for name in ("fid", "classifier", "conditioning", "gan_epochs", "generated_grids"):
        assert f"<li><b>{name}</b>: no " in page
        assert not (tmp_path / "page" / "figures" / f"{name}.png").exists()
    assert 'id="betavae_history"' in page


def test_named_figures_are_drawn_without_the_page(tmp_path, capsys):
    write_results(tmp_path)
    figures.main(["--results", str(tmp_path), "--figure", "gan_history"])
    assert capsys.readouterr().out.strip().endswith("gan_history.png")
    written = {path.name for path in (tmp_path / "report").rglob("*.*")}
    assert written == {f"gan_history.{kind}" for kind in ("png", "pdf", "csv")}


def test_the_same_results_give_the_same_files(tmp_path):
    write_results(tmp_path)
    for name in ("a", "b"):
        options = ["--output", str(tmp_path / name), "--figure", "fid"]
        figures.main(["--results", str(tmp_path), *options])
    for kind in ("png", "pdf", "csv"):
        one, other = (tmp_path / name / "figures" / f"fid.{kind}" for name in "ab")
        assert one.read_bytes() == other.read_bytes()


def test_an_empty_or_missing_folder_is_refused_and_nothing_is_written(tmp_path):
    with pytest.raises(UserError, match="none of the results that the figures need"):
        figures.main(["--results", str(tmp_path)])
    assert not list(tmp_path.iterdir())
    with pytest.raises(UserError, match="results folder not found"):
        figures.main(["--results", str(tmp_path / "gone")])


@pytest.mark.parametrize(
    ("figure", "path", "content", "message"),
    [
        ("fid", "fid/0.json", "{}", "0.json: no key 'sets'"),
        ("fid", "fid/0.json", "{", "0.json: not valid JSON"),
        ("gan_history", "checkpoints/gan_lung.history.csv", "epoch\n1\n", "no column step"),
        ("betavae_history", "checkpoints/betavae/history.csv", "", "cannot be read as a table"),
        ("gan_epochs", "images/gan_lung/epoch_0001.png", "x", "cannot be read as an image"),
        ("feature_map", "generated/dose/patient_features.npz", "x", "not features of"),
        ("classifier", "classifier/real/summary.json", "{}", "no key 'scores'"),
    ],
)
def test_a_spoilt_result_is_named_in_one_line(tmp_path, figure, path, content, message):
    write_results(tmp_path)
    (tmp_path / path).write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        figures.main(["--results", str(tmp_path), "--figure", figure])
    assert str(tmp_path / path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "report").exists()


def test_a_grid_is_cut_between_tiles():
    grid = tile_grid(8)
    assert crop_grid(grid, 4).shape == (38, 38, 3)
    assert crop_grid(grid, 20).shape == grid.shape
    assert np.array_equal(crop_grid(grid, 4), grid[:38, :38])


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(4.6, "5 s"), (59.7, "1 min 00 s"), (185, "3 min 05 s"), (7800, "2 h 10 min")],
)
def test_durations_read_as_people_say_them(seconds, text):
    assert duration_text(seconds) == text


def test_evidence_figures_show_samples_beside_real_training_profiles(tmp_path):
    write_results(tmp_path)
    drawn = figures.expression.draw_evidence(tmp_path)
    table = drawn.table.set_index("measure")
    stored = json.loads((tmp_path / "checkpoints/betavae/evidence_samples.json").read_text())
    assert table.generated["AUC forest"] == pytest.approx(stored["auc"]["forest"]["mean"], abs=1e-4)
    assert table.training["spread over real (median gene)"] == 1
    numbers = figures.expression.draw_reconstruction(tmp_path).numbers
    assert set(numbers.partition) == {"train", "val", "test"}
    assert set(numbers.tissue) == {"all", "lung", "brain"}
    (tmp_path / "checkpoints/betavae/evidence_samples_genes.csv").unlink()
    with pytest.raises(MissingResult, match="betaVAE_sample"):
        figures.expression.draw_evidence(tmp_path)
