"""Pictures that say that there is none: told by their address, and not taken for those of others."""

import hashlib

import pytest

from pmd.fetch.placeholders import LARGEST, Placeholders, known_placeholders
from pmd.fetch.url import read_url

GONE = [
    "https://i.imgur.com/removed.png",
    "http://I.IMGUR.com./removed.png",
    "https://i.imgur.com/removed.png?1#part",
    "https://s.yimg.com/pw/images/en-us/photo_unavailable.png",
    "https://s.yimg.com/pw/images/en-us/photo_unavailable_l.png",
    "https://s.yimg.com/pw/images/photo_unavailable.gif",
    "http://l.yimg.com/g/images/photo_unavailable.gif",
    "https://combo.staticflickr.com/pw/images/en-us/photo_unavailable_h.png",
    "https://combo.staticflickr.com/pw/images/en-us/video-failure/k.png",
    "https://assets.tumblr.com/images/media_violation/community_guidelines_v1_1280.png",
    "http://pic.photobucket.com/bwe.png",
    "http://tinypic.com/images/404.gif",
]
PICTURES = [
    "https://i.imgur.com/removed.jpg",
    "https://i.imgur.com/a/removed.png",
    "https://i.imgur.com.example/removed.png",
    "https://example.org/removed.png",
    "https://example.org/?u=https://i.imgur.com/removed.png",
    "https://i.imgur.com/Removed.png",
    "https://i.imgur.com/aaaremoved.png",
    "https://live.staticflickr.com/1/photo_unavailable.png",
    "https://s.yimg.com/pw/images/a/b/photo_unavailable.png",
    "https://assets.tumblr.com/images/logo.png",
]


def test_known_placeholders_are_told_from_pictures() -> None:
    known = known_placeholders()
    assert [known.at(read_url(url)) is not None for url in GONE] == [True] * len(GONE)
    assert [known.at(read_url(url)) for url in PICTURES] == [None] * len(PICTURES)
    assert known.at(read_url(GONE[0])) == "imgur: the image is no longer available"


def test_each_known_placeholder_says_who_has_seen_it() -> None:
    import tomllib

    from pmd.manifest import manifest_folder

    entries = tomllib.loads((manifest_folder() / "placeholders.toml").read_text())["placeholder"]
    assert all(entry["name"] and entry["evidence"] for entry in entries)


@pytest.mark.parametrize("algorithm", ["md5", "sha256"])
def test_a_body_is_known_by_its_digest(algorithm: str) -> None:
    digest = hashlib.new(algorithm, b"gone").hexdigest()
    known = Placeholders.read(f'[[placeholder]]\nname = "x"\nbodies = ["{algorithm}:{digest}"]'.encode())
    assert (known.of(b"gone"), known.of(b"a picture"), known.of(bytes(LARGEST + 1))) == ("x", None, None)
    assert known.version != known_placeholders().version


@pytest.mark.parametrize(
    "entry",
    [
        'bodies = ["d835884373f4d6c8f24742ceabe74946"]',
        'bodies = ["md5:D835"]',
        'hosts = ["a.example"]\npaths = ["removed.png"]',
        'host = "a.example"\npaths = ["/removed.png"]',
    ],
)
def test_a_file_that_is_misspelt_is_refused(entry: str) -> None:
    with pytest.raises(ValueError, match=r"x: "):
        Placeholders.read(f'[[placeholder]]\nname = "x"\n{entry}'.encode())
