"""Tiles per second of generation against the published loop, and whether tile k is always the same.

Both arms hold the full-size DCGAN generator (256 px, 2,048 latents, 111.8 M parameters; torchgan's
for the peer) and write PNG files. The peer is the published loop: ten tiles at a time, in train
mode, with gradients, float32. Arms alternate in one process with the same number of threads. One
JSON line per figure.

    OMP_NUM_THREADS=2 python3 -m benchmarks.generation
    OMP_NUM_THREADS=2 python3 -m benchmarks.generation --only same --tiles 32
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.published_gan import LATENT_DIM, STEP_CHANNELS, DCGANGenerator
from data.pixels import images_to_pixels, write_png
from models.dcgan import Generator
from models.sampling import prepare_sampling, stream_images
from runtime.device import PRECISIONS, uses_bfloat16
from runtime.seeds import numpy_generator

SIDE, CHUNK = 256, 10
PARTS = ("speed", "same")
TARGET = 5.0


def published_loop(generator: torch.nn.Module, count: int, folder: Path) -> None:
    """Write `count` tiles as published."""
    generator.train()
    for start in range(0, count, CHUNK):
        images = generator(torch.randn(min(CHUNK, count - start), LATENT_DIM))
        for number, image in enumerate(images.detach(), start):
            levels = image.add(1).mul(127.5).round().clamp(0, 255).byte()
            Image.fromarray(levels.permute(1, 2, 0).numpy()).save(folder / f"{number:06d}.png")


def our_loop(generator: torch.nn.Module, count: int, folder: Path) -> None:
    """Write `count` tiles as generate_tissue_images.py does."""

    def write(number: int, image: torch.Tensor) -> None:
        write_png(folder / f"{number:06d}.png", images_to_pixels(image[None])[0].numpy())

    for _ in stream_images(generator, 99, range(count), finish=write):
        pass


def measure_speed(tiles: int, rounds: int, precision: str) -> None:
    """Print seconds per tile of both arms."""
    bfloat16 = uses_bfloat16(precision, torch.device("cpu"))
    peer = DCGANGenerator(LATENT_DIM, SIDE, step_channels=STEP_CHANNELS)
    ours = prepare_sampling(Generator(LATENT_DIM, SIDE, STEP_CHANNELS).eval(), bfloat16)
    arms = {"peer": (published_loop, peer, 2 * CHUNK), "ours": (our_loop, ours, tiles)}
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(rounds + 1):
            for name, (loop, generator, count) in arms.items():
                began = time.perf_counter()
                loop(generator, count, Path(folder))
                if turn:  # the first round warms up
                    seconds[name].append((time.perf_counter() - began) / count)
    best = {name: float(np.median(values)) for name, values in seconds.items()}
    line = {
        "figure": "seconds per tile, 256 px, PNG written",
        **best,
        "ratio": best["peer"] / best["ours"],
        "target": TARGET,
        "rounds": seconds,
        "precision": "bfloat16" if bfloat16 else "float32",
        "threads": torch.get_num_threads(),
    }
    print(json.dumps(line), flush=True)


@contextlib.contextmanager
def busy_machine(processes: int) -> Iterator[None]:
    """Keep so many other processes at work inside this context."""
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_spin, daemon=True) for _ in range(processes)]
    for worker in workers:
        worker.start()
    try:
        yield
    finally:
        for worker in workers:
            worker.terminate()
            worker.join()


def _spin() -> None:
    while True:
        sum(range(100_000))


def measure_sameness(tiles: int, precision: str) -> None:
    """Print how many tiles differ in any bit from those of one plain run."""
    torch.manual_seed(0)
    bfloat16 = uses_bfloat16(precision, torch.device("cpu"))
    generator = prepare_sampling(Generator(LATENT_DIM, SIDE, STEP_CHANNELS).eval(), bfloat16)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    whole = dict(stream_images(generator, 99, range(tiles)))
    some = sorted(numpy_generator(99, "some").permutation(tiles)[: tiles // 4].tolist())
    runs = {"2 threads": (2, range(tiles), 0), "3 threads": (3, range(tiles), 0)}
    runs |= {"some of them": (2, some, 0), "busy machine": (2, range(tiles), 3)}
    differing = {}
    for name, (threads, wanted, others) in runs.items():
        torch.set_num_threads(threads)
        with busy_machine(others):
            found = stream_images(generator, 99, wanted)
            differing[name] = sum(not torch.equal(whole[k], image) for k, image in found)
    torch.set_num_threads(before)
    line = {"figure": "tiles that differ in any bit", "ours": sum(differing.values())}
    print(json.dumps(line | {"target": 0, "tiles": tiles, "runs": differing}), flush=True)


def main(argv: list[str] | None = None) -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--tiles", type=int, default=96, help="of our arm in each round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--precision", choices=PRECISIONS, default="auto")
    args = parser.parse_args(argv)
    if "speed" in args.only:
        measure_speed(args.tiles, args.rounds, args.precision)
    if "same" in args.only:
        measure_sameness(args.tiles, args.precision)


if __name__ == "__main__":
    main()
