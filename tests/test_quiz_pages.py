"""Games, the study and the admin page, page by page."""

import io
import json
import re

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from quiz_site import CONFIG, Visitor, make_quiz, make_tiles, play

from data.found_tiles import SOURCES
from quiz import play as play_module
from quiz import texts
from quiz.config import QuizConfig, StudyConfig
from quiz.plan import TooFewTiles, plan_questions
from quiz.store import Store
from quiz.tiles import png_pixels, square, stored_png
from runtime.config import load_config
from runtime.errors import UserError

CELLS = {(s, t): list(range(40 * k, 40 * k + 40)) for k, (s, t) in enumerate(
    (s, t) for s in SOURCES for t in ("lung", "brain"))}  # fmt: skip
CELL_OF = {tile: cell for cell, tiles in CELLS.items() for tile in tiles}


@pytest.fixture
def quiz(tmp_path):
    quiz = make_quiz(tmp_path)
    yield quiz
    quiz.store.close()


def admin(quiz):
    """Return a visitor who is logged in on the admin page."""
    visitor = Visitor(quiz)
    visitor.get("/admin")
    visitor.post("/admin/login", token=quiz.admin_token)
    return visitor


def invite(quiz, name):
    """Return the path of a new reader's invitation."""
    page = admin(quiz).post("/admin/readers", name=name)
    return re.findall(r'value="http://localhost(/study/[^"]+)"', page)[-1]


def rate(reader, confidence, staining=1, nuclei=3, code=200, **fields):
    """Send a reader's ratings of the tile on the page."""
    fields = {**reader.hidden(), "confidence": confidence, **fields}
    return reader.post("/study/tile", code, scale_staining=staining, scale_nuclei=nuclei, **fields)


@pytest.mark.parametrize("total", [1, 5, 12, 24, 31])
@pytest.mark.parametrize("balance", ["halves", "sources"])
def test_single_questions_are_balanced_and_no_tile_comes_twice(total, balance):
    for seed in range(5):
        plan = plan_questions(CELLS, total, "single", np.random.default_rng(seed), balance)
        tiles = [question.left for question in plan]
        assert len(set(tiles)) == total
        cells = [CELL_OF[tile] for tile in tiles]
        counts = [sum(cell[0] == source for cell in cells) for source in SOURCES]
        if balance == "halves":
            counts = [counts[0], counts[1] + counts[2]]
            assert (
                abs(sum(c[0] == "gan" for c in cells) - sum(c[0] == "rna-gan" for c in cells)) < 2
            )
        assert max(counts) - min(counts) <= 1
        for source in SOURCES:
            tissues = [cell[1] for cell in cells if cell[0] == source]
            assert abs(tissues.count("lung") - tissues.count("brain")) <= 1


def test_pairs_are_of_one_tissue_and_neither_side_nor_order_tells_which_is_real():
    left, sides_of = [], {"gan": [], "rna-gan": []}
    for seed in range(60):
        plan = plan_questions(CELLS, 12, "pair", np.random.default_rng(seed))
        for place, question in enumerate(plan):
            one, other = CELL_OF[question.left], CELL_OF[question.right]
            assert one[1] == other[1]
            assert (one[0] == "real") + (other[0] == "real") == 1
            sides_of[other[0] if one[0] == "real" else one[0]].append(one[0] == "real")
            left.append((place, one[0] == "real"))
    for sides in sides_of.values():
        assert 0.42 < np.mean(sides) < 0.58
    assert abs(np.corrcoef(np.transpose(left))[0, 1]) < 0.1


def test_a_plan_that_needs_more_tiles_names_tissue_and_source():
    few = CELLS | {("gan", "brain"): [1, 2]}
    with pytest.raises(TooFewTiles, match="brain, gan: 2 tiles"):
        plan_questions(few, 60, "single", np.random.default_rng(0))


@pytest.mark.parametrize("layout", ["single", "pair"])
@pytest.mark.parametrize("feedback", ["each", "end"])
def test_a_game_of_right_answers_ends_with_all_right_and_its_exact_interval(quiz, layout, feedback):
    visitor = Visitor(quiz)
    play(visitor, quiz, layout=layout, feedback=feedback)
    assert "4 of 4 right" in visitor.page
    assert "40 % to 100 %" in visitor.page  # 0.025 ** (1 / 4) = 0.398
    assert "p = 0.12" in visitor.page  # 2 / 2 ** 4
    assert re.search(r"lung</th>.*?2/2", visitor.page)


