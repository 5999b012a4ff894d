"""Who may do what: tokens by role, in a header for programs and in a cookie for pages.

A program sends `Authorization: Bearer TOKEN`. A page has a cookie that names the token's id and the time, signed with
a key that the store does not hold: it ends after `SESSION_SECONDS`, and at once when the token is revoked.

Whatever a browser sends to change something must come from a page of ours. Browsers say where it comes from, and pages
cannot change what they say: `Sec-Fetch-Site` over TLS and on this machine, `Origin` everywhere. What says neither is no
browser of today, and is refused. So the cookie may be `SameSite=Lax`: whoever follows a link to a page here stays
logged in, and no address that a link can lead to changes anything.

Whoever guesses at tokens is stopped by address, before the store is asked. What is known to be right, a cookie with
its signature or a token that was right before, is no guess and is not counted.

Without any token, and on loopback only, access is open and everybody is an admin. Another page in the same browser
could then send requests too; these are told by their `Host`, `Origin` and `Sec-Fetch-Site` headers and refused. So is
what a proxy passes on, for it may come from anywhere: it is told by the headers that proxies add, and by HTTP/1.0,
which nginx speaks to what is behind it and no browser or client of today does.
"""

from __future__ import annotations

import ipaddress
import re
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from urllib.parse import SplitResult, urlsplit

from fastapi import APIRouter, Form, HTTPException, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import RedirectResponse, Response
from itsdangerous import BadData

from rlhf_loop.feedback.store import tokens
from rlhf_loop.feedback.store.tokens import Role
from rlhf_loop.server.service import Service

router = APIRouter(include_in_schema=False)

