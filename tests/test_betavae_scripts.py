"""betaVAE_training.py, betaVAE_interpolation.py and betaVAE_sample.py on a tiny cohort."""

import json

import numpy as np
import pandas as pd
import pytest
import torch

import betaVAE_interpolation
import betaVAE_sample
import betaVAE_training
from data.expression import read_cohort, read_expression_table
from models.profiles import ProfileEncoder
from runtime.checkpoint import load_checkpoint
from runtime.errors import UserError


def train(*extra):
    betaVAE_training.main(["--config", "betavae.json", "--seed", "7", *extra])


def weights(path):
    return load_checkpoint(path, "betavae")["model"]


def change_config(path, **keys):
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


def test_training_writes_all_results_and_loss_falls(cohort):
    change_config(cohort / "betavae.json", num_epochs=30)
    train("--log", "0", "--parallel", "0")
    history = pd.read_csv("vae/history.csv")
    assert len(history) == 30
    assert history.train_loss.iloc[-1] < history.train_loss.iloc[0]
    latents = pd.read_csv("vae/latents.csv")
    assert len(latents) == 20
    summary = json.loads((cohort / "vae/summary.json").read_text())
    assert summary["latent_dim"] == 6
    assert json.loads((cohort / "vae/run.json").read_text())["seed"] == 7


def test_donors_of_both_tissues_share_a_partition_and_scaler_is_fitted_on_training_donors(cohort):
    train()
    checkpoint = load_checkpoint("vae/model_dict_best.pt", "betavae")
    table = read_cohort(["lung.csv", "brain.csv"])
    training = [checkpoint["split"][donor] == "train" for donor in table.donors]
    assert sum(training) == 12
    expected = np.log1p(table.expression[training]).mean(axis=0)
    np.testing.assert_allclose(checkpoint["scaler"]["mean"].numpy(), expected, rtol=1e-5)


def test_stopped_and_continued_training_equals_training_in_one_go(cohort, monkeypatch):
    train()
    whole = weights("vae/model_dict_last.pt")
    change_config(cohort / "betavae.json", save_dir="vae2")
    save, saved = betaVAE_training.save_checkpoint, []

    def stop_after_epoch_two(path, stage, content):
        save(path, stage, content)
        saved.append(path.name)
        if path.name == "model_dict_last.pt":
            raise KeyboardInterrupt

    monkeypatch.setattr(betaVAE_training, "save_checkpoint", stop_after_epoch_two)
    with pytest.raises(KeyboardInterrupt):
        train()
    monkeypatch.setattr(betaVAE_training, "save_checkpoint", save)
    assert load_checkpoint("vae2/model_dict_last.pt", "betavae")["counters"]["epoch"] == 2
    train()
    continued = weights("vae2/model_dict_last.pt")
    assert all(torch.equal(whole[name], continued[name]) for name in whole)


def test_finished_training_is_not_repeated_and_another_recipe_is_refused(cohort):
    train()
    before = (cohort / "vae/model_dict_best.pt").stat().st_mtime_ns
    train()
    assert (cohort / "vae/model_dict_best.pt").stat().st_mtime_ns == before
    change_config(cohort / "betavae.json", beta=0.1)
    with pytest.raises(UserError, match="beta"):
        train()


def test_wrong_gene_number_is_refused_before_anything_is_written(cohort):
    change_config(cohort / "betavae.json", rna_features=29)
    with pytest.raises(UserError, match="30 genes"):
        train()
    assert not (cohort / "vae").exists()


def test_interpolation_is_the_difference_of_mean_mu_and_samples_shift_by_it(cohort):
    train()
    betaVAE_interpolation.main(["--config", "betavae.json"])
    with np.load("vae/interpolation_tissue.npz") as archive:
        difference, members = archive["difference"], archive["members_0"].tolist()
        assert archive["groups"].tolist() == ["lung", "brain"]
    checkpoint = load_checkpoint("vae/model_dict_best.pt", "betavae")
    encoder = ProfileEncoder.from_checkpoint(checkpoint, torch.device("cpu"))
    table = read_cohort(["lung.csv", "brain.csv"])
    training = np.array([encoder.split[donor] == "train" for donor in table.donors])
    mu = encoder.mu(table.expression).numpy()
    expected = mu[10:][training[10:]].mean(axis=0) - mu[:10][training[:10]].mean(axis=0)
    np.testing.assert_allclose(difference, expected, atol=1e-5)

    betaVAE_sample.main(
        ["--config", "betavae.json", "--num_samples", "6", "--alpha", "0"]
        + ["--interpolation", "vae/interpolation_tissue.npz"]
    )
    shifted = read_expression_table("vae/samples_lung_to_brain.csv")
    decoded = encoder.decode(torch.from_numpy(mu[[table.names.index(name) for name in members]]))
    unshifted = encoder.scaler.inverse(decoded)
    np.testing.assert_allclose(
        np.sort(shifted.expression, axis=0), np.sort(unshifted, axis=0), rtol=1e-3, atol=1e-3
    )


def test_sex_groups_come_from_the_annotations_and_a_missing_column_is_named(cohort):
    train()
    rows = [f"SIM-{donor:04d}\t{1 + donor % 2}" for donor in range(10)]
    (cohort / "sex.tsv").write_text("SUBJID\tSEX\n" + "\n".join(rows) + "\n")
    arguments = ["--config", "betavae.json", "--type", "sex", "--annotations"]
    betaVAE_interpolation.main([*arguments, "sex.tsv"])
    with np.load("vae/interpolation_sex.npz") as archive:
        assert set(archive["groups"]) == {"male", "female"}
    (cohort / "bad.tsv").write_text("SUBJID\tAGE\nSIM-0001\t50\n")
    with pytest.raises(UserError, match="SEX"):
        betaVAE_interpolation.main([*arguments, "bad.tsv", "--overwrite"])


def test_samples_are_a_table_of_the_input_form_and_depend_on_the_seed(cohort):
    train()
    arguments = ["--config", "betavae.json", "--num_samples", "9"]
    betaVAE_sample.main(arguments)
    table = read_expression_table("vae/samples.csv")
    assert table.expression.shape == (9, 30)
    assert table.genes == read_expression_table("lung.csv").genes
    with pytest.raises(UserError, match="overwrite"):
        betaVAE_sample.main([*arguments, "--seed", "3"])
    betaVAE_sample.main([*arguments, "--seed", "3", "--overwrite"])
    assert not np.allclose(read_expression_table("vae/samples.csv").expression, table.expression)


def test_a_foreign_interpolation_file_is_refused(cohort):
    train()
    np.savez(cohort / "other.npz", difference=np.zeros(5))
    with pytest.raises(UserError, match=r"other\.npz"):
        betaVAE_sample.main(["--config", "betavae.json", "--interpolation", "other.npz"])
