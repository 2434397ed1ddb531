"""The nouns of the library: what a reader yields, and every way a row can end.

    annotation row --reader--> Record (one image, its captions)     or  Rejected (no record could be made)
    Record --plan, download, filter--> kept, or dropped for one Reason

A *row* is one line, element or caption of an annotation file. A *record* is one image; several rows may meet
in it. Every row ends in exactly one outcome: kept, or a Reason of the closed list below.
"""

import hashlib
import json
import re
from enum import StrEnum
from typing import NamedTuple


class Reason(StrEnum):
    """Why a row was dropped. Closed: a new reason is a new line here and in pmd/README.md."""

    # The annotation row itself (stage: plan)
    INPUT_MALFORMED = "input_malformed"  # not the format that its file is in
    INPUT_NO_IMAGE = "input_no_image"  # names no image, or one the file does not list
    INPUT_NO_CAPTION = "input_no_caption"  # has no caption at all
    INPUT_BAD_URL = "input_bad_url"  # the image address is not a URL
    INPUT_LEFT_OUT = "input_left_out"  # of a split or part of the dataset that the corpus file leaves out
    # Its text (stage: plan)
    CAPTION_EMPTY = "caption_empty"
    CAPTION_SHORT = "caption_short"
    CAPTION_LONG = "caption_long"
    CAPTION_LANGUAGE = "caption_language"
    # What models are evaluated on (stage: plan)
    DECONTAMINATED = "decontaminated"
    # The archive, or the address and the connection (stage: download)
    NOT_IN_ARCHIVE = "not_in_archive"  # has no address, and no archive at hand holds it
    BAD_SCHEME = "bad_scheme"
    BLOCKED_ADDRESS = "blocked_address"
    DNS_FAILED = "dns_failed"
    CONNECT_FAILED = "connect_failed"
    CONNECT_RESET = "connect_reset"
    TLS_FAILED = "tls_failed"
    PROTOCOL_ERROR = "protocol_error"
    TIMEOUT = "timeout"
    REDIRECT_LIMIT = "redirect_limit"
    REDIRECT_BAD = "redirect_bad"
    # The server's answer
    HTTP_401 = "http_401"
    HTTP_402 = "http_402"
    HTTP_403 = "http_403"
    HTTP_404 = "http_404"
    HTTP_410 = "http_410"
    HTTP_429 = "http_429"
    HTTP_451 = "http_451"
    HTTP_4XX = "http_4xx"
    HTTP_5XX = "http_5xx"
    HTTP_OTHER = "http_other"
    # The site's refusal
    OPTOUT_ROBOTS = "optout_robots"
    OPTOUT_X_ROBOTS_TAG = "optout_x_robots_tag"
    OPTOUT_TDM = "optout_tdm"  # rights to text and data mining reserved, in a header or in tdmrep.json
    OPTOUT_AI_TXT = "optout_ai_txt"
    OPTOUT_CONTENT_USAGE = "optout_content_usage"  # Content-Usage, Content-Signal: header or robots.txt
    OPTOUT_UNREACHABLE = "optout_unreachable"  # its robots.txt, tdmrep.json or ai.txt could not be read
    # The bytes
    BODY_LIMIT = "body_limit"
    BODY_TRUNCATED = "body_truncated"
    BODY_EMPTY = "body_empty"
    BAD_ENCODING = "bad_encoding"
    NOT_AN_IMAGE = "not_an_image"
    UNSUPPORTED_FORMAT = "unsupported_format"
    DECODE_LIMIT = "decode_limit"
    DECODE_FAILED = "decode_failed"
    DECODE_TIMEOUT = "decode_timeout"
    DECODE_CRASH = "decode_crash"  # twice, of the process that decodes
    PLACEHOLDER = "placeholder"  # the host's picture that says that there is none
    # The picture (stage: filter)
    IMAGE_SMALL = "image_small"
    IMAGE_ASPECT = "image_aspect"
    # The picture among others (stage: filter)
    DUPLICATE = "duplicate"  # an earlier image has the same bytes
    NEAR_DUPLICATE = "near_duplicate"  # an earlier image looks the same


# Another try later may end otherwise; everything else is final.
TRANSIENT = frozenset(
    {
        Reason.DNS_FAILED,
        Reason.CONNECT_FAILED,
        Reason.CONNECT_RESET,
        Reason.TIMEOUT,
        Reason.HTTP_429,
        Reason.HTTP_5XX,
        Reason.OPTOUT_UNREACHABLE,
        Reason.BODY_TRUNCATED,
    }
)


class Caption(NamedTuple):
    """One caption as its annotation file has it, uncleaned."""

    text: str
    row: int  # 0-based number in its part of the annotation row it came from, unreadable rows counted
    id: str | None = None  # the publisher's id of this caption, or which of a row's texts it is
    box: tuple[float, float, float, float] | None = None  # x, y, width, height in px of the published image
    otherwise: "Caption | None" = None  # of the same row: taken instead where the caption rules drop this one


class Record(NamedTuple):
    """One image with captions, as a reader yields it. A reader may yield an image again: plan joins equal
    keys. A row may give several captions, all of them of one image.
    """

    key: str
    url: str | None  # None: published in an archive alone
    captions: tuple[Caption, ...]
    license: str | None = None  # SPDX id, or None where the source does not say
    license_url: str | None = None
    attribution: str | None = None
    meta: str | None = None  # JSON object of the source's own ids, sorted keys
    path: str | None = None  # of the image in the publisher's archives, where there are some
    rotation: int | None = None  # degrees counter-clockwise that bring the published pixels upright


class Rejected(NamedTuple):
    """An annotation row that no record could be made of."""

    row: int  # 0-based number in its part
    reason: Reason
    detail: str  # one line for a person: what was expected, what was there


# With ".json" it fits the 100 bytes that a tar header has for a name.
KEY = re.compile(r"[a-z0-9][a-z0-9_-]{0,94}\Z")


def native_key(source: str, native_id: str | int) -> str:
    """`<source>-<native id>`: for sources whose ids are short and clean."""
    key = f"{source}-{native_id}".lower()
    if not KEY.match(key):
        raise ValueError(f"{key!r} is no key: only a-z 0-9 _ - and at most 95 characters")
    return key


def url_key(source: str, url: str) -> str:
    """`<source>-<first 16 hex of sha256(url)>`: for sources that are lists of URLs."""
    return f"{source}-{hashlib.sha256(url.encode('utf-8', 'surrogatepass')).hexdigest()[:16]}"


def meta_json(**values: str | int | None) -> str:
    """`meta` of a record: those of the values that the source gives, as JSON with sorted keys."""
    return _encode({name: value for name, value in values.items() if value is not None})


# Made once: json.dumps makes an encoder at every call that asks for anything special.
_encode = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode


def key_hash(key: str) -> int:
    """Where a key goes: an unsigned 64-bit number. Its shard is `key_hash(key) % shards`, its place there the
    order of hashes.
    """
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")
