"""The store of a synthesis: SQLite, one row a request, written before it is sent."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from limbeck.errors import ConfigError, RunError, StorageError
from limbeck.synth.teacher import Answer, Request

__all__ = ["Ledger", "StoredAnswer", "Totals"]

_SCHEMA = """
CREATE TABLE IF NOT EXISTS plan (one INTEGER PRIMARY KEY CHECK (one = 1), told TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS requests (
    ordinal INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    key TEXT NOT NULL UNIQUE,
    messages TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('sent', 'done', 'again', 'unsure', 'refused')),
    attempts INTEGER NOT NULL,
    unsure INTEGER NOT NULL DEFAULT 0,
    reserve REAL NOT NULL,
    cost REAL NOT NULL DEFAULT 0,
    prompt_tokens INTEGER,
    answer_tokens INTEGER,
    finish TEXT,
    text TEXT,
    raw TEXT,
    failures TEXT NOT NULL DEFAULT '[]',
    sent_at TEXT NOT NULL,
    ended_at TEXT
);
"""
_KEPT = 2000  # characters of a failed attempt's answer


@dataclass(frozen=True, slots=True)
class StoredAnswer:
    """An answer in the store."""

    ordinal: int
    id: str
    text: str
    finish: str


@dataclass(frozen=True, slots=True)
class Totals:
    """What was spent.

    Attributes:
        done: requests answered.
        unsure: requests that may have been answered and billed, without their answer here.
        refused: requests that can never be answered.
        cost: of the answers, by the usage that the teacher stated; where it stated none, at most.
        at_risk: most that attempts without an answer may have cost beside.
        prompt_tokens: stated.
        answer_tokens: stated.
    """

    done: int
    unsure: int
    refused: int
    cost: float
    at_risk: float
    prompt_tokens: int
    answer_tokens: int

    @property
    def spent(self) -> float:
        """What counts against the budget."""
        return self.cost + self.at_risk


class Ledger:
    """One SQLite file, written by one process at a time; every change is on the disk before the call returns.

    States of a request: ``sent`` (on its way; after a kill its outcome is not known), ``done``, ``again`` (without
    answer, may be sent), ``unsure`` (perhaps answered and billed: not sent again) and ``refused``.

    Args:
        path: of the file.
        plan: what the requests are made from; another plan's file is refused.
        honours_keys: the endpoint bills an idempotency key once: what is unsure may go out again, and its answer
            settles it.

    Raises:
        ConfigError: the file holds another plan's requests.
        RunError: another process writes it.
        StorageError: it cannot be opened, or is no such file.
    """

    def __init__(self, path: Path, plan: str, *, honours_keys: bool = False) -> None:
        self._path, self._honours = path, honours_keys
        with self._sentences():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, timeout=0.5, isolation_level=None)
            self._db.execute("PRAGMA locking_mode = EXCLUSIVE")
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")
            self._db.executescript(_SCHEMA)
            self._db.execute("INSERT OR IGNORE INTO plan VALUES (1, ?)", (plan,))
            (there,) = self._db.execute("SELECT told FROM plan").fetchone()
        if there != plan:
            self._db.close()
            raise ConfigError(f"{path} holds the answers of another plan: {_difference(there, plan)}; use a new folder")

    @contextmanager
    def _sentences(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            if "locked" in str(error):
                raise RunError(f"another process writes {self._path}: wait for it, or use another folder") from None
            raise StorageError(f"{self._path} cannot be written: {error}") from None
        except sqlite3.DatabaseError as error:
            raise StorageError(f"{self._path} is no store of answers: {error}; move it away") from None
        except OSError as error:
            raise StorageError(f"{self._path} cannot be made: {error}") from None

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self._db.close()

    def recover(self) -> int:
        """Settle what a kill left on its way; return how many requests that were."""
        with self._sentences():
            lost = self._db.execute("UPDATE requests SET state = 'unsure', unsure = unsure + 1 WHERE state = 'sent'")
            if self._honours:
                self._db.execute("UPDATE requests SET state = 'again' WHERE state = 'unsure'")
        return lost.rowcount

    def settled(self) -> set[int]:
        """Return the ordinals that must not be sent again."""
        with self._sentences():
            found = self._db.execute("SELECT ordinal FROM requests WHERE state IN ('done', 'unsure', 'refused')")
            return {ordinal for (ordinal,) in found}

    def send(self, request: Request, reserve: float) -> None:
        """Write that ``request`` is about to be sent, and the most that it may cost."""
        told = json.dumps([m.plain() for m in request.messages], ensure_ascii=False)
        with self._sentences():
            self._db.execute(
                "INSERT INTO requests (ordinal, id, key, messages, state, attempts, reserve, sent_at) "
                "VALUES (?, ?, ?, ?, 'sent', 1, ?, ?) "
                "ON CONFLICT (ordinal) DO UPDATE SET state = 'sent', attempts = attempts + 1",
                (request.ordinal, request.id, request.key, told, reserve, _now()),
            )

    def answered(self, request: Request, answer: Answer, cost: float) -> None:
        """Write the answer and what it cost."""
        with self._sentences():
            self._db.execute(
                "UPDATE requests SET state = 'done', cost = ?, prompt_tokens = ?, answer_tokens = ?, finish = ?, "
                "text = ?, raw = ?, ended_at = ?, unsure = unsure * ? WHERE ordinal = ?",
                (cost, answer.prompt_tokens, answer.answer_tokens, answer.finish, _plain(answer.text),
                 _plain(answer.raw), _now(), int(not self._honours), request.ordinal),
            )  # fmt: skip

    def failed(self, request: Request, state: str, reason: str, raw: str, unsure: bool) -> None:
        """Write that an attempt failed; ``state`` is ``again``, ``unsure`` or ``refused``."""
        with self._sentences():
            (before,) = self._db.execute(
                "SELECT failures FROM requests WHERE ordinal = ?", (request.ordinal,)
            ).fetchone()
            failures = [*json.loads(before), {"at": _now(), "reason": reason, "raw": raw[:_KEPT]}]
            self._db.execute(
                "UPDATE requests SET state = ?, unsure = unsure + ?, failures = ?, ended_at = ? WHERE ordinal = ?",
                (state, int(unsure), _plain(json.dumps(failures)), _now(), request.ordinal),
            )

    def totals(self) -> Totals:
        """Add up what was spent; requests on their way count with the most that they may cost."""
        with self._sentences():
            row = self._db.execute(
                "SELECT TOTAL(state = 'done'), TOTAL(state = 'unsure'), TOTAL(state = 'refused'), TOTAL(cost), "
                "TOTAL(reserve * MIN(unsure + (state = 'sent'), ?)), TOTAL(prompt_tokens), TOTAL(answer_tokens) "
                "FROM requests",
                (1 if self._honours else 1 << 40,),
            ).fetchone()
        done, unsure, refused, cost, risk, asked, said = row
        return Totals(int(done), int(unsure), int(refused), cost, risk, int(asked), int(said))

    def answers(self) -> list[StoredAnswer]:
        """Return all answers, by ordinal: the order in which they came leaves no trace."""
        with self._sentences():
            found = self._db.execute(
                "SELECT ordinal, id, text, finish FROM requests WHERE state = 'done' ORDER BY ordinal"
            )
            return [StoredAnswer(*row) for row in found]


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _plain(text: str) -> str:
    """Text without lone surrogates, which SQLite cannot hold."""
    return text.encode("utf-8", "replace").decode()


def _difference(there: str, here: str) -> str:
    """Name the first key in which two plans differ."""
    old, new = json.loads(there), json.loads(here)
    for name in (*old, *new):
        if old.get(name) != new.get(name):
            return f"its {name} is {json.dumps(old.get(name))[:60]}, not {json.dumps(new.get(name))[:60]}"
    return "it was written in another order"
