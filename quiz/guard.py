"""Who may do what: signed cookies, form tokens, the limit on tries, and the headers of answers."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import threading
import time
from collections import deque

from flask import Response, abort, g, request

SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
WINDOW_S = 60
ADDRESSES = 10_000  # remembered at a time
YEAR_S = 365 * 24 * 3600
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; img-src 'self'; style-src 'self'; script-src 'self';"
        " form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    # Not "no-referrer": with it, browsers hide the origin of our own forms as well.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
}


class Limit:
    """At most `count` events of one address in a minute; safe with threads, bounded in memory."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._events: dict[str, deque[float]] = {}
        self._lock = threading.Lock()

    def reached(self, address: str) -> bool:
        """Return whether the address has used up its events."""
        with self._lock:
            return len(self._recent(address)) >= self.count

    def note(self, address: str) -> None:
        """Count one event."""
        with self._lock:
            events = self._recent(address)
            if address not in self._events:
                while len(self._events) >= ADDRESSES:
                    self._events.pop(next(iter(self._events)))
                self._events[address] = events
            events.append(time.monotonic())

    def _recent(self, address: str) -> deque[float]:
        events = self._events.get(address, deque(maxlen=self.count))
        while events and events[0] < time.monotonic() - WINDOW_S:
            events.popleft()
        return events


class Guard:
    """Signatures under the store's secret, and what every request has to show.

    Args:
        secret: of the store.
        https_only: send cookies over TLS only.
    """

    def __init__(self, secret: bytes, https_only: bool) -> None:
        self._secret, self.https_only = secret, https_only

    def sign(self, purpose: str, value: str = "") -> str:
        """Return 43 letters that only the holder of the secret can derive from both texts."""
        text = f"{purpose}\n{value}".encode()
        return hmac.new(self._secret, text, hashlib.sha256).hexdigest()[:43]

    def sealed(self, purpose: str, value: str) -> str:
        """Return a value with its signature, for a cookie."""
        return f"{value}.{self.sign(purpose, value)}"

    def unsealed(self, purpose: str, text: str) -> str | None:
        """Return the value of `sealed`, or None when the text was made elsewhere."""
        value, _, signature = text.rpartition(".")
        return value if same(signature, self.sign(purpose, value)) else None

    def check_request(self) -> None:
        """Know the visitor by a signed cookie; refuse posts that no page of ours has sent."""
        text = request.cookies.get("visitor", "")
        g.visitor, g.new_visitor = self.unsealed("visitor", text) if text else None, False
        if request.method not in SAFE_METHODS:
            if request.headers.get("Sec-Fetch-Site") in ("cross-site", "same-site"):
                abort(403, "a post from another site")
            if g.visitor is None:
                abort(403, "forged session" if text else "a post without a session")
            if not same(request.form.get("csrf", ""), self.form_token()):
                abort(403, "a post without the form's token")
        if g.visitor is None:
            g.visitor, g.new_visitor = secrets.token_urlsafe(16), True

    def form_token(self) -> str:
        """Return what the visitor's forms carry."""
        return self.sign("form", g.visitor)

    def finish(self, response: Response) -> Response:
        """Return the response with the headers that all have."""
        response.headers.update(HEADERS)
        if response.mimetype == "text/html":
            response.headers["Cache-Control"] = "no-store"
            if g.get("new_visitor"):
                self.set_cookie(response, "visitor", self.sealed("visitor", g.visitor), YEAR_S)
        return response

    def set_cookie(self, response: Response, name: str, value: str, seconds: int) -> None:
        """Set a cookie that scripts cannot read and other sites cannot use."""
        response.set_cookie(
            name, value, max_age=seconds, httponly=True, samesite="Lax", secure=self.https_only
        )


def same(one: str, other: str) -> bool:
    """Return whether two texts are equal, in a time that does not tell where they differ."""
    return hmac.compare_digest(one.encode(errors="replace"), other.encode(errors="replace"))


def owner_of(token: str) -> str:
    """Return the SHA-256 of a cookie or invitation, which the store keeps instead of it."""
    return hashlib.sha256(token.encode(errors="replace")).hexdigest()
