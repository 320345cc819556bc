"""Priors draw what they say, by tissue; residual noise adds the spread that was left out."""

import numpy as np
import pytest

from models.latent_prior import ResidualNoise, TrainingLatents, set_zeros


def known(count=200, dim=3):
    draw = np.random.default_rng(0)
    tissues = np.repeat(["lung", "brain"], [count, count // 2])
    mu = draw.normal(size=(len(tissues), dim)).astype(np.float32) * 0.5
    mu[tissues == "brain"] += 5
    return TrainingLatents(mu, np.full_like(mu, 0.5), tissues)


def test_the_normal_prior_is_standard_normal_and_of_no_tissue():
    z, tissues = known().draw("normal", 4000, np.random.default_rng(1))
    assert set(tissues) == {""}
    np.testing.assert_allclose(z.mean(axis=0), 0, atol=0.06)
    np.testing.assert_allclose(z.std(axis=0), 1, atol=0.05)


@pytest.mark.parametrize("prior", ["posterior", "mixture"])
def test_samples_have_mean_and_spread_of_the_aggregate_posterior_of_their_tissue(prior):
    latents = known()
    z, tissues = latents.draw(prior, 3000, np.random.default_rng(1))
    assert np.mean(tissues == "lung") == pytest.approx(2 / 3)
    axes = np.linalg.qr(np.array([[1.0, 1, 1], [1, -1, 0], [1, 1, -2]]).T)[0]
    for tissue, centre in (("lung", 0.0), ("brain", 5.0)):
        part, mu = z[tissues == tissue], latents.mu[latents.tissues == tissue]
        np.testing.assert_allclose(part.mean(axis=0), centre, atol=0.2)
        # The first axis leads from lung to brain: mu alone spreads along it.
        added = np.array([0, 0.25, 0.25])
        expected = np.sqrt((mu @ axes).var(axis=0) + added)
        np.testing.assert_allclose((part @ axes).std(axis=0), expected, rtol=0.12)


def test_samples_of_one_tissue_are_those_of_the_aggregate_posterior():
    z, tissues = known().draw("posterior", 50, np.random.default_rng(0), "brain")
    assert set(tissues) == {"brain"}
    np.testing.assert_allclose(z.mean(axis=0), 5, atol=0.4)


@pytest.mark.parametrize("prior", ["posterior", "mixture", "normal"])
def test_draws_follow_the_generator_alone(prior):
    one, two, other = (
        known().draw(prior, 20, np.random.default_rng(seed))[0] for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(one, two)
    assert not np.allclose(one, other)


def test_a_mixture_of_few_profiles_in_many_dimensions_is_fitted():
    latents = known(count=4, dim=12)
    z, _ = latents.draw("mixture", 50, np.random.default_rng(0))
    assert z.shape == (50, 12)
    assert np.isfinite(z).all()


def test_two_clusters_within_a_tissue_are_both_drawn_and_not_what_lies_between():
    draw = np.random.default_rng(0)
    mu = draw.normal(size=(300, 2)).astype(np.float32) * 0.2
    mu[:150] += 4
    latents = TrainingLatents(mu, np.full_like(mu, 0.1), np.full(300, "lung"))
    z, _ = latents.draw("mixture", 400, np.random.default_rng(1))
    assert np.mean(z[:, 0] > 2) == pytest.approx(0.5, abs=0.08)
    assert np.mean(np.abs(z[:, 0] - 2) < 1) < 0.02


def test_noise_of_a_gene_has_the_values_of_its_tissue_and_genes_are_independent():
    draw = np.random.default_rng(0)
    shared = draw.normal(size=(100, 1))
    residuals = np.concatenate([np.repeat(shared, 6, axis=1), np.full((50, 6), 9.0)])
    noise = ResidualNoise(residuals.astype(np.float32), np.repeat(["lung", "brain"], [100, 50]))
    drawn = noise.draw(["lung"] * 400, np.random.default_rng(1))
    assert np.isin(drawn[:, 0], noise.residuals[:100, 0]).all()
    np.testing.assert_allclose(drawn.std(axis=0), shared.std(), rtol=0.15)
    assert np.abs(np.corrcoef(drawn.T) - np.eye(6)).max() < 0.25
    assert (noise.draw(["brain"] * 3, np.random.default_rng(1)) == 9).all()
    anywhere = noise.draw([""] * 200, np.random.default_rng(1))
    assert 0.2 < (anywhere == 9).mean() < 0.45


def test_every_residual_of_a_gene_is_used_equally_often():
    residuals = np.random.default_rng(0).normal(size=(40, 5)).astype(np.float32)
    noise = ResidualNoise(residuals, np.full(40, "lung"))
    drawn = noise.draw(["lung"] * 120, np.random.default_rng(1))
    np.testing.assert_array_equal(
        np.sort(drawn, axis=0), np.sort(np.tile(residuals, (3, 1)), axis=0)
    )
    few = noise.draw(["lung"] * 10, np.random.default_rng(1))
    assert all(len(np.unique(column)) == 10 for column in few.T)


def test_variances_of_decoded_profiles_and_of_noise_add_up_to_those_of_the_profiles():
    draw = np.random.default_rng(0)
    signal, own = draw.normal(size=(2, 300, 20)).astype(np.float32)
    tissues = np.repeat(["lung", "brain"], 150)
    signal[tissues == "brain"] += 3
    decoded = 0.7 * signal  # shrunk, as by a decoder that is unsure
    noise = ResidualNoise.fit(signal + own, decoded, tissues)
    for tissue in ("lung", "brain"):
        rows = tissues == tissue
        made = decoded[rows] + noise.draw([tissue] * 150, draw)
        total = made.var(axis=0).mean()
        assert total == pytest.approx((signal + own)[rows].var(axis=0).mean(), rel=0.05)
        np.testing.assert_allclose(made.mean(axis=0), (signal + own)[rows].mean(axis=0), atol=1e-4)


def test_the_lowest_samples_of_a_gene_are_0_as_often_as_profiles_of_their_tissue():
    draw = np.random.default_rng(0)
    expression = np.array([[0.0, 5], [0, 7], [0.2, 6], [3, 0], [4, 1]], np.float32)
    known = np.array(["lung", "lung", "lung", "brain", "brain"])
    values = draw.uniform(1, 2, (50, 2)).astype(np.float32)
    before, tissues = values.copy(), np.repeat(["lung", "brain"], [30, 20])
    set_zeros(values, tissues, expression, known)
    zeros = values == 0
    assert [zeros[:30, 0].sum(), zeros[:30, 1].sum()] == [20, 0]
    assert [zeros[30:, 0].sum(), zeros[30:, 1].sum()] == [0, 10]
    np.testing.assert_array_equal(values[~zeros], before[~zeros])
    assert before[:30, 0][zeros[:30, 0]].max() <= values[:30, 0][~zeros[:30, 0]].min()
    anywhere = draw.uniform(1, 2, (50, 2))
    set_zeros(anywhere, [""] * 50, expression, known)
    assert (anywhere == 0).sum(axis=0).tolist() == [20, 10]
