"""`--dry_run` of every script: checked as in the real run, nothing written, nothing changed."""

import importlib
import json
import re
import shlex
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import DONORS, TILE_PX, make_cohort, write_config
from PIL import Image
from test_convert_betavae import Published
from test_convert_gan import published
from test_fid_script import Network

from data.expression_cache import CACHE_FOLDER
from metrics.conditioning import FACTORS, conditioning_cost, measure_conditioning
from runtime.checkpoint import load_checkpoint
from runtime.errors import UserError

SCRIPTS = {path.stem for path in Path(__file__).parent.parent.glob("*.py")}
PATIENT = "SIM-0001-0625.svs"
GAN = "--config gan_lung.json --checkpoint rna-gan.model"
TRUTH = "--truth truth.csv --programs programs.csv --mpp 1.0"
QUIZ = "--config quiz.json --real images/real --generated images/gan --port 0"
# Script: its command, an option that names an input, and a value that is a mistake there.
COMMANDS = {
    "simulate_cohort": (
        "--output out/cohort --donors 2 --profiles 4 --genes 150 --slide_px 512",
        ("--output", "images"),
    ),
    "prepare_expression": ("--input lung.csv --output out/lung.csv", ("--input", "no.csv")),
    "extract_tiles": (
        "--slide_path slides/slides/lung --patch_path out/tiles --tile_px 32 --workers 1",
        ("--slide_path", "no"),
    ),
    "betaVAE_training": ("--config betavae.json --save_dir out/vae", ("--config", "no.json")),
    "betaVAE_interpolation": ("--config betavae.json", ("--checkpoint", "no.pt")),
    "betaVAE_sample": ("--config betavae.json --num_samples 40", ("--checkpoint", "no.pt")),
    "histopathology_gan": (
        "--config gan_lung.json --loss_type wganvae --num_epochs 2 --num_patches 4"
        " --image_dir out/images --model_dir out/rna-gan",
        ("--vae_checkpoint", "no.pt"),
    ),
    "measure_conditioning": (
        f"{GAN} {TRUTH} --sample_size 2 --output out/conditioning.json",
        ("--truth", "no.csv"),
    ),
    "fid": (
        f"{GAN} {TRUTH} --sample_size 6 --draws 2 --features features.pt --copying 6"
        " --expression_recovery 4 --output out/fid.json",
        ("--features", "no.pt"),
    ),
    "generate_tissue_images": (
        f"{GAN} --patient1 {PATIENT} --sample_size 4 --save_path out/generated",
        ("--patient1", "nobody"),
    ),
    "wsi_model": (
        "--patch_data_path images --csv_path images.csv --network small --image_px 32"
        " --num_epochs 1 --folds 2 --output out/classifier",
        ("--csv_path", "no.csv"),
    ),
    "figures": ("--results . --output out/report --figure betavae_history", ("--results", "no")),
    "web_quiz": (f"{QUIZ} --store out/quiz.sqlite", ("--generated", "no")),
    "convert_betavae": (
        "--weights published.pt --config published.json --output out/betavae.pt",
        ("--weights", "no.pt"),
    ),
    "convert_gan": (
        "--input old.model --config gan_lung.json --output out/gan.model",
        ("--input", "no.model"),
    ),
}


def run(script, command, *more):
    return importlib.import_module(script).main([*shlex.split(command), *more])


def contents(root):
    """Return every folder and the bytes of every file, but for the tables' caches."""
    paths = (path for path in root.rglob("*") if CACHE_FOLDER not in path.parts)
    return {path: path.is_file() and path.read_bytes() for path in paths}


