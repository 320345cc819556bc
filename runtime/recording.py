"""Work of a GPU that is recorded once and then started as a whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

TRIALS = 2  # plain calls before the recording, in which libraries choose their algorithms


class Recorded:
    """A function of tensors whose kernels are recorded in a CUDA graph and replayed.

    It may change tensors in place, such as weights, but must not depend on values on the CPU that
    change between calls, nor draw random numbers. The first calls with every choice of `flags` run
    as they are; then a recording is made. What a call returns holds until the next one.

    Args:
        function: called with tensors (or tuples of them, nested, with None among them) of shapes
            that never change, and with flags; returns a tensor.

    Source: torch.cuda.graph; warm-up on a side stream as its documentation asks for.
    """

    def __init__(self, function: Callable[..., Tensor]) -> None:
        self.function = function
        self.calls: dict[tuple[bool, ...], int] = {}
        self.graphs: dict[tuple[bool, ...], tuple[torch.cuda.CUDAGraph, Tensor]] = {}
        self.given: tuple | None = None

    def __call__(self, *given: Any) -> Tensor:
        """Return what the function returns; `given`: tensors and tuples first, then flags."""
        flags = tuple(value for value in given if isinstance(value, bool))
        tensors = given[: len(given) - len(flags)]
        if flags not in self.graphs:
            self.calls[flags] = self.calls.get(flags, 0) + 1
            if self.calls[flags] <= TRIALS:
                return self._aside(*given)
            self.graphs[flags] = self._record(tensors, flags)
        _copy(self.given, tensors)
        graph, result = self.graphs[flags]
        graph.replay()
        return result

    def _record(
        self, tensors: tuple, flags: tuple[bool, ...]
    ) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        """Return a recording of the function on tensors of its own, and what it will return."""
        if self.given is None:
            self.given = _clone(tensors)
        graph = torch.cuda.CUDAGraph()
        pool = next(iter(self.graphs.values()))[0].pool() if self.graphs else None
        # Threads that read tiles may use the GPU's memory meanwhile.
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            result = self.function(*self.given, *flags)
        return graph, result

    def _aside(self, *given: Any) -> Tensor:
        """Call the function on a stream of its own, as recordings are."""
        here, aside = torch.cuda.current_stream(), torch.cuda.Stream()
        aside.wait_stream(here)
        with torch.cuda.stream(aside):
            result = self.function(*given)
        here.wait_stream(aside)
        return result


def _clone(tensors: Any) -> Any:
    if isinstance(tensors, tuple):
        parts = [_clone(part) for part in tensors]
        return type(tensors)(*parts) if hasattr(tensors, "_fields") else tuple(parts)
    return None if tensors is None else tensors.clone()


def _copy(held: Any, tensors: Any) -> None:
    if isinstance(held, tuple):
        for mine, other in zip(held, tensors, strict=True):
            _copy(mine, other)
    elif held is not None:
        held.copy_(tensors)
