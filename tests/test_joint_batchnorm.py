"""Batch normalisation over processes, against torch's own over the joint batch."""

import torch
from torch import distributed, multiprocessing, nn

from models.joint_batchnorm import JointBatchNorm

ROWS, FEATURES = 7, 5
SHARES = (slice(0, 5), slice(5, 5), slice(5, 7))  # one process has no row


def joint_batch():
    draw = torch.Generator().manual_seed(3)
    inputs = 3 + 2 * torch.randn(ROWS, FEATURES, generator=draw)
    return inputs, torch.randn(ROWS, FEATURES, generator=draw)


def normalise(layer, inputs, weights):
    inputs = inputs.clone().requires_grad_()
    outputs = layer(inputs)
    (weights * outputs).sum().backward()
    return {
        "outputs": outputs.detach(),
        "inputs": inputs.grad,
        "weight": layer.weight.grad,
        "bias": layer.bias.grad,
        **{name: value.clone() for name, value in layer.named_buffers()},
    }


def process(rank, folder):
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=len(SHARES)
    )
    inputs, weights = joint_batch()
    share = SHARES[rank]
    torch.save(
        normalise(JointBatchNorm(FEATURES), inputs[share], weights[share]), f"{folder}/{rank}.pt"
    )
    distributed.destroy_process_group()


def test_processes_together_normalise_as_one_does_forwards_and_backwards(tmp_path):
    multiprocessing.spawn(process, (str(tmp_path),), nprocs=len(SHARES))
    expected = normalise(nn.BatchNorm1d(FEATURES), *joint_batch())
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(len(SHARES))]
    close = {"rtol": 1e-5, "atol": 1e-5}
    for name in ("outputs", "inputs"):
        torch.testing.assert_close(
            torch.cat([part[name] for part in found]), expected[name], **close
        )
    for name in ("weight", "bias"):
        torch.testing.assert_close(sum(part[name] for part in found), expected[name], **close)
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        for part in found:
            torch.testing.assert_close(part[name], expected[name], **close)


def test_a_single_process_has_torchs_own_layer():
    inputs, weights = joint_batch()
    ours = normalise(JointBatchNorm(FEATURES), inputs, weights)
    theirs = normalise(nn.BatchNorm1d(FEATURES), inputs, weights)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
