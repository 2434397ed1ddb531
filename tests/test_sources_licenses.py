import pytest

from pmd.sources.licenses import spdx_id


@pytest.mark.parametrize(
    ("url", "spdx"),
    [
        ("http://creativecommons.org/licenses/by/2.0/", "CC-BY-2.0"),
        ("https://creativecommons.org/licenses/by/4.0", "CC-BY-4.0"),
        ("http://creativecommons.org/licenses/by-sa/2.0/", "CC-BY-SA-2.0"),
        ("http://creativecommons.org/licenses/by-nd/2.0/", "CC-BY-ND-2.0"),
        ("http://creativecommons.org/licenses/by-nc/2.0/", "CC-BY-NC-2.0"),
        ("http://creativecommons.org/licenses/by-nc-sa/3.0/", "CC-BY-NC-SA-3.0"),
        ("http://www.creativecommons.org/licenses/by-nc-nd/2.5/", "CC-BY-NC-ND-2.5"),
        ("https://creativecommons.org/publicdomain/zero/1.0/", "CC0-1.0"),
        ("https://creativecommons.org/publicdomain/mark/1.0/", "CC-PDM-1.0"),
    ],
)
def test_the_address_of_a_licence_names_it(url: str, spdx: str) -> None:
    assert spdx_id(url) == spdx


@pytest.mark.parametrize(
    "url",
    [
        "",
        "CC BY 2.0",
        "creativecommons.org/licenses/by/2.0/",
        "http://creativecommons.org/licenses/by/2.0/\n",
        "http://creativecommons.org/licenses/by/2.0/deed.en?x",
        "http://creativecommons.org/licenses/nd-by/2.0/",
        "http://creativecommons.org.example/licenses/by/2.0/",
        "http://flickr.com/commons/usage/",
        "http://www.usa.gov/copyright.shtml",
    ],
)
def test_no_licence_is_guessed(url: str) -> None:
    assert spdx_id(url) is None
