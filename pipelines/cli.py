"""`pmd`: the command line of the pipeline. Results go to stdout, everything else to stderr."""

import json
import os
import sys
import traceback
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, cast, get_args

import typer
from rich.console import Console

from pipelines import show as showing
from pipelines.build import build, build_json
from pipelines.doctor import doctor, doctor_json, doctor_table, is_well
from pipelines.download import download
from pipelines.estimate import as_json as estimate_json
from pipelines.estimate import estimate, estimate_table, hours_line
from pipelines.filter import filter_
from pipelines.imported import Kind, import_tars
from pipelines.job import Job, open_job
from pipelines.library import Library
from pipelines.lock import lock
from pipelines.order import corpus_of, order
from pipelines.pin import pin, pin_source
from pipelines.plan import plan
from pipelines.progress import Progress
from pipelines.repair import recorded, repair, repair_table
from pipelines.run import Where, stopping_on_signals
from pipelines.shard import shard
from pipelines.status import open_output, status
from pipelines.verify import verify
from pmd.errors import BadRequest, PmdError, Stopped
from pmd.lock import Lock
from pmd.manifest import FetchSpec, load_corpus, load_source, manifest_folder
from pmd.report.sources import describe_source, sources_table
from pmd.report.table import comparison, corpus_table, reasons_table, within
from pmd.sources import READERS
from pmd.stream import Stream, Unit

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Build image-text corpora of WebDataset shards from published annotation files.",
)

CorpusFile = Annotated[
    str, typer.Argument(metavar="CORPUS", help="A corpus file (TOML), or the name of one of ours.")
]
Output = Annotated[
    str, typer.Argument(metavar="DIR", help="The output of a build: a folder, or a URL such as s3://...")
]
Out = Annotated[str, typer.Option("--out", help="Where the corpus goes: a folder, or a URL such as s3://...")]
Only = Annotated[
    list[str] | None, typer.Option("--only", metavar="SOURCE", help="This source alone; may be repeated.")
]
Limit = Annotated[
    int | None, typer.Option("--limit", min=1, help="Read this many rows of each annotation file, no more.")
]
WorkerCount = Annotated[
    int | None, typer.Option("--workers", help="Ray workers to start on this machine. [default: one a core]")
]
RayAddress = Annotated[
    str | None, typer.Option("--ray", metavar="ADDRESS", help="Join this Ray cluster instead.")
]
Inline = Annotated[bool, typer.Option("--inline", help="Work in this process, without Ray.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")]
Verbose = Annotated[bool, typer.Option("-v", "--verbose", help="With an error, also where it arose.")]


