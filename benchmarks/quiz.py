"""Figures of the quiz under load: time to answer, and answers lost or doubled by a kill.

Many players at once over loopback, each with a connection and cookies of its own: start page,
start, and for each question the page and its tile, a pause of 1 to 3 s (people take longer), the
answer. The server is web_quiz.py in a process of its own. Prints one JSON line per figure.

    python benchmarks/quiz.py --players 200 --seconds 40
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import sqlite3
import subprocess
import sys
import tempfile
import time
import urllib.parse
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
TILE_PX, TILES, QUESTIONS = 256, 30, 24
HIDDEN = re.compile(r'name="(csrf|share|position)" value="([^"]*)"')
TILE = re.compile(r'src="(/tile/[^"]+)"')


class Player:
    """One visitor: a connection, cookies, and what was measured and acknowledged."""

    def __init__(self, port: int, draw: random.Random) -> None:
        self.port, self.draw, self.cookies, self.page = port, draw, {}, ""
        self.times: dict[str, list[float]] = {"answer": [], "page": [], "tile": []}
        self.acknowledged: list[tuple[str, int, str]] = []

    async def connect(self) -> None:
        """Open the connection that all requests share."""
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port)

    async def send(self, method: str, path: str, fields: dict | None = None) -> tuple[int, bytes]:
        """Send a request; return its status and body."""
        body = urllib.parse.urlencode(fields or {}).encode() if method == "POST" else b""
        head = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1"]
        head.append("Cookie: " + "; ".join(f"{k}={v}" for k, v in self.cookies.items()))
        if method == "POST":
            head.append("Content-Type: application/x-www-form-urlencoded")
            head.append(f"Content-Length: {len(body)}")
        self.writer.write("\r\n".join([*head, "", ""]).encode() + body)
        answer = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        length = int(re.search(r"(?i)content-length: (\d+)", answer)[1])
        for name, value in re.findall(r"(?i)set-cookie: (\w+)=([^;]*)", answer):
            self.cookies[name] = value
        return int(answer.split()[1]), await self.reader.readexactly(length)

    async def timed(self, kind: str, method: str, path: str, fields: dict | None = None):
        """Send a request and note how long it took."""
        began = time.perf_counter()
        status, body = await self.send(method, path, fields)
        self.times[kind].append(time.perf_counter() - began)
        return status, body

    async def play(self, until: float) -> None:
        """Play games until the time is over or the server is gone."""
        try:
            await self.connect()
            await asyncio.sleep(self.draw.uniform(0, 3))
            while time.perf_counter() < until:
                _, page = await self.send("GET", "/")
                fields = dict(HIDDEN.findall(page.decode()))
                choice = {"layout": "single", "feedback": "end", "count": QUESTIONS}
                await self.send("POST", "/start", fields | choice)
                for _ in range(QUESTIONS):
                    _, page = await self.timed("page", "GET", "/play")
                    page = page.decode()
                    fields = dict(HIDDEN.findall(page))
                    await self.timed("tile", "GET", TILE.search(page)[1])
                    await asyncio.sleep(self.draw.uniform(1, 3))
                    if time.perf_counter() > until:
                        return
                    fields["choice"] = self.draw.choice(("real", "generated"))
                    status, _ = await self.timed("answer", "POST", "/play", fields)
                    if status == 303:
                        given = fields["share"], int(fields["position"]), fields["choice"]
                        self.acknowledged.append(given)
        except (OSError, asyncio.IncompleteReadError):
            return
        finally:
            if hasattr(self, "writer"):
                self.writer.close()


def make_folders(folder: Path) -> None:
    """Write noisy tiles of two tissues and three sources, and a config."""
    draw = np.random.default_rng(0)
    for source in ("real", "gan", "rna-gan"):
        for tissue in ("lung", "brain"):
            (folder / source / tissue).mkdir(parents=True)
            for number in range(TILES):
                pixels = draw.integers(0, 256, (TILE_PX, TILE_PX, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / source / tissue / f"{number}.png")
    config = {"question_counts": [QUESTIONS], "study": {"questions": 12}}
    (folder / "quiz.json").write_text(json.dumps(config | {"starts_per_minute": 100_000}))


def start_server(folder: Path, *arguments: str) -> tuple[subprocess.Popen, int]:
    """Return the server's process and port."""
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "web_quiz.py"), "--config", "quiz.json", "--store", "q.sqlite"]
        + ["--no_browser", "--port", "0", *arguments],
        cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    said = process.stdout.readline()
    process.stdout.readline()
    return process, int(re.search(r":(\d+)/", said)[1])


