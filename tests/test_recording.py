"""On a GPU, a recorded training step does what the plain one does."""

import json
from pathlib import Path

import pytest
import torch

import betaVAE_training
import histopathology_gan
from runtime.checkpoint import load_checkpoint
from runtime.recording import Recorded

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine")


@needs_gpu
def test_a_recorded_function_changes_its_tensors_at_every_call():
    weight = torch.zeros(3, device="cuda")

    def add(value, both, twice):
        weight.add_(value).add_(both[0] * (2 if twice else 1))
        return weight.sum()

    recorded, expected = Recorded(add), 0.0
    for call in range(1, 9):
        value, both = torch.full((3,), float(call), device="cuda"), (torch.ones(3).cuda(), None)
        found = recorded(value, both, call % 2 == 0)
        expected += 3 * (call + (2 if call % 2 == 0 else 1))
        assert found.item() == expected
    assert len(recorded.graphs) == 2


@needs_gpu
@pytest.mark.parametrize("loss_type", ["wganvae", "relativisticvae"])
@pytest.mark.parametrize("gan_type", ["dcgan", "r3gan"])
def test_recorded_training_is_plain_training(cohort, monkeypatch, loss_type, gan_type):
    keys = json.loads(Path("gan_lung.json").read_text()) | {
        "augment": "full", "penalty_interval": 2, "step_channels": 16, "device": 0,
        "precision": "float32",
    }  # fmt: skip
    betaVAE_training.main(["--config", "betavae.json"])
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    found = {}
    for graphs in (False, True):
        Path("gan_lung.json").write_text(json.dumps(keys | {"cuda_graphs": graphs}))
        histopathology_gan.main(
            ["--config", "gan_lung.json", "--loss_type", loss_type, "--num_epochs", "2"]
            + ["--gan_type", gan_type, "--num_patches", "5", "--image_dir", "i"]
            + ["--model_dir", f"m/{graphs}"]
        )
        found[graphs] = load_checkpoint(f"m/{graphs}.model", "gan")
    for part in ("generator", "generator_ema", "critic"):
        for name, value in found[False][part].items():
            # Of the score's bias a relativistic loss does not depend.
            if value.is_floating_point() and name != "score.bias":
                assert torch.allclose(found[True][part][name], value, rtol=1e-2, atol=1e-3), name
    assert found[True]["history"][-1]["critic_loss"] == pytest.approx(
        found[False]["history"][-1]["critic_loss"], rel=1e-2
    )
