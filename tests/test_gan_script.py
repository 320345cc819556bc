"""histopathology_gan.py, generate_tissue_images.py and measure_conditioning.py on a tiny cohort."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import betaVAE_training
import generate_tissue_images
import histopathology_gan
import measure_conditioning
from data.pretrained import read_efficientnet
from metrics.conditioning import (
    FACTORS,
    conditioning_scores,
    dose_response,
    mean_scores,
    swap_changes,
)
from metrics.quality import Quality
from models import adversarial_step
from models.adversarial_step import AdversarialStep
from models.pretrained_critic import EfficientNetLite
from runtime.checkpoint import load_checkpoint
from runtime.errors import UserError

ROOT = Path(__file__).resolve().parent.parent


def change_config(path, **keys):
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


def train(name, loss_type, epochs, *extra, tissue="lung"):
    histopathology_gan.main(
        ["--config", f"gan_{tissue}.json", "--seed", "7", "--loss_type", loss_type]
        + ["--num_epochs", str(epochs), "--num_patches", "5"]
        + ["--image_dir", f"images/{name}", "--model_dir", f"models/{name}", *extra]
    )
    return load_checkpoint(f"models/{name}.model", "gan")


def same_weights(one, other):
    parts = ("generator", "generator_ema", "critic")
    return all(torch.equal(one[p][name], other[p][name]) for p in parts for name in one[p])


class DarkestIsBest:
    """Stands in for the FID: mean grey level of the tiles."""

    def __init__(self, network, device, real):
        assert real.shape[1:] == (32, 32, 3)

    def measure(self, pixels):
        return Quality(pixels.float().mean().item(), 0.0)


@pytest.fixture
def betavae(cohort):
    betaVAE_training.main(["--config", "betavae.json"])
    return cohort


@pytest.mark.parametrize("loss_type", ["wgan", "minimax", "lsgan", "relativistic"])
def test_plain_gans_train_and_keep_what_rebuilds_them(cohort, loss_type):
    state = train("gan", loss_type, 1)
    assert state["conditioning"] is None
    assert state["counters"]["step"] == 7  # 6 training slides x 5 tiles, 4 a step
    assert Path("images/gan/epoch_0001.png").is_file()
    history = pd.read_csv("models/gan.history.csv")
    assert np.isfinite(history.to_numpy()).all()
    assert (history.gradient_penalty > 0).all() == (loss_type in ("wgan", "relativistic"))


def test_epochs_in_one_go_equal_epochs_with_a_stop_bit_for_bit(betavae):
    whole = train("whole", "wganvae", 3)
    train("parts", "wganvae", 1)
    parts = train("parts", "wganvae", 3)
    assert same_weights(whole, parts)
    assert parts["counters"]["epoch"] == 3


def test_a_run_stopped_within_an_epoch_continues_bit_for_bit(cohort, monkeypatch):
    change_config(cohort / "gan_lung.json", checkpoint_minutes=1e-9)
    whole = train("whole", "wgan", 2)
    take_step, calls = AdversarialStep.__call__, []

    def stop_at_step_ten(*given):
        calls.append(1)
        if len(calls) > 10:
            raise KeyboardInterrupt
        return take_step(*given)

    monkeypatch.setattr(AdversarialStep, "__call__", stop_at_step_ten)
    with pytest.raises(KeyboardInterrupt):
        train("parts", "wgan", 2)
    monkeypatch.setattr(AdversarialStep, "__call__", take_step)
    assert load_checkpoint("models/parts.model", "gan")["counters"]["batch"] == 3
    assert same_weights(whole, train("parts", "wgan", 2))


def test_same_seed_same_result_and_other_seed_refused_on_the_same_output(cohort):
    assert same_weights(train("one", "wgan", 1), train("two", "wgan", 1))
    with pytest.raises(UserError, match="seed"):
        train("one", "wgan", 2, "--seed", "8")


def test_quality_on_held_out_tiles_is_followed_and_the_best_kept(betavae, monkeypatch):
    monkeypatch.setattr(histopathology_gan, "find_network", lambda name: name)
    monkeypatch.setattr(histopathology_gan, "QualityMeter", DarkestIsBest)
    change_config(betavae / "gan_lung.json", metrics_every=1, metrics_tiles=6)
    last = train("rna", "relativisticvae", 3)
    fid = pd.read_csv("models/rna.history.csv").fid
    best = load_checkpoint("models/rna.best.model", "gan")
    assert best["counters"]["epoch"] == fid.idxmin() + 1
    assert best["history"][-1]["fid"] == pytest.approx(fid.min())
    assert last["history"][-1]["fid"] == pytest.approx(fid.iloc[-1])


def test_max_minutes_stops_with_a_checkpoint_that_continues_bit_for_bit(betavae):
    whole = train("whole", "wganvae", 1)
    stopped = train("parts", "wganvae", 1, "--max_minutes", "1e-9")
    assert stopped["counters"]["step"] == 1
    again = train("parts", "wganvae", 1, "--max_minutes", "1e-9")
    assert again["counters"]["step"] == 1  # the time was up before
    assert same_weights(whole, train("parts", "wganvae", 1))


def test_the_residual_gan_trains_and_odd_widths_are_named(betavae):
    change_config(betavae / "gan_lung.json", step_channels=16, augment="full", penalty_interval=2)
    state = train("r3", "relativisticvae", 1, "--gan_type", "r3gan")
    assert state["gan_type"] == "r3gan"
    change_config(betavae / "gan_lung.json", step_channels=4)
    with pytest.raises(UserError, match="multiple of 16"):
        train("other", "relativistic", 1, "--gan_type", "r3gan")


def test_both_gans_train_with_the_pretrained_critic_and_resume_bit_for_bit(betavae):
    change_config(betavae / "gan_lung.json", critic_features="pretrained", augment="full",
                  zero_centred_penalty=0.0)  # fmt: skip
    whole = train("whole", "relativisticvae", 2)
    train("parts", "relativisticvae", 1)
    parts = train("parts", "relativisticvae", 2)
    assert same_weights(whole, parts)
    backbone = EfficientNetLite(3)
    backbone.load_published(read_efficientnet())
    for name, weight in backbone.state_dict().items():
        assert torch.equal(parts["critic"][f"backbone.{name}"], weight)
    change_config(betavae / "gan_lung.json", step_channels=16, zero_centred_penalty=1.0)
    assert train("r3", "relativistic", 1, "--gan_type", "r3gan")["counters"]["step"] > 0


def test_held_out_donors_are_not_trained_on(betavae):
    state = train("rna", "wganvae", 1)
    split = pd.read_csv("split.csv").set_index("donor").partition
    donors = ["-".join(name.split("-")[:2]) for name in state["train_slides"]]
    assert donors
    assert (split[donors] == "train").all()


def test_modulation_and_local_noise_train_resume_and_make_tiles(betavae):
    change_config(Path("gan_lung.json"), generator_modulation=True, local_noise=True, noise_dim=2)
    for name, loss_type in (("rna", "wganvae"), ("gan", "relativistic")):
        once = train(name, loss_type, 2)
        train(f"{name}_again", loss_type, 1)
        assert same_weights(once, train(f"{name}_again", loss_type, 2))
        assert once["generator_args"]["local_noise"]
    generate("--checkpoint2", "models/gan.model", "--patient1", "SIM-0001-0625.svs")
    for source in ("rna-gan", "gan"):
        first, second = (pixels(f"out/{source}/00000{number}.png") for number in (0, 1))
        assert (first != second).any()


def test_published_options_train(betavae):
    change_config(
        betavae / "gan_lung.json", latent_norm="batch", critic_conditioning="none",
        critic_clip=0.01,
        penalty_form="per_batch", critic_norm="batch", critic_output="leaky_relu",
        tile_order="sequential", augment="none", ema_decay=0.0, noise_dim=0,
    )  # fmt: skip
    state = train("published", "wganvae", 1)
    weights = [value for name, value in state["critic"].items() if name.endswith("weight")]
    assert max(weight.abs().max() for weight in weights) <= 0.01 + 1e-7
    for name, value in state["generator"].items():
        assert torch.equal(state["generator_ema"][name], value)
    again = train("published_again", "wganvae", 1)
    assert same_weights(train("published_again", "wganvae", 2), train("published", "wganvae", 2))
    assert not same_weights(again, train("published", "wganvae", 2))


def test_non_finite_loss_stops_with_the_last_good_checkpoint_kept(cohort, monkeypatch):
    before = train("gan", "wgan", 1)
    objective = adversarial_step.critic_objective
    monkeypatch.setattr(
        adversarial_step, "critic_objective", lambda *given: objective(*given) * float("nan")
    )
    with pytest.raises(UserError, match="not finite at step 8;"):
        train("gan", "wgan", 2)
    assert same_weights(before, load_checkpoint("models/gan.model", "gan"))


def test_genes_that_differ_from_the_betavaes_are_named(betavae):
    text = (betavae / "lung.csv").read_text()
    (betavae / "lung.csv").write_text(text.replace("rna_ENSG00000000004.1", "rna_ENSGX.1", 1))
    with pytest.raises(UserError, match="gene 5 is ENSGX"):
        train("rna", "wganvae", 1)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda root: (root / "gan_lung.json").write_text("{"), "not valid JSON"),
        (lambda root: change_config(root / "gan_lung.json", critic_clipp=1), "critic_clip"),
        (
            lambda root: change_config(root / "gan_lung.json", patch_data_path=["none"]),
            "tile store",
        ),
        (lambda root: (root / "lung.csv").write_text("a,b\n1,2\n"), "wsi_file_name"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2_and_nothing_is_written(cohort, damage, message):
    damage(cohort)
    done = subprocess.run(
        [sys.executable, ROOT / "histopathology_gan.py", "--config", "gan_lung.json"]
        + ["--num_epochs", "1", "--image_dir", "images", "--model_dir", "models/x"],
        capture_output=True, text=True, cwd=cohort,
    )  # fmt: skip
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert message in done.stderr
    assert not (cohort / "models").exists()


def generate(*extra, size=4):
    generate_tissue_images.main(
        ["--checkpoint", "models/rna.model", "--config", "gan_lung.json"]
        + ["--sample_size", str(size), "--save_path", "out", "--vae", *extra]
    )


def pixels(path):
    return np.asarray(Image.open(path))


def test_patient_gives_real_rna_gan_and_gan_tiles_with_tables(betavae):
    train("rna", "wganvae", 1)
    train("gan", "wgan", 1)
    generate("--checkpoint2", "models/gan.model", "--patient1", "SIM-0001-0625.svs")
    for source in ("real", "rna-gan", "gan"):
        table = pd.read_csv(f"out/tiles_{source}.csv")
        assert len(table) == 4
        assert all((Path("out").parent / name).is_file() for name in table.wsi_file_names)
        assert set(table.Labels) == {"lung"}
    assert pixels("out/rna-gan/000000.png").shape == (32, 32, 3)
    assert Path("out/grid.png").is_file()


def test_two_patients_with_the_same_noise_give_different_tiles(betavae):
    train("rna", "wganvae", 2)
    generate("--patient1", "SIM-0001-0625.svs")
    generate("--patient1", "SIM-0002-0625.svs", "--save_path", "other")
    assert (pixels("out/rna-gan/000000.png") != pixels("other/rna-gan/000000.png")).any()


def test_tile_k_does_not_depend_on_how_many_are_asked_for(betavae):
    train("rna", "wganvae", 1)
    generate("--patient1", "SIM-0001-0625.svs", size=3)
    generate("--patient1", "SIM-0001-0625.svs", "--save_path", "more", size=20)
    assert (pixels("out/rna-gan/000002.png") == pixels("more/rna-gan/000002.png")).all()


def test_stopped_generation_continues_and_another_request_is_refused(betavae):
    train("rna", "wganvae", 1)
    generate("--patient1", "SIM-0001-0625.svs")
    first, kept = Path("out/rna-gan/000001.png"), Path("out/rna-gan/000000.png")
    content, stamp = first.read_bytes(), kept.stat().st_mtime_ns
    first.unlink()
    generate("--patient1", "SIM-0001-0625.svs")
    assert first.read_bytes() == content
    assert kept.stat().st_mtime_ns == stamp
    with pytest.raises(UserError, match="overwrite"):
        generate("--patient1", "SIM-0002-0625.svs")


@pytest.mark.parametrize(("kept", "outcome"), [(30, "runs"), (20, "runs"), (6, "refused")])
def test_external_profiles_lacking_genes_run_until_half_is_missing(betavae, kept, outcome):
    train("rna", "wganvae", 1)
    frame = pd.read_csv("lung.csv").drop(columns="tissue").iloc[:, : kept + 1]
    frame.columns = [name.split(".")[0] for name in frame.columns]
    frame.to_csv("external.csv", index=False)
    arguments = ("--rna_file", "external.csv", "--random_patient")
    if outcome == "refused":
        with pytest.raises(UserError, match="genes found"):
            generate(*arguments)
        assert not Path("out").exists()
    else:
        generate(*arguments)
        assert len(list(Path("out/rna-gan").glob("*.png"))) == 4


def test_another_betavae_and_an_unknown_patient_are_refused(betavae):
    train("rna", "wganvae", 1)
    with pytest.raises(UserError, match="SIM-0099"):
        generate("--patient1", "SIM-0099-0625.svs")
    change_config(betavae / "betavae.json", save_dir="vae2", beta=0.1)
    betaVAE_training.main(["--config", "betavae.json"])
    with pytest.raises(UserError, match="not the betaVAE"):
        generate("--patient1", "SIM-0001-0625.svs", "--vae_checkpoint", "vae2/model_dict_best.pt")


def test_conditioning_measurement_writes_every_factor_with_controls(betavae):
    split = pd.read_csv("split.csv")
    rows = pd.read_csv("lung.csv").wsi_file_name
    truth = pd.DataFrame({"slide": rows, "sample": "x"})
    for number, factor in enumerate(FACTORS):
        truth[factor] = np.arange(len(rows)) + number
    truth.to_csv("truth.csv", index=False)
    split.loc[split.partition == "val", "partition"] = "test"
    split.loc[split.index[:3], "partition"] = "test"
    train("rna", "wganvae", 1)
    checkpoint = load_checkpoint("vae/model_dict_best.pt", "betavae")
    arguments = ["--checkpoint", "models/rna.model", "--config", "gan_lung.json", "--mpp", "1"]
    arguments += ["--truth", "truth.csv", "--output", "c/lung.json", "--sample_size", "2"]
    assert list(checkpoint["split"].values()).count("test") == 2
    with pytest.raises(UserError, match="2 held-out donors"):
        measure_conditioning.main(arguments)


def test_conditioning_scores_are_correlations_and_constant_measures_have_none():
    truth = np.random.default_rng(0).normal(size=(9, 4))
    scores = conditioning_scores(truth, {"r": 2 * truth + 1, "r_zero": np.ones((9, 4))})
    assert all(value == {"r": 1.0, "r_zero": None} for value in scores.values())


def test_mean_scores_average_over_factors_with_an_interval_around_them():
    draw = np.random.default_rng(0)
    truth = draw.normal(size=(60, 4))
    measured = {"r": truth + draw.normal(size=truth.shape), "r_zero": draw.normal(size=(60, 4))}
    scores = mean_scores(truth, measured, draw)
    assert scores["r"]["low"] < scores["r"]["r"] < scores["r"]["high"]
    assert 0.55 < scores["r"]["r"] < 0.85
    assert scores["r_zero"]["low"] < 0 < scores["r_zero"]["high"]
    constant = mean_scores(truth, {"r": np.ones((60, 4))}, draw)
    assert constant["r"] == {"r": None, "low": None, "high": None}


def test_dose_response_of_a_linear_factor_is_its_slope():
    doses = np.arange(-2.0, 3.0)
    measured = np.stack([doses, 0.1 * doses, np.zeros(5), -0.2 * doses], axis=1) * 3.0
    found = dose_response(measured, doses, np.full(4, 3.0), own=0)
    assert found["monotone"]
    assert found["slope"]["nuclear_density"] == pytest.approx(1.0)
    assert found["others"] == pytest.approx(0.2)
    measured[0, 2] = np.nan
    assert dose_response(measured, doses, np.full(4, 3.0), own=0)["slope"]["stain_ratio"] is None
    assert not dose_response(measured[::-1], doses, np.full(4, 3.0), own=0)["monotone"]


def test_swap_changes_tell_profile_from_noise():
    by_profile = np.arange(3, dtype=np.uint8).reshape(3, 1, 1, 1, 1) * np.ones(
        (3, 4, 2, 2, 3), np.uint8
    )
    profile, noise = swap_changes(by_profile)
    assert profile > 0
    assert noise == 0
