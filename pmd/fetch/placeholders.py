"""Pictures that only say that there is none, told by where they lie or by what they are.

    a URL that is about to be asked --at--> the name of a placeholder, or None: a picture like any other
    the body that came              --of--^

Which ones there are is data: manifests/placeholders.toml. They count as lost images, and none is stored.
"""

import functools
import hashlib
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from yarl import URL

from pmd.manifest import manifest_folder

# Bytes. A few lines of text make small files, and most photos are larger: those need no hash.
LARGEST = 16_384

_DIGEST = re.compile(r"(md5|sha256):([0-9a-f]{32}|[0-9a-f]{64})")


@dataclass(frozen=True)
class Placeholders:
    """The known ones."""

    paths: Mapping[str, tuple[tuple[re.Pattern[str], str], ...]]  # host -> (what a whole path matches, name)
    digests: Mapping[str, str]  # "md5:<hex>" or "sha256:<hex>" of a body -> name
    version: str  # sha256 of the file: it decides which images there are

    @classmethod
    def read(cls, file: bytes) -> Self:
        """Of a file such as manifests/placeholders.toml. Raises ValueError, KeyError where it is not one."""
        paths: dict[str, list[tuple[re.Pattern[str], str]]] = {}
        digests: dict[str, str] = {}
        for entry in tomllib.loads(file.decode())["placeholder"]:
            if unknown := set(entry) - {"name", "hosts", "paths", "bodies", "evidence"}:
                raise ValueError(f"{entry['name']}: unknown keys: {', '.join(sorted(unknown))}")
            for path in entry.get("paths", ()):
                if not path.startswith("/"):
                    raise ValueError(f"{entry['name']}: {path!r} is no path")
                # * stands for anything within one part of the path.
                pattern = re.compile("[^/]*".join(map(re.escape, path.split("*"))))
                for host in entry["hosts"]:
                    paths.setdefault(host, []).append((pattern, entry["name"]))
            for digest in entry.get("bodies", ()):
                if not _DIGEST.fullmatch(digest):
                    raise ValueError(f"{entry['name']}: {digest!r} is not md5:HEX or sha256:HEX")
                digests[digest] = entry["name"]
        version = hashlib.sha256(file).hexdigest()
        return cls({host: tuple(known) for host, known in paths.items()}, digests, version)

    def at(self, url: URL) -> str | None:
        """The placeholder that lies at this URL."""
        for pattern, name in self.paths.get((url.raw_host or "").rstrip("."), ()):
            if pattern.fullmatch(url.raw_path):
                return name
        return None

    def of(self, body: bytes) -> str | None:
        """The placeholder that these bytes are."""
        if len(body) > LARGEST:
            return None
        for algorithm in ("md5", "sha256"):
            digest = hashlib.new(algorithm, body, usedforsecurity=False).hexdigest()
            if name := self.digests.get(f"{algorithm}:{digest}"):
                return name
        return None


@functools.cache
def known_placeholders() -> Placeholders:
    """Those that we ship."""
    return Placeholders.read((manifest_folder() / "placeholders.toml").read_bytes())
