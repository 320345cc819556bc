"""Tiles from a trained generator: tile k depends on the seed, k and the profile alone."""

from __future__ import annotations

import collections
import copy
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from models.profiles import ProfileEncoder
from models.wgan_vae import Conditioning
from runtime.seeds import torch_generator

# Sums round differently in batches of another size, and when other threads share them. So every
# tile is computed at a fixed place of a batch of fixed size, on a CPU by a single thread; speed
# comes from several batches at a time.
BATCH = 16


def sample_noise(
    seed: int, index: int, latent_dim: int, conditioning: Conditioning | None = None
) -> Tensor:
    """Return the noise (latent_dim,) of a tile: standard normal, or as `Conditioning.draw`."""
    draw = torch_generator(seed, "tile", index)
    if conditioning is None:
        return torch.randn(latent_dim, generator=draw)
    return conditioning.draw(1, draw)[0]


def encode_alone(encoder: ProfileEncoder, expression: np.ndarray) -> Tensor:
    """Return mu (N, D) of expression (N, G), each profile by itself and by a single thread: the
    same, bit for bit, whoever else is encoded and however many threads there are."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return torch.cat([encoder.mu(row[None]) for row in expression])
    finally:
        torch.set_num_threads(threads)


def sample_images(
    generator: nn.Module,
    seed: int,
    indices: Sequence[int],
    conditioning: Conditioning | None = None,
    mu: Tensor | None = None,
) -> Iterator[tuple[int, Tensor]]:
    """Yield (index, image (3, H, W) float32 in [-1, 1] on the CPU) for every index, in ascending
    order.

    Args:
        generator: in eval mode; its device is used.
        seed: of the run.
        indices: tile numbers >= 0, no repeats.
        conditioning: of an RNA-GAN; None for a plain GAN.
        mu: the profile's latents (D,), or one row (len(indices), D) per index, for an RNA-GAN.

    Raises:
        ValueError: only one of `conditioning` and `mu` is given, or an index is repeated.
    """
    if len(set(indices)) != len(indices):
        raise ValueError("repeated tile number")
    profile = None
    if mu is not None:
        rows = {index: row for row, index in enumerate(indices)}
        profile = (lambda _: mu) if mu.dim() == 1 else (lambda index: mu[rows.get(index, 0)])
    yield from stream_images(generator, seed, sorted(indices), conditioning, profile)


def stream_images(
    generator: nn.Module,
    seed: int,
    indices: Iterable[int],
    conditioning: Conditioning | None = None,
    profile: Callable[[int], Tensor] | None = None,
    finish: Callable[[int, Tensor], Any] = lambda _, image: image,
    workers: int | None = None,
) -> Iterator[tuple[int, Any]]:
    """Yield (index, finish(index, image)) of any number of tiles in the memory of a few batches.

    The images are those of `sample_images`.

    Args:
        generator, seed, conditioning: as there.
        indices: ascending tile numbers; read as they are needed.
        profile: returns the profile's latents (D,) of a tile number, for an RNA-GAN.
        finish: what becomes of an image (3, H, W), e.g. a file; called in the worker.
        workers: batches computed at a time; None: torch's number of threads on a CPU, else 1.

    Raises:
        ValueError: only one of `conditioning` and `profile` is given.
    """
    if (conditioning is None) != (profile is None):
        raise ValueError("an RNA-GAN needs conditioning and mu, a plain GAN neither")
    if generator.training:
        raise RuntimeError("call eval() first: batch statistics would tie tiles to their batch")
    weight = next(generator.parameters())
    threads = torch.get_num_threads()
    on_cpu = weight.device.type == "cpu"
    workers = workers or (threads if on_cpu else 1)

    @torch.inference_mode()
    def compute(batch: int, wanted: list[int]) -> list[tuple[int, Any]]:
        members = range(batch * BATCH, (batch + 1) * BATCH)
        noise = [sample_noise(seed, k, generator.latent_dim, conditioning) for k in members]
        latents = torch.stack(noise)  # (BATCH, D)
        if conditioning is not None:
            mu = torch.stack([profile(index) for index in members])  # (BATCH, D)
            latents = conditioning.latents(mu.float().cpu(), latents)
        images = generator(latents.to(weight)).float().cpu()  # (BATCH, 3, H, W)
        return [(index, finish(index, images[index % BATCH])) for index in wanted]

    batches = itertools.groupby(indices, lambda index: index // BATCH)
    pending: collections.deque[Future[list[tuple[int, Any]]]] = collections.deque()
    # A worker's setting is its own; torch keeps the last one for threads that start later.
    start = (torch.set_num_threads, (1,)) if on_cpu else (None, ())
    pool = ThreadPoolExecutor(workers, initializer=start[0], initargs=start[1])
    try:
        for batch, group in batches:
            pending.append(pool.submit(compute, batch, list(group)))
            if len(pending) > workers:
                yield from pending.popleft().result()
        while pending:
            yield from pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)


def prepare_sampling(generator: nn.Module, bfloat16: bool) -> nn.Module:
    """Return a copy of a generator that only samples, faster: the same function, other rounding.

    Batch normalisation with fixed statistics is a factor and a summand of every channel and moves
    into the weights of the convolution before it.

    Args:
        generator: in eval mode.
        bfloat16: weights and features in bfloat16; normalisations that stay keep float32.

    Source: Jacob et al. 2018 (arXiv 1712.05877), section 3.2, folding.
    """
    fast = copy.deepcopy(generator).eval().requires_grad_(False)
    for sequence in [part for part in fast.modules() if isinstance(part, nn.Sequential)]:
        layers = list(sequence)
        for number, (layer, norm) in enumerate(itertools.pairwise(layers)):
            if isinstance(layer, nn.ConvTranspose2d) and isinstance(norm, nn.BatchNorm2d):
                sequence[number] = fuse_conv_bn_eval(layer, norm, transpose=True)
                sequence[number + 1] = nn.Identity()
    if bfloat16:
        for module in fast.modules():
            if not isinstance(module, nn.BatchNorm2d):
                for name, value in module.named_parameters(recurse=False):
                    setattr(module, name, nn.Parameter(value.bfloat16(), requires_grad=False))
    return fast.to(memory_format=torch.channels_last)
