"""The laws of planning: pmd/plan.py against a model of it in plain Python, and the stage that drives it."""

import itertools
import random
import resource
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.job import open_job
from pipelines.pin import pin
from pipelines.plan import plan as plan_stage
from pipelines.progress import Progress
from pipelines.run import Where
from pmd.manifest import TextSpec, load_corpus
from pmd.plan import BATCH, GROUP, HAND, SPILL, Layout, Spilled, deal, distinct_images, gather, layout, spill
from pmd.records import Caption, Reason, Record, Rejected, key_hash
from pmd.tables import PLAN, write_table

RULES = TextSpec(min_words=2)


class Part(NamedTuple):
    """A piece of an annotation file: which file, and its outcomes."""

    file: int
    outcomes: Sequence[Record | Rejected]


def record(image: int, *captions: tuple[str, int], file: int = 0) -> Record:
    """A record of an image with (text, row) captions; file shows in what the first of them decides."""
    return Record(
        f"cc3m-{image}",
        f"http://images.example/{image}.jpg?{file}",
        tuple(Caption(text, row, f"{file}/{row}", (row, 1, 2.5, 3)) for text, row in captions),
        license=f"licence {file}/{captions[0][1]}",
        meta=f'{{"id":{image}}}',
        path=f"train/{image}.jpg",
        rotation=90 * (image % 4),
    )


def spilled(folder: Path, parts: Iterable[Part]) -> list[Path]:
    """One spill a part, as tasks of the first pass leave them."""
    paths: list[Path] = []
    for number, part in enumerate(parts):
        paths.append(folder / f"{number}.arrow")
        name = f"file-{part.file}.tsv"
        spill(
            part.outcomes,
            paths[-1],
            folder / f"{number}.rejected.arrow",
            file=part.file,
            name=name,
            rules=RULES,
        )
    return paths


def gathered(spills: Sequence[Path], spread: Layout) -> dict[int, pa.Table]:
    """Plan tables by shard number, as tasks of the second and third pass leave them."""
    dealt = [path.with_suffix(".dealt") for path in spills]
    for path, target in zip(spills, dealt, strict=True):
        with open(path, "rb") as file:
            deal(file, target, layout=spread, first_row=0)
    tables: dict[int, pa.Table] = {}
    for group in range(spread.groups):
        with ExitStack() as stack:
            files = [stack.enter_context(open(path, "rb")) for path in dealt]
            for number, table in gather(files, source="cc3m", group=group, layout=spread):
                assert number not in tables
                tables[number] = table
    return tables


def counted(spills: Sequence[Path]) -> tuple[int, int]:
    with ExitStack() as stack:
        return distinct_images([stack.enter_context(open(path, "rb")) for path in spills])


def verdict(text: str) -> str | None:
    """What RULES say of texts that need no cleaning."""
    return None if " " in text else "caption_short" if text else "caption_empty"


def modelled(parts: Iterable[Part], shards: int) -> dict[int, list[dict[str, Any]]]:
    """What planning must come to, on one page: the rows of each shard's plan file."""
    captions = [
        (part.file, caption, record)
        for part in parts
        for record in part.outcomes
        if isinstance(record, Record)
        for caption in record.captions
    ]
    captions.sort(key=lambda entry: (key_hash(entry[2].key), entry[0], entry[1].row))
    rows: dict[int, list[dict[str, Any]]] = {number: [] for number in range(shards)}
    for key, group in itertools.groupby(captions, key=lambda entry: entry[2].key):
        same = list(group)
        first = same[0][2]  # the record that its first caption came with
        row = {"key": key, "source": "cc3m", "url": first.url, "captions": []}
        for file, caption, _ in same:
            told = {
                "text": caption.text,
                "id": caption.id,
                "box": caption.box and [*caption.box],
                "file": file,
            }
            row["captions"].append(told | {"row": caption.row, "reason": verdict(caption.text)})
        of_record = ("license", "license_url", "attribution", "meta", "path", "rotation")
        row |= {name: getattr(first, name) for name in of_record}
        rows[key_hash(key) % shards].append(row)
    return rows


def rows_of(tables: dict[int, pa.Table]) -> dict[int, list[dict[str, Any]]]:
    assert all(table.schema.equals(PLAN) for table in tables.values())
    return {number: table.to_pylist() for number, table in sorted(tables.items())}


# All records of all parts meet as they must


