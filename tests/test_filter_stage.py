"""The laws of pipelines/filter.py where it looks across files: repeats within a source and between sources.

The pictures are on a real web; some are the same, some look the same, some are plain.
"""

import contextlib
import io
import json
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipelines.cli import run
from pmd.images import Picture, normalise
from pmd.manifest import ImageSpec
from pmd.records import key_hash
from tests.small import photo, pmd_json
from tests.web import Web

SPEC = ImageSpec(image_size=96)
SHARD_IMAGES = 4


def copied(jpeg: bytes, *, quality: int) -> bytes:
    """The same picture in other bytes."""
    file = io.BytesIO()
    Image.open(io.BytesIO(jpeg)).save(file, "JPEG", quality=quality)
    return file.getvalue()


def blank(quality: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (320, 240), "white").save(file, "JPEG", quality=quality)
    return file.getvalue()


# Names are what the addresses end in. Twins have the same bytes, and so have two of the blanks; those that
# are near look the same. cc12m repeats cc3m's `first` twice, and `second` in other bytes.
CC3M = {f"lone{n}": photo(n) for n in range(10)} | {
    **{f"twin{n}": photo(101) for n in range(3)},
    **{"near0": photo(102), "near1": copied(photo(102), quality=60)},
    **{"blank0": blank(90), "blank1": blank(90), "blank2": blank(50)},
    **{"first": photo(105), "second": photo(107)},
}
CC12M = {f"other{n}": photo(200 + n) for n in range(6)} | {
    **{"both0": photo(105), "both1": photo(105)},
    **{"again": copied(photo(107), quality=60)},
}
PICTURES = {"cc3m": CC3M, "cc12m": CC12M}
GROUPS = {"twin": ["twin0", "twin1", "twin2"], "near": ["near0", "near1"], "blank": ["blank0", "blank1"]}


