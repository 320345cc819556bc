"""Do FID, KID and coverage move as they should? Real tiles made worse, step by step.

Draws docs/fid_sensitivity.png from the real tiles in shared/data and prints one JSON line per step.

    python3 -m benchmarks.sensitivity --tiles 150
"""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image, ImageFilter

from data.pixels import IMAGE_SUFFIXES, read_image
from metrics.coverage import coverage_metrics
from metrics.features import FeatureExtractor
from metrics.frechet import frechet_distance
from metrics.kernel import polynomial_mmd
from metrics.networks import find_network
from report.style import DPI, look, panels

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT.parent / "shared" / "data"
SHOWN = {"fid": "FID", "kid": "KID x 1000", "coverage": "coverage", "recall": "recall"}


class Pixels:
    """Tiles in memory as a source of features.

    Args:
        name: stands for the tiles in the cache of features.
        tiles: uint8 (H, W, 3) each.
    """

    def __init__(self, name: str, tiles: Sequence[np.ndarray]) -> None:
        self.name, self.tiles = name, tiles

    def identity(self) -> dict[str, Any]:
        """Return the name."""
        return {"name": self.name}

    def read(self, indices: Sequence[int]) -> Any:
        """Yield the tiles of these numbers."""
        return (self.tiles[index] for index in indices)

    def all(self) -> list[tuple[Pixels, int]]:
        """Return every tile as (source, number)."""
        return [(self, index) for index in range(len(self.tiles))]


def blur(pixels: np.ndarray, sigma: float) -> np.ndarray:
    """Return a tile under a Gaussian blur of `sigma` px."""
    return np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(sigma)))


def jpeg(pixels: np.ndarray, quality: float) -> np.ndarray:
    """Return a tile as JPEG of this quality (1 to 95) shows it."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=int(quality))
    return np.asarray(Image.open(buffer).convert("RGB"))


def stain_shift(pixels: np.ndarray, share: float) -> np.ndarray:
    """Return a tile whose optical density is `share` higher in red and lower in blue."""
    density = -np.log((pixels.astype(np.float64) + 1) / 256) * [1 + share, 1, 1 - share]
    return np.clip(np.round(256 * np.exp(-density) - 1), 0, 255).astype(np.uint8)


# name: how a tile is made worse, its steps, and the axis
DEGRADED: dict[str, tuple[Callable[[np.ndarray, float], np.ndarray], list[float], str]] = {
    "blur": (blur, [1, 2, 4], "sigma, px"),
    "JPEG": (jpeg, [60, 30, 10], "quality"),
    "stain shift": (stain_shift, [0.1, 0.2, 0.4], "share of density"),
}


def scores(real: np.ndarray, other: np.ndarray) -> dict[str, float]:
    """Return FID, KID x 1000, coverage and recall of `other` against `real`, features (N, F)."""
    covered = coverage_metrics(real, other)
    return {
        "fid": frechet_distance(real, other),
        "kid": 1000 * polynomial_mmd(real, other),
        "coverage": covered.coverage,
        "recall": covered.recall,
    }


def measure(
    extractor: FeatureExtractor,
    tiles: Sequence[np.ndarray],
    other_tissue: Sequence[np.ndarray],
    steps: int = 3,
) -> dict[str, list[tuple[float, dict[str, float]]]]:
    """Return, per change, (step, scores) from none to the strongest.

    Args:
        extractor: of the features.
        tiles: of one tissue, in random order; half is the real set, half is made worse.
        other_tissue: as many as half of `tiles`.
        steps: how many of each change, the strongest last.
    """
    half = len(tiles) // 2
    name = f"{half}"

    def features(label: str, wanted: Sequence[np.ndarray]) -> np.ndarray:
        return extractor.features(Pixels(f"{name} {label}", wanted).all(), label)

    real, clean = features("real", tiles[:half]), features("clean", tiles[half : 2 * half])
    other = features("other tissue", other_tissue[:half])
    none = scores(real, clean)
    found: dict[str, list[tuple[float, dict[str, float]]]] = {}
    for change, (worsen, levels, _) in DEGRADED.items():
        found[change] = [(np.nan, none)]
        for level in levels[-steps:]:
            worse = [worsen(pixels, level) for pixels in tiles[half : 2 * half]]
            found[change].append((level, scores(real, features(f"{change} {level}", worse))))
    shares = [0.25, 0.5, 1.0][-steps:]
    found["tissue mixed in"] = [(0.0, none)]
    # Two modes, of which the generator drops one: both sets hold equally many tiles.
    both = np.concatenate([real[: half // 2], other[: half // 2]])
    rest = np.concatenate([clean[: half // 2], other[half // 2 :]])
    found["mode dropped"] = [(0.0, scores(both, rest))]
    for share in shares:
        count = int(share * half)
        mixed = np.concatenate([clean[count:], other[:count]])
        found["tissue mixed in"].append((share, scores(real, mixed)))
        count = int(share * (half // 2))
        kept = np.concatenate([clean[: half // 2 + count], other[half // 2 + count :]])
        found["mode dropped"].append((share, scores(both, kept)))
    return found


def draw(found: dict[str, list[tuple[float, dict[str, float]]]]) -> Figure:
    """Return the figure: a column for each change, a row for each score."""
    figure, axes = panels(len(SHOWN), len(found), 6.2)
    for column, (change, rows) in zip(axes.T, found.items(), strict=True):
        labels = [f"{level:g}" if level > 0 else "none" for level, _ in rows]
        for axis, (key, label) in zip(column, SHOWN.items(), strict=True):
            axis.plot(range(len(rows)), [values[key] for _, values in rows], marker="o")
            axis.set_xticks(range(len(rows)), labels, fontsize=7)
            axis.margins(x=0.12, y=0.08)
            axis.set_ylim(bottom=min(0, *axis.get_ylim()))
            if key in ("coverage", "recall"):
                axis.set_ylim(-0.04, 1.05)
            if axis in axes[:, 0]:
                axis.set_ylabel(label)
        column[0].set_title(change)
        column[-1].set_xlabel(DEGRADED[change][2] if change in DEGRADED else "share")
    return figure


def real_tiles(folder: str, count: int) -> list[np.ndarray]:
    """Return `count` tiles of a folder of shared/data, drawn at random."""
    paths = sorted(
        path for path in (DATA / folder).rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES
    )
    order = np.random.default_rng(0).permutation(len(paths))[:count]
    return [read_image(paths[number]) for number in order]


def main(argv: list[str] | None = None) -> None:
    """Measure, draw and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiles", type=int, default=150, help="in each set")
    parser.add_argument("--cache", default="fid_results/features")
    parser.add_argument("--output", default=str(ROOT / "docs" / "fid_sensitivity.png"))
    args = parser.parse_args(argv)
    extractor = FeatureExtractor(find_network("inception"), args.cache)
    found = measure(
        extractor,
        real_tiles("matched/her2st/tiles", 2 * args.tiles),
        real_tiles("tiles/colon", args.tiles),
    )
    for change, rows in found.items():
        for level, values in rows:
            step = None if np.isnan(level) else level
            print(json.dumps({"change": change, "step": step, "tiles": args.tiles, **values}))
    with look():
        draw(found).savefig(args.output, dpi=DPI, metadata={"Software": None})


if __name__ == "__main__":
    main()
