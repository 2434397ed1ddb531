"""Forbidden places, and the many ways to write them into a URL."""

import ipaddress
from collections.abc import Iterator

# Where secrets and administrators live. Each is spelled in all ways below.
SPELLED = ("127.0.0.1", "0.0.0.0", "10.1.2.3", "100.64.0.1", "169.254.169.254", "172.16.0.1", "192.168.1.1")
# These as they are.
OTHERS_V4 = (
    *("127.255.255.254", "0.1.2.3", "10.255.255.255", "100.100.100.200", "100.127.255.255", "168.63.129.16"),
    *("169.254.0.1", "172.31.255.255", "192.0.0.8", "192.0.0.192", "192.0.2.1", "192.31.196.1"),
    *("192.52.193.1", "192.88.99.1", "192.175.48.1", "198.18.0.1", "198.19.255.255", "198.51.100.1"),
    *("203.0.113.1", "224.0.0.1", "239.255.255.250", "240.0.0.1", "255.255.255.255"),
)
OTHERS_V6 = (
    *("::1", "::", "::2", "100::1", "100:0:0:1::1", "64:ff9b:1::1", "2001::1", "2001:1::1", "2001:2::1"),
    *("2001:4:112::1", "2001:10::1", "2001:20::1", "2001:30::1", "2001:db8::1", "2002:808:808::1"),
    *("2620:4f:8000::1", "3fff::1", "4000::1", "5f00::1", "fc00::1", "fd00:ec2::254", "fd20:ce::254"),
    *("fe80::1", "fe80::a9fe:a9fe", "fec0::1", "ff02::1", "ff05::2"),
)
FORBIDDEN = (*SPELLED, *OTHERS_V4, *OTHERS_V6)  # addresses, plainly written

# Names that lead to forbidden addresses, here by tests/netns/inside.py.
NAMES = {
    "localhost.": "127.0.0.1",
    "a.localhost": "127.0.0.1",
    "localtest.example": "127.0.0.1",
    "127.0.0.1.wild.example": "127.0.0.1",
    "xn--ls8h.example": "10.1.2.3",
    "metadata.google.internal": "169.254.169.254",
    "intranet": "192.168.1.1",
    "six.example": "::1",
}


def hosts() -> list[str]:
    """As they stand in a URL, between // and the port."""
    found = [spelled for address in SPELLED for spelled in _spelled(ipaddress.IPv4Address(address))]
    found += [*OTHERS_V4, *(f"[{address}]" for address in OTHERS_V6)]
    found += [
        "[0:0:0:0:0:0:0:1]",
        "[0000:0000:0000:0000:0000:0000:0000:0001]",
        "[::1%lo]",
        "[::1%25lo]",
        "[fe80::1%25eth0]",
        "[fe80::1%eth0]",
        "[2606:4700::1111%25lo]",
        "[FD00:EC2::254]",
        "[::\uff11]",
        "[v1.fe80::a]",
        "[::1",
        "::1",
        "[::1].",
        "[::1]good.example",
        "good.example[::1]",
        "localhost",
        "LocalHost",
        "\uff4cocalhos\uff54",
        "loc\u200balhost",
        "loc\u00adalhost",
        "localhost\u3002",
        "%6cocalhost",
        "localhost%00.good.example",
        "localhost%23.good.example",
        "0",
        "00",
        "0x0",
        "0.0",
        "127.1",
        "127.0.1",
        "127.127.127.127",
        "good.example@127.0.0.1",
        "good.example:80@127.0.0.1",
        "127.0.0.1\\@good.example",
        "good.example\\@127.0.0.1",
        "127.0.0.1 good.example",
        "127.0.0.1\tgood.example",
        "127.0.0.1\uff0f.good.example",
        "good.example\uff20127.0.0.1",
        "127.0.0.1:80:80",
        *NAMES,
    ]
    return list(dict.fromkeys(found))


