"""What the stages before and in GAN training cost per slide: slopes over three sizes.

Real tiles of the test data, brought to 256 px, in stores of 50; random tables of 19,198 genes; a
betaVAE of full size. Prints a JSON line per stage: sizes, core seconds, and the slope between them.
Two minutes and 3 GB.

    python3 -m benchmarks.gan_scale
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image

from benchmarks.her2st import DATA
from data.expression import ExpressionTable, read_cohort, write_expression_table
from data.tiles import Tile, TileDataset, store_path, write_tile_store
from data.training import TileBatches, epoch_order
from models.betavae import BetaVAE

GENES, PX, STORE_TILES, BATCH = 19198, 256, 50, 8


def report(stage: str, unit: str, sizes: Sequence[int], cost: Callable[[int], float]) -> None:
    """Take `cost` at three sizes and print the slope, core seconds per unit."""
    taken = [min(cost(size) for _ in range(2)) for size in sizes]
    slope = float(np.polyfit(sizes, taken, 1)[0])
    line = {"figure": f"{stage}, core s per {unit}", "ours": slope, "peer": None, "ratio": None}
    print(json.dumps(line | {"target": None, "sizes": list(sizes), "s": taken}), flush=True)


def timed(work: Callable[[], object]) -> float:
    """Return the core seconds that `work` takes."""
    began = time.process_time()
    work()
    return time.process_time() - began


def main(argv: list[str] | None = None) -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.parse_args(argv)
    draw = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = sorted(DATA.rglob("tiles/*/*.jpg"))[:STORE_TILES]
        pixels = [np.asarray(Image.open(file).resize((PX, PX))) for file in files]
        tiles = [Tile(PX * place, 0, 0.5, tile) for place, tile in enumerate(pixels)]
        stores = [store_path(folder, f"S-{number:03d}-0625.svs") for number in range(160)]
        write_tile_store(stores[0], stores[0].stem, tiles, PX, 0.5, {})
        for store in stores[1:]:
            store.parent.mkdir()
            shutil.copyfile(stores[0], store)

        def opened(count: int) -> float:
            return timed(lambda: TileDataset(stores[:count]))

        def read(count: int) -> float:
            dataset = TileDataset(stores[: count // STORE_TILES], None, PX)
            batches = TileBatches(dataset, 0, cache_mb=0, pinned=False)
            order = epoch_order(len(dataset), BATCH, True, 1, 0)
            return timed(lambda: sum(len(part) for part, _ in batches(order)))

        def table(rows: int) -> float:
            path = folder / f"table_{rows}_{draw.integers(1 << 40)}.csv"
            expression = draw.gamma(2, 20, (rows, GENES)).astype(np.float32)
            names = [f"S-{number:04d}-0625.svs" for number in range(rows)]
            genes = [f"ENSG{number:011d}.1" for number in range(GENES)]
            about = pd.DataFrame({"tissue": ["lung"] * rows})
            write_expression_table(path, ExpressionTable(names, genes, expression, about))
            return timed(lambda: read_cohort([str(path)]))

        report("opening tile stores", "slide", (40, 80, 160), opened)
        report("reading shuffled PNG tiles", "tile", (250, 500, 1000), read)
        report("reading a table", "profile", (25, 50, 100), table)
    model = BetaVAE(GENES).eval()

    def encoded(rows: int) -> float:
        profiles = torch.randn(rows, GENES)
        return timed(lambda: model.latents(profiles))

    report("latents", "profile", (128, 256, 512), encoded)


if __name__ == "__main__":
    main()
