"""Photos and people of Flickr, from which half of the sources come."""

import random
from typing import NamedTuple


class Photo(NamedTuple):
    """What Flickr knows a photo by."""

    id: int
    farm: int
    server: int
    secret: str
    original_secret: str

    @property
    def name(self) -> str:
        return f"{self.server}/{self.id}_{self.secret}"


def photo(rng: random.Random) -> Photo:
    secret = f"{rng.getrandbits(40):010x}"
    original = secret if rng.random() < 0.3 else f"{rng.getrandbits(40):010x}"  # alike in the early years
    return Photo(rng.randint(10**6, 10**10), rng.randint(1, 9), rng.randint(1, 8999), secret, original)


def account(rng: random.Random) -> str:
    """A person's NSID."""
    return f"{rng.randint(10**7, 10**8 - 1)}@N{rng.randint(0, 8):02d}"


CREATIVE_COMMONS = {  # name of the licence -> where its text is
    "Attribution License": "http://creativecommons.org/licenses/by/2.0/",
    "Attribution-ShareAlike License": "http://creativecommons.org/licenses/by-sa/2.0/",
    "Attribution-NoDerivs License": "http://creativecommons.org/licenses/by-nd/2.0/",
    "Attribution-NonCommercial License": "http://creativecommons.org/licenses/by-nc/2.0/",
    "Attribution-NonCommercial-ShareAlike License": "http://creativecommons.org/licenses/by-nc-sa/2.0/",
    "Attribution-NonCommercial-NoDerivs License": "http://creativecommons.org/licenses/by-nc-nd/2.0/",
}
