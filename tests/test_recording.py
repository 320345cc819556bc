"""A recorded function does what the plain one does: with stand-ins for a GPU's, and on a GPU."""

import contextlib
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import betaVAE_training
import histopathology_gan
from runtime.checkpoint import load_checkpoint
from runtime.recording import Recorded

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine")


def test_recordings_take_the_calls_tensors_and_run_when_they_are_replayed(monkeypatch):
    being_recorded, streams = [], SimpleNamespace(wait_stream=lambda other: None)

    class Graph:
        def pool(self):
            return self

        def replay(self):
            self.kernels()

    @contextlib.contextmanager
    def recording(graph, pool, capture_error_mode):
        being_recorded.append(graph)
        yield
        being_recorded.pop()

    for name, stand_in in {
        "CUDAGraph": Graph, "graph": recording, "Stream": lambda: streams,
        "current_stream": lambda: streams, "stream": lambda aside: contextlib.nullcontext(),
    }.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, stand_in)
    weight, ran = torch.zeros(3), []

    def add(value, both, twice):
        result = torch.zeros(())

        def kernels():
            weight.add_(value).add_(both[0] * (2 if twice else 1))
            result.copy_(weight.sum())

        ran.append(twice)
        if being_recorded:
            being_recorded[-1].kernels = kernels
        else:
            kernels()
        return result

    recorded, expected = Recorded(add), 0.0
    for call in range(1, 13):
        found = recorded(torch.full((3,), float(call)), (torch.ones(3), None), call % 3 == 0)
        expected += 3 * (call + (2 if call % 3 == 0 else 1))
        assert found.item() == expected
    # Two plain calls and a recording of each kind, the rest is replayed.
    assert (ran.count(True), ran.count(False), len(recorded.graphs)) == (3, 3, 2)


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
