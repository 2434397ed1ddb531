"""The text of a row or of a redirect -> the URL that is asked.

    text -> http(s) only -> host: a name, an IPv4 or an IPv6 address -> path and query as they came -> URL

A URL is asked as it was written. Two readings of one text are how filters are passed by, so whatever programs
read differently is refused: credentials, backslashes before the path, numbers that may be an address.
"""

import ipaddress
import re
from urllib.parse import urljoin

from yarl import URL

from pmd.records import Reason

MAX_LENGTH = 8_000  # characters of a URL: what servers commonly take

_PARTS = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]*):(?://(?P<site>[^/?#]*)(?P<rest>[^#]*))?", re.IGNORECASE)
_SITE = re.compile(r"(?P<host>\[[0-9a-f:.]+\]|[^:@\[\]\\%]+)(?::(?P<port>[0-9]{0,5}))?", re.IGNORECASE)
_LABEL = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)")
# RFC 3986 allows none of these in a path or query. All else stays, also what looks wrong (a bare "%", "[").
_ILLEGAL = re.compile(rb"[^!#-;=?-\[\]_a-z~]")


class BadUrl(ValueError):
    """No URL that can be asked. `reason`: BAD_SCHEME or INPUT_BAD_URL."""

    def __init__(self, reason: Reason, why: str) -> None:
        super().__init__(why)
        self.reason = reason


def read_url(text: str) -> URL:
    """The URL that a text spells, ready to be asked. Raises BadUrl.

    Only what cannot be sent is percent-encoded (spaces, other scripts); the host becomes lower-case ASCII,
    the fragment goes. Credentials (user:password@) are refused: none shall reach a log or a server.
    """
    text = text.strip()
    if len(text) > MAX_LENGTH:
        raise BadUrl(Reason.INPUT_BAD_URL, f"is longer than {MAX_LENGTH} characters")
    _refuse_controls(text)
    parts = _PARTS.match(text)
    if parts is None:
        raise BadUrl(Reason.INPUT_BAD_URL, "has no scheme, such as https:")
    scheme = parts["scheme"].lower()
    if scheme not in ("http", "https"):
        raise BadUrl(Reason.BAD_SCHEME, f"scheme is {scheme[:40]}")
    if parts["site"] is None:
        raise BadUrl(Reason.INPUT_BAD_URL, "names no host")
    site = _SITE.fullmatch(parts["site"])
    if site is None:
        raise BadUrl(Reason.INPUT_BAD_URL, "its host is none, or comes with credentials")
    port = int(site["port"] or 0) or None
    if site["port"] and not 1 <= int(site["port"]) <= 65_535:
        raise BadUrl(Reason.INPUT_BAD_URL, "its port is none")
    try:
        rest = parts["rest"].encode("utf-8", "surrogateescape")  # a header's bytes come back as they were
    except UnicodeEncodeError:
        raise BadUrl(Reason.INPUT_BAD_URL, "is not Unicode text") from None
    path = _ILLEGAL.sub(lambda byte: b"%%%02X" % byte[0][0], rest).decode("ascii")
    if not path.startswith("/"):
        path = "/" + path
    host = _host(site["host"])
    at = f"{host}:{port}" if port else host
    if len(at) + len(path) > MAX_LENGTH:
        raise BadUrl(Reason.INPUT_BAD_URL, f"is longer than {MAX_LENGTH} characters as sent")
    return URL(f"{scheme}://{at}{path}", encoded=True)


def follow(url: URL, location: str) -> URL:
    """Where a redirect from `url` leads. Raises BadUrl."""
    location = location.strip()
    _refuse_controls(location)  # urljoin would take some of them out
    try:
        return read_url(urljoin(str(url), location))
    except BadUrl:
        raise
    except ValueError as error:  # of urljoin: a bracket that does not close
        raise BadUrl(Reason.INPUT_BAD_URL, str(error)) from None


def _refuse_controls(text: str) -> None:
    if any(character < " " or character == "\x7f" for character in text):
        raise BadUrl(Reason.INPUT_BAD_URL, "has control characters")


def _host(text: str) -> str:
    """Lower-case ASCII, an IPv6 address in brackets. Raises BadUrl."""
    try:
        if text.startswith("["):
            return f"[{ipaddress.IPv6Address(text[1:-1]).compressed}]"
        name = (URL.build(scheme="http", host=text).raw_host or "").lower()
        labels = name.removesuffix(".").split(".")
        # A number last makes it an address (2130706433, 0x7f.1); only four plain ones are read alike by all.
        if re.fullmatch(r"[0-9]+|0x[0-9a-f]*", labels[-1]):
            return str(ipaddress.IPv4Address(name))
        if len(name) <= 253 and all(_LABEL.fullmatch(label) for label in labels):
            return name
    except ValueError:
        pass
    raise BadUrl(Reason.INPUT_BAD_URL, f"{text[:80]!r} is neither a host name nor an address")