def _spelled(address: ipaddress.IPv4Address) -> Iterator[str]:
    number, dotted = int(address), str(address)
    a, b, c, d = address.packed
    yield dotted
    yield f"{dotted}."
    # As inet_aton reads them, and with it most of the world's programs
    yield str(number)
    yield f"{number:#x}"
    yield f"{number:#X}"
    yield f"0{number:o}"
    yield str(number + 2**32)
    yield f"{a}.{b}.{c << 8 | d}"
    yield f"{a}.{b << 16 | c << 8 | d}"
    yield f"{a:#x}.{b:#x}.{c:#x}.{d:#x}"
    yield f"0{a:o}.0{b:o}.0{c:o}.0{d:o}"
    yield f"{a:#x}.0{b:o}.{c}.{d}"
    yield f"{a:#x}.{number & 0xFFFFFF}"
    yield f"{a:03}.{b:03}.{c:03}.{d:03}"
    yield f"{a + 256}.{b}.{c}.{d}"
    # In other scripts, and with what nobody sees
    yield dotted.translate({ord("0") + digit: 0xFF10 + digit for digit in range(10)})
    yield dotted.translate({ord("0"): "⓪"} | {ord("0") + digit: 0x2460 + digit - 1 for digit in range(1, 10)})
    yield dotted.translate({ord("0") + digit: 0x1D7D8 + digit for digit in range(10)})
    for dot in "\u3002\uff0e\uff61":
        yield dotted.replace(".", dot)
    yield dotted.replace(".", ".\u200b", 1)
    yield dotted.replace(".", ".\u00ad", 1)
    yield dotted.replace(".", "%2e")
    yield "".join(f"%{byte:02x}" for byte in dotted.encode())
    # In IPv6
    high, low = number >> 16, number & 0xFFFF
    yield f"[::ffff:{dotted}]"
    yield f"[::FFFF:{high:X}:{low:X}]"
    yield f"[0:0:0:0:0:ffff:{high:04x}:{low:04x}]"
    yield f"[::{dotted}]"
    yield f"[::ffff:0:{dotted}]"
    yield f"[64:ff9b::{dotted}]"
    yield f"[64:ff9b:1::{dotted}]"
    yield f"[2002:{high:x}:{low:x}::1]"
    yield f"[2001:0:808:808:0:0:{high ^ 0xFFFF:x}:{low ^ 0xFFFF:x}]"
    yield f"[2606:4700::5efe:{dotted}]"
    yield f"[2606:4700::200:5efe:{dotted}]"
    yield f"[fe80::5efe:{dotted}]"


# No host at all, or one that a reader of another kind would see.
STRANGE_URLS = (
    "file:///etc/passwd",
    "FILE://localhost/etc/passwd",
    "ftp://127.0.0.1/",
    "gopher://127.0.0.1:6379/_INFO",
    "dict://127.0.0.1:11211/stats",
    "ldap://127.0.0.1/",
    "data:image/gif;base64,R0lGODlhAQABAAAAACw=",
    "javascript:alert(1)",
    "jar:http://127.0.0.1!/",
    "blob:http://127.0.0.1/1",
    "unix:///var/run/docker.sock",
    "http+unix://%2Fvar%2Frun%2Fdocker.sock/info",
    "http://\\127.0.0.1/",
    "http:\\\\127.0.0.1\\",
    "http:/\\127.0.0.1/",
    "http:///127.0.0.1/",
    "http:////127.0.0.1/",
    "http://#@127.0.0.1/",
    "http://?@127.0.0.1/",
    "\\\\127.0.0.1\\share",
    "ht\ntp://127.0.0.1/",
    "http://127.0.0.1\r\nHost: good.example/",
    "url:http://127.0.0.1/",
)


def urls(scheme: str = "http", at: str = "") -> list[str]:
    """A URL for every spelling; `at` is a port, as ":8080"."""
    return [f"{scheme}://{host}{at}/secret.jpg" for host in hosts()]
