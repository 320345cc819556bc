"""extract_tiles.py against the published procedure and other tilers, on the same slides and cores.

One line a figure: {"figure", "ours", "peer", "ratio", "target"}. Parts:

speed   simulated slides of 20,000 x 20,000 px at 0.5 um/px: seconds of the whole command against
        those of each procedure of benchmarks/tiling_peers.py (serial, as published), alternating.
rate    the same slides, more tiles: tiles per second of the workers against bare loops of raster
        reads and PNG encoding of the same tiles on as many cores, which write nothing.
reads   random reads of tiles from 500 stores in two processes; memory with 50 and with 500 stores.
kill    kill -9 of all processes at random moments: stores after the rerun and of a run undisturbed.
scale   nuclear diameter on tiles of a real 40x slide and of the same slide at 20x.

    python3 -m benchmarks.tiling --work /tmp/tiling                     # about ten minutes
    python3 -m benchmarks.tiling --work /tmp/tiling --only reads scale
"""

from __future__ import annotations

import argparse
import csv
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.tiling_peers import ENCODERS, bare
from data.aperio import write_aperio
from data.slides import Slide
from data.synthetic_canvas import random_staining
from data.synthetic_tissue import TissueFactors, draw_section
from data.tiles import (
    Tile,
    TileDataset,
    find_tile_store,
    open_tile_store,
    store_path,
    write_tile_store,
)
from metrics.morphology import morphology_of_tiles

ROOT = Path(__file__).resolve().parent.parent
REAL = ROOT.parent / "shared" / "data" / "slides"
SLIDE_PX, PATCH_PX = 20_000, 4096
STORES, STORED_TILES = 500, 8
CORES = 2


def report(figure: str, ours: float, peer: float | None, target: str, **more: Any) -> None:
    """Print one figure; the ratio is ours to the peer's rate, or the peer's seconds to ours."""
    ratio = more.pop("ratio", None if peer is None else ours / peer)
    line = {"figure": figure, "ours": ours, "peer": peer, "ratio": ratio, "target": target}
    rounded = {key: float(f"{v:.4g}") if isinstance(v, float) else v for key, v in line.items()}
    print(json.dumps(rounded | more), flush=True)


