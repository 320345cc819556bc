"""Data parallel training: one process per device, each with its share of every batch."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from datetime import timedelta
from typing import NamedTuple

import torch
from torch import distributed

from runtime.errors import SaidElsewhere, UserError

# Others wait so long at most, e.g. while the first measures the model. torchrun ends them all
# when one fails, whatever this says.
PATIENCE = timedelta(hours=6)


class Processes(NamedTuple):
    """The processes of a run.

    Attributes:
        rank: number of this process, 0 to size - 1; rank 0 alone writes files and talks.
        size: number of processes, on all machines together; 1 when not started by torchrun.
        local_rank: number of this process on its machine: that of its GPU.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def first(self) -> bool:
        """Whether this process writes the files and shows the bar."""
        return self.rank == 0

    def share(self, count: int) -> slice:
        """Return this process's part of `count` rows; the parts are in order and leave none out."""
        return slice(count * self.rank // self.size, count * (self.rank + 1) // self.size)

    def average(self, tensors: Iterable[torch.Tensor | None]) -> None:
        """Replace float tensors by their mean over the processes, in one message per dtype."""
        if self.size == 1:
            return
        by_kind: dict[tuple, list[torch.Tensor]] = {}
        for tensor in tensors:
            if tensor is not None:
                by_kind.setdefault((tensor.dtype, tensor.device), []).append(tensor)
        for group in by_kind.values():
            flat = torch.cat([tensor.detach().reshape(-1) for tensor in group])
            distributed.all_reduce(flat)
            flat /= self.size
            for tensor, part in zip(group, flat.split([t.numel() for t in group]), strict=True):
                tensor.detach().copy_(part.view_as(tensor))

    def average_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Replace every gradient by its mean over the processes.

        With equal shares and losses that are means over a share, that is the gradient of the mean
        over the joint batch, whatever the loss, a gradient penalty included.
        """
        self.average(parameter.grad for parameter in parameters)

    def first_says(self, values: Sequence[bool]) -> list[bool]:
        """Return the first process's values, for what depends on its clock."""
        if self.size == 1:
            return list(values)
        message = torch.tensor(values, dtype=torch.uint8)
        distributed.broadcast(message, src=0)
        return message.bool().tolist()

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Run a block of which all processes end well or none, without messages between them.

        Raises:
            UserError: in the first process whose block raised it; `SaidElsewhere` in the others,
                so that one message is printed.
        """
        mistake = None
        try:
            yield
        except UserError as error:
            if self.size == 1:
                raise
            mistake = error
        if self.size == 1:
            return
        failed: list[bool] = [False] * self.size
        distributed.all_gather_object(failed, mistake is not None)
        if any(failed):
            if failed.index(True) == self.rank and mistake is not None:
                raise mistake
            raise SaidElsewhere(f"process {failed.index(True)} stopped")

    def wait(self) -> None:
        """Return once every process is here."""
        if self.size > 1:
            distributed.barrier()


def join_processes(device_type: str) -> Processes:
    """Return the processes that torchrun started, joined: over NCCL for "cuda", else gloo.

    Messages from the CPU go over gloo in either case, so that they wait for no GPU.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Processes()
    if not distributed.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if device_type == "cuda" else "gloo"
        distributed.init_process_group(backend, timeout=PATIENCE)
    return Processes(
        distributed.get_rank(), distributed.get_world_size(), int(os.environ.get("LOCAL_RANK", "0"))
    )


def leave_processes() -> None:
    """End the process group, where there is one."""
    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def start_on_all_devices(argv: Sequence[str] | None, script: str) -> None:
    """Replace this process by torchrun with a process per GPU, where there are several.

    Does nothing under torchrun, or with one GPU or none.

    Args:
        argv: the script's arguments; None for those of this process.
        script: the script's file.
    """
    if "WORLD_SIZE" in os.environ or torch.cuda.device_count() < 2:
        return
    given = list(sys.argv[1:] if argv is None else argv)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    count = f"--nproc_per_node={torch.cuda.device_count()}"
    os.execv(sys.executable, [*launcher, count, script, *given])
