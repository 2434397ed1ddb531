import bz2
import gzip
import io
import json
import re
import tarfile
import tempfile
import tracemalloc
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pmd.records import Caption, Reason, Record, Rejected, url_key
from pmd.sources import Incomplete, sbu
from tests.reading import Outcome, check_laws, read_all, read_parts

REAL = Path(__file__).parents[2] / "shared" / "real" / "sbu" / "sbu-captions-all.head5.json"

URL = "http://static.flickr.com/2723/4385058960_b0f291553e.jpg"
USER = "47889917@N08"
CAPTION = "A wooden chair in the living room "


# --- sbu-captions-all.json ---


def test_an_entry_of_the_lists_becomes_a_record(tmp_path: Path) -> None:
    expected = Record(
        key=url_key("sbu", URL),
        url=URL,
        captions=(Caption(CAPTION, row=0),),
        attribution="https://www.flickr.com/people/47889917@N08/",
        meta='{"flickr_photo_id":"4385058960"}',
    )
    assert read_json(tmp_path, image_urls=[URL], user_ids=[USER], captions=[CAPTION]) == [expected]


def test_the_lists_may_come_in_any_order(tmp_path: Path) -> None:
    lists = {"image_urls": [URL, f"{URL}?2"], "user_ids": [USER, USER], "captions": ["a", "b"]}
    backwards = dict(reversed(lists.items()))
    assert read_json(tmp_path, **lists) == read_json(tmp_path, **backwards)
    assert sbu.recognise(write(tmp_path, json.dumps(backwards).encode())) == "lists json"


@pytest.mark.parametrize(
    ("urls", "users", "captions", "reasons"),
    [
        (3, 3, 3, [None, None, None]),
        (3, 3, 1, [None, Reason.INPUT_NO_CAPTION, Reason.INPUT_NO_CAPTION]),
        (1, 3, 3, [None, Reason.INPUT_NO_IMAGE, Reason.INPUT_NO_IMAGE]),
        (3, 1, 3, [None, None, None]),
        (1, 2, 1, [None, Reason.INPUT_NO_CAPTION]),
        (0, 0, 2, [Reason.INPUT_NO_IMAGE, Reason.INPUT_NO_IMAGE]),
        (0, 0, 0, []),
    ],
)
def test_what_a_list_has_beyond_another_is_a_row_without_that(
    tmp_path: Path, urls: int, users: int, captions: int, reasons: list[Reason | None]
) -> None:
    found = read_json(
        tmp_path, image_urls=[URL] * urls, user_ids=[USER] * users, captions=[CAPTION] * captions
    )
    assert summary(found) == reasons
    assert [outcome.attribution is not None for outcome in found if isinstance(outcome, Record)] == [
        place < users for place in range(len(reasons)) if reasons[place] is None
    ]


@pytest.mark.parametrize(
    ("url", "caption", "reason"),
    [
        (None, "a", Reason.INPUT_NO_IMAGE),
        ("", "a", Reason.INPUT_NO_IMAGE),
        ("4385058960_b0f291553e.jpg", "a", Reason.INPUT_BAD_URL),
        (5, "a", Reason.INPUT_MALFORMED),
        ([URL], "a", Reason.INPUT_MALFORMED),
        (URL, None, Reason.INPUT_NO_CAPTION),
        (URL, " \n", Reason.INPUT_NO_CAPTION),
        (URL, 5, Reason.INPUT_MALFORMED),
        (URL, ["a"], Reason.INPUT_MALFORMED),
        (None, None, Reason.INPUT_NO_CAPTION),
    ],
)
def test_an_entry_that_cannot_be_read_is_rejected_alone(
    tmp_path: Path, url: Any, caption: Any, reason: Reason
) -> None:
    found = read_json(tmp_path, image_urls=[URL, url, URL], user_ids=[USER] * 3, captions=["a", caption, "c"])
    assert summary(found) == [None, reason, None]
    assert [outcome.captions[0].text for outcome in found if isinstance(outcome, Record)] == ["a", "c"]


@pytest.mark.parametrize("user", [None, "", 5, [], "a name", "47889917@N08/../x", "47889917@N0\n"])
def test_what_is_no_number_of_a_user_gives_no_attribution(tmp_path: Path, user: Any) -> None:
    (found,) = read_json(tmp_path, image_urls=[URL], user_ids=[user], captions=[CAPTION])
    assert isinstance(found, Record) and found.attribution is None


