"""The durable list of jobs: SQLite, so that nothing is lost when the server is killed.

Not in WAL mode, which network file systems of clusters cannot hold.
"""

import json
import secrets
import sqlite3
import threading
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from service.errors import ServiceError
from service.schemas import Job, JobKind, JobState

FINAL = ("done", "failed", "cancelled")
MAX_ATTEMPTS = 5
"""Starts of a job, after which one that never ends is given up."""
MAX_LOG_LINES = 1000
"""Kept of each job, the last ones."""
_FIELDS = tuple(Job.model_fields)
_TABLES = """
CREATE TABLE IF NOT EXISTS jobs (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, kind TEXT NOT NULL, state TEXT NOT NULL,
    stage TEXT, fraction REAL NOT NULL DEFAULT 0, eta_s REAL, created TEXT NOT NULL, started TEXT,
    finished TEXT, error TEXT, input TEXT NOT NULL, model TEXT, name TEXT,
    attempts INTEGER NOT NULL DEFAULT 0, result TEXT, request TEXT NOT NULL,
    is_cancelled INTEGER NOT NULL DEFAULT 0);
CREATE INDEX IF NOT EXISTS jobs_by_state ON jobs (state, seq);
CREATE TABLE IF NOT EXISTS log (job TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE, line TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS log_by_job ON log (job);
CREATE TABLE IF NOT EXISTS stage_seconds (stage TEXT PRIMARY KEY, seconds REAL NOT NULL);
"""


def to_text(time: datetime) -> str:
    """A time as ISO 8601 in UTC, to the millisecond: later times are later in the alphabet too."""
    return time.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _now() -> str:
    return to_text(datetime.now(UTC))


