"""`flava`: the command line of the model. Results go to stdout, everything else to stderr."""

import itertools
import json
import os
import sys
import traceback
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer

from flava_model.errors import WrongInput
from pmd.stream import BadRequest, Feed, PmdError, Stream, Unit

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Train and look at FLAVA over the shards that `pmd` writes.",
)
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")]
Corpus = Annotated[str, typer.Argument(metavar="CORPUS", help="A locked corpus: its folder, or a URL.")]
Sources = Annotated[list[str] | None, typer.Option("--source", help="Only this source; may be repeated.")]
OutFolder = Annotated[Path, typer.Option("--out", help="The folder to write.")]
Verbose = Annotated[bool, typer.Option("-v", "--verbose", help="With an error, also where it arose.")]


@app.callback(invoke_without_command=True)
def _top(
    show_version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if show_version:
        print(f"flava {version('pmd-flava')}")
        raise typer.Exit


@app.command("show-batch", help="Any batch of a run, past or to come, just as it is trained on.")
def show_batch_command(
    corpus: Corpus,
    epoch: Annotated[int, typer.Option("--epoch", min=0)] = 0,
    number: Annotated[int, typer.Option("--batch", min=0, help="Its number in the epoch.")] = 0,
    size: Annotated[int, typer.Option("--size", min=1, help="Samples of a batch, of all ranks.")] = 8,
    world: Annotated[int, typer.Option("--world", min=1, help="Ranks.")] = 1,
    rank: Annotated[int, typer.Option("--rank", min=0, help="One of them.")] = 0,
    seed: Annotated[int, typer.Option("--seed", help="Of the order, and of crops.")] = 0,
    unit: Annotated[Unit, typer.Option("--unit", help="What is visited.")] = "images",
    window: Annotated[int, typer.Option("--window", min=1, help="Shards that are mixed at a time.")] = 32,
    sources: Sources = None,
    overlay: Annotated[str | None, typer.Option("--overlay", help="A file of left-out images.")] = None,
    cache: Annotated[
        str | None, typer.Option("--cache", help="A folder that keeps shards of a corpus elsewhere.")
    ] = None,
    sizes: Annotated[str, typer.Option("--sizes", help="Of the views, px, the largest first.")] = "224,112",
    center: Annotated[bool, typer.Option("--center", help="The middle, and not a random crop.")] = False,
    flip: Annotated[float, typer.Option("--flip", help="How often a view is mirrored, 0 to 1.")] = 0.0,
    exact: Annotated[bool, typer.Option("--exact", help="Resize by Pillow's filters.")] = False,
    out: Annotated[Path | None, typer.Option("--out", help="Write the views here, as a PNG.")] = None,
    columns: Annotated[int, typer.Option("--columns", min=1, help="Samples in a row of it.")] = 4,
    seconds: Annotated[
        float | None, typer.Option("--time", metavar="S", help="Load for so long, and say how fast.")
    ] = None,
    threads: Annotated[
        int | None, typer.Option("--threads", min=1, help="For --time. [default: one a core]")
    ] = None,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    # torch takes seconds to import, and `flava --help` should not.
    from flava_model import show
    from flava_model.views import Views

    if not all(size.strip().isdecimal() for size in sizes.split(",")):
        raise BadRequest(f"--sizes {sizes}: numbers of px with commas between them, as in 224,112")
    chosen = tuple(int(size) for size in sizes.split(","))
    try:
        views = Views(chosen, "center" if center else "random", flip=flip, exact=exact)
    except ValueError as error:
        raise BadRequest(str(error)) from None
    stream = Stream(
        corpus, sources=sources or (), unit=unit, seed=seed, window=window, overlay=overlay, cache=cache
    )
    feed = Feed(stream, batch=size, rank=rank, world=world)
    images = show.batch_of(feed, views, epoch=epoch, number=number, seed=seed)
    told: dict[str, Any] = {"ok": True, "batches": feed.batches, "samples": show.as_json(images)}
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_bytes(show.sheet(images, columns=columns))
        print(f"wrote {out}", file=sys.stderr)
    if seconds is not None:
        cores = len(os.sched_getaffinity(0))
        told["speed"] = show.timed(feed, views, threads=threads or cores, seconds=seconds, seed=seed)
    if as_json:
        _print_json(told)
        return
    for line in show.as_lines(images):
        print(line)
    if "speed" in told:
        print(told["speed"])


@app.command("tokenizer", help="A WordPiece vocabulary of a corpus's captions, for --out's models.")
def tokenizer_command(
    corpus: Corpus,
    out: OutFolder,
    size: Annotated[int, typer.Option("--size", min=64, help="Tokens, at most.")] = 30_522,
    least: Annotated[
        int, typer.Option("--least", min=1, help="Times that a pair of pieces comes up to become one.")
    ] = 2,
    longest: Annotated[int, typer.Option("--longest", min=3, help="Tokens of a caption, at most.")] = 77,
    sources: Sources = None,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    from flava_model import tokens

    stream = Stream(corpus, sources=sources or ())
    if (out / "tokenizer.json").exists():
        raise BadRequest(
            f"{out}: there is a tokenizer.json already; models may depend on it. Choose another --out"
        )
    tokenizer = tokens.train_tokenizer(stream.captions, size=size, least=least).cut_to(longest)
    tokenizer.save(out)
    # How it fits is told of up to so many captions, from all over the corpus.
    every = -(-sum(len(some) for some in stream.captions()) // 100_000)
    captions = itertools.islice(itertools.chain.from_iterable(stream.captions()), 0, None, every)
    fit = tokenizer.fit([*captions])
    told = {"tokens": len(tokenizer), "sha256": tokenizer.sha256, "root": stream.identity.root}
    if as_json:
        _print_json({"ok": True, "out": str(out)} | told | {"fit": vars(fit)})
        return
    print(
        f"{out}: {len(tokenizer):,} tokens, sha256 {tokenizer.sha256[:16]}, of corpus "
        f"{stream.identity.root[:16]}"
    )
    lengths = ", ".join(f"{name} {count}" for name, count in fit.lengths.items())
    print(
        f"{fit.captions:,} captions: {fit.mean:.1f} tokens each (at most: {lengths}), "
        f"{fit.cut:.2%} longer than {longest}, {fit.unknown:.3%} of all tokens unknown"
    )


@app.command("codes", help="What the image codebook says of every image, stored once beside the shards.")
def codes_command(
    corpus: Corpus,
    out: OutFolder,
    codebook: Annotated[
        str | None,
        typer.Option("--codebook", metavar="PATH", help="Weights of DALL-E's encoder. [default: random]"),
    ] = None,
    crops: Annotated[int, typer.Option("--crops", min=1, help="Of each image, one seen at a time.")] = 1,
    image_size: Annotated[int, typer.Option("--image-size", min=1, help="Of the model, px.")] = 224,
    patch_size: Annotated[int, typer.Option("--patch-size", min=1, help="Of the model, px.")] = 16,
    seed: Annotated[int, typer.Option("--seed", help="Of crops.")] = 0,
    threads: Annotated[
        int | None, typer.Option("--threads", min=1, help="That decode. [default: one a core]")
    ] = None,
    device: Annotated[str, typer.Option("--device", help="Of the codebook, as torch names it.")] = "cpu",
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    from flava_model import codes, weights
    from flava_model.codebook import RandomQuantizer
    from flava_model.progress import Progress

    chosen = RandomQuantizer() if codebook is None else weights.load_codebook(codebook)
    with Progress("codes", "images") as progress:
        plan = codes.make_codes(
            corpus,
            out,
            chosen.to(device),
            crops=crops,
            image_size=image_size,
            patch_size=patch_size,
            seed=seed,
            threads=threads or len(os.sched_getaffinity(0)),
            done=progress.parts,
        )
    made = codes.Codes(out)
    told = {"images": made.count, "shards": made.shards, "plan": vars(plan)}
    if as_json:
        _print_json({"ok": True, "out": str(out)} | told)
    else:
        print(
            f"{out}: codes of {made.count:,} images or regions, {crops} crops each, in {made.shards:,} files"
        )


@app.command("pack-texts", help="Text, JSON lines and Parquet, made ready to train on texts alone.")
def pack_command(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Or folders of them; also .gz.")],
    out: OutFolder,
    column: Annotated[str, typer.Option("--column", help="Of Parquet; the field of JSON lines.")] = "text",
    longest: Annotated[int, typer.Option("--longest", min=16, help="Bytes of a piece, at most.")] = 2_000,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    from flava_model import texts
    from flava_model.progress import Progress

    with Progress("pack-texts", "rows") as progress:
        told = texts.pack(files, out, column=column, longest=longest, done=progress.show)
    if as_json:
        _print_json({"ok": True, "out": str(out)} | told)
        return
    print(f"{out}: {told['count']:,} pieces of text, {told['bytes']:,} bytes")
    print(", ".join(f"{name} {count:,}" for name, count in told["rows"].items()))


@app.command("train", help="Train as a TOML file says, or one of ours by its name.")
def train_command(
    config: Annotated[str, typer.Argument(metavar="CONFIG", help="A file, or the name of one of ours.")],
    changes: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="As steps=500 or pairs.batch=64.")
    ] = None,
    resume: Annotated[
        str | None, typer.Option("--resume", help="auto: go on from the newest checkpoint, or begin.")
    ] = None,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    from flava_model.config import read_run
    from flava_model.train import train

    if resume not in (None, "auto"):
        raise BadRequest(f"--resume {resume}: expected auto")
    run = read_run(config, changes or ())
    code = train(run, resume=resume is not None)
    if os.environ.get("RANK", "0") == "0":
        if as_json:
            _print_json({"ok": code == 0, "out": run.out, "exit": code})
        else:
            where = f"{run.out}/model" if code == 0 else f"{run.out}: stopped; go on with --resume auto"
            print(where)
    if code:
        raise typer.Exit(code)


@app.command("curves", help="The losses of a run over its updates, as a PNG.")
def curves_command(
    run: Annotated[str, typer.Argument(metavar="RUN", help="The folder that it writes.")],
    out: Annotated[Path, typer.Option("--out", help="The PNG to write.")],
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    from flava_model import curves

    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_bytes(curves.curves(run))
    last = curves.read_metrics(run)[-1]
    if as_json:
        _print_json({"ok": True, "out": str(out), "last": last})
    else:
        print(f"{out}: {last['update']:,} updates")


evals = typer.Typer(no_args_is_help=True, help="How good a model is.")
app.add_typer(evals, name="eval")
Model = Annotated[str, typer.Argument(metavar="MODEL", help="A folder that `flava` or transformers wrote.")]
Tokenizer = Annotated[
    str | None, typer.Option("--tokenizer", help="A folder or hub:NAME. [default: the model's]")
]
Whole = Annotated[
    bool,
    typer.Option("--center", help="The square in the middle, and not the whole made square."),
]
Threads = Annotated[int | None, typer.Option("--threads", min=1, help="That decode. [default: one a core]")]
Device = Annotated[str, typer.Option("--device", help="Of the model, as torch names it.")]


@evals.command("retrieval", help="Which text belongs to an image, and the other way around: R@1, 5, 10.")
def retrieval_command(
    model: Model,
    corpus: Annotated[
        str | None, typer.Argument(metavar="[CORPUS]", help="A locked corpus; or --split and --photos.")
    ] = None,
    split_file: Annotated[
        Path | None, typer.Option("--split-file", help="One of Karpathy's: dataset_coco.json.")
    ] = None,
    photos: Annotated[Path | None, typer.Option("--photos", help="The folder of its photos.")] = None,
    split: Annotated[str, typer.Option("--split", help="Which of the file's.")] = "test",
    sources: Sources = None,
    overlay: Annotated[str | None, typer.Option("--overlay", help="A file of left-out images.")] = None,
    most: Annotated[int | None, typer.Option("--limit", min=1, help="Images of the corpus.")] = None,
    tokenizer: Tokenizer = None,
    center: Whole = False,
    threads: Threads = None,
    device: Device = "cpu",
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    from flava_model.evals import retrieval

    if (corpus is None) == (split_file is None) or (split_file is None) != (photos is None):
        raise BadRequest("give a CORPUS, or --split-file and --photos")
    if corpus is not None:
        pairs = retrieval.of_corpus(corpus, sources=sources or (), overlay=overlay, most=most)
    else:
        assert split_file is not None and photos is not None
        pairs = retrieval.of_split(split_file, photos, split=split)
    loaded, words = _evaluated(model, tokenizer, device)
    _score("retrieval", partial(retrieval.retrieval, loaded, words, pairs), center, threads, as_json)


@evals.command("zero-shot", help="Classify a folder of images, one a class, by descriptions of the classes.")
def zero_shot_command(
    model: Model,
    images: Annotated[str, typer.Argument(metavar="IMAGES", help="With a folder for each class.")],
    names: Annotated[
        Path | None, typer.Option("--names", help="Of the classes, a line each. [default: the folders']")
    ] = None,
    templates: Annotated[
        Path | None, typer.Option("--templates", help="A line each, {} for the name. [default: one]")
    ] = None,
    tokenizer: Tokenizer = None,
    center: Whole = False,
    threads: Threads = None,
    device: Device = "cpu",
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    from flava_model.evals import zero_shot

    loaded, words = _evaluated(model, tokenizer, device)
    evaluate = partial(
        zero_shot.zero_shot,
        loaded,
        words,
        images,
        names=zero_shot.lines_of(names) if names else None,
        templates=zero_shot.lines_of(templates) if templates else zero_shot.TEMPLATES,
    )
    _score("zero-shot", evaluate, center, threads, as_json)


@evals.command("linear-probe", help="A linear classifier on the frozen image encoder.")
def linear_probe_command(
    model: Model,
    train: Annotated[str, typer.Argument(metavar="TRAIN", help="Images, with a folder for each class.")],
    test: Annotated[str, typer.Argument(metavar="TEST", help="Others, of the same classes.")],
    center: Whole = False,
    threads: Threads = None,
    device: Device = "cpu",
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    from flava_model import weights
    from flava_model.evals import linear_probe

    evaluate = partial(linear_probe.linear_probe, weights.load(model).to(device), train, test)
    _score("linear-probe", evaluate, center, threads, as_json)


@evals.command("checkpoints", help="What a run has saved, as its [evals] says; into its evals.jsonl.")
def checkpoints_command(
    folder: Annotated[str, typer.Argument(metavar="RUN", help="The folder that it writes.")],
    changes: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="As evals.device=cuda.")
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", help="The newest ones, until the run's last one is done.")
    ] = False,
    parent: Annotated[int | None, typer.Option("--parent", hidden=True)] = None,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    import torch

    from flava_model.evals import checkpoints
    from flava_model.progress import Progress

    if parent is not None:
        checkpoints.end_with(parent)
    torch.set_num_threads(checkpoints.run_of(folder, changes or ()).evals.threads)
    lines: list[Any] = []
    with Progress("evaluate", "images") as progress:
        found = checkpoints.evaluate_checkpoints(
            folder,
            changes=changes or (),
            follow=follow,
            done=lambda name, count, share: progress.show(count, share, name),
        )
        for line in found:
            lines.append(line)
            if not as_json:
                print(checkpoints.in_words(line), flush=True)
    if as_json:
        _print_json({"ok": True, "evaluated": lines})
    elif not lines:
        print(f"{folder}: there is no checkpoint that is not in its {checkpoints.LINES}")


def _evaluated(model: str, tokenizer: str | None, device: str) -> Any:
    from flava_model import tokens, weights

    words = tokens.load_tokenizer(tokenizer) if tokenizer else weights.tokenizer_beside(model)
    if words is None:
        raise BadRequest(f"{model}: there is no tokenizer beside the model; give --tokenizer")
    return weights.load(model).to(device), words


def _score(
    name: str, evaluate: Callable[..., dict[str, float]], center: bool, threads: int | None, as_json: bool
) -> None:
    """Evaluate as the options say that all evaluations have, and print what was found."""
    from flava_model.progress import Progress

    with Progress(name, "images") as progress:
        found = evaluate(
            shape="center" if center else "whole",
            threads=threads or len(os.sched_getaffinity(0)),
            done=progress.show,
        )
    _print_scores(found, as_json)


def _print_scores(found: dict[str, float], as_json: bool) -> None:
    if as_json:
        _print_json({"ok": True} | found)
        return
    for name, value in found.items():
        print(f"{name:<28} {value:,.0f}" if value.is_integer() and value > 1 else f"{name:<28} {value:.2%}")


Checkpoint = Annotated[str, typer.Argument(metavar="PATH", help="A folder, or a file of weights alone.")]


@app.command("import-hf", help="Weights of transformers or TorchMultimodal -> a folder of ours.")
def import_command(
    path: Checkpoint, out: OutFolder, as_json: AsJson = False, verbose: Verbose = False
) -> None:
    _convert(path, out, as_json)


@app.command("export-hf", help="A folder of ours -> one that transformers' FlavaForPreTraining loads.")
def export_command(
    path: Checkpoint, out: OutFolder, as_json: AsJson = False, verbose: Verbose = False
) -> None:
    _convert(path, out, as_json)


def _convert(path: str, out: Path, as_json: bool) -> None:
    """Both ways are one: our folders are in the layout of transformers."""
    from flava_model import weights

    model, tokenizer = weights.load(path), weights.tokenizer_beside(path)
    weights.save(model, out, tokenizer)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    told = {"parameters": parameters, "image_codebook": model.image_codebook is not None}
    told["tokenizer_sha256"] = tokenizer and tokenizer.sha256
    if as_json:
        _print_json({"ok": True, "config": vars(model.config)} | told)
    else:
        codebook = "with its image codebook" if told["image_codebook"] else "without an image codebook"
        words = f"with a tokenizer of {len(tokenizer):,}" if tokenizer else "without a tokenizer"
        print(f"{out}: {parameters:,} parameters, {codebook}, {words}")


def main() -> None:
    """The console script: runs a command, turns its errors into a message and an exit code."""
    # Before torch is there. Threads of OpenMP that wait do so by spinning, which on a busy machine takes the
    # core from the one that they wait for: two trainings on two cores were 40 times slower each.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """One command line; returns its exit code. They are those of `pmd`, see README.md."""
    as_json = "--json" in arguments
    try:
        command = typer.main.get_command(app)
        with command.make_context("flava", arguments) as context:
            command.invoke(context)
        return 0
    except typer.Exit as exit:
        return exit.exit_code
    except _UsageError as error:
        error.show()
        return _failed(BadRequest.exit_code, error.format_message(), as_json)
    except (PmdError, WrongInput, OSError, ModuleNotFoundError) as error:
        if {"-v", "--verbose"} & {*arguments}:
            traceback.print_exc()
        message = str(error)
        if isinstance(error, ModuleNotFoundError):
            message += ": install the extra that brings it, pmd-flava[train]"
        print(f"flava: {message}", file=sys.stderr)
        wrong = BadRequest.exit_code if isinstance(error, WrongInput) else 1
        return _failed(error.exit_code if isinstance(error, PmdError) else wrong, message, as_json)
    except KeyboardInterrupt:
        print("flava: stopped", file=sys.stderr)
        return _failed(75, "stopped by a signal", as_json)


# Typer carries a copy of click and does not name this class of it, the parent of the one that it names.
_UsageError: Any = typer.BadParameter.__mro__[1]


def _failed(code: int, message: str, as_json: bool) -> int:
    if as_json:
        _print_json({"ok": False, "error": message, "exit": code})
    return code


def _print_json(value: Any) -> None:
    print(json.dumps(value, ensure_ascii=False))