def test_a_file_without_users_is_whole(tmp_path: Path) -> None:
    assert summary(read_json(tmp_path, image_urls=[URL], captions=[CAPTION])) == [None]


def test_a_file_without_addresses_says_so_and_one_without_captions_has_none(tmp_path: Path) -> None:
    assert summary(read_json(tmp_path, user_ids=[USER], captions=[CAPTION])) == [
        Reason.INPUT_NO_IMAGE,
        Reason.INPUT_MALFORMED,
    ]
    assert summary(read_json(tmp_path, image_urls=[URL] * 2)) == [Reason.INPUT_NO_CAPTION] * 2


@pytest.mark.parametrize(
    ("url", "photo"),
    [
        ("http://static.flickr.com/193/499952586_224e4f1712.jpg", "499952586"),
        ("http://farm3.static.flickr.com/2723/4385058960_b0f291553e_z.jpg", "4385058960"),
        ("https://live.staticflickr.com/65535/4385058960_b0f291553e_3k.png", "4385058960"),
        ("http://mirror.example/sbu/4385058960_b0f291553e.jpg", "4385058960"),
        ("http://a.example/4385058960.jpg", None),
        ("http://a.example/4385058960_b0f291553e.jpg/more", None),
    ],
)
def test_the_photos_number_at_flickr_is_kept(tmp_path: Path, url: str, photo: str | None) -> None:
    (found,) = read_json(tmp_path, image_urls=[url], user_ids=[USER], captions=[CAPTION])
    assert isinstance(found, Record)
    assert found.meta == (photo and f'{{"flickr_photo_id":"{photo}"}}')


def test_a_cut_file_gives_the_rows_that_are_whole_and_one_that_says_where_it_ends(tmp_path: Path) -> None:
    lists = {"image_urls": [URL] * 3, "user_ids": [USER] * 3, "captions": ["a", "b", "c"]}
    content = json.dumps(lists).encode()
    whole = read_json(tmp_path, **lists)
    seen: set[int] = set()
    for cut in range(len(content)):
        *rows, rest = read(tmp_path, content[:cut])
        records = [outcome for outcome in rows if isinstance(outcome, Record)]
        assert records == whole[: len(records)]
        assert summary(rows)[len(records) :] == [Reason.INPUT_NO_CAPTION] * (len(rows) - len(records))
        assert isinstance(rest, Rejected) and rest.reason is Reason.INPUT_MALFORMED
        assert rest.row == len(rows) <= 3
        assert f"byte {cut}" in rest.detail
        seen.add(len(records))
    assert seen == {0, 1, 2, 3}


@pytest.mark.parametrize("content", [b"", b"{}", b"{", b"\0" * 50, b'{"image_urls": 5}', b'{"captions": {}}'])
def test_a_file_without_lists_is_one_row(tmp_path: Path, content: bytes) -> None:
    assert summary(read(tmp_path, content)) == [Reason.INPUT_MALFORMED]


# --- ..._urls.txt and ..._captions.txt ---


def test_a_line_of_addresses_and_a_line_of_captions_become_a_record(tmp_path: Path) -> None:
    addresses = [URL, "http://a.example/1.jpg", f"{URL}\r"]
    contents = ["\n".join(addresses).encode(), f"{CAPTION}\n\tb\x85c\u2028d\r\ne\n".encode()]
    urls, captions = pair_of_files(tmp_path, *contents)
    assert sbu.parts([urls, captions]) == sbu.parts([captions, urls])
    key, meta = url_key("sbu", URL), '{"flickr_photo_id":"4385058960"}'
    assert read_all(sbu, urls, captions) == [
        Record(key, URL, (Caption(CAPTION, row=0),), meta=meta),
        Record(url_key("sbu", addresses[1]), addresses[1], (Caption("\tb\x85c\u2028d", row=1),)),
        Record(key, URL, (Caption("e", row=2),), meta=meta),
    ]


