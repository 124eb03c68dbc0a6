"""A language model behind any OpenAI-compatible endpoint (also `transformers serve` on loopback), used as a judge."""

import asyncio
import hashlib
import json
import os
import random
import re
import time
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from threading import Lock, Thread

import httpx

from llmrecipes.config import InputError
from llmrecipes.data.tables import say
from llmrecipes.formats import read_growing
from llmrecipes.judging.arguments import JudgeArguments
from llmrecipes.secrets import scrub_secrets

RETRY_STATUS = (408, 409, 429, 500, 502, 503, 504, 529)
MAX_TRIES, MAX_WAIT = 6, 60.0
MAX_BYTES = 4 << 20  # most bytes of an answer, also after decompression


@dataclass
class Endpoint:
    """Asks `model` at `base_url` (".../v1"), greedily. Its key is read from the variable `key_variable` and never shown.

    timeout: seconds until an answer must have arrived completely. usage: calls and tokens so far; `unreadable` is counted by
    the caller. keep_hint: appended to errors that end a run, about what happens to finished work.
    """

    base_url: str
    model: str
    key_variable: str = "OPENAI_API_KEY"
    concurrency: int = 4
    timeout: float = 120.0
    keep_hint: str = ""
    usage: dict = field(default_factory=lambda: {"calls": 0, "prompt_tokens": 0, "completion_tokens": 0, "unreadable": 0})

    def __post_init__(self):
        key = os.environ.get(self.key_variable)
        headers = {"Accept-Encoding": "identity"} | ({"Authorization": f"Bearer {key}"} if key else {})
        # No redirects: the key goes only to the address given by the user. httpx's own timeout is per read, and one byte a
        # second never exceeds it; `_fetch` has one for the whole answer.
        self._client = httpx.AsyncClient(timeout=None, headers=headers, follow_redirects=False)  # nosec B113
        self.pool, self._lock = ThreadPoolExecutor(self.concurrency), Lock()
        self._address = scrub_secrets(self.base_url)  # for messages: a URL may hold a password

    def ask(self, question: str, max_tokens: int) -> str:
        """The model's answer to one user message.

        Raises:
            InputError: the endpoint refuses, or gives no answer after several tries.
        """
        body = {"model": self.model, "messages": [{"role": "user", "content": question}]}
        answer = self._post(body | {"temperature": 0, "max_tokens": max_tokens})
        try:
            text = answer["choices"][0]["message"]["content"] or ""
            if not isinstance(text, str):
                raise TypeError
            used = answer.get("usage") or {}
            tokens = {name: _count(used.get(name)) for name in ("prompt_tokens", "completion_tokens")}
        except (KeyError, IndexError, TypeError, AttributeError, ValueError):
            raise InputError(f"judge_url: {self._address} does not answer as an OpenAI-compatible endpoint") from None
        with self._lock:
            for name, count in (tokens | {"calls": 1}).items():
                self.usage[name] += count
        return text.encode("utf-8", "replace").decode()  # JSON may hold lone surrogates, which UTF-8 cannot encode

    def check(self) -> None:
        """InputError unless the model answers: reveals a wrong address or key before any other model is loaded."""
        self.ask("Reply with the word ready.", max_tokens=256)

    def numbers(self, price: list[float] | tuple[float, float] | None = None) -> dict[str, float]:
        """judge_calls, tokens and, with `price` (dollars per million prompt and per million completion tokens), the cost."""
        numbers = {f"judge_{key}": value for key, value in self.usage.items()}
        if price:
            dollars = (self.usage["prompt_tokens"] * price[0] + self.usage["completion_tokens"] * price[1]) / 1e6
            numbers["judge_dollars"] = round(dollars, 6)
        return numbers

    def _post(self, body: dict) -> dict:
        problem = ""
        for attempt in range(MAX_TRIES):
            wait = min(MAX_WAIT, 0.5 * 2**attempt * random.uniform(0.5, 1.5))
            try:
                status, asked, content = asyncio.run_coroutine_threadsafe(self._fetch(body), self._loop).result()
            except (httpx.InvalidURL, httpx.UnsupportedProtocol):
                raise InputError(f"judge_url: {self._address} is not the address of a web server") from None
            except httpx.TransportError as error:
                problem = f"does not answer ({error.__class__.__name__})"
            except TimeoutError:
                problem = f"gives no complete answer in {self.timeout:g} s"
            else:
                if status == 200:
                    try:
                        return json.loads(content, parse_constant=_no_number)
                    except (ValueError, RecursionError):
                        problem = "answers something that is not JSON"
                elif status in RETRY_STATUS:
                    problem = f"answers {status}"
                    wait = min(MAX_WAIT, float(asked)) if re.fullmatch(r"\d+(\.\d+)?", asked) else wait
                else:
                    raise InputError(f"judge_url: {self._address} answers {status}{self._hint(status)}")
            if attempt < MAX_TRIES - 1:
                time.sleep(wait)
        raise InputError(f"judge_url: {self._address} {problem} after {MAX_TRIES} tries{self.keep_hint}")

    @cached_property
    def _loop(self) -> asyncio.AbstractEventLoop:
        """The event loop for requests: only in one can a request be cancelled at any point, even in the middle of its
        headers."""
        loop = asyncio.new_event_loop()
        Thread(target=loop.run_forever, daemon=True).start()
        return loop

    async def _fetch(self, body: dict) -> tuple[int, str, bytes]:
        """(status, Retry-After, content; the content is read only on success).

        Raises:
            TimeoutError: the answer is not complete after `timeout` seconds.
            InputError: the answer is larger than MAX_BYTES.
        """
        url, content = f"{self.base_url.rstrip('/')}/chat/completions", bytearray()
        async with asyncio.timeout(self.timeout), self._client.stream("POST", url, json=body) as response:
            if response.status_code == 200:
                async for block in response.aiter_raw():
                    content += block
                    if len(content) > MAX_BYTES:
                        break
            content = _unpacked(bytes(content), response.headers.get("content-encoding", ""))
            if len(content) > MAX_BYTES:
                raise InputError(f"judge_url: {self._address} answers with more than {MAX_BYTES >> 20} MiB")
            return response.status_code, response.headers.get("retry-after", ""), content

    def _hint(self, status: int) -> str:
        hints = {
            401: f"; is {self.key_variable} set?",
            403: f"; may {self.key_variable} use this model?",
            404: f"; check judge_url (it ends in /v1) and the model's name, {self.model}",
        }
        return hints.get(status, "")


