"""The address policy: what may be connected to, however it is written and by whatever way it is reached.

The tests of `inside` run the policy as it is in production, in a network namespace where every address
of the world is this machine's and each forbidden one has a canary: see tests/netns/inside.py.
"""

import asyncio
import ipaddress
import socket
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pmd.errors import BadRequest
from pmd.fetch import address
from pmd.fetch.address import AddressPolicy
from pmd.fetch.client import Client
from pmd.fetch.url import BadUrl, read_url
from pmd.manifest import FetchSpec
from tests.netns import spellings
from tests.netns.enter import inside
from tests.netns.spellings import FORBIDDEN

REFUSED = {"blocked_address", "input_bad_url", "redirect_bad", "bad_scheme"}


# The table

POLICY = AddressPolicy.of(FetchSpec())


def networks_of_the_table() -> list[address.Network]:
    return [network for network, _ in address._SPECIAL]  # pyright: ignore[reportPrivateUsage]


# IANA's special-purpose registries for IPv4 and IPv6, as of 2025-10-09; multicast; what was site-local.
REGISTRIES = (
    *("0.0.0.0/8", "0.0.0.0/32", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16"),
    *("172.16.0.0/12", "192.0.0.0/24", "192.0.0.0/29", "192.0.0.8/32", "192.0.0.9/32", "192.0.0.10/32"),
    *("192.0.0.170/32", "192.0.0.171/32", "192.0.2.0/24", "192.31.196.0/24", "192.52.193.0/24"),
    *("192.88.99.0/24", "192.88.99.2/32", "192.168.0.0/16", "192.175.48.0/24", "198.18.0.0/15"),
    *("198.51.100.0/24", "203.0.113.0/24", "240.0.0.0/4", "255.255.255.255/32", "224.0.0.0/4"),
    *("::1/128", "::/128", "64:ff9b:1::/48", "100::/64", "100:0:0:1::/64", "2001::/23", "2001::/32"),
    *("2001:1::1/128", "2001:1::2/128", "2001:1::3/128", "2001:2::/48", "2001:3::/32", "2001:4:112::/48"),
    *("2001:10::/28", "2001:20::/28", "2001:30::/28", "2001:db8::/32", "2002::/16", "2620:4f:8000::/48"),
    *("3fff::/20", "5f00::/16", "fc00::/7", "fe80::/10", "fec0::/10", "ff00::/8"),
)
# Of the registries too; but what they carry is judged instead: 8.8.8.8 in them is public, 10.1.2.3 is
# not.
CARRY_IPV4 = [*map(ipaddress.ip_network, ("::ffff:0:0/96", "64:ff9b::/96"))]
# Refused, though the ipaddress of some or all versions of Python calls them global.
REFUSED_BEYOND = [
    ipaddress.ip_network(network)
    for network in (
        "100.64.0.0/10",  # neither private nor global, it says
        "168.63.129.16/32",  # public by its number, but Azure's host agent answers to guests there
        "192.0.0.0/24",  # two anycast addresses in it are global: NAT and TURN, no pictures
        *("192.31.196.0/24", "192.52.193.0/24", "192.175.48.0/24", "2620:4f:8000::/48"),  # global: AS112, AMT
        "192.88.99.0/24",  # 6to4 relays: withdrawn
        "224.0.0.0/4",
        "ff00::/8",  # multicast is global where its scope is
        "2001::/23",  # with Teredo; parts of it are global
        "2002::/16",  # 6to4: leads to an IPv4 address by a relay
        *("3fff::/20", "5f00::/16", "64:ff9b:1::/48", "fec0::/10"),  # younger, or older, than some Pythons
    )
]


@pytest.mark.parametrize("network", REGISTRIES)
def test_what_the_registries_set_aside_is_refused(network: str) -> None:
    found = ipaddress.ip_network(network)
    middle = found[found.num_addresses // 2]
    for place in (found[0], middle, found[-1]):
        assert POLICY.objection(str(place), 80), place


def embeds(place: address.Address) -> bool:
    return any(place in network for network in CARRY_IPV4)


def called_special(place: address.Address) -> bool:
    """Has the standard library anything against an address?"""
    return (
        place.is_private
        or place.is_loopback
        or place.is_link_local
        or place.is_multicast
        or place.is_reserved
        or place.is_unspecified
        or (isinstance(place, ipaddress.IPv6Address) and place.is_site_local)
    )


def edges() -> list[address.Address]:
    """The first and last addresses of each range, and their neighbours outside."""
    found: set[address.Address] = set()
    for network in [*networks_of_the_table(), *map(ipaddress.ip_network, REGISTRIES), *CARRY_IPV4]:
        kind = type(network.network_address)
        for number in (int(network[0]) - 1, int(network[0]), int(network[-1]), int(network[-1]) + 1):
            if 0 <= number < 1 << network.max_prefixlen:
                found.add(kind(number))
    return sorted(found, key=lambda place: (place.version, int(place)))


def judge(place: address.Address) -> None:
    """Ours against the standard library's: never milder, stricter only where said."""
    refused = POLICY.objection(str(place), 443)
    if embeds(place):
        carried = ipaddress.IPv4Address(int(place) & 0xFFFF_FFFF)
        assert refused == POLICY.objection(str(carried), 443), place
        return
    if called_special(place):
        assert refused, place
    isatap = place.version == 6 and int(place) >> 32 & 0xFDFF_FFFF == 0x5EFE
    if refused and place.is_global and not called_special(place) and not isatap:
        assert any(place in network for network in REFUSED_BEYOND), (place, refused)


def test_at_every_edge_we_refuse_what_the_standard_library_calls_special_and_little_else() -> None:
    for place in edges():
        judge(place)


@given(st.ip_addresses())
def test_of_any_address_we_refuse_what_the_standard_library_calls_special_and_little_else(
    place: address.Address,
) -> None:
    judge(place)


@given(st.ip_addresses(v=4), st.sampled_from(CARRY_IPV4))
def test_an_address_within_an_address_is_judged(
    inner: ipaddress.IPv4Address, network: ipaddress.IPv6Network
) -> None:
    outer = ipaddress.IPv6Address(int(network[0]) | int(inner))
    judge(outer)
    assert POLICY.objection(str(outer), 80) == POLICY.objection(str(inner), 80)


@given(st.ip_addresses(v=4), st.integers(0, (1 << 64) - 1), st.booleans())
def test_isatap_is_refused_in_any_network(inner: ipaddress.IPv4Address, upper: int, universal: bool) -> None:
    marked = (0x0200_5EFE if universal else 0x5EFE) << 32 | int(inner)
    assert POLICY.objection(str(ipaddress.IPv6Address(upper << 64 | marked)), 80)


@pytest.mark.parametrize("place", ["fe80::1%eth0", "2606:4700::1111%lo", "8.8.8.8%lo", "::1%25lo"])
def test_an_address_on_one_link_is_not_public(place: str) -> None:
    assert POLICY.objection(place, 80)


def test_ports_are_those_of_the_corpus_file() -> None:
    policy = AddressPolicy.of(FetchSpec(ports=(8080, 443)))
    assert policy.objection("8.8.8.8", 8080) is policy.objection("8.8.8.8", 443) is None
    assert policy.objection("8.8.8.8", 80) == "port 80"
    assert policy.objection("10.1.2.3", 8080) == "private"


@pytest.mark.parametrize(
    "keys",
    [
        {"ports": [0]},
        {"ports": [80, 65_536]},
        {"connect_to": {"*": "bücher:80"}},
        {"connect_to": {"*": "a\0:1"}},
    ],
)
def test_ports_and_mirrors_that_are_none_are_a_bad_request(keys: dict[str, Any]) -> None:
    with pytest.raises(BadRequest, match="fetch"):
        AddressPolicy.of(FetchSpec.model_validate(keys))


# How they are written


def test_there_are_many_spellings() -> None:
    assert len(spellings.urls()) == len({*spellings.urls()}) >= 300
    assert len(spellings.STRANGE_URLS) >= 20


def literal(url: str) -> str | None:
    """The address that a URL spells; None where it spells a name. Raises BadUrl."""
    host = (read_url(url).host or "").strip("[]")
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        return None


def test_every_spelling_is_refused_as_a_url_or_as_an_address() -> None:
    ends: Counter[str] = Counter()
    for url in [*spellings.urls(), *spellings.urls("https"), *spellings.STRANGE_URLS]:
        try:
            found = literal(url)
        except BadUrl as error:
            ends[error.reason] += 1
            continue
        if found is None:
            ends["name"] += 1
            continue
        assert POLICY.objection(found, 80), url
        ends["address"] += 1
    # None of the three tests nothing.
    assert ends["address"] > 300 and ends["input_bad_url"] > 200 and ends["bad_scheme"] > 5
    assert ends["name"] < 40


@contextmanager
def listening() -> Iterator[tuple[int, list[socket.socket]]]:
    """One port of 127.0.0.1 and of ::1, and what listens there."""
    with socket.create_server(("127.0.0.1", 0)) as four:
        port = four.getsockname()[1]
        with socket.create_server(("::1", port), family=socket.AF_INET6) as six:
            yield port, [four, six]


def accepted(listeners: list[socket.socket]) -> int:
    """How many connections wait there; takes them."""
    found = 0
    for listener in listeners:
        listener.setblocking(False)
        try:
            while True:
                listener.accept()[0].close()
                found += 1
        except BlockingIOError:
            pass
    return found


def loopback_urls(port: int) -> list[str]:
    """All spellings of addresses, and of localhost: no name that somebody else would be asked about."""
    found: list[str] = []
    for scheme in ("http", "https"):
        for url in spellings.urls(scheme, f":{port}"):
            try:
                ours = literal(url) is not None or read_url(url).host == "localhost"
            except BadUrl:
                ours = True
            found += [url] if ours else []
    return found


def test_no_spelling_reaches_this_machine() -> None:
    """With the port allowed, so that nothing but the address speaks against it."""

    async def ends(urls: list[str], spec: FetchSpec) -> Counter[str]:
        async with Client(spec) as client:
            answers = await asyncio.gather(*(client.fetch(url) for url in urls))
        return Counter(str(answer.reason) for answer in answers)

    with listening() as (port, listeners):
        urls = loopback_urls(port)
        spec = FetchSpec(ports=(port,), retries=1, per_host_rate=1e6, timeout_s=5, consent=())
        found = asyncio.run(ends(urls, spec))
        assert accepted(listeners) == 0
        assert {*found} <= REFUSED and found["blocked_address"] > 300, found
        # And they do listen; who is let in gets there.
        open_spec = spec.model_copy(update={"allow_private": ("127.0.0.0/8", "::1"), "timeout_s": 0.5})
        asyncio.run(ends([f"http://127.0.0.1:{port}/", f"http://[::1]:{port}/"], open_spec))
        assert accepted(listeners) >= 2


# The policy of production, in an internet of our own


def refused(told: dict[str, Any], *, own: str | None = None) -> Counter[str]:
    """Checks that all rows were, and that no canary rang; returns the reasons.

    own: the end of the hosts that a strange redirect may lead back to.
    """
    for row in told["rows"]:
        if own is None or not (row["final_url"].split("/")[2:3] or [""])[0].endswith(own):
            assert row["reason"] in REFUSED, row
    assert told["rang"] == {}
    return Counter(row["reason"] for row in told["rows"])


def test_inside_good_rows_succeed() -> None:
    """By name and by address, redirected, over TLS. Otherwise all below would tell nothing."""
    told = inside("good")
    assert all(told["good"]) and len(told["good"]) >= 15, [row for row in told["rows"] if row["reason"]]
    assert told["rang"] == {}
    # Neither the netrc nor the proxies of the environment are used.
    assert told["headers"] == ["accept", "accept-encoding", "host", "user-agent"]


def test_inside_every_canary_rings_when_somebody_connects() -> None:
    rang = inside("canaries")["rang"]
    # Two are loopback by another name, the others belong to no machine, or need an interface named.
    no_canary = {"0.0.0.0", "::", "224.0.0.1", "239.255.255.250", "255.255.255.255"}
    no_canary |= {place for place in FORBIDDEN if place.startswith(("fe80", "ff0"))}
    assert {*rang} >= {*FORBIDDEN} - no_canary
    assert rang["10.9.9.9"] == 7  # one a port


def test_inside_without_the_policy_the_same_spellings_reach_the_canaries() -> None:
    told = inside("without_policy")
    dear = {"127.0.0.1", "::1", "169.254.169.254", "10.1.2.3", "100.64.0.1", "fd00:ec2::254", "192.168.1.1"}
    assert {*told["rang"]} >= dear
    assert len(told["rang"]) > 80


def test_inside_no_row_reaches_a_forbidden_address() -> None:
    found = refused(inside("rows"))
    assert found["blocked_address"] >= 500 and found["input_bad_url"] >= 300, found
    assert found["bad_scheme"] >= 10, found


@pytest.mark.slow
def test_inside_no_redirect_reaches_a_forbidden_address() -> None:
    """From the first hop to the fifth, over connections that are kept or closed."""
    told = inside("redirects")
    found = refused(told, own="zone.example")
    assert not any(told["good"])
    assert found["blocked_address"] >= 6 * 150 and found["redirect_bad"] >= 6 * 100, found


def test_inside_no_robots_txt_leads_to_a_forbidden_address() -> None:
    told = inside("robots")
    assert told["rang"] == {}
    asked = [row for row in told["rows"] if row["url"].endswith("robots.txt")]
    assert refused({"rows": asked, "rang": {}}, own="zone.example")["blocked_address"] >= 150
    pictures = Counter(row["reason"] for row in told["rows"] if row["url"].endswith("good.jpg"))
    # A redirect that leads nowhere is no robots.txt; one that leads where nobody may go is one unread.
    assert {*pictures} == {None, "optout_unreachable"} and pictures["optout_unreachable"] >= 150, pictures


def test_inside_no_name_with_a_forbidden_answer_is_connected_to() -> None:
    """Not even at its public address; with A and AAAA, in any order, directly and by CNAME."""
    found = refused(inside("names"))
    assert found == {"blocked_address": 10 * len(FORBIDDEN)}


def test_inside_a_name_that_changes_its_mind_is_not_followed() -> None:
    """The address that is checked is the one that is connected to, for each new connection."""
    told = inside("rebinding")
    assert told["rang"] == {}
    found = Counter(row["reason"] for row in told["rows"])
    # Four ways of three rows: answers are kept, or each connection asks anew; it is kept, or closed.
    each = len(FORBIDDEN)
    # Where each lookup asks anew, the one that counts the address gets the public answer, and the
    # connection's own the other: it is refused.
    assert found == {None: 4 * each, "blocked_address": 6 * each, "connect_reset": 2 * each}, found


@pytest.mark.slow
def test_inside_published_files_are_fetched_under_the_same_policy() -> None:
    told = inside("files")
    assert told["fine"].startswith("got ") and told["rang"] == {}
    for place, end in told["astray"].items():
        assert "no address gives this file" in end, (place, end)
    assert sum("not a public address" in end for end in told["astray"].values()) > 50
    assert told["headers"] == ["accept", "accept-encoding", "host", "user-agent"]


def test_inside_other_ports_are_for_those_who_name_them() -> None:
    told = inside("ports")
    assert told["good"] == [False, True, False, True, False, False]
    assert told["rang"] == {}


# Names


def test_inside_a_failed_lookup_says_whether_it_is_worth_another_try() -> None:
    told = inside("failures")
    ends = {"good": ["2606:4700::1111", "8.8.8.8"], "nx": "final", "nodata": "final"}
    ends |= {"servfail": "temporary", "refused": "temporary", "dead": "temporary"}
    found = told["found"]
    for how, end in ends.items():
        assert sorted(found[f"{how} addresses"]) == end if how == "good" else found[f"{how} addresses"] == end
        assert found[f"{how} request"] == (200 if how == "good" else end)
    # An answer and a "no" are kept for the next who asks; that nobody could say is not.
    asked = told["asked"]
    assert asked["good.zone.example 1"] == asked["nx.zone.example 1"] == asked["nodata.zone.example 1"] == 1
    assert asked["servfail.zone.example 1"] >= 2


def test_inside_addresses_that_are_asked_for_are_checked_and_nothing_is_opened() -> None:
    told = inside("failures")
    assert len(told["blocked"]) == 2 * len(FORBIDDEN)
    for host, end in told["blocked"].items():
        assert end.startswith("blocked: "), (host, end)
    assert told["rang"] == {}


def test_inside_dead_names_do_not_keep_good_ones_waiting() -> None:
    """Each holds its thread for longer than a row may take, and there are more of them than places."""
    told = inside("dead_names")
    assert told["good"] == [False] * 32 + [True] * 40
    assert {row["reason"] for row in told["rows"][:32]} == {"dns_failed"}


def test_inside_a_machine_out_of_files_is_not_the_fault_of_a_name() -> None:
    assert inside("out_of_files")["end"].startswith("PmdError: no more open files")


def test_inside_threads_for_dead_names_have_an_end() -> None:
    """And the process ends, while they still wait."""
    told = inside("more_dead_names_than_threads")
    assert told["ends"] == ["temporary"] * 12
    assert told["threads"] == 6  # two places, four left behind
    assert told["literal"] == "('8.8.8.8',)"
