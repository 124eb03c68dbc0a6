"""Logging in to the ranking page: rate limits, the form, the cookie; without `users`, a typed name (loopback only)."""

import hashlib
import ipaddress
import secrets
import time
from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from urllib.parse import parse_qs, unquote

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse
from starlette.concurrency import run_in_threadpool

from llmrecipes.config import InputError
from llmrecipes.ranking.store import Store
from llmrecipes.ranking.users import NAME, User, is_password

LOGIN_SECONDS = 12 * 3600
COOKIE, NAME_COOKIE = "llmrecipes_login", "llmrecipes_annotator"


class Logins:
    """Who is logged in, in a table of the judgements' database, by the hash of their login's token: it survives a restart,
    and a copy of the file gives no access. The table holds nothing of value: one of another form, from an earlier version,
    is recreated, and everybody logs in again."""

    def __init__(self, store: Store):
        self.store = store
        with store.transaction() as db:
            columns = [row["name"] for row in db.execute("PRAGMA table_info(logins)")]
            if "credential" not in columns:
                db.execute("DROP TABLE IF EXISTS logins")
                db.execute(
                    "CREATE TABLE logins (token_hash TEXT PRIMARY KEY, user TEXT NOT NULL, credential TEXT NOT NULL, "
                    "expires REAL NOT NULL)"
                )

    def add(self, token: str, user: str, credential: str, expires: float) -> None:
        """credential: `User.credential` at the time of the login, which changes with the password."""
        with self.store.transaction() as db:
            db.execute("DELETE FROM logins WHERE expires < ?", (time.time(),))
            db.execute("INSERT INTO logins VALUES (?, ?, ?, ?)", (_hash(token), user, credential, expires))

    def find(self, token: str) -> tuple[str, str] | None:
        """(user, credential) of a login's token, or None."""
        query = "SELECT user, credential FROM logins WHERE token_hash = ? AND expires > ?"
        rows = self.store.read(query, _hash(token), time.time())
        return tuple(rows[0]) if rows else None

    def remove(self, token: str) -> None:
        with self.store.transaction() as db:
            db.execute("DELETE FROM logins WHERE token_hash = ?", (_hash(token),))


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


class RateLimit:
    """Rate limit of `count` calls per `seconds` for each key."""

    def __init__(self, count: int, seconds: float):
        self.count, self.seconds, self.calls = count, seconds, defaultdict(deque)

    def wait(self, key: str) -> int:
        """0 if the call is allowed, and counts it; otherwise the seconds to wait."""
        now = time.monotonic()
        if len(self.calls) > 10_000:  # forget keys without recent calls
            self.calls = defaultdict(deque, {k: v for k, v in self.calls.items() if v and v[-1] > now - self.seconds})
        calls = self.calls[key]
        while calls and calls[0] <= now - self.seconds:
            calls.popleft()
        if len(calls) >= self.count:
            return 1 + int(calls[0] + self.seconds - now)
        calls.append(now)
        return 0

    def take_back(self, key: str, all_of_them: bool) -> None:
        """Forgets the key's newest call, or all of its calls."""
        if all_of_them:
            self.calls.pop(key, None)
        elif self.calls.get(key):
            self.calls[key].pop()


class LoginLimit:
    """Failed logins allowed per minute: 5 per name and address, 20 per name, 20 per address, 120 in all.

    Addresses have a limit only if they are known (`trusted_proxies`): behind an unknown proxy everybody has the same
    address, and one person guessing passwords would lock out all. Successful logins do not count.
    """

    def __init__(self, knows_addresses: bool):
        self.limits = {
            key: RateLimit(count, 60) for key, count in (("both", 5), ("name", 20), ("address", 20), ("all", 120))
        }
        if not knows_addresses:
            del self.limits["address"]

    def wait(self, name: str, address: str) -> int:
        """0 if the attempt is allowed, counting it as failed until `succeed`; otherwise the seconds to wait."""
        keys = self._keys(name, address)
        # Stops at the first limit that refuses: attempts that are not checked must not count towards the others.
        return next((wait for kind, limit in self.limits.items() if (wait := limit.wait(keys[kind]))), 0)

    def succeed(self, name: str, address: str) -> None:
        keys = self._keys(name, address)
        for kind, limit in self.limits.items():
            limit.take_back(keys[kind], all_of_them=kind in ("both", "name"))

    @staticmethod
    def _keys(name: str, address: str) -> dict[str, str]:
        return {"both": f"{name} {address}", "name": name, "address": address, "all": ""}