@st.composite
def annotation_parts(draw: st.DrawFn) -> list[Part]:
    """Files of rows about few images, so that many meet; cut into parts anywhere; rows in groups anyhow."""
    parts: list[Part] = []
    texts = st.sampled_from(["a red ball", "a blue box", "word", ""])
    for file in range(draw(st.integers(0, 3))):
        rows = draw(st.lists(st.tuples(st.integers(0, 9), texts, st.booleans()), max_size=30))
        outcomes: list[Record | Rejected] = []
        for row, (image, text, alone) in enumerate(rows):
            last = outcomes[-1] if outcomes else None
            if image == 0:
                outcomes.append(Rejected(row, Reason.INPUT_MALFORMED, "no row"))
            elif isinstance(last, Record) and last.key == f"cc3m-{image}" and not alone:
                outcomes[-1] = last._replace(captions=(*last.captions, Caption(text, row, None, None)))
            else:
                outcomes.append(record(image, (text, row), file=file))
        edges = sorted({0, len(outcomes), *draw(st.lists(st.integers(0, len(outcomes)), max_size=3))})
        parts += [Part(file, outcomes[start:stop]) for start, stop in itertools.pairwise(edges)]
        parts.append(Part(file, []))
    return parts


@given(parts=annotation_parts(), images_per_shard=st.integers(1, 5), chance=st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=50)
def test_planning_is_the_model_whatever_the_parts_the_groups_and_their_order(
    parts: list[Part], images_per_shard: int, chance: random.Random
) -> None:
    with tempfile.TemporaryDirectory() as name:
        spills = spilled(Path(name), parts)
        images, wanted = counted(spills)
        records = [outcome for part in parts for outcome in part.outcomes if isinstance(outcome, Record)]
        captions = [(record.key, caption.text) for record in records for caption in record.captions]
        assert images == len({key for key, _ in captions})
        assert wanted == len({key for key, text in captions if verdict(text) is None})

        spread = layout(
            captions=len(captions), images=images, wanted=wanted, images_per_shard=images_per_shard
        )
        expected = modelled(parts, spread.shards)
        assert spread.shards * images_per_shard >= wanted
        assert rows_of(gathered(spills, spread)) == expected
        # The order of records within a part, the order of parts and the number of groups make no difference.
        shuffled = [Part(part.file, chance.sample(part.outcomes, len(part.outcomes))) for part in parts]
        chance.shuffle(shuffled)
        again = spilled(Path(name), shuffled)
        for groups in range(1, spread.shards + 1):
            assert rows_of(gathered(again, Layout(spread.shards, groups))) == expected


def test_a_part_bigger_than_is_held_in_memory_is_planned_whole(tmp_path: Path) -> None:
    chance = random.Random(0)
    rows = range(2 * BATCH + 100)
    parts = [Part(0, [record(chance.randrange(5000), ("a red ball", row)) for row in rows])]
    (path,) = spilled(tmp_path, parts)
    with pyarrow.ipc.open_file(path) as reader:
        table = reader.read_all()
    with pyarrow.ipc.new_file(path, SPILL) as writer:
        writer.write_table(table, max_chunksize=200)
    assert len(rows) > 2 * HAND * 200
    assert rows_of(gathered([path], Layout(7, 3))) == modelled(parts, 7)


def test_captions_of_one_row_keep_their_order(tmp_path: Path) -> None:
    rows = [
        record(image, *((f"caption {place}", row) for place in range(50)))
        for row, image in enumerate([1, 2, 1, 3])
    ]
    parts = [Part(0, rows)]
    assert rows_of(gathered(spilled(tmp_path, parts), Layout(2, 2))) == modelled(parts, 2)


def test_rows_are_numbered_on_from_the_parts_before(tmp_path: Path) -> None:
    (path,) = spilled(tmp_path, [Part(0, [record(1, ("a ball", 0)), record(1, ("a box", 1))])])
    with open(path, "rb") as file:
        deal(file, tmp_path / "dealt", layout=Layout(1, 1), first_row=70)
    with open(tmp_path / "dealt", "rb") as file:
        ((_, table),) = gather([file], source="cc3m", group=0, layout=Layout(1, 1))
    assert [caption["row"] for caption in table["captions"][0].as_py()] == [70, 71]


@pytest.mark.parametrize(
    ("texts", "taken", "reason"),
    [
        (["a ball"], "a ball", None),
        (["a ball", "a box"], "a ball", None),
        (["ball", "a box"], "a box", None),
        (["ball", "&nbsp;", "a  box", "a cone"], "a box", None),
        (["ball", ""], "ball", "caption_short"),  # none is kept: the first, and why it is not
        (["", "ball"], "", "caption_empty"),
    ],
)
def test_of_texts_to_be_taken_otherwise_the_first_that_is_kept_is_the_caption(
    tmp_path: Path, texts: list[str], taken: str, reason: str | None
) -> None:
    caption = None
    for place, text in reversed([*enumerate(texts)]):
        caption = Caption(text, 1, f"text {place}", None, caption)
    assert caption
    before, after = record(7, ("the row before", 0)), record(7, ("the row after", 2))
    parts = [Part(0, [before, record(7, ("", 1))._replace(captions=(caption,)), after])]
    ((_, table),) = gathered(spilled(tmp_path, parts), Layout(1, 1)).items()
    captions = table["captions"][0].as_py()
    assert [captions[place]["text"] for place in (0, 2)] == ["the row before", "the row after"]
    assert (captions[1]["text"], captions[1]["reason"], captions[1]["row"]) == (taken, reason, 1)
    kept = texts.index("a  box") if "a  box" in texts else texts.index(taken)
    assert captions[1]["id"] == f"text {kept}"


