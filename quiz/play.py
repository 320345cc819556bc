"""The game: start, questions, feedback, result, card and leaderboard."""

from __future__ import annotations

import functools
import re
import time
from typing import Any

import numpy as np
from flask import Blueprint, Response, abort, g, redirect, render_template, request, url_for
from werkzeug.wrappers import Response as Reply

from quiz import statistics
from quiz.card import result_card
from quiz.context import Quiz, current_quiz, form_position
from quiz.guard import owner_of
from quiz.plan import LAYOUTS, plan_questions
from quiz.store import Session

GRACE_S = 2.0  # for the way to the browser and back, beyond the time limit
NICKNAME = re.compile(r"\w[\w .'-]{0,23}")
CHOICES = {"single": ("real", "generated", "timeout"), "pair": ("left", "right", "timeout")}
play_pages = Blueprint("play", __name__)
exact_share = functools.lru_cache(maxsize=4096)(statistics.exact_share)


@play_pages.get("/")
def start() -> str:
    """The start page."""
    return render_template("start.html", quiz=current_quiz(), layouts=LAYOUTS)


@play_pages.post("/start")
def begin() -> Reply:
    """Begin a game as chosen on the start page."""
    quiz, form = current_quiz(), request.form
    counts = {str(count): count for count in quiz.lengths}
    count, layout = counts.get(form.get("count", "")), form.get("layout")
    feedback = form.get("feedback")
    if count is None or layout not in LAYOUTS or feedback not in ("each", "end"):
        abort(400, "a game that is not offered")
    if quiz.starts.reached(request.remote_addr or ""):
        abort(429, "too many games started")
    quiz.starts.note(request.remote_addr or "")
    limit = quiz.config.time_limit_s if form.get("timed") == "1" else 0
    questions = plan_questions(quiz.cells, count, layout, np.random.default_rng())
    settings = {"layout": layout, "feedback": feedback, "time_limit_s": limit}
    quiz.store.new_session("play", owner_of(g.visitor), "", settings, questions)
    return redirect(url_for("play.question"), 303)


@play_pages.get("/play")
def question() -> str | Reply:
    """Show the next question of the visitor's game."""
    quiz = current_quiz()
    session = _own_game(quiz)
    if session is None:
        return redirect(url_for("play.start"), 303)
    if session.finished:
        return redirect(url_for("play.result", share=session.share), 303)
    row = quiz.store.question(session, session.position)
    limit, left = session.settings["time_limit_s"], None
    if limit:
        left = limit - (time.time() - row["first_shown"] if row["first_shown"] else 0)
    if row["first_shown"] is None:
        quiz.store.show(session, session.position)
    return render_template("question.html", session=session, row=row, limit=limit, left=left)


@play_pages.post("/play")
def answer() -> Reply:
    """Take an answer; the same one again changes nothing, another one is refused."""
    quiz = current_quiz()
    session = _own_game(quiz)
    if session is None:
        abort(403, "an answer without a game")
    choice = request.form.get("choice")
    if choice not in CHOICES[session.settings["layout"]]:
        abort(400, "no such answer")
    position = form_position(session)
    row = quiz.store.question(session, position)
    if row["first_shown"] is None:
        abort(409, "an answer to a question not shown")
    seconds = time.time() - row["first_shown"]
    limit = session.settings["time_limit_s"]
    late = bool(limit) and seconds > limit + GRACE_S
    stored = position == session.position and quiz.store.answer(
        session, position, "timeout" if late else choice, {},
        not late and choice == _truth(quiz, row), seconds,
    )  # fmt: skip
    if not stored and quiz.store.question(session, position)["choice"] not in (choice, "timeout"):
        abort(409, "another answer to an answered question")
    if session.settings["feedback"] == "each":
        return redirect(url_for("play.feedback", number=position + 1), 303)
    return redirect(url_for("play.question"), 303)


@play_pages.get("/play/<int:number>")
def feedback(number: int) -> str | Reply:
    """Say whether an answer was right, in games that tell at once."""
    quiz = current_quiz()
    session = _own_game(quiz)
    if session is None:
        return redirect(url_for("play.start"), 303)
    if session.settings["feedback"] != "each" or not 1 <= number <= session.position:
        abort(404, "feedback not there (yet)")
    row = quiz.store.question(session, number - 1)
    return render_template("feedback.html", session=session, number=number, row=_told(quiz, row))