def _unpacked(content: bytes, encoding: str) -> bytes:
    """`content` decompressed (no compression was requested), up to one byte beyond MAX_BYTES."""
    if encoding.strip().lower() not in ("gzip", "x-gzip", "deflate"):
        return content
    try:
        return zlib.decompressobj(wbits=47).decompress(content, MAX_BYTES + 1)
    except zlib.error:
        return b""


def _count(value) -> int:
    """A number of tokens; 0 if none is given."""
    if value is None:
        return 0
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 2**53:
        raise ValueError("no number of tokens")
    return int(value)


def _no_number(name: str):
    raise ValueError(f"{name} is not a JSON number")


def check_judge(args: JudgeArguments, needed_by: str) -> None:
    """InputError unless the endpoint and model that `needed_by` ("`judge: llm`") needs are given; a price has two
    numbers."""
    for key in ("judge_url", "judge_model"):
        if not getattr(args, key):
            raise InputError(f"{key}: is missing, which {needed_by} needs")
    variable = args.judge_key_variable
    if variable != JudgeArguments.judge_key_variable and not os.environ.get(variable):
        raise InputError(f"judge_key_variable: {variable} is not set, so no key would be sent; set it, or leave this out")
    if args.judge_price and len(args.judge_price) != 2:
        raise InputError("judge_price: give two numbers, dollars per million prompt and per million completion tokens")


def open_endpoint(args: JudgeArguments, keep_hint: str = "") -> Endpoint:
    """The endpoint named in `args` (see check_judge); asks nothing yet."""
    return Endpoint(args.judge_url, args.judge_model, args.judge_key_variable, args.judge_concurrency, keep_hint=keep_hint)


class Verdicts:
    """Verdicts of the model of `endpoint` on questions, never asking one twice.

    file: JSON Lines to which verdicts are appended as they arrive, and from which they are read back before the first
    question, so that a killed run pays for none again; it holds digests of the questions, not their text. kept: how many
    were read back.
    """

    def __init__(self, endpoint: Endpoint, file: Path | None = None):
        self.endpoint, self.file, self._lock = endpoint, file, Lock()
        self.kept, self._before = 0, ""

    @cached_property
    def known(self) -> dict[str, object]:
        if not self.file:
            return {}
        # If a kill has left half a line, the next verdict must start a new one.
        self._before = "\n" if self.file.exists() and not self.file.read_bytes().endswith(b"\n") else ""
        known = {row["question"]: row["verdict"] for row in read_growing(self.file)}
        self.kept = len(known)
        return known

    def ask_all(self, questions: list[tuple[str, Callable[[str], object]]], max_tokens: int) -> list:
        """The verdict for each (question, read): the result of read(reply).

        If `read` returns nothing, the model is asked once more; after that the verdict is None, counted as unreadable.

        Raises:
            InputError: the endpoint refuses, or gives no answer after several tries.
        """
        keys = [self._key(question) for question, _ in questions]
        new = {key: pair for key, pair in zip(keys, questions, strict=True) if key not in self.known}
        list(self.endpoint.pool.map(lambda key: self._ask(key, *new[key], max_tokens), new))
        return [self.known[key] for key in keys]

    def _key(self, question: str) -> str:
        return hashlib.sha256(f"{self.endpoint.model}\0{question}".encode()).hexdigest()[:32]

    def _ask(self, key: str, question: str, read: Callable[[str], object], max_tokens: int) -> None:
        replies: list[str] = []
        for _ in range(2):
            replies.append(self.endpoint.ask(question, max_tokens))
            if verdict := read(replies[-1]) or None:
                break
        with self._lock:
            self.known[key] = verdict
            if verdict is None:
                self.endpoint.usage["unreadable"] += 1
                if self.endpoint.usage["unreadable"] == 1:  # all the others are counted at the end
                    say(
                        f"warning: {self.endpoint.model} was asked twice and gave no verdict that can be read in "
                        f"{max_tokens} tokens, but {replies[-1][:80]!r}; such questions count as undecided"
                    )
            elif self.file:
                with self.file.open("a", encoding="utf-8") as file:
                    file.write(self._before + json.dumps({"question": key, "verdict": verdict}) + "\n")
                self._before = ""
