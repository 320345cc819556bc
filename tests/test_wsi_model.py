"""wsi_model.py: what it learns, how it splits, resumes and refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score, roc_auc_score

import wsi_model
from data.labelled_tiles import assign_folds, held_out_rows, read_labelled_tiles
from metrics.classification import (
    classification_scores,
    confusion_counts,
    score_intervals,
    score_resamples,
)
from models.classifier import TileClassifier, flip_images
from runtime.errors import UserError
from runtime.files import read_json

PX = 32
ARMS = ("real", "generated", "both", "pretrain")


def write_tiles(
    folder: Path,
    per_class: int = 40,
    classes: tuple[str, ...] = ("lung", "brain"),
    donors: int = 10,
) -> pd.DataFrame:
    """Write tiles whose colour and dots depend on the class; return their list, not written."""
    draw = np.random.default_rng(5)
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for number, label in enumerate(classes):
        for index in range(per_class):
            pixels = draw.normal((215, 175 - 35 * number, 200), 20, (PX, PX, 3))
            for _ in range(3 + 5 * number):
                y, x = draw.integers(0, PX - 4, 2)
                pixels[y : y + 4, x : x + 4] = (90, 50, 140)
            name = f"{label}_{index:03d}.png"
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / name)
            rows.append((name, label, f"SIM-{index % donors:04d}-0625.svs"))
    return pd.DataFrame(rows, columns=["wsi_file_names", "Labels", "patient"])


@pytest.fixture(scope="module")
def tiles(tmp_path_factory) -> tuple[Path, pd.DataFrame]:
    folder = tmp_path_factory.mktemp("tiles")
    return folder, write_tiles(folder)


def run(folder: Path, table: pd.DataFrame, output: Path, *options: str) -> dict:
    output.parent.mkdir(parents=True, exist_ok=True)
    path = output.parent / f"{output.name}.csv"
    table.to_csv(path, index=False)
    arguments = ["--patch_data_path", str(folder), "--csv_path", str(path), "--network", "small"]
    arguments += ["--image_px", str(PX), "--output", str(output), "--device", "cpu"]
    wsi_model.main([*arguments, "--num_epochs", "15", *options])
    summary = output / "summary.json"
    return read_json(summary) if summary.is_file() else {}


def test_two_easy_classes_are_learnt(tiles, tmp_path, capsys):
    folder, table = tiles
    summary = run(folder, table, tmp_path / "easy")
    assert summary["scores"]["accuracy"]["mean"] > 0.9
    assert summary["scores"]["auc_ovr"]["mean"] > 0.95
    assert summary["grouped_by"] == "patient"
    assert summary["groups"] == 10
    folds = pd.read_csv(tmp_path / "easy" / "folds.csv")
    assert list(folds.fold) == [1, 2, 3, 4, 5]
    assert folds.n_test.sum() == len(table)
    assert folds.accuracy.mean() == pytest.approx(summary["scores"]["accuracy"]["mean"], abs=1e-5)
    confusion = pd.read_csv(tmp_path / "easy" / "confusion.csv")
    assert confusion[["brain", "lung"]].to_numpy().sum() == len(table)
    assert "accuracy" in capsys.readouterr().out
    assert not (tmp_path / "easy" / "unfinished").exists()


def test_random_labels_stay_at_chance(tiles, tmp_path):
    folder, table = tiles
    labels = np.random.default_rng(2).permutation(table.Labels.to_numpy())
    summary = run(folder, table.assign(Labels=labels), tmp_path / "random", "--group", "none")
    # 80 independent held-out predictions: 0.5 +- 3.6 standard deviations of 0.056.
    assert 0.3 < summary["scores"]["accuracy"]["mean"] < 0.7


def test_the_same_seed_gives_the_same_result_and_another_seed_another(tiles, tmp_path):
    folder, table = tiles
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        run(folder, table, tmp_path / name, "--num_epochs", "1", "--seed", seed)
    texts = {name: (tmp_path / name / "predictions.csv").read_text() for name in "abc"}
    assert texts["a"] == texts["b"]
    assert texts["a"] != texts["c"]


def test_the_same_command_again_reads_the_stored_result(tiles, tmp_path, capsys, monkeypatch):
    folder, table = tiles
    run(folder, table, tmp_path / "again", "--num_epochs", "1")
    first = capsys.readouterr().out
    again = lambda *_: pytest.fail("trained a second time")  # noqa: E731
    monkeypatch.setattr(wsi_model, "train_classifier", again)
    run(folder, table, tmp_path / "again", "--num_epochs", "1")
    assert capsys.readouterr().out == first
    with pytest.raises(UserError, match="another command"):
        run(folder, table, tmp_path / "again", "--num_epochs", "2")


def test_finished_folds_are_kept_when_interrupted(tiles, tmp_path, monkeypatch):
    folder, table = tiles
    run(folder, table, tmp_path / "whole", "--num_epochs", "1")
    train, trained = wsi_model.train_classifier, []

    def counting(*arguments):
        if len(trained) == 3:
            raise KeyboardInterrupt
        trained.append(arguments[5][2])
        train(*arguments)

    monkeypatch.setattr(wsi_model, "train_classifier", counting)
    with pytest.raises(KeyboardInterrupt):
        run(folder, table, tmp_path / "stopped", "--num_epochs", "1")
    assert not (tmp_path / "stopped" / "summary.json").exists()
    trained.clear()
    run(folder, table, tmp_path / "stopped", "--num_epochs", "1")
    assert trained == [4, 5]
    whole, stopped = (
        (tmp_path / name / "predictions.csv").read_text() for name in ("whole", "stopped")
    )
    assert whole == stopped


def test_no_group_is_in_two_folds_and_equal_lists_get_equal_folds(tiles, tmp_path):
    folder, table = tiles
    path = tmp_path / "list.csv"
    table.to_csv(path, index=False)
    listed = read_labelled_tiles([path], folder)
    folds = assign_folds(listed, 5, seed=3)
    frame = pd.DataFrame({"group": listed.groups, "fold": folds, "label": listed.labels})
    assert (frame.groupby("group").fold.nunique() == 1).all()
    assert (frame.groupby("fold").label.nunique() == 2).all()
    table.sample(frac=1, random_state=0).to_csv(path, index=False)
    shuffled = read_labelled_tiles([path], folder)
    again = dict(zip(shuffled.names, assign_folds(shuffled, 5, seed=3), strict=True))
    assert [again[name] for name in listed.names] == folds.tolist()


def test_test_images_share_no_group_with_the_training_images(tiles, tmp_path):
    folder, table = tiles
    table.iloc[::2].to_csv(tmp_path / "generated.csv", index=False)
    table.iloc[1::2].to_csv(tmp_path / "real.csv", index=False)
    train = read_labelled_tiles([tmp_path / "generated.csv"], folder)
    test = read_labelled_tiles([tmp_path / "real.csv"], folder)
    test.groups = train.groups  # the same patients in both arms
    folds = assign_folds(train, 5, seed=0)
    for fold in range(1, 6):
        used = np.flatnonzero(folds != fold)
        rows = held_out_rows(train, test, used)
        assert len(rows)
        assert not {test.groups[row] for row in rows} & {train.groups[row] for row in used}
    assert not len(held_out_rows(train, train, np.arange(len(train))))


def test_a_model_of_generated_tiles_is_tested_on_the_other_list(tiles, tmp_path):
    folder, table = tiles
    generated = table[table.index % 40 < 20]
    real = table[table.index % 40 >= 20].assign(patient=lambda frame: "X" + frame.patient)
    real.to_csv(tmp_path / "real.csv", index=False)
    options = ["--test_csv", str(tmp_path / "real.csv"), "--num_epochs", "30"]
    summary = run(folder, generated, tmp_path / "arm", *options)
    folds = pd.read_csv(tmp_path / "arm" / "folds.csv")
    assert (folds.n_test == len(real)).all()
    assert summary["test_list"].endswith("real.csv")
    assert summary["scores"]["accuracy"]["mean"] > 0.9


def test_groups_come_from_a_column_or_from_slide_ids_in_the_names(tiles, tmp_path):
    folder, table = tiles
    path = tmp_path / "list.csv"
    table.to_csv(path, index=False)
    assert set(read_labelled_tiles([path], folder).groups) == {f"SIM-{n:04d}" for n in range(10)}
    assert read_labelled_tiles([path], folder, "none").groups is None
    plain = table.drop(columns="patient")
    plain.to_csv(path, index=False)
    assert read_labelled_tiles([path], folder).groups is None
    named = tmp_path / "GTEX-1117F-3225.svs"
    named.mkdir()
    for name in plain.wsi_file_names:
        (named / name).symlink_to(folder / name)
    plain.assign(wsi_file_names=named.name + "/" + plain.wsi_file_names).to_csv(path, index=False)
    found = read_labelled_tiles([path], tmp_path)
    assert set(found.groups) == {"GTEX-1117F"}
    assert found.grouped_by == "file name"


def test_one_patient_per_class_as_published_is_split_by_image_and_says_so(tiles, tmp_path, capsys):
    folder, table = tiles
    alone = table.assign(patient=table.Labels)
    summary = run(folder, alone, tmp_path / "published", "--num_epochs", "1")
    assert summary["grouped_by"] is None
    assert "split by image" in capsys.readouterr().err
    with pytest.raises(UserError, match="1 values of patient, fewer than 5 folds"):
        run(folder, alone, tmp_path / "strict", "--group", "patient")


def test_three_classes_with_whole_number_labels_and_the_other_column_name(tmp_path):
    table = write_tiles(tmp_path / "tiles", 15, ("0", "1", "2"), donors=5)
    table = table.rename(columns={"wsi_file_names": "wsi_file_name"})
    summary = run(tmp_path / "tiles", table, tmp_path / "three", "--num_epochs", "1")
    assert summary["classes"] == ["0", "1", "2"]
    assert set(summary["scores"]) == {"accuracy", "balanced_accuracy", "f1_macro", "auc_ovr"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop(columns="Labels"), "no column Labels"),
        (lambda t: t.rename(columns={"wsi_file_names": "files"}), "no column wsi_file_names"),
        (lambda t: t.iloc[:0], "no rows"),
        (lambda t: t.assign(Labels="lung"), r"one class only \(lung\)"),
        (lambda t: pd.concat([t, t.iloc[:1]]), "lung_000.png is listed more than once"),
        (
            lambda t: t.replace("lung_003.png", "gone.png"),
            r"gone.png not found \(1 of 80 missing\)",
        ),
        (
            lambda t: t[t.patient < "SIM-0004"],
            "4 values of patient, fewer than 5 folds; use --folds 4",
        ),
        (
            lambda t: t.mask(t.Labels == "brain").assign(Labels=t.Labels),
            "row 41: wsi_file_names is",
        ),
    ],
)
def test_a_bad_list_is_refused_in_one_line(tiles, tmp_path, change, message):
    folder, table = tiles
    with pytest.raises(UserError, match=message) as caught:
        run(folder, change(table), tmp_path / "bad")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "bad").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--group", "cohort"], "no column cohort"),
        (["--folds", "1"], "--folds 1: must be 2 or more"),
        (["--lr", "nan"], "--lr nan"),
        (["--freeze"], "--freeze: needs pretrained weights"),
        (["--weights", "nowhere.pth"], "nowhere.pth: weights file not found"),
        (["--test_csv", "nowhere.csv"], "nowhere.csv: tile list not found"),
    ],
)
def test_a_bad_option_is_refused_in_one_line(tiles, tmp_path, options, message):
    folder, table = tiles
    with pytest.raises(UserError, match=message):
        run(folder, table, tmp_path / "bad", *options)


def test_a_corrupt_image_is_named_and_nothing_is_left(tmp_path):
    table = write_tiles(tmp_path / "tiles")
    broken = tmp_path / "tiles" / "brain_007.png"
    broken.write_bytes(broken.read_bytes()[:200])
    with pytest.raises(UserError, match="brain_007.png: cannot be read as an image"):
        run(tmp_path / "tiles", table, tmp_path / "corrupt")
    assert not (tmp_path / "corrupt" / "summary.json").exists()


def test_a_frozen_backbone_keeps_its_weights_and_another_networks_are_refused(tiles, tmp_path):
    folder, table = tiles
    torch.manual_seed(0)
    classifier = TileClassifier("small", 2)
    torch.save(classifier.state_dict(), tmp_path / "small.pth")
    options = ["--weights", str(tmp_path / "small.pth"), "--freeze", "--lr", "0.05"]
    summary = run(folder, table, tmp_path / "frozen", *options)
    assert summary["freeze"]
    assert summary["weights"] == "small.pth"
    assert summary["scores"]["accuracy"]["mean"] > 0.8
    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match="weights of another network"):
        run(folder, table, tmp_path / "other", "--weights", str(tmp_path / "other.pth"))


def test_resnet50_has_the_published_size_and_gives_one_logit_per_class():
    network = TileClassifier("resnet50", 2).eval()
    # 25,557,032 parameters of ResNet-50 less its 1000-class layer, plus ours.
    assert sum(p.numel() for p in network.parameters()) == 25_557_032 - 2_049_000 + 4_098
    with torch.inference_mode():
        assert network(torch.zeros(1, 3, 64, 64)).shape == (1, 2)


def test_flips_are_the_four_mirror_images():
    image = torch.arange(12.0).view(1, 1, 3, 4).expand(4, 1, 3, 4)
    flipped = flip_images(image, torch.arange(4))
    expected = [image[0], image[0].flip(2), image[0].flip(1), image[0].flip(1, 2)]
    assert all(torch.equal(one, other) for one, other in zip(flipped, expected, strict=True))


def test_scores_match_hand_counted_values():
    targets = np.array([0, 0, 0, 1])
    probabilities = np.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.4, 0.6]])
    scores = classification_scores(targets, probabilities)
    assert scores["accuracy"] == pytest.approx(3 / 4)
    assert scores["balanced_accuracy"] == pytest.approx((2 / 3 + 1) / 2)
    assert scores["f1_macro"] == pytest.approx((4 / 5 + 2 / 3) / 2)
    assert scores["auc_ovr"] == pytest.approx(2 / 3)
    assert np.isnan(classification_scores(targets[:3], probabilities[:3])["auc_ovr"])
    counts = confusion_counts(targets, probabilities.argmax(axis=1), 2)
    assert counts.tolist() == [[2, 1], [0, 1]]


def test_scores_are_scikit_learns():
    draw = np.random.default_rng(4)
    targets = draw.integers(0, 3, 60)
    probabilities = draw.dirichlet(np.ones(3), 60).round(2)  # with ties
    predicted = probabilities.argmax(axis=1)
    scores = classification_scores(targets, probabilities)
    one_hot = np.eye(3)[targets]
    assert scores["accuracy"] == pytest.approx(accuracy_score(targets, predicted))
    assert scores["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(targets, predicted))
    assert scores["f1_macro"] == pytest.approx(f1_score(targets, predicted, average="macro"))
    assert scores["auc_ovr"] == pytest.approx(roc_auc_score(one_hot, probabilities))


def test_intervals_are_those_of_a_proportion_and_widen_when_images_of_a_patient_agree():
    draw = np.random.default_rng(1)
    targets = np.repeat([0, 1], 200)
    right = draw.random(400) < 0.8
    called = np.where(right, targets, 1 - targets)
    probabilities = np.eye(2)[called]
    folds = np.ones(400, int)

    def interval(units) -> np.ndarray:
        found = score_resamples(targets, probabilities, units, folds, np.random.default_rng(0))
        return np.array(score_intervals(found)["accuracy"])

    share = right.mean()
    expected = share + 1.96 * np.sqrt(share * (1 - share) / 400) * np.array([-1, 1])
    assert interval(np.arange(400)) == pytest.approx(expected, abs=0.01)
    clustered = np.ptp(interval(right + 2 * (np.arange(400) // 40)))  # a patient is right or wrong
    assert clustered > 2 * np.ptp(expected)


def test_intervals_of_the_mean_over_folds_hold_it_although_folds_differ_in_calibration():
    draw = np.random.default_rng(1)
    targets, folds = np.tile([0, 1], 60), np.repeat([1, 2], 60)
    raw = 0.3 * targets + 0.2 * draw.random(120) + 0.45 * (folds == 2)
    probabilities = np.stack([1 - raw, raw], axis=1)
    found = score_resamples(targets, probabilities, np.arange(120), folds, draw, 200)
    assert score_intervals(found)["auc_ovr"] == [1.0, 1.0]


@pytest.fixture(scope="module")
def arms(tiles, tmp_path_factory) -> tuple[Path, dict]:
    """Return the output folder of all four arms; the generated tiles are of another palette."""
    folder, table = tiles
    root = tmp_path_factory.mktemp("arms")
    generated = root / "generated"
    generated.mkdir()
    for name in table.wsi_file_names:
        with Image.open(folder / name) as image:
            Image.fromarray((np.asarray(image) * 0.9).astype(np.uint8)).save(generated / name)
    made = table.assign(wsi_file_names=[str(generated / name) for name in table.wsi_file_names])
    made.to_csv(root / "generated.csv", index=False)
    options = ["--generated_csv", str(root / "generated.csv"), "--num_epochs", "8"]
    table.to_csv(root / "real.csv", index=False)
    arguments = ["--patch_data_path", str(folder), "--csv_path", str(root / "real.csv")]
    arguments += ["--network", "small", "--image_px", str(PX), "--device", "cpu"]
    wsi_model.main([*arguments, "--output", str(root / "out"), *options])
    return root / "out", {arm: read_json(root / "out" / arm / "summary.json") for arm in ARMS}


def test_all_arms_are_tested_on_the_same_real_images(arms):
    output, summaries = arms
    tested = [
        pd.read_csv(output / arm / "predictions.csv")[["fold", "image", "label"]] for arm in ARMS
    ]
    assert all(one.equals(tested[0]) for one in tested)
    assert not any("generated" in name for name in tested[0].image)
    for arm, summary in summaries.items():
        assert summary["trained_on"] == arm
        score = summary["scores"]["accuracy"]
        assert score["interval"][0] <= score["mean"] <= score["interval"][1]
        assert np.array(summary["confusion"]).sum() == len(tested[0])
    sizes = {arm: pd.read_csv(output / arm / "folds.csv").n_train.tolist() for arm in ARMS}
    assert sizes["real"] == sizes["generated"] == [64] * 5  # of the donors that are not tested
    assert sizes["both"] == sizes["pretrain"] == [128] * 5


def test_the_table_of_arms_holds_paired_differences_from_real(arms):
    output, summaries = arms
    table = pd.read_csv(output / "arms.csv").set_index(["arm", "score"])
    assert set(table.index.get_level_values(0)) == set(ARMS)
    for arm in ("generated", "both", "pretrain"):
        row = table.loc[(arm, "accuracy")]
        assert row["mean"] == pytest.approx(summaries[arm]["scores"]["accuracy"]["mean"])
        real = table.loc[("real", "accuracy")]["mean"]
        assert row.minus_real == pytest.approx(row["mean"] - real, abs=1e-6)
        assert row.minus_real_low <= row.minus_real + 1e-9 <= row.minus_real_high + 2e-9
    assert np.isnan(table.loc[("real", "accuracy")].minus_real)


def test_arms_start_from_the_same_weights_and_pretraining_goes_on_from_them(
    tiles, tmp_path, monkeypatch
):
    folder, table = tiles
    seen = []

    def noting(network, inputs, targets, rows, recipe, position, after_epoch):
        seen.append((position, rows.tolist(), network.head.weight.detach().clone()))
        with torch.no_grad():
            network.head.weight.add_(1)

    monkeypatch.setattr(wsi_model, "train_classifier", noting)
    other = table.assign(wsi_file_names=[f"./{name}" for name in table.wsi_file_names])
    other.to_csv(tmp_path / "generated.csv", index=False)
    options = ["--generated_csv", str(tmp_path / "generated.csv"), "--folds", "2"]
    run_arms = ["--train", "real", "pretrain", "--output", str(tmp_path / "x")]
    run(folder, table, tmp_path / "x", *options, *run_arms)
    real, pretrain = seen[0], seen[2:4]
    assert torch.equal(real[2], pretrain[0][2])
    assert torch.equal(pretrain[1][2], pretrain[0][2] + 1)
    assert real[1] == pretrain[1][1]  # fine-tuned on the same real images
    assert min(pretrain[0][1]) >= len(table)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--train", "both"], "--train both: needs --generated_csv"),
        (["--generated_csv", "nowhere.csv"], "nowhere.csv: tile list not found"),
    ],
)
def test_arms_without_generated_images_are_refused(tiles, tmp_path, options, message):
    folder, table = tiles
    with pytest.raises(UserError, match=message):
        run(folder, table, tmp_path / "bad", *options)
    assert not (tmp_path / "bad").exists()


def test_a_dry_run_of_the_classifier_writes_nothing(tiles, tmp_path, capsys):
    folder, table = tiles
    run(folder, table, tmp_path / "dry", "--dry_run")
    printed = capsys.readouterr().out
    assert "images: 80" in printed
    assert "nothing written" in printed
    assert not (tmp_path / "dry").exists()
