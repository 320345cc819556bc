"""convert_betavae.py: weights in the published layout, from plain torch modules."""

import json

import numpy as np
import pytest
import torch
from torch import nn

import betaVAE_interpolation
import convert_betavae
from data.expression import read_cohort
from models.profiles import ProfileEncoder
from runtime.checkpoint import load_checkpoint
from runtime.errors import UserError

GENES, HIDDEN, LATENT = 30, (16, 12, 6), 6
ARGUMENTS = ["--weights", "published.pt", "--config", "published.json", "--output", "converted.pt"]


def block(inputs, outputs):
    return nn.Sequential(nn.Linear(inputs, outputs), nn.BatchNorm1d(outputs), nn.LeakyReLU())


class Published(nn.Module):
    """The published network, written from its key layout and description alone."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Module()
        self.encoder.encoder = nn.Sequential(
            nn.Sequential(nn.Dropout()), block(GENES, 16), block(16, 12), block(12, LATENT)
        )
        self.z_mu, self.z_logvar = nn.Linear(LATENT, LATENT), nn.Linear(LATENT, LATENT)
        self.decoder = nn.Sequential(
            block(LATENT, 12), block(12, 16), nn.Sequential(nn.Linear(16, GENES), nn.Tanh())
        )


@pytest.fixture
def published(cohort):
    """Return the published network, saved in the cohort's folder beside a config for it."""
    torch.manual_seed(3)
    network = Published()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d):  # as after training
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    torch.save(network.state_dict(), cohort / "published.pt")
    config = {
        "path_csv": ["lung.csv", "brain.csv"], "rna_features": GENES, "hidden_dims": HIDDEN,
        "latent_dim": LATENT, "expression_transform": "log_nonzero", "output_activation": "tanh",
    }  # fmt: skip
    (cohort / "published.json").write_text(json.dumps(config))
    return network.eval()


@torch.inference_mode()
def test_converted_weights_give_the_published_networks_outputs(published):
    convert_betavae.main(ARGUMENTS)
    encoder = ProfileEncoder.from_checkpoint(
        load_checkpoint("converted.pt", "betavae"), torch.device("cpu")
    )
    table = read_cohort(["lung.csv", "brain.csv"])
    scaled = torch.from_numpy(encoder.scaler.transform(table.expression))
    hidden = published.encoder.encoder(scaled)
    mu, logvar = published.z_mu(hidden), published.z_logvar(hidden)
    found = encoder.model.encode(scaled)
    torch.testing.assert_close(found[0], mu, rtol=0, atol=1e-6)
    torch.testing.assert_close(found[1], logvar, rtol=0, atol=1e-6)
    decoded = torch.from_numpy(encoder.decode(mu))
    torch.testing.assert_close(decoded, published.decoder(mu), rtol=0, atol=1e-6)
    torch.testing.assert_close(encoder.mu(table.expression), mu, rtol=0, atol=1e-6)


def test_scaler_is_of_all_profiles_and_no_donor_passes_for_unseen(published):
    convert_betavae.main(ARGUMENTS)
    checkpoint = load_checkpoint("converted.pt", "betavae")
    expression = np.asarray(read_cohort(["lung.csv", "brain.csv"]).expression, np.float64)
    logged = np.log(expression, out=np.zeros_like(expression), where=expression > 0)
    np.testing.assert_allclose(checkpoint["scaler"]["mean"], logged.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(checkpoint["scaler"]["std"], logged.std(axis=0), rtol=1e-5)
    assert set(checkpoint["split"].values()) == {"train"}
    assert len(checkpoint["split"]) == 10


def test_other_stages_take_the_converted_checkpoint_and_the_same_command_repeats_nothing(
    published, cohort
):
    convert_betavae.main(ARGUMENTS)
    betaVAE_interpolation.main(["--config", "published.json", "--checkpoint", "converted.pt"])
    before = (cohort / "converted.pt").stat().st_mtime_ns
    convert_betavae.main(ARGUMENTS)
    assert (cohort / "converted.pt").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"output_activation": "linear"}, "output_activation must be 'tanh'"),
        ({"expression_transform": "log1p"}, "expression_transform must be 'log_nonzero'"),
        ({"hidden_dims": [17, 12, 6]}, r"encoder\.0\.0\.weight is \(16, 30\)"),
        ({"rna_features": 31}, "rna_features is 31"),
        ({"path_csv": ["missing.csv"]}, "missing.csv"),
    ],
)
def test_a_config_that_does_not_fit_the_weights_is_named(published, cohort, keys, message):
    path = cohort / "published.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))
    with pytest.raises(UserError, match=message):
        convert_betavae.main(ARGUMENTS)
    assert not (cohort / "converted.pt").exists()


def test_weights_of_something_else_are_named(published, cohort):
    state = published.state_dict()
    state.pop("z_mu.bias")
    torch.save(state, cohort / "published.pt")
    with pytest.raises(
        UserError, match=r"published\.pt: not the published betaVAE: lacks mu\.bias"
    ):
        convert_betavae.main(ARGUMENTS)
    torch.save({"call": print}, cohort / "published.pt")
    with pytest.raises(UserError, match=r"published\.pt"):
        convert_betavae.main(ARGUMENTS)
