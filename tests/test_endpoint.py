"""Answers of OpenAI-compatible endpoints: slow, endless, compressed, none at all; what stays secret."""

import contextlib
import gzip
import itertools
import json
import socket
import threading
import tracemalloc
from contextlib import contextmanager

import pytest
from judge_server import judge_servers, verdict

import llmrecipes.judging.endpoint as endpoints
from llmrecipes.config import InputError
from llmrecipes.judging.arguments import JudgeArguments

KEY = "sk-test-0123456789abcdef"


@pytest.fixture
def serve(monkeypatch):
    with judge_servers(monkeypatch) as start:
        yield start


@contextmanager
def raw_server(*blocks, pause=0.0, then=None):
    """An address that answers whatever is asked with these bytes, one block after another, then with `then` for ever."""
    listener = socket.create_server(("127.0.0.1", 0))
    over = threading.Event()

    def answer(connection):
        with contextlib.suppress(OSError), connection:
            connection.recv(65536)
            for block in itertools.chain(blocks, itertools.repeat(then) if then else ()):
                if over.wait(pause):
                    return
                connection.sendall(block)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(65536):  # closed over what is not read, the connection would be reset
                pass

    def accept():
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=answer, args=(listener.accept()[0],), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
    over.set()
    listener.close()


def answer_of(body: bytes, *headers: str) -> bytes:
    head = ["HTTP/1.1 200 OK", f"Content-Length: {len(body)}", "Connection: close", *headers]
    return "\r\n".join([*head, "", ""]).encode() + body


def said_json(content="ready", **usage) -> bytes:
    return json.dumps({"choices": [{"message": {"content": content}}], "usage": usage}).encode()


@pytest.mark.parametrize(
    "first", [b"HTTP/1.1 200 O", b"HTTP/1.1 200 OK\r\nX: ", b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n"]
)
def test_an_answer_that_drips_is_broken_off_at_its_deadline(first, monkeypatch):
    monkeypatch.setattr(endpoints, "MAX_TRIES", 1)
    with raw_server(b"HTTP/1.1 200 " + first, pause=0.02, then=b"K") as url:
        with pytest.raises(InputError, match="gives no complete answer in 0.4 s"):
            endpoints.Endpoint(url, "m", timeout=0.4).check()


def test_an_answer_without_end_is_broken_off(monkeypatch):
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n"
    with raw_server(head, then=b"x" * 65536) as url:
        tracemalloc.start()
        with pytest.raises(InputError, match="more than 4 MiB"):
            endpoints.Endpoint(url, "m").check()
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
        tracemalloc.stop()
    monkeypatch.setattr(endpoints, "MAX_TRIES", 1)
    with raw_server(b"HTTP/1.1 500 no\r\nConnection: close\r\n\r\n", then=b"x" * 65536) as url:
        with pytest.raises(InputError, match="answers 500"):
            endpoints.Endpoint(url, "m").check()


def test_a_compressed_answer_is_read_and_a_bomb_is_not():
    with raw_server(answer_of(gzip.compress(said_json()), "Content-Encoding: gzip")) as url:
        assert endpoints.Endpoint(url, "m").ask("?", 9) == "ready"
    bomb = gzip.compress(b" " * (64 << 20), 1)
    with raw_server(answer_of(bomb, "Content-Encoding: gzip")) as url:
        tracemalloc.start()
        with pytest.raises(InputError, match="more than 4 MiB"):
            endpoints.Endpoint(url, "m").check()
        assert tracemalloc.get_traced_memory()[1] < 32 << 20
        tracemalloc.stop()


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"choices": ' + b"9" * 5_000 + b"}",
        b"\xff\xfe",
        b'{"choices": NaN}',
        b"",
        said_json(prompt_tokens=-1),
        said_json(completion_tokens=10**30),
        said_json(prompt_tokens="many"),
        said_json(prompt_tokens=True),
        said_json(prompt_tokens=[1]),
        said_json(["no text"]),
        b"[]",
        b'"text"',
        b"{}",
        said_json().replace(b"{}", b'{"prompt_tokens": 1e999}'),
        said_json().replace(b"{}", b'{"prompt_tokens": -1e999}'),
        said_json().replace(b"{}", b"[1]"),
    ],
)
def test_an_answer_that_is_none_is_one_line_and_no_figure(body, monkeypatch):
    monkeypatch.setattr(endpoints, "MAX_TRIES", 1)
    with raw_server(answer_of(body)) as url:
        endpoint = endpoints.Endpoint(url, "m")
        with pytest.raises(InputError, match="not JSON|does not answer as") as error:
            endpoint.check()
    assert "\n" not in str(error.value) and not any(endpoint.usage.values())


def test_the_password_of_an_address_and_the_key_stand_in_no_error(monkeypatch):
    monkeypatch.setattr(endpoints, "MAX_TRIES", 1)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    for url in ("http://me:hunter2@127.0.0.1:9/v1", "ftp://me:hunter2@127.0.0.1/v1", "http://me:hunter2@[/v1"):
        with pytest.raises(InputError) as error:
            endpoints.Endpoint(url, "m").check()
        assert "hunter2" not in str(error.value) and KEY not in str(error.value)


def test_the_key_follows_no_redirect(serve, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    other = serve(verdict)
    for status in (301, 302, 307, 308):
        head = f"HTTP/1.1 {status} x\r\nLocation: {other.url}/chat/completions\r\nContent-Length: 0\r\n\r\n"
        with raw_server(head.encode()) as url, pytest.raises(InputError, match=f"answers {status}"):
            endpoints.Endpoint(url, "m").check()
    assert not other.requests


def test_halves_of_characters_are_written_as_question_marks():
    with raw_server(answer_of(said_json("a\ud800b"))) as url:
        assert endpoints.Endpoint(url, "m").ask("?", 9) == "a?b"


def test_a_key_variable_that_is_not_set_is_one_line(monkeypatch):
    monkeypatch.delenv("MY_KEY", raising=False)
    args = JudgeArguments(judge_url="http://127.0.0.1:1/v1", judge_model="m", judge_key_variable="MY_KEY")
    with pytest.raises(InputError, match="judge_key_variable: MY_KEY is not set"):
        endpoints.check_judge(args, "`judge: llm`")
    monkeypatch.setenv("MY_KEY", "secret")
    endpoints.check_judge(args, "`judge: llm`")
