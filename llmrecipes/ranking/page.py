"""The ranking page: gradio serves the shell, one component written here shows the item, JSON routes keep the judgements.

Answers are a model's words, so the component writes them with `textContent` only, and the Content-Security-Policy lets a
page load nothing but its own files. Loopback needs no login; any other address needs `users` and answers only to the
host names it is told (DNS rebinding).
"""

import hmac
import os
import secrets
import socket
import sqlite3
import time
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse
from starlette.concurrency import run_in_threadpool
from starlette.middleware.trustedhost import TrustedHostMiddleware

from llmrecipes.config import InputError
from llmrecipes.ranking.store import FLAGS, Store
from llmrecipes.ranking.users import NAME, User, is_password

HERE = Path(__file__).parent
LOOPBACK = ("127.0.0.1", "localhost")
LOGIN_SECONDS = 12 * 3600
COOKIE, NAME_COOKIE = "llmrecipes_login", "llmrecipes_annotator"
NOTE_LENGTH, BODY_BYTES = 4000, 64 * 1024
# gradio's component code needs inline and eval; what matters is that nothing comes from, or goes to, another host.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; font-src 'self' data:; connect-src 'self'; object-src 'none'; base-uri 'self'; "
    "form-action 'self'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY, "X-Content-Type-Options": "nosniff", "Referrer-Policy": "same-origin",
    "X-Frame-Options": "DENY", "Cache-Control": "no-store",
}  # fmt: skip
# Routes of gradio that read or write files, or fetch for the browser; the page uses none of them.
CLOSED = ("file", "upload", "proxy", "stream", "component_server", "download", "deep_link", "vibe", "dev", "monitoring")


class RateLimit:
    """At most `count` calls in `seconds` for each key."""

    def __init__(self, count: int, seconds: float):
        self.count, self.seconds, self.calls = count, seconds, defaultdict(deque)

    def wait(self, key: str) -> int:
        """0 and the call counts, or the seconds to wait before the next one."""
        now = time.monotonic()
        if len(self.calls) > 10_000:  # forget who has not called lately
            self.calls = defaultdict(deque, {k: v for k, v in self.calls.items() if v and v[-1] > now - self.seconds})
        calls = self.calls[key]
        while calls and calls[0] <= now - self.seconds:
            calls.popleft()
        if len(calls) >= self.count:
            return 1 + int(calls[0] + self.seconds - now)
        calls.append(now)
        return 0


