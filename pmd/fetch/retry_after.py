"""How long a host wants not to be asked, as its Retry-After says."""

import re
from datetime import UTC, datetime, timedelta

LONGEST_PAUSE_S = 24 * 3600.0  # that it is taken at its word

_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_DAY = r"(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun)"
_LONG_DAY = r"(?:Mon|Tues|Wednes|Thurs|Fri|Satur|Sun)day"
_CLOCK = r"(?P<hour>\d\d):(?P<minute>\d\d):(?P<second>\d\d)"
_DATES = tuple(
    re.compile(form, re.ASCII)
    for form in (
        rf"{_DAY}, (?P<day>\d\d) (?P<month>\w{{3}}) (?P<year>\d{{4}}) {_CLOCK} GMT",
        rf"{_LONG_DAY}, (?P<day>\d\d)-(?P<month>\w{{3}})-(?P<year>\d\d) {_CLOCK} GMT",  # RFC 850
        rf"{_DAY} (?P<month>\w{{3}}) (?P<day>[ \d]\d) {_CLOCK} (?P<year>\d{{4}})",  # of C
    )
)


def retry_after_s(text: str, now: datetime | None = None) -> float | None:
    """How long a Retry-After asks to wait, s: it gives seconds, or a date (RFC 9110). None: neither.

    now: in UTC.
    """
    text = text.strip(" \t")
    if re.fullmatch(r"[0-9]+", text):
        return min(float(text), LONGEST_PAUSE_S)
    now = now or datetime.now(UTC)
    for form in _DATES:
        found = form.fullmatch(text)
        if found is None:
            continue
        parts = found.groupdict()
        try:
            year = int(parts["year"])
            if year < 100:  # the one that is not more than 50 years ahead
                year += now.year // 100 * 100
                year -= 100 if year > now.year + 50 else 0
            month = _MONTHS.index(parts["month"]) + 1
            second = min(int(parts["second"]), 59)  # 60 is a leap second
            day, hour, minute = int(parts["day"]), int(parts["hour"]), int(parts["minute"])
            at = datetime(year, month, day, hour, minute, second, tzinfo=UTC)
        except ValueError:
            return None
        return min(max(0.0, (at - now) / timedelta(seconds=1)), LONGEST_PAUSE_S)
    return None
