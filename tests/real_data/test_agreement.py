"""On real tiles the distances agree with torch-fidelity, and move as they should."""

import numpy as np
import pytest

from benchmarks.peers import features_in_batches, torch_fidelity_inception
from benchmarks.sensitivity import DATA, Pixels, measure, real_tiles
from metrics.features import FeatureExtractor
from metrics.frechet import frechet_distance
from metrics.networks import find_network

pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason="no shared real tiles")


def test_pixels_to_distance_equals_torch_fidelity_with_the_same_weights(tmp_path):
    sides = [real_tiles("matched/her2st/tiles", 6), real_tiles("tiles/colon", 6)]
    peer = torch_fidelity_inception(tmp_path)
    theirs = [features_in_batches(peer, tiles, 2) for tiles in sides]
    extractor = FeatureExtractor(find_network("inception"), tmp_path / "cache")
    ours = [
        extractor.features(Pixels(name, tiles).all())
        for name, tiles in zip("ab", sides, strict=True)
    ]
    for rows, expected in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(rows, expected, rtol=1e-3, atol=1e-4)
    assert frechet_distance(*ours) == pytest.approx(frechet_distance(*theirs), rel=1e-4)


def test_every_score_moves_as_it_should_when_tiles_get_worse(tmp_path):
    extractor = FeatureExtractor(find_network("inception"), tmp_path)
    found = measure(
        extractor,
        real_tiles("matched/her2st/tiles", 48),
        real_tiles("tiles/colon", 24),
        steps=1,
    )
    for change, ((_, before), (_, after)) in found.items():
        assert after["fid"] > 1.1 * before["fid"], change
        assert after["kid"] > before["kid"], change
        assert after["coverage"] < before["coverage"], change
