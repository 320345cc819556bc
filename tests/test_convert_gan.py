"""convert_gan.py: torchgan's models give torchgan's outputs, and nothing in a file is ever run."""

import io
import os
import pickle
import warnings
import zipfile
from collections import OrderedDict
from pathlib import Path

import pandas as pd
import pytest
import torch

import betaVAE_training
import convert_gan
import generate_tissue_images
import histopathology_gan
from data.published_models import Skipped, read_published_model
from models.networks import GAN_TYPES
from runtime.checkpoint import load_checkpoint
from runtime.errors import UserError

with warnings.catch_warnings():  # torchgan imports optional packages and warns
    warnings.simplefilter("ignore")
    from torchgan.losses import WassersteinDiscriminatorLoss, WassersteinGeneratorLoss
    from torchgan.models import DCGANDiscriminator, DCGANGenerator

FORMS = [True, False]  # zip, and legacy as before torch 1.6


def published(path, zipped=True, latent_dim=6, wrap=""):
    """Write what torchgan's Trainer.save_model writes; return the networks."""
    torch.manual_seed(4)
    generator = DCGANGenerator(latent_dim, 32, step_channels=4)
    critic = DCGANDiscriminator(32, step_channels=4)
    optimizer = torch.optim.Adam(critic.parameters(), 1e-3, (0.5, 0.999))
    for _ in range(2):
        critic(generator(torch.randn(8, latent_dim))).sum().backward()
        optimizer.step()
    content = {
        "epoch": 3,
        "loss_information": {"generator_losses": 0.5, "generator_iters": 4},
        "loss_objects": {
            "WassersteinGeneratorLoss": WassersteinGeneratorLoss(),
            "WassersteinDiscriminatorLoss": WassersteinDiscriminatorLoss(clip=(-0.01, 0.01)),
        },
        "metric_objects": None,
        "loss_logs": {"WassersteinGeneratorLoss": [0.1, 0.2]},
        "generator": OrderedDict((wrap + k, v) for k, v in generator.state_dict().items()),
        "discriminator": critic.state_dict(),
        "optimizer_discriminator": optimizer.state_dict(),
    }
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    return generator, critic


def convert(*extra, source="old.model", output="new.model"):
    convert_gan.main(["--input", source, "--config", "gan_lung.json", "--output", output, *extra])
    return load_checkpoint(output, "gan")


@pytest.mark.parametrize("zipped", FORMS)
@pytest.mark.parametrize("wrap", ["", "module."])
def test_converted_networks_give_torchgans_outputs(cohort, zipped, wrap):
    theirs = published("old.model", zipped, wrap=wrap)
    state = convert()
    # In double precision: in single, rounding alone is 1e-6.
    z, images = torch.randn(5, 6).double(), torch.randn(5, 3, 32, 32).double()
    theirs = [network.double() for network in theirs]
    for training in (False, True):  # training moves the running statistics
        outputs = []
        for part, make, given in zip(
            ("generator", "critic"), GAN_TYPES["dcgan"], (z, images), strict=True
        ):
            network = make(**state[f"{part}_args"])
            network.load_state_dict(state[part])
            outputs.append(network.double().train(training)(given))
        expected = [theirs[0].train(training)(z), theirs[1].train(training)(images)]
        torch.testing.assert_close(outputs[0], expected[0], rtol=0, atol=1e-6)
        torch.testing.assert_close(outputs[1].score, expected[1].flatten(), rtol=0, atol=1e-6)
    assert state["counters"]["epoch"] == 3
    assert state["conditioning"] is None


def test_a_converted_gan_generates_starts_a_training_and_is_not_continued(cohort):
    published("old.model")
    convert()
    generate = ["--checkpoint", "new.model", "--config", "gan_lung.json", "--sample_size", "3"]
    generate_tissue_images.main([*generate, "--patient1", "SIM-0001-0625.svs", "--save_path", "o"])
    assert len(pd.read_csv("o/tiles_gan.csv")) == 3
    text = Path("gan_lung.json").read_text()
    keys = '"critic_norm": "batch", "critic_output": "leaky_relu", '
    Path("gan_lung.json").write_text("{" + keys + text[1:])
    train = ["--config", "gan_lung.json", "--num_epochs", "1", "--image_dir", "i"]
    histopathology_gan.main([*train, "--model_dir", "m", "--checkpoint", "new.model"])
    with pytest.raises(UserError, match="was trained with"):
        histopathology_gan.main([*train, "--model_dir", "new"])
    with pytest.raises(UserError, match="--overwrite"):
        convert()


def test_an_rna_gan_gets_a_betavae_of_its_size(cohort):
    betaVAE_training.main(["--config", "betavae.json"])
    published("old.model")
    state = convert("--vae_checkpoint", "vae/model_dict_best.pt")
    assert state["loss_type"] == "wganvae"
    assert state["conditioning"]["latent_norm"] == "batch"
    assert len(state["train_slides"]) == 10
    published("old.model", latent_dim=9)
    with pytest.raises(UserError, match="9 latent dimensions, the betaVAE has 6"):
        convert("--vae_checkpoint", "vae/model_dict_best.pt", output="other.model")