class JobStore:
    """Jobs and their logs in one SQLite file. Safe to use from several threads and processes.

    Parameters
    ----------
    file_path : Path
        Made when it is not there.
    """

    def __init__(self, file_path: Path) -> None:
        self._lock = threading.Lock()
        self._connection = sqlite3.connect(
            file_path, timeout=30.0, check_same_thread=False, isolation_level=None
        )
        self._connection.row_factory = sqlite3.Row
        self._connection.executescript("PRAGMA journal_mode=TRUNCATE; PRAGMA foreign_keys=ON;" + _TABLES)

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._connection.close()

    def add(
        self,
        kind: JobKind,
        request: Mapping[str, Any],
        *,
        input_name: str,
        model: str | None = None,
        name: str | None = None,
        max_queue: int,
    ) -> Job:
        """Put a job at the end of the queue.

        Raises
        ------
        ServiceError
            429 if the queue is full; 409 if a job that is not yet done makes a model of the same name.
        """
        with self._lock, self._connection as db:
            db.execute("BEGIN IMMEDIATE")
            waiting = db.execute("SELECT count(*) FROM jobs WHERE state = 'queued'").fetchone()[0]
            if waiting >= max_queue:
                raise ServiceError(
                    429, f"{waiting} jobs are waiting; the limit is {max_queue}. Try again later."
                )
            if name is not None:
                other = db.execute(
                    "SELECT id FROM jobs WHERE name = ? AND state IN ('queued', 'running')", (name,)
                ).fetchone()
                if other is not None:
                    raise ServiceError(
                        409, f"Job {other['id']} is making a model {name!r} already. Choose another name."
                    )
            job_id = f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(4)}"
            db.execute(
                "INSERT INTO jobs (id, kind, state, created, input, model, name, request)"
                " VALUES (?, ?, 'queued', ?, ?, ?, ?, ?)",
                (job_id, kind, _now(), input_name, model, name, json.dumps(request)),
            )
        return self.get(job_id)

    def get(self, job_id: str) -> Job:
        """One job.

        Raises
        ------
        ServiceError
            404 if there is none of this id.
        """
        return _to_job(self._row(job_id))

    def request_of(self, job_id: str) -> dict[str, Any]:
        """What was asked for."""
        return dict(json.loads(self._row(job_id)["request"]))

    def log_of(self, job_id: str) -> list[str]:
        """The lines that a job wrote, oldest first."""
        return [
            row["line"] for row in self._read("SELECT line FROM log WHERE job = ? ORDER BY rowid", job_id)
        ]

    def recent(self, state: JobState | None = None, limit: int = 1000) -> list[Job]:
        """Jobs, newest first, of one state or of all."""
        where = "" if state is None else "WHERE state = ?"
        values = (limit,) if state is None else (state, limit)
        return [
            _to_job(row)
            for row in self._read(f"SELECT * FROM jobs {where} ORDER BY seq DESC LIMIT ?", *values)
        ]

    def needed_uploads(self) -> set[str]:
        """Names of the uploads that jobs which have not ended read."""
        rows = self._read("SELECT request FROM jobs WHERE state IN ('queued', 'running')")
        requests = [json.loads(row["request"]) for row in rows]
        refs = [
            ref
            for request in requests
            for ref in (request.get("input"), request.get("labels"), *request.get("inputs", []))
        ]
        return {ref["upload"] for ref in refs if ref is not None and ref.get("upload") is not None}

    def claim(self) -> Job | None:
        """Take the job that has waited longest, and mark it as running; None when none waits."""
        rows = self._write(
            "UPDATE jobs SET state = 'running', started = ?, attempts = attempts + 1, stage = NULL,"
            " fraction = 0, eta_s = NULL"
            " WHERE id = (SELECT id FROM jobs WHERE state = 'queued' ORDER BY seq LIMIT 1)"
            " RETURNING *",
            _now(),
        )
        return _to_job(rows[0]) if rows else None

    def report(self, job_id: str, stage: str, fraction: float, eta_s: float | None) -> None:
        """Keep how far a running job is."""
        self._write(
            "UPDATE jobs SET stage = ?, fraction = ?, eta_s = ? WHERE id = ? AND state = 'running'",
            stage,
            fraction,
            eta_s,
            job_id,
        )

    def add_log(self, job_id: str, lines: Iterable[str]) -> None:
        """Keep what a job says; of the last lines only."""
        with self._lock, self._connection as db:
            db.execute("BEGIN IMMEDIATE")
            db.executemany("INSERT INTO log (job, line) VALUES (?, ?)", [(job_id, line) for line in lines])
            db.execute(
                "DELETE FROM log WHERE job = ?1 AND rowid <="
                " (SELECT rowid FROM log WHERE job = ?1 ORDER BY rowid DESC LIMIT 1 OFFSET ?2)",
                (job_id, MAX_LOG_LINES),
            )

    def finish(
        self,
        job_id: str,
        state: JobState,
        *,
        error: str | None = None,
        result: Mapping[str, Any] | None = None,
    ) -> bool:
        """End a running job; False when it had ended before, so that a job ends once."""
        rows = self._write(
            "UPDATE jobs SET state = ?, error = ?, result = ?, finished = ?, eta_s = NULL,"
            " fraction = CASE WHEN ?1 = 'done' THEN 1 ELSE fraction END"
            " WHERE id = ? AND state = 'running' RETURNING id",
            state,
            error,
            None if result is None else json.dumps(result),
            _now(),
            job_id,
        )
        return bool(rows)

    def requeue(self, job_id: str, reason: str) -> None:
        """Let an interrupted job wait again, at its old place; after several times it fails."""
        self.add_log(job_id, [reason])
        with self._lock, self._connection as db:
            db.execute("BEGIN IMMEDIATE")
            db.execute(
                "UPDATE jobs SET state = 'cancelled', finished = ? WHERE id = ? AND state = 'running'"
                " AND is_cancelled",
                (_now(), job_id),
            )
            db.execute(
                "UPDATE jobs SET state = 'failed', finished = ?, error = ? WHERE id = ? AND state = 'running'"
                " AND attempts >= ?",
                (_now(), f"{reason} Given up after {MAX_ATTEMPTS} starts.", job_id, MAX_ATTEMPTS),
            )
            db.execute(
                "UPDATE jobs SET state = 'queued', eta_s = NULL, fraction = 0"
                " WHERE id = ? AND state = 'running'",
                (job_id,),
            )

    def cancel(self, job_id: str) -> Job:
        """Cancel a job that waits, or ask a running one to stop.

        Raises
        ------
        ServiceError
            404 if there is none of this id, 409 if it has ended.
        """
        self._row(job_id)
        self._write(
            "UPDATE jobs SET is_cancelled = 1, finished = CASE state WHEN 'queued' THEN ? END,"
            " state = CASE state WHEN 'queued' THEN 'cancelled' ELSE state END"
            " WHERE id = ? AND state IN ('queued', 'running')",
            _now(),
            job_id,
        )
        job = self.get(job_id)
        if job.state in FINAL and not self._row(job_id)["is_cancelled"]:
            raise ServiceError(
                409, f"Job {job_id} is {job.state}; only one that waits or runs can be cancelled."
            )
        return job

    def cancelling(self) -> list[str]:
        """Ids of running jobs that are to stop."""
        return [
            row["id"] for row in self._read("SELECT id FROM jobs WHERE state = 'running' AND is_cancelled")
        ]

    def remove_finished(self, before: str) -> Sequence[str]:
        """Forget jobs that ended before a time (as `to_text` gives it); their ids."""
        rows = self._write(
            "DELETE FROM jobs WHERE state IN ('done', 'failed', 'cancelled') AND finished < ? RETURNING id",
            before,
        )
        return [row["id"] for row in rows]

    def count(self) -> dict[str, int]:
        """How many jobs there are, by state."""
        counts = dict.fromkeys(("queued", "running", *FINAL), 0)
        rows = self._read("SELECT state, count(*) AS n FROM jobs GROUP BY state")
        return counts | {row["state"]: row["n"] for row in rows}

    def add_stage_seconds(self, seconds: Mapping[str, float]) -> None:
        """Add what stages of a job took."""
        with self._lock, self._connection as db:
            db.execute("BEGIN IMMEDIATE")
            db.executemany(
                "INSERT INTO stage_seconds VALUES (?, ?) ON CONFLICT (stage) DO UPDATE"
                " SET seconds = seconds + excluded.seconds",
                list(seconds.items()),
            )

    def stage_seconds(self) -> dict[str, float]:
        """Seconds that all jobs together spent in each stage."""
        return {row["stage"]: row["seconds"] for row in self._read("SELECT * FROM stage_seconds")}

    def _row(self, job_id: str) -> sqlite3.Row:
        rows = self._read("SELECT * FROM jobs WHERE id = ?", job_id)
        if not rows:
            raise ServiceError(404, f"There is no job {job_id[:100]!r}. See GET /jobs.")
        return rows[0]

    def _read(self, query: str, *values: Any) -> list[sqlite3.Row]:
        with self._lock, closing(self._connection.execute(query, values)) as cursor:
            return cursor.fetchall()

    _write = _read  # each statement is a transaction of its own


def _to_job(row: sqlite3.Row) -> Job:
    values = {name: row[name] for name in _FIELDS}
    values["result"] = None if values["result"] is None else json.loads(values["result"])
    return Job.model_validate(values)