async def load(port: int, players: int, seconds: float, kill_after: float, process) -> list[Player]:
    """Let the players play; kill the server after some seconds (0: not at all)."""
    crowd = [Player(port, random.Random(number)) for number in range(players)]
    until = time.perf_counter() + seconds
    games = [asyncio.ensure_future(player.play(until)) for player in crowd]
    if kill_after:
        await asyncio.sleep(kill_after)
        process.kill()
    await asyncio.gather(*games)
    return crowd


def stored_answers(folder: Path) -> list[tuple[str, int, str]]:
    """Return (share, position, choice) of every stored answer."""
    connection = sqlite3.connect(folder / "q.sqlite")
    rows = connection.execute(
        "SELECT share, position, choice FROM answer JOIN session ON session.id = session_id"
    ).fetchall()
    connection.close()
    return rows


def faults(crowd: list[Player], rows: list[tuple[str, int, str]]) -> tuple[int, int]:
    """Return how many acknowledged answers are lost or changed, and how many stored twice."""
    acknowledged = {answer for player in crowd for answer in player.acknowledged}
    return len(acknowledged - set(rows)), len(rows) - len({row[:2] for row in rows})


def report(figure: str, ours: float, target: str, **more: float) -> None:
    """Print one figure."""
    print(json.dumps({"figure": figure, "ours": round(ours, 2), "target": target, **more}))
    sys.stdout.flush()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--players", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=40.0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_folders(folder)
        tiles = ["--real", "real", "--generated", "gan", "rna-gan"]
        process, port = start_server(folder, *tiles)
        crowd = asyncio.run(load(port, args.players, args.seconds, 0, process))
        times = {
            kind: 1000 * np.concatenate([player.times[kind] for player in crowd])
            for kind in ("answer", "page", "tile")
        }
        for kind, found in times.items():
            report(
                f"{args.players} players, {kind}, p95, ms", float(np.percentile(found, 95)),
                "< 150", requests=len(found), median=round(float(np.median(found)), 2),
                largest=round(float(found.max()), 1), per_second=round(len(found) / args.seconds),
            )  # fmt: skip
        lost, doubled = faults(crowd, stored_answers(folder))
        given = sum(len(player.acknowledged) for player in crowd)
        refused = len(times["answer"]) - given
        report("acknowledged answers lost", lost, "0", acknowledged=given, refused=refused)
        report("answers doubled", doubled, "0")
        crowd = asyncio.run(load(port, args.players, 15, 8, process))
        process.wait()
        rows = stored_answers(folder)
        given = sum(len(player.acknowledged) for player in crowd)
        lost, doubled = faults(crowd, rows)
        report("acknowledged answers lost by kill -9", lost, "0", acknowledged=given)
        report("answers doubled after kill -9", doubled, "0")
        process, port = start_server(folder)
        again = Player(port, random.Random(0))
        again.cookies = dict(crowd[0].cookies)

        async def next_question() -> str:
            await again.connect()
            _, page = await again.send("GET", "/play")
            again.writer.close()
            return page.decode()

        found = dict(HIDDEN.findall(asyncio.run(next_question())))
        share = crowd[0].acknowledged[-1][0]
        expected = sum(row[0] == share for row in rows)
        continued = found.get("share") == share and int(found["position"]) == expected
        report("a killed game continues at its next question", float(continued), "1")
        process.terminate()
        process.wait()


if __name__ == "__main__":
    main()
