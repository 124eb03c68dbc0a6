"""The tables of the database of judgements, and opening its file."""

import os
import sqlite3
from pathlib import Path

from llmrecipes.config import InputError

VERSION = 1
SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE items (
    item_id TEXT PRIMARY KEY, round INTEGER NOT NULL, place INTEGER NOT NULL, wanted INTEGER NOT NULL,
    taken INTEGER NOT NULL DEFAULT 0, sample TEXT NOT NULL);
CREATE INDEX items_free ON items (round, place) WHERE taken < wanted;
CREATE TABLE queue (
    annotator TEXT NOT NULL, position INTEGER NOT NULL, item_id TEXT NOT NULL REFERENCES items, is_repeat INTEGER NOT NULL,
    order_shown TEXT NOT NULL, state TEXT NOT NULL, time REAL NOT NULL, PRIMARY KEY (annotator, position));
CREATE INDEX queue_item ON queue (item_id);
CREATE TABLE judgements (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, annotator TEXT NOT NULL, annotator_kind TEXT NOT NULL,
    position INTEGER NOT NULL, item_id TEXT NOT NULL REFERENCES items, kind TEXT NOT NULL, ranking TEXT, all_bad INTEGER,
    flags TEXT, note TEXT, seconds REAL, order_shown TEXT NOT NULL, is_repeat INTEGER NOT NULL, round INTEGER NOT NULL,
    model TEXT, sampling TEXT, time TEXT NOT NULL);
CREATE INDEX judgements_position ON judgements (annotator, position);
CREATE TRIGGER no_update BEFORE UPDATE ON judgements BEGIN SELECT RAISE(ABORT, 'judgements only grow'); END;
CREATE TRIGGER no_delete BEFORE DELETE ON judgements BEGIN SELECT RAISE(ABORT, 'judgements only grow'); END;
"""


def open_database(path: Path) -> sqlite3.Connection:
    """The database at `path`, with its tables, readable only by its owner; created if it does not exist.

    Raises:
        InputError: the file is not a database of ours, is of another version, or cannot be opened.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():  # owner-only before it holds anything; -wal and -shm inherit its mode
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        db = sqlite3.connect(path, check_same_thread=False, isolation_level=None, timeout=10)
        db.row_factory = sqlite3.Row
        tables = {row["name"] for row in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if not tables:
            db.execute("PRAGMA journal_mode = WAL")
            db.executescript(f"BEGIN;{SCHEMA}INSERT INTO meta VALUES ('version', '{VERSION}');COMMIT;")  # nosec B608
        db.execute("PRAGMA synchronous = FULL")
        found = db.execute("SELECT value FROM meta WHERE key = 'version'").fetchone() if tables else None
    except (sqlite3.OperationalError, OSError) as error:
        raise InputError(f"{path}: cannot be opened ({error}); is the folder writable, the disk full?") from None
    except sqlite3.DatabaseError as error:
        raise InputError(f"{path}: is not a database of judgements ({error}); choose another with `database:`") from None
    if tables and (found is None or found["value"] != str(VERSION)):
        what = f"of version {found['value']}" if found else "not one of judgements"
        raise InputError(f"{path}: this database is {what}, expected version {VERSION}; choose another with `database:`")
    for file in (path, Path(f"{path}-wal"), Path(f"{path}-shm")):  # as an earlier version may have left them
        if file.exists() and file.stat().st_mode & 0o077:
            file.chmod(0o600)
    return db