def test_feedback_tells_after_each_answer_or_never_before_the_end(quiz):
    visitor = Visitor(quiz)
    visitor.start(feedback="each")
    page = visitor.post("/play", choice="real", **visitor.hidden())
    assert re.search(r"is real\.|was generated \((RNA-)?GAN\)\.", page)
    visitor.start(feedback="end")
    page = visitor.post("/play", choice="real", **visitor.hidden())
    assert "Question 2" in page
    visitor.get("/play/1", 404)
    visitor.get("/play/2", 404)


def test_scores_are_compared_with_the_other_games(quiz):
    play(Visitor(quiz), quiz, right=False)
    visitor = Visitor(quiz)
    play(visitor, quiz, right=True)
    assert (
        "Others have 0 % right on average (games so far: 1); you beat 100 % of them" in visitor.page
    )


def test_the_leaderboard_ranks_long_games_above_lucky_short_ones_and_shows_named_ones_only(quiz):
    for name, count in (("Short", 4), ("Long", 6), ("", 4)):
        visitor = Visitor(quiz)
        address = play(visitor, quiz, count=count)
        if name:
            page = visitor.post(address, nickname=name)
    assert page.index("Long") < page.index("Short")
    assert page.count('<th scope="row">') == 2
    other = Visitor(quiz)
    other.get("/")
    other.post(address, 403, nickname="Thief")
    assert "nickname" not in other.get(address)


def test_the_result_card_is_a_picture_with_the_score_in_its_pixels(quiz):
    pictures = []
    for right in (True, False):
        visitor = Visitor(quiz)
        address = play(visitor, quiz, right=right).replace("/result/", "/card/") + ".png"
        reply = visitor.client.get(address)
        pictures.append(Image.open(io.BytesIO(reply.data)).convert("RGB"))
        assert reply.mimetype == "image/png"
    assert pictures[0].size == (1200, 630)
    green = [(np.asarray(p) == (27, 110, 60)).all(axis=2).sum() for p in pictures]
    assert green[0] > 1000
    assert green[1] == 0


def test_an_answer_after_the_time_limit_counts_as_none(quiz, monkeypatch):
    visitor = Visitor(quiz)
    visitor.start(timed=1)
    clock = play_module.time.time
    monkeypatch.setattr(play_module.time, "time", lambda: clock() + 2 + play_module.GRACE_S + 0.1)
    visitor.post("/play", choice="real", **visitor.hidden())
    answer = quiz.store.answers()[0]
    assert (answer["choice"], answer["correct"]) == ("timeout", 0)


def test_reloading_a_question_does_not_set_the_clock_back(quiz):
    visitor = Visitor(quiz)
    page = visitor.start(timed=1)
    first = float(re.search(r'data-left="([\d.]+)"', page)[1])
    again = float(re.search(r'data-left="([\d.]+)"', visitor.get("/play"))[1])
    assert again < first <= 2


def test_a_study_shows_every_reader_the_same_tiles_and_nothing_about_what_is_real(quiz):
    seen = []
    for name in ("A", "B"):
        reader, tiles = Visitor(quiz), []
        page = reader.get(invite(quiz, name)) + reader.get("/study/tile")
        while 'name="confidence"' in reader.page:
            tiles += [quiz.store.tile_of(token) for token in reader.tokens()]
            page += rate(reader, 4)
        for word in (*SOURCES, "lung", "brain", "correct", "Right", "✓"):
            assert word not in re.sub(r"tile is real|[\w -]+real</span>", "", page), word
        assert "You have rated all 6 tiles" in page
        seen.append(tiles)
    assert seen[0] == seen[1]
    assert sorted(quiz.tiles[tile][0] for tile in seen[0]) == sorted([*SOURCES] * 2)


def test_a_reader_pauses_and_continues_on_another_device(quiz):
    link = invite(quiz, "A")
    first, second = Visitor(quiz), Visitor(quiz)
    first.get(link)
    first.get("/study/tile")
    assert "1 of 6 tiles rated" in rate(first, 2, then="pause")
    second.get(link)
    assert "Tile 2 of 6" in second.get("/study/tile")
    rate(second, 5)
    assert "Tile 3 of 6" in first.get("/study/tile")
    first.post("/study/leave")
    first.get("/study", 403)


