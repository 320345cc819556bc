"""Batch normalisation over the joint batch of data parallel processes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed, nn


class JointBatchNorm(nn.BatchNorm1d):
    """BatchNorm1d whose statistics in training are those of the batch of all processes together.

    So a run of several processes follows a run of one. A process may have no row of a batch. In a
    single process, and in eval mode, it is `nn.BatchNorm1d`; weights have the same names.

    Source: Ioffe and Szegedy 2015 (arXiv 1502.03167), algorithm 1, over the joint batch.
    torch.nn.SyncBatchNorm does the same on GPUs only.
    """

    def forward(self, inputs: Tensor) -> Tensor:
        """Return inputs (N, F), the process's rows of the batch, normalised, in their dtype."""
        alone = not (distributed.is_available() and distributed.is_initialized())
        if alone or not self.training:
            return super().forward(inputs)
        rows = inputs.float()
        sums = _JointSum.apply(torch.cat([rows.sum(dim=0), rows.new_tensor([len(rows)])]))  # (F+1,)
        count = sums[-1].detach()
        mean = sums[:-1] / count  # (F,)
        centred = rows - mean
        variance = _JointSum.apply(centred.square().sum(dim=0)) / count  # (F,)
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)
            self.num_batches_tracked += 1
        normalised = centred * (variance + self.eps).rsqrt()
        return (normalised * self.weight + self.bias).to(inputs.dtype)


class _JointSum(torch.autograd.Function):
    """The sum of a tensor over the processes; its gradient is the sum of theirs."""

    @staticmethod
    def forward(context: Any, values: Tensor) -> Tensor:
        total = values.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        total = gradient.contiguous().clone()
        distributed.all_reduce(total)
        return total
