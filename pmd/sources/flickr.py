"""Flickr's photos by the addresses of their files: several sources lead to the same photos, on many hosts.

http://farm8.staticflickr.com/7205/6985418911_df7747990d_z.jpg    photo 6985418911, its secret, its size
"""

import re

PHOTO = r"/([0-9]+)_[0-9a-f]+(?:_[a-z0-9]{1,2})?\.[a-z]+"
_AT_THE_END = re.compile(PHOTO + r"\Z")


def photo_id(url: str) -> str | None:
    """The number of the photo whose file is at a URL; None where it is not named as Flickr names files."""
    found = _AT_THE_END.search(url)
    return found[1] if found else None