def test_ratings_sent_again_change_nothing_and_other_ones_are_refused(quiz):
    reader = Visitor(quiz)
    reader.get(invite(quiz, "A"))
    reader.get("/study/tile")
    fields = reader.hidden()
    rate(reader, 2)
    before = [tuple(row) for row in quiz.store.answers()]
    fields |= {"confidence": 2, "scale_staining": 1, "scale_nuclei": 3}
    reader.post("/study/tile", **fields)
    for other in ({"confidence": 3}, {"scale_nuclei": 1}, {"position": 4}):
        reader.post("/study/tile", 409, **fields | other)
        reader.get("/study/tile")
    assert [tuple(row) for row in quiz.store.answers()] == before


def test_invitations_are_https_links_where_cookies_are(tmp_path):
    quiz = make_quiz(tmp_path, CONFIG.model_copy(update={"https_only": True}))
    with Visitor(quiz).client.application.test_request_context("/"):
        quiz.store.new_session("study", "owner", "A", {"invitation": "x"}, quiz.plan_study())
        assert quiz.invitation(quiz.store.sessions("study")[0]).startswith("https://localhost/")
    assert "Secure" in Visitor(quiz).client.get("/").headers["Set-Cookie"]
    quiz.store.close()


def test_a_missing_rating_is_refused_and_nothing_is_stored(quiz):
    reader = Visitor(quiz)
    reader.get(invite(quiz, "A"))
    reader.get("/study/tile")
    for wrong in ({"confidence": 6}, {"confidence": 3, "staining": 3}, {"confidence": ""}):
        rate(reader, code=422, **wrong)
        reader.get("/study/tile")
    assert not quiz.store.answers()


def test_the_export_has_one_row_per_answer_with_tile_source_ratings_and_seconds(quiz):
    play(Visitor(quiz), quiz, layout="pair")
    reader = Visitor(quiz)
    reader.get(invite(quiz, "A"))
    reader.get("/study/tile")
    rate(reader, 5, staining=2, nuclei=1)
    page = admin(quiz)
    frame = pd.read_csv(io.StringIO(page.get("/admin/answers.csv")))
    assert frame.kind.tolist() == ["play"] * 4 + ["study"]
    row = frame.iloc[-1]
    assert (row.answer, row.staining, row.nuclei, row["name"]) == ("5", 2, 1, "A")
    assert quiz.tiles[row.tile] == (row.source, row.tissue, row.file)
    assert (frame.seconds >= 0).all()
    real = frame.source[:4].eq("real")
    assert (frame.answer[:4] == real.map({True: "left", False: "right"})).all()
    assert json.loads(page.get("/admin/study.json"))["answers"] == 1
    assert "1/6" in page.get("/admin")


def test_a_restarted_quiz_continues_games_studies_and_admin_logins(quiz, tmp_path):
    visitor, reader = Visitor(quiz), Visitor(quiz)
    visitor.start()
    visitor.post("/play", choice="real", **visitor.hidden())
    reader.get(invite(quiz, "A"))
    login = admin(quiz)
    quiz.store.close()
    again = make_quiz(tmp_path)
    for one in (visitor, reader, login):
        cookies = one.client._cookies
        one.client = Visitor(again).client
        one.client._cookies = cookies
    assert "Question 2 of 4" in visitor.get("/play")
    assert "Welcome, A" in reader.get("/study")
    assert "Invitation link" in login.get("/admin")
    again.store.close()


def test_the_study_page_names_what_is_missing_when_tiles_do_not_suffice(tmp_path):
    config = CONFIG.model_copy(update={"study": StudyConfig(questions=100)})
    quiz = make_quiz(tmp_path, config)
    admin(quiz).post("/admin/readers", 409, name="A")
    assert quiz.store.sessions("study") == []
    quiz.store.close()


def test_the_same_pixels_come_back_from_files_of_one_length():
    tiles = [square(tile.pixels) for tile in make_tiles(2)]
    files = [stored_png(pixels) for pixels in tiles]
    assert len({len(file) for file in files}) == 1
    for pixels, file in zip(tiles, files, strict=True):
        np.testing.assert_array_equal(png_pixels(file), pixels)