def change_config(name, **keys):
    path = Path(name)
    write_config(path, **(json.loads(path.read_text()) | keys))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Return a folder, made the current one, with an input for every script."""
    root = tmp_path_factory.mktemp("world")
    draw = np.random.default_rng(3)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        make_cohort(root)
        donors = [f"SIM-{number:04d}" for number in range(DONORS)]
        partitions = ["train"] * 5 + ["val"] + ["test"] * 4
        split = pd.DataFrame({"donor": donors, "partition": partitions})
        split.to_csv("split.csv", index=False)
        folder = "checkpoints/betavae_training_tissues"
        change_config("betavae.json", save_dir=folder)
        change_config("gan_lung.json", vae_checkpoint=f"{folder}/model_dict_best.pt")
        run("betaVAE_training", "--config betavae.json")
        run(
            "histopathology_gan",
            "--config gan_lung.json --loss_type wganvae --num_epochs 1 --num_patches 4"
            " --image_dir i --model_dir rna-gan",
        )
        run("simulate_cohort", COMMANDS["simulate_cohort"][0], "--output", "slides")
        truth = pd.DataFrame(draw.uniform(1, 2, (DONORS, len(FACTORS))), columns=FACTORS)
        truth.insert(0, "slide", [f"{donor}-0625.svs" for donor in donors])
        truth.assign(sample="").to_csv("truth.csv", index=False)
        gene = load_checkpoint("rna-gan.model", "gan")["genes"][0]
        Path("programs.csv").write_text(f"gene_id,program,weight\n{gene},{FACTORS[0]},0.5\n")
        patch.setattr("warnings.warn", lambda *_, **__: None)  # torch announces TorchScript's end
        torch.jit.trace(Network(), torch.zeros(2, 3, 299, 299)).save("features.pt")
        rows = []
        for source in ("real", "gan"):
            for label in ("lung", "brain"):
                for number in range(8):
                    name = f"{source}/{label}/{number}.png"
                    (root / "images" / name).parent.mkdir(parents=True, exist_ok=True)
                    pixels = draw.integers(0, 255, (TILE_PX, TILE_PX, 3), dtype=np.uint8)
                    Image.fromarray(pixels).save(root / "images" / name)
                    rows.append((name, label, f"SIM-{number:04d}-0625.svs"))
        listed = pd.DataFrame(rows, columns=["wsi_file_names", "Labels", "patient"])
        listed.to_csv("images.csv", index=False)
        write_config(root / "quiz.json", question_counts=[4], study={"questions": 6})
        torch.save(Published().state_dict(), "published.pt")
        write_config(
            root / "published.json", path_csv=["lung.csv", "brain.csv"], rna_features=30,
            hidden_dims=[16, 12, 6], latent_dim=6, expression_transform="log_nonzero",
            output_activation="tanh",
        )  # fmt: skip
        published("old.model")
        yield root


def test_every_script_is_here():
    assert set(COMMANDS) == SCRIPTS


@pytest.mark.parametrize("script", COMMANDS)
def test_a_dry_run_ends_well_and_leaves_the_folder_as_it_was(world, script, capsys):
    before = contents(world)
    assert not run(script, COMMANDS[script][0], "--dry_run")
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "dry run: nothing written"
    if script != "extract_tiles":  # which lists what would be done, slide by slide
        facts = dict(line.split(": ", 1) for line in lines[-4:-1])
        assert list(facts) == ["time", "memory", "disk"]
    assert contents(world) == before


@pytest.mark.parametrize("script", COMMANDS)
def test_a_mistake_is_told_by_a_dry_run_as_by_the_run(world, script):
    before = contents(world)
    command, mistake = COMMANDS[script]
    with pytest.raises(UserError) as told:
        run(script, command, *mistake, "--dry_run")
    assert contents(world) == before
    with pytest.raises(UserError) as found:
        run(script, command, *mistake)
    assert str(told.value) == str(found.value)


def test_a_dry_run_refuses_an_output_of_another_command(world):
    for script, name in (("fid", "fid.json"), ("measure_conditioning", "conditioning.json")):
        output = world / f"other_{name}"
        output.write_text("{}")
        with pytest.raises(UserError, match="--overwrite"):
            run(script, COMMANDS[script][0], "--output", str(output), "--dry_run")
        output.unlink()


def test_the_tiles_counted_are_those_whose_features_the_run_computes(world, tmp_path, capsys):
    command = (
        f"{GAN} --sample_size 6 --draws 2 --features features.pt --copying 6"
        f" --expression_recovery 4 --cache {tmp_path}/features --output {tmp_path}/a.json"
    )
    run("fid", command, "--dry_run")
    told = re.search(r"features: \d+ of (\d+) tiles", capsys.readouterr().out)
    assert not list(tmp_path.iterdir())
    run("fid", command)
    kept = [np.load(path)["features"] for path in (tmp_path / "features").iterdir()]
    assert sum(map(len, kept)) == int(told[1])


def test_the_tiles_of_the_conditioning_are_counted_as_they_are_made():
    draw, made = np.random.default_rng(0), []

    def tiles(profile, first, count):
        made.append(count)
        return draw.integers(0, 255, (count, 32, 32, 3), dtype=np.uint8)

    truth = draw.uniform(1, 2, (20, len(FACTORS)))
    programs = {FACTORS[0]: np.ones(5), FACTORS[2]: np.ones(5)}
    given = (tiles, np.ones((20, 5)), truth, np.ones(5), programs, 1.0, 3, 0)
    count, _ = conditioning_cost(*given)
    made.clear()
    measure_conditioning(*given)
    assert sum(made) == count


def test_features_that_are_kept_are_not_counted_again(world, tmp_path, capsys):
    command = (
        f"{GAN} --sample_size 6 --draws 2 --features features.pt --cache {tmp_path}/features"
        f" --output {tmp_path}/a.json"
    )
    run("fid", command)
    capsys.readouterr()
    run("fid", f"{command} --bootstrap 0 --output {tmp_path}/b.json --dry_run")
    assert "of 0 tiles" in capsys.readouterr().out
    run("fid", f"{command} --seed 98 --no_floor --output {tmp_path}/b.json --dry_run")
    count = int(re.search(r"of (\d+) tiles", capsys.readouterr().out)[1])
    assert 12 <= count <= 24  # all generated tiles are new, of the real ones those not drawn before


def test_a_quiz_that_is_there_is_checked_and_left_alone(world, tmp_path, capsys):
    store = tmp_path / "quiz.sqlite"
    run("web_quiz", f"{QUIZ} --store {store} --export {tmp_path}/out")
    before = contents(tmp_path)
    assert not run("web_quiz", f"{QUIZ} --store {store} --dry_run")
    assert "lung real 8" in capsys.readouterr().out
    with pytest.raises(UserError, match="other tiles or seed"):
        run("web_quiz", f"{QUIZ} --store {store} --seed 1 --dry_run")
    assert contents(tmp_path) == before


@pytest.mark.parametrize("script", ["betaVAE_training", "histopathology_gan"])
def test_training_after_a_dry_run_gives_the_same_weights(script, tmp_path, monkeypatch):
    command, path, stage, parts = {
        "betaVAE_training": (
            "--config betavae.json", "vae/model_dict_last.pt", "betavae", ["model"],
        ),
        "histopathology_gan": (
            "--config gan_lung.json --num_epochs 1 --num_patches 4 --image_dir i --model_dir m",
            "m.model", "gan", ["generator", "generator_ema", "critic"],
        ),
    }[script]  # fmt: skip
    states = []
    for name in ("dry", "plain"):
        root = tmp_path / name
        root.mkdir()
        make_cohort(root)
        monkeypatch.chdir(root)
        if name == "dry":
            run(script, command, "--dry_run")
        run(script, command)
        states.append(load_checkpoint(path, stage))
    for part in parts:
        for key, value in states[0][part].items():
            assert torch.equal(value, states[1][part][key]), key
