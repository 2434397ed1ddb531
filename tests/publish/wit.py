"""WIT: pages of Wikipedia in many languages with their images; gzipped TSV of 17 columns, quoted as CSV is.

An image is on pages of several languages and stands in a row for each; of the English rows some have a
caption below the image, some what its page on Commons says ("English: ... Français: ..."), some an alt text.
"""

import csv
import hashlib
import io
import random
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from tests.publish.damage import LATE, OF_IMAGES, Damage, damages, served_size
from tests.publish.edition import Edition, gzipped
from tests.publish.languages import LANGUAGES
from tests.world import Picture

OF_WIT = (*OF_IMAGES, Damage.EMPTY_CAPTION, Damage.NOT_A_URL, Damage.MISSING_TAB, Damage.INVALID_UTF8)
COLUMNS = (
    "language",
    "page_url",
    "image_url",
    "page_title",
    "section_title",
    "hierarchical_section_title",
    "caption_reference_description",
    "caption_attribution_description",
    "caption_alt_text_description",
    "mime_type",
    "original_height",
    "original_width",
    "is_main_image",
    "attribution_passes_lang_id",
    "page_changed_recently",
    "context_page_description",
    "context_section_description",
)
FILES = 2


def publish_wit(pictures: Sequence[Picture], edition: Edition) -> None:
    rng = edition.rng
    records: list[bytes] = []
    for picture, damage in zip(pictures, damages(len(pictures), OF_WIT, rng), strict=True):
        url, thumb = _addresses(picture, damage, rng)
        late = damage if damage in LATE else None
        shown = "unavailable" if damage is Damage.NOT_A_URL else url
        for _ in range(2 if (damage is None or late) and rng.random() < 0.1 else 1):
            row = _english(picture, shown, usable=damage is not Damage.EMPTY_CAPTION, rng=rng)
            row |= _size(picture, damage)
            records.append(_record(row, damage, rng))
            edition.row(damage)
        if damage is None or late:
            edition.post(picture, late, url, thumb)
        for _ in range(rng.choices((0, 1, 2), weights=(50, 30, 20))[0]):
            records.append(_record(_foreign(picture, url, rng) | _size(picture, damage), None, rng))
            edition.row(Damage.FOREIGN)
    for _ in range(len(pictures) // 5):  # images that no English page has
        picture = rng.choice(pictures)
        url, _ = _addresses(picture, None, rng)
        records.append(_record(_foreign(picture, url, rng) | _size(picture, None), None, rng))
        edition.row(Damage.FOREIGN)
    rng.shuffle(records)
    header = "\t".join(COLUMNS).encode() + b"\n"
    for number in range(FILES):
        name = f"wit_v1.train.all-{number:05d}-of-{FILES:05d}.tsv.gz"
        data = header + b"".join(records[number::FILES])
        edition.write(name, gzipped(data), f"https://storage.googleapis.com/gresearch/wit/{name}")


def _record(row: dict[str, str], damage: Damage | None, rng: random.Random) -> bytes:
    """A record as it stands in the file."""
    fields = [row[column] for column in COLUMNS]
    if damage is Damage.MISSING_TAB:
        place = rng.randint(9, 12)
        fields[place : place + 2] = [" ".join(fields[place : place + 2])]
    out = io.StringIO(newline="")
    csv.writer(out, delimiter="\t", lineterminator="\n").writerow(fields)
    data = out.getvalue().encode()
    return data.replace(b"en\t", b"en\t\xc3(", 1) if damage is Damage.INVALID_UTF8 else data


# --- addresses ---


def _addresses(picture: Picture, damage: Damage | None, rng: random.Random) -> tuple[str, str]:
    """Where Wikimedia has an image whole, and 500 px wide: in a folder by the md5 of its name."""
    shape = picture.scene.things[0].shape.capitalize()
    number = f"{rng.getrandbits(40):010x}"
    kind = "png" if damage is None and rng.random() < 0.05 else "jpg"
    name = rng.choice(
        (f"{shape}_{number}.{kind}", f"{shape}_({number}).{kind}", f"Étude_nº_{number},_{shape}.{kind}")
    )
    digest = hashlib.md5(name.encode()).hexdigest()
    scheme = "http" if rng.random() < 0.1 else "https"
    # What en.wikipedia has for itself is often there as fair use.
    site = f"{scheme}://upload.wikimedia.org/wikipedia/{'en' if rng.random() < 0.08 else 'commons'}"
    place, name = f"{digest[0]}/{digest[:2]}", quote(name, safe="")
    return f"{site}/{place}/{name}", f"{site}/thumb/{place}/{name}/500px-{name}"


def _size(picture: Picture, damage: Damage | None) -> dict[str, str]:
    width, height = served_size(picture, damage)
    return {"original_height": str(height), "original_width": str(width)}


# --- rows ---

SECTIONS = ("", "", "Gallery", "In art", "History")


def _row(language: str, title: str, url: str, rng: random.Random, **texts: str) -> dict[str, str]:
    section = rng.choice(SECTIONS)
    place = quote(title.replace(" ", "_"), safe="")
    flags: dict[str, Any] = {
        name: rng.choice(("true", "false"))
        for name in ("is_main_image", "attribution_passes_lang_id", "page_changed_recently")
    }
    return (
        dict.fromkeys(COLUMNS, "")
        | flags
        | texts
        | {
            "language": language,
            "page_url": f"https://{language}.wikipedia.org/wiki/{place}",
            "image_url": url,
            "page_title": title,
            "section_title": section,
            "hierarchical_section_title": f"{title} / {section}" if section else title,
            "mime_type": "image/png" if url.endswith(".png") else "image/jpeg",
        }
    )


def _english(picture: Picture, url: str, *, usable: bool, rng: random.Random) -> dict[str, str]:
    caption = rng.choice(picture.captions)
    if rng.random() < 0.2:
        caption = f"{caption.removesuffix('.')}, étude №{rng.randint(2, 9)}"
    other = rng.choice(LANGUAGES)
    said = other.about(picture.scene, rng)
    nothing = rng.choice(("", "Figure", "Рисунок"))  # a caption of one word is none
    foreign = rng.choice(("", f"{other.own_name}: {said}"))
    if not usable:
        reference, attribution, alt = nothing, foreign, rng.choice(("", "Drawing", "A drawing"))
    elif (kind := rng.random()) < 0.45:
        reference, attribution, alt = caption, rng.choice(("", foreign, "English: Something else")), ""
    elif kind < 0.8:
        later = f" {other.own_name}: {said}"
        attribution = rng.choice(
            (
                f"English: {caption}",
                f"English: {caption}{later}",
                f"Italiano: Un disegno English: {caption}{later}",
                f"ENGLISH: {caption}{later} Polski: Rysunek",
            )
        )
        reference, alt = nothing, rng.choice(("", "Drawing"))
    else:
        # Of what Commons says, only what it calls English is taken.
        reference, attribution, alt = nothing, rng.choice((foreign, "A figure drawn on paper")), caption
    return _row(
        "en",
        rng.choice(("{}", "{} (geometry)", "History of the {}")).format(
            picture.scene.things[0].shape.capitalize()
        ),
        url,
        rng,
        caption_reference_description=reference,
        caption_attribution_description=attribution,
        caption_alt_text_description=alt,
        context_page_description=_context(caption, rng),
        context_section_description=rng.choice(("", _context(caption, rng))),
    )


def _foreign(picture: Picture, url: str, rng: random.Random) -> dict[str, str]:
    language = rng.choice(LANGUAGES)
    said = language.about(picture.scene, rng)
    return _row(
        language.code,
        language.page(picture.scene),
        url,
        rng,
        caption_reference_description=rng.choice(("", said)),
        caption_attribution_description=f"English: {picture.captions[0]} {language.own_name}: {said}",
        context_page_description=_context(said, rng),
    )


def _context(text: str, rng: random.Random) -> str:
    """Some paragraphs of a page: with line ends, quotes and TABs, which a reader must take as text."""
    ways = (
        "",
        text,
        f'It is called a "figure" in geometry.\n{text}',
        f"{text}\n\nen\thttps://en.wikipedia.org/wiki/Figure\n",
        f"{text}\u2028It is the same\x85as before.",
        f'"{text}"',
    )
    return rng.choices(ways, weights=(1, 5, 2, 1, 1, 1))[0]