@pytest.mark.parametrize(
    ("urls", "captions", "reasons"),
    [
        (f"{URL}\n{URL}\n{URL}\n", "a\n", [None, Reason.INPUT_NO_CAPTION, Reason.INPUT_NO_CAPTION]),
        (f"{URL}\n", "a\nb\nc", [None, Reason.INPUT_NO_IMAGE, Reason.INPUT_NO_IMAGE]),
        (f"{URL}\n{URL}\n{URL}\n", "a\n\nc\n", [None, Reason.INPUT_NO_CAPTION, None]),
        (f"{URL}\n\n{URL}\n{URL}\n", "a\nb\nc\nd\n", [None, Reason.INPUT_NO_IMAGE, None, None]),
        (f"{URL}\nnone\n{URL}\n", "a\nb\nc\n", [None, Reason.INPUT_BAD_URL, None]),
        (f"{URL}\n\ud800\n{URL}\n", "a\nb\nc\n", [None, Reason.INPUT_MALFORMED, None]),
        (f"{URL}\n{URL}\n{URL}\n", "a\n\ud800\nc\n", [None, Reason.INPUT_MALFORMED, None]),
    ],
)
def test_a_line_that_lacks_its_other_half_is_a_row_and_moves_no_other(
    tmp_path: Path, urls: str, captions: str, reasons: list[Reason | None]
) -> None:
    encoded = [text.encode(errors="surrogatepass") for text in (urls, captions)]  # \ud800 is no UTF-8
    found = read_all(sbu, *pair_of_files(tmp_path, *encoded))
    assert summary(found) == reasons
    check_laws(found, "sbu")


