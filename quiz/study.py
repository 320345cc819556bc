"""The reader study: invitation, tiles one after the other, pause. Nothing tells what is real."""

from __future__ import annotations

import json
import time

from flask import Blueprint, abort, redirect, render_template, request, url_for
from werkzeug.wrappers import Response as Reply

from quiz.context import Quiz, current_quiz, form_position
from quiz.guard import YEAR_S, owner_of
from quiz.results import POINTS
from quiz.store import Session

study_pages = Blueprint("study", __name__, url_prefix="/study")


@study_pages.get("/<token>")
def enter(token: str) -> Reply:
    """Let a reader in by the invitation link, on any device."""
    quiz, address = current_quiz(), request.remote_addr or ""
    if quiz.tries.reached(address):
        abort(429, "too many wrong invitations")
    if quiz.store.session("owner", owner_of(token), "study") is None:
        quiz.tries.note(address)
        abort(404, "no such invitation")
    reply = redirect(url_for("study.welcome"), 303)
    quiz.guard.set_cookie(reply, "reader", token, YEAR_S)
    return reply


@study_pages.get("")
def welcome() -> str:
    """Say what the study is, or how far the reader is."""
    quiz = current_quiz()
    session = _reader(quiz)
    return render_template("study_welcome.html", session=session, link=quiz.invitation(session))


@study_pages.get("/tile")
def question() -> str | Reply:
    """Show the reader's next tile."""
    quiz = current_quiz()
    session = _reader(quiz)
    if session.finished:
        return redirect(url_for("study.welcome"), 303)
    quiz.store.show(session, session.position)
    row = quiz.store.question(session, session.position)
    return render_template("study_question.html", session=session, row=row)


@study_pages.post("/tile")
def answer() -> Reply:
    """Take the ratings of a tile; the same again changes nothing, other ones are refused."""
    quiz = current_quiz()
    session = _reader(quiz)
    choice = str(_rating("confidence", POINTS))
    ratings = {
        scale.key: _rating(f"scale_{scale.key}", len(scale.labels))
        for scale in quiz.config.study.scales
    }
    position = form_position(session)
    row = quiz.store.question(session, position)
    if row["last_shown"] is None:
        abort(409, "an answer to a tile not shown")
    seconds = time.time() - row["last_shown"]
    stored = position == session.position and quiz.store.answer(
        session, position, choice, ratings, None, seconds
    )
    if not stored:
        row = quiz.store.question(session, position)
        if (row["choice"], json.loads(row["ratings"])) != (choice, ratings):
            abort(409, "another answer to an answered tile")
    if request.form.get("then") == "pause":
        return redirect(url_for("study.welcome"), 303)
    return redirect(url_for("study.question"), 303)


@study_pages.post("/leave")
def leave() -> Reply:
    """Forget the reader on this device; the link lets in again."""
    reply = redirect(url_for("play.start"), 303)
    reply.delete_cookie("reader")
    return reply


def _reader(quiz: Quiz) -> Session:
    token = request.cookies.get("reader", "")
    session = quiz.store.session("owner", owner_of(token), "study")
    if session is None:
        abort(403, "forged invitation" if token else "no invitation")
    return session


def _rating(field: str, points: int) -> int:
    text = request.form.get(field, "")
    if text not in {str(point) for point in range(1, points + 1)}:
        abort(422, "a rating is missing or not on its scale")
    return int(text)