def test_a_plan_file_is_the_same_bytes_for_any_number_of_groups(tmp_path: Path) -> None:
    parts = [
        Part(file, [record(image, ("a ball", image), file=file) for image in range(500)]) for file in (0, 1)
    ]
    spills = spilled(tmp_path, parts)
    files: list[list[bytes]] = []
    for groups in (1, 2, 5):
        tables = gathered(spills, Layout(5, groups))
        files.append([])
        for _, table in sorted(tables.items()):
            write_table(tmp_path / "plan.parquet", table, fingerprint="f")
            files[-1].append((tmp_path / "plan.parquet").read_bytes())
    assert files[0] == files[1] == files[2] and len(files[0]) == 5


def test_rejected_rows_are_written_with_their_file_row_reason_and_detail(tmp_path: Path) -> None:
    outcomes = [
        Rejected(4, Reason.INPUT_MALFORMED, "expected a TAB, found none"),
        record(1, ("a red ball", 5), ("a ball", 6)),
        Rejected(7, Reason.INPUT_NO_IMAGE, "no URL"),
    ]
    table, rejected = tmp_path / "a.arrow", tmp_path / "r.arrow"
    assert spill(outcomes, table, rejected, file=3, name="x.tsv", rules=RULES) == Spilled(rows=8, rejected=2)
    with pyarrow.ipc.open_file(rejected) as reader:
        assert reader.read_all().to_pylist() == [
            {"file": "x.tsv", "row": 4, "reason": "input_malformed", "detail": "expected a TAB, found none"},
            {"file": "x.tsv", "row": 7, "reason": "input_no_image", "detail": "no URL"},
        ]


def test_a_record_without_any_caption_is_a_fault_of_its_reader(tmp_path: Path) -> None:
    # Were it passed over, its row would be lost; were its neighbours' captions counted, they could be its.
    two, none = record(1, ("a ball", 0), ("a box", 1)), record(2, ("", 2))._replace(captions=())
    for outcomes in ([none], [two, none], [none, two]):
        with pytest.raises(AssertionError, match="caption"):
            spill(outcomes, tmp_path / "a", tmp_path / "r", file=0, name="a", rules=RULES)


def test_a_record_whose_captions_are_all_dropped_is_planned_but_not_worth_a_request(tmp_path: Path) -> None:
    parts = [Part(0, [record(1, ("a red ball", 0)), record(2, ("word", 1)), record(2, ("", 2))])]
    spills = spilled(tmp_path, parts)
    assert counted(spills) == (2, 1)
    (table,) = gathered(spills, layout(captions=3, images=2, wanted=1, images_per_shard=1)).values()
    reasons = {row["key"]: [caption["reason"] for caption in row["captions"]] for row in table.to_pylist()}
    assert reasons == {"cc3m-1": [None], "cc3m-2": ["caption_short", "caption_empty"]}


def test_an_image_of_which_no_licence_is_said_has_an_unknown_one(tmp_path: Path) -> None:
    parts = [Part(0, [record(1, ("a red ball", 0))._replace(license=None), record(2, ("a blue box", 1))])]
    tables = gathered(spilled(tmp_path, parts), Layout(1, 1))
    licenses = {row["key"]: row["license"] for row in tables[0].to_pylist()}
    assert licenses == {"cc3m-1": "unknown", "cc3m-2": "licence 0/1"}


@pytest.mark.parametrize("parts", [[], [Part(0, [])], [Part(0, [Rejected(0, Reason.INPUT_MALFORMED, "")])]])
def test_nothing_to_plan_is_no_shards(tmp_path: Path, parts: list[Part]) -> None:
    spills = spilled(tmp_path, parts)
    images, wanted = counted(spills)
    assert (images, wanted) == (0, 0)
    assert layout(captions=0, images=images, wanted=wanted, images_per_shard=10) == Layout(0, 0)


def test_images_that_are_all_dropped_still_have_a_shard_to_be_counted_in() -> None:
    assert layout(captions=3, images=2, wanted=0, images_per_shard=10) == Layout(1, 1)


# Two keys with one hash


