"""The ranking page through its HTTP interface and in a real browser: who may enter, what is kept, what never runs."""

import asyncio
import inspect
import json
import re
import sqlite3
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import gradio.routes
import pytest
from rank_page_toys import PASSWORD, ann_and_bob, client_for
from starlette.testclient import TestClient
from test_store import samples

from llmrecipes.config import InputError
from llmrecipes.ranking.annotators import check_settings
from llmrecipes.ranking.logins import LoginLimit
from llmrecipes.ranking.page import build_app
from llmrecipes.ranking.store import Store
from llmrecipes.ranking.users import UsersFile, is_password, read_users, write_user

ROOT = Path(__file__).parent.parent


@pytest.fixture
def users(tmp_path):
    return ann_and_bob(tmp_path)


def rank(client, **changes):
    item = client.get("/api/item").json()
    body = {"id": f"id-{item['position']:06}", "kind": "rank", "ranking": [[0], [1], [2]], "seconds": 3} | changes
    # As ASCII: a lone surrogate can only be sent escaped.
    content = json.dumps({"position": item["position"]} | body)
    return client.post("/api/judgement", content=content, headers={"Content-Type": "application/json"})


def test_a_ranking_is_saved_and_the_next_item_comes(tmp_path):
    store = Store(tmp_path / "s.sqlite", samples())
    client = client_for(store)
    answer = rank(client).json()
    assert answer["saved"] and answer["position"] == 2 and answer["progress"]["done"] == 1
    assert "model" not in answer and "sampling" not in answer and len(store.judgements()) == 1
    assert client.post("/api/undo", json={"id": "undo-0001"}).json()["position"] == 1
    assert store.judgements() == []


@pytest.mark.parametrize(
    "changes",
    [
        {"position": "1"},
        {"position": 9},
        {"id": "short"},
        {"kind": "delete"},
        {"ranking": None},
        {"ranking": [[0], [1]]},
        {"flags": {"9": ["rude"]}},
        {"flags": {"0": ["<b>"]}},
        {"flags": [1]},
        {"note": 3},
        {"note": "x" * 4001},
        {"seconds": -1},
        {"seconds": "1"},
        {"seconds": True},
        {"seconds": ""},
        {"position": 2**70},
        {"position": 0},
        {"position": True},
        {"all_bad": 1},
        {"all_bad": "yes"},
        {"note": "half a character: \ud800"},
        {"note": 0},
        {"id": "\udfff" * 9},
        {"kind": ["rank"]},
        {"ranking": [[{}], [[1]], [None]]},
        {"ranking": {"0": 1}},
        {"flags": {"0": "rude"}},
        {"flags": {"0": [["rude"]]}},
        {"flags": {"²": ["rude"]}},
        {"flags": {"9" * 5000: ["rude"]}},
        {"flags": ""},
    ],
)
def test_a_broken_judgement_is_one_line_and_nothing_is_written(page, changes):
    answer = rank(page, **changes)
    assert answer.status_code == 400 and "\n" not in answer.json()["error"] and page.store.count() == 0


def test_other_pages_hosts_and_forms_are_refused(tmp_path):
    store = Store(tmp_path / "s.sqlite", samples())
    client = client_for(store)
    assert client.get("/", headers={"Host": "evil.example"}).status_code == 400
    assert rank(client).status_code == 200
    for headers in ({"Origin": "http://evil.example"}, {"Sec-Fetch-Site": "cross-site"}, {"Origin": "null"}):
        assert client.post("/api/undo", json={"id": "undo-0001"}, headers=headers).status_code == 403
    assert client.post("/api/undo", data={"id": "undo-0001"}).status_code == 400
    assert client.post("/api/undo", content=b"[]", headers={"Content-Type": "application/json"}).status_code == 400
    assert client.post("/api/undo", json={"id": "x" * 70_000}).status_code == 413
    assert client.post("/api/undo", content=(b"{" for _ in range(9))).status_code == 411
    assert store.count() == 1


def test_two_host_names_in_one_request_are_refused(page):
    assert page.get("/", headers=[("Host", "127.0.0.1"), ("Host", "evil.example")]).status_code == 400