@play_pages.get("/result/<share>")
def result(share: str) -> str:
    """Show the result of a finished game to whoever has its link."""
    quiz = current_quiz()
    session = _finished(quiz, share)
    rows = [_told(quiz, row) for row in quiz.store.answers(session)]
    own = session.share == getattr(_own_game(quiz), "share", None)
    score = scores(quiz, session, rows)
    return render_template("result.html", session=session, rows=rows, own=own, score=score)


@play_pages.post("/result/<share>")
def nickname(share: str) -> Reply:
    """Put the visitor's own finished game on the leaderboard under a nickname."""
    quiz = current_quiz()
    session = _finished(quiz, share)
    if session.share != getattr(_own_game(quiz), "share", None):
        abort(403, "another visitor's game")
    name = " ".join(request.form.get("nickname", "").split())
    if not NICKNAME.fullmatch(name):
        abort(422, "a nickname with other signs than letters, digits, space and . ' - _")
    quiz.store.rename(session, name)
    return redirect(url_for("play.leaderboard"), 303)


@play_pages.get("/card/<share>.png")
def card(share: str) -> Response:
    """Answer with the picture of a result."""
    quiz = current_quiz()
    session = _finished(quiz, share)
    rows = [_told(quiz, row) for row in quiz.store.answers(session)]
    score = scores(quiz, session, rows)
    png = result_card(quiz.texts["card"], quiz.config.title, session.name, score)
    return Response(png, mimetype="image/png", headers={"Cache-Control": "no-store"})


@play_pages.get("/leaderboard")
def leaderboard() -> str:
    """Show named games by the lower end of their interval, so that long games count for more."""
    quiz = current_quiz()
    named = [
        {**row, "share_id": row["share"], **exact_share(row["correct"], row["questions"])._asdict()}
        for row in map(dict, quiz.store.finished_games())
        if row["name"]
    ]
    named.sort(key=lambda row: (-row["low"], row["seconds"], row["finished"]))
    rows = named[: quiz.config.leaderboard_rows]
    mine = getattr(_own_game(quiz), "share", None)
    return render_template("leaderboard.html", rows=rows, mine=mine)


def scores(quiz: Quiz, session: Session, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the score, per tissue, against chance and against other visitors' games.

    Args:
        rows: the answers as `result` shows them: "correct", "seconds", "tissue".
    """
    hits = sum(row["correct"] for row in rows)
    tissues = {}
    for tissue in sorted({row["tissue"] for row in rows}):
        own = [row["correct"] for row in rows if row["tissue"] == tissue]
        tissues[tissue] = exact_share(sum(own), len(own))
    others = [
        row["correct"] / row["questions"]
        for row in quiz.store.finished_games()
        if row["share"] != session.share
    ]
    total = exact_share(hits, len(rows))
    return {
        "total": total,
        "p": statistics.chance_p(hits, len(rows)),
        "marks": [bool(row["correct"]) for row in rows],
        "seconds": sum(row["seconds"] for row in rows) / len(rows),
        "tissues": tissues,
        "others": len(others),
        "others_mean": float(np.mean(others)) if others else None,
        "below": float(np.mean([other < total.share for other in others])) if others else None,
    }


def _own_game(quiz: Quiz) -> Session | None:
    return quiz.store.session("owner", owner_of(g.visitor), "play")


def _finished(quiz: Quiz, share: str) -> Session:
    session = quiz.store.session("share", share, "play")
    if session is None or not session.finished:
        abort(404, "no such result")
    return session


def _truth(quiz: Quiz, row: Any) -> str:
    left = quiz.tiles[row["left_tile"]][0] == "real"
    if row["right_tile"] is not None:
        return "left" if left else "right"
    return "real" if left else "generated"


def _told(quiz: Quiz, row: Any) -> dict[str, Any]:
    """Return an answered question with what may be told now."""
    right = row["right_tile"]
    return {
        **dict(row),
        "truth": _truth(quiz, row),
        "tissue": quiz.tiles[row["left_tile"]][1],
        "left_source": quiz.tiles[row["left_tile"]][0],
        "right_source": None if right is None else quiz.tiles[right][0],
    }
