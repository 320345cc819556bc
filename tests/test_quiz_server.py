"""web_quiz.py as a process: one command, restart, kill -9, big bodies, and user's mistakes."""

import concurrent.futures
import http.client
import json
import re
import shutil
import socket
import subprocess
import sys
import threading
import urllib.parse
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from quiz_site import make_quiz, make_tiles, served

import betaVAE_training
import histopathology_gan
import web_quiz
from data.found_tiles import tiles_below
from quiz.store import Store
from quiz.tiles import png_pixels
from runtime.errors import UserError

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """Return a folder, made the current one, with real and generated images of two tissues."""
    monkeypatch.chdir(tmp_path)
    for number, tile in enumerate(make_tiles()):
        path = tmp_path / tile.source / tile.tissue / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(tile.pixels).save(path)
    config = {"question_counts": [4], "study": {"questions": 6}}
    Path("quiz.json").write_text(json.dumps(config))
    return tmp_path


TILES = ["--real", "real", "--generated", "gan", "rna-gan"]


class Server:
    """web_quiz.py in a process of its own; a with block ends it."""

    def __init__(self, *arguments):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        command = [sys.executable, str(ROOT / "web_quiz.py"), "--config", "quiz.json"]
        command += ["--store", "q.sqlite", "--no_browser", "--port", str(self.port), *arguments]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self.said = self.process.stdout.readline() + self.process.stdout.readline()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.terminate()  # a shell's background jobs ignore SIGINT
        self.process.wait(timeout=60)  # on a busy machine too
        self.process.stdout.close()

    def kill(self):
        """End the process with SIGKILL, in the middle of whatever it does."""
        self.process.kill()
        self.process.wait(timeout=60)  # on a busy machine too


class Browser:
    """A connection with cookies."""

    def __init__(self, port):
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        self.cookies, self.page = {}, ""

    def send(self, method, path, fields=None):
        """Send a request and return its status; 303 is followed."""
        headers = {"Cookie": "; ".join(f"{k}={v}" for k, v in self.cookies.items())}
        if fields is not None:
            headers["Content-Type"] = "application/x-www-form-urlencoded"
        body = urllib.parse.urlencode(fields) if fields is not None else None
        self.connection.request(method, path, body, headers)
        reply = self.connection.getresponse()
        self.page = reply.read().decode(errors="replace")
        for name, value in reply.getheaders():
            if name == "Set-Cookie":
                key, _, rest = value.partition("=")
                self.cookies[key] = rest.partition(";")[0]
        return reply.status, reply.getheader("Location")

    def field(self, name):
        """Return a hidden field of the page."""
        return re.search(rf'name="{name}" value="([^"]*)"', self.page)[1]

    def start(self):
        """Start a game and show its first question."""
        self.send("GET", "/")
        fields = {"csrf": self.field("csrf"), "layout": "single", "feedback": "end", "count": 4}
        assert self.send("POST", "/start", fields)[0] == 303
        self.send("GET", "/play")

    def answer(self, choice):
        """Answer the question on the page and return (share, position, choice)."""
        fields = {name: self.field(name) for name in ("csrf", "share", "position")}
        status, _ = self.send("POST", "/play", {**fields, "choice": choice})
        assert status == 303
        return fields["share"], int(fields["position"]), choice


def play_until_it_breaks(port, acknowledged, stop):
    """Play games and note each acknowledged answer, until the server is gone."""
    browser = Browser(port)
    try:
        while not stop.is_set():
            browser.start()
            for number in range(4):
                acknowledged.append(browser.answer(("real", "generated")[number % 2]))
                browser.send("GET", "/play")
    except (OSError, http.client.HTTPException, AssertionError, TypeError):
        stop.set()
    finally:
        browser.connection.close()


