"""People's judgements in one SQLite file: who is asked what, and what they answered.

Each annotator has a queue of numbered positions, each with an item (a prompt and its answers in a shuffled order). An item
is given to as many annotators as it needs judgements, and given to somebody else if its lease runs out.
`judgements` is append-only: an undo or a corrected ranking is a new row, and triggers refuse UPDATE and DELETE. The newest
row for an annotator's position counts. A judgement is confirmed once its transaction is on disk (write-ahead log,
synchronous=FULL), so that killing the server loses nothing that the page has reported as saved.
"""

import hashlib
import json
import sqlite3
import statistics
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from random import Random

from llmrecipes.config import InputError
from llmrecipes.formats import turn_text
from llmrecipes.ranking.items import in_stored_order
from llmrecipes.ranking.schema import open_database

LEASE_SECONDS = 3600  # an item given out but not judged for this long may be given to somebody else
REPEAT_GAP = 8  # positions between an item and its repetition
# The only string ever inserted into the text of a query; values are passed as parameters (nosec B608 below).
NEWEST = "SELECT MAX(seq) FROM judgements GROUP BY annotator, position"


class Store:
    """The database at `path`, created if it does not exist.

    Args:
        samples: rows of this round with prompt_id, prompt, responses (and optionally model, sampling); None: read only.
        priority: for each sample, how early it is shown (highest first); None: random.
        overlap: share of items judged by `overlap_annotators` people; each of the others is judged by one person.
        repeat_share: share of an annotator's queue that repeats items they have judged before.

    Raises:
        InputError: the file is not a database of ours, is of another version, or holds this round with other samples.
    """

    def __init__(
        self,
        path: str | Path,
        samples: Sequence[dict] | None = None,
        *,
        round: int = 1,
        priority: Sequence[float] | None = None,
        overlap: float = 0.0,
        overlap_annotators: int = 3,
        repeat_share: float = 0.0,
        seed: int = 0,
    ):
        self.path, self.round, self.seed, self.repeat_share = Path(path), round, seed, repeat_share
        if samples is None and not self.path.exists():
            raise InputError(f"{path}: does not exist; nobody has judged anything yet")
        self._lock = threading.RLock()
        self._db = open_database(self.path)
        if samples is not None:
            self._add_round(samples, priority, overlap, overlap_annotators)

    def close(self) -> None:
        self._db.close()

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    def read(self, query: str, *values) -> list[sqlite3.Row]:
        with self._lock:
            return self._db.execute(query, values).fetchall()

    # --- what is asked ----------------------------------------------------------------------------------------------

    def _add_round(self, samples, priority, overlap, overlap_annotators) -> None:
        ids = [_item_id(row) for row in samples]
        held = {row["item_id"] for row in self.read("SELECT item_id FROM items WHERE round = ?", self.round)}
        if held:
            if held != set(ids):
                raise InputError(
                    f"{self.path}: holds round {self.round} of other answers; for new ones set `round: {self.round + 1}`, "
                    "for another run choose another `database:`"
                )
            return
        rng = Random(f"{self.seed}/{self.round}")
        keys = [-p for p in priority] if priority is not None else [rng.random() for _ in ids]
        places = {index: place for place, index in enumerate(sorted(range(len(ids)), key=lambda i: (keys[i], i)))}
        rows = []
        for index, (item_id, sample) in enumerate(zip(ids, samples, strict=True)):
            shared = Random(f"{self.seed}/overlap/{item_id}").random() < overlap
            wanted = overlap_annotators if shared else 1
            rows.append((item_id, self.round, places[index], wanted, json.dumps(sample, ensure_ascii=False)))
        with self.transaction() as db:
            db.executemany(
                "INSERT OR IGNORE INTO items (item_id, round, place, wanted, sample) VALUES (?, ?, ?, ?, ?)", rows
            )

    def current(self, annotator: str) -> int | None:
        """Position of the first item waiting for `annotator`, assigning a new one if there is none; None if nothing is
        left."""
        with self.transaction() as db:
            waiting = "SELECT MIN(position) p FROM queue WHERE annotator = ? AND state IN ('open', 'late')"
            position = db.execute(waiting, (annotator,)).fetchone()["p"]
            return position if position is not None else self._give_out(db, annotator)

    def _give_out(self, db: sqlite3.Connection, annotator: str) -> int | None:
        last = db.execute("SELECT MAX(position) p FROM queue WHERE annotator = ?", (annotator,)).fetchone()["p"]
        position = 1 if last is None else last + 1
        rng, item, is_repeat = Random(f"{self.seed}/{annotator}/{position}"), None, 0
        if rng.random() < self.repeat_share:
            again = db.execute(
                "SELECT item_id FROM queue WHERE annotator = ? AND position <= ? GROUP BY item_id "
                "HAVING COUNT(*) = 1 AND MAX(state) = 'rank' ORDER BY item_id",
                (annotator, position - REPEAT_GAP),
            ).fetchall()
            if again:
                item, is_repeat = rng.choice(again)["item_id"], 1
        if item is None:
            free = self._free(db, annotator)
            if free is None and self._take_back_forgotten(db):
                free = self._free(db, annotator)
            if free is None:
                return None
            item = free["item_id"]
            db.execute("UPDATE items SET taken = taken + 1 WHERE item_id = ?", (item,))
        sample = json.loads(db.execute("SELECT sample FROM items WHERE item_id = ?", (item,)).fetchone()["sample"])
        shown = rng.sample(range(len(sample["responses"])), len(sample["responses"]))
        db.execute(
            "INSERT INTO queue VALUES (?, ?, ?, ?, ?, 'open', ?)",
            (annotator, position, item, is_repeat, json.dumps(shown), time.time()),
        )
        return position

    def _free(self, db: sqlite3.Connection, annotator: str) -> sqlite3.Row | None:
        return db.execute(
            "SELECT item_id FROM items i WHERE round = ? AND taken < wanted AND NOT EXISTS "
            "(SELECT 1 FROM queue q WHERE q.item_id = i.item_id AND q.annotator = ?) ORDER BY place LIMIT 1",
            (self.round, annotator),
        ).fetchone()

    def _take_back_forgotten(self, db: sqlite3.Connection) -> int:
        """Releases items that were given out long ago and never judged; whoever had them may still judge them."""
        old = db.execute(
            "SELECT annotator, position, item_id FROM queue WHERE state = 'open' AND NOT is_repeat AND time < ?",
            (time.time() - LEASE_SECONDS,),
        ).fetchall()
        for row in old:
            self._set_state(db, row["annotator"], row["position"], "late")
        return len(old)

    def _set_state(self, db: sqlite3.Connection, annotator: str, position: int, state: str) -> None:
        """Sets a position's state. `taken` of an item counts the annotators who have ranked it or have it open."""
        row = db.execute("SELECT * FROM queue WHERE annotator = ? AND position = ?", (annotator, position)).fetchone()
        counts = [s in ("open", "rank") and not row["is_repeat"] for s in (row["state"], state)]
        db.execute("UPDATE items SET taken = taken + ? WHERE item_id = ?", (counts[1] - counts[0], row["item_id"]))
        db.execute(
            "UPDATE queue SET state = ?, time = ? WHERE annotator = ? AND position = ?",
            (state, time.time(), annotator, position),
        )

    def shown(self, annotator: str, position: int) -> dict | None:
        """The item at `position` of the annotator's queue: {prompt, answers (as shown), round, judgement}, or None.

        `judgement` is the newest one, with places as shown, or None; nothing reveals which model wrote an answer.
        """
        rows = self.read(
            "SELECT q.order_shown, q.state, i.sample, i.round FROM queue q JOIN items i USING (item_id) "
            "WHERE q.annotator = ? AND q.position = ?",
            annotator,
            position,
        )
        if not rows:
            return None
        sample, order = json.loads(rows[0]["sample"]), json.loads(rows[0]["order_shown"])
        prompt = sample["prompt"]
        view = {"position": position, "round": rows[0]["round"], "state": rows[0]["state"], "judgement": None}
        turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        view["prompt"] = [{"role": turn["role"], "content": turn_text(turn)} for turn in turns]
        view["answers"] = [sample["responses"][i] for i in order]
        newest = self.read(
            "SELECT * FROM judgements WHERE annotator = ? AND position = ? AND ranking IS NOT NULL "
            "ORDER BY seq DESC LIMIT 1",
            annotator,
            position,
        )
        if newest:
            place = {index: shown for shown, index in enumerate(order)}
            view["judgement"] = {
                "ranking": [[place[i] for i in group] for group in json.loads(newest[0]["ranking"])],
                "flags": {str(place[int(i)]): flags for i, flags in json.loads(newest[0]["flags"]).items()},
                "all_bad": bool(newest[0]["all_bad"]),
                "note": newest[0]["note"],
            }
        return view

    def progress(self, annotator: str) -> dict:
        """{done, skipped (positions), total, last_position, median_seconds} of the annotator in this round."""
        queue = self.read(
            "SELECT position, state, is_repeat, taken, wanted FROM queue JOIN items USING (item_id) "
            "WHERE annotator = ? AND round = ?",
            annotator,
            self.round,
        )
        done = sum(row["state"] == "rank" for row in queue)
        waiting = sum(row["state"] in ("open", "late") for row in queue)
        free = self.read("SELECT COUNT(*) n FROM items WHERE round = ? AND taken < wanted", self.round)[0]["n"]
        free -= sum(row["taken"] < row["wanted"] and not row["is_repeat"] for row in queue)
        newest = "SELECT seconds FROM judgements WHERE annotator = ? AND kind = 'rank' ORDER BY seq DESC LIMIT 50"
        seconds = [row["seconds"] for row in self.read(newest, annotator)]
        return {
            "done": done,
            "skipped": [row["position"] for row in queue if row["state"] == "skip"],
            "total": done + waiting + free,
            "last_position": max((row["position"] for row in queue), default=0),
            "median_seconds": round(statistics.median(seconds), 1) if seconds else None,
        }

    # --- what is answered -------------------------------------------------------------------------------------------

    def add_judgement(
        self,
        annotator: str,
        position: int,
        judgement_id: str,
        kind: str,
        *,
        ranking: list[list[int]] | None = None,
        all_bad: bool = False,
        flags: dict | None = None,
        note: str = "",
        seconds: float = 0.0,
        annotator_kind: str = "person",
    ) -> int:
        """Appends a judgement and returns its number; repeating the same `judgement_id` changes nothing.

        kind: `rank` (with `ranking` and `flags`, places as shown; every answer is ranked), `skip` or `undo`.

        Raises:
            InputError: unknown position, kind or flag, or a ranking that does not order each answer exactly once.
        """
        where = f"position {position} of {annotator}"
        with self.transaction() as db:
            known = db.execute("SELECT seq, annotator FROM judgements WHERE id = ?", (judgement_id,)).fetchone()
            if known:
                if known["annotator"] != annotator:
                    raise InputError(f"{where}: judgement id {judgement_id[:40]} was already used")
                return known["seq"]
            entry = _asked(db, annotator, position, where)
            sample, order = json.loads(entry["sample"]), json.loads(entry["order_shown"])
            if kind not in ("rank", "skip", "undo"):
                raise InputError(f"{where}: kind {kind!r} is not one of rank, skip, undo")
            is_rank = kind == "rank"
            if is_rank:
                ranking, flags = in_stored_order(ranking, flags or {}, sample["responses"], order, where)
            row = {
                "id": judgement_id,
                "annotator": annotator,
                "annotator_kind": annotator_kind,
                "position": position,
                "item_id": entry["item_id"],
                "kind": kind,
                "ranking": json.dumps(ranking) if is_rank else None,
                "all_bad": int(all_bad),
                "flags": json.dumps(flags) if is_rank else None,
                "note": note,
                "seconds": seconds,
                "order_shown": entry["order_shown"],
                "is_repeat": entry["is_repeat"],
                "round": entry["round"],
                "model": sample.get("model"),
                "sampling": json.dumps(sample.get("sampling")),
                "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            }
            columns, marks = ", ".join(row), ", ".join("?" * len(row))
            cursor = db.execute(f"INSERT INTO judgements ({columns}) VALUES ({marks})", (*row.values(),))  # nosec B608
            self._set_state(db, annotator, position, "open" if kind == "undo" else kind)
            return cursor.lastrowid

    def undo(self, annotator: str, judgement_id: str) -> int | None:
        """Takes back the annotator's newest ranking or skip that still counts; returns its position, or None."""
        with self._lock:
            known = self.read("SELECT position FROM judgements WHERE id = ?", judgement_id)
            newest = known or self.read(
                f"SELECT position FROM judgements WHERE seq IN ({NEWEST}) AND annotator = ? AND kind != 'undo' "  # nosec B608
                "AND round = ? ORDER BY seq DESC LIMIT 1",
                annotator,
                self.round,
            )
            if not newest:
                return None
            self.add_judgement(annotator, newest[0]["position"], judgement_id, "undo")
            return newest[0]["position"]

    def judgements(self) -> list[dict]:
        """The judgements that count, of all rounds and annotators, each with its sample's row; includes repeated items."""
        rows = self.read(
            "SELECT j.*, i.sample FROM judgements j JOIN items i USING (item_id) "
            f"WHERE seq IN ({NEWEST}) AND kind = 'rank' "  # nosec B608
            "ORDER BY seq"
        )
        return [_judgement(row) for row in rows]

    def require_judgements(self) -> None:
        """InputError if nobody has judged anything."""
        if not self.read(f"SELECT 1 FROM judgements WHERE seq IN ({NEWEST}) AND kind = 'rank' LIMIT 1"):  # nosec B608
            raise InputError(f"{self.path}: nobody has judged anything yet; run the same command again to open the page")

    def count(self) -> int:
        """Number of rows ever written, including undone and skipped ones."""
        return self.read("SELECT COUNT(*) n FROM judgements")[0]["n"]


def _judgement(row: sqlite3.Row) -> dict:
    parsed = {name: json.loads(row[name]) for name in ("ranking", "flags", "order_shown", "sample")}
    return dict(row) | parsed | {"all_bad": bool(row["all_bad"]), "is_repeat": bool(row["is_repeat"])}


def _item_id(sample: dict) -> str:
    text = json.dumps([sample["prompt_id"], sample["prompt"], sample["responses"]], ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _asked(db: sqlite3.Connection, annotator: str, position: int, where: str) -> sqlite3.Row:
    """What the annotator was asked at that position of their queue; InputError if nothing was."""
    entry = db.execute(
        "SELECT q.*, i.sample, i.round FROM queue q JOIN items i USING (item_id) WHERE annotator = ? AND position = ?",
        (annotator, position),
    ).fetchone()
    if entry is None:
        raise InputError(f"{where}: nothing was asked there")
    return entry
