"""A small quiz for tests: tiles, a store, and a visitor who reads pages and sends their forms."""

import re
import socket
import threading
from contextlib import contextmanager

import numpy as np

from data.found_tiles import SOURCES
from quiz.app import create_app, create_server
from quiz.config import QuizConfig, Scale, StudyConfig
from quiz.context import Quiz
from quiz.store import Store
from quiz.texts import load_texts
from quiz.tiles import QuizTile

SCALES = [
    Scale(key="staining", question="Staining", labels=["Poor", "Good"]),
    Scale(key="nuclei", question="Nuclei", labels=["None", "Poor", "Good"]),
]
CONFIG = QuizConfig(
    question_counts=[4, 6], time_limit_s=2, study=StudyConfig(questions=6, scales=SCALES)
)


def make_tiles(count=6, px=32, seed=0):
    """Return tiles of two tissues and three sources; real ones rough, generated ones smooth."""
    draw, tiles = np.random.default_rng(seed), []
    for tissue in ("lung", "brain"):
        for source in SOURCES:
            for number in range(count):
                pixels = np.full((px, px, 3), draw.integers(60, 190), np.int16)
                rough = 60 if source == "real" else 6
                pixels += draw.integers(-rough, rough + 1, pixels.shape, dtype=np.int16)
                tiles.append(
                    QuizTile(source, tissue, f"{tissue}/{number}.png", pixels.astype(np.uint8))
                )
    return tiles


def make_quiz(folder, config=CONFIG, tiles=None):
    """Return a quiz with a new store in a folder."""
    store = Store(folder / "quiz.sqlite")
    if not store.tiles():
        store.add_tiles(make_tiles() if tiles is None else tiles)
    return Quiz(store, config, load_texts())


class Visitor:
    """A browser's worth of cookies; posts carry the form token of the last page."""

    def __init__(self, quiz):
        self.client = create_app(quiz).test_client()
        self.page, self.csrf = "", ""

    def get(self, path, code=200):
        """Return a page's text, redirects followed."""
        return self._read(self.client.get(path, follow_redirects=True), code)

    def post(self, path, code=200, headers=None, **fields):
        """Send a form with the last page's token and return the text of where it leads."""
        fields = {"csrf": self.csrf, **fields}
        reply = self.client.post(path, data=fields, headers=headers, follow_redirects=True)
        return self._read(reply, code)

    def _read(self, reply, code):
        self.page = reply.get_data(as_text=True)
        assert reply.status_code == code, (reply.status_code, self.page[-600:])
        found = re.search(r'name="csrf" value="(\w+)"', self.page)
        self.csrf = found[1] if found else self.csrf
        return self.page

    def hidden(self):
        """Return the hidden fields of the question on the page."""
        share = re.search(r'name="share" value="([^"]+)"', self.page)[1]
        position = re.search(r'name="position" value="(\d+)"', self.page)[1]
        return {"share": share, "position": position}

    def tokens(self):
        """Return the random ids of the tiles on the page, without repeats, in order."""
        return list(dict.fromkeys(re.findall(r'src="/tile/([^"]+)"', self.page)))

    def start(self, layout="single", feedback="end", count=4, **fields):
        """Start a game and return its first page."""
        self.get("/")
        return self.post("/start", layout=layout, feedback=feedback, count=count, **fields)


def play(visitor, quiz, right=True, **settings):
    """Play a game to its end, all answers right or all wrong; return the result's address."""
    page = visitor.start(**settings)
    while 'name="choice"' in page:
        fields = visitor.hidden()
        real = [quiz.tiles[quiz.store.tile_of(token)][0] == "real" for token in visitor.tokens()]
        truth = ("left" if real[0] else "right") if len(real) > 1 else real[0]
        wrong = {"left": "right", "right": "left", True: "generated", False: "real"}[truth]
        names = {True: "real", False: "generated"}
        choice = names.get(truth, truth) if right else wrong
        page = visitor.post("/play", choice=choice, **fields)
        if settings.get("feedback") == "each":
            page = visitor.get("/play")
    return "/result/" + re.search(r'src="/card/([^"]+).png"', page)[1]


@contextmanager
def served(quiz):
    """Serve a quiz over loopback and yield its port."""
    server = create_server(create_app(quiz), socket.create_server(("127.0.0.1", 0)))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        yield server.effective_port
    finally:
        server.close()
        server.task_dispatcher.shutdown()
        thread.join(timeout=5)
