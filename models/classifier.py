"""Tile classifiers: a backbone that makes features, and the same linear head on each backbone."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from runtime.errors import UserError

NETWORKS = ("resnet50", "small")
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
FLIPS = 4


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
