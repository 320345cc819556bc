"""The admin page behind its token: readers, progress, export and the study's numbers."""

from __future__ import annotations

import json
import secrets
import sqlite3
import time

from flask import Blueprint, Response, abort, redirect, render_template, request, url_for
from werkzeug.wrappers import Response as Reply

from quiz.context import Quiz, current_quiz
from quiz.guard import owner_of, same
from quiz.plan import TooFewTiles
from quiz.play import NICKNAME
from quiz.results import answer_table, play_cells, study_numbers
from runtime.run import log

LOGIN_S = 12 * 3600
admin_pages = Blueprint("admin", __name__, url_prefix="/admin")


@admin_pages.get("")
def dashboard() -> str:
    """The login form, or everything about games and the study."""
    quiz = current_quiz()
    if not _logged_in(quiz):
        return render_template("admin_login.html")
    answers = export_table(quiz)
    readers = []
    for session in quiz.store.sessions("study"):
        own = answers[answers.session == session.id]
        last = own.answered.iloc[-1][:16].replace("T", " ") if len(own) else ""
        readers.append({"session": session, "link": quiz.invitation(session), "last": last})
    games = quiz.store.sessions("play")
    return render_template(
        "admin.html",
        quiz=quiz,
        readers=readers,
        games=len(games),
        finished=sum(game.finished is not None for game in games),
        numbers=study_numbers(answers, quiz.config.study),
        cells=play_cells(answers),
    )


@admin_pages.post("/login")
def login() -> Reply:
    """Open the admin page to whoever has its token; wrong ones are counted."""
    quiz, address = current_quiz(), request.remote_addr or ""
    if quiz.tries.reached(address):
        abort(429, "too many wrong admin tokens")
    if not same(request.form.get("token", "").strip(), quiz.admin_token):
        quiz.tries.note(address)
        abort(403, "a wrong admin token")
    reply = redirect(url_for("admin.dashboard"), 303)
    until = str(int(time.time()) + LOGIN_S)
    quiz.guard.set_cookie(reply, "admin", quiz.guard.sealed("admin login", until), LOGIN_S)
    log.info("admin page opened")
    return reply


@admin_pages.post("/logout")
def logout() -> Reply:
    """Close the admin page on this device."""
    reply = redirect(url_for("play.start"), 303)
    reply.delete_cookie("admin")
    return reply


@admin_pages.post("/readers")
def invite() -> Reply:
    """Invite a reader by name."""
    quiz = current_quiz()
    _require_login(quiz)
    name = " ".join(request.form.get("name", "").split())
    if not NICKNAME.fullmatch(name):
        abort(422, "a name with other signs than letters, digits, space and . ' - _")
    invitation = secrets.token_urlsafe(16)
    owner = owner_of(quiz.guard.sign("reader", invitation))
    try:
        plan = quiz.plan_study()
        quiz.store.new_session("study", owner, name, {"invitation": invitation}, plan)
    except sqlite3.IntegrityError:
        abort(409, "a reader of this name exists")
    except TooFewTiles as error:
        abort(409, f"the study needs more tiles: {error}")
    return redirect(url_for("admin.dashboard"), 303)


@admin_pages.get("/answers.csv")
def export() -> Response:
    """Answer with one row per stored answer."""
    quiz = current_quiz()
    _require_login(quiz)
    return _download(export_table(quiz).to_csv(index=False), "text/csv", "answers.csv")


@admin_pages.get("/study.json")
def numbers() -> Response:
    """Answer with the study's numbers, which figures.py draws."""
    quiz = current_quiz()
    _require_login(quiz)
    found = study_numbers(export_table(quiz), quiz.config.study)
    text = json.dumps(found, indent=2, allow_nan=False)
    return _download(text, "application/json", "study.json")


def export_table(quiz: Quiz):
    """Return `answer_table` of the quiz."""
    return answer_table(quiz.store, quiz.tiles, [scale.key for scale in quiz.config.study.scales])


def _download(text: str, mimetype: str, name: str) -> Response:
    headers = {"Content-Disposition": f"attachment; filename={name}", "Cache-Control": "no-store"}
    return Response(text, mimetype=mimetype, headers=headers)


def _logged_in(quiz: Quiz) -> bool:
    until = quiz.guard.unsealed("admin login", request.cookies.get("admin", ""))
    return until is not None and int(until) > time.time()


def _require_login(quiz: Quiz) -> None:
    if not _logged_in(quiz):
        abort(403, "the admin page without its token")