def tile(slides: Path, patches: Path, *more: str) -> float:
    """Tile a folder as a user would; return the seconds."""
    started = time.perf_counter()
    command = ["extract_tiles.py", "--slide_path", str(slides), "--patch_path", str(patches)]
    subprocess.run(
        [sys.executable, *command, "--workers", str(CORES), *more],
        cwd=ROOT, check=True, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    return time.perf_counter() - started


def draw_large(path: Path, number: int) -> None:
    """Write a slide of 20,000 x 20,000 px: tissue, repeated and shifted, in a wavy outline."""
    rng = np.random.default_rng(number)
    kind = ("brain", "lung")[number % 2]
    factors = TissueFactors(2500.0, 7.0, 1.0, 0.1 if kind == "brain" else 0.5)
    patch = draw_section(kind, factors, random_staining(rng), PATCH_PX, rng, outline=False)
    pixels = np.full((SLIDE_PX, SLIDE_PX, 3), 242, np.uint8)
    for top in range(0, SLIDE_PX, PATCH_PX):
        for left in range(0, SLIDE_PX, PATCH_PX):
            target = pixels[top : top + PATCH_PX, left : left + PATCH_PX]
            moved = np.roll(patch, rng.integers(0, PATCH_PX, 2), axis=(0, 1))
            target[:] = moved[: target.shape[0], : target.shape[1]]
    angle = np.linspace(0, 2 * np.pi, 200)
    waves = 0.04 * np.sin(5 * angle) + 0.03 * np.sin(11 * angle + number)
    for row in range(0, SLIDE_PX, 8):
        y = (row / SLIDE_PX - 0.5) * 2
        reach = 0.82 + np.interp(np.arcsin(np.clip(y, -1, 1)) % (2 * np.pi), angle, waves)
        half = int(SLIDE_PX / 2 * max(reach**2 - y**2, 0) ** 0.5)
        middle = SLIDE_PX // 2
        pixels[row : row + 8, : middle - half] = pixels[row : row + 8, middle + half :] = 242
    write_aperio(path, pixels, 0.5, 20, levels=3)


def large_slides(work: Path, count: int) -> Path:
    """Return the folder of the large slides, drawn on the first call."""
    folder = work / "large"
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        path = folder / f"SIM-{number:04d}-0625.svs"
        if not path.is_file():  # in a process of its own, whose memory goes with it
            process = multiprocessing.get_context("spawn").Process(
                target=draw_large, args=(path, number)
            )
            process.start()
            process.join()
            if process.exitcode:
                raise SystemExit(f"{path}: could not be drawn")
    return folder


def emptied(path: Path) -> Path:
    """Return a path at which nothing is."""
    shutil.rmtree(path, ignore_errors=True)
    return path


def speed(work: Path, options: argparse.Namespace) -> None:
    """Compare the time of the whole command with that of the other procedures."""
    slides = large_slides(work, options.slides)
    most = str(options.max_tiles)
    ours: list[float] = []
    for name in ("published", "clam", "histolab"):
        patches = emptied(work / "ours")
        ours.append(tile(slides, patches, "--max_tiles", most))
        tiles = sum(int(row["tiles"]) for row in rows_of(patches))
        output = emptied(work / name)
        started = time.perf_counter()
        answer = subprocess.run(
            [sys.executable, "-m", "benchmarks.tiling_peers", name, slides, output, most],
            cwd=ROOT, check=True, capture_output=True, text=True,
        )  # fmt: skip
        seconds = time.perf_counter() - started
        made = json.loads(answer.stdout)["tiles"]
        # Per tile, as the procedures do not keep equally many.
        ratio = (seconds / made) / (ours[-1] / tiles)
        target = ">= 3" if name == "published" else "> 1"
        report(
            f"tiles/s, whole command, against {name}", tiles / ours[-1], made / seconds, target,
            ratio=float(f"{ratio:.4g}"), tiles=tiles, peer_tiles=made, processes=CORES,
            peer_processes=1,
        )  # fmt: skip


def rate(work: Path, options: argparse.Namespace) -> None:
    """Compare the rate of the workers with that of bare loops over the same tiles."""
    slides = large_slides(work, options.slides)
    whole, working = [], []
    loops: dict[str, list[float]] = {encoder: [] for encoder in ENCODERS}
    for _ in range(2):
        patches = emptied(work / "ours")
        whole.append(tile(slides, patches, "--max_tiles", str(2 * options.max_tiles)))
        rows = rows_of(patches)
        tiles = sum(int(row["tiles"]) for row in rows)
        working.append(sum(float(row["seconds"]) for row in rows) / CORES)
        for encoder, seconds in loops.items():
            jobs = [
                (path, places_of(patches, path.name), encoder)
                for path in sorted(slides.glob("*.svs"))
            ]
            with multiprocessing.get_context("spawn").Pool(CORES) as pool:
                pool.starmap(bare, [(path, places[:2], encoder) for path, places, _ in jobs])
                started = time.perf_counter()
                pool.starmap(bare, jobs, chunksize=1)
                seconds.append(time.perf_counter() - started)
    for encoder, seconds in loops.items():
        ours, command, peer = (2 * tiles / sum(times) for times in (working, whole, seconds))
        label = f"against a bare loop with the {encoder} encoder"
        report(f"tiles/s in the workers, {label}", ours, peer, ">= 0.8")
        report(f"tiles/s, whole command, {label}", command, peer, "none")


def places_of(patches: Path, slide: str) -> list[tuple[int, int]]:
    """Return x and y of a slide's tiles in raster order."""
    index = open_tile_store(find_tile_store(patches, slide)).index.sort_values(["y", "x"])
    return [(int(x), int(y)) for x, y in zip(index.x, index.y, strict=True)]


def rows_of(patches: Path) -> list[dict[str, str]]:
    """Return the rows of slides.csv."""
    with open(patches / "slides.csv", encoding="utf-8") as handle:
        return list(csv.DictReader(handle))


def real_pixels(count: int) -> list[np.ndarray]:
    """Return tiles of 256 px of the real slides, turned until there are so many."""
    tiles = []
    for path in sorted(REAL.glob("*.svs")):
        with Slide(path) as slide:
            grid = slide.grid(256, 0.5)
            places = np.argwhere(np.ones((grid.rows, grid.columns)))
            tiles += [pixels for pixels in slide.read_tiles(grid, places) if pixels.std() > 25]
    return [np.rot90(tiles[k % len(tiles)], k // len(tiles) % 4) for k in range(count)]


def make_stores(work: Path, form: str) -> list[Path]:
    """Return 500 stores of real tiles."""
    folder, pixels = work / f"stores-{form}", real_pixels(400)
    paths = []
    for number in range(STORES):
        path = store_path(folder, f"SIM-{number:04d}-0625.svs")
        paths.append(path)
        if path.is_file():
            continue
        chosen = [pixels[(number * STORED_TILES + k) % len(pixels)] for k in range(STORED_TILES)]
        tiles = [Tile(256 * k, 0, 1.0, one) for k, one in enumerate(chosen)]
        quality = 95 if form == "jpeg" else None
        write_tile_store(path, path.parent.name, tiles, 256, 0.5, {}, 1, quality)
    return paths


def read_ours(paths: list[Path], numbers: np.ndarray) -> int:
    """Read tiles at random places as a training does; return the memory in bytes."""
    dataset = TileDataset(paths)
    for number in numbers:
        dataset[int(number) % len(dataset)]
    return resident_bytes()


def read_with_zipfile(paths: list[Path], numbers: np.ndarray) -> int:
    """Read the same tiles with a ZipFile per store, kept open; return the memory in bytes."""
    archives = [zipfile.ZipFile(path) for path in paths]
    names = [
        (archive, name)
        for archive in archives
        for name in archive.namelist()
        if name.endswith((".png", ".jpg"))
    ]
    for number in numbers:
        archive, name = names[int(number) % len(names)]
        np.asarray(Image.open(BytesIO(archive.read(name))).convert("RGB"))
    return resident_bytes()


def resident_bytes() -> int:
    """Return the memory that this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def in_processes(work: Callable[..., int], paths: list[Path], count: int) -> tuple[float, int]:
    """Return tiles per second of all processes together, and the most memory of one."""
    rng = np.random.default_rng(0)
    parts = [rng.integers(0, STORES * STORED_TILES, count // CORES) for _ in range(CORES)]
    with multiprocessing.get_context("spawn").Pool(CORES) as pool:
        pool.starmap(work, [(paths[:2], part[:2]) for part in parts], chunksize=1)
        started = time.perf_counter()
        peaks = pool.starmap(work, [(paths, part) for part in parts], chunksize=1)
    return count / (time.perf_counter() - started), max(peaks)


def reads(work: Path, options: argparse.Namespace) -> None:
    """Measure random reads and the memory that many stores need."""
    for form, target in (("jpeg", 2000), ("png", 400)):
        paths = make_stores(work, form)
        in_processes(read_ours, paths, 2000)  # the disk's cache
        ours, many = in_processes(read_ours, paths, options.reads)
        peer, _ = in_processes(read_with_zipfile, paths, options.reads)
        report(f"random reads of {form} tiles/s, {CORES} processes", ours, peer, f">= {target}")
        few = in_processes(read_ours, paths[: STORES // 10], options.reads)[1]
        growth = (many - few) / 2**20
        report(
            f"MiB that {STORES} {form} stores need beyond {STORES // 10}", growth, None, "< 10",
            resident_MiB=round(many / 2**20),
        )  # fmt: skip


def kill(work: Path, options: argparse.Namespace) -> None:
    """Kill runs at random moments and compare the stores after a rerun."""
    slides = work / "small"
    if not slides.is_dir():
        subprocess.run(
            [sys.executable, "simulate_cohort.py", "--output", str(work / "cohort"), "--donors",
             "6", "--profiles", "8", "--genes", "200", "--slide_px", "2048"],
            cwd=ROOT, check=True, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        shutil.copytree(work / "cohort/slides/brain", slides)
    more = ("--tile_px", "64")
    patches = emptied(work / "undisturbed")
    seconds = tile(slides, patches, *more)
    wanted = stores_of(patches)
    moments = random.Random(99)
    same, begun = 0, 0
    for _ in range(options.kills):
        patches = emptied(work / "killed")
        process = subprocess.Popen(
            [sys.executable, "extract_tiles.py", "--slide_path", str(slides), "--patch_path",
             str(patches), "--workers", str(CORES), *more],
            cwd=ROOT, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        # Half of them after the first store was begun, as much of a short run is imports.
        if moments.random() < 0.5:
            while process.poll() is None and not list(patches.glob("*/.*")):
                time.sleep(0.005)
            time.sleep(moments.uniform(0, seconds / 3))
        else:
            time.sleep(moments.uniform(0, seconds))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        begun += patches.is_dir() and 0 < len(stores_of(patches)) < len(wanted)
        tile(slides, patches, *more)
        same += stores_of(patches) == wanted
    report(
        "kills -9 after which all stores are byte-identical", same, options.kills, "1.0",
        killed_between_first_and_last_store=begun,
    )  # fmt: skip


def stores_of(patches: Path) -> dict[str, bytes]:
    """Return the content of the finished stores by name."""
    return {path.name: path.read_bytes() for path in patches.glob("*/[!.]*.zip")}


def scale(work: Path, options: argparse.Namespace) -> None:
    """Compare nuclei on tiles of a 40x slide with those of the same slide at 20x."""
    source = REAL / "TCGA-LGG-montage-A_40x.svs"
    slides = emptied(work / "twins")
    slides.mkdir(parents=True)
    shutil.copy(source, slides / "forty.svs")
    with Slide(source) as slide:
        pixels = slide.read(0, 0, 0, *slide.size)
    write_aperio(slides / "twenty.svs", np.asarray(Image.fromarray(pixels).reduce(2)), 0.5, 20)
    patches = emptied(work / "twin-tiles")
    tile(slides, patches)
    sizes = {}
    for name in ("forty.svs", "twenty.svs"):
        store = open_tile_store(find_tile_store(patches, name))
        tiles = np.stack([store.read(number) for number in range(len(store))])
        sizes[name] = morphology_of_tiles(tiles, float(store.index.mpp[0])).nuclear_diameter_um
    report("nuclear diameter in um, 40x slide against its 20x twin", sizes["forty.svs"],
           sizes["twenty.svs"], "0.85 to 1.15")  # fmt: skip


PARTS = {"speed": speed, "rate": rate, "reads": reads, "kill": kill, "scale": scale}


def main() -> None:
    """Run the parts asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--work", type=Path, required=True, help="folder for slides and tiles")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--slides", type=int, default=2, help="large slides")
    parser.add_argument("--max_tiles", type=int, default=1000, help="of a large slide")
    parser.add_argument("--reads", type=int, default=8000, help="random reads")
    parser.add_argument("--kills", type=int, default=20)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    for name in options.only:
        PARTS[name](options.work, options)


if __name__ == "__main__":
    main()
