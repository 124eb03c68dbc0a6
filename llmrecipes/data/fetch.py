"""Downloads one file of the package index into a cache and verifies it. Nothing in it is installed or run.

`pip download` would run an sdist's setup.py to read its metadata, so the file is found in the index's own listing
(the simple API as JSON or HTML: PEP 691, PEP 503). The index is pip's: PIP_INDEX_URL, else `pip config`, else PyPI.
Cache: $LLMRECIPES_CACHE, else ~/.cache/llmrecipes. An interrupted download continues where it stopped.

The user and password in an index's URL are sent only to that scheme, host and port: also for the index's relative links, but
never to other hosts that it redirects or links to. A link with its own password sends that to its own host.
"""

import base64
import hashlib
import html.parser
import http.client
import io
import json
import os
import re
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

from filelock import FileLock
from packaging.utils import (
    InvalidSdistFilename,
    InvalidWheelFilename,
    canonicalize_name,
    parse_sdist_filename,
    parse_wheel_filename,
)
from packaging.version import InvalidVersion, Version

from llmrecipes.config import InputError
from llmrecipes.durable import cache_folder

PINNED = re.compile(r"pypi:([A-Za-z0-9][A-Za-z0-9._-]*)==([A-Za-z0-9.!+_-]+)")
ACCEPT = "application/vnd.pypi.simple.v1+json, application/vnd.pypi.simple.v1+html;q=0.2, text/html;q=0.1"
TIMEOUT_S = 60
ATTEMPTS = 3
PAGE_BYTES, PAGE_SECONDS = 256 << 20, 120  # the largest pages of PyPI have some 20 MB
ARCHIVE_BYTES = 16 << 30
STALL_SECONDS, STALL_BYTES = 120, 64 << 10  # a download that brings less than this in that time is broken off
NETWORK_ERRORS = (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError, ssl.SSLError)


def fetch_archive(path: str, sha256: str | None) -> Path:
    """Local file of `pypi:NAME==VERSION` whose SHA-256 is `sha256`: from the cache, else downloaded.

    The digest selects among the version's files (wheel, sdist) and is verified each time.
    InputError: digest missing or wrong, version or file not in the index, index unreachable, disk full.
    """
    pinned = PINNED.fullmatch(path)
    if not pinned:
        raise InputError(f"{path}: write pypi:NAME==VERSION, one exact version")
    if not re.fullmatch(r"[0-9a-fA-F]{64}", sha256 or ""):
        raise InputError(f"{path}: sha256 must be the archive's full SHA-256, 64 hexadecimal digits, not {sha256!r}")
    sha256 = sha256.lower()
    folder = cache_folder() / "archives"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f"{sha256[:16]}.lock"):
            for cached in folder.glob(f"{sha256[:16]}-*"):
                if cached.suffix != ".part" and file_sha256(cached) == sha256:
                    return cached
            return _download(path, *pinned.groups(), sha256, folder)
    except OSError as error:
        raise InputError(
            f"{path}: cannot write to {folder} ({error.strerror or error}); set LLMRECIPES_CACHE to a folder with room"
        ) from None


def file_sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _download(path: str, name: str, version: str, sha256: str, folder: Path) -> Path:
    filename, url = _choose_file(path, name, version, sha256)
    target = folder / f"{sha256[:16]}-{filename}"
    part = target.with_name(target.name + ".part")
    print(f"downloading {filename} from {urllib.parse.urlsplit(url).hostname}", file=sys.stderr)
    for attempt in range(1, ATTEMPTS + 1):
        try:
            _resume(url, part)
            break
        except ValueError as error:  # the response is endless, or not HTTP
            part.unlink(missing_ok=True)
            raise _unreachable(path, url, error) from None
        except NETWORK_ERRORS as error:
            if attempt == ATTEMPTS or isinstance(error, urllib.error.HTTPError) and error.code < 500:
                raise _unreachable(path, url, error) from None
            time.sleep(attempt)
    found = file_sha256(part)
    if found != sha256:
        part.unlink()
        raise InputError(f"{path}: {filename} has SHA-256 {found}, expected {sha256}; the download was deleted")
    os.replace(part, target)
    return target


