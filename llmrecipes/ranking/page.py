"""The ranking page: gradio serves the shell, our own component shows the item, JSON routes store the judgements.

Protocol: GET /api/item returns an annotator's next open position (or a given one) with the answers in the order shown; POST
/api/judgement stores a ranking or skip under an id chosen by the page, so that a repeated request changes nothing; POST
/api/undo takes the newest one back.

Answers are written by a model, so the component inserts them only as `textContent`, and the Content-Security-Policy lets the
page load only its own files (llmrecipes.web). Loopback needs no login; any other address needs `users` and answers only to
the configured host names.
"""

import ipaddress
import json
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse
from starlette.concurrency import run_in_threadpool

from llmrecipes.config import InputError
from llmrecipes.ranking.items import FLAGS
from llmrecipes.ranking.logins import NAME_COOKIE, Logins, RateLimit, add_login_routes, address_of, find_user
from llmrecipes.ranking.quality import measure_quality
from llmrecipes.ranking.quality_page import quality_page
from llmrecipes.ranking.store import Store
from llmrecipes.ranking.users import NAME, User
from llmrecipes.web import FRONTEND, LOOPBACK, Guard, import_gradio, mount, refusal

HERE = Path(__file__).parent
NOTE_LENGTH, BODY_BYTES = 4000, 64 * 1024
LARGEST = 2**53  # largest integer in JSON that every reader represents exactly
OWN_ROUTES = (r"(?:GET|POST) /login", r"GET /admin", r"GET /api/item", r"POST /api/(?:judgement|undo|name|logout|finish)")


def build_app(
    store: Store,
    guidelines: str,
    *,
    users: Mapping[str, User] | None = None,
    allowed_hosts: Sequence[str] = LOOPBACK,
    trusted_proxies: Sequence[str] = (),
    on_finish: Callable[[], None] = lambda: None,
) -> FastAPI:
    """The page as an ASGI app.

    Args:
        guidelines: the project owner's Markdown, shown next to the task.
        users: name -> user; None: no login, the annotator's name is whatever they type (loopback only).
        trusted_proxies: addresses or networks whose X-Forwarded-For is trusted.
        on_finish: called when an admin ends the ranking.
    """
    app = FastAPI(title="llmrecipes ranking", docs_url=None, redoc_url=None, openapi_url=None)
    logins, calls = Logins(store), RateLimit(300, 10)
    proxies = [ipaddress.ip_network(address, strict=False) for address in trusted_proxies]

    async def enter(request: Request) -> Response | None:
        path = request.url.path
        request.state.user = user = await run_in_threadpool(find_user, request, logins, users)
        if path.startswith("/api/") and (wait := calls.wait(user or address_of(request, proxies))):
            return refusal(429, f"too many requests; wait {wait} s", {"Retry-After": str(wait)})
        if user is None and path != "/login":
            is_page = request.method == "GET" and path == "/"
            return RedirectResponse("/login", 303) if is_page else refusal(401, "log in first")
        return None

    add_login_routes(app, logins, users, proxies)
    _add_ranking_routes(app, store, users)
    _add_admin_routes(app, store, users, on_finish)
    _add_refusals(app)
    app = mount(app, _shell(guidelines), MARGINS)
    routes = [*FRONTEND, *OWN_ROUTES]
    app.add_middleware(Guard, routes=routes, allowed_hosts=allowed_hosts, body_bytes=BODY_BYTES, enter=enter)
    return app


def _is_admin(user: str, users: Mapping[str, User] | None) -> bool:
    return users is None or users[user].is_admin


def _add_ranking_routes(app: FastAPI, store: Store, users: Mapping[str, User] | None) -> None:
    """Routes for an annotator's items and judgements."""

    def item(user: str, position: int | None = None) -> dict:
        if position is None:
            position = store.current(user)
        view = store.shown(user, position) if position is not None else None
        if view is None and position is not None:
            raise InputError(f"position {position}: nothing was asked there")
        return (view or {"finished": True, "round": store.round}) | {
            "progress": store.progress(user),
            "annotator": user,
            "login": users is not None,
            "admin": _is_admin(user, users),
        }

    @app.post("/api/name")
    async def name(request: Request):
        wanted = (await _body(request)).get("name")
        if users is not None or not isinstance(wanted, str) or not NAME.fullmatch(wanted):
            raise InputError("a name has 1 to 40 letters, digits or . _ @ -")
        response = JSONResponse({"annotator": wanted})
        response.set_cookie(NAME_COOKIE, quote(wanted), max_age=365 * 86400, httponly=True, samesite="strict")
        return response

    @app.get("/api/item")
    def get_item(request: Request, position: int | None = Query(None, ge=1, le=LARGEST)):
        return item(request.state.user, position)

    @app.post("/api/judgement")
    async def judge(request: Request):
        given, user = _checked(await _body(request)), request.state.user

        def save():
            store.add_judgement(user, given.pop("position"), given.pop("id"), given.pop("kind"), **given)
            return {"saved": True} | item(user)

        return await run_in_threadpool(save)

    @app.post("/api/undo")
    async def undo(request: Request):
        given = await _body(request)
        position = await run_in_threadpool(store.undo, request.state.user, _id(given))
        return await run_in_threadpool(item, request.state.user, position)