@app.command("pin", help="Download annotation files, or find them, and pin their sha256.")
def pin_command(
    name: Annotated[
        str,
        typer.Argument(metavar="SOURCE|CORPUS", help="A source, for all corpora; or a corpus, with --out."),
    ],
    files: Annotated[
        list[str] | None,
        typer.Option("--files", help="Of a source: this file, folder or URL instead; may be repeated."),
    ] = None,
    edition: Annotated[
        str, typer.Option("--edition", help="Of a source: which one (see `pmd sources`).")
    ] = "",
    accept: Annotated[
        bool, typer.Option("--accept", help="Of a source: take files that have changed as they are.")
    ] = False,
    fetch: Annotated[
        str | None,
        typer.Option(
            "--fetch", metavar="CORPUS", help="Of a source: fetch as this corpus file says (mirrors, ...)."
        ),
    ] = None,
    out: Annotated[str | None, typer.Option("--out", help="Of a corpus: its output.")] = None,
    only: Only = None,
    limit: Limit = None,
    workers: WorkerCount = None,
    ray: RayAddress = None,
    inline: Inline = False,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    if name not in READERS or Path(name).is_file():
        if files or edition or accept or fetch:
            raise BadRequest(f"--files, --edition, --accept and --fetch go with a source; {name!r} is none")
        try:
            corpus = load_corpus(name)
        except BadRequest as error:
            raise BadRequest(f"{error}. Nor is it a source: {', '.join(READERS)}") from None
        if out is None:
            raise BadRequest(f"{name}: a corpus is pinned in its output: pmd pin {name} --out DIR")
        where = Where(workers, ray, inline)  # as for every stage, though this one works alone
        with open_job(corpus, out=out, only=only or (), limit=limit, where=where, progress=Progress()) as job:
            pin(job)
        if as_json:
            _print_json({"ok": True, "requests": 0, "files_written": job.written()})
        return
    of_corpus = {"--out": out, "--only": only, "--limit": limit, "--workers": workers, "--ray": ray}
    given = [
        option for option, value in (of_corpus | {"--inline": inline or None}).items() if value is not None
    ]
    if given:
        raise BadRequest(
            f"{' and '.join(given)} go with a corpus; {name} is a source, pinned for all corpora"
        )
    made = pin_source(
        name,
        edition=edition,
        files=files or (),
        fetch=load_corpus(fetch).fetch if fetch else FetchSpec(),
        accept=accept,
        progress=Progress(),
    )
    if as_json:
        _print_json({"ok": True} | made)
        return
    for file in made["files"]:
        print(f"{file['sha256']}  {file['size']:>15,}  {file['path']}")


# The commands that work on an output: what each does to a job, and its word in `pmd --help`.
WORK: dict[str, tuple[Callable[[Job], Lock | None], str]] = {
    "plan": (plan, "Read the annotation files into numbered plan files."),
    "download": (download, "Fetch, check, shrink and hash the images of each plan file."),
    "filter": (filter_, "Judge every fetched row by the corpus file's rules."),
    "shard": (shard, "Write the kept samples as tars, each with its index."),
    "lock": (lock, "Hash and count a finished build: its identity in one line."),
    "build": (build, "All of these, going on wherever an earlier run stopped."),
}


def _add_command(name: str, work: Callable[[Job], Lock | None], help: str) -> None:
    @app.command(name, help=help)
    def command(
        corpus: CorpusFile,
        out: Out,
        only: Only = None,
        limit: Limit = None,
        workers: WorkerCount = None,
        ray: RayAddress = None,
        inline: Inline = False,
        as_json: AsJson = False,
        verbose: Verbose = False,
    ) -> None:
        where = Where(workers, ray, inline)
        with open_job(
            load_corpus(corpus), out=out, only=only or (), limit=limit, where=where, progress=Progress()
        ) as job:
            made = work(job)
        if made is not None:
            _tell_corpus(job, made, as_json=as_json)
        elif as_json:
            _print_json({"ok": True, "requests": job.requests, "files_written": job.written()})


for _name, (_work, _help) in WORK.items():
    _add_command(_name, _work, _help)


def _tell_corpus(job: Job, made: Lock, *, as_json: bool) -> None:
    told = build_json(job, made)
    if as_json:
        _print_json(told)
        return
    _print_table(told["sources"], title=f"{made.name} in {job.store.root}")
    print(f"root {made.root}   ({told['requests']:,} requests, {told['files_written']:,} files written)")


@app.command(
    "import", help="Make tars of img2dataset, or of anybody, a corpus; they are read where they are."
)
def import_command(
    kind: Annotated[
        str,
        typer.Argument(metavar="KIND", help="img2dataset: with captions, of any writer; images: alone."),
    ],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder with the tars.")],
    out: Annotated[str | None, typer.Option("--out", help="Another folder for what is written.")] = None,
    source: Annotated[
        str, typer.Option("--source", metavar="NAME", help="What to call it: a-z 0-9 _")
    ] = "img2dataset",
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, help="Processes. [default: one a core]")
    ] = None,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    if kind not in get_args(Kind):
        raise BadRequest(
            f"import {kind}: expected img2dataset, which reads the captioned tars of any writer, or images, "
            "for tars of images alone"
        )
    made = import_tars(
        folder,
        out=out,
        source=source,
        workers=workers or os.cpu_count() or 1,
        progress=Progress(),
        kind=cast("Kind", kind),
    )
    told = made.as_json()
    if as_json:
        _print_json(told)
        return
    _print_table(told["sources"], title=f"{made.lock.name} in {out or folder}")
    if made.unread:
        print("not read: " + ", ".join(f"{count:,} .{ending}" for ending, count in made.unread.items()))
    written = f"{made.files_written:,} files written" if made.files_written else "nothing to write"
    print(f"root {made.lock.root}   ({written})")


