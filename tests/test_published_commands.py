"""Every published command, in order, on a tiny cohort: configs, patients and sizes swapped."""

import json
import math
import shlex
import shutil
import warnings
from pathlib import Path

import pandas as pd
import pytest
import torch

import betaVAE_interpolation
import betaVAE_sample
import betaVAE_training
import extract_tiles
import fid
import generate_tissue_images
import histopathology_gan
import measure_conditioning
import prepare_expression
import simulate_cohort
import wsi_model
from runtime.checkpoint import load_checkpoint
from runtime.errors import UserError

LUNG, BRAIN = "SIM-0002-0625.svs", "SIM-0002-3025.svs"
BETAVAE = "checkpoints/betavae_training_tissues/model_dict_best.pt"
MODELS = "./checkpoints/{0}/{0}.model"
# Rows of the published table: checkpoint, checkpoint2, config, patients and flags.
PAIRS = [
    ("gan_lung", None, "lung", "--vae --patient1 LUNG"),
    ("rna-gan_lung", None, "lung", "--vae --patient1 LUNG"),
    ("rna-gan_lung", "gan_lung", "lung", "--vae --patient1 LUNG"),
    ("gan_lung", None, "brain", ""),
    ("rna-gan_lung", None, "brain", "--vae --patient1 BRAIN"),
    ("gan_lung", "gan_brain", "brain", ""),
    ("rna-gan_brain", "gan_lung", "brain", "--vae --patient1 BRAIN"),
    ("rna-gan_lung", "gan_brain", "lung", "--vae --patient1 LUNG"),
    (
        "rna-gan_lung",
        "rna-gan_brain",
        "lung",
        "--config2 configs/gan_run_brain.json --vae --patient1 LUNG --patient2 BRAIN",
    ),
    ("gan_brain", None, "brain", "--patient1 BRAIN"),
    ("rna-gan_brain", None, "brain", "--vae --patient1 BRAIN"),
    ("rna-gan_brain", "gan_brain", "brain", "--vae --patient1 BRAIN"),
    ("gan_brain", None, "lung", ""),
    ("rna-gan_brain", None, "lung", "--vae --patient1 LUNG"),
    (
        None,
        None,
        "lung",
        "--real --config2 configs/gan_run_brain.json --patient1 LUNG --patient2 BRAIN",
    ),
]


class MeanAndSpread(torch.nn.Module):
    """A fast stand-in for Inception: mean and spread of the colour channels."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return six features (N, 6) of images (N, 3, H, W)."""
        return torch.cat([images.mean(dim=(2, 3)), images.std(dim=(2, 3))], dim=1)