def test_whoever_goes_away_in_the_middle_leaves_no_traceback(page):
    async def leave():
        return {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)

    sent = []
    for path in ("/api/undo", "/login"):
        headers = {"host": "127.0.0.1", "content-type": "application/json", "content-length": "9"}
        headers = [(name.encode(), value.encode()) for name, value in headers.items()]
        scope = {
            "type": "http",
            "http_version": "1.1",
            "method": "POST",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "headers": headers,
            "scheme": "http",
            "server": ("127.0.0.1", 80),
            "client": ("::1", 1),
        }
        asyncio.run(page.app(scope, leave, send))
    assert not sent


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/file=/etc/passwd",
        "/gradio_api/file=llmrecipes/config.py",
        "/gradio_api/upload",
        "/gradio_api/proxy=http://x",
        "/proxy=http://x/",
        "/static/../../../../etc/passwd",
        "/assets/..%2f..%2f..%2f..%2fetc/passwd",
    ],
)
def test_no_path_leads_to_files(page, path):
    answer = page.get(path)
    assert answer.status_code in (403, 404, 405) and "root:" not in answer.text and "import" not in answer.text[:200]


def test_every_page_forbids_other_hosts_content(page):
    for path in ("/", "/login", "/admin", "/api/item"):
        policy = page.get(path).headers["content-security-policy"]
        assert "default-src 'self'" in policy and "http" not in policy and "frame-ancestors 'none'" in policy


