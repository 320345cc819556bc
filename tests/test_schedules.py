"""Learning rate and KL weight."""

import pytest
import torch

from models.schedules import kl_weight, learning_rate


def test_warmup_cosine_rises_to_the_peak_and_falls_to_zero_once():
    rates = [learning_rate("warmup_cosine", 2.0, step, 100, 10) for step in range(101)]
    assert rates[:10] == pytest.approx([0.2 * (step + 1) for step in range(10)])
    assert rates[10] == 2.0
    assert rates[55] == pytest.approx(1.0)
    assert rates[100] == pytest.approx(0)
    assert all(one > other for one, other in zip(rates[10:], rates[11:], strict=False))


def test_published_schedule_is_the_epoch_schedule_of_torch_stepped_per_batch():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=2.0)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 500)
    for step in range(1000, 2600):
        ours = learning_rate("cosine_per_batch", 2.0, step, 0, 0)
        assert ours == pytest.approx(cosine.get_last_lr()[0], abs=1e-6)
        optimizer.step()
        cosine.step()
    assert learning_rate("cosine_per_batch", 2.0, 250, 0, 0) == 0.5


def test_constant_is_constant_and_another_name_is_refused():
    assert {learning_rate("constant", 2.0, step, 10, 3) for step in range(10)} == {2.0}
    with pytest.raises(ValueError, match="triangle"):
        learning_rate("triangle", 2.0, 0, 10, 3)


def test_kl_weight_rises_linearly_then_stays_and_is_beta_without_warmup():
    weights = [kl_weight(0.5, step, 4) for step in range(6)]
    assert weights == [0.125, 0.25, 0.375, 0.5, 0.5, 0.5]
    assert kl_weight(0.5, 0, 0) == 0.5