def test_a_kill_under_load_loses_no_acknowledged_answer_and_a_restart_continues(folders):
    acknowledged, stop = [], threading.Event()
    with Server(*TILES) as server, concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert f"http://127.0.0.1:{server.port}/" in server.said
        one = Browser(server.port)
        one.start()
        acknowledged.append(one.answer("real"))
        for _ in range(8):
            pool.submit(play_until_it_breaks, server.port, acknowledged, stop)
        while len(acknowledged) < 120 and not stop.is_set():
            stop.wait(0.02)
        server.kill()
        stop.set()
    assert len(acknowledged) >= 120
    store = Store("q.sqlite")
    assert Path("q.sqlite").stat().st_mode & 0o077 == 0
    rows = [(row["share"], row["position"], row["choice"]) for row in store.answers()]
    assert len({row[:2] for row in rows}) == len(rows)
    assert set(acknowledged) <= set(rows)
    # Beside them at most the answer that each player had under way.
    assert len(rows) - len(acknowledged) <= 8
    store.close()
    one.connection.close()
    with Server() as server:
        again = Browser(server.port)
        again.cookies = one.cookies
        again.send("GET", "/play")
        assert "Question 2 of 4" in again.page
        again.connection.close()


def test_big_bodies_and_headers_and_broken_requests_do_not_stop_the_server(tmp_path):
    quiz = make_quiz(tmp_path)
    with served(quiz) as port:
        for message in (
            b"POST /play HTTP/1.1\r\nHost: a\r\nContent-Length: 9999999999\r\n\r\n" + b"x" * 4096,
            b"GET / HTTP/1.1\r\nHost: a\r\nX-Long: " + b"y" * 40_000 + b"\r\n\r\n",
            b"GET /../../etc/passwd HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
            b"\x16\x03\x01\x00\xa5\x01" + b"\x00" * 64 + b"\r\n\r\n",
            b"POST /start HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        ):
            with socket.create_connection(("127.0.0.1", port), timeout=5) as wire:
                wire.sendall(message)
                answer = wire.recv(65_536)
                assert re.match(rb"HTTP/1\.[01] 4\d\d", answer), answer[:80]
                assert b"root:" not in answer
        browser = Browser(port)
        browser.start()
        assert "Question 1 of 4" in browser.page
        browser.connection.close()
    quiz.store.close()


def chosen(*arguments):
    """Return the tiles that a command line chooses."""
    args = web_quiz.build_parser().parse_args(list(arguments))
    config = web_quiz.QuizConfig(tiles_per_group=4)
    return web_quiz.choose_tiles(args, config)


def test_tiles_of_folders_have_source_and_tissue_and_one_size(folders):
    Image.effect_noise((96, 64), 50).convert("RGB").save("real/lung/large.png")
    tiles = chosen(*TILES)
    cells = {(tile.source, tile.tissue) for tile in tiles}
    assert cells == {(s, t) for s in ("real", "gan", "rna-gan") for t in ("lung", "brain")}
    assert {tile.pixels.shape for tile in tiles} == {(32, 32, 3)}
    assert len(tiles) == 24
    assert tiles == [] or [t.name for t in chosen(*TILES)] == [t.name for t in tiles]


def test_stores_have_the_tissue_of_their_folder_and_pictures_beside_them_are_no_tiles(cohort):
    Path("tiles/lung/overview").mkdir()
    Image.new("RGB", (32, 32)).save("tiles/lung/overview/SIM-0001.png")
    found = list(tiles_below(Path("tiles"), None, "real"))
    assert len(found) == 120  # two tissues, ten slides of six tiles
    assert {tile.tissue for tile in found} == {"lung", "brain"}
    one = sorted(Path("tiles/lung").rglob("*.zip"))[0]
    assert {tile.tissue for tile in tiles_below(one, None, "real")} == {"lung"}
    shutil.copy(one, "tiles/brain")
    loose = tiles_below(Path("tiles/brain") / one.name, None, "real")
    assert {tile.tissue for tile in loose} == {"brain"}


def test_tables_of_generated_tiles_say_source_and_tissue(folders):
    for source in ("gan", "rna-gan", "real"):
        shutil.copytree(f"{source}/lung", f"made/{source}")
        names = sorted(path.name for path in Path(f"made/{source}").iterdir())
        lines = [f"old_name/{source}/{name},colon,P,{source},9" for name in names]
        header = "wsi_file_names,Labels,patient,source,seed"
        Path(f"made/tiles_{source}.csv").write_text("\n".join([header, *lines]))
    tiles = chosen("--real", "made", "--generated", "made")
    assert {tile.tissue for tile in tiles} == {"colon"}
    assert {tile.source for tile in tiles} == {"real", "gan", "rna-gan"}


def test_checkpoints_of_gan_and_rna_gan_draw_tiles_from_their_own_profiles(cohort):
    betaVAE_training.main(["--config", "betavae.json"])
    for name, loss in (("gan", "wgan"), ("rna-gan", "wganvae")):
        histopathology_gan.main(
            ["--config", "gan_lung.json", "--loss_type", loss, "--gan_type", "dcgan"]
            + ["--num_epochs", "1", "--num_patches", "4", "--image_dir", name, "--model_dir", name]
        )
    arguments = ["--real", "tiles/lung", "--generated", "gan.model", "rna-gan.model"]
    tiles = chosen(*arguments, "--device", "cpu")
    cells = [(tile.source, tile.tissue) for tile in tiles]
    assert sorted(cells) == sorted([(s, "lung") for s in ("real", "gan", "rna-gan")] * 4)
    again = chosen(*arguments, "--device", "cpu")
    for one, other in zip(tiles, again, strict=True):
        np.testing.assert_array_equal(one.pixels, other.pixels)
    made = {tile.pixels.tobytes() for tile in tiles if tile.source == "rna-gan"}
    assert len(made) == 4


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--real", "real"], "needed together"),
        ([], "--real and --generated make it"),
        (["--real", "nowhere", "--generated", "gan"], "nowhere: no tiles there"),
        (["--real", "real", "--generated", "gan/lung"], "tissue 'brain' has real tiles only"),
        (["--real", "real", "--generated", "gan", "rna-gan/lung"], "tiles of the same sources"),
        (["--real", "real", "--generated", "quiz.json"], "damaged tile store"),
        ([*TILES, "--config", "none.json"], "none.json"),
        ([*TILES, "--texts", "quiz.json"], "is missing"),
    ],
)
def test_a_users_mistake_is_one_line(folders, arguments, words):
    with pytest.raises(UserError, match=re.escape(words)) as error:
        web_quiz.main(["--config", "quiz.json", "--store", "q.sqlite", "--port", "0", *arguments])
    assert "\n" not in str(error.value)