@pytest.mark.parametrize("zipped", FORMS)
def test_objects_are_skipped_and_the_rest_is_read_as_torch_reads_it(tmp_path, zipped):
    path = tmp_path / "old.model"
    published(path, zipped)
    content = read_published_model(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = torch.load(path, weights_only=False)
    for part in ("generator", "discriminator"):
        assert list(content[part]) == list(expected[part])
        assert all(torch.equal(content[part][k], v) for k, v in expected[part].items())
    assert content["loss_logs"] == expected["loss_logs"]
    theirs = expected["optimizer_discriminator"]["state"][0]["exp_avg"]
    assert torch.equal(content["optimizer_discriminator"]["state"][0]["exp_avg"], theirs)
    assert all(type(loss) is Skipped for loss in content["loss_objects"].values())


class Calls:
    def __init__(self, function, *given, state=None):
        self.recipe = (function, given) if state is None else (function, given, state)

    def __reduce__(self):
        return self.recipe


MADE = "made_by_payload"
PAYLOADS = {
    "os.system": Calls(os.system, f"touch {MADE}"),
    "eval": Calls(eval, f"open('{MADE}', 'w')"),
    "exec": Calls(exec, f"open('{MADE}', 'w')"),
    "getattr": Calls(getattr, Calls(__import__, "os"), "system"),
    "nested": {"a": [({"b": (Calls(os.mkdir, MADE),)},)]},
    "open": Calls(open, MADE, "w"),
    "torch.load": Calls(torch.load, MADE),
    "torch.save": Calls(torch.save, {}, MADE),
    "torch.hub": Calls(torch.hub.download_url_to_file, "file:///etc/hostname", MADE),
    "torch.set_num_threads": Calls(torch.set_num_threads, 1),
    "in a state": Calls(OrderedDict, state={"x": Calls(os.system, f"touch {MADE}")}),
}


@pytest.mark.parametrize("name", PAYLOADS)
@pytest.mark.parametrize("zipped", FORMS)
def test_a_malicious_file_is_refused_and_nothing_of_it_runs(cohort, name, zipped):
    published("old.model", zipped)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        content = torch.load("old.model", weights_only=False)
    threads = torch.get_num_threads()
    torch.save(
        content | {"loss_logs": PAYLOADS[name]}, "bad.model", _use_new_zipfile_serialization=zipped
    )
    with pytest.raises(UserError, match="refused: it names"):
        convert(source="bad.model")
    assert not Path(MADE).exists()
    assert not Path("new.model").exists()
    assert torch.get_num_threads() == threads


def test_a_class_of_an_unknown_package_is_neither_imported_nor_run(tmp_path, monkeypatch):
    package = tmp_path / "theirs.py"
    package.write_text(f"open({str(tmp_path / MADE)!r}, 'w')\nclass Loss: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    pickled = b"\x80\x02ctheirs\nLoss\nq\x00)Rq\x01}X\x01\x00\x00\x00aK\x01sb."
    with zipfile.ZipFile(tmp_path / "x.model", "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
    assert type(read_published_model(tmp_path / "x.model")) is Skipped
    assert not (tmp_path / MADE).exists()


def rewritten(path, change):
    """Write a model whose pickle is changed."""
    published("old.model")
    with zipfile.ZipFile("old.model") as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            new.writestr(name, change(data) if name.endswith("data.pkl") else data)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.write_bytes(b""), "not a published model"),
        (lambda path: path.write_bytes(b"PK" + bytes(50)), "not a published model"),
        (lambda path: path.write_bytes(Path("old.model").read_bytes()[:4000]), "not a published"),
        (lambda path: path.write_bytes(pickle.dumps({"generator": 1})), "not a published model"),
        (lambda path: torch.save({"generator": {}}, path), "no state dict 'generator'"),
        (
            lambda path: torch.save({"generator": {"a": 1}, "discriminator": {}}, path),
            "'generator'",
        ),
        (
            lambda path: torch.save(
                {"generator": {"a": torch.ones(2)}, "discriminator": {"b": torch.ones(2)}}, path
            ),
            "not torchgan's DCGAN",
        ),
        (lambda path: rewritten(path, lambda data: data[:-40]), "not a published model"),
        (lambda path: rewritten(path, lambda _: pickle.dumps(io.BytesIO)), "refused: it names _io"),
    ],
)
def test_a_file_that_is_no_published_model_is_one_line(cohort, make, message):
    published("old.model")
    make(Path("bad.model"))
    with pytest.raises(UserError, match=message) as caught:
        convert(source="bad.model")
    assert len(str(caught.value).splitlines()) == 1
    assert not Path("new.model").exists()


@pytest.mark.parametrize(
    ("size", "stride", "offset"), [((9,), (1,), 0), ((4,), (1,), 5), ((999999999,), (0,), 0)]
)
def test_a_tensor_beyond_its_values_is_refused(tmp_path, size, stride, offset):
    class Odd:
        def __reduce__(self):
            storage = torch.arange(8.0)._typed_storage()
            return torch._utils._rebuild_tensor_v2, (
                storage, offset, size, stride, False, OrderedDict(),
            )  # fmt: skip

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.save(Odd(), tmp_path / "x.model")
    with pytest.raises(UserError, match="its values"):
        read_published_model(tmp_path / "x.model")