def _add_admin_routes(app: FastAPI, store: Store, users: Mapping[str, User] | None, on_finish: Callable[[], None]) -> None:
    @app.get("/admin")
    def admin(request: Request):
        if not _is_admin(request.state.user, users):
            return refusal(403, "only an admin may see everybody's work")
        judgements = store.judgements()
        return HTMLResponse(quality_page(measure_quality(judgements), judgements))

    @app.post("/api/finish")
    def finish(request: Request):
        if not _is_admin(request.state.user, users):
            return refusal(403, "only an admin may end the ranking")
        store.require_judgements()
        on_finish()
        return {"finished": True}


def _add_refusals(app: FastAPI) -> None:
    """Turns errors into JSON that the page shows."""

    @app.exception_handler(InputError)
    async def refuse(request: Request, error: InputError):
        return refusal(400, str(error))

    @app.exception_handler(RequestValidationError)
    async def refuse_parameter(request: Request, error: RequestValidationError):
        return refusal(400, "; ".join(f"{e['loc'][-1]}: {e['msg']}" for e in error.errors()))

    @app.exception_handler(sqlite3.OperationalError)
    async def refuse_to_save(request: Request, error: sqlite3.OperationalError):
        full = "disk" in str(error)
        what = "the disk is full" if full else f"the database cannot be written ({error})"
        return refusal(507 if full else 503, f"not saved: {what}; nothing is lost, try again")


def _shell(guidelines: str):
    gr = import_gradio()
    script = (HERE / "static" / "rank.js").read_text(encoding="utf-8")
    with gr.Blocks(title="Rank the answers", analytics_enabled=False) as blocks:
        with gr.Accordion("Guidelines", open=True, elem_classes="guidelines"):
            gr.Markdown(guidelines)
        gr.HTML(
            html_template='<div class="rank" lang="en"></div>',
            css_template=(HERE / "static" / "rank.css").read_text(encoding="utf-8"),
            js_on_load=f"{script}\nstartRanking(element.querySelector('.rank'), {json.dumps(FLAGS)});",
            apply_default_css=False,
        )
    return blocks


# gradio's own margins would leave only 256 of a phone's 360 pixels; its dark theme differs from ours.
MARGINS = (
    "<style>body,gradio-app,.gradio-container,.guidelines{background:light-dark(#fff,#111827) !important}"
    ":root{color-scheme:light dark}.gradio-container .guidelines{max-width:60rem;margin:0 auto}"
    ".gradio-container main,.gradio-container .main,.gradio-container .html-container{padding:0 !important}"
    "footer{display:none !important}</style>"
)


async def _body(request: Request) -> dict:
    try:
        # A form on another site can only send text or form data.
        if request.headers.get("content-type", "").split(";")[0].strip().lower() != "application/json":
            raise ValueError
        body = await request.json()
        if not isinstance(body, dict):
            raise ValueError
        return body
    except (ValueError, RecursionError):  # not JSON, not UTF-8, numbers of thousands of digits, endless nesting
        raise InputError("the request is not a JSON object") from None


def _id(given: dict) -> str:
    value = given.get("id")
    if not isinstance(value, str) or not 8 <= len(value) <= 64 or not _is_text(value):
        raise InputError("id: must be a text of 8 to 64 characters, new for each judgement")
    return value


def _is_text(value: str) -> bool:
    """Whether text can be encoded: JSON may hold lone surrogates."""
    return not any("\ud800" <= letter <= "\udfff" for letter in value)


def _checked(given: dict) -> dict:
    """A judgement's fields, checked for their types; the store checks their values."""
    given = {"flags": {}, "note": "", "seconds": 0, "all_bad": False} | {k: v for k, v in given.items() if v is not None}
    flags, note, seconds = given["flags"], given["note"], given["seconds"]
    if type(given.get("position")) is not int or not 0 < given["position"] <= LARGEST:
        raise InputError("position: must be a number from 1")
    if not isinstance(flags, dict) or not all(
        isinstance(names, list) and all(isinstance(name, str) for name in names) for names in flags.values()
    ):
        raise InputError(f"flags: must map an answer's place to some of {', '.join(FLAGS)}")
    if not isinstance(note, str) or len(note) > NOTE_LENGTH or not _is_text(note):
        raise InputError(f"note: must be a text of at most {NOTE_LENGTH} characters")
    if type(seconds) not in (int, float) or not 0 <= seconds < 1e6:
        raise InputError("seconds: must be a number of seconds")
    if type(given["all_bad"]) is not bool:
        raise InputError("all_bad: must be true or false")
    return {
        "position": given["position"],
        "id": _id(given),
        "kind": given.get("kind"),
        "ranking": given.get("ranking"),
        "all_bad": given["all_bad"],
        "flags": flags,
        "note": note,
        "seconds": float(seconds),
    }
