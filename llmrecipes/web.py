"""How every page of ours is served: gradio without its extras, behind a guard, on a port of this machine.

Gradio has some eighty routes; a page needs a dozen. `Guard` lets through the routes a page names and answers 404 to others,
refuses foreign Host and Origin headers (DNS rebinding, other sites' forms) and large bodies, and forbids the browser to
load anything from another host or to show the page in a frame. Gradio's run history is off: on loopback it would act on
the Hub with the operator's own token (CVE-2026-134825, fixed in gradio 6.32).
"""

import hmac
import os
import re
import socket
import sys
from collections.abc import Awaitable, Callable, Sequence
from urllib.parse import urlsplit

from fastapi import FastAPI
from starlette.datastructures import MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llmrecipes.config import InputError

LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
# gradio's components need inline scripts and eval; what matters is that nothing comes from or goes to another host.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; font-src 'self' data:; connect-src 'self'; object-src 'none'; base-uri 'self'; "
    "form-action 'self'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
# Gradio's routes that a browser requests to show a page, and those it requests if the page has events.
FRONTEND = (r"GET /", r"GET /theme\.css", r"GET /favicon\.ico", r"GET /(?:assets|static)/[\w./@-]+")
EVENTS = (
    r"POST /gradio_api/queue/join",
    r"GET /gradio_api/queue/data",
    r"POST /gradio_api/run/predict",
    r"POST /gradio_api/(?:cancel|reset)/?",
    r"GET /gradio_api/heartbeat/\w+",
    r"GET /gradio_api/startup-events",
    r"GET /config",
)


class Guard:
    """ASGI middleware that passes a request on or answers it; the app never sees what it refuses.

    Args:
        routes: patterns of "METHOD path" that are served; HEAD counts as GET.
        allowed_hosts: host names by which the page may be opened, with any port; an IPv6 address in brackets.
        body_bytes: the largest request body.
        enter: called for every well-formed request; may return an answer (a login, a rate limit), None passes it on.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        routes: Sequence[str],
        allowed_hosts: Sequence[str] = LOOPBACK,
        body_bytes: int,
        enter: Callable[[Request], Awaitable[Response | None]] | None = None,
    ):
        self.app, self.enter, self.body_bytes = app, enter, body_bytes
        self.routes = re.compile("|".join(routes))
        self.hosts = {host.lower() for host in allowed_hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        if scope["type"] != "http":  # no page of ours uses a web socket
            await receive()
            return await send({"type": "websocket.close", "code": 1008})
        request = Request(scope)
        response = self._refuse(request)
        if response is None and self.enter:
            response = await self.enter(request)
        if response is None and not self._is_served(request):
            response = refusal(404, "there is nothing here")
        is_file = scope["path"].startswith(("/assets/", "/static/", "/theme.css"))

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items() if is_file else (*HEADERS.items(), ("Cache-Control", "no-store")):
                    headers[name] = value
            await send(message)

        try:
            await (response or self.app)(scope, receive, send_with_headers)
        except ClientDisconnect:
            pass  # nobody is there to be answered
        except Exception as error:
            if not scope["path"].startswith("/gradio_api/"):
                raise
            # gradio itself has answered 500: the request has numbers, texts or names that it does not check.
            print(f"{scope['method']} {scope['path']}: gradio raises {type(error).__name__}", file=sys.stderr, flush=True)

    def _refuse(self, request: Request) -> Response | None:
        length = request.headers.get("content-length", "0")
        hosts = request.headers.getlist("host")
        if len(hosts) != 1 or _host_name(hosts[0]) not in self.hosts:
            return refusal(400, "this page cannot be opened by that host name")
        if not _is_same_origin(request):
            return refusal(403, "the request comes from another page; open this page itself")
        if request.method not in ("GET", "HEAD", "POST"):
            return refusal(405, "only GET and POST are supported here")
        if "transfer-encoding" in request.headers or request.method == "POST" and "content-length" not in request.headers:
            return refusal(411, "the length of the request is missing")
        if not re.fullmatch(r"[0-9]{1,15}", length) or int(length) > self.body_bytes:
            return refusal(413, f"more than {self.body_bytes} bytes; shorten the text")
        return None

    def _is_served(self, request: Request) -> bool:
        method = "GET" if request.method == "HEAD" else request.method
        path = request.scope["path"]
        return ".." not in path and bool(self.routes.fullmatch(f"{method} {path}"))


def refusal(status: int, text: str, headers: dict | None = None) -> Response:
    """{"error": text} in one line."""
    return JSONResponse({"error": " ".join(text.encode("utf-8", "replace").decode().split())}, status, headers)


def import_gradio():
    """gradio, with everything turned off that would leave this machine or outlive the page, however the page is launched."""
    os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_RUN_HISTORY": "False", "GRADIO_MCP_SERVER": "False"}
    import gradio

    return gradio


def mount(app: FastAPI, blocks, head: str = "") -> FastAPI:
    """`app` with the gradio page `blocks` at its root, to be put behind a Guard. head: HTML for the page's head."""
    return import_gradio().mount_gradio_app(
        app,
        blocks,
        path="/",
        ssr_mode=False,
        show_error=False,
        footer_links=[],
        head=head,
        run_history=False,
        mcp_server=False,
        enable_monitoring=False,
        max_file_size=1,
    )


def serve_blocks(blocks, body_bytes: int = 1 << 20) -> FastAPI:
    """A gradio page with events as an app for loopback only, behind its guard."""
    app = mount(FastAPI(docs_url=None, redoc_url=None, openapi_url=None), blocks)
    app.add_middleware(Guard, routes=[*FRONTEND, *EVENTS], body_bytes=body_bytes)
    return app


def prepare_server(app: FastAPI, host: str, port: int) -> tuple[str, Callable[[], None], Callable[[], None]]:
    """(address, run, stop): run() serves until Ctrl-C or stop(). If the port is in use, takes the next free one."""
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
        except KeyboardInterrupt:  # uvicorn shuts down cleanly, then raises it again
            pass

    def stop() -> None:
        server.should_exit = True

    return f"http://{bracketed(host)}:{taken}", run, stop


def bracketed(host: str) -> str:
    """`host` as written in a URL: an IPv6 address in brackets."""
    return f"[{host}]" if ":" in host else host


def _host_name(header: str) -> str:
    """The name in a Host header, without its port; an IPv6 address keeps its brackets."""
    match = re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[^:/?#@\[\]\s]+)(?::\d{1,5})?", header)
    return match[1].lower() if match else ""


def _is_same_origin(request: Request) -> bool:
    """Whether a request is no cross-site forgery. Browsers send the page a request comes from; a program that sends
    neither header cannot forge one. Another site may link here."""
    origin, site = request.headers.get("origin"), request.headers.get("sec-fetch-site")
    if origin is not None and not hmac.compare_digest(
        urlsplit(origin).netloc.encode(), request.headers.get("host", "").encode()
    ):
        return False
    is_link = request.method == "GET" and request.headers.get("sec-fetch-mode") == "navigate"
    return site in (None, "same-origin", "none") or is_link


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for candidate in range(port, min(port + 20, 65536)):
        listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            if os.name == "posix":  # allows the port of a server that has just ended
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((host, candidate))
            listener.listen(128)
            return listener
        except OSError as error:
            listener.close()
            if error.errno not in (98, 48, 10048):  # address in use: Linux, macOS, Windows
                raise InputError(f"host: cannot listen on {host}:{candidate} ({error.strerror})") from None
    raise InputError(f"port: {port} to {port + 19} are all in use; choose another with --port")
