"""From stored answers to the export table and the numbers of the study."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from typing import Any

import numpy as np
import pandas as pd

from quiz import statistics
from quiz.config import StudyConfig
from quiz.store import Store

POINTS = 5  # of the confidence scale
COLUMNS = [
    "kind", "name", "session", "question", "layout", "tile", "source", "tissue", "file",
    "other_tile", "other_source", "other_file", "answer", "correct", "seconds", "shows", "answered",
]  # fmt: skip


def answer_table(
    store: Store, tiles: Mapping[int, tuple[str, str, str]], scales: Sequence[str] = ()
) -> pd.DataFrame:
    """Return one row per stored answer.

    Args:
        store: the quiz's.
        tiles: source, tissue and file name by tile number.
        scales: keys of the study's rating scales, a column each.

    Returns:
        Columns `COLUMNS` and the scales. `answer`: "real" or "generated", "left" or "right" (the
        side said to be real), "timeout", or 1 (surely generated) to 5 (surely real) in the study.
        `tile` is the single or the left tile, `other_tile` the right one of a pair; `seconds` from
        the last time the question was shown (study) or the first (play); `shows` counts those.
        `correct` is empty in the study.
    """
    rows = []
    for row in store.answers():
        left, right = row["left_tile"], row["right_tile"]
        one, two = tiles[left], tiles[right] if right else ("", "", "")
        ratings = json.loads(row["ratings"])
        when = datetime.fromtimestamp(row["answered"], timezone.utc)
        rows.append(
            [
                row["kind"], row["name"], row["session_id"], row["position"] + 1,
                "pair" if right else "single", left, *one, right, two[0], two[2], row["choice"],
                row["correct"], round(row["seconds"], 3), row["shows"],
                when.isoformat(timespec="milliseconds"), *(ratings.get(key) for key in scales),
            ]
        )  # fmt: skip
    frame = pd.DataFrame(rows, columns=[*COLUMNS, *scales])
    whole = ["other_tile", "correct", *scales]
    return frame.astype(dict.fromkeys(whole, "Int64"))


def study_numbers(answers: pd.DataFrame, study: StudyConfig) -> dict[str, Any]:
    """Return the study's statistics as plain values; undefined ones are None.

    Args:
        answers: `answer_table`, of which the rows of the study are used.
        study: its settings.

    Returns:
        `readers` and `pooled` (all answers) and `mean_reader` (mean confidence per tile, over the
        tiles that every reader has rated): AUC of real against generated with interval and p, and
        ROC points; `sources`: the same AUC against each generated source alone, with Holm's p;
        `cells`: source x tissue; `agreement`: between readers; `scales`: ratings by source.
    """
    frame = answers[answers.kind == "study"].copy()
    frame["confidence"] = frame.answer.astype(int)
    frame["real"] = frame.source == "real"
    names = sorted(frame.name.unique())
    per_tile = frame.pivot_table(index="tile", columns="name", values="confidence").dropna()
    truth = frame.drop_duplicates("tile").set_index("tile").real
    numbers = {
        "title": study.title,
        "answers": len(frame),
        "readers": [{"name": name, **_discrimination(frame[frame.name == name])} for name in names],
        "pooled": _discrimination(frame),
        "mean_reader": _curve(truth.loc[per_tile.index], per_tile.mean(axis=1)),
        "sources": _source_rows(frame),
        "cells": _cell_rows(frame),
        "agreement": _agreement(per_tile),
        "scales": _scale_rows(frame, study),
    }
    return _plain(numbers)


def play_cells(answers: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the visitors' right answers by tissue and generated source (or real, single tiles).

    A pair counts for its generated tile's source.
    """
    frame = answers[answers.kind == "play"].copy()
    frame["about"] = frame.source.where(
        (frame.source != "real") | (frame.layout == "single"), frame.other_source
    )
    rows = []
    for (layout, about, tissue), part in frame.groupby(["layout", "about", "tissue"]):
        share = statistics.exact_share(int(part.correct.sum()), len(part))
        rows.append({"layout": layout, "source": about, "tissue": tissue, **share._asdict()})
    return _plain(rows)


def _curve(truth: pd.Series, score: pd.Series) -> dict[str, Any]:
    both = truth.nunique() == 2
    points = statistics.roc_points(truth.astype(bool), score) if both else []
    return {**statistics.auc(truth, score)._asdict(), "roc": points}


def _discrimination(part: pd.DataFrame) -> dict[str, Any]:
    decided = part[part.confidence != (POINTS + 1) // 2]
    right = int(((decided.confidence > POINTS / 2) == decided.real).sum())
    share = statistics.exact_share(right, len(decided))
    return {
        **_curve(part.real, part.confidence),
        "answers": len(part),
        "decided": share._asdict(),
        "decided_p": statistics.chance_p(right, len(decided)),
        "median_seconds": part.seconds.median(),
    }


def _source_rows(frame: pd.DataFrame) -> list[dict[str, Any]]:
    rows = []
    for source in sorted(set(frame.source) - {"real"}):
        part = frame[frame.real | (frame.source == source)]
        mean = part.groupby("tile").agg(real=("real", "first"), confidence=("confidence", "mean"))
        rows.append({"source": source, "answers": len(part), **_curve(mean.real, mean.confidence)})
    for row, p in zip(rows, statistics.holm([row["p"] for row in rows]), strict=True):
        row["p_holm"] = p
    return rows


def _cell_rows(frame: pd.DataFrame) -> list[dict[str, Any]]:
    rows = []
    for (source, tissue), part in frame.groupby(["source", "tissue"]):
        called = statistics.exact_share(int((part.confidence > POINTS / 2 + 0.5).sum()), len(part))
        rows.append(
            {
                "source": source,
                "tissue": tissue,
                "tiles": part.tile.nunique(),
                "mean_confidence": part.confidence.mean(),
                "called_real": called._asdict(),
                "median_seconds": part.seconds.median(),
            }
        )
    return rows


def _agreement(per_tile: pd.DataFrame) -> dict[str, Any]:
    ratings = per_tile.astype(int)
    pairs = [
        {
            "one": one,
            "other": other,
            "weighted_kappa": statistics.weighted_kappa(ratings[one], ratings[other], POINTS),
        }
        for one, other in itertools.combinations(ratings.columns, 2)
    ]
    fleiss = np.nan
    if ratings.shape[1] > 1:
        calls = ratings > POINTS / 2 + 0.5
        fleiss = statistics.fleiss_kappa(
            np.stack([calls.sum(axis=1), (~calls).sum(axis=1)], axis=1)
        )
    return {"tiles": len(ratings), "pairs": pairs, "fleiss_kappa_called_real": fleiss}


def _scale_rows(frame: pd.DataFrame, study: StudyConfig) -> list[dict[str, Any]]:
    rows = []
    for scale in study.scales:
        means = frame.groupby(["tile", "source"])[scale.key].mean().astype(float).reset_index()
        real = means[means.source == "real"][scale.key]
        for source in sorted(set(frame.source)):
            own = means[means.source == source][scale.key]
            p = np.nan if source == "real" else statistics.rank_difference_p(real, own)
            rows.append({"scale": scale.key, "source": source, "mean": own.mean(), "p": p})
    for row, p in zip(rows, statistics.holm([row["p"] for row in rows]), strict=True):
        row["p_holm"] = p
    return rows


def _plain(value: Any) -> Any:
    """Return numbers, lists and dicts as JSON holds them; NaN becomes None."""
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    if isinstance(value, (float, np.floating)):
        return None if np.isnan(value) else float(value)
    return int(value) if isinstance(value, np.integer) else value
