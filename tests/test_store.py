"""Judgements only grow, survive a kill, go to the right people; bad input is one line and nothing is lost."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from llmrecipes.config import InputError
from llmrecipes.ranking import store as store_module
from llmrecipes.ranking.items import check_items, to_rankings
from llmrecipes.ranking.logins import Logins
from llmrecipes.ranking.store import Store

ROOT = Path(__file__).parent.parent


def samples(count=20, answers=3):
    return [
        {
            "prompt_id": f"p{i}",
            "prompt": [{"role": "user", "content": f"Question {i}"}],
            "model": "abc",
            "sampling": {"seed": 1},
            "responses": [f"answer {i}.{k}" for k in range(answers)],
        }
        for i in range(count)
    ]


def judge(store, who, ranking=None, **more):
    position = store.current(who)
    shown = store.shown(who, position)
    ranking = ranking or [[i] for i in range(len(shown["answers"]))]
    store.add_judgement(who, position, f"{who}-{position}-{time.time_ns()}", "rank", ranking=ranking, seconds=5, **more)
    return position, shown


def test_a_ranking_comes_back_in_the_samples_own_places(tmp_path):
    store = Store(tmp_path / "s.sqlite", samples())
    position, shown = judge(store, "ann", [[2], [0, 1]], flags={"1": ["rude"]}, note="n")
    (row,) = to_rankings(store.judgements())
    assert [row["responses"][i] for i in row["ranking"][0]] == [shown["answers"][2]]
    assert {row["responses"][i] for i in row["ranking"][1]} == set(shown["answers"][:2])
    assert {row["responses"][int(i)]: flags for i, flags in row["flags"].items()} == {shown["answers"][1]: ["rude"]}
    assert [row["responses"][i] for i in row["order_shown"]] == shown["answers"]
    assert row["annotator"] == "ann" and row["note"] == "n" and row["model"] == "abc" and row["seconds"] == 5
    again = store.shown("ann", position)["judgement"]
    assert again == {"ranking": [[2], [0, 1]], "flags": {"1": ["rude"]}, "all_bad": False, "note": "n"}
    assert "model" not in store.shown("ann", position)


def test_a_call_of_a_tool_is_shown_as_text(tmp_path):
    """Its content may be null, which the page could not show."""
    call = {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": {"name": "depth"}}]}
    (row,) = samples(1)
    store = Store(tmp_path / "s.sqlite", [row | {"prompt": [*row["prompt"], call, {"role": "tool", "content": "9"}]}])
    shown = store.shown("ann", store.current("ann"))["prompt"]
    assert [turn["content"] for turn in shown] == ["Question 0", '{"name": "depth"}', "9"]


def test_answers_are_shuffled_differently_for_each_item(tmp_path):
    store = Store(tmp_path / "s.sqlite", samples(40))
    for _ in range(40):
        judge(store, "ann")
    first = Counter(row["order_shown"][0] for row in store.judgements())
    assert set(first) == {0, 1, 2} and max(first.values()) < 25


def test_undo_and_correction_are_rows_of_their_own(tmp_path):
    store = Store(tmp_path / "s.sqlite", samples())
    judge(store, "ann", [[0], [1], [2]])
    store.undo("ann", "undo-0001")
    assert store.judgements() == [] and store.current("ann") == 1
    assert store.undo("ann", "undo-0002") is None
    judge(store, "ann", [[2], [1], [0]])
    store.add_judgement("ann", 1, "corrected", "rank", ranking=[[1], [0, 2]])
    (row,) = store.judgements()
    assert row["ranking"][0] == [row["order_shown"][1]] and store.count() == 4
    with pytest.raises(sqlite3.IntegrityError, match="only grow"):
        store._db.execute("UPDATE judgements SET note = 'x'")
    with pytest.raises(sqlite3.IntegrityError, match="only grow"):
        store._db.execute("DELETE FROM judgements")


def test_the_same_id_twice_is_one_judgement(tmp_path):
    store = Store(tmp_path / "s.sqlite", samples())
    store.current("ann")
    numbers = {store.add_judgement("ann", 1, "same-id-1", "rank", ranking=[[0], [1], [2]]) for _ in range(3)}
    assert numbers == {1} and store.count() == 1
    store.current("bob")
    with pytest.raises(InputError, match="already used"):
        store.add_judgement("bob", 1, "same-id-1", "rank", ranking=[[0], [1], [2]])


def test_undo_reaches_back_over_items_and_a_repeated_request_undoes_once(tmp_path):
    store = Store(tmp_path / "s.sqlite", samples())
    for _ in range(3):
        judge(store, "ann")
    assert store.undo("ann", "undo-0001") == 3
    assert store.undo("ann", "undo-0001") == 3  # the browser sent it again
    assert store.undo("ann", "undo-0002") == 2
    assert len(store.judgements()) == 1


def test_overlap_items_go_to_several_the_others_to_one(tmp_path):
    store = Store(tmp_path / "s.sqlite", samples(50), overlap=0.2, overlap_annotators=3)
    names = ["ann", "bob", "cid", "dot"]
    for _ in range(200):
        for name in names:
            if store.current(name) is not None:
                judge(store, name)
    by_item = Counter(row["item_id"] for row in store.judgements())
    assert len(by_item) == 50 and set(by_item.values()) == {1, 3}
    assert 4 <= sum(n == 3 for n in by_item.values()) <= 18
    assert all(store.progress(name)["total"] == store.progress(name)["done"] for name in names)


def test_a_skipped_item_goes_to_somebody_else_and_a_forgotten_one_too(tmp_path, monkeypatch):
    store = Store(tmp_path / "s.sqlite", samples(1))
    store.current("ann")
    assert store.current("bob") is None
    store.add_judgement("ann", 1, "skip-0001", "skip")
    assert store.progress("ann")["skipped"] == [1] and store.current("ann") is None and store.current("bob") == 1
    other = Store(tmp_path / "t.sqlite", samples(1))
    other.current("ann")
    monkeypatch.setattr(store_module, "LEASE_SECONDS", -1)
    assert other.current("bob") == 1


def test_priority_decides_what_is_asked_first(tmp_path):
    rows = samples(5)
    store = Store(tmp_path / "s.sqlite", rows, priority=[0.1, 0.2, 0.9, 0.3, 0.0])
    asked = [judge(store, "ann")[1]["prompt"][0]["content"] for _ in range(5)]
    assert asked == [f"Question {i}" for i in (2, 3, 1, 0, 4)]


def test_repetitions_come_later_and_stay_out_of_the_export(tmp_path):
    store = Store(tmp_path / "s.sqlite", samples(40), repeat_share=0.3)
    while store.current("ann") is not None:
        judge(store, "ann")
    rows = store.judgements()
    repeats = [row for row in rows if row["is_repeat"]]
    first = {row["item_id"]: row["position"] for row in rows if not row["is_repeat"]}
    assert repeats and all(row["position"] - first[row["item_id"]] >= store_module.REPEAT_GAP for row in repeats)
    assert len(to_rankings(rows)) == 40 == len(first)


def test_rounds_share_a_database_and_other_answers_do_not(tmp_path):
    path = tmp_path / "s.sqlite"
    judge(Store(path, samples()), "ann")
    Store(path, samples())
    newer = [row | {"responses": [text + "!" for text in row["responses"]]} for row in samples()]
    with pytest.raises(InputError, match="set `round: 2`"):
        Store(path, newer)
    second = Store(path, newer, round=2)
    _, shown = judge(second, "ann")
    assert shown["answers"][0].endswith("!") and [row["round"] for row in second.judgements()] == [1, 2]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (
            [{"prompt_id": "1", "prompt": "a", "responses": ["x", "y"]}] * 2,
            "two rows have the prompt_id or prompt '1'; keep one",
        ),
        ([{"prompt_id": "1", "prompt": "a", "responses": ["\n", "  "]}], "the responses of '1' are empty"),
        ([{"prompt_id": "1", "prompt": "a", "responses": ["x", "x "]}], "all responses are the same"),
    ],
)
def test_bad_answers_are_one_line(rows, said):
    with pytest.raises(InputError, match=said):
        check_items(rows)


def test_one_empty_answer_is_a_bad_answer_and_equal_ones_are_not_asked():
    rows = [{"prompt_id": str(n), "prompt": "a", "responses": answers} for n, answers in enumerate((["x", ""], ["x", "x"]))]
    assert check_items(rows) == rows[:1]


@pytest.mark.parametrize(
    "ranking", [None, [], [[0]], [[0], [1], [1]], [[0], [1], [7]], [[0], [1], ["2"]], "abc", [[0], [], [1, 2]]]
)
def test_a_broken_ranking_is_refused_and_nothing_is_written(tmp_path, ranking):
    store = Store(tmp_path / "s.sqlite", samples())
    store.current("ann")
    with pytest.raises(InputError):
        store.add_judgement("ann", 1, "id-00001", "rank", ranking=ranking)
    assert store.count() == 0


def test_other_files_and_versions_are_refused(tmp_path):
    path = tmp_path / "s.sqlite"
    path.write_text("this is no database at all, only text" * 50)
    with pytest.raises(InputError, match="not a database of judgements"):
        Store(path, samples())
    assert path.read_text().startswith("this is no database")
    with pytest.raises(InputError, match="does not exist; nobody"):
        Store(tmp_path / "none.sqlite")
    newer = Store(tmp_path / "v.sqlite", samples())
    newer._db.execute("UPDATE meta SET value = '99' WHERE key = 'version'")
    newer.close()
    with pytest.raises(InputError, match="of version 99"):
        Store(tmp_path / "v.sqlite", samples())
    foreign = sqlite3.connect(tmp_path / "f.sqlite")
    foreign.execute("CREATE TABLE meta (key TEXT, value TEXT)")
    foreign.commit()
    with pytest.raises(InputError, match="not one of judgements"):
        Store(tmp_path / "f.sqlite", samples())


def test_a_full_disk_is_an_error_and_what_was_saved_stays(tmp_path):
    store = Store(tmp_path / "s.sqlite", samples())
    judge(store, "ann")
    store.current("ann")
    pages = store._db.execute("PRAGMA page_count").fetchone()[0]
    store._db.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(sqlite3.OperationalError, match="full"):
        for n in range(500):
            store.add_judgement("ann", 2, f"full-{n:05}", "rank", ranking=[[0], [1], [2]], note="x" * 1000)
    kept = store.count()
    store.close()
    assert Store(tmp_path / "s.sqlite", samples()).count() == kept >= 1


def test_a_kill_loses_nothing_confirmed(tmp_path):
    script = (
        "import sys\nfrom llmrecipes.ranking.store import Store\nfrom tests.test_store import samples\n"
        "store = Store(sys.argv[1], samples(500))\n"
        "for n in range(500):\n"
        "    store.add_judgement('ann', store.current('ann'), f'{n:08}', 'rank', ranking=[[0], [1], [2]])\n"
        "    print(n, flush=True)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "s.sqlite")],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    confirmed = [process.stdout.readline() for _ in range(30)]
    os.kill(process.pid, signal.SIGKILL)
    confirmed += process.stdout.read().splitlines()
    process.wait()
    rows = Store(tmp_path / "s.sqlite").judgements()
    assert len(confirmed) <= len(rows) <= len(confirmed) + 1
    assert [row["id"] for row in rows] == [f"{n:08}" for n in range(len(rows))]
    assert json.loads(json.dumps(to_rankings(rows)))  # plain data


def test_the_database_and_what_sqlite_lays_beside_it_are_the_owners_alone(tmp_path):
    old = os.umask(0)
    try:
        store = Store(tmp_path / "s.sqlite", samples())
        judge(store, "ann")
        files = {file.name: file.stat().st_mode & 0o777 for file in tmp_path.iterdir()}
        assert files == dict.fromkeys(("s.sqlite", "s.sqlite-wal", "s.sqlite-shm"), 0o600)
        for file in tmp_path.iterdir():  # as an earlier version left them
            file.chmod(0o644)
        judge(Store(tmp_path / "s.sqlite", samples()), "ann")
        assert {file.stat().st_mode & 0o777 for file in tmp_path.iterdir()} == {0o600}
        (tmp_path / "other").write_text("no database")
        (tmp_path / "other").chmod(0o644)
        for other in (tmp_path / "other", tmp_path):
            mode = other.stat().st_mode
            with pytest.raises(InputError):
                Store(other, samples())
            assert other.stat().st_mode == mode, "what is not ours keeps its mode"
    finally:
        os.umask(old)


def test_logins_of_an_earlier_version_have_ended(tmp_path):
    store = Store(tmp_path / "s.sqlite", samples())
    judge(store, "ann")
    store._db.executescript(
        "CREATE TABLE logins (token_hash TEXT, user TEXT, expires REAL);INSERT INTO logins VALUES ('x', 'ann', 9e9);"
    )
    store.close()
    store = Store(tmp_path / "s.sqlite", samples())
    logins = Logins(store)
    assert logins.find("x") is None and len(store.judgements()) == 1
    logins.add("y", "ann", "c", time.time() + 9)
    assert logins.find("y") == ("ann", "c")
