"""Agreement of profiles: perfect for equal sets, and each number reacts to its own fault."""

import json

import numpy as np
import pytest

from metrics.expression_agreement import (
    active_dimensions,
    compare_profiles,
    correlation_agreement,
    gene_agreement,
    profile_components,
    reconstruction_agreement,
    reconstruction_evidence,
    tissue_transfer,
)


def profiles(seed, rows, genes=30):
    """Return profiles (N, G) with two shared factors, so that genes are correlated."""
    draw = np.random.default_rng(seed)
    weights = np.random.default_rng(99).normal(size=(2, genes))
    return draw.normal(size=(rows, 2)) @ weights + draw.normal(size=(rows, genes))


def test_equal_sets_agree_perfectly():
    real = profiles(0, 40)
    found = gene_agreement(real, real)
    assert found["mean_r"] == pytest.approx(1)
    assert found["sd_ratio"] == pytest.approx(1)
    assert found["mean_error"] == 0
    assert correlation_agreement(real, real)["r"] == pytest.approx(1)


def test_a_narrow_set_has_its_spread_ratio_and_keeps_its_correlations():
    real = profiles(0, 60)
    narrow = real.mean(axis=0) + 0.25 * (real - real.mean(axis=0))
    assert gene_agreement(real, narrow)["sd_ratio"] == pytest.approx(0.25)
    assert correlation_agreement(real, narrow)["r"] == pytest.approx(1)


def test_genes_drawn_independently_lose_their_correlations_but_not_their_spread():
    real = profiles(0, 200)
    draw = np.random.default_rng(1)
    mixed = np.stack([draw.permutation(gene) for gene in real.T], axis=1)
    assert gene_agreement(real, mixed)["sd_ratio"] == pytest.approx(1)
    found = correlation_agreement(real, mixed)
    assert abs(found["r"]) < 0.2
    assert found["strength_ratio"] < 0.5


def test_constant_genes_are_left_out_and_all_constant_ones_give_none():
    real = profiles(0, 20)
    real[:, 3] = 1.0
    assert gene_agreement(real, real)["sd_ratio"] == pytest.approx(1)
    assert correlation_agreement(real, real)["genes"] == 29
    assert gene_agreement(np.ones((4, 3)), np.ones((4, 3)))["sd_ratio"] is None
    assert correlation_agreement(np.ones((4, 3)), np.ones((4, 3)))["r"] is None


def test_comparison_is_plain_json_and_reproducible_and_tells_a_copy_from_a_narrow_set():
    real = profiles(0, 40)
    good = compare_profiles([(real, profiles(k, 40)) for k in (1, 2)], seed=3)
    assert good == compare_profiles([(real, profiles(k, 40)) for k in (1, 2)], seed=3)
    assert json.loads(json.dumps(good, allow_nan=False)) == good
    assert len(good["auc"]["forest"]["draws"]) == 2
    narrow = compare_profiles([(real, 0.2 * profiles(1, 40))])
    assert narrow["auc"]["forest"]["mean"] > 0.9 > good["auc"]["forest"]["mean"]
    assert narrow["coverage"]["coverage"] < good["coverage"]["coverage"]
    assert narrow["mmd"]["squared"] > good["mmd"]["squared"]


def test_tiny_sets_give_none_instead_of_numbers():
    found = compare_profiles([(profiles(0, 4), profiles(1, 4))])
    assert found["auc"] == {"neighbours": None, "linear": None, "forest": None}
    assert found["coverage"] is None


def test_reconstruction_of_each_tissue_is_its_own():
    real = profiles(0, 40)
    tissues = np.repeat(["a", "b"], 20)
    reconstructed = real.copy()
    reconstructed[20:] = 0
    found = reconstruction_agreement(real, reconstructed, tissues)
    assert found["a"]["mse"] == 0
    assert found["a"]["gene_r"] == pytest.approx(1)
    assert found["b"]["mse"] == pytest.approx(np.square(real[20:]).mean())
    assert found["b"]["gene_r"] is None
    assert reconstruction_agreement(real[:1], real[:1], tissues[:1])["a"] == {
        "profiles": 1, "mse": 0.0,
    }  # fmt: skip


def test_evidence_has_every_part_with_tissue_accuracy_and_active_dimensions():
    real = profiles(0, 40) + np.repeat([0.0, 3.0], 20)[:, None]
    partitions = np.array(["train", "train", "val", "test"] * 10)
    mu = np.random.default_rng(0).normal(size=(40, 3)) * [1, 1, 0.01]
    found = reconstruction_evidence(real, real, mu, partitions, np.repeat(["a", "b"], 20))
    assert set(found) == {"train", "val", "test"}
    assert found["test"]["tissue_accuracy"] == 1
    assert found["test"]["active_latent_dims"] == 2
    assert active_dimensions(mu) == 2


def test_tissue_transfer_falls_to_chance_where_tissues_are_swapped():
    real = profiles(0, 40) + np.repeat([0.0, 4.0], 20)[:, None]
    tissues = np.repeat(["a", "b"], 20)
    right = tissue_transfer(real, tissues, real, tissues)
    wrong = tissue_transfer(real, tissues, real, tissues[::-1])
    assert right == {"real_to_generated": 1, "generated_to_real": 1}
    assert wrong == {"real_to_generated": 0, "generated_to_real": 0}


def test_components_are_those_of_the_training_profiles():
    training = profiles(0, 50)
    found = profile_components(training, {"one": training[:7], "two": training[:3]})
    assert found.set.tolist() == ["one"] * 7 + ["two"] * 3
    np.testing.assert_allclose(found.pc1[:3], found.pc1[7:], rtol=1e-6)
    whole = profile_components(training, {"all": training})
    assert abs(whole.pc1.mean()) < 1e-6 < whole.pc2.std() < whole.pc1.std()