def _resume(url: str, part: Path) -> None:
    """Appends to `part` what is missing of `url`."""
    have = part.stat().st_size if part.exists() else 0
    try:
        response = open_url(url, {"Range": f"bytes={have}-"} if have else {})
    except urllib.error.HTTPError as error:
        if error.code != 416:  # range not satisfiable: all of it is here already, or too much; the digest will tell
            raise
        return
    with response, open(part, "ab" if response.status == 206 else "wb") as file:
        expected = response.headers.get("Content-Length")
        received, mark, since = 0, 0, time.monotonic()
        response.timed.expires = since + STALL_SECONDS + TIMEOUT_S
        while block := response.read1(1 << 20):
            file.write(block)
            received += len(block)
            if file.tell() > ARCHIVE_BYTES:
                raise ValueError(f"it has more than {ARCHIVE_BYTES >> 30} GiB")
            if received - mark >= STALL_BYTES:
                mark, since = received, time.monotonic()
                response.timed.expires = since + STALL_SECONDS + TIMEOUT_S
            elif time.monotonic() - since > STALL_SECONDS:
                raise TimeoutError(f"fewer than {STALL_BYTES >> 10} KiB in {STALL_SECONDS} s")
    if expected is not None and received < int(expected):
        raise http.client.IncompleteRead(b"", int(expected) - received)


def _choose_file(path: str, name: str, version: str, sha256: str) -> tuple[str, str]:
    """(file name, URL) of the version's file with this digest, or of the only one for which the index gives no digest."""
    index = index_url()
    url = f"{index}/{canonicalize_name(name)}/"
    try:
        with open_url(url, {"Accept": ACCEPT}) as response:
            is_json = "json" in (response.headers.get("Content-Type") or "")
            text, base = _read_page(response).decode(), _with_login(response.url, url)
        files = (_files_from_json if is_json else _files_from_html)(text, base)
    except urllib.error.HTTPError as error:
        if error.code == 404:
            raise InputError(f"{path}: {_host(url)} has no package {name}; check the name, or PIP_INDEX_URL") from None
        raise _unreachable(path, url, error) from None
    except (urllib.error.URLError, http.client.HTTPException, OSError, ValueError) as error:
        raise _unreachable(path, url, error) from None
    except (KeyError, TypeError, AttributeError, RecursionError):
        raise _unreachable(path, url, ValueError("its page is not that of a package index")) from None
    ours = [file for file in files if _is_version(file[0], version)]
    if not ours:
        raise InputError(f"{path}: {_host(url)} has no version {version} of {name}")
    for wanted in (sha256, None):
        for filename, file_url, digest in ours:
            if digest == wanted:
                return filename, file_url
    published = ", ".join(f"{filename} {digest}" for filename, _, digest in ours)
    raise InputError(f"{path}: no file has SHA-256 {sha256}; the index has {published}")


def index_url() -> str:
    """The package index that pip is configured for, without a trailing slash."""
    url = os.environ.get("PIP_INDEX_URL")
    if not url:
        command = [sys.executable, "-m", "pip", "config", "get", "global.index-url"]
        url = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    return (url or "https://pypi.org/simple").rstrip("/")


def _files_from_json(text: str, base: str) -> list[tuple[str, str, str | None]]:
    """[(file name, URL, SHA-256 or None)] of a PEP 691 page."""
    return [
        (_last_part(file["filename"]), _join(base, file["url"]), file.get("hashes", {}).get("sha256"))
        for file in json.loads(text)["files"]
    ]


def _files_from_html(text: str, base: str) -> list[tuple[str, str, str | None]]:
    """[(file name, URL, SHA-256 or None)] of a PEP 503 page."""
    files = []

    class Links(html.parser.HTMLParser):
        def handle_starttag(self, tag, attributes):
            href = dict(attributes).get("href")
            if tag == "a" and href:
                url, _, fragment = _join(base, href).partition("#")
                digest = fragment.removeprefix("sha256=") if fragment.startswith("sha256=") else None
                files.append((_last_part(urllib.parse.unquote(urllib.parse.urlsplit(url).path)), url, digest))

    Links().feed(text)
    return files


def _last_part(name: str) -> str:
    """Last part of a path, so that a name from the index never leads out of the cache folder."""
    return re.split(r"[/\\]", name)[-1]


def _is_version(filename: str, version: str) -> bool:
    """Whether a distribution's file name (wheel, sdist, egg) is for this version."""
    if not filename.isprintable() or len(filename) > 200:  # a line break or NUL, or too long for a file
        return False
    try:
        if filename.endswith(".whl"):
            return parse_wheel_filename(filename)[1] == Version(version)
        if filename.endswith(".egg"):
            return Version(filename.split("-")[1]) == Version(version)
        return parse_sdist_filename(filename)[1] == Version(version)
    except (InvalidWheelFilename, InvalidSdistFilename, InvalidVersion, IndexError):
        return False