def run(script, command):
    """Run a script's main with a command line; LUNG and BRAIN stand for the two patients."""
    return script.main(shlex.split(command.replace("LUNG", LUNG).replace("BRAIN", BRAIN)))


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """Return a folder in which sections 0 to 2 have been run; it is the current one meanwhile."""
    root = tmp_path_factory.mktemp("chain")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        run(simulate_cohort, "--output cohort --donors 8 --profiles 30 --genes 300 --slide_px 512")
        for tissue in ("lung", "brain"):
            run(
                prepare_expression,
                f"--input cohort/expression/{tissue}_counts.csv.gz --tissue {tissue}"
                f" --slides cohort/slides/{tissue} --output {tissue}.csv",
            )
            run(
                prepare_expression,
                f"--input cohort/external_{tissue}_counts.csv.gz --unit counts --tissue {tissue}"
                f" --output GSE120795_{tissue}_proteincoding.csv",
            )
            run(
                extract_tiles,
                f"--slide_path cohort/slides/{tissue} --patch_path tiles/{tissue}"
                " --tile_px 32 --mpp 1.0 --workers 1",
            )
        Path("configs").mkdir()
        shared = {"rna_features": 300, "img_size": 32, "device": "cpu", "n_workers": 0}
        vae = {"path_csv": ["lung.csv", "brain.csv"], "hidden_dims": [32, 16], "latent_dim": 8}
        vae |= {"num_epochs": 3, "batch_size": 8, "lr": 0.001} | shared
        vae |= {"save_dir": "checkpoints/betavae_training_tissues/", "summary_path": "events"}
        Path("configs/betavae_tissues.json").write_text(json.dumps(vae))
        for name, tissues in (("_lung", ["lung"]), ("_brain", ["brain"]), ("", ["lung", "brain"])):
            gan = {"path_csv": [f"{tissue}.csv" for tissue in tissues], "step_channels": 4}
            gan |= {"patch_data_path": [f"tiles/{tissue}" for tissue in tissues]} | shared
            gan |= {"lr": 0.0002, "batch_size": 64, "num_epochs": 900, "latent_dim": 8}
            Path(f"configs/gan_run{name}.json").write_text(json.dumps(gan))

        common = "--seed 99 --config configs/betavae_tissues.json --parallel 0"
        run(betaVAE_training, f"{common} --log 1")
        run(betaVAE_interpolation, f"{common} --log 0")
        run(betaVAE_sample, f"{common} --log 0 --num_samples 12")
        for loss_type, model in (("wgan", "gan"), ("wganvae", "rna-gan")):
            for tissue in ("brain", "lung"):
                name = f"{model}_{tissue}"
                run(
                    histopathology_gan,
                    f"--seed 99 --config configs/gan_run_{tissue}.json"
                    f" --image_dir gan_generated_images/images_{name}"
                    f" --model_dir ./checkpoints/{name}/{name} --num_epochs 1 --gan_type dcgan"
                    f" --loss_type {loss_type} --num_patches 8",
                )
                shutil.copy(MODELS.format(name), f"checkpoints/{name}.model")
        shutil.copy(BETAVAE, "checkpoints/betavae.pt")
        with warnings.catch_warnings():  # torch announces the end of TorchScript
            warnings.simplefilter("ignore")
            torch.jit.trace(MeanAndSpread(), torch.zeros(2, 3, 299, 299)).save("features.pt")
        yield root


def test_sections_1_and_2_write_models_grids_and_events(chain):
    assert load_checkpoint(BETAVAE, "betavae")["best"]["val_reconstruction"] < 10
    assert list((chain / "events").iterdir())
    for name in ("gan_lung", "gan_brain", "rna-gan_lung", "rna-gan_brain"):
        state = load_checkpoint(MODELS.format(name), "gan")
        assert state["counters"]["epoch"] == 1
        assert (state["conditioning"] is not None) == name.startswith("rna")
        assert (chain / f"gan_generated_images/images_{name}/epoch_0001.png").is_file()


def test_one_generator_for_both_tissues_trains(chain):
    run(
        histopathology_gan,
        "--config configs/gan_run.json --image_dir both --model_dir both/both --num_epochs 1"
        " --loss_type wganvae --num_patches 2",
    )
    slides = load_checkpoint("both/both.model", "gan")["train_slides"]
    assert {name.split("-")[2][:4] for name in slides} == {"0625", "3025"}


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: f"{pair[0]}-{pair[1]}-{pair[2]}")
def test_section_3_every_pair_gives_five_draws(chain, pair, capsys):
    checkpoint, checkpoint2, tissue, rest = pair
    command = (
        f"--config configs/gan_run_{tissue}.json --sample_size 6 --features features.pt {rest}"
    )
    if checkpoint:
        command += f" --checkpoint {MODELS.format(checkpoint)}"
    if checkpoint2:
        command += f" --checkpoint2 {MODELS.format(checkpoint2)}"
    if "--vae" in rest:
        command += f" --vae_checkpoint {BETAVAE}"
    output = f"fid/{PAIRS.index(pair)}.json"
    assert not run(fid, f"{command} --cache features --output {output}")
    printed = capsys.readouterr().out
    values = json.loads(next(line for line in printed.splitlines() if line.startswith("[")))
    assert len(values) == 5
    assert all(math.isfinite(value) and value > -1e-6 for value in values)


