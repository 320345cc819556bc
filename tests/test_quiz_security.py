"""Hostile input: refused, logged, nothing leaked, nothing stored."""

import logging
import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from quiz_site import CONFIG, Visitor, make_quiz, play

from quiz.guard import ADDRESSES, Guard, Limit
from quiz.study import study_pages

SCRIPT = "<script>alert(1)</script>"
SQL = "'; DROP TABLE answer; --"
HOSTILE = [
    SCRIPT,
    SQL,
    '" OR 1=1 --',
    "../../etc/passwd",
    "%2e%2e%2f",
    "\x00",
    "\n",
    "=1+1",
    "é" * 99,
]
TEXT = st.one_of(st.sampled_from(HOSTILE), st.text(max_size=40))
PATHS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="#?\\"), max_size=30)


@pytest.fixture
def quiz(tmp_path):
    quiz = make_quiz(tmp_path)
    yield quiz
    quiz.store.close()


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A quiz with a finished game, a reader, and visitors in the middle of both."""
    quiz = make_quiz(tmp_path_factory.mktemp("quiz"))
    done = Visitor(quiz)
    result = play(done, quiz)
    admin = Visitor(quiz)
    admin.get("/admin")
    admin.post("/admin/login", token=quiz.admin_token)
    page = admin.post("/admin/readers", name="Reader")
    link = re.search(r'value="http://localhost(/study/[^"]+)"', page)[1]
    visitor = Visitor(quiz)
    visitor.start()
    visitor.get(link)
    visitor.get("/study/tile")
    yield quiz, visitor, result
    quiz.store.close()


def rules(quiz):
    """Return (path with <places>, method) of every route of the application."""
    app = Visitor(quiz).client.application
    return [
        (rule.rule, method)
        for rule in app.url_map.iter_rules()
        for method in sorted(rule.methods - {"HEAD", "OPTIONS"})
    ]


def test_every_route_answers_hostile_input_without_error_leak_or_change(shared):
    quiz, visitor, result = shared
    routes = rules(quiz)
    assert len(routes) >= 20
    answers = len(quiz.store.answers())
    visitor.get("/play")
    hidden = visitor.hidden()
    names = ["csrf", "choice", "position", "share", "count", "layout", "feedback", "timed"]
    names += ["nickname", "name", "token", "confidence", "scale_staining", "scale_nuclei", "then"]

    @settings(
        max_examples=250, deadline=None, suppress_health_check=[HealthCheck.too_slow], database=None
    )
    @given(
        st.sampled_from(routes), PATHS, st.dictionaries(st.sampled_from(names), TEXT, max_size=8),
        st.booleans(), st.booleans(),
        st.dictionaries(st.sampled_from(["reader", "admin", "visitor"]), TEXT),
    )  # fmt: skip
    def check(route, part, fields, honest, in_turn, cookies):
        path = re.sub(r"<int:\w+>", "1", route[0])
        path = re.sub(r"<(path:)?\w+>", lambda _: part.replace("/", "%2f") or "x", path)
        client = visitor.client if honest else Visitor(quiz).client
        saved = dict(client._cookies)
        for name, value in cookies.items():
            client.set_cookie(name, re.sub(r"[^\x21-\x7e]|[;,\"\\]", "_", value))
        if honest:
            fields = {"csrf": visitor.csrf, **(hidden if in_turn else {}), **fields}
        quiz.tries._events.clear()
        reply = client.open(path, method=route[1], data=fields)
        client._cookies = saved
        text = reply.get_data(as_text=reply.mimetype == "text/html")
        assert reply.status_code < 500, (route, path, fields)
        assert "Content-Security-Policy" in reply.headers
        if isinstance(text, str):
            assert SCRIPT not in text
            for secret in (quiz.admin_token, quiz.store.secret.hex(), "Traceback", "sqlite"):
                assert secret not in text
        if route[0].startswith("/admin/") and route[0] != "/admin/logout":
            assert reply.status_code in (403, 405)

    check()
    assert len(quiz.store.answers()) == answers
    assert "4 of 4 right" in Visitor(quiz).get(result)


@pytest.mark.parametrize(
    "name", [*HOSTILE, "", " ", "x" * 25, "<b>x</b>", "@cmd", "-1", "a\u202eb"]
)
def test_a_hostile_nickname_or_reader_is_refused_and_not_stored(quiz, name):
    visitor = Visitor(quiz)
    address = play(visitor, quiz)
    visitor.post(address, 422, nickname=name)
    assert quiz.store.finished_games()[0]["name"] == ""
    visitor.get("/admin")
    visitor.post("/admin/login", token=quiz.admin_token)
    visitor.post("/admin/readers", 422, name=name)
    assert quiz.store.sessions("study") == []


def test_names_that_people_have_are_accepted_and_escaped_where_shown(quiz):
    for name in ("Ana Öz", "O'Neil-2", "李雷", "Dr. X_1"):
        visitor = Visitor(quiz)
        page = visitor.post(play(visitor, quiz), nickname=name)
        assert name.replace("'", "&#39;") in page


@pytest.mark.parametrize(
    "path",
    ["/static/../texts.json", "/static/%2e%2e/texts.json", "/static/..%2ftexts.json",
     "/tile/../../quiz.sqlite", "/tile/..%2f..%2fquiz.sqlite", "/static//etc/passwd",
     "/card/../quiz.sqlite.png", "/quiz.sqlite", "/static/quiz.js%00"],
)  # fmt: skip
def test_path_traversal_finds_nothing(quiz, path):
    reply = Visitor(quiz).client.get(path, follow_redirects=True)
    assert reply.status_code == 404
    assert b"SQLite format" not in reply.data
    assert b"Some of these H&E" not in reply.data


def test_posts_from_other_sites_or_without_the_form_token_are_refused_and_logged(quiz, caplog):
    visitor = Visitor(quiz)
    visitor.start()
    fields = visitor.hidden()
    with caplog.at_level(logging.WARNING, "suite"):
        visitor.post("/play", 403, {"Sec-Fetch-Site": "cross-site"}, choice="real", **fields)
        visitor.post("/play", 403, choice="real", csrf="", **fields)
        visitor.post("/play", 403, choice="real", csrf=Visitor(quiz).csrf + "x", **fields)
        other = Visitor(quiz)
        other.get("/")
        visitor.post("/play", 403, choice="real", csrf=other.csrf, **fields)
    assert quiz.store.answers() == []
    refusals = [record.getMessage() for record in caplog.records]
    assert len(refusals) == 4
    assert "another site" in refusals[0]
    assert "without the form's token" in refusals[1]
    cookies = visitor.client.get("/", headers={"Cookie": ""}).headers.getlist("Set-Cookie")
    fresh = Visitor(quiz).client.get("/").headers.getlist("Set-Cookie")
    assert all("HttpOnly" in cookie and "SameSite=Lax" in cookie for cookie in cookies + fresh)
    assert fresh


def test_forged_sessions_readers_and_admins_are_refused(quiz, caplog):
    visitor = Visitor(quiz)
    visitor.start()
    fields = visitor.hidden()
    forged = Visitor(quiz)
    forged.client.set_cookie("visitor", "someone." + "0" * 43)
    with caplog.at_level(logging.WARNING, "suite"):
        forged.post("/play", 403, choice="real", **fields)
    assert "forged session" in caplog.text
    forged.get("/")
    # A proper cookie of another visitor does not answer this one's game either.
    forged.post("/play", 403, choice="real", **fields)
    for cookie in ("x" * 43, Guard(b"another secret", False).sign("reader", "x"), ""):
        forged.client.set_cookie("reader", cookie)
        forged.get("/study", 403)
        forged.get("/study/tile", 403)
    for cookie in ("9999999999." + "0" * 43, "9999999999", "", "x.y"):
        forged.client.set_cookie("admin", cookie)
        forged.get("/admin/answers.csv", 403)
    old = quiz.guard.sealed("admin login", "1")
    forged.client.set_cookie("admin", old)
    forged.get("/admin/answers.csv", 403)
    # A value sealed for one purpose opens nothing else.
    forged.client.set_cookie("admin", quiz.guard.sealed("visitor", "9999999999"))
    forged.get("/admin/answers.csv", 403)
    assert quiz.store.answers() == []


def test_replayed_answers_change_nothing_and_out_of_order_ones_are_refused(quiz):
    visitor = Visitor(quiz)
    visitor.start()
    first = visitor.hidden()
    visitor.post("/play", 409, choice="real", share=first["share"], position=3)
    visitor.get("/play")
    visitor.post("/play", choice="real", **first)
    second = visitor.hidden()
    assert second["position"] == "1"
    before = [tuple(row) for row in quiz.store.answers()]
    visitor.post("/play", choice="real", **first)
    visitor.post("/play", 409, choice="generated", **first)
    assert [tuple(row) for row in quiz.store.answers()] == before
    for position in ("-1", "1e9", "0x1", "٣", "", "9" * 30):
        visitor.post("/play", 400, choice="real", share=first["share"], position=position)
    visitor.post("/play", 409, choice="real", share="another", position=1)
    visitor.post("/play", 400, choice="left", **second)
    visitor.start()
    visitor.post("/play", 409, choice="real", **second)
    assert [tuple(row) for row in quiz.store.answers()] == before


def test_a_question_that_was_never_shown_cannot_be_answered(quiz):
    visitor = Visitor(quiz)
    visitor.start(feedback="each")
    fields = visitor.hidden()
    visitor.post("/play", choice="real", **fields)
    visitor.post("/play", 409, choice="real", share=fields["share"], position=1)
    assert len(quiz.store.answers()) == 1


def test_results_of_unfinished_games_and_tiles_not_shown_yet_are_not_there(quiz):
    visitor = Visitor(quiz)
    visitor.start()
    share, tokens = visitor.hidden()["share"], visitor.tokens()
    visitor.get(f"/result/{share}", 404)
    assert visitor.client.get(f"/card/{share}.png").status_code == 404
    hidden = {row[0] for row in quiz.store.rows("SELECT left_token FROM question")}
    assert len(hidden) == 4
    assert len(hidden & set(tokens)) == len(tokens) == 1


def test_an_oversized_body_is_refused(quiz):
    visitor = Visitor(quiz)
    visitor.start()
    visitor.post("/play", 413, choice="x" * 20_000, **visitor.hidden())
    assert quiz.store.answers() == []


def test_guessing_the_admin_token_or_an_invitation_is_limited_and_logged_without_it(quiz, caplog):
    visitor = Visitor(quiz)
    visitor.get("/admin")
    with caplog.at_level(logging.INFO, "suite"):
        for guess in range(CONFIG.admin_tries_per_minute):
            visitor.post("/admin/login", 403, token=f"guess-{guess}")
        visitor.post("/admin/login", 429, token="guess-again")
        # Not even the right one, for a minute.
        visitor.post("/admin/login", 429, token=quiz.admin_token)
        visitor.get("/study/guess-invitation", 429)
        quiz.tries._events.clear()
        for _ in range(CONFIG.admin_tries_per_minute):
            visitor.get("/study/guess-invitation", 404)
        visitor.get("/study/guess-invitation", 429)
    assert caplog.text.count("refused 403") == CONFIG.admin_tries_per_minute
    assert "guess" not in caplog.text
    assert quiz.admin_token not in caplog.text
    quiz.tries._events.clear()
    visitor.post("/admin/login", token=quiz.admin_token)


def test_starting_games_is_limited_per_address(tmp_path):
    quiz = make_quiz(tmp_path, CONFIG.model_copy(update={"starts_per_minute": 3}))
    visitor = Visitor(quiz)
    for _ in range(3):
        visitor.start()
    visitor.get("/")
    visitor.post("/start", 429, layout="single", feedback="end", count=4)
    assert len(quiz.store.sessions("play")) == 3
    quiz.store.close()


def test_a_limit_forgets_old_events_and_keeps_few_addresses(monkeypatch):
    limit = Limit(2)
    clock = [0.0]
    monkeypatch.setattr("quiz.guard.time.monotonic", lambda: clock[0])
    limit.note("a")
    assert not limit.reached("a")
    limit.note("a")
    assert limit.reached("a")
    assert not limit.reached("b")
    clock[0] = 61
    assert not limit.reached("a")
    for number in range(ADDRESSES + 50):
        limit.note(str(number))
    assert len(limit._events) <= ADDRESSES


def test_log_lines_of_refusals_cannot_be_forged_by_a_path(quiz, caplog):
    with caplog.at_level(logging.WARNING, "suite"):
        Visitor(quiz).client.get("/no%0arefused%20000:%20forged\x1b[31m")
    assert len(caplog.records) == 1
    assert "\n" not in caplog.records[0].getMessage()
    assert "\x1b" not in caplog.records[0].getMessage()


def test_pages_load_nothing_from_elsewhere_and_hold_no_inline_script_or_style(shared):
    quiz, visitor, result = shared
    pages = [visitor.get(path) for path in ("/", "/play", "/leaderboard", result, "/study",
                                            "/study/tile", "/admin")]  # fmt: skip
    for page in pages:
        assert not re.findall(r'(?:src|href|action)="(?!/|#)[^"]*"', page)
        assert not re.findall(r"<script>|<style|\bstyle=|\bon\w+=|javascript:", page)
    policy = visitor.client.get("/").headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert study_pages.url_prefix == "/study"
