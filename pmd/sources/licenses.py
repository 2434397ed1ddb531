"""Licence URL -> SPDX id, for the Creative Commons licences that sources name by their address."""

import re

# http://creativecommons.org/licenses/by-nc-sa/2.0/ -> CC-BY-NC-SA-2.0
_LICENSE = re.compile(
    r"https?://(?:www\.)?creativecommons\.org/licenses/(by|by-sa|by-nd|by-nc|by-nc-sa|by-nc-nd)/(\d\.\d)/?\Z"
)
_PUBLIC_DOMAIN = re.compile(r"https?://(?:www\.)?creativecommons\.org/publicdomain/(zero|mark)/1\.0/?\Z")


def spdx_id(url: str) -> str | None:
    """The SPDX id of the licence at a URL; None where there is none, or none is known."""
    if found := _LICENSE.match(url):
        return f"CC-{found[1].upper()}-{found[2]}"
    if found := _PUBLIC_DOMAIN.match(url):
        return "CC0-1.0" if found[1] == "zero" else "CC-PDM-1.0"
    return None