@pytest.mark.parametrize(("tissue", "patient"), [("lung", "LUNG"), ("brain", "BRAIN")])
def test_section_4_a_patient_and_a_profile_from_outside(chain, tissue, patient):
    common = (
        f"--checkpoint ./checkpoints/rna-gan_{tissue}.model --config configs/gan_run_{tissue}.json"
        " --sample_size 5 --vae --vae_checkpoint checkpoints/betavae.pt"
    )
    run(
        generate_tissue_images,
        f"{common} --checkpoint2 ./checkpoints/gan_{tissue}.model --patient1 {patient}"
        f" --save_path patient_{tissue}",
    )
    run(
        generate_tissue_images,
        f"{common} --rna_data GSE120795_{tissue}_proteincoding.csv --random_patient"
        f" --save_path external_{tissue}",
    )
    for folder in (f"patient_{tissue}", f"external_{tissue}"):
        assert len(list((chain / folder / "rna-gan").glob("*.png"))) == 5
        assert (chain / folder / "grid.png").is_file()


def test_section_4_the_published_lung_line_with_the_brain_config_works(chain):
    run(
        generate_tissue_images,
        "--checkpoint ./checkpoints/rna-gan_lung.model --config configs/gan_run_brain.json"
        " --sample_size 3 --vae --vae_checkpoint checkpoints/betavae.pt"
        " --rna_data GSE120795_lung_proteincoding.csv --random_patient",
    )
    folder = chain / "generated_images/rna-gan_lung_GSE120795_lung_proteincoding"
    assert len(list((folder / "rna-gan").glob("*.png"))) == 3


def test_section_5_classifier_on_real_and_on_generated_tiles(chain):
    for tissue in ("lung", "brain"):
        run(
            generate_tissue_images,
            f"--checkpoint ./checkpoints/rna-gan_{tissue}.model --sample_size 24 --all_patients"
            f" --config configs/gan_run_{tissue}.json --vae --save_path images_form/{tissue}",
        )
    for source in ("real", "rna-gan"):
        parts = [f"images_form/{tissue}/tiles_{source}.csv" for tissue in ("lung", "brain")]
        listed = pd.concat([pd.read_csv(part) for part in parts])
        listed.to_csv(f"{source}_toy_example.csv", index=False)
        run(
            wsi_model,
            f"--patch_data_path images_form/ --csv_path {source}_toy_example.csv"
            " --network small --num_epochs 1 --folds 3",
        )
        folder = chain / f"classifier_results/{source}_toy_example"
        scores = json.loads((folder / "summary.json").read_text())["scores"]
        assert 0 <= scores["accuracy"]["mean"] <= 1


def test_conditioning_is_measured_on_held_out_donors_with_controls(chain):
    run(
        measure_conditioning,
        "--checkpoint checkpoints/rna-gan_lung.model --config configs/gan_run_lung.json --mpp 1.0"
        " --truth cohort/truth.csv --output conditioning/lung.json --sample_size 4"
        " --programs cohort/programs.csv",
    )
    content = json.loads((chain / "conditioning/lung.json").read_text())
    assert content["n_donors"] == 6
    assert set(content["factors"]["stain_ratio"]) == {"r", "r_shuffled", "r_zero", "r_class_mean"}
    assert content["profile_change"] > 0
    assert set(content["dose_response"]) == set(content["factors"])
    assert all(len(one["change"]["stain_ratio"]) == 5 for one in content["dose_response"].values())


def test_conditioning_is_reached_from_fid_with_the_same_numbers(chain):
    common = "--checkpoint checkpoints/rna-gan_lung.model --config configs/gan_run_lung.json"
    truth = "--truth cohort/truth.csv --mpp 1.0"
    run(measure_conditioning, f"{common} {truth} --output conditioning/again.json")
    run(
        fid,
        f"{common} {truth} --sample_size 6 --draws 2 --features features.pt --cache features"
        " --output fid/conditioning.json",
    )
    alone = json.loads((chain / "conditioning/again.json").read_text())
    found = json.loads((chain / "fid/conditioning.json").read_text())["conditioning"]
    assert found == {key: alone[key] for key in found}
    with pytest.raises(UserError, match="RNA-GAN"):
        run(
            fid,
            f"--checkpoint checkpoints/gan_lung.model --config configs/gan_run_lung.json {truth}"
            " --features features.pt --output fid/other.json",
        )
