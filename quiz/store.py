"""The quiz's SQLite file: tiles, sessions, questions and answers.

An answer is acknowledged after its transaction was flushed to disk (write-ahead log, synchronous
FULL), and a question takes one answer only: its primary key says so, whatever is sent twice.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import sqlite3
import threading
import time
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from quiz.plan import Question
from quiz.tiles import QuizTile, stored_png
from runtime.errors import UserError

FORMAT = "rna-gan-quiz/1"
SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE tile (
    id INTEGER PRIMARY KEY, source TEXT NOT NULL, tissue TEXT NOT NULL, name TEXT NOT NULL,
    png BLOB NOT NULL);
CREATE TABLE session (
    id INTEGER PRIMARY KEY, kind TEXT NOT NULL CHECK (kind IN ('play', 'study')),
    owner TEXT NOT NULL, share TEXT NOT NULL UNIQUE, name TEXT NOT NULL, settings TEXT NOT NULL,
    questions INTEGER NOT NULL, created REAL NOT NULL, finished REAL, correct INTEGER,
    seconds REAL);
CREATE INDEX session_owner ON session (owner, id);
CREATE UNIQUE INDEX reader_name ON session (name) WHERE kind = 'study';
CREATE TABLE question (
    session_id INTEGER NOT NULL REFERENCES session (id), position INTEGER NOT NULL,
    left_tile INTEGER NOT NULL REFERENCES tile (id), right_tile INTEGER REFERENCES tile (id),
    left_token TEXT NOT NULL UNIQUE, right_token TEXT UNIQUE,
    first_shown REAL, last_shown REAL, shows INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (session_id, position));
CREATE TABLE answer (
    session_id INTEGER NOT NULL, position INTEGER NOT NULL, choice TEXT NOT NULL,
    ratings TEXT NOT NULL, correct INTEGER, seconds REAL NOT NULL, answered REAL NOT NULL,
    PRIMARY KEY (session_id, position),
    FOREIGN KEY (session_id, position) REFERENCES question (session_id, position)) WITHOUT ROWID;
"""
ANSWERS = """
SELECT session.id AS session_id, session.kind, session.name, session.share, session.settings,
    question.position, left_tile, right_tile, left_token, right_token, shows,
    choice, ratings, answer.correct, answer.seconds, answered
FROM answer JOIN question USING (session_id, position) JOIN session ON session.id = session_id
"""


class Session(NamedTuple):
    """A game or a reader's part in the study; `position` is that of the next question, from 0."""

    id: int
    kind: str
    share: str
    name: str
    settings: dict[str, Any]
    questions: int
    created: float
    finished: float | None
    position: int


