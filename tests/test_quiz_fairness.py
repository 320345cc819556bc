"""Nothing but its pixels tells a real tile from a generated one."""

import http.client
import re
import struct
import time

import numpy as np
from quiz_site import CONFIG, Visitor, make_quiz, make_tiles, served
from scipy import stats
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import cross_val_predict

from data.tiles import encode_png
from quiz.tiles import png_pixels

CHUNK = struct.Struct(">I4s")


def chunks(png):
    """Return (kind, length) of a PNG's chunks."""
    found, place = [], 8
    while place < len(png):
        length, kind = CHUNK.unpack_from(png, place)
        found.append((kind.decode(), length))
        place += 12 + length
    return found


def observe(quiz, games):
    """Play games over a socket; return features of every tile but its pixels, headers, and truth.

    Features: random id, length of page and file, position, number of chunks, time to answer.
    """
    features, truth, heads = [], [], set()
    with served(quiz) as port:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        visitor = Visitor(quiz)
        for game in range(games):
            page = visitor.start(count=6, layout="single")
            while 'name="choice"' in page:
                token = visitor.tokens()[0]
                began = time.perf_counter()
                connection.request("GET", f"/tile/{token}")
                reply = connection.getresponse()
                png = reply.read()
                elapsed = time.perf_counter() - began
                head = [(name, value) for name, value in reply.getheaders() if name != "Date"]
                heads.add((tuple(head), tuple(chunks(png))))
                letters = [ord(letter) for letter in token]
                position = int(visitor.hidden()["position"])
                row = [*letters, len(page), len(png), position, len(chunks(png)), elapsed, game]
                features.append(row)
                truth.append(quiz.tiles[quiz.store.tile_of(token)][0] == "real")
                page = visitor.post("/play", choice="real", **visitor.hidden())
        connection.close()
    return np.array(features), np.array(truth), heads


def p_better_than_chance(features, truth):
    """Return the one-sided p value of a forest's cross-validated hits against the larger class."""
    forest = RandomForestClassifier(40, random_state=0)
    hits = int((cross_val_predict(forest, features, truth, cv=5) == truth).sum())
    chance = max(truth.mean(), 1 - truth.mean())
    return stats.binomtest(hits, len(truth), chance, alternative="greater").pvalue


def test_a_classifier_on_everything_but_pixels_is_at_chance_and_headers_are_the_same(tmp_path):
    quiz = make_quiz(tmp_path)
    features, truth, heads = observe(quiz, 25)
    assert len(truth) == 150
    assert 0.4 < truth.mean() < 0.6
    assert p_better_than_chance(features, truth) > 1e-4
    assert len(heads) == 1
    names = [kind for kind, _ in next(iter(heads))[1]]
    assert names == ["IHDR", *["IDAT"] * (len(names) - 2), "IEND"]
    quiz.store.close()


def test_the_same_classifier_would_notice_compressed_files(tmp_path):
    quiz = make_quiz(tmp_path)
    quiz.pngs = {number: encode_png(png_pixels(png)) for number, png in quiz.pngs.items()}
    features, truth, heads = observe(quiz, 12)
    assert p_better_than_chance(features, truth) < 1e-6
    assert len(heads) > 1
    quiz.store.close()


def test_question_pages_have_one_length_whatever_they_ask_about(tmp_path):
    quiz = make_quiz(tmp_path, CONFIG, make_tiles(8))
    for layout in ("single", "pair"):
        lengths = set()
        for _ in range(6):
            page = Visitor(quiz).start(layout=layout, count=6)
            lengths.add(len(page))
            assert not re.search(r"\breal/|rna-gan|\bgan\b|lung|brain", page)
        assert len(lengths) == 1
    quiz.store.close()
