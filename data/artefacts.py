"""What a slide shows that is no sharp tissue: marker ink, folds, blur."""

from __future__ import annotations

import numpy as np
from PIL import Image
from scipy import ndimage

# Hue ranges of marker ink in degrees and the saturation from which a pixel counts. Haematoxylin
# lies at 240 degrees and above, eosin and blood beyond; red ink has the colour of blood.
INKS = (("green", 75, 190, 0.15), ("blue", 190, 232, 0.45))
# Folds: robust standard deviations above the tissue's median, over an area that cells do not fill.
FOLD_DEVIATIONS = 3.0
FOLD_AREA_UM2 = 2500.0
FOLD_SMOOTHING_UM = 24.0
MAD_TO_DEVIATION = 1.4826
# Crete et al. 2007: side of the box that blurs a picture for comparison.
REBLUR_PX = 11


def ink_mask(pixels: np.ndarray) -> np.ndarray:
    """Return where green or blue marker ink is, bool (H, W), in uint8 RGB pixels (H, W, 3).

    Darker ink is no tissue by the published mask already, which wants R, G and B above 50.
    """
    hue, saturation, _ = np.moveaxis(np.asarray(Image.fromarray(pixels).convert("HSV")), 2, 0)
    ink = np.zeros(hue.shape, bool)
    for _, first, last, least in INKS:
        within = (hue >= first * 255 / 360) & (hue < last * 255 / 360)
        ink |= within & (saturation >= least * 255)
    return ink


def fold_mask(pixels: np.ndarray, tissue: np.ndarray, mpp: float) -> np.ndarray:
    """Return where the tissue lies double, bool (H, W).

    A fold is darker and more saturated than the tissue around it: saturation minus value (HSV),
    averaged over 24 um, lies 3 robust standard deviations above the tissue's median, over at least
    2500 um2. Folds of lung, whose septa are thinner than that average, are mostly missed.

    Args:
        pixels: the slide's overview, uint8 RGB (H, W, 3).
        tissue: its tissue mask, bool (H, W).
        mpp: its resolution, um/px.

    Source: Palokangas et al. 2007 for saturation against intensity; the limits were set here on
        simulated sections with and without folds and on two real slides without.
    """
    if not tissue.any():
        return np.zeros_like(tissue)
    hsv = np.asarray(Image.fromarray(pixels).convert("HSV"), np.float32) / 255
    side = max(1, round(FOLD_SMOOTHING_UM / mpp))
    share = ndimage.uniform_filter(tissue.astype(np.float32), side, mode="constant")
    darkness = ndimage.uniform_filter((hsv[..., 1] - hsv[..., 2]) * tissue, side, mode="constant")
    darkness /= np.maximum(share, 1 / side**2)
    median = np.median(darkness[tissue])
    deviation = MAD_TO_DEVIATION * np.median(np.abs(darkness[tissue] - median))
    dark = tissue & (darkness > median + FOLD_DEVIATIONS * deviation)
    labels, count = ndimage.label(dark)
    sizes = np.bincount(labels.ravel(), minlength=count + 1) * mpp**2
    sizes[0] = 0
    return (sizes >= FOLD_AREA_UM2)[labels]


def blur_of(pixels: np.ndarray) -> float:
    """Return how blurred a tile is, 0 (sharp) to 1, whatever its contrast.

    The picture is blurred once more with a box of 11 px: where that takes away little of the
    differences between neighbouring pixels, the picture was blurred before. The worse of the two
    axes counts; a tile without any difference is blurred.

    Args:
        pixels: uint8 RGB (H, W, 3).

    Source: Crete, Dolmiere, Ladret and Nicolas 2007, "The blur effect", equations 1 to 8.
    """
    grey = np.asarray(Image.fromarray(pixels).convert("L"), np.float32)
    worst = 0.0
    for axis in (0, 1):
        again = ndimage.uniform_filter1d(grey, REBLUR_PX, axis=axis, mode="nearest")
        sharp = np.abs(np.diff(grey, axis=axis))
        lost = np.maximum(sharp - np.abs(np.diff(again, axis=axis)), 0)
        total = float(sharp.sum())
        worst = max(worst, (total - float(lost.sum())) / total if total else 1.0)
    return worst