class Store:
    """One SQLite file, used by all threads of one process; a connection for each.

    Attributes:
        secret: 32 random bytes, made with the file, from which all signatures derive.
    """

    def __init__(self, path: str | Path) -> None:
        """Open a store, or make an empty one.

        Raises:
            UserError: the file is something else, or cannot be written.
        """
        self.path = Path(path)
        self._local, self._writing = threading.local(), threading.Lock()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # Names, answers and the secret: for its owner only.
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600))
            with self.writing() as connection:
                if not connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                    for statement in SCHEMA.split(";"):
                        connection.execute(statement)
                    values = (("format", FORMAT), ("secret", secrets.token_hex(32)))
                    connection.executemany("INSERT INTO meta VALUES (?, ?)", values)
            found = self.meta("format")
        except (sqlite3.Error, OSError) as error:
            raise UserError(f"{path}: cannot be used as the quiz's store ({error})") from error
        if found != FORMAT:
            raise UserError(f"{path}: a store of format {found!r}, {FORMAT!r} is needed")
        self.secret = bytes.fromhex(self.meta("secret") or "")

    @property
    def _connection(self) -> sqlite3.Connection:
        if not hasattr(self._local, "connection"):
            connection = sqlite3.connect(self.path, timeout=10, isolation_level=None)
            connection.row_factory = sqlite3.Row
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA foreign_keys = ON")
            self._local.connection = connection
        return self._local.connection

    @contextlib.contextmanager
    def writing(self, flushed: bool = True) -> Iterator[sqlite3.Connection]:
        """Yield the thread's connection inside a transaction; an error undoes all of it.

        Not `flushed`, it survives the process, but not necessarily a power cut; readers do not
        wait for the disk then.

        The lock makes threads of this process queue up in turn; SQLite's own lock, which other
        processes see, would let them sleep and try again.
        """
        connection = self._connection
        with self._writing:
            connection.execute(f"PRAGMA synchronous = {'FULL' if flushed else 'NORMAL'}")
            connection.execute("BEGIN IMMEDIATE")
            end = "ROLLBACK"
            try:
                yield connection
                end = "COMMIT"
            finally:
                connection.execute(end)

    def copy_to(self, path: Path) -> None:
        """Copy the store as it is now, while others may write to it, into a new file."""
        with contextlib.closing(sqlite3.connect(path)) as copy:
            self._connection.backup(copy)

    def close(self) -> None:
        """Close this thread's connection."""
        if hasattr(self._local, "connection"):
            self._local.connection.close()
            del self._local.connection

    def rows(self, query: str, *values: Any) -> list[sqlite3.Row]:
        """Return the rows of a query with `?` placeholders."""
        return self._connection.execute(query, values).fetchall()

    def meta(self, key: str) -> str | None:
        """Return a value kept with the store, or None."""
        found = self.rows("SELECT value FROM meta WHERE key = ?", key)
        return found[0][0] if found else None

    def keep(self, key: str, value: Any) -> bool:
        """Keep a plain value for good; return whether the store holds just that afterwards."""
        text = json.dumps(value, sort_keys=True)
        with self.writing() as connection:
            connection.execute("INSERT OR IGNORE INTO meta VALUES (?, ?)", (key, text))
        return self.meta(key) == text

    def add_tiles(self, tiles: Sequence[QuizTile], origin: Any = None) -> None:
        """Add tiles, all of one size, and keep a plain value, "tiles", that says whose they are."""
        values = [(*tile[:3], zlib.compress(stored_png(tile.pixels), 6)) for tile in tiles]
        with self.writing() as connection:
            connection.executemany(
                "INSERT INTO tile (source, tissue, name, png) VALUES (?, ?, ?, ?)", values
            )
            text = json.dumps(origin, sort_keys=True)
            connection.execute("INSERT INTO meta VALUES ('tiles', ?)", (text,))

    def tiles(self) -> dict[int, tuple[str, str, str, bytes]]:
        """Return source, tissue, name and PNG file of every tile by its number."""
        found = self.rows("SELECT id, source, tissue, name, png FROM tile ORDER BY id")
        return {row[0]: (row[1], row[2], row[3], zlib.decompress(row[4])) for row in found}

    def new_session(
        self, kind: str, owner: str, name: str, settings: dict, questions: Sequence[Question]
    ) -> str:
        """Start a game or a reader's part and return the random id that its pages carry.

        Args:
            kind: "play" or "study".
            owner: SHA-256 of the cookie or invitation that may answer.
            name: the reader's; empty for a player.
            settings: plain values kept with it.
            questions: in their order.

        Raises:
            sqlite3.IntegrityError: a reader of this name exists.
        """
        share = secrets.token_urlsafe(16)
        with self.writing() as connection:
            number = connection.execute(
                "INSERT INTO session (kind, owner, share, name, settings, questions, created)"
                " VALUES (?, ?, ?, ?, ?, ?, ?)",
                (kind, owner, share, name, json.dumps(settings), len(questions), time.time()),
            ).lastrowid
            connection.executemany(
                "INSERT INTO question (session_id, position, left_tile, right_tile, left_token,"
                " right_token) VALUES (?, ?, ?, ?, ?, ?)",
                [
                    (number, position, left, right, secrets.token_urlsafe(16),
                     None if right is None else secrets.token_urlsafe(16))
                    for position, (left, right) in enumerate(questions)
                ],
            )  # fmt: skip
        return share

    def session(self, column: str, value: str, kind: str) -> Session | None:
        """Return the newest session of a kind whose "owner" or "share" is `value`, or None."""
        if column not in ("owner", "share"):
            raise ValueError(column)
        found = self.rows(
            f"SELECT *, (SELECT count(*) FROM answer WHERE session_id = session.id) AS position"
            f" FROM session WHERE {column} = ? AND kind = ? ORDER BY id DESC LIMIT 1",
            value,
            kind,
        )
        return _session(found[0]) if found else None

    def sessions(self, kind: str) -> list[Session]:
        """Return all sessions of a kind, oldest first."""
        found = self.rows(
            "SELECT *, (SELECT count(*) FROM answer WHERE session_id = session.id) AS position"
            " FROM session WHERE kind = ? ORDER BY id",
            kind,
        )
        return [_session(row) for row in found]

    def question(self, session: Session, position: int) -> sqlite3.Row | None:
        """Return a question with its answer's columns, which are None before it is answered."""
        found = self.rows(
            "SELECT question.*, choice, ratings, correct, seconds, answered FROM question"
            " LEFT JOIN answer USING (session_id, position) WHERE session_id = ? AND position = ?",
            session.id,
            position,
        )
        return found[0] if found else None

    def show(self, session: Session, position: int) -> None:
        """Note that a question is on the screen now."""
        now = time.time()
        with self.writing(flushed=False) as connection:
            connection.execute(
                "UPDATE question SET first_shown = coalesce(first_shown, ?), last_shown = ?,"
                " shows = shows + 1 WHERE session_id = ? AND position = ?",
                (now, now, session.id, position),
            )

    def answer(
        self,
        session: Session,
        position: int,
        choice: str,
        ratings: dict[str, int],
        correct: bool | None,
        seconds: float,
    ) -> bool:
        """Store an answer and return True; False where one was stored before, which stays."""
        now = time.time()
        with self.writing() as connection:
            stored = connection.execute(
                "INSERT OR IGNORE INTO answer VALUES (?, ?, ?, ?, ?, ?, ?)",
                (session.id, position, choice, json.dumps(ratings), correct, seconds, now),
            ).rowcount
            if stored and position == session.questions - 1:
                connection.execute(
                    "UPDATE session SET finished = ?1, (correct, seconds) = (SELECT sum(correct),"
                    " avg(seconds) FROM answer WHERE session_id = ?2) WHERE id = ?2",
                    (now, session.id),
                )
        return bool(stored)

    def answers(self, session: Session | None = None) -> list[sqlite3.Row]:
        """Return the answers of a session, or of all, with their questions, in order."""
        if session is None:
            return self.rows(ANSWERS + " ORDER BY session_id, position")
        return self.rows(ANSWERS + " WHERE session_id = ? ORDER BY position", session.id)

    def rename(self, session: Session, name: str) -> None:
        """Give a game its player's name."""
        with self.writing() as connection:
            connection.execute("UPDATE session SET name = ? WHERE id = ?", (name, session.id))

    def tile_of(self, token: str) -> int | None:
        """Return the tile's number behind the random id in a page, or None."""
        found = self.rows(
            "SELECT left_tile FROM question WHERE left_token = ?"
            " UNION ALL SELECT right_tile FROM question WHERE right_token = ?",
            token,
            token,
        )
        return found[0][0] if found else None

    def finished_games(self) -> list[sqlite3.Row]:
        """Return share, name, questions, correct, seconds (mean), finished of finished games."""
        return self.rows(
            "SELECT share, name, questions, correct, seconds, finished FROM session"
            " WHERE kind = 'play' AND finished IS NOT NULL"
        )


def _session(row: sqlite3.Row) -> Session:
    return Session(
        *(row[name] for name in ("id", "kind", "share", "name")),
        json.loads(row["settings"]),
        *(row[name] for name in ("questions", "created", "finished", "position")),
    )