@app.command("status", help="How far an output is.")
def status_command(output: Output, as_json: AsJson = False, verbose: Verbose = False) -> None:
    store = open_output(output)
    found = status(store)
    told = found.as_json()
    if as_json:
        _print_json(told)
        return
    _print_table(told["sources"], title=f"{found.name} in {store.root}")
    for name, source in found.sources.items():
        files = ", ".join(f"{stage} {count}/{source.tasks}" for stage, count in source.finished.items())
        print(f"{name}: {files}" if source.planned else f"{name}: not planned yet")
    print(f"root {found.root}" if found.root else "not locked yet")


@app.command(
    "report", help="What each source came to, next to what was expected of it and the paper's table 2."
)
def report_command(output: Output, as_json: AsJson = False, verbose: Verbose = False) -> None:
    store = open_output(output)
    found = status(store)
    told = found.as_json()
    sources = told["sources"]
    if as_json:
        judged = {name: source | {"within": within(source)} for name, source in sources.items()}
        _print_json(told | {"sources": judged})
        return
    console = _console()
    console.print(comparison(sources, title=f"{found.name} in {store.root}"))
    console.print(reasons_table(sources))
    for name, source in sources.items():
        for kind, others in source["repeats"].items():
            told_of = ", ".join(f"{images:,} of {other}" for other, images in others.items())
            print(f"{name}: {kind} repeats of earlier images, dropped or not: {told_of}")
    for name, source in sources.items():
        if evidence := source["expected"].get("evidence"):
            print(f"{name}: {evidence}")
    print(f"root {found.root}" if found.root else "not locked yet")


@app.command("verify", help="Check every byte of a corpus against its lock.")
def verify_command(
    output: Output,
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, help="Threads. [default: one a core]")
    ] = None,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    store = open_output(output)
    found = verify(store, threads=workers or os.cpu_count() or 1)
    if as_json:
        _print_json(found.as_json())
    else:
        for bad in found.bad:
            print(f"{bad.path}: " + (f"{bad.sample}: " if bad.sample else "") + bad.why)
        print(
            f"{found.files:,} files, {len(found.bad):,} faults"
            if found.bad
            else f"{found.files:,} files, all as locked"
        )
    raise typer.Exit(0 if found.ok else 1)


@app.command("estimate", help="What a build will cost, by a sample of its images; nothing is written.")
def estimate_command(
    corpus: CorpusFile,
    out: Annotated[
        str | None, typer.Option("--out", help="Of a build that is begun: its pins are taken.")
    ] = None,
    samples: Annotated[int, typer.Option("--samples", min=1, help="Images asked for, of each source.")] = 400,
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, help="That the build will have. [default: one a core]")
    ] = None,
    bandwidth: Annotated[
        float, typer.Option("--bandwidth", min=0.001, help="Mbit/s that the build will have.")
    ] = 1_000.0,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    made = estimate(
        load_corpus(corpus),
        output=open_output(out) if out else None,
        samples=samples,
        workers=workers or os.cpu_count() or 1,
        bandwidth=bandwidth,
        progress=Progress(),
    )
    told = estimate_json(made)
    if as_json:
        _print_json(told)
        return
    _console().print(estimate_table(told))
    for name, source in told["sources"].items():
        lost = ", ".join(f"{reason} {figure['value']:,.0f}" for reason, figure in source["lost"].items())
        print(f"{name}: rows that will be lost: {lost or 'none'}")
        for note in source["notes"]:
            print(f"{name}: {note}")
    if told["not_at_hand"]:
        missing = ", ".join(told["not_at_hand"])
        print(f"not sampled, and in no sum: {missing}. `pmd pin SOURCE` brings the annotation files")
    print(hours_line(told))