def test_only_users_enter_and_each_sees_his_own_work(tmp_path, users):
    store = Store(tmp_path / "s.sqlite", samples())
    ann, bob, nobody = (client_for(store, users=users) for _ in range(3))
    assert nobody.get("/", follow_redirects=False).headers["location"] == "/login"
    for path in ("/api/item", "/admin", "/config", "/gradio_api/info"):
        assert nobody.get(path).status_code == 401
    assert nobody.post("/login", data={"name": "ann", "password": "wrong"}).status_code == 401
    assert ann.post("/login", data={"name": "ann", "password": PASSWORD}, follow_redirects=False).status_code == 303
    answer = bob.post("/login", data={"name": "bob", "password": PASSWORD + "2"}, follow_redirects=False)
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie and "samesite=strict" in cookie
    assert rank(ann, note="mine").json()["annotator"] == "ann"
    assert bob.get("/api/item?position=1").status_code == 400  # that is ann's
    assert bob.get("/api/item").json()["judgement"] is None and bob.get("/api/item").json()["position"] == 1
    assert bob.get("/admin").status_code == 403 and bob.post("/api/finish", json={}).status_code == 403
    rank(bob, note="<b>his</b>", id="bob-000001")
    page = ann.get("/admin").text
    assert "mine" in page and "&lt;b&gt;his" in page and "Question" in page
    assert bob.post("/api/name", json={"name": "ann"}).status_code == 400
    # A login outlives the server, its token is not in the file, and it ends with logging out.
    token = bob.cookies["llmrecipes_login"]
    again = client_for(Store(tmp_path / "s.sqlite", samples()), users=users)
    again.cookies.set("llmrecipes_login", token)
    assert again.get("/api/item").status_code == 200
    assert token.encode() not in (tmp_path / "s.sqlite").read_bytes() + (tmp_path / "s.sqlite-wal").read_bytes()
    again.post("/api/logout", json={})
    assert bob.get("/api/item").status_code == 401


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 30_000,
        b'{"id": ' * 8_000,
        b'{"id": ' + b"1" * 5_000 + b"}",
        b'{"id": "\xff"}',
        b"NaN",
        b"",
        b"null",
        b"\xff\xfe{\x00",
    ],
)
@pytest.mark.parametrize("path", ["judgement", "undo", "name"])
def test_what_is_no_json_object_is_a_wrong_request(page, path, body):
    answer = page.post(f"/api/{path}", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400 and "not a JSON object" in answer.json()["error"]


@pytest.mark.parametrize("position", [2**70, "a", "", -1, 0, "1.5", "\ud800".encode("utf-8", "surrogatepass"), "9" * 5000])
def test_positions_that_cannot_be_are_a_wrong_request(page, position):
    answer = page.get("/api/item", params={"position": position})
    assert answer.status_code == 400 and "\n" not in answer.json()["error"]


def test_names_of_any_alphabet_are_kept(page):
    assert page.post("/api/name", json={"name": "Жанна"}).status_code == 200
    assert page.get("/api/item").json()["annotator"] == "Жанна"


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A client of a page that no test changes, and its `store`."""
    store = Store(tmp_path_factory.mktemp("page") / "s.sqlite", samples())
    client = client_for(store)
    client.store = store
    return client


def login(client, name="ann", password=PASSWORD, **headers):
    return client.post(
        "/login", data={"name": name, "password": password}, headers=headers, follow_redirects=False
    ).status_code


def test_guessing_passwords_is_slowed_down(tmp_path, users):
    client = client_for(Store(tmp_path / "s.sqlite", samples()), users=users)
    assert [login(client, password=f"wrong{n}") for n in range(7)] == [401] * 5 + [429] * 2
    assert login(client) == 429
    # Behind a proxy all come from one address: nobody else is locked out.
    assert login(client, "bob", PASSWORD + "2") == 303


def test_an_address_told_by_a_trusted_proxy_counts_for_itself(tmp_path, users, monkeypatch):
    monkeypatch.setattr("llmrecipes.ranking.logins.is_password", lambda user, password: password == PASSWORD)
    app = build_app(Store(tmp_path / "s.sqlite", samples()), "", users=users, trusted_proxies=["10.0.0.0/8"])
    proxy, other = (TestClient(app, "http://127.0.0.1", client=(address, 1)) for address in ("10.0.0.7", "203.0.113.9"))
    forwarded = {"X-Forwarded-For": "198.51.100.1, 10.9.9.9"}
    assert [login(proxy, password="wrong", **forwarded) for _ in range(6)] == [401] * 5 + [429]
    assert login(proxy, **forwarded) == 429
    assert login(proxy, **{"X-Forwarded-For": "198.51.100.2"}) == 303, "the same name from elsewhere"
    # One who is no proxy, or invents hops before the proxy's own, is believed nothing.
    assert [login(other, password="wrong", **{"X-Forwarded-For": f"198.51.100.{n}"}) for n in range(6)][-1] == 429
    spoofed = [login(proxy, "x", "wrong", **{"X-Forwarded-For": f"192.0.2.{n}, 198.51.100.7"}) for n in range(6)]
    assert spoofed[-1] == 429


def test_tries_are_limited_by_name_and_in_all_wherever_they_come_from():
    limit = LoginLimit(knows_addresses=False)
    assert [bool(limit.wait("ann", f"a{n}")) for n in range(21)] == [False] * 20 + [True]
    limit = LoginLimit(knows_addresses=False)
    assert [bool(limit.wait(f"name{n}", "a")) for n in range(121)] == [False] * 120 + [True]
    limit = LoginLimit(knows_addresses=True)
    assert [bool(limit.wait(f"name{n}", "a")) for n in range(21)] == [False] * 20 + [True]
    assert not limit.wait("ann", "b")
    limit = LoginLimit(knows_addresses=False)
    for _ in range(300):
        assert not limit.wait("ann", "a")
        limit.succeed("ann", "a")


def test_a_changed_password_ends_its_sessions_and_a_user_taken_out_is_out(tmp_path, users, capsys):
    file = str(tmp_path / "users.txt")
    app = build_app(Store(tmp_path / "s.sqlite", samples()), "", users=UsersFile(file))
    ann, bob, again = (TestClient(app, "http://127.0.0.1") for _ in range(3))
    assert login(ann) == login(bob, "bob", PASSWORD + "2") == 303
    assert ann.get("/api/item").status_code == bob.get("/api/item").status_code == 200
    write_user(file, "bob", "a new password", is_admin=False)
    assert bob.get("/api/item").status_code == 401 and ann.get("/api/item").status_code == 200
    assert login(again, "bob", PASSWORD + "2") == 401 and login(again, "bob", "a new password") == 303
    assert ann.get("/admin").status_code == 200
    write_user(file, "ann", PASSWORD, is_admin=False)  # the same password, and no admin any more
    assert login(ann) == 303 and ann.get("/admin").status_code == 403
    Path(file).write_text("broken")
    assert ann.get("/api/item").status_code == 200 and "line 1" in capsys.readouterr().err
    Path(file).write_text("".join(line for line in [f"bob:scrypt:{'0' * 32}:{'0' * 64}\n"]))
    assert ann.get("/api/item").status_code == 401


RUN_HISTORY = [
    "/gradio_api/runs",
    "/gradio_api/run-history/buckets?x=1",
    "/gradio_api/run-history/records?bucket=a/b",
    "/gradio_api/run-history/records/x/y/assets/z",
]


def test_no_annotator_reaches_the_operators_token_through_gradio(tmp_path, users, monkeypatch):
    """With a saved token, peer and Host on loopback, gradio's run history would list and write the operator's buckets."""
    monkeypatch.setenv("HF_TOKEN", "hf_" + "aB3d" * 8)
    app = build_app(Store(tmp_path / "s.sqlite", samples()), "", users=users)
    bob = TestClient(app, "http://127.0.0.1", client=("127.0.0.1", 1))
    assert login(bob, "bob", PASSWORD + "2") == 303
    gradio = next(route.app for route in app.routes if route.path == "" and hasattr(route, "app"))
    assert not gradio.get_blocks().run_history
    for path in RUN_HISTORY:
        assert bob.get(path).status_code == 404, path
    assert bob.post("/gradio_api/run-history/connect", json={}).status_code == 404
    assert 'run_history":true' not in bob.get("/").text.replace(" ", "")


def test_of_gradios_routes_only_the_listed_ones_are_served(page):
    found = re.findall(r'@(router|app)\.(?:get|post|head)\(\s*"([^"]*)"', inspect.getsource(gradio.routes))
    paths = {("/gradio_api" if on == "router" else "") + re.sub("{.*?}", "x", path) for on, path in found}
    served = {
        path for path in paths for method in ("GET", "POST") if page.request(method, path).status_code not in (404, 405)
    }
    assert len(paths) > 60
    assert {path.rstrip("/") for path in served} <= {"", "/theme.css", "/favicon.ico", "/login"}


def test_too_many_requests_are_told_to_wait(tmp_path, monkeypatch):
    # On a busy machine so many requests take longer than the window they are counted in.
    monkeypatch.setattr("llmrecipes.ranking.logins.time", SimpleNamespace(monotonic=lambda: 0.0))
    client = client_for(Store(tmp_path / "s.sqlite", samples()))
    answers = [client.get("/api/item") for _ in range(310)]
    assert answers[-1].status_code == 429 and int(answers[-1].headers["retry-after"]) > 0 and answers[200].status_code == 200


def test_a_full_disk_is_told_to_the_page(tmp_path, monkeypatch):
    store = Store(tmp_path / "s.sqlite", samples())
    client = client_for(store)
    client.get("/api/item")

    def full(*args, **kwargs):
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(store, "add_judgement", full)
    answer = rank(client)
    assert answer.status_code == 507 and "disk is full" in answer.json()["error"]


def test_finish_needs_a_judgement(tmp_path):
    ended = []
    client = client_for(Store(tmp_path / "s.sqlite", samples()), on_finish=lambda: ended.append(1))
    assert "nobody has judged" in client.post("/api/finish", json={}).json()["error"] and not ended
    rank(client)
    assert client.post("/api/finish", json={}).status_code == 200 and ended == [1]


def test_users_file(tmp_path, users):
    text = (tmp_path / "users.txt").read_text()
    assert PASSWORD not in text and (tmp_path / "users.txt").stat().st_mode & 0o77 == 0
    assert is_password(users["ann"], PASSWORD) and not is_password(users["bob"], PASSWORD) and not is_password(None, "")
    write_user(str(tmp_path / "users.txt"), "bob", "another one", is_admin=False)
    changed = read_users(str(tmp_path / "users.txt"))
    assert len(changed) == 2 and is_password(changed["bob"], "another one")
    (tmp_path / "bad.txt").write_text("ann:secret password\n")
    with pytest.raises(InputError, match="line 1") as error:
        read_users(str(tmp_path / "bad.txt"))
    assert "secret" not in str(error.value)
    command = [sys.executable, "-m", "llmrecipes.ranking.users", str(tmp_path / "n.txt"), "cid", "--admin"]
    made = subprocess.run(command, input="eight letters\n", cwd=ROOT, capture_output=True, text=True)
    assert made.returncode == 0 and read_users(str(tmp_path / "n.txt"))["cid"].is_admin, made.stderr


SETTINGS = {
    "annotator": "page",
    "order": "random",
    "reward_model_name_or_path": None,
    "host": "127.0.0.1",
    "users_file": None,
    "allowed_hosts": [],
    "guidelines": None,
    "trusted_proxies": [],
    "judge_key_variable": "OPENAI_API_KEY",
}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"host": "10.0.0.1"}, "host"),
        ({"host": "0.0.0.0", "users_file": "u"}, "allowed_hosts"),
        ({"order": "uncertain"}, "order"),
        ({"annotator": "llm", "judge_url": None}, "judge_url"),
        ({"annotator": "llm", "judge_url": "u", "judge_model": "m", "judge_price": [1.0]}, "judge_price"),
        ({"guidelines": "none.md"}, "guidelines"),
        ({"trusted_proxies": ["proxy.example"]}, "trusted_proxies"),
    ],
)
def test_settings_that_do_not_go_together(changes, said):
    check_settings(SimpleNamespace(**SETTINGS))
    with pytest.raises(InputError, match=f"^{said}: "):
        check_settings(SimpleNamespace(**SETTINGS | changes))