COOKIE = "rlhf_loop_session"
SESSION_SECONDS = 12 * 3600
TOKEN_SECONDS = 1.0
"""How long a program's token is believed before it is looked up again: it works so much longer when it is revoked."""
LOOPBACK = ("localhost", "127.0.0.1", "::1")
_SAFE = ("GET", "HEAD", "OPTIONS")
_FROM_PROXY = re.compile(
    r"via|cdn-loop|max-forwards|surrogate-capability|early-data|front-end-https|client-cert(?:-chain)?|x-host|x-scheme"
    r"|x-url-scheme|x-client-port|x-iinfo|x-request-start|x-remote-user|x-cache(?:-.*)?"
    r"|.*forwarded.*"  # Forwarded, X-Forwarded-For, X-Original-Forwarded-For, Fly-Forwarded-Port
    r"|.*(?:client|real|remote|connecting|user|source|peer|origin|originating|external|socket|true|visitor)"
    r"[-_]?(?:ip|addr|address)"
    r"|(?:x-)?(?:cf|fly|fastly|akamai|envoy|azure|fd|amzn|amz-cf|amz-apigw|vercel|nf|appengine|arr|ssl|tailscale|sucuri"
    r"|incap|gfe|cloud-trace|proxy|proxyuser|ms-proxy|original|rewrite|varnish|haproxy|traefik|kong|render|railway"
    r"|replit|github-codespaces|tunnel|wl-proxy|zscaler|bluecoat|accel|imforwards|gateway|coming-from|real-host)"
    r"(?:-.*)?"
    r"|(?:x-)?(?:ngrok|webauth|authentik|authelia|auth-request|goog-authenticated|goog-iap|remote)-(?!skip-).*"
)
"""Names, in lower case, of headers that proxies, balancers, tunnels and content networks add to what they pass on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Caller:
    """Whoever sent a request."""

    token_id: str  # "open" where access is open
    name: str  # of the token; the annotator's pseudonym
    role: Role


OPEN = Caller(token_id="open", name="you", role="admin")


def require(*roles: Role) -> Callable[[Request], Awaitable[Caller]]:
    """A dependency that gives the caller, or answers 401 (unknown) or 403 (another role). An admin may do everything.

    Answers 403 too for what a page of another site sends, and 429 when the caller sends too much.
    """

    async def caller(request: Request) -> Caller:
        found = _just_seen(request)
        if found is None:
            found = await run_in_threadpool(identify, request)
        if found.role not in (*roles, "admin"):
            raise HTTPException(403, f"this needs a token of the role {' or '.join(roles)}; yours is {found.role}")
        return found

    return caller


def identify(request: Request) -> Caller:
    """Whoever sent the request, whatever the role; 401 where that is not known."""
    service: Service = request.app.state.service
    if is_open(service):
        _check_here(request)
        found, by_page = OPEN, _from_browser(request)
    else:
        secret = _bearer(request)
        by_page = secret is None
        if secret is not None and secret not in service.seen_tokens:
            _check_guesses(request)
        token = _look_up(service, secret) if secret is not None else _of_session(request, service)
        if token is None:
            service.limits.check(_guesser(request), "unknown")
            said = "the token is unknown or was revoked" if secret is not None else "a token is needed"
            raise HTTPException(
                401,
                f"{said}: send `Authorization: Bearer TOKEN`, or log in at /login. `rlhf-loop token create` makes one",
                {"WWW-Authenticate": "Bearer"},
            )
        found = Caller(token_id=token.id, name=token.name, role=token.role)
    request.state.caller = found
    if by_page and request.method not in _SAFE:
        _check_own_page(request)
    service.limits.check(found.token_id, found.role)
    return found


def _just_seen(request: Request) -> Caller | None:
    """Whoever sent the request, where their token was looked up less than `TOKEN_SECONDS` ago."""
    service: Service = request.app.state.service
    secret = _bearer(request)
    token, until = service.seen_tokens.get(secret or "", (None, 0.0))
    if token is None or time.monotonic() > until:
        return None
    found = Caller(token_id=token.id, name=token.name, role=token.role)
    request.state.caller = found
    service.limits.check(found.token_id, found.role)
    return found


def _look_up(service: Service, secret: str) -> tokens.Token | None:
    """The token with this secret, remembered for a moment."""
    token = tokens.find(service.store, secret)
    if len(service.seen_tokens) > 1000:
        service.seen_tokens.clear()
    if token is not None:
        service.seen_tokens[secret] = (token, time.monotonic() + TOKEN_SECONDS)
    else:
        service.seen_tokens.pop(secret, None)
    return token


def is_open(service: Service) -> bool:
    """Whether everybody is let in. The first token that is made ends that, while the service runs."""
    if service.open_access and tokens.any_made(service.store):
        service.open_access = False
    return service.open_access


@router.post("/login")
def login(
    request: Request, token: str = Form("", max_length=200), then: str = Form("/", max_length=500, alias="next")
) -> RedirectResponse:
    """Takes a token from the login page and gives a cookie in exchange; then on to `next`, a path of this service."""
    service: Service = request.app.state.service
    _check_here(request)
    _check_own_page(request)
    _check_guesses(request)
    found = tokens.find(service.store, token.strip())
    if found is None:
        service.limits.check(_guesser(request), "unknown")
        return RedirectResponse("/login?failed=1", 303)
    answer = RedirectResponse(_local_path(then), 303)
    answer.set_cookie(
        COOKIE,
        service.sessions.sign(found.id).decode(),
        max_age=SESSION_SECONDS,
        httponly=True,
        samesite="lax",
        secure=request.url.scheme == "https" or request.headers.get("Origin", "").startswith("https:"),
    )
    return answer


@router.post("/logout")
def logout(request: Request) -> Response:
    """Ends a page's session."""
    _check_own_page(request)
    answer = RedirectResponse("/login", 303)
    answer.delete_cookie(COOKIE)
    return answer


def _bearer(request: Request) -> str | None:
    scheme, _, secret = request.headers.get("Authorization", "").partition(" ")
    return secret.strip() if scheme.lower() == "bearer" and secret.strip() else None


