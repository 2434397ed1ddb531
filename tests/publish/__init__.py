"""The drawn world, published by nine sources in their own formats, with what gets lost on the way.

    World --a share each--> coco sbu localized_narratives cc3m visual_genome wit cc12m redcaps yfcc100m
                              |            8 % of the pictures, or of their rows, damaged
                              +--> annotation files        below the folder; by serve_files also on the web
                              +--> pictures                on the web, or in archives below the folder
                              +--> Published               what was written, and what must come of every row

    world = World(seed=0, images=2400)
    with Web() as web:
        published = publish(world, folder, web)
        ...  # build a corpus of published.files; compare with published.kept_images and published.dropped

One module a source, with its quirks. A row is what the reader of that source counts: see `Published`.

    damage.py    what goes wrong, and its reason      edition.py     one source's files and account; packing
    flickr.py    photos that several sources share    languages.py   the truth in other languages
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from PIL import Image

from tests.publish.coco import publish_coco
from tests.publish.conceptual import publish_cc3m, publish_cc12m
from tests.publish.damage import LINKS, REASONS, Damage
from tests.publish.edition import Edition, Forms, Posted, zipped
from tests.publish.localized_narratives import publish_localized_narratives
from tests.publish.redcaps import REMOVED, publish_redcaps
from tests.publish.sbu import publish_sbu
from tests.publish.visual_genome import publish_visual_genome
from tests.publish.wit import publish_wit
from tests.publish.yfcc100m import publish_yfcc100m
from tests.web import Fault, ServedFile, Web
from tests.world import Picture, World, encode

__all__ = ["REASONS", "SOURCES", "Damage", "Forms", "Published", "publish", "serve_files"]


class _Source(NamedTuple):
    share: int  # of the world
    publish: Callable[[Sequence[Picture], Edition], None]


SOURCES: dict[str, _Source] = {
    "coco": _Source(10, publish_coco),
    "cc3m": _Source(7, publish_cc3m),
    "cc12m": _Source(7, publish_cc12m),
    "sbu": _Source(4, publish_sbu),
    "localized_narratives": _Source(4, publish_localized_narratives),
    "visual_genome": _Source(4, publish_visual_genome),
    "wit": _Source(4, publish_wit),
    "redcaps": _Source(4, publish_redcaps),
    "yfcc100m": _Source(4, publish_yfcc100m),
}


@dataclass(frozen=True)
class Published:
    """What was written, and what must come of it. In each source rows = kept_rows + the sum of dropped.

    Rows are: of coco its annotations, and its images without any; of sbu an element of the lists; of
    localized_narratives and yfcc100m a line; of visual_genome a region, and an image without any; of wit a
    record; of redcaps an annotation. What must come of them is said for the readers' default rules,
    min_side = 32, max_aspect = 20, min_words = 2, and for yfcc100m languages = ["en"] and min_words = 3.
    """

    folder: Path  # where it all is
    files: dict[str, list[Path]]  # annotation files
    archives: dict[str, list[Path]]  # of images
    addresses: dict[str, Path]  # where the authors publish those, as far as they do -> file or archive
    rows: dict[str, int]
    kept_rows: dict[str, int]
    kept_pairs: dict[str, int]  # captions: a narrative gives one for each sentence
    kept_images: dict[str, int]
    dropped: dict[str, dict[Damage, int]]  # rows
    # Every name of a kept image -> id of its picture in the world. A name is a URL, or a path in an archive
    # where there is no URL; wit's images have two, whole and 500 px wide.
    pictures: dict[str, int]
    damaged: dict[str, Damage]  # every name of an image that must be lost on the way
    turned: dict[str, int]  # URL of a kept image -> degrees counter-clockwise that bring it upright, if not 0
    hosts: tuple[str, ...]  # every host name that pictures are at, sorted


def publish(
    world: World,
    folder: Path,
    web: Web | None,
    *,
    sources: Sequence[str] = tuple(SOURCES),
    forms: Forms | None = None,
) -> Published:
    """Write the annotation files of these sources and their archives below `folder`; serve the pictures.

    A world of 2,400 images gives 500 to COCO, 350 each to CC3M and CC12M, and 200 to each other; fewer
    sources share it alike.
    """
    pictures = iter(world)
    whole = sum(SOURCES[name].share for name in sources)
    editions: dict[str, Edition] = {}
    for name in sources:
        own = [next(pictures) for _ in range(len(world) * SOURCES[name].share // whole)]
        editions[name] = Edition(folder, random.Random(f"{name}/{world.seed}"), forms or Forms())
        SOURCES[name].publish(own, editions[name])
    posted = [entry for edition in editions.values() for entry in edition.posted]
    if web:
        for entry in posted:
            _put_online(web, entry)
        if any(entry.damage is Damage.REMOVED for entry in posted):
            web.serve(urlsplit(REMOVED).netloc, urlsplit(REMOVED).path, _removed(), "image/png")
    kept = [entry for entry in posted if entry.damage is None]
    return Published(
        folder=folder,
        files={name: edition.files for name, edition in editions.items()},
        archives={name: edition.archives for name, edition in editions.items()},
        addresses={url: file for edition in editions.values() for url, file in edition.addresses.items()},
        rows={name: edition.rows for name, edition in editions.items()},
        kept_rows={name: edition.rows - edition.dropped.total() for name, edition in editions.items()},
        kept_pairs={name: edition.pairs for name, edition in editions.items()},
        kept_images={
            name: sum(entry.damage is None for entry in edition.posted) for name, edition in editions.items()
        },
        dropped={name: dict(sorted(edition.dropped.items())) for name, edition in editions.items()},
        pictures={name: entry.picture.id for entry in kept for name in entry.names},
        damaged={name: entry.damage for entry in posted if entry.damage for name in entry.names},
        turned={name: entry.turned for entry in kept if entry.turned for name in entry.names},
        hosts=tuple(sorted({urlsplit(url).netloc for entry in posted for url in entry.urls})),
    )


def serve_files(published: Published, web: Web) -> None:
    """Put every annotation file and archive at its published address, by range, as archives are served.

    What the authors give on request alone (YFCC100M's own files, Flickr30k's photos) has no address.
    """
    for url, file in published.addresses.items():
        parts = urlsplit(url)
        body: Path | bytes = file
        if parts.path.endswith(".zip") and file.suffix != ".zip":  # published in a zip, unpacked here
            body = zipped({str(file.relative_to(published.folder)): file.read_bytes()})
        web.serve_file(parts.netloc, parts.path, ServedFile(body, etag=f'"{file.name}"'))


def _put_online(web: Web, entry: Posted) -> None:
    if not entry.urls or (entry.path and entry.damage not in LINKS):
        return  # in an archive alone
    body = entry.body()
    for url in entry.urls:
        parts = urlsplit(url)
        target = f"{parts.path}?{parts.query}" if parts.query else parts.path
        web.serve(parts.netloc, target, body, "image/png" if parts.path.endswith(".png") else "image/jpeg")
        if entry.damage is Damage.REMOVED:
            web.fault(parts.netloc, target, Fault.REDIRECT, to=REMOVED)
        elif entry.damage and entry.damage in LINKS:
            web.fault(parts.netloc, target, LINKS[entry.damage])


def _removed() -> bytes:
    """The picture that imgur answers with, and 200, where an image was."""
    return encode(Image.new("RGB", (161, 81), (34, 34, 34)), "PNG")
