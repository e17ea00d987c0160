"""Who may look: a token, a cookie, a reverse proxy's word; and the headers that every answer carries.

What is asked for is looked at here alone, before anything else runs. Nothing is written: all but reading is refused,
except for giving the token and, where it is allowed, sending a trace once more.
"""

from __future__ import annotations

import hmac
from hashlib import sha256
from urllib.parse import parse_qsl, urlencode

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from trifle_otel.viewer.settings import Settings
from trifle_otel.viewer.templates import page
from trifle_otel.viewer.urls import path_of

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
    "cache-control": "private, no-cache",
}
MOST_FORM_BYTES = 4_096
_COOKIE_SECONDS = 30 * 86_400


class Guard:
    """Lets in whoever may look, and gives every answer its headers."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self.app = app
        self.settings = settings
        self._digest = sha256((settings.token or "").encode()).digest()
        # Not the token itself: who reads a cookie cannot log in elsewhere with it. Cookies do not tell ports apart.
        self._secret = hmac.new(self._digest, b"trifle_otel viewer", sha256).hexdigest()
        self.cookie = f"trifle_{self._secret[:8]}"
        self._value = self._secret[8:]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or have the viewer answer."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)  # the server's start and end
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        answer = await self._answer(scope, receive)
        await (answer or self.app)(scope, receive, send_with_headers)

    async def _answer(self, scope: Scope, receive: Receive) -> Response | None:
        """What is answered instead of a page; None where the page is."""
        headers = Headers(scope=scope)
        if not self._knows_host(headers):
            return _refusal(scope, 421, "This viewer is not asked for under that name.")
        if scope["method"] in ("GET", "HEAD") and _route_path(scope).startswith("/static/"):
            return None  # the form for the token has a style too, and nothing of what was recorded is there
        if not self._allowed(scope, headers):
            return await self._login(scope, receive)
        if "token" in dict(parse_qsl(scope["query_string"].decode("latin-1"))):
            return self._entry(scope)
        replays = self.settings.replay is not None and scope["path"].endswith("/replay")
        if scope["method"] == "POST" and replays and _from_own_page(headers):
            return None
        if scope["method"] not in ("GET", "HEAD"):
            return _refusal(scope, 405, "This viewer only shows.", {"allow": "GET, HEAD"})
        return None

    def _knows_host(self, headers: Headers) -> bool:
        hosts = self.settings.hosts
        return hosts is None or _host_name(headers.get("host", "")) in hosts

    def _allowed(self, scope: Scope, headers: Headers) -> bool:
        settings = self.settings
        if settings.token is None and settings.user_header is None:
            return True
        client = scope.get("client")
        if settings.user_header and client and client[0] in settings.proxies and headers.get(settings.user_header):
            return True
        if settings.token is None:
            return False
        kind, _, given = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer" and self._is_token(given.strip()):
            return True
        return hmac.compare_digest(_cookies(headers).get(self.cookie, "").encode(), self._value.encode())

    def _is_token(self, given: str) -> bool:
        # Digests: their comparison takes as long whatever was given, of whatever length.
        return hmac.compare_digest(sha256(given.encode()).digest(), self._digest)

    async def _login(self, scope: Scope, receive: Receive) -> Response:
        """Where a right token was given, the same page again with a cookie; else a form for one."""
        given = dict(parse_qsl(scope["query_string"].decode("latin-1"))).get("token")
        if scope["method"] == "POST":
            given = await _form_token(scope, receive)
        if self.settings.token is None:
            return _refusal(scope, 401, "Whoever looks here must come through the proxy that says who they are.")
        if given is None or not self._is_token(given):
            told = "That is not the token." if given is not None else ""
            return page(
                scope, "login.html", {"told": told}, status=401, headers={"www-authenticate": 'Bearer realm="trifle"'}
            )
        answer = self._entry(scope)
        answer.set_cookie(
            self.cookie,
            self._value,
            max_age=_COOKIE_SECONDS,
            path=scope.get("root_path") or "/",
            secure=scope.get("scheme") == "https",
            httponly=True,
            samesite="lax",  # a link to a trace, from wherever, must lead to it
        )
        return answer

    def _entry(self, scope: Scope) -> RedirectResponse:
        """The same page, without the token in its URL."""
        pairs = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        rest = urlencode([pair for pair in pairs if pair[0] != "token"])
        return RedirectResponse(path_of(scope) + (f"?{rest}" if rest else ""), 303)


def _refusal(scope: Scope, status: int, told: str, headers: dict[str, str] | None = None) -> Response:
    return page(scope, "message.html", {"title": "Not here", "told": told}, status=status, headers=headers)


def _route_path(scope: Scope) -> str:
    """The path without the root, just as Starlette takes it for its routes."""
    path, root = str(scope["path"]), str(scope.get("root_path", ""))
    return path[len(root) :] if root and path.startswith(f"{root}/") else path


def _host_name(host: str) -> str:
    """The name in a `Host` header: without the port, an IPv6 address without its brackets."""
    host = host.strip().lower()
    return host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]


def _cookies(headers: Headers) -> dict[str, str]:
    pairs = (pair.strip().partition("=") for pair in headers.get("cookie", "").split(";"))
    return {name: value for name, _, value in pairs}


def _from_own_page(headers: Headers) -> bool:
    """Whether a form of ours sent it, by what browsers say: behind a proxy the origin and the host may differ."""
    site = headers.get("sec-fetch-site")
    if site is not None:
        return site == "same-origin"
    return headers.get("origin", "").partition("://")[2].lower() == headers.get("host", "").lower()


async def _form_token(scope: Scope, receive: Receive) -> str | None:
    body = b""
    try:
        async for part in Request(scope, receive).stream():
            body += part
            if len(body) > MOST_FORM_BYTES:
                return ""
    except ClientDisconnect:
        return ""
    return dict(parse_qsl(body.decode("latin-1"))).get("token", "")