@pytest.fixture(scope="module")
def web() -> Iterator[Web]:
    with Web() as made:
        for source, pictures in PICTURES.items():
            for name, jpeg in pictures.items():
                made.serve(f"{source}.example", f"/{name}", jpeg)
        yield made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Annotation files: each image with two captions in two rows, and one row whose image is gone."""
    for source, pictures in PICTURES.items():
        lines: list[str] = []
        for name in [*pictures, "gone"]:
            for caption in ("one caption", "another caption"):
                pair = (f"{caption} of {name}", f"http://{source}.example/{name}")
                lines.append("\t".join(pair if source == "cc3m" else reversed(pair)))
        (tmp_path / f"{source}.tsv").write_text("\n".join(lines) + "\n")
    return tmp_path


def corpus(folder: Path, web: Web, dedup: str, *, sources: tuple[str, ...] = ("cc3m", "cc12m")) -> Path:
    connect = ", ".join(f"{json.dumps(host)} = {json.dumps(to)}" for host, to in web.connect_to.items())
    files = "".join(f'[source.{source}]\nfiles = ["{source}.tsv"]\n' for source in sources)
    path = folder / "corpus.toml"
    path.write_text(
        f'name = "repeats"\nsources = {json.dumps(sources)}\n{files}[shard]\nimages = {SHARD_IMAGES}\n'
        f"[image]\nimage_size = {SPEC.image_size}\n[fetch]\ntimeout_s = 5\nretries = 0\n"
        f"connect_to = {{ {connect} }}\n[dedup]\n{dedup}\n"
    )
    return path


def pmd_here(*arguments: str | Path, code: int = 0) -> tuple[dict[str, Any], str]:
    """Run a command line in this process: its JSON, and what it said on standard error."""
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        done = run([*map(str, arguments), "--json"])
    assert done == code, f"exit {done}, not {code}\n{out.getvalue()}\n{err.getvalue()}"
    return json.loads(out.getvalue()), err.getvalue()


def build(corpus: Path, out: Path, *more: str) -> dict[str, Any]:
    return pmd_here("build", corpus, "--out", out, "--inline", *more)[0]


def reasons(out: Path, source: str) -> dict[str, str]:
    """Why images that were fetched are dropped, by name."""
    rows = [
        row
        for path in sorted((out / "shards" / source).glob("*.parquet"))
        for row in pq.read_table(path, columns=["url", "reason"]).to_pylist()
    ]
    assert {Path(row["url"]).name for row in rows} == {*PICTURES[source], "gone"}
    by_name = {Path(row["url"]).name: row["reason"] for row in rows if row["reason"] is not None}
    assert by_name.pop("gone") == "http_404"
    return by_name


def counted(out: Path, source: str) -> dict[str, dict[str, int]]:
    return json.loads((out / "filter" / source / "repeats.json").read_text())


def all_but_the_first(out: Path, source: str, names: list[str], reason: str) -> dict[str, str]:
    """What is dropped of images that are all the same: all but the first one by file, and by place in it."""
    rows = [
        row
        for path in sorted((out / "plan" / source).glob("0*.parquet"))
        for row in pq.read_table(path, columns=["url", "key"]).to_pylist()
    ]
    shards = json.loads((out / "plan" / source / "plan.json").read_text())["shards"]
    assert shards > 2, "repeats are looked for across files"
    hashes = {Path(row["url"]).name: key_hash(row["key"]) for row in rows}
    first = min(names, key=lambda name: (hashes[name] % shards, hashes[name]))
    return {name: reason for name in names if name != first}


def test_the_pictures_are_what_these_tests_take_them_for() -> None:
    def seen(source: str, name: str) -> Picture:
        picture = normalise(PICTURES[source][name], SPEC)
        assert isinstance(picture, Picture)
        return picture

    for one, other in (
        (seen("cc3m", "near0"), seen("cc3m", "near1")),
        (seen("cc3m", "second"), seen("cc12m", "again")),
        (seen("cc3m", "blank0"), seen("cc3m", "blank2")),
    ):
        assert one.phash == other.phash and one.sha256 != other.sha256
    looks = {seen(source, name).phash for source, pictures in PICTURES.items() for name in pictures}
    assert len(looks) == 10 + 6 + len({"twin", "near", "blank", "first", "second"})


# Within a source


@pytest.mark.parametrize("exact", ["off", "report", "drop"])
@pytest.mark.parametrize("perceptual", ["off", "report", "drop"])
def test_within_a_source_repeats_are_counted_or_dropped_as_the_corpus_file_says(
    exact: str, perceptual: str, folder: Path, web: Web, tmp_path: Path
) -> None:
    spec = f'exact = "{exact}"\nperceptual = "{perceptual}"'
    out = tmp_path / "out"
    told = build(corpus(folder, web, spec, sources=("cc3m",)), out)["sources"]["cc3m"]

    dropped: dict[str, str] = {}
    if perceptual == "drop":  # what has the same bytes looks the same; but a blank has no looks
        dropped |= all_but_the_first(out, "cc3m", GROUPS["near"], "near_duplicate")
        dropped |= all_but_the_first(out, "cc3m", GROUPS["twin"], "near_duplicate")
    if exact == "drop":
        dropped |= all_but_the_first(out, "cc3m", GROUPS["twin"], "duplicate")
        dropped |= all_but_the_first(out, "cc3m", GROUPS["blank"], "duplicate")
    assert reasons(out, "cc3m") == dropped

    counts = {
        "exact": 0 if exact == "off" else 3,  # two twins and a blank
        "perceptual": 0 if perceptual == "off" else 1 if exact != "off" else 3,
    }
    wanted = {kind: {"cc3m": images} for kind, images in counts.items() if images}
    if (exact, perceptual) == ("off", "off"):
        assert not (out / "filter" / "cc3m" / "repeats.json").exists()
    else:
        assert counted(out, "cc3m") == wanted

    rows = Counter({"http_404": 2})
    for reason in dropped.values():
        rows[reason] += 2  # each image has two rows
    assert told["dropped"] == dict(rows)
    assert told["rows"] == told["kept"] + sum(told["dropped"].values()) == 2 * (len(CC3M) + 1)
    assert told["images"] == len(CC3M) - len(dropped)
    assert pmd_here("verify", out)[0]["ok"]


def test_an_image_that_a_rule_drops_is_no_first_one(folder: Path, web: Web, tmp_path: Path) -> None:
    path = corpus(folder, web, 'exact = "drop"', sources=("cc3m",))
    path.write_text(path.read_text().replace("[image]\n", "[image]\nmin_side = 300\n"))
    told = build(path, tmp_path / "out")["sources"]["cc3m"]
    assert told["dropped"] == {"http_404": 2, "image_small": 2 * len(CC3M)}
    assert counted(tmp_path / "out", "cc3m") == {}


# Between sources


@pytest.mark.parametrize("across", ["off", "report", "drop"])
def test_between_sources_the_later_ones_image_goes(
    across: str, folder: Path, web: Web, tmp_path: Path
) -> None:
    spec = f'exact = "report"\nperceptual = "report"\nacross_sources = "{across}"'
    out = tmp_path / "out"
    build(corpus(folder, web, spec), out)
    assert reasons(out, "cc3m") == {}, "within a source they are but counted, and no source is before it"
    assert counted(out, "cc3m") == {"exact": {"cc3m": 3}, "perceptual": {"cc3m": 1}}
    gone = {"both0": "duplicate", "both1": "duplicate", "again": "near_duplicate"}
    assert reasons(out, "cc12m") == (gone if across == "drop" else {})
    before = {"exact": {"cc3m": 2}, "perceptual": {"cc3m": 1}} if across != "off" else {}
    assert counted(out, "cc12m") == before | {"exact": before.get("exact", {}) | {"cc12m": 1}}


def test_the_order_of_sources_decides_which_image_stays(folder: Path, web: Web, tmp_path: Path) -> None:
    spec = 'exact = "drop"\nperceptual = "drop"\nacross_sources = "drop"'
    out = tmp_path / "out"
    build(corpus(folder, web, spec, sources=("cc12m", "cc3m")), out)
    assert reasons(out, "cc12m") == all_but_the_first(out, "cc12m", ["both0", "both1"], "duplicate")
    dropped = {"first": "duplicate", "second": "near_duplicate"}
    assert reasons(out, "cc3m").items() >= dropped.items()
    assert counted(out, "cc3m")["exact"] == {"cc12m": 1, "cc3m": 3}


def test_between_sources_only_what_is_looked_for_within_one_is_looked_for(
    folder: Path, web: Web, tmp_path: Path
) -> None:
    build(corpus(folder, web, 'perceptual = "report"\nacross_sources = "drop"'), tmp_path / "out")
    # Nobody asks for the same bytes, but they look the same.
    assert reasons(tmp_path / "out", "cc12m") == dict.fromkeys(("both0", "both1", "again"), "near_duplicate")
    assert counted(tmp_path / "out", "cc12m") == {"perceptual": {"cc12m": 1, "cc3m": 3}}
    build(corpus(folder, web, 'exact = "report"\nacross_sources = "drop"'), tmp_path / "bytes")
    assert reasons(tmp_path / "bytes", "cc12m") == dict.fromkeys(("both0", "both1"), "duplicate")


ALL = 'exact = "drop"\nperceptual = "drop"\nacross_sources = "drop"'


@pytest.fixture
def whole(folder: Path, web: Web, tmp_path: Path) -> tuple[Path, Path, dict[str, Any]]:
    """A corpus without repeats: its file, its output, and what the build said."""
    path = corpus(folder, web, ALL)
    return path, tmp_path / "whole", build(path, tmp_path / "whole")


def written(out: Path) -> dict[str, int]:
    return {
        str(path): path.stat().st_mtime_ns
        for path in sorted(out.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


def test_a_corpus_without_repeats_is_the_same_for_any_workers_and_order_of_runs(
    whole: tuple[Path, Path, dict[str, Any]], tmp_path: Path
) -> None:
    path, out, told = whole
    assert pmd_json("build", path, "--out", tmp_path / "ray", "--workers", "2")["root"] == told["root"]
    build(path, tmp_path / "parts", "--only", "cc3m")
    assert build(path, tmp_path / "parts", "--only", "cc12m")["root"] == told["root"]
    # The order in which --only names them is of no matter.
    assert build(path, tmp_path / "turned", "--only", "cc12m", "--only", "cc3m")["root"] == told["root"]
    for other in ("ray", "parts", "turned"):
        for source in PICTURES:
            assert counted(tmp_path / other, source) == counted(out, source)


def test_a_finished_corpus_without_repeats_run_again_writes_nothing(
    whole: tuple[Path, Path, dict[str, Any]], web: Web
) -> None:
    path, out, told = whole
    before = written(out)
    web.forget()
    again = build(path, out)
    assert (again["requests"], again["files_written"], again["root"]) == (0, 0, told["root"])
    assert web.count() == 0 and written(out) == before


@pytest.mark.parametrize("change", ['exact = "report"', 'perceptual = "off"', 'across_sources = "report"'])
def test_a_change_of_what_becomes_of_repeats_is_refused_with_3(
    change: str, whole: tuple[Path, Path, dict[str, Any]], folder: Path, web: Web
) -> None:
    _, out, _ = whole
    before = written(out)
    key = change.partition(" ")[0]
    changed = corpus(folder, web, ALL.replace(f'{key} = "drop"', change))
    error = pmd_here("build", changed, "--out", out, "--inline", code=3)[1]
    assert f'corpus.dedup.{key}: "drop" -> {change.partition(" = ")[2]}' in error
    assert written(out) == before


def test_verdicts_that_were_lost_or_never_written_come_out_the_same(
    whole: tuple[Path, Path, dict[str, Any]], tmp_path: Path
) -> None:
    """As when a run was killed between two files of the filter stage, or of the next."""
    path, out, told = whole
    counts = out / "filter" / "cc12m" / "repeats.json"
    before = counts.stat().st_mtime_ns
    for name in ("filter/cc12m/00001.parquet", "shards/cc12m/00001.parquet", "shards/cc12m/00000.parquet"):
        (out / name).unlink()
    assert build(path, out)["root"] == told["root"]
    assert counts.stat().st_mtime_ns == before, "what is there already is not written again"
    for name in ("filter/cc12m/00001.parquet", "shards/cc12m/00001.parquet"):
        (out / name).unlink()
    counts.unlink()
    assert build(path, out)["root"] == told["root"]
    assert counted(out, "cc12m") == {"exact": {"cc12m": 1, "cc3m": 2}, "perceptual": {"cc3m": 1}}


@pytest.mark.parametrize(("across", "depends"), [("off", False), ("report", False), ("drop", True)])
def test_a_source_is_defined_by_those_before_it_where_their_images_are_dropped_from_it(
    across: str, depends: bool, folder: Path, web: Web, tmp_path: Path
) -> None:
    path = corpus(folder, web, f'exact = "drop"\nacross_sources = "{across}"')
    defined: dict[str, set[str]] = {source: set() for source in PICTURES}
    for name in ("one", "other"):
        for stage in ("pin", "plan"):
            pmd_here(stage, path, "--out", tmp_path / name, "--inline")
        for source, found in defined.items():
            plan = json.loads((tmp_path / name / "plan" / source / "plan.json").read_text())
            found.add(plan["fingerprint"])
        with (folder / "cc3m.tsv").open("a") as file:
            file.write("one row more\thttp://cc3m.example/more\n")
    assert {source: len(found) for source, found in defined.items()} == {
        "cc3m": 2,
        "cc12m": 2 if depends else 1,
    }


# What is compared, when the images themselves are gone


def test_an_earlier_source_is_compared_by_its_shards_when_its_raw_files_are_gone(
    whole: tuple[Path, Path, dict[str, Any]], web: Web, tmp_path: Path
) -> None:
    path, out, told = whole
    parts = tmp_path / "parts"
    build(path, parts, "--only", "cc3m")
    for stage in ("raw", "filter"):
        shutil.rmtree(parts / stage)
    web.forget()
    assert build(path, parts, "--only", "cc12m")["root"] == told["root"]
    assert web.count("cc3m.example") == 0
    assert counted(parts, "cc12m") == counted(out, "cc12m")


def test_a_file_built_anew_beside_shards_without_raw_files_is_the_same_and_counts_the_same(
    whole: tuple[Path, Path, dict[str, Any]],
) -> None:
    path, out, told = whole
    counts = counted(out, "cc3m")
    number = next(  # one whose images are no repeats, so that these lie in the others' shards
        index.stem
        for index in sorted((out / "shards" / "cc3m").glob("*.parquet"))
        if not {"duplicate", "near_duplicate"} & {*pq.read_table(index)["reason"].to_pylist()}
    )
    shutil.rmtree(out / "raw" / "cc3m")
    shutil.rmtree(out / "filter" / "cc3m")
    for file in (out / "shards" / "cc3m").glob(f"{number}.*"):
        file.unlink()
    assert build(path, out)["root"] == told["root"]
    assert counted(out, "cc3m") == counts


@pytest.mark.parametrize("across", ["report", "drop"])
def test_to_compare_with_a_source_that_is_not_downloaded_is_a_bad_request_that_says_so(
    across: str, folder: Path, web: Web, tmp_path: Path
) -> None:
    path, out = corpus(folder, web, f'exact = "drop"\nacross_sources = "{across}"'), tmp_path / "out"
    where = ("--out", out, "--inline")
    error = pmd_here("build", path, *where, "--only", "cc12m", code=2)[1]
    # Where it is to drop, cc12m is not even defined without cc3m's files.
    assert (
        f"cc3m is not {'downloaded' if across == 'report' else 'pinned'}" in error and "`pmd build`" in error
    )
    for stage in ("pin", "plan"):
        pmd_here(stage, path, *where)
    error = pmd_here("build", path, *where, "--only", "cc12m", code=2)[1]
    assert "cc3m is not downloaded" in error and "across_sources compares those of cc12m" in error
    assert not list(out.glob("filter/cc12m/*")), "nothing is judged by halves"
    assert build(path, out)["ok"]


def test_to_filter_what_is_not_downloaded_is_a_bad_request_that_names_that_source(
    folder: Path, web: Web, tmp_path: Path
) -> None:
    path = corpus(folder, web, 'exact = "drop"')
    where = ("--out", tmp_path / "out", "--inline")
    for stage in ("pin", "plan"):
        pmd_here(stage, path, *where)
    error = pmd_here("filter", path, *where, code=2)[1]
    assert "cc3m is not downloaded" in error and "across_sources" not in error