def build_app(
    store: Store,
    guidelines: str,
    *,
    users: dict[str, User] | None = None,
    allowed_hosts: Sequence[str] = LOOPBACK,
    quality_page: Callable[[], str] | None = None,
    on_finish: Callable[[], None] = lambda: None,
) -> FastAPI:
    """The page as an ASGI app.

    Args:
        guidelines: Markdown of the project's owner, shown beside the task.
        users: name -> user; None: no login, the annotator's name is what he types (loopback only).
        quality_page: makes the admin page's HTML.
        on_finish: called when an admin ends the ranking.
    """
    app = FastAPI(title="llmrecipes ranking", docs_url=None, redoc_url=None, openapi_url=None)
    logins, calls = RateLimit(5, 60), RateLimit(300, 10)

    @app.middleware("http")
    async def guard(request: Request, call_next):
        path, client = request.url.path, request.client.host if request.client else "?"
        request.state.user = user = await run_in_threadpool(_user, request)
        parts = path.strip("/").split("/")
        if parts[0] == "gradio_api" and len(parts) > 1 and parts[1].startswith(CLOSED) or path.startswith("/proxy"):
            response = _error(404, "there are no files here")
        elif request.method not in ("GET", "HEAD") and not _same_origin(request):
            response = _error(403, "the request comes from another page; open this page itself")
        elif request.method == "POST" and "content-length" not in request.headers:
            response = _error(411, "the length of the request is missing")
        elif int(request.headers.get("content-length") or 0) > BODY_BYTES:
            response = _error(413, f"more than {BODY_BYTES} bytes; shorten the note")
        elif path.startswith("/api/") and (wait := calls.wait(user or client)):
            response = _error(429, f"too many requests; wait {wait} s", {"Retry-After": str(wait)})
        elif user is None and path not in ("/login",):
            is_page = request.method == "GET" and path == "/"
            response = RedirectResponse("/login", 303) if is_page else _error(401, "log in first")
        else:
            try:
                response = await call_next(request)
            except InputError as error:
                response = _error(400, str(error))
            except sqlite3.OperationalError as error:
                full = "disk" in str(error)
                what = "the disk is full" if full else f"the database cannot be written ({error})"
                response = _error(507 if full else 503, f"not saved: {what}; nothing is lost, try again")
        for name, value in HEADERS.items():
            if name != "Cache-Control" or not path.startswith(("/assets", "/static", "/theme.css", "/svelte")):
                response.headers[name] = value
        return response

    def _user(request: Request) -> str | None:
        if users is None:
            name = request.cookies.get(NAME_COOKIE, "me")
            return name if NAME.fullmatch(name) else "me"
        token = request.cookies.get(COOKIE)
        name = store.login(token) if token else None
        return name if name in users else None

    def is_admin(user: str) -> bool:
        return users is None or users[user].is_admin

    def item(user: str, position: int | None = None) -> dict:
        if position is None:
            position = store.current(user)
        view = store.shown(user, position) if position is not None else None
        if view is None and position is not None:
            raise InputError(f"position {position}: nothing was asked there")
        return (view or {"finished": True, "round": store.round}) | {
            "progress": store.progress(user), "annotator": user, "login": users is not None, "admin": is_admin(user),
        }  # fmt: skip

    @app.get("/login")
    def login_page(request: Request):
        return RedirectResponse("/", 303) if request.state.user and users is not None else HTMLResponse(_login_page())

    @app.post("/login")
    async def login(request: Request):
        form = await request.form()
        name, password = str(form.get("name", ""))[:40], str(form.get("password", ""))[:200]
        client = request.client.host if request.client else "?"
        if wait := max(logins.wait(f"name {name}"), logins.wait(f"client {client}")):
            return HTMLResponse(_login_page(f"Too many tries; wait {wait} s."), 429, {"Retry-After": str(wait)})
        user = (users or {}).get(name)
        if not await run_in_threadpool(is_password, user, password):
            return HTMLResponse(_login_page("That name and password do not belong together."), 401)
        logins.calls.pop(f"client {client}", None)
        logins.calls.pop(f"name {name}", None)
        token = secrets.token_urlsafe(32)
        store.add_login(token, name, time.time() + LOGIN_SECONDS)
        response = RedirectResponse("/", 303)
        secure = request.headers.get("x-forwarded-proto", request.url.scheme) == "https"
        response.set_cookie(COOKIE, token, max_age=LOGIN_SECONDS, httponly=True, samesite="strict", secure=secure)
        return response

    @app.post("/api/logout")
    def logout(request: Request):
        if token := request.cookies.get(COOKIE):
            store.remove_login(token)
        response = JSONResponse({})
        response.delete_cookie(COOKIE)
        return response

    @app.post("/api/name")
    async def name(request: Request):
        wanted = (await _body(request)).get("name")
        if users is not None or not isinstance(wanted, str) or not NAME.fullmatch(wanted):
            raise InputError("a name has 1 to 40 letters, digits or . _ @ -")
        response = JSONResponse({"annotator": wanted})
        response.set_cookie(NAME_COOKIE, wanted, max_age=365 * 86400, httponly=True, samesite="strict")
        return response

    @app.get("/api/item")
    def get_item(request: Request, position: int | None = None):
        return item(request.state.user, position)

    @app.post("/api/judgement")
    async def judge(request: Request):
        given, user = _checked(await _body(request)), request.state.user

        def save():
            store.judge(user, given.pop("position"), given.pop("id"), given.pop("kind"), **given)
            return {"saved": True} | item(user)

        return await run_in_threadpool(save)

    @app.post("/api/undo")
    async def undo(request: Request):
        given = await _body(request)
        position = await run_in_threadpool(store.undo, request.state.user, _id(given))
        return await run_in_threadpool(item, request.state.user, position)

    @app.get("/admin")
    def admin(request: Request):
        if not is_admin(request.state.user):
            return _error(403, "only an admin sees everybody's work")
        return HTMLResponse(quality_page() if quality_page else "<p>nothing to show</p>")

    @app.post("/api/finish")
    def finish(request: Request):
        if not is_admin(request.state.user):
            return _error(403, "only an admin ends the ranking")
        store.require_judgements()
        on_finish()
        return {"finished": True}

    import gradio as gr

    app = gr.mount_gradio_app(
        app, _shell(guidelines), path="/", ssr_mode=False, show_error=False, footer_links=[], head=MARGINS
    )
    # Outermost: a forged Host never reaches anything else.
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(allowed_hosts))
    return app


def _shell(guidelines: str):
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    import gradio as gr

    script = (HERE / "static" / "rank.js").read_text(encoding="utf-8")
    with gr.Blocks(title="Rank the answers", analytics_enabled=False) as blocks:
        with gr.Accordion("Guidelines", open=False):
            gr.Markdown(guidelines)
        gr.HTML(
            html_template='<div class="rank" lang="en"></div>',
            css_template=(HERE / "static" / "rank.css").read_text(encoding="utf-8"),
            js_on_load=script + "\nstartRanking(element.querySelector('.rank'));",
            apply_default_css=False,
        )
    return blocks


