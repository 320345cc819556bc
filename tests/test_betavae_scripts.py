"""betaVAE_training.py, betaVAE_interpolation.py and betaVAE_sample.py on a tiny cohort."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import betaVAE_interpolation
import betaVAE_sample
import betaVAE_training
from data.expression import (
    ExpressionTable,
    read_cohort,
    read_expression_table,
    write_expression_table,
)
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


def sample(*extra):
    betaVAE_sample.main(["--config", "betavae.json", "--num_samples", "24", *extra])


def evidence(name="samples"):
    return json.loads(Path(f"vae/evidence_{name}.json").read_text())


def widen(cohort, donors=60):
    """Write tables with enough held-out donors for two-sample tests, genes led by two factors."""
    draw = np.random.default_rng(3)
    weights = draw.normal(0, 0.4, (2, 30))
    for tissue, block, level in (("lung", "0625", 3.0), ("brain", "3025", 4.0)):
        logged = level * (np.arange(30) % 2) + 2 + draw.normal(size=(donors, 2)) @ weights
        table = ExpressionTable(
            [f"SIM-{donor:04d}-{block}.svs" for donor in range(donors)],
            read_expression_table(cohort / f"{tissue}.csv").genes,
            np.exp(logged + draw.normal(0, 0.3, logged.shape)).astype(np.float32),
            pd.DataFrame({"tissue": [tissue] * donors}),
        )
        write_expression_table(cohort / f"{tissue}.csv", table)


def test_training_writes_evidence_of_reconstruction_for_every_partition(cohort):
    train()
    content = json.loads((cohort / "vae/evidence.json").read_text())
    assert set(content) == {"train", "val", "test"}
    assert set(content["test"]["groups"]) == {"all", "lung", "brain"}
    assert content["test"]["groups"]["all"]["profiles"] == 4
    assert 0 <= content["test"]["active_latent_dims"] <= 6


def test_the_published_samples_are_narrow_and_the_default_ones_as_wide_as_real_ones(cohort):
    widen(cohort)
    change_config(cohort / "betavae.json", num_epochs=40, batch_size=16, dropout=0.1)
    train()
    sample("--prior", "normal", "--residual_noise", "none")
    published = evidence()
    sample("--overwrite")
    ours = evidence()
    assert published["prior"] == "normal"
    assert published["genes"]["sd_ratio"] < 0.7 < ours["genes"]["sd_ratio"] < 1.3
    assert ours["auc"]["forest"]["mean"] < published["auc"]["forest"]["mean"]
    assert ours["tissue_accuracy"]["real_to_generated"] > 0.9
    assert "tissue_accuracy" not in published
    points = pd.read_csv("vae/evidence_samples_profiles.csv")
    assert points.set.unique().tolist() == ["real", "reconstructed", "generated"]


def test_a_gene_that_is_0_in_many_profiles_is_0_in_samples_and_never_below_what_was_measured(
    cohort,
):
    for name in ("lung.csv", "brain.csv"):
        table = read_expression_table(name)
        values = np.array(table.expression)
        values[:, 0] = np.where(values[:, 0] < np.median(values[:, 0]), 0, 5)
        write_expression_table(
            cohort / name, ExpressionTable(table.names, table.genes, values, table.annotations)
        )
    train()
    sample()
    rare = read_expression_table("vae/samples.csv").expression[:, 0]
    assert np.mean(rare == 0) == pytest.approx(0.5, abs=0.15)


def test_the_published_form_decodes_standard_normal_latents(cohort):
    train()
    sample("--prior", "normal", "--residual_noise", "none")
    table = read_expression_table("vae/samples.csv")
    assert set(table.annotations.tissue) == {"synthetic"}
    encoder = ProfileEncoder.from_checkpoint(
        load_checkpoint("vae/model_dict_best.pt", "betavae"), torch.device("cpu")
    )
    z = np.random.default_rng(0).standard_normal((5000, 6), np.float32)
    expected = encoder.scaler.inverse(encoder.decode(torch.from_numpy(z))).mean(axis=0)
    np.testing.assert_allclose(table.expression.mean(axis=0), expected, rtol=0.2)


@pytest.mark.parametrize("prior", ["posterior", "mixture"])
def test_samples_of_one_tissue_have_its_name_and_own_file(cohort, prior):
    train()
    sample("--tissue", "brain", "--prior", prior)
    table = read_expression_table("vae/samples_brain.csv")
    assert set(table.annotations.tissue) == {"brain"}
    assert (table.expression >= 0).all()


def test_samples_are_read_by_training_and_by_interpolation(cohort):
    train()
    for tissue in ("lung", "brain"):
        sample("--tissue", tissue)
    change_config(
        cohort / "betavae.json", path_csv=["vae/samples_lung.csv", "vae/samples_brain.csv"],
        save_dir="again",
    )  # fmt: skip
    train()
    betaVAE_interpolation.main(["--config", "betavae.json"])
    with np.load("again/interpolation_tissue.npz") as archive:
        assert archive["groups"].tolist() == ["lung", "brain"]


def test_a_path_leads_from_one_group_to_the_other_and_between_two_samples(cohort):
    train()
    betaVAE_interpolation.main(["--config", "betavae.json"])
    shift = "vae/interpolation_tissue.npz"
    betaVAE_sample.main(["--config", "betavae.json", "--interpolation", shift, "--steps", "5"])
    path = read_expression_table("vae/path_lung_to_brain.csv")
    assert path.annotations.alpha.tolist() == [0, 0.25, 0.5, 0.75, 1]
    moved = pd.read_csv("vae/interpolation_tissue.csv").set_index("gene").loc[path.genes]
    np.testing.assert_allclose(path.expression[0], moved.expression_lung, rtol=1e-3)
    np.testing.assert_allclose(path.expression[-1], moved.expression_brain, rtol=1e-3)
    ends = ["SIM-0001-0625.svs", "SIM-0002-3025.svs"]
    betaVAE_sample.main(["--config", "betavae.json", "--between", *ends, "--steps", "3"])
    assert len(read_expression_table(f"vae/path_{ends[0]}_to_{ends[1]}.csv")) == 3


def test_shifted_samples_move_with_alpha_and_say_how_many_are_taken_for_the_target(cohort):
    widen(cohort)
    change_config(cohort / "betavae.json", num_epochs=40, batch_size=16, dropout=0.1)
    train()
    betaVAE_interpolation.main(["--config", "betavae.json"])
    moved = []
    for alpha in ("0", "1"):
        sample("--interpolation", "vae/interpolation_tissue.npz", "--alpha", alpha, "--overwrite")
        moved.append(evidence("samples_lung_to_brain"))
    assert moved[0]["share"] < 0.3
    assert moved[1]["share"] > 0.7
    assert moved[1]["classified_as"] == "brain"


def test_gene_table_holds_effect_and_fold_change_most_moved_first(cohort):
    train()
    betaVAE_interpolation.main(["--config", "betavae.json"])
    moved = pd.read_csv("vae/interpolation_tissue.csv")
    assert moved.scaled_shift.abs().is_monotonic_decreasing
    expected = np.log2((moved.expression_brain + 1) / (moved.expression_lung + 1))
    np.testing.assert_allclose(moved.log2_fold_change, expected, atol=1e-4)
    table = read_cohort(["lung.csv", "brain.csv"])
    content = load_checkpoint("vae/model_dict_best.pt", "betavae")
    encoder = ProfileEncoder.from_checkpoint(content, torch.device("cpu"))
    scaled = encoder.scaler.transform(table.expression)
    training = np.array([encoder.split[donor] == "train" for donor in table.donors])
    lung = np.arange(20) < 10
    means = [scaled[training & rows].mean(axis=0) for rows in (lung, ~lung)]
    found = moved.set_index("gene").measured_shift[table.genes]
    np.testing.assert_allclose(found, means[1] - means[0], atol=1e-4)


def write_annotations(path, values, key="SUBJID", name="SMOKER", separator="\t"):
    lines = [f"{key}{separator}{name}", *(f"{k}{separator}{v}" for k, v in values.items())]
    path.write_text("\n".join(lines) + "\n")


def test_any_annotation_makes_groups_within_a_tissue_by_donor_or_by_sample(cohort):
    train()
    donors = {f"SIM-{donor:04d}": ("yes", "no", "once")[donor % 3] for donor in range(10)}
    write_annotations(cohort / "smoking.tsv", donors)
    split = load_checkpoint("vae/model_dict_best.pt", "betavae")["split"]
    arguments = ["--config", "betavae.json", "--type", "SMOKER", "--annotations", "smoking.tsv"]
    with pytest.raises(UserError, match=r"no, once, yes; choose two with --groups"):
        betaVAE_interpolation.main(arguments)
    halves = [d for d in donors if split[d] == "train"]
    values = {donor: ("high", "low")[halves.index(donor) % 2] for donor in halves}
    write_annotations(cohort / "half.csv", values, name="DOSE", separator=",")
    arguments = ["--config", "betavae.json", "--type", "DOSE", "--annotations", "half.csv"]
    betaVAE_interpolation.main([*arguments, "--tissue", "brain", "--groups", "low", "high"])
    with np.load("vae/interpolation_DOSE_brain_low_high.npz") as archive:
        assert archive["groups"].tolist() == ["low", "high"]
        members = archive["members_0"].tolist()
    assert sorted(members) == sorted(f"{d}-3025.svs" for d in values if values[d] == "low")
    by_sample = {f"{donor}-0625": value for donor, value in values.items()}
    write_annotations(cohort / "samples.tsv", by_sample, key="wsi_file_name", name="DOSE")
    betaVAE_interpolation.main([*arguments[:4], "--annotations", "samples.tsv"])
    with np.load("vae/interpolation_DOSE.npz") as archive:
        assert archive["groups"].tolist() == ["high", "low"]


BAD_GROUPS = {
    "column missing": (dict.fromkeys(["SIM-0000"], "a"), ["--type", "AGE"], "AGE"),
    "no donor matches": ({"GTEX-1": "a", "GTEX-2": "b"}, ["--type", "SMOKER"], "no donor"),
    "one member": (None, ["--type", "SMOKER"], "2 or more"),
    "unknown tissue": ({"SIM-0000": "a"}, ["--type", "SMOKER", "--tissue", "skin"], "skin"),
    "tissue of tissue": ({"SIM-0000": "a"}, ["--tissue", "lung"], "--groups"),
    "unknown group": ({"SIM-0000": "a"}, ["--groups", "lung", "skin"], "found lung, brain"),
}


@pytest.mark.parametrize("case", BAD_GROUPS)
def test_groups_that_cannot_be_made_end_in_one_line_and_write_nothing(cohort, case):
    train()
    values, options, words = BAD_GROUPS[case]
    if values is None:
        split = load_checkpoint("vae/model_dict_best.pt", "betavae")["split"]
        training = sorted(donor for donor, part in split.items() if part == "train")
        values = dict.fromkeys(training, "most") | {training[0]: "alone"}
    write_annotations(cohort / "a.tsv", values)
    with pytest.raises(UserError, match=words) as caught:
        betaVAE_interpolation.main(["--config", "betavae.json", "--annotations", "a.tsv", *options])
    assert "\n" not in str(caught.value)
    assert not list((cohort / "vae").glob("interpolation*"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--tissue", "skin"], "lung, brain"),
        (["--tissue", "lung", "--prior", "normal"], "knows no tissues"),
        (["--steps", "3"], "--between"),
        (["--between", "a", "b"], "--steps"),
        (["--between", "a", "b", "--steps", "3"], "no row a"),
        (["--alpha", "nan"], "finite"),
    ],
)
def test_sampling_options_at_odds_are_named_and_nothing_is_written(cohort, options, words):
    train()
    with pytest.raises(UserError, match=words):
        sample(*options)
    assert not list((cohort / "vae").glob("samples*"))


def test_a_table_of_other_genes_than_the_checkpoints_is_refused_by_both(cohort):
    train()
    for name in ("lung.csv", "brain.csv"):
        path = cohort / name
        path.write_text(path.read_text().replace("rna_ENSG00000000002.1", "rna_ENSGX.1"))
    for script in (betaVAE_interpolation, betaVAE_sample):
        with pytest.raises(UserError, match=r"gene 3 is ENSGX\.1"):
            script.main(["--config", "betavae.json"])


def test_a_missing_annotation_column_is_one_line_and_exit_code_two(cohort):
    train()
    write_annotations(cohort / "a.tsv", {"SIM-0000": "x"})
    script = Path(betaVAE_interpolation.__file__)
    options = ["--config", "betavae.json", "--type", "AGE", "--annotations", "a.tsv"]
    done = subprocess.run([sys.executable, script, *options], capture_output=True, text=True)
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert "a.tsv: columns AGE and SUBJID" in done.stderr