def test_a_packed_file_that_is_cut_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    urls = b"".join(b"http://a.example/%d_%x.jpg\n" % (i, i * i) for i in range(50_000))
    packed = gzip.compress(urls)
    found = read_all(sbu, *pair_of_files(tmp_path, packed[: len(packed) // 2], b"a\n" * 50_000))
    reasons = summary(found)
    whole = reasons.index(Reason.INPUT_MALFORMED)
    assert whole > 10_000
    assert reasons == [None] * whole + [Reason.INPUT_MALFORMED] + [Reason.INPUT_NO_IMAGE] * (49_999 - whole)


# --- which files belong together ---

URLS = "".join(f"http://static.flickr.com/1/{i}_{i:x}.jpg\n" for i in range(20)).encode()
CAPTIONS = "".join(f"caption {i}\n" for i in range(20)).encode()


def test_a_file_of_captions_is_known_by_the_addresses_in_its_folder(tmp_path: Path) -> None:
    urls, captions = pair_of_files(tmp_path, URLS, CAPTIONS)
    readme = write(tmp_path, b"Line i of one file\nbelongs to line i\nof the other.\n", name="README")
    other = write(tmp_path, b"".join(b"a\thttp://a.example/%d\n" % i for i in range(20)), name="other")
    image = write(tmp_path, b"\x89PNG\r\n\x1a\n\0\0\n" * 20, name="image")
    assert {path: sbu.recognise(path) for path in (urls, captions, readme, other, image)} == {
        urls: "urls txt",
        captions: "captions txt",
        readme: None,
        other: None,
        image: None,
    }
    urls.rename(tmp_path / "elsewhere")
    assert sbu.recognise(captions) == "captions txt", "a name counts for nothing"
    write(tmp_path, URLS[: len(URLS) // 2], name="elsewhere")
    assert sbu.recognise(captions) is None, "addresses for half its lines are not its own"
    (tmp_path / "elsewhere").unlink()
    assert sbu.recognise(captions) is None


@pytest.mark.parametrize(("lines", "known"), [(17, False), (18, True), (20, True), (22, True), (23, False)])
def test_a_tenth_of_the_lines_may_be_lost(tmp_path: Path, lines: int, known: bool) -> None:
    _, captions = pair_of_files(tmp_path, URLS, b"\n".join([b"a caption"] * lines))
    assert (sbu.recognise(captions) is not None) is known


def test_in_a_folder_of_very_many_files_captions_are_not_looked_for(tmp_path: Path) -> None:
    _, captions = pair_of_files(tmp_path, URLS, CAPTIONS)
    assert sbu.recognise(captions)
    for number in range(2000):
        (tmp_path / f"{number}.txt").touch()
    assert sbu.recognise(captions) is None


def test_addresses_or_captions_alone_are_incomplete_and_it_is_said_which(tmp_path: Path) -> None:
    urls, captions = pair_of_files(tmp_path, URLS, CAPTIONS)
    with pytest.raises(Incomplete, match=rf"{re.escape(str(urls))}.* The captions .* are missing"):
        sbu.parts([urls])
    with pytest.raises(Incomplete, match=rf"{re.escape(str(captions))}.* The addresses .* are missing"):
        sbu.parts([captions])
    more = write(tmp_path, URLS, name="more")
    with pytest.raises(Incomplete, match="2 and 1"):
        sbu.parts([urls, captions, more])


def test_files_are_paired_by_folder_and_then_by_order(tmp_path: Path) -> None:
    files = {
        name: write(tmp_path / name[0], URLS if "urls" in name else CAPTIONS, name=name)
        for name in ("a_captions", "a_urls", "b_captions1", "b_captions2", "b_urls1", "b_urls2")
    }
    files["c_urls"] = write(tmp_path / "c", URLS, name="c_urls")
    files["d_captions"] = write(tmp_path / "d", CAPTIONS, name="d_captions")
    paired = [(Path(part.path).name, Path(part.beside[0].path).name) for part in sbu.parts([*files.values()])]
    assert paired == [
        ("a_urls", "a_captions"),
        ("b_urls1", "b_captions1"),
        ("b_urls2", "b_captions2"),
        ("c_urls", "d_captions"),
    ]


# --- what a file is ---

LISTS = json.dumps({"image_urls": [URL] * 3, "user_ids": [USER] * 3, "captions": ["a"] * 3}).encode()


@pytest.mark.parametrize(
    ("content", "form"),
    [
        (LISTS, "lists json"),
        (LISTS[:100], "lists json"),
        (b'\n{ "captions" : [ "a",\n"b, \\"c\\": d"], "image_urls": [ "e", "f" ] }', "lists json"),
        (b'{"image_urls": [], "user_ids": [], "captions": []}', "lists json"),
        (b'{"image_urls": ["http://a.example/1.jpg"], "images": [], "title": "of a crawler"}', None),
        (b'{"image_urls": ["http://a.example/1.jpg"]}\n', None),
        (b'{"captions": ["a", "b"]}', None),
        (b'{"captions": [{"id": 1}], "image_urls": []}', None),
        (b'{"annotations": []}', None),
        (f"{URL}\n{URL}\nnone\n".encode(), "urls txt"),
        (f"{URL}\r\n{URL}".encode(), "urls txt"),
        (gzip.compress(URLS), "urls txt"),
        (bz2.compress(LISTS), "lists json"),
        (f"{URL}\na caption\nanother\n".encode(), None),
        (f"a caption\t{URL}\n".encode(), None),
        (f"{URL}\ta caption\n".encode(), None),
        (b"http://a.example/1.jpg\nhttp://a.example/2.jpg\n", None),
        (b"a caption\nanother\n", None),
        (b"PK\x03\x04 and nothing of a zip", None),
    ],
)
def test_content_tells_the_dataset_from_other_files(tmp_path: Path, content: bytes, form: str | None) -> None:
    assert sbu.recognise(write(tmp_path, content)) == form


@pytest.mark.parametrize("mode", ["w", "w:gz", "zip"])
def test_an_archive_has_the_rows_of_its_files(tmp_path: Path, mode: str) -> None:
    members = {
        "dataset/README.txt": b"read me\n" * 20,
        "dataset/._SBU_captioned_photo_dataset_urls.txt": b"\0\x05\x16\x07",
        "dataset/SBU_captioned_photo_dataset_urls.txt": URLS,
        "dataset/SBU_captioned_photo_dataset_captions.txt": CAPTIONS,
        "sbu-captions-all.json": LISTS,
    }
    path = archive(tmp_path / "archive", members, mode)
    assert sbu.recognise(path) == "archive"
    urls, captions = pair_of_files(tmp_path, URLS, CAPTIONS)
    texts, lists = read_parts(sbu, path)
    assert texts == read_all(sbu, urls, captions) and len(texts) == 20
    assert lists == read(tmp_path, LISTS) and len(lists) == 3


def test_captions_in_an_archive_are_of_this_dataset_only_beside_addresses(tmp_path: Path) -> None:
    path = archive(tmp_path / "archive", {"captions.txt": CAPTIONS, "images/1.jpg": b"\xff\xd8"}, "zip")
    assert sbu.recognise(path) is None
    path = archive(tmp_path / "archive", {"urls.txt": URLS}, "w:gz")
    assert sbu.recognise(path) == "archive"
    with pytest.raises(Incomplete, match=r"archive \(urls\.txt\)"):
        sbu.parts([path])


def test_archives_are_paired_within_themselves(tmp_path: Path) -> None:
    members = {"urls.txt": URLS, "captions.txt": CAPTIONS}
    paths = [archive(tmp_path / name, members, "w:gz") for name in ("a", "b")]
    assert [(part.path, part.beside[0].path) for part in sbu.parts(paths)] == [
        (str(path), str(path)) for path in paths
    ]


# --- any rows, any damage ---

TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n\r\0"), max_size=20)
IMAGES = st.builds("http://static.flickr.com/{}/{}_{:x}.jpg".format, *[st.integers(0, 2**33)] * 3)
ROWS = st.lists(
    st.tuples(IMAGES, st.just(USER) | TEXTS, TEXTS.filter(lambda text: bool(text.strip()))), min_size=1
)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    rows=ROWS,
    packing=st.sampled_from(["plain", "gz", "bz2", "tar.gz"]),
    form=st.sampled_from(["json", "txt"]),
)
def test_valid_files_come_out_row_by_row(rows: list[tuple[str, str, str]], packing: str, form: str) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = published(rows, form)
        if packing == "tar.gz":
            paths = [archive(folder / "archive", files, "w:gz")]
        else:
            packed = {"plain": bytes, "gz": gzip.compress, "bz2": bz2.compress}[packing]
            paths = [write(folder, packed(content), name=name) for name, content in files.items()]
        if not rows[0][2].lstrip().startswith("{"):  # as a text's first character, it is taken for JSON
            assert all(sbu.recognise(path) for path in paths)
            found = read_all(sbu, *paths)
            check_laws(found, "sbu")
            assert [(outcome.url, outcome.captions) for outcome in found if isinstance(outcome, Record)] == [
                (url, (Caption(caption, row),)) for row, (url, _, caption) in enumerate(rows)
            ]


ENTRIES = st.none() | st.booleans() | st.integers(-3, 3) | TEXTS | IMAGES | st.lists(TEXTS, max_size=2)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(lists=st.tuples(*[st.lists(ENTRIES, max_size=6)] * 3), chosen=st.integers(1, 7))
def test_whatever_the_entries_are_each_place_is_a_row(lists: tuple[list[Any], ...], chosen: int) -> None:
    names = ("image_urls", "user_ids", "captions")
    given = {
        name: entries
        for bit, (name, entries) in enumerate(zip(names, lists, strict=True))
        if chosen >> bit & 1
    }
    with tempfile.TemporaryDirectory() as folder:
        found = read_json(Path(folder), **given)
    check_laws(found, "sbu")
    damage = "image_urls" not in given
    assert len(found) == max(map(len, given.values())) + damage


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    urls=st.lists(IMAGES | TEXTS, max_size=8), captions=st.lists(TEXTS, max_size=8), bad=st.binary(max_size=6)
)
def test_whatever_the_lines_are_each_place_is_a_row(urls: list[str], captions: list[str], bad: bytes) -> None:
    urls = [URL] * 9 + urls  # so that it is known for what it is
    contents = ["\n".join(lines).encode() + b"\n" for lines in (urls, ["a"] * 9 + captions)]
    with tempfile.TemporaryDirectory() as folder:
        found = read_all(sbu, *pair_of_files(Path(folder), contents[0] + bad, contents[1]))
    check_laws(found, "sbu")
    lines = [line_count(content) for content in (contents[0] + bad, contents[1])]
    assert len(found) == max(lines)
    assert summary(found)[:9] == [None] * 9


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    rows=ROWS,
    form=st.sampled_from(["json", "txt", "json.tar.gz", "txt.tar.gz", "txt.zip"]),
    cut=st.floats(0, 1),
    flips=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), max_size=4),
)
def test_cut_and_flipped_bytes_are_rows_never_an_exception(
    rows: list[tuple[str, str, str]], form: str, cut: float, flips: list[tuple[float, int]]
) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        form, _, packing = form.partition(".")
        files = published(rows, form)
        if packing:
            paths = [archive(folder / "archive", files, "zip" if packing == "zip" else "w:gz")]
        else:
            paths = [write(folder, content, name=name) for name, content in files.items()]
        for path in paths:
            damage(path, cut, flips)
            sbu.recognise(path)
        try:
            found = read_parts(sbu, *paths)
        except Incomplete:
            return
        assert found == read_parts(sbu, *paths)
    assert sum(map(len, found)) > 0
    for outcomes in found:
        check_laws(outcomes, "sbu")