def _guesser(request: Request) -> str:
    """Whose failed attempts are counted together: an IPv4 address, or a network of IPv6, which has 2**64 addresses.

    The address is that of the connection, or what a proxy says that `serve --trusted-proxy` names; nobody else is
    believed (see `server/run.py`).
    """
    host = request.client.host if request.client else "unknown"
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return f"unknown:{host}"
    if address.version == 6 and address.ipv4_mapped is None:
        return f"unknown:{ipaddress.ip_network((address, 64), strict=False)}"
    return f"unknown:{getattr(address, 'ipv4_mapped', None) or address}"


def _check_guesses(request: Request) -> None:
    """429 for whoever failed too often, before what they send is looked up."""
    service: Service = request.app.state.service
    service.limits.check(_guesser(request), "unknown", take=False)


def _of_session(request: Request, service: Service) -> tokens.Token | None:
    """The token of a page's cookie, where its signature and its age are right and the token still stands."""
    try:
        id = service.sessions.unsign(request.cookies.get(COOKIE, ""), max_age=SESSION_SECONDS).decode()
    except (BadData, UnicodeError):
        return None
    return tokens.by_id(service.store, id)


def _from_browser(request: Request) -> bool:
    """Browsers say where a state-changing request comes from; programs do not."""
    return any(name in request.headers for name in ("Origin", "Sec-Fetch-Site", "Cookie"))


def _check_here(request: Request) -> None:
    """Where access is open, 403 for what does not come from this machine by one of its own names, or from another site.

    A name that somebody else's DNS made point here (DNS rebinding) would have the browser take their page for ours.
    """
    service: Service = request.app.state.service
    if not service.open_access:
        return
    host = request.headers.get("Host", "")
    if _parts(f"//{host}").hostname not in LOOPBACK:
        raise HTTPException(
            403, f"without tokens only {', '.join(LOOPBACK)} may be called, not {host[:100]!r}; use one of these names"
        )
    if _by_proxy(request):
        raise HTTPException(
            403,
            "a proxy passes this on, perhaps from another machine, and no token was made: make one first with "
            "`rlhf-loop token create`",
        )
    _check_origin(request)


def _check_own_page(request: Request) -> None:
    """403 for what changes something and was not sent by a page of this service, as far as the browser says."""
    site = request.headers.get("Sec-Fetch-Site")
    if site is None and "Origin" not in request.headers:
        raise HTTPException(
            403,
            "the browser does not say which page sent this (Sec-Fetch-Site, Origin): use a newer one; a program "
            "sends `Authorization: Bearer TOKEN`",
        )
    _check_origin(request)
    if site not in (None, "same-origin", "none"):  # none: the person did it, not a page
        raise HTTPException(403, "a page of another site sent this")


def _check_origin(request: Request) -> None:
    origin = request.headers.get("Origin")
    if origin is not None and _parts(origin).netloc != request.headers.get("Host", ""):
        said = "a page of another site sent this"
        if request.headers.get("Sec-Fetch-Site") == "same-origin":
            said = (
                f"a proxy before this service changes `Host`: it must pass on {_parts(origin).netloc[:100]} as it came"
            )
        raise HTTPException(403, said)


def _by_proxy(request: Request) -> bool:
    """Whether something between the caller and this service passed the request on, as far as it shows."""
    old = request.scope.get("http_version") in ("0.9", "1.0")
    return old or any(_FROM_PROXY.fullmatch(name) for name in request.headers)


def _local_path(path: str) -> str:
    """A path of this service; anything that could lead elsewhere becomes the front page."""
    parts = _parts(path)
    plain = path.startswith("/") and not path.startswith("//") and "\\" not in path and path.isprintable()
    return path if plain and not parts.scheme and not parts.netloc else "/"


def _parts(url: str) -> SplitResult:
    """Of a URL; of one that is none, all are empty."""
    try:
        return urlsplit(url)
    except ValueError:
        return urlsplit("")
