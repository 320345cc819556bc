"""What the pages of a running quiz share."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
from flask import abort, current_app, request, url_for

from quiz.config import QuizConfig
from quiz.guard import Guard, Limit
from quiz.plan import LAYOUTS, Cell, Question, TooFewTiles, plan_questions
from quiz.store import Session, Store


class Quiz:
    """A store, its tiles in memory, the settings and the texts.

    Attributes:
        tiles: source, tissue and file name by tile number.
        pngs: the PNG file of each tile, all equally long.
        cells: tile numbers by (source, tissue).
        lengths: the game lengths that the tiles suffice for.
    """

    def __init__(self, store: Store, config: QuizConfig, texts: dict[str, Any]) -> None:
        self.store, self.config, self.texts = store, config, texts
        self.guard = Guard(store.secret, config.https_only)
        self.starts = Limit(config.starts_per_minute)
        self.tries = Limit(config.admin_tries_per_minute)
        found = store.tiles()
        self.tiles = {number: tile[:3] for number, tile in found.items()}
        self.pngs = {number: tile[3] for number, tile in found.items()}
        self.cells: dict[Cell, list[int]] = defaultdict(list)
        for number, (source, tissue, _) in self.tiles.items():
            self.cells[source, tissue].append(number)
        self.lengths = [count for count in config.question_counts if self._enough(count)]

    def _enough(self, count: int) -> bool:
        try:
            for layout in LAYOUTS:
                plan_questions(self.cells, count, layout, np.random.default_rng(0))
        except TooFewTiles:
            return False
        return True

    @property
    def admin_token(self) -> str:
        """The token that opens the admin page, the same as long as the store exists."""
        return self.guard.sign("admin")

    def invitation(self, session: Session) -> str:
        """Return a reader's personal link."""
        token = self.guard.sign("reader", session.settings["invitation"])
        scheme = "https" if self.config.https_only else None
        return url_for("study.enter", token=token, _external=True, _scheme=scheme)

    def plan_study(self) -> list[Question]:
        """Return the tiles of the study in their order, the same for every reader.

        Raises:
            TooFewTiles: naming the source and tissue.
        """
        study = self.config.study
        draw = np.random.default_rng(study.seed)
        return plan_questions(self.cells, study.questions, "single", draw, study.balance)


def current_quiz() -> Quiz:
    """Return the quiz that the current request is for."""
    return current_app.extensions["quiz"]


def form_position(session: Session) -> int:
    """Return the position of the question that a form answers, the next one or an earlier one.

    A form of another session, or of a question that is not there yet, is refused.
    """
    text = request.form.get("position", "")
    if not (text.isascii() and text.isdigit() and len(text) < 6):
        abort(400, "no question's number")
    if request.form.get("share") != session.share:
        abort(409, "an answer to another session")
    position = int(text)
    if position > session.position or position >= session.questions:
        abort(409, "an answer out of order")
    return position
