"""Which tiles a game or a reader is asked about, in which order: balanced and seeded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeVar

import numpy as np

LAYOUTS = ("single", "pair")
Cell = tuple[str, str]
Item = TypeVar("Item")


class Question(NamedTuple):
    """One question: tile number at the left, and at the right (None for a single tile)."""

    left: int
    right: int | None = None


class TooFewTiles(ValueError):
    """A source and tissue has fewer tiles than a plan needs; the message says which."""


def deal(total: int, items: Sequence[Item], draw: np.random.Generator) -> list[Item]:
    """Return `total` items, each equally often, give or take one; who gets one more is drawn."""
    whole, rest = divmod(total, len(items))
    extra = draw.permutation(len(items))[:rest]
    return [*(item for item in items for _ in range(whole)), *(items[number] for number in extra)]


def deal_cells(
    total: int, sources: Sequence[str], tissues: Sequence[str], draw: np.random.Generator
) -> list[Cell]:
    """Return `total` pairs of source and tissue: sources balanced, tissues balanced within each.

    Remainders of the tissues go round, so that tissues differ by one over all sources as well.
    """
    order = [tissues[number] for number in draw.permutation(len(tissues))]
    dealt = sorted(deal(total, sources, draw))
    return [(source, order[place % len(order)]) for place, source in enumerate(dealt)]


def plan_questions(
    tiles: Mapping[Cell, Sequence[int]],
    total: int,
    layout: str,
    draw: np.random.Generator,
    balance: str = "halves",
) -> list[Question]:
    """Return questions about tiles in random order; no tile appears twice.

    Args:
        tiles: tile numbers of each (source, tissue).
        total: questions.
        layout: "single": one tile; "pair": a real and a generated one of the same tissue.
        draw: decides everything.
        balance: "halves": as many real as generated tiles, so that no habit beats chance;
            "sources": as many of each source.

    Raises:
        TooFewTiles: naming the source and tissue.
    """
    sources = sorted({source for source, _ in tiles})
    tissues = sorted({tissue for _, tissue in tiles})
    fake = [source for source in sources if source != "real"]
    supply = {cell: list(draw.permutation(list(numbers))) for cell, numbers in tiles.items()}

    def take(cell: Cell) -> int:
        if not supply.get(cell):
            raise TooFewTiles(
                f"{cell[1]}, {cell[0]}: {len(tiles.get(cell, ()))} tiles, more are needed for"
                f" {total} questions"
            )
        return int(supply[cell].pop())

    if layout == "pair":
        cells = deal_cells(total, fake, tissues, draw)
        turned = draw.permutation(deal(total, (False, True), draw))
        pairs = [(take(("real", tissue)), take((source, tissue))) for source, tissue in cells]
        questions = [
            Question(*(pair[::-1] if turn else pair))
            for pair, turn in zip(pairs, turned, strict=True)
        ]
    elif balance == "sources":
        questions = [Question(take(cell)) for cell in deal_cells(total, sources, tissues, draw)]
    else:
        real = deal(total, (True, False), draw).count(True)
        cells = deal_cells(real, ["real"], tissues, draw)
        cells += deal_cells(total - real, fake, tissues, draw)
        questions = [Question(take(cell)) for cell in cells]
    return [questions[number] for number in draw.permutation(len(questions))]
