"""Configs: strict, explained in one line, every key read."""

import ast
import json
from pathlib import Path

import pytest

from runtime.config import BetaVAEConfig, GANConfig, load_config, unused_keys
from runtime.errors import UserError
from runtime.fid_table import PairTable

ROOT = Path(__file__).resolve().parent.parent
TABLES = sorted((ROOT / "configs").rglob("fid_table.json"))
OTHERS = {ROOT / "configs" / name for name in ("quiz.json", "stain_reference.json")}
FILES = sorted({*(ROOT / "configs").rglob("*.json")} - {*TABLES, *OTHERS})
READERS = {
    BetaVAEConfig: ["betaVAE_training", "betaVAE_interpolation", "betaVAE_sample"],
    GANConfig: [
        "histopathology_gan",
        "models/adversarial_step",
        "generate_tissue_images",
        "fid",
        "measure_conditioning",
    ],  # fmt: skip
}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_config_of_the_repository_loads(path):
    config = load_config(BetaVAEConfig if "betavae" in path.name else GANConfig, path)
    assert len(config.path_csv) == len(config.patch_data_path) or {"demo", "tiny"} & {*path.parts}


@pytest.mark.parametrize("path", TABLES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_table_of_pairs_loads_and_names_fifteen(path):
    assert len(set(load_config(PairTable, path).pairs)) == 15


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"lrr": 1.0}, ["lrr", "did you mean 'lr'"]),
        ({"path_csv": None}, ["path_csv"]),
        ({"num_epochs": "ten"}, ["num_epochs", "integer", "ten"]),
        ({"lr": -1.0}, ["lr", "greater than 0", "-1.0"]),
        ({"img_size": 100}, ["img_size", "100"]),
        ({"patch_data_path": ["a", "b"]}, ["patch_data_path", "one folder per table"]),
    ],
)
def test_a_wrong_key_is_named_with_file_and_what_is_allowed(tmp_path, keys, words):
    path = tmp_path / "run.json"
    path.write_text(json.dumps({"path_csv": ["a.csv"]} | keys))
    with pytest.raises(UserError) as error:
        load_config(GANConfig, path)
    message = str(error.value)
    assert "\n" not in message
    assert all(word in message for word in [str(path), *words])


def test_missing_key_and_missing_file_are_named(tmp_path):
    path = tmp_path / "run.json"
    with pytest.raises(UserError, match=r"run\.json"):
        load_config(GANConfig, path)
    path.write_text("{}")
    with pytest.raises(UserError, match="'path_csv' is missing"):
        load_config(GANConfig, path)


def test_a_flag_overrides_the_file_and_an_absent_flag_does_not(tmp_path):
    path = tmp_path / "run.json"
    path.write_text(json.dumps({"path_csv": ["a.csv"], "device": "cpu", "num_epochs": 5}))
    config = load_config(BetaVAEConfig, path, num_epochs=7, device=None)
    assert (config.num_epochs, config.device, config.batch_size) == (7, "cpu", 128)


def test_published_keys_do_not_change_the_gan_recipe_and_are_named():
    config = load_config(GANConfig, ROOT / "configs/gan_run_lung.json")
    assert (config.generator_lr, config.critic_lr, config.tiles_per_step) == (1e-4, 4e-4, 8)
    assert "lr (generator_lr and critic_lr)" in unused_keys(config)


@pytest.mark.parametrize("family", READERS, ids=lambda family: family.__name__)
def test_every_key_is_read_by_a_script_or_declared_without_effect(family):
    read = set()
    for script in READERS[family]:
        for node in ast.walk(ast.parse((ROOT / f"{script}.py").read_text())):
            if isinstance(node, ast.Attribute) and ast.unparse(node.value).endswith("config"):
                read.add(node.attr)
    if "model_args" in read:  # what the scripts read through this method
        read |= set(family.model_args.__code__.co_names)
    assert set(family.model_fields) - read - set(family.UNUSED) == set()
