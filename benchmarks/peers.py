"""Independent implementations, brought to the weights and inputs that ours has."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torchvision.models import inception_v3

from metrics.networks import find_network


def torch_fidelity_inception(folder: Path) -> nn.Module:
    """Return torch-fidelity's Inception with our weights, read from a file written to `folder`.

    Both list their convolutions in the order of the original graph, so weights go by position.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.jit.load.* is deprecated")
        graph = torch.jit.load(find_network("inception").path, map_location="cpu").state_dict()
    own = [name.removesuffix(".mean") for name in graph if name.endswith(".mean")]
    # torch-fidelity keeps torchvision's names.
    state = inception_v3(
        weights=None, num_classes=1008, aux_logits=False, init_weights=False
    ).state_dict()
    theirs = [name.removesuffix(".conv.weight") for name in state if name.endswith(".conv.weight")]
    for ours, name in zip(own, theirs, strict=True):
        state[f"{name}.conv.weight"] = graph[f"{ours}.weight"]
        state[f"{name}.bn.weight"] = torch.ones_like(graph[f"{ours}.mean"])
        for key, part in (("beta", "bias"), ("mean", "running_mean"), ("var", "running_var")):
            state[f"{name}.bn.{part}"] = graph[f"{ours}.{key}"]
    path = folder / "inception.pth"
    torch.save(state, path)
    return FeatureExtractorInceptionV3("inception", ["2048"], str(path))


@torch.inference_mode()
def features_in_batches(
    network: nn.Module, tiles: Sequence[np.ndarray], size: int, device: str = "cpu"
) -> np.ndarray:
    """Return float32 (N, 2048) of uint8 tiles (H, W, 3), `size` at a time, where the network is."""
    rows = [
        network(torch.from_numpy(np.stack(tiles[k : k + size])).permute(0, 3, 1, 2).to(device))[0]
        for k in range(0, len(tiles), size)
    ]
    return torch.cat(rows).cpu().numpy()