def test_a_file_that_is_no_store_is_refused_in_one_line(tmp_path):
    path = tmp_path / "quiz.sqlite"
    path.write_bytes(b"not a database at all" * 100)
    with pytest.raises(UserError, match="cannot be used as the quiz's store"):
        Store(path)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"titel": "x"}, "did you mean 'title'"),
        ({"question_counts": []}, "question_counts"),
        ({"study": {"confidence": ["a", "b"]}}, "study.confidence"),
        ({"study": {"scales": [{"key": "A b", "question": "x", "labels": ["a", "b"]}]}}, "key"),
        ({"time_limit_s": 1}, "greater than or equal to 2"),
    ],
)
def test_a_wrong_quiz_config_is_explained_in_one_line(tmp_path, keys, words):
    path = tmp_path / "quiz.json"
    path.write_text(json.dumps(keys))
    with pytest.raises(UserError, match=words):
        load_config(QuizConfig, path)


def test_the_published_quiz_config_loads_and_every_key_of_the_model_is_read():
    load_config(QuizConfig, "configs/quiz.json")
    folder = texts.ENGLISH.parent
    code = "".join(path.read_text() for path in [*folder.glob("*.py"), *folder.glob("templates/*")])
    code += (folder.parent / "web_quiz.py").read_text()
    for model, name in ((QuizConfig, r"(config|quiz\.config)"), (StudyConfig, r"study")):
        for field in model.model_fields:
            assert re.search(rf"\b{name}\.{field}\b", code), field


def test_a_translation_needs_every_text_with_its_placeholders(tmp_path):
    english = json.loads(texts.ENGLISH.read_text())
    path = tmp_path / "de.json"
    path.write_text(json.dumps(english | {"language": "de"}))
    assert texts.load_texts(path)["language"] == "de"
    for section, key, value in (
        ("play", "next", None), ("play", "progress", "Frage {number}"), ("play", "extra", "x"),
        ("play", "progress", "{number"),
    ):  # fmt: skip
        wrong = json.loads(json.dumps(english))
        wrong[section].update({key: value})
        if value is None:
            del wrong[section][key]
        path.write_text(json.dumps(wrong))
        with pytest.raises(UserError, match=f"{section}.{key}"):
            texts.load_texts(path)


def test_templates_hold_no_text_of_their_own_and_use_keys_that_exist():
    english = json.loads(texts.ENGLISH.read_text())
    for path in (texts.ENGLISH.parent / "templates").glob("*.html"):
        source = path.read_text()
        for section, key in re.findall(r"\bt\.([a-z_]+)\.([a-z_]+)\b", source):
            if key != "get":
                assert key in english[section], (path.name, section, key)
        words = re.sub(r"\{[%{#].*?[%}#]\}|<[^>]*>", " ", source, flags=re.S)
        left = set(re.findall(r"[A-Za-z]{3,}", words))
        assert left <= {"Enter", "narrow", "pairs"}, (path.name, left)
    # Keys that a dict's own methods would hide from a template:
    assert not [key for part in english.values() if isinstance(part, dict)
                for key in part if hasattr(dict, key)]  # fmt: skip


def luminance(colour):
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_text_has_a_contrast_of_at_least_4_5_and_edges_of_3(mode):
    css = (texts.ENGLISH.parent / "static" / "style.css").read_text()
    block = re.findall(r":root \{(.*?)\}", css, flags=re.S)[mode == "dark"]
    colour = dict(re.findall(r"--([\w-]+): (#\w{6})", block))

    def contrast(one, other):
        low, high = sorted((luminance(colour[one]), luminance(colour[other])))
        return (high + 0.05) / (low + 0.05)

    text = [(ink, ground) for ink in ("ink", "muted", "accent") for ground in ("paper", "card")]
    text += [("ink", "soft"), ("muted", "soft"), ("on-accent", "accent"), ("good", "good-soft")]
    text += [("bad", "bad-soft"), ("ink", "good-soft"), ("ink", "bad-soft"), ("good", "paper")]
    text += [("bad", "paper"), ("good", "card"), ("bad", "card")]
    for pair in text:
        assert contrast(*pair) >= 4.5, pair
    for pair in (("edge", "card"), ("edge", "paper"), ("accent", "line")):
        assert contrast(*pair) >= 3, pair


def test_game_lengths_that_the_tiles_do_not_suffice_for_are_not_offered(tmp_path):
    config = CONFIG.model_copy(update={"question_counts": [4, 30]})
    quiz = make_quiz(tmp_path, config)
    assert quiz.lengths == [4]
    visitor = Visitor(quiz)
    visitor.start(count=4)
    visitor.get("/")
    visitor.post("/start", 400, layout="single", feedback="end", count=30)
    quiz.store.close()
