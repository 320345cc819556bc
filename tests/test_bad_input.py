"""A user's mistake, as a user meets it: one line on stderr, exit code 2, nothing half-written."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from data.expression_cache import CACHE_FOLDER

ROOT = Path(__file__).resolve().parent.parent

TRAIN_VAE = "betaVAE_training.py --config betavae.json"
TRAIN_GAN = (
    "histopathology_gan.py --config gan_lung.json --num_epochs 1 --image_dir out/images"
    " --model_dir out/x"
)
TRAIN_RNA_GAN = f"{TRAIN_GAN} --loss_type wganvae"
GENERATE = (
    "generate_tissue_images.py --checkpoint x.model --config gan_lung.json --save_path out/tiles"
    " --patient1 SIM-0001-0625.svs"
)
PREPARE = "prepare_expression.py --input lung.csv --output out/lung.csv"
TILE = "extract_tiles.py --slide_path slides --patch_path out/tiles --workers 1"


def change_json(path, drop=(), **keys):
    values = json.loads(path.read_text()) | keys
    path.write_text(json.dumps({key: value for key, value in values.items() if key not in drop}))


def change_table(path, change):
    frame = pd.read_csv(path)
    change(frame)
    frame.to_csv(path, index=False)


def drop_name_column(root):
    change_table(root / "lung.csv", lambda frame: frame.pop("wsi_file_name"))


def set_value(value):
    def change(frame):
        frame.iloc[2, 5] = value

    return lambda root: change_table(root / "lung.csv", change)


def rename_a_gene(root):
    for name in ("lung.csv", "brain.csv"):
        path = root / name
        path.write_text(path.read_text().replace("rna_ENSG00000000002.1", "rna_ENSGX.1"))


def empty_stores(root):
    for store in (root / "tiles/lung").rglob("*.zip"):
        store.unlink()


def truncate_store(root):
    store = sorted((root / "tiles/lung").rglob("*.zip"))[0]
    store.write_bytes(store.read_bytes()[:500])


def not_a_slide(root):
    (root / "slides").mkdir()
    (root / "slides/a.svs").write_text("no slide")


def truncated_checkpoint(root):
    torch.save({"weights": torch.zeros(1000)}, root / "x.model")
    (root / "x.model").write_bytes((root / "x.model").read_bytes()[:1500])


def executable_checkpoint(root):
    torch.save({"format": "rna-gan-suite/1", "call": Path("x")}, root / "x.model")


def existing_output(root):
    (root / "out").mkdir()
    np.savetxt(root / "out/lung.csv", [1.0])


CASES = {
    "missing key": (TRAIN_VAE, lambda r: change_json(r / "betavae.json", ["path_csv"]), "path_csv"),
    "unknown key": (TRAIN_GAN, lambda r: change_json(r / "gan_lung.json", lrr=1), "mean 'lr'"),
    "wrong type": (TRAIN_VAE, lambda r: change_json(r / "betavae.json", beta="x"), "beta"),
    "missing column": (TRAIN_VAE, drop_name_column, "no column wsi_file_name"),
    "NaN expression": (TRAIN_VAE, set_value(np.nan), "not an expression value"),
    "negative expression": (TRAIN_GAN, set_value(-1.0), "not an expression value"),
    "genes not the config's": (
        TRAIN_VAE, lambda r: change_json(r / "betavae.json", rna_features=31), "rna_features is 31"
    ),
    "slide that is no slide": (TILE, not_a_slide, "a.svs"),
    "no slides": (TILE, lambda r: (r / "slides").mkdir(), "no slides in it"),
    "no tile store": (TRAIN_GAN, empty_stores, "no tile store"),
    "truncated tile store": (TRAIN_GAN, truncate_store, "damaged tile store"),
    "missing betaVAE": (TRAIN_RNA_GAN, lambda r: None, "model_dict_best.pt"),
    "truncated checkpoint": (GENERATE, truncated_checkpoint, "truncated or not a checkpoint"),
    "checkpoint that would execute": (GENERATE, executable_checkpoint, "not a checkpoint"),
    "existing output": (PREPARE, existing_output, "--overwrite"),
    "device that is not there": (f"{TRAIN_GAN} --device cuda:77", lambda r: None, "cuda:77"),
}  # fmt: skip


def listing(root):
    """Return what lies in a folder, but for caches, which may come and go."""
    caches = {"__pycache__", CACHE_FOLDER}
    found = (path.relative_to(root) for path in root.rglob("*"))
    return {str(path) for path in found if not caches & {*path.parts}}


@pytest.mark.parametrize("case", CASES)
def test_a_mistake_ends_in_one_line_and_leaves_nothing_behind(cohort, case):
    command, damage, words = CASES[case]
    damage(cohort)
    before = listing(cohort)
    script, *arguments = command.split()
    done = subprocess.run(
        [sys.executable, ROOT / script, *arguments], capture_output=True, text=True, cwd=cohort
    )
    lines = done.stderr.strip().splitlines()
    assert words in done.stderr
    if case == "slide that is no slide":  # one bad input of a batch: recorded, the rest goes on
        status = pd.read_csv(cohort / "out/tiles/slides.csv")
        assert done.returncode == 1
        assert status.status.tolist() == ["failed"]
        return
    assert done.returncode == 2
    assert len(lines) == 1
    assert listing(cohort) - before <= {"split.csv"}


def test_genes_in_another_order_than_the_checkpoints_are_named(cohort):
    run = {"capture_output": True, "text": True, "cwd": cohort, "check": False}
    subprocess.run(
        [sys.executable, ROOT / "betaVAE_training.py", "--config", "betavae.json"], **run
    )
    rename_a_gene(cohort)
    done = subprocess.run(
        [sys.executable, ROOT / "histopathology_gan.py", *TRAIN_RNA_GAN.split()[1:]], **run
    )
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert "gene 3 is ENSGX.1" in done.stderr