def open_url(url: str, headers: dict[str, str]):
    """Opens an http(s) URL as pip would: with PIP_CERT, the URL's user and password, and the environment's proxies."""
    _check_scheme(url)
    headers = {"User-Agent": "llmrecipes", **headers}
    login = urllib.parse.urlsplit(url).netloc.rpartition("@")[0]
    if login:
        user, _, password = (urllib.parse.unquote(part) for part in login.partition(":"))
        headers["Authorization"] = "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
    context = ssl.create_default_context(cafile=os.environ.get("PIP_CERT") or None)
    opener = urllib.request.build_opener(_HTTP, _HTTPS(context=context), _Redirects)
    return opener.open(urllib.request.Request(_without_login(url), headers=headers), timeout=TIMEOUT_S)


class _Timed(io.RawIOBase):
    """A response's bytes until `expires`. urllib bounds only each single read: it would read a head that drips, or one
    `100 Continue` after another, without end."""

    def __init__(self, raw: io.RawIOBase):
        self.raw, self.expires = raw, time.monotonic() + TIMEOUT_S

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        if time.monotonic() > self.expires:
            raise TimeoutError("its answer has no end")
        return self.raw.readinto(buffer)

    def close(self) -> None:
        self.raw.close()
        super().close()


class _Response(http.client.HTTPResponse):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.timed = _Timed(self.fp.detach())
        self.fp = io.BufferedReader(self.timed)


class _Connection(http.client.HTTPConnection):
    response_class = _Response


class _SafeConnection(http.client.HTTPSConnection):
    response_class = _Response


class _HTTP(urllib.request.HTTPHandler):
    def http_open(self, request):
        return self.do_open(_Connection, request)


class _HTTPS(urllib.request.HTTPSHandler):
    def https_open(self, request):
        return self.do_open(_SafeConnection, request, context=self._context)


class _Redirects(urllib.request.HTTPRedirectHandler):
    """urllib would send the Authorization header along to any host."""

    def redirect_request(self, request, file, code, message, headers, new_url):
        _check_scheme(new_url)
        if request.type == "https" and urllib.parse.urlsplit(new_url).scheme != "https":
            raise ValueError(f"{_host(new_url)} is to be asked without encryption, where it was https")
        following = super().redirect_request(request, file, code, message, headers, _without_login(new_url))
        if following and _origin(new_url) != _origin(request.full_url):
            following.remove_header("Authorization")
        return following


def _check_scheme(url: str) -> None:
    scheme = urllib.parse.urlsplit(url).scheme
    if scheme not in ("http", "https"):
        raise InputError(f"package index: only http and https are supported, found {scheme}://")


def _without_login(url: str) -> str:
    parts = urllib.parse.urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def _with_login(url: str, giver: str) -> str:
    """`url` with the user and password of the URL `giver`, if both have the same origin."""
    login, parts = urllib.parse.urlsplit(giver).netloc.rpartition("@")[0], urllib.parse.urlsplit(url)
    if not login or "@" in parts.netloc or _origin(url) != _origin(giver):
        return url
    return parts._replace(netloc=f"{login}@{parts.netloc}").geturl()


def _join(base: str, link: str) -> str:
    """The URL of `link` on the page `base`; an absolute one of the same origin also gets the page's login."""
    return _with_login(urllib.parse.urljoin(base, link), base)


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urllib.parse.urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)


def _read_page(response) -> bytes:
    content, deadline = bytearray(), time.monotonic() + PAGE_SECONDS
    response.timed.expires = deadline
    while block := response.read1(1 << 20):
        content += block
        if len(content) > PAGE_BYTES or time.monotonic() > deadline:
            raise ValueError(f"its page has no end after {PAGE_BYTES >> 20} MiB or {PAGE_SECONDS} s")
    return bytes(content)


def _host(url: str) -> str:
    return urllib.parse.urlsplit(url).hostname or url


def _unreachable(path: str, url: str, error: Exception) -> InputError:
    reason = getattr(error, "reason", None) or error
    return InputError(
        f"{path}: cannot fetch it from {_host(url)} ({reason}); check the network, or set PIP_INDEX_URL "
        "to a package index in reach"
    )