def test_a_store_keeps_its_tiles_and_study_and_refuses_others(folders):
    common = ["--config", "quiz.json", "--store", "q.sqlite", "--export", "out"]
    web_quiz.main([*common, *TILES])
    store = Store("q.sqlite")
    before = store.tiles()
    assert png_pixels(before[1][3]).shape == (32, 32, 3)
    store.close()
    shutil.rmtree("real")
    Path("real").mkdir()
    web_quiz.main([*common, *TILES])
    web_quiz.main(common)
    assert json.loads(Path("out/study.json").read_text())["answers"] == 0
    with pytest.raises(UserError, match="made with other tiles"):
        web_quiz.main([*common, *TILES, "--seed", "3"])
    Path("quiz.json").write_text(json.dumps({"study": {"questions": 9}}))
    with pytest.raises(UserError, match="the study differs"):
        web_quiz.main(common)


def test_a_port_in_use_and_too_few_tiles_are_told_in_one_line(folders):
    common = ["--config", "quiz.json", "--store", "q.sqlite", *TILES, "--port"]
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(UserError, match="cannot be served"):
            web_quiz.main([*common, str(taken.getsockname()[1])])
    Path("quiz.json").write_text(json.dumps({"question_counts": [400], "study": {"questions": 6}}))
    with pytest.raises(UserError, match="too few tiles"):
        web_quiz.main([*common, "0"])