# gradio's own margins would leave a phone's page 256 of its 360 pixels.
MARGINS = (
    "<style>.gradio-container main,.gradio-container .main,.gradio-container .html-container{padding:0 !important}"
    "footer{display:none !important}</style>"
)


def _same_origin(request: Request) -> bool:
    """Browsers name the page a request comes from; a program that sends neither header is no cross-site forgery."""
    if request.headers.get("sec-fetch-site") not in (None, "same-origin", "none"):
        return False
    origin = request.headers.get("origin")
    return origin is None or hmac.compare_digest(urlsplit(origin).netloc, request.headers.get("host", ""))


async def _body(request: Request) -> dict:
    try:
        # A form of another site can only send text or form data.
        if request.headers.get("content-type", "").split(";")[0] != "application/json":
            raise ValueError
        body = await request.json()
        if not isinstance(body, dict):
            raise ValueError
        return body
    except ValueError:
        raise InputError("the request is no JSON object") from None


def _id(given: dict) -> str:
    value = given.get("id")
    if not isinstance(value, str) or not 8 <= len(value) <= 64:
        raise InputError("id: must be a text of 8 to 64 characters, new for each judgement")
    return value


def _checked(given: dict) -> dict:
    """A judgement's fields with their types; what they may hold is the store's to say."""
    position, flags, note, seconds = (given.get(key) for key in ("position", "flags", "note", "seconds"))
    if type(position) is not int:
        raise InputError("position: must be a number")
    if not isinstance(flags or {}, dict) or not all(isinstance(names, list) for names in (flags or {}).values()):
        raise InputError(f"flags: must map an answer's place to some of {', '.join(FLAGS)}")
    if not isinstance(note or "", str) or len(note or "") > NOTE_LENGTH:
        raise InputError(f"note: must be a text of at most {NOTE_LENGTH} characters")
    if not isinstance(seconds or 0, (int, float)) or not 0 <= (seconds or 0) < 1e6:
        raise InputError("seconds: must be a number of seconds")
    return {
        "position": position, "id": _id(given), "kind": given.get("kind"), "ranking": given.get("ranking"),
        "all_bad": given.get("all_bad") is True, "flags": flags or {}, "note": note or "", "seconds": float(seconds or 0),
    }  # fmt: skip


def _error(status: int, text: str, headers: dict | None = None) -> Response:
    return JSONResponse({"error": " ".join(text.split())}, status, headers)


def _login_page(message: str = "") -> str:
    return (
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'><title>Log in"
        "</title><style>body{font:1rem system-ui;max-width:20rem;margin:15vh auto;padding:0 1rem;color-scheme:light dark}"
        "input,button{font:inherit;width:100%;padding:.5rem;margin:.2rem 0 1rem;box-sizing:border-box}</style><main>"
        f"<h1>Rank the answers</h1><p role=alert>{message}</p><form method=post action=/login><label>Name<input name=name "
        "autocomplete=username required autofocus></label><label>Password<input name=password type=password "
        "autocomplete=current-password required></label><button>Log in</button></form></main></html>"
    )


def prepare_server(app: FastAPI, host: str, port: int) -> tuple[str, Callable[[], None], Callable[[], None]]:
    """(address, run, stop): run() serves until Ctrl-C or stop(); a port in use gives way to the next free one."""
    import uvicorn

    listener = _listen(host, port)
    taken = listener.getsockname()[1]
    if port and taken != port:
        print(f"port {port} is in use; taking {taken}", flush=True)
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, server_header=False, proxy_headers=False, timeout_graceful_shutdown=2
    )
    server = uvicorn.Server(config)

    def run() -> None:
        try:
            server.run(sockets=[listener])
        except KeyboardInterrupt:  # uvicorn ends in good order, then raises it again
            pass

    def stop() -> None:
        server.should_exit = True

    return f"http://{host}:{taken}", run, stop


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for candidate in range(port, min(port + 20, 65536)):
        listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            if os.name == "posix":  # a port of a server that has just ended is free
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((host, candidate))
            listener.listen(128)
            return listener
        except OSError as error:
            listener.close()
            if error.errno not in (98, 48, 10048):  # address in use: Linux, macOS, Windows
                raise InputError(f"host: cannot listen on {host}:{candidate} ({error.strerror})") from None
    raise InputError(f"port: {port} to {port + 19} are all in use; choose another with --port")
