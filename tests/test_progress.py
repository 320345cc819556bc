"""Progress of a run: means, the first bad step, continuing where it was saved."""

import pytest
import torch

from runtime.errors import UserError
from runtime.progress import Progress

CPU = torch.device("cpu")


def test_means_are_the_epochs_and_rows_add_up():
    progress = Progress(("a", "b"), CPU)
    for value in (1.0, 2.0, 6.0):
        progress.add(torch.tensor([value, -value]))
    assert progress.means() == {"a": 3.0, "b": -3.0}
    row = progress.end_epoch(images=12)
    assert (row["epoch"], row["step"], row["a"]) == (1, 3, 3.0)
    progress.add(torch.tensor([8.0, 0.0]))
    assert progress.means() == {"a": 8.0, "b": 0.0}
    assert (progress.step, progress.batch, len(progress.history)) == (4, 1, 1)


def test_a_run_continues_from_its_checkpoint():
    progress = Progress(("a",), CPU)
    progress.add(torch.tensor([2.0]))
    progress.end_epoch(4)
    progress.add(torch.tensor([5.0]))
    again = Progress(("a",), CPU)
    again.load(progress.to_checkpoint())
    assert (again.epoch, again.batch, again.step) == (1, 1, 2)
    assert again.means() == {"a": 5.0}
    assert again.history == progress.history
    assert again.elapsed_s >= progress.history[-1]["elapsed_s"]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_the_first_bad_step_is_named_and_not_a_later_one(bad):
    progress = Progress(("a",), CPU)
    progress.add(torch.tensor([1.0]))
    progress.check_finite("x.model")
    progress.add(torch.tensor([bad]))
    progress.add(torch.tensor([1.0]))
    with pytest.raises(UserError, match=r"x\.model: loss not finite at step 2;"):
        progress.check_finite("x.model")