def with_hashes(path: Path, rows: Sequence[tuple[int, str, int]], *, file: int) -> Path:
    """A spill of (hash, key, row), whatever the hash of that key really is."""
    entries = [
        {"hash": hash, "key": key, "url": f"{key} {file}/{row}", "text": "a ball", "file": file, "row": row}
        for hash, key, row in rows
    ]
    with pyarrow.ipc.new_file(path, SPILL) as writer:
        writer.write_table(pa.Table.from_pylist(entries, SPILL))
    return path


@given(
    keys=st.lists(st.lists(st.sampled_from("abcdefg"), max_size=12), min_size=1, max_size=3),
    hashes=st.dictionaries(st.sampled_from("abcdefg"), st.sampled_from([0, 5, 2**64 - 1])),
    shards=st.integers(1, 3),
)
@settings(deadline=None)
def test_keys_that_share_a_hash_are_records_of_their_own(
    keys: list[list[str]], hashes: dict[str, int], shards: int
) -> None:
    with tempfile.TemporaryDirectory() as name:
        files = [[(hashes.get(key, 7), key, row) for row, key in enumerate(part)] for part in keys]
        spills = [with_hashes(Path(name) / f"{file}", rows, file=file) for file, rows in enumerate(files)]
        tables = gathered(spills[::-1], Layout(shards, shards))
    found = [
        (number, row["key"], row["url"], [(caption["file"], caption["row"]) for caption in row["captions"]])
        for number, table in sorted(tables.items())
        for row in table.to_pylist()
    ]
    rows = sorted(
        (hash % shards, hash, key, file, row) for file, part in enumerate(files) for hash, key, row in part
    )
    expected = []
    for (number, _, key), group in itertools.groupby(rows, key=lambda row: row[:3]):
        places = [(file, row) for *_, file, row in group]
        expected.append((number, key, f"{key} {places[0][0]}/{places[0][1]}", places))
    assert found == expected


# Spreading


@given(st.integers(1, 10_000), st.integers(1, 10_000))
def test_each_shard_is_in_the_one_group_that_says_so(shards: int, groups: int) -> None:
    spread = Layout(shards, min(shards, groups))
    members = [spread.shards_of(group) for group in range(spread.groups)]
    assert [shard for group in members for shard in group] == [*range(shards)]
    assert all(spread.group_of(shard) == group for group, own in enumerate(members) for shard in own)
    assert min(map(len, members)) >= 1


@given(captions=st.integers(1, 10**9), images=st.integers(1, 10**8), images_per_shard=st.integers(1, 10**5))
def test_groups_hold_what_memory_may_and_shards_what_was_asked(
    captions: int, images: int, images_per_shard: int
) -> None:
    spread = layout(captions=captions, images=images, wanted=images, images_per_shard=images_per_shard)
    assert (spread.shards - 1) * images_per_shard < images <= spread.shards * images_per_shard
    assert spread.groups == spread.shards or captions <= spread.groups * GROUP


# The stage


@pytest.fixture
def few_files() -> Iterator[None]:
    """This process may hold but few open files at a time."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (100, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def stage(folder: Path, files: dict[str, str]) -> Path:
    """Pin and plan some CC3M files; returns the output."""
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    corpus = folder / "corpus.toml"
    corpus.write_text('name = "a"\nsources = ["cc3m"]\n[source.cc3m]\nfiles = ["in"]\n[shard]\nimages = 2\n')
    out = folder / "out"
    where = Where(inline=True)
    with open_job(load_corpus(corpus), out=str(out), where=where, progress=Progress(quiet=True)) as job:
        pin(job)
        plan_stage(job)
    return out


def planned(out: Path) -> list[dict[str, Any]]:
    paths = sorted((out / "plan" / "cc3m").glob("0*.parquet"))
    return [row for path in paths for row in pq.read_table(path).to_pylist()]


@pytest.mark.usefixtures("few_files")
def test_a_source_of_more_files_than_may_be_open_is_planned(tmp_path: Path) -> None:
    files = {f"in/{n}.tsv": f"a red ball\thttp://images.example/{n % 7}.jpg\n" for n in range(150)}
    rows = planned(stage(tmp_path, files))
    assert len(rows) == 7
    assert sorted(caption["file"] for row in rows for caption in row["captions"]) == [*range(150)]


def test_two_files_of_one_name_are_two_files(tmp_path: Path) -> None:
    line = "a {} ball\thttp://images.example/1.jpg\n"
    files = {"in/train/a.tsv": line.format("red"), "in/val/a.tsv": line.format("blue")}
    out = stage(tmp_path, files)
    (row,) = planned(out)
    assert sorted((caption["file"], caption["row"]) for caption in row["captions"]) == [(0, 0), (1, 0)]
