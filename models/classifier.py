"""Tile classifiers: a backbone that makes features, and the same linear head on each backbone."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from runtime.device import autocast
from runtime.errors import UserError
from runtime.seeds import torch_generator

NETWORKS = ("resnet50", "small")
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
FLIPS = 4
PREDICTION_BATCH = 64
WEIGHT_DECAY = 0.01  # of AdamW, torch's default
WARM_UP = 0.1  # share of the steps
# Gives images (n, 3, H, W), or a frozen backbone's features (n, F), of rows (n,) under flips (n,).
Batch = Callable[[Tensor, Tensor], Tensor]


class Recipe(NamedTuple):
    """How a classifier is trained."""

    num_epochs: int
    batch_size: int
    lr: float
    bfloat16: bool


class TileClassifier(nn.Module):
    """Classifier of H&E tiles: images to logits.

    Args:
        network: "resnet50" (torchvision's architecture without its last layer, F = 2048) or "small"
            (four strided convolutions, F = 128; for CPUs and tiles of 32 to 128 px).
        classes: number of classes K, at least 2.

    Source: ResNet-50 (He et al. 2016) as in the published toy classifier; the small one is ours.
    """

    def __init__(self, network: str, classes: int) -> None:
        super().__init__()
        self.backbone, features = _resnet50() if network == "resnet50" else _small()
        self.head = nn.Linear(features, classes)
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(3, 1, 1), persistent=False)

    def features(self, images: Tensor) -> Tensor:
        """Return features (N, F) of images (N, 3, H, W) in [-1, 1]."""
        normalised = ((images + 1) / 2 - self.mean) / self.std
        return self.backbone(normalised.contiguous(memory_format=torch.channels_last))  # (N, F)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (N, K) of images (N, 3, H, W) in [-1, 1]."""
        return self.head(self.features(images))  # (N, K)

    def load_backbone(self, state: dict[str, Tensor], where: object) -> None:
        """Start the backbone from a state dict; the head's weights in it are left out.

        Args:
            state: of torchvision's ResNet-50, or of a TileClassifier.
            where: names the file in the error.

        Raises:
            UserError: the weights are of another network.
        """
        backbone = {
            name.removeprefix("backbone."): value
            for name, value in state.items()
            if not name.startswith(("fc.", "head."))
        }
        try:
            self.backbone.load_state_dict(backbone)
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:160]
            raise UserError(f"{where}: weights of another network ({reason})") from error


def train_classifier(
    network: nn.Module,
    inputs: Batch,
    targets: Tensor,
    rows: Tensor,
    recipe: Recipe,
    position: tuple[int | str, ...],
    after_epoch: Callable[[], object],
) -> None:
    """Train `network` on rows of the inputs: AdamW, warm-up and one cosine, random flips.

    Args:
        network: inputs to logits.
        inputs, targets: of all rows; targets are class numbers (N,).
        rows: to train on, at least two.
        recipe: epochs, batch size, peak learning rate.
        position: seed and place of this training in the run, for order and flips.
        after_epoch: called after each.

    Raises:
        UserError: the loss is not finite.
    """
    device = next(network.parameters()).device
    # A last batch of one image is left out: batch normalisation needs two.
    batches = [part for part in torch.arange(len(rows)).split(recipe.batch_size) if len(part) > 1]
    optimizer = torch.optim.AdamW(network.parameters(), lr=recipe.lr, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.lr, total_steps=recipe.num_epochs * len(batches), pct_start=WARM_UP
    )
    network.train()
    for epoch in range(recipe.num_epochs):
        generator = torch_generator(*position, "epoch", epoch)
        order = rows[torch.randperm(len(rows), generator=generator)]
        flips = torch.randint(FLIPS, (len(rows),), generator=generator)
        for part in batches:
            with autocast(device, recipe.bfloat16):
                logits = network(inputs(order[part], flips[part]).to(device))  # (n, K)
            loss = nn.functional.cross_entropy(logits.float(), targets[order[part]].to(device))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
        if not math.isfinite(loss.item()):
            raise UserError(f"epoch {epoch + 1}: the loss is not finite; lower --lr")
        after_epoch()


@torch.inference_mode()
def predict(network: nn.Module, inputs: Batch, rows: Tensor) -> np.ndarray:
    """Return class probabilities (len(rows), K) of unflipped inputs."""
    device = next(network.parameters()).device
    network.eval()
    parts = [
        network(inputs(part, torch.zeros_like(part)).to(device)).softmax(dim=1).cpu()
        for part in rows.split(PREDICTION_BATCH)
    ]
    return torch.cat(parts).numpy()


@contextlib.contextmanager
def few_threads(network: str) -> Iterator[None]:
    """Run the small network on one CPU thread inside this context.

    Its layers are too small to share: a second thread gains nothing, and on a busy machine the two
    wait for each other (measured: 10 times slower). One thread also gives the same sums everywhere.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1 if network == "small" else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def flip_images(images: Tensor, flips: Tensor) -> Tensor:
    """Return images (N, C, H, W), mirrored left-right by bit 0 of flips (N,), up-down by bit 1."""
    bits = flips.view(-1, 1, 1, 1)
    images = torch.where(bits % 2 == 1, images.flip(3), images)
    return torch.where(bits >= 2, images.flip(2), images)


def _resnet50() -> tuple[nn.Module, int]:
    # Imported here because it doubles the start-up time of a run with the small network.
    from torchvision.models import resnet50

    network = resnet50(weights=None)
    features = network.fc.in_features
    network.fc = nn.Identity()
    return network, features


def _small() -> tuple[nn.Module, int]:
    widths = (3, 16, 32, 64, 128)
    layers: list[nn.Module] = []
    for inputs, outputs in zip(widths, widths[1:], strict=False):
        layers += [
            nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False),  # H, W halved
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
        ]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()), widths[-1]
