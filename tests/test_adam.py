"""Adam against torch's own."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from models.adam import Adam

BETAS = (0.5, 0.99)


def trained(optimizer, weights: list[nn.Parameter], steps: range = range(5)) -> None:
    for step in steps:
        draw = torch.Generator().manual_seed(step)
        for weight in weights:
            weight.grad = torch.empty_like(weight)  # in the weight's layout
            weight.grad.copy_(torch.randn(weight.shape, generator=draw))
        optimizer.step()
        optimizer.zero_grad()


def weights_in(layout: torch.memory_format) -> list[nn.Parameter]:
    draw = torch.Generator().manual_seed(99)
    shapes = [(6, 5, 4, 4), (7, 3, 1, 1), (1, 8, 4, 4), (9, 4), (3,)]
    values = [torch.randn(shape, generator=draw) for shape in shapes]
    return [
        nn.Parameter(value.contiguous(memory_format=layout) if value.ndim == 4 else value)
        for value in values
    ]


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_weights_are_those_of_torchs_adam_in_either_layout(layout):
    ours, theirs = weights_in(layout), weights_in(torch.contiguous_format)
    trained(Adam(ours, 1e-2, BETAS), ours)
    trained(torch.optim.Adam(theirs, 1e-2, BETAS), theirs)
    for weight, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(weight, expected)
    for weight, before in zip(ours, weights_in(layout), strict=True):
        assert weight.stride() == before.stride()


def test_a_gradient_in_another_layout_than_its_weight_is_read_rightly():
    ours, theirs = (weights_in(torch.channels_last) for _ in range(2))
    given = torch.randn(6, 5, 4, 4, generator=torch.Generator().manual_seed(1))
    for weights, optimizer in (
        (ours, Adam(ours, 1e-2, BETAS)),
        (theirs, torch.optim.Adam(theirs, 1e-2, BETAS, foreach=False)),
    ):
        weights[0].grad = given.clone()
        optimizer.step()
    torch.testing.assert_close(ours[0], theirs[0])


@pytest.mark.parametrize("kind", [Adam, torch.optim.Adam])
def test_a_run_continues_exactly_from_its_state_and_closely_from_that_of_torchs_class(kind):
    whole, parts = (weights_in(torch.channels_last) for _ in range(2))
    trained(Adam(whole, 1e-2, BETAS), whole, range(10))
    first, second = kind(parts, 1e-2, BETAS), Adam(parts, 1e-2, BETAS)
    trained(first, parts, range(5))
    second.load_state_dict(first.state_dict())
    trained(second, parts, range(5, 10))
    for weight, expected in zip(parts, whole, strict=True):
        if kind is Adam:
            assert torch.equal(weight, expected)
        torch.testing.assert_close(weight, expected)


def test_weights_without_gradient_and_frozen_ones_stay():
    still, moved, frozen = (nn.Parameter(torch.ones(3)) for _ in range(3))
    optimizer = Adam([still, moved, frozen.requires_grad_(False)], 0.1, BETAS)
    moved.grad = torch.ones(3)
    optimizer.step()
    for weight in (still, frozen):
        assert torch.equal(weight, torch.ones(3))
    assert (moved < 1).all()
    assert len(optimizer.moments) == 2


def test_training_does_not_import_torchs_compiler():
    code = (
        "import sys, torch\n"
        "from models.adam import Adam\n"
        "weight = torch.nn.Parameter(torch.ones(3))\n"
        "weight.grad = torch.ones(3)\n"
        "Adam([weight], 0.1, (0.5, 0.99)).step()\n"
        "assert 'torch._dynamo' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
