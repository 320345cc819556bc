"""Runs are summarised over seeds and trainings; the closest pairs and results read in words."""

import numpy as np
import pytest

from metrics.evaluation import combine_runs, copying_of
from report.evaluation import closest_pairs, result_lines, table_frame


def run_of(checkpoint, values):
    """A result as fid.py makes it, of one FID per draw."""
    return {
        "sets": [{"label": "real"}, {"label": "GAN", "checkpoint_sha256": checkpoint}],
        **{
            name: {"draws": values, "mean": float(np.mean(values)), "sd": float(np.std(values))}
            for name in ("fid", "kid", "precision", "recall", "density", "coverage")
        },
        "tiles": [9, 9],
        "real_real_floor": None,
        "network": {
            "network": "n", "file": "f", "weights_sha256": "0" * 64, "px": 299, "resize": "r",
        },
        "notes": [],
    }  # fmt: skip


def test_one_training_each_is_compared_draw_by_draw():
    own, other = run_of("a", [10.0, 30.0, 20.0]), run_of("b", [9.0, 29.1, 18.9])
    found = combine_runs([own], [other], ["b.model"], replicated=False)
    assert found["against"]["fid"]["difference"] == pytest.approx(1)
    assert found["against"]["fid"]["paired"]
    assert found["against"]["fid"]["larger_than_noise"]
    assert "larger than the noise of the draws" in "\n".join(result_lines(found))


def test_several_trainings_are_one_value_each_whatever_the_seeds():
    own = [run_of(name, [level] * 3) for name, level in (("a", 10), ("a", 12), ("b", 20))]
    other = [run_of(name, [level] * 3) for name, level in (("c", 9), ("d", 19))]
    found = combine_runs(own, other, ["c", "d"], replicated=True)
    assert found["over_runs"]["fid"]["draws"] == [10, 12, 20]
    assert found["against"]["fid"]["difference"] == pytest.approx((11 + 20) / 2 - 14)
    assert not found["against"]["fid"]["paired"]
    assert not found["against"]["fid"]["larger_than_noise"]
    assert "within the noise of training" in "\n".join(result_lines(found))


def test_a_score_that_a_run_lacks_is_left_out():
    own, other = run_of("a", [1.0, 2.0]), run_of("b", [1.0, 2.0]) | {"recall": None}
    found = combine_runs([own], [other], ["b"], replicated=False)
    assert "recall" not in found["over_runs"]
    assert "recall" not in found["against"]


def test_table_keeps_full_precision_and_empty_places():
    frame = table_frame([run_of("a", [1 / 3]) | {"precision": None}])
    assert frame.fid[0] == 1 / 3
    assert np.isnan(frame.precision[0])
    assert np.isnan(frame.floor_fid[0])


def test_a_training_tile_is_shown_once_among_the_closest_pairs():
    rows = {"generated tiles": np.array([[0.1], [0.2], [5.3], [9.0]])}
    rows |= {"training tiles": np.array([[0.0], [5.0], [7.0]]), "held-out tiles": np.zeros((2, 1))}

    class Extractor:
        def features(self, tiles, label):
            return rows[label]

    _, pairs = copying_of(Extractor(), [], [], [], seed=1)
    assert [pair[:2] for pair in pairs] == [(0, 0), (2, 1), (3, 2)]
    assert [pair[2] for pair in pairs] == pytest.approx([0.1, 0.3, 2.0])


def test_sheet_has_a_column_for_every_pair():
    tile = np.zeros((8, 8, 3), np.uint8)
    figure = closest_pairs([[tile, tile]] * 3, [0.1, 0.2, 0.3])
    assert sum(len(axis.images) for axis in figure.axes) == 6
    assert [axis.get_title() for axis in figure.axes[:4]] == ["0.10", "0.20", "0.30", ""]