def find_user(request: Request, logins: Logins, users: Mapping[str, User] | None) -> str | None:
    """The logged-in user who sent the request, or None."""
    if users is None:
        name = unquote(request.cookies.get(NAME_COOKIE, "me"))
        return name if NAME.fullmatch(name) else "me"
    token = request.cookies.get(COOKIE)
    found = logins.find(token) if token else None
    user = users.get(found[0]) if found else None
    return user.name if user and user.credential == found[1] else None  # a changed password ends earlier logins


def add_login_routes(
    app: FastAPI,
    logins: Logins,
    users: Mapping[str, User] | None,
    proxies: Sequence[ipaddress.IPv4Network | ipaddress.IPv6Network],
) -> None:
    """Routes /login and /api/logout. proxies: those whose X-Forwarded-For is trusted."""
    limit = LoginLimit(knows_addresses=bool(proxies))

    @app.get("/login")
    def login_page(request: Request):
        return RedirectResponse("/", 303) if request.state.user and users is not None else HTMLResponse(_login_page())

    @app.post("/login")
    async def login(request: Request):
        try:
            form = parse_qs((await request.body()).decode("utf-8", "replace"), max_num_fields=8)
        except ValueError:
            raise InputError("the form has more fields than a name and a password") from None
        name, password = form.get("name", [""])[0][:40], form.get("password", [""])[0][:200]
        address = address_of(request, proxies)
        if wait := limit.wait(name, address):
            return HTMLResponse(_login_page(f"Too many tries; wait {wait} s."), 429, {"Retry-After": str(wait)})
        user = (users or {}).get(name)
        if not await run_in_threadpool(is_password, user, password):
            return HTMLResponse(_login_page("That name and password do not belong together."), 401)
        limit.succeed(name, address)
        token = secrets.token_urlsafe(32)
        await run_in_threadpool(logins.add, token, name, user.credential, time.time() + LOGIN_SECONDS)
        response = RedirectResponse("/", 303)
        secure = request.headers.get("x-forwarded-proto", request.url.scheme) == "https"
        response.set_cookie(COOKIE, token, max_age=LOGIN_SECONDS, httponly=True, samesite="strict", secure=secure)
        return response

    @app.post("/api/logout")
    def logout(request: Request):
        if token := request.cookies.get(COOKIE):
            logins.remove(token)
        response = JSONResponse({})
        response.delete_cookie(COOKIE)
        return response


def address_of(request: Request, proxies: Sequence[ipaddress.IPv4Network | ipaddress.IPv6Network]) -> str:
    """The address a request comes from: the last one in X-Forwarded-For that is not a trusted proxy."""
    address = request.client.host if request.client else "?"
    for hop in reversed(",".join(request.headers.getlist("x-forwarded-for")).split(",")):
        try:
            if not any(ipaddress.ip_address(address) in network for network in proxies):
                break
            address = str(ipaddress.ip_address(hop.strip()))
        except ValueError:
            break
    return address


def _login_page(message: str = "") -> str:
    return (
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'><title>Log in"
        "</title><style>body{font:1rem system-ui;max-width:20rem;margin:15vh auto;padding:0 1rem;color-scheme:light dark;"
        "background:light-dark(#fff,#111827);color:light-dark(#111827,#f3f4f6)}"
        "input,button{font:inherit;width:100%;padding:.5rem;margin:.2rem 0 1rem;box-sizing:border-box}</style><main>"
        f"<h1>Rank the answers</h1><p role=alert>{message}</p><form method=post action=/login><label>Name<input name=name "
        "autocomplete=username required autofocus></label><label>Password<input name=password type=password "
        "autocomplete=current-password required></label><button>Log in</button></form></main></html>"
    )