@pytest.mark.parametrize("form", ["json", "txt", "json.tar.gz"])
def test_files_of_any_length_are_read_in_bounded_memory(tmp_path: Path, form: str) -> None:
    rows = [(f"http://static.flickr.com/1/{i}_b0f291553e.jpg", USER, "a caption " * 40) for i in range(6_000)]
    form, _, packing = form.partition(".")
    files = published(rows, form)
    if packing:
        paths = [archive(tmp_path / "archive", files, "w:gz")]
    else:
        paths = [write(tmp_path, content, name=name) for name, content in files.items()]
    size = sum(map(len, files.values()))
    del rows, files
    tracemalloc.start()
    assert all(sbu.recognise(path) for path in paths)
    count = sum(1 for part in sbu.parts(paths) for _ in sbu.read(part, sbu.Rules()))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 6_000
    # Three readings of 16 KiB of JSON each; of text the lines of a block of 1 MiB of each file.
    assert peak < (12 << 20 if form == "txt" else 2 << 20)
    assert size > 2 << 20


# --- the published file ---


def test_the_published_rows_are_read() -> None:
    if not REAL.is_file():
        pytest.skip(f"the real rows are not here: {REAL}")
    assert sbu.recognise(REAL) == "lists json"
    found = read_all(sbu, REAL)
    published = json.loads(REAL.read_bytes())
    records = [outcome for outcome in found if isinstance(outcome, Record)]
    assert len(records) == len(found) == 5
    assert [record.url for record in records] == published["image_urls"]
    assert [record.captions[0].text for record in records] == published["captions"]
    assert [record.attribution for record in records] == [
        f"https://www.flickr.com/people/{user}/" for user in published["user_ids"]
    ]
    assert all(json.loads(record.meta or "")["flickr_photo_id"] in str(record.url) for record in records)
    assert {record.license for record in records} == {None}


