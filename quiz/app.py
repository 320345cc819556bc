"""The web application: pages put together, errors, and the route of the tiles."""

from __future__ import annotations

import socket
import time

import waitress
from flask import Flask, Response, abort, g, render_template, request
from waitress.server import BaseWSGIServer
from werkzeug.exceptions import HTTPException

from quiz.admin import admin_pages
from quiz.context import Quiz, current_quiz
from quiz.play import play_pages
from quiz.study import study_pages
from runtime.run import log

LARGEST_BODY = 16 << 10  # bytes of a posted form
TILE_CACHE_S = 3600
# Answers wait for the disk one after the other; more threads only make them wait in turn.
THREADS = 8
CONNECTIONS = 2000  # browsers keep theirs open between questions


def create_app(quiz: Quiz) -> Flask:
    """Return the WSGI application of a quiz."""
    app = Flask("quiz", root_path=str(__file__).rpartition("/")[0])
    app.config.update(MAX_CONTENT_LENGTH=LARGEST_BODY, MAX_FORM_PARTS=50)
    app.extensions["quiz"] = quiz
    app.jinja_env.trim_blocks = app.jinja_env.lstrip_blocks = True
    for pages in (play_pages, study_pages, admin_pages):
        app.register_blueprint(pages)
    app.add_url_rule("/tile/<token>", view_func=tile)
    app.before_request(quiz.guard.check_request)
    app.after_request(quiz.guard.finish)
    app.register_error_handler(HTTPException, error_page)

    @app.context_processor
    def shared() -> dict:
        token = quiz.guard.form_token() if g.get("visitor") else ""
        return {"t": quiz.texts, "config": quiz.config, "csrf": token}

    app.add_template_filter(percent)
    app.add_template_filter(p_text)
    app.add_template_filter(when)
    return app


def create_server(app: Flask, listener: socket.socket) -> BaseWSGIServer:
    """Return a server of the application on a bound socket; its `run` serves until interrupted."""
    return waitress.create_server(
        app,
        sockets=[listener],
        threads=THREADS,
        ident=None,
        connection_limit=CONNECTIONS,
        backlog=CONNECTIONS,
        asyncore_use_poll=True,
        max_request_header_size=16 << 10,
        max_request_body_size=64 << 10,
    )


def tile(token: str) -> Response:
    """Answer with the tile behind a random id: same headers and length, whichever it is."""
    quiz = current_quiz()
    number = quiz.store.tile_of(token)
    if number is None:
        abort(404, "no such tile")
    response = Response(quiz.pngs[number], mimetype="image/png")
    response.headers["Cache-Control"] = f"private, max-age={TILE_CACHE_S}"
    return response


def error_page(error: HTTPException) -> tuple[str, int] | Response:
    """Log what was refused, without secrets, and say to the visitor what can be done."""
    code = error.code or 500
    if code < 400:
        return error.get_response()
    rule = request.url_rule.rule if request.url_rule else ascii(request.path[:80])
    why = error.description if code != 404 or request.url_rule else "no such page"
    log.warning("refused %d: %s %s: %s", code, request.method[:10], rule, why)
    texts = current_quiz().texts["errors"]
    text = texts.get(str(code), texts["other"])
    return render_template("error.html", code=code, text=text), code


def percent(share: float | None) -> str:
    """Return a share 0 to 1 as whole percent."""
    return "–" if share is None or share != share else f"{100 * share:.0f} %"


def p_text(p: float | None) -> str:
    """Return a p value with two significant digits; tiny ones as a bound."""
    return "–" if p is None or p != p else "< 0.001" if p < 0.001 else f"{p:.2g}"


def when(seconds: float | None) -> str:
    """Return a time stamp as date and time in UTC."""
    return time.strftime("%Y-%m-%d %H:%M", time.gmtime(seconds)) if seconds else "–"
