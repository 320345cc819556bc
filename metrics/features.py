"""Features of tiles by a network, each tile computed once and kept."""

from __future__ import annotations

import copy
import hashlib
import json
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from metrics.inception import FIDInception
from metrics.networks import NetworkFile, load_network, prepare_images
from runtime.device import autocast
from runtime.dry_run import seconds_per_unit
from runtime.errors import UserError
from runtime.files import atomic_path

BATCH_SIZE = 16  # fastest of 2 to 32 on two cores
SAVE_EVERY = 512  # tiles between writes to the cache
CACHE_FORMAT = "rna-gan-features/1"


class TileSource(Protocol):
    """A numbered set of tiles; tile k is the same whenever it is asked for."""

    def identity(self) -> Mapping[str, Any]:
        """Return plain values that change whenever any tile would."""

    def read(self, indices: Sequence[int]) -> Iterator[np.ndarray]:
        """Yield pixels uint8 (H, W, 3) of the tiles of these numbers, in their order."""


class FeatureCost(NamedTuple):
    """Tiles not kept yet, width of a row of features, seconds, bytes in the cache."""

    tiles: int
    width: int
    seconds: float
    disk_bytes: int


class FeatureExtractor:
    """Features of tiles by one network, each tile computed once and kept in a folder.

    The network is loaded when the first tile is missing from the folder.

    Args:
        network: from `find_network`.
        cache: folder of the kept features, one .npz per tile source; made when needed.
        device: where the network runs.
        batch_size: tiles per call of the network; halved where a GPU's memory does not hold it.
        bfloat16: run the network in bfloat16 autocast: several times faster where the hardware
            multiplies in it, and no longer the same numbers; kept apart in the cache.
    """

    def __init__(
        self,
        network: NetworkFile,
        cache: str | Path,
        device: torch.device | str = "cpu",
        batch_size: int = BATCH_SIZE,
        bfloat16: bool = False,
    ) -> None:
        self.network, self.cache = network, Path(cache)
        self.device, self.batch_size = torch.device(device), batch_size
        self.bfloat16 = bfloat16
        self._module: nn.Module | None = None

    def identity(self) -> dict[str, Any]:
        """Return the network's identity, with the precision where that is not float32."""
        precision = {"precision": "bfloat16"} if self.bfloat16 else {}
        return self.network.identity() | precision

    def features(
        self, tiles: Sequence[tuple[TileSource, int]], label: str = "features"
    ) -> np.ndarray:
        """Return float32 (N, F), one row for each (source, tile number), in their order.

        `label` names the progress bar.

        Raises:
            UserError: a tile cannot be read, or tiles differ in size.
        """
        sources: dict[int, TileSource] = {id(source): source for source, _ in tiles}
        wanted: dict[int, set[int]] = {key: set() for key in sources}
        for source, index in tiles:
            wanted[id(source)].add(index)
        known = {key: self._load(source) for key, source in sources.items()}
        missing = [
            (key, index)
            for key, indices in wanted.items()
            for index in sorted(indices - known[key].keys())
        ]
        with tqdm(total=len(missing), unit="tile", desc=label, disable=not missing) as bar:
            for start in range(0, len(missing), SAVE_EVERY):
                part = missing[start : start + SAVE_EVERY]
                for (key, index), row in zip(part, self._compute(part, sources, bar), strict=True):
                    known[key][index] = row
                for key in {key for key, _ in part}:
                    self._save(sources[key], known[key])
        return np.stack([known[id(source)][index] for source, index in tiles])

    def cost(self, tiles: Sequence[tuple[TileSource, int]]) -> FeatureCost:
        """Return what `features` of tiles would take, from two batches of them; nothing is kept."""
        files = {id(source): self._file(source) for source, _ in tiles}
        distinct = {(files[id(source)], index): source for source, index in tiles}
        of_file = {file: source for (file, _), source in distinct.items()}
        known = {file: self._load(source).keys() for file, source in of_file.items()}
        missing = [
            (source, index)
            for (file, index), source in distinct.items()
            if index not in known[file]
        ]
        if not missing:
            return FeatureCost(0, self.features(tiles[:1]).shape[1], 0.0, 0)
        sample = missing[:: -(-len(missing) // (2 * self.batch_size))]
        trial, widths = copy.copy(self), []

        def work() -> int:
            with tempfile.TemporaryDirectory() as scratch:
                trial.cache = Path(scratch)
                widths.append(trial.features(sample, "trial").shape[1])
            return len(sample)

        seconds = len(missing) * seconds_per_unit(work)
        row = 4 * widths[0] + 8  # bytes: float32, and the tile's number
        return FeatureCost(len(missing), widths[0], seconds, len(missing) * row)

    def _compute(
        self, part: list[tuple[int, int]], sources: dict[int, TileSource], bar: tqdm
    ) -> Iterator[np.ndarray]:
        batch: list[np.ndarray] = []
        shape = None
        for number, pixels in enumerate(_read_in_order(part, sources)):
            shape = shape or pixels.shape
            if pixels.shape != shape:
                raise UserError(f"tiles of {shape} and {pixels.shape} cannot be one set")
            batch.append(pixels)
            if len(batch) == self.batch_size or number == len(part) - 1:
                yield from self._run(np.stack(batch))
                bar.update(len(batch))
                batch = []

    def _run(self, pixels: np.ndarray) -> np.ndarray:
        if self._module is None:
            self._module = load_network(self.network).to(self.device)
            if self.bfloat16 and isinstance(self._module, FIDInception):
                self._module.bfloat16()  # it is nothing but convolutions: no casts at every call
        try:
            return self._forward(pixels)
        except torch.OutOfMemoryError as error:
            if len(pixels) == 1:
                raise UserError(
                    f"{self.device}: no memory for one tile; use --device cpu"
                ) from error
        torch.cuda.empty_cache()
        self.batch_size = (len(pixels) + 1) // 2
        halves = np.array_split(pixels, 2)
        return np.concatenate([self._run(half) for half in halves])

    @torch.inference_mode()
    def _forward(self, pixels: np.ndarray) -> np.ndarray:
        images = prepare_images(torch.from_numpy(pixels).to(self.device), self.network.rule)
        try:
            # TF32 is the default of convolutions on a GPU and would change the features.
            with (
                torch.backends.cudnn.flags(enabled=True, allow_tf32=False),
                autocast(self.device, self.bfloat16),
            ):
                features = self._module(images)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1]
            raise UserError(
                f"{self.network.path}: fails on {tuple(images.shape)} ({reason})"
            ) from error
        if not torch.is_tensor(features) or features.shape[:1] != images.shape[:1]:
            raise UserError(f"{self.network.path}: does not return one row of features per tile")
        if not features.isfinite().all():
            raise UserError(f"{self.network.path}: gave a feature that is not a finite number")
        return features.flatten(1).float().cpu().numpy()

    def _file(self, source: TileSource) -> Path:
        key = [CACHE_FORMAT, source.identity(), self.identity()]
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
        return self.cache / f"{digest[:32]}.npz"

    def _load(self, source: TileSource) -> dict[int, np.ndarray]:
        path = self._file(source)
        if not path.is_file():
            return {}
        try:
            # An own handle: np.load leaves its one open when the file is damaged.
            with open(path, "rb") as handle, np.load(handle, allow_pickle=False) as content:
                return dict(zip(content["indices"].tolist(), content["features"], strict=True))
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise UserError(
                f"{path}: damaged features ({error}); delete it and run again"
            ) from error

    def _save(self, source: TileSource, rows: dict[int, np.ndarray]) -> None:
        indices = sorted(rows)
        with atomic_path(self._file(source)) as temporary:
            np.savez(
                temporary,
                indices=np.array(indices, np.int64),
                features=np.stack([rows[index] for index in indices]),
            )


def _read_in_order(
    part: list[tuple[int, int]], sources: dict[int, TileSource]
) -> Iterator[np.ndarray]:
    by_source: dict[int, list[int]] = {}
    for key, index in part:
        by_source.setdefault(key, []).append(index)
    for key, indices in by_source.items():
        yield from sources[key].read(indices)