def published(rows: Sequence[tuple[str, str, str]], form: str) -> dict[str, bytes]:
    """The files of either form that hold some rows of address, user and caption."""
    urls, users, captions = ([*column] for column in zip(*rows, strict=True))
    if form == "json":
        lists = {"image_urls": urls, "user_ids": users, "captions": captions}
        return {"sbu-captions-all.json": json.dumps(lists, ensure_ascii=bool(len(rows) % 2)).encode()}
    columns = {"urls": urls, "captions": captions}
    return {
        f"dataset/SBU_captioned_photo_dataset_{name}.txt": "\n".join(column).encode() + b"\n"
        for name, column in columns.items()
    }


def archive(path: Path, members: dict[str, bytes], mode: str) -> Path:
    if mode == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as zipped:
            for name, content in members.items():
                zipped.writestr(name, content)
        return path
    with tarfile.open(path, mode) as tar:  # pyright: ignore[reportCallIssue, reportArgumentType]
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return path


def damage(path: Path, cut: float, flips: list[tuple[float, int]]) -> None:
    content = bytearray(path.read_bytes())
    content = content[: max(1, round(len(content) * max(cut, 0.3)))]
    for where, bits in flips:
        content[int(where * len(content))] ^= bits
    path.write_bytes(content)


def read_json(folder: Path, **lists: Any) -> list[Outcome]:
    return read(folder, json.dumps(lists).encode())


def read(folder: Path, content: bytes) -> list[Outcome]:
    return read_all(sbu, write(folder, content))


def pair_of_files(folder: Path, urls: bytes, captions: bytes) -> tuple[Path, Path]:
    return write(folder, urls, name="one"), write(folder, captions, name="two")


def write(folder: Path, content: bytes, *, name: str = "file") -> Path:
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    return path


def line_count(content: bytes) -> int:
    return content.count(b"\n") + (not content.endswith(b"\n"))


def summary(outcomes: Sequence[Outcome]) -> list[Reason | None]:
    return [outcome.reason if isinstance(outcome, Rejected) else None for outcome in outcomes]