@app.command("doctor", help="What could stop or slow a run here: network, names, clock, disk, limits.")
def doctor_command(
    corpus: Annotated[
        str | None,
        typer.Argument(metavar="[CORPUS]", help="A corpus file, or the name of one of ours. [default: all]"),
    ] = None,
    out: Annotated[str | None, typer.Option("--out", help="Where the corpus is to go, or goes.")] = None,
    workers: WorkerCount = None,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    findings = doctor(load_corpus(corpus) if corpus else None, out, workers=workers)
    if as_json:
        _print_json(doctor_json(findings))
    else:
        _console().print(doctor_table(findings))
    raise typer.Exit(0 if is_well(findings) else 1)


@app.command("repair", help="Ask again for what was lost to causes that pass, and renew shards and lock.")
def repair_command(
    output: Output,
    corpus: Annotated[
        str | None,
        typer.Option(
            "--corpus",
            metavar="FILE",
            help="Ask as this corpus file says (mirrors, rates, contact). [default: as [fetch] has it]",
        ),
    ] = None,
    only: Only = None,
    reasons: Annotated[
        list[str] | None,
        typer.Option(
            "--reason", metavar="REASON", help="What was lost for this reason alone; may be repeated."
        ),
    ] = None,
    workers: WorkerCount = None,
    ray: RayAddress = None,
    inline: Inline = False,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    asked, limit = recorded(open_output(output), corpus)
    where = Where(workers, ray, inline)
    with open_job(
        asked, out=output, only=only or (), limit=limit, where=where, progress=Progress(), repairs=True
    ) as job:
        repaired = repair(job, reasons or ())
    if as_json:
        _print_json(repaired.as_json(job))
        return
    _console().print(repair_table(repaired))
    print(f"root {repaired.root}" if repaired.root else "not locked yet")


@app.command("show", help="Look at samples: some here and there, or those of the keys given.")
def show_command(
    output: Output,
    keys: Annotated[list[str] | None, typer.Argument(metavar="[KEY]...")] = None,
    only: Only = None,
    count: Annotated[int, typer.Option("--count", min=1, help="How many, when no keys are given.")] = 12,
    seed: Annotated[int, typer.Option("--seed", help="Another seed, another choice.")] = 0,
    sheet: Annotated[Path | None, typer.Option("--sheet", help="Write a contact sheet (PNG) here.")] = None,
    columns: Annotated[int, typer.Option("--columns", min=1, help="Pictures in a row of the sheet.")] = 6,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    store = open_output(output)
    if keys:
        samples = list(showing.find(store, keys))
    else:
        samples = showing.choose(store, only=only or (), count=count, seed=seed)
    if sheet is not None:
        sheet.parent.mkdir(parents=True, exist_ok=True)
        sheet.write_bytes(showing.sheet(store, samples, columns=columns))
        print(f"wrote {sheet}", file=sys.stderr)
    if as_json:
        _print_json({"ok": True, "samples": [{"shard": sample.shard} | sample.row for sample in samples]})
    elif sheet is None:
        for sample in samples:
            print(showing.describe(sample))


@app.command("order", help="The training order: which samples a rank sees from a position of an epoch on.")
def order_command(
    lock: Annotated[str, typer.Argument(metavar="LOCK", help="A lock.json, or the folder it is in.")],
    seed: Annotated[int, typer.Option("--seed", help="Of the order.")] = 0,
    epoch: Annotated[int, typer.Option("--epoch", min=0)] = 0,
    world: Annotated[int, typer.Option("--world", min=1, help="Ranks.")] = 1,
    rank: Annotated[int, typer.Option("--rank", min=0, help="One of them.")] = 0,
    start: Annotated[int, typer.Option("--start", min=0, help="Position in the epoch.")] = 0,
    count: Annotated[int, typer.Option("--count", min=0, help="Samples of this rank.")] = 20,
    unit: Annotated[Unit, typer.Option("--unit", help="What is visited.")] = "images",
    window: Annotated[int, typer.Option("--window", min=1, help="Shards that are mixed at a time.")] = 32,
    sources: Annotated[
        list[str] | None, typer.Option("--source", help="Only this source; may be repeated.")
    ] = None,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    stream = Stream(corpus_of(lock), sources=sources or (), unit=unit, seed=seed, window=window)
    found = order(stream, epoch=epoch, world=world, rank=rank, start=start, count=count)
    if as_json:
        _print_json({"ok": True, "positions": len(stream), "samples": [*found]})
        return
    for position, key in found:
        print(f"{position}\t{key}")


@app.command("sources", help="The datasets that can be read: terms, sizes, and whether they are pinned here.")
def sources_command(
    names: Annotated[list[str] | None, typer.Argument(metavar="[SOURCE]...")] = None,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    known = sorted(path.stem for path in (manifest_folder() / "sources").glob("*.toml"))
    library = Library()
    sources = [(load_source(name), library.pin(name)) for name in names or known]
    if as_json:
        told = {source.name: source.model_dump() | {"pinned": pin} for source, pin in sources}
        _print_json({"ok": True, "sources": told})
    elif names:
        for source, pin in sources:
            print(describe_source(source, pin))
    else:
        _console().print(sources_table(sources))


@app.callback(invoke_without_command=True)
def _top(show_version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if show_version:
        print(f"pmd {version('pmd-flava')}")
        raise typer.Exit(0)


def _print_json(value: Any) -> None:
    print(json.dumps(value, ensure_ascii=False))


def _print_table(sources: dict[str, Any], *, title: str) -> None:
    console = _console()
    console.print(corpus_table(sources, title=title, width=console.width))


def _console() -> Console:
    """Standard output; a file or a pipe has room for whole lines."""
    console = Console(highlight=False)
    return console if console.is_terminal or "COLUMNS" in os.environ else Console(highlight=False, width=140)


def main() -> None:
    """The console script: runs a command, turns its errors into a message and an exit code."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """One command line; returns its exit code. See the table of exit codes in README.md."""
    as_json = "--json" in arguments
    try:
        # Not typer's own main: it has exit codes of its own for what stops a command.
        with stopping_on_signals():
            command = typer.main.get_command(app)
            with command.make_context("pmd", arguments) as context:
                command.invoke(context)
        return 0
    except typer.Exit as exit:
        return exit.exit_code
    except _UsageError as error:
        error.show()
        return _failed(BadRequest.exit_code, error.format_message(), as_json)
    except PmdError as error:
        if {"-v", "--verbose"} & {*arguments}:
            traceback.print_exc()
        print(f"pmd: {error}", file=sys.stderr)
        return _failed(error.exit_code, str(error), as_json)
    except OSError as error:  # a full disk, a folder that may not be written
        if {"-v", "--verbose"} & {*arguments}:
            traceback.print_exc()
        print(f"pmd: {error}", file=sys.stderr)
        return _failed(1, str(error), as_json)
    except KeyboardInterrupt:
        message = "stopped by a signal; run the same line again to go on from here"
        print(f"pmd: {message}", file=sys.stderr)
        return _failed(Stopped.exit_code, message, as_json)


# Typer carries a copy of click and does not name this class of it, the parent of the one that it names.
_UsageError: Any = typer.BadParameter.__mro__[1]


def _failed(code: int, message: str, as_json: bool) -> int:
    if as_json:
        _print_json({"ok": False, "error": message, "exit": code})
    return code
