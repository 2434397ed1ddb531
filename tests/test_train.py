"""The laws of the trainer: an update is that of the whole batch, and a killed run is as if it never was."""

import json
import os
import random
import resource
import shutil
import signal
import threading
import time
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import FlavaForPreTraining

import flava_model
from flava_model import cli
from flava_model.checkpoint import read_checkpoint
from flava_model.evals.checkpoints import read_lines
from flava_model.texts import pack
from tests.locked import locked, picture
from tests.training import apart, log_of, prepared, run_of, same, trained, weights_of

Weights = dict[str, Any]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared(tmp_path_factory.mktemp("training"))


@pytest.fixture(scope="module")
def whole(config: Path) -> Path:
    """A run that nothing happened to."""
    out = config.parent / "whole"
    assert trained(run_of(config, out)) == [0]
    return out


def metrics(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def losses(out: Path) -> list[dict[str, float]]:
    return [line["losses"] for line in metrics(out)]


def test_a_trained_model_is_one_of_transformers(whole: Path) -> None:
    FlavaForPreTraining.from_pretrained(whole / "model")
    model = flava_model.load(whole / "model")
    assert model.image_codebook is not None
    told = json.loads((whole / "run.json").read_text())
    assert (
        told["versions"]["torch"]
        and told["config"]["steps"] == 12
        and told["samples"]["pairs"]["root"]
        and told["tokenizer_sha256"]
    )
    found = metrics(whole)
    assert [line["update"] for line in found] == [*range(1, 13)]
    assert {name for line in found for name in line["losses"]} == {
        *("mim", "mmm_image", "mmm_text", "itm", "global_contrastive")
    }
    assert all(0 <= share <= 1 for line in found for share in line["right"].values())
    assert "-bound: the model waits" in found[-1]["loading"]["pairs"]


def test_killed_at_any_of_fifty_moments_and_resumed_it_is_the_same(config: Path, tmp_path: Path) -> None:
    """Also with other numbers of threads and of batches ahead. Once its first update is made, a process has
    no time for many more: it dies in updates, between them, and while checkpoints are written.
    """
    chance = random.Random(3)
    changes = ("steps=50", "save.every=1", "optimizer.warmup=10")
    assert trained(run_of(config, tmp_path / "never", *changes)) == [0]
    killed, out, within_s, before = 0, tmp_path / "out", 0.05, set[Path]()
    while True:
        ways = (f"threads={chance.randint(1, 3)}", f"ahead={chance.randint(1, 3)}")
        kill = partial(_kill_after_an_update, after_s=chance.random() * within_s)
        (code,) = trained(run_of(config, out, *changes, *ways), resume=True, before=kill)
        if code == 0:
            break
        assert code == -signal.SIGKILL
        killed += 1
        # On a busy machine it has longer, else it would never come to the end of a checkpoint.
        there = {*(out / "checkpoints").glob("step-????????")}
        within_s, before = within_s * (2 if there == before else 0.6), there
        assert killed < 200
    assert killed >= 50
    assert same(weights_of(out), weights_of(tmp_path / "never")) and losses(out) == losses(tmp_path / "never")


def _kill_after_an_update(rank: int, after_s: float) -> None:
    from flava_model import train

    update = train.Watch.update

    def updated(self: Any, *given: Any) -> None:
        update(self, *given)
        threading.Timer(after_s, os.kill, (os.getpid(), signal.SIGKILL)).start()

    train.Watch.update = updated  # type: ignore[method-assign]


def test_a_kill_in_a_checkpoint_leaves_a_valid_one(config: Path, tmp_path: Path) -> None:
    """At each operation on a file of three checkpoints, the last of which drops the first."""
    changes = ("save.every=3", "steps=9")
    assert trained(run_of(config, tmp_path / "never", *changes)) == [0]
    out, operation, newest = tmp_path / "out", 0, 0
    while True:
        shutil.rmtree(out, ignore_errors=True)
        (code,) = trained(run_of(config, out, *changes), kill_at_operation=operation)
        if code == 0:
            break
        assert code == -signal.SIGKILL
        there = sorted((out / "checkpoints").glob("step-????????"))
        steps = [read_checkpoint(path).step for path in there]  # which proves all that stand
        # Never fewer than before, and two as soon as there were two.
        assert max(steps, default=0) >= newest and len(steps) >= min(2, newest // 3), operation
        newest = max(steps, default=0)
        if operation % 6 == 5:
            assert trained(run_of(config, out, *changes), resume=True) == [0]
            assert same(weights_of(out), weights_of(tmp_path / "never"))
            assert {path.name for path in (out / "checkpoints").iterdir()} >= {
                "step-00000006",
                "step-00000009",
            }
        operation += 1
    assert operation > 30 and newest == 9


def test_damaged_checkpoints_are_passed_over_loudly(config: Path, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    newest = out / "checkpoints" / "step-00000012"
    file = next(newest.glob("*.safetensors"))
    data = bytearray(file.read_bytes())
    data[-5] ^= 4
    file.write_bytes(data)
    shutil.rmtree(out / "model")
    assert trained(run_of(config, out), resume=True) == [0]
    assert "passed over, as it is damaged" in log_of(out) and file.name in log_of(out)
    assert same(weights_of(out), weights_of(whole)) and losses(out) == losses(whole)


def test_another_corpus_model_or_schedule_is_refused(config: Path, whole: Path, tmp_path: Path) -> None:
    for change, told in (
        ("steps=13", "run.steps = 12, this one 13"),
        ("optimizer.lr=0.5", "run.optimizer.lr = 0.003, this one 0.5"),
        ("pairs.sources=['coco']", "run.pairs.sources = [], this one ['coco']"),
        ("model.fields.mlp=96", "mlp = 64, this one 96"),
    ):
        assert trained(run_of(config, whole, change), resume=True) == [3]
        assert told in log_of(whole).splitlines()[-1]
    # Where things lie does not matter, but what they are does.
    shutil.copytree(config.parent / "corpus", tmp_path / "moved")
    assert trained(run_of(config, whole, f"images.corpus={tmp_path / 'moved'}"), resume=True) == [0]
    locked(tmp_path / "other", {"coco": (30,), "cc3m": (20,)})
    assert trained(run_of(config, whole, f"pairs.corpus={tmp_path / 'other'}"), resume=True) == [3]
    assert "samples.pairs.root = " in log_of(whole).splitlines()[-1]
    assert trained(run_of(config, whole)) == [2]
    assert "there is a run already, at update 12" in log_of(whole).splitlines()[-1]


def test_sigterm_saves_and_says_how_to_go_on(config: Path, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert trained(run_of(config, out), before=partial(_stop_itself, out=out)) == [75]
    assert 0 < len(metrics(out)) < 12
    assert not (out / "model").exists()
    assert trained(run_of(config, out), resume=True) == [0]
    assert same(weights_of(out), weights_of(whole))


def _stop_itself(rank: int, out: Path) -> None:
    def ask() -> None:
        while not (out / "metrics.jsonl").exists():
            time.sleep(0.001)
        signal.raise_signal(signal.SIGTERM)

    threading.Thread(target=ask, daemon=True).start()


def test_a_run_is_also_of_a_folder_of_images_and_of_texts(config: Path, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for number in range(30):
        (tmp_path / "images" / f"{number}.jpg").write_bytes(picture(number, size=(44, 40)))
    (tmp_path / "texts.txt").write_text("\n".join(f"caption {n} of sample {n % 7}" for n in range(200)))
    pack([tmp_path / "texts.txt"], tmp_path / "texts")
    out = tmp_path / "out"
    changes = (f"images.folder={tmp_path / 'images'}", "images.corpus=", "images.sources=[]")
    changes += (f"texts.folder={tmp_path / 'texts'}", "texts.batch=20", "texts.longest=24", "steps=30")
    assert trained(run_of(config, out, *changes)) == [0], log_of(out)
    kinds = [next(iter(line["samples"])) for line in metrics(out)]
    assert {*kinds} == {"pairs", "images", "texts"} and kinds.count("pairs") > 15
    assert metrics(out)[-1]["epochs"]["texts"] == kinds.count("texts") * 20 / 200
    shutil.rmtree(out / "model")
    assert trained(run_of(config, out, *changes), resume=True) == [0], log_of(out)


# An update


@pytest.fixture(scope="module")
def all_kinds(config: Path) -> Path:
    """A run whose updates are of pairs and images both."""
    out = config.parent / "all"
    assert trained(run_of(config, out, *ALL)) == [0]
    return out


ALL = ("mix.update=all", "steps=5", "pairs.batch=16", "optimizer.clip=0.5")


@pytest.mark.parametrize(
    "changes, world",
    [
        (("micro_batch=5",), 1),
        (("micro_batch=16", "tile=3"), 1),
        (("recompute=true", "micro_batch=1"), 1),
        ((), 2),
        (("micro_batch=3", "tile=2"), 2),
        ((), 4),
        (("sharded=true",), 2),
        (("sharded=true", "micro_batch=2", "recompute=true"), 2),
    ],
    ids=lambda value: " ".join(value) or "whole" if isinstance(value, tuple) else f"{value}",
)
def test_an_update_is_that_of_the_whole_batch(
    config: Path, all_kinds: Path, tmp_path: Path, changes: tuple[str, ...], world: int
) -> None:
    """Up to the rounding of sums in another order, which AdamW makes larger: it divides by small numbers."""
    out = tmp_path / "out"
    assert trained(run_of(config, out, *ALL, *changes), world=world) == [0] * world, log_of(out)
    for one, other in zip(losses(out), losses(all_kinds), strict=True):
        assert one == pytest.approx(other, rel=2e-3)
    for one, other in zip(metrics(out), metrics(all_kinds), strict=True):
        assert one["gradient_norm"] == pytest.approx(other["gradient_norm"], rel=2e-3)
        assert one["right"] == pytest.approx(other["right"], abs=0.05)
    # The last checkpoint's first update is exact to a few parts in a million.
    assert losses(out)[0] == pytest.approx(losses(all_kinds)[0], rel=2e-6)
    assert metrics(out)[0]["gradient_norm"] == pytest.approx(metrics(all_kinds)[0]["gradient_norm"], rel=2e-5)
    assert apart(weights_of(out), weights_of(all_kinds)) < 5 * 3e-3


@pytest.mark.parametrize("saved, resumed", [(1, 2), (2, 1)])
@pytest.mark.parametrize("sharded", ["false", "true"])
def test_a_run_goes_on_in_another_world(
    config: Path, all_kinds: Path, tmp_path: Path, saved: int, resumed: int, sharded: str
) -> None:
    """The samples are the same; the numbers too, up to rounding."""
    out = tmp_path / "out"
    changes = (*ALL, f"sharded={sharded}")
    stop = partial(_stop_itself, out=out)
    assert trained(run_of(config, out, *changes), world=saved, before=stop) == [75] * saved, log_of(out)
    done = len(metrics(out))
    assert done < 5
    assert trained(run_of(config, out, *changes), world=resumed, resume=True) == [0] * resumed, log_of(out)
    for one, other in zip(losses(out), losses(all_kinds), strict=True):
        assert one == pytest.approx(other, rel=2e-3)
    assert [line["epochs"] for line in metrics(out)] == [line["epochs"] for line in metrics(all_kinds)]


def test_half_precision_stays_near_the_whole_one(config: Path, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert trained(run_of(config, out, "precision=bf16")) == [0], log_of(out)
    assert losses(out)[0] == pytest.approx(losses(whole)[0], rel=2e-2) and losses(out)[0] != losses(whole)[0]
    for one, other in zip(losses(out), losses(whole), strict=True):
        assert one == pytest.approx(other, rel=0.15)
    assert {weight.dtype for weight in weights_of(out).values()} == {torch.float32}


def test_the_scale_of_fp16_is_found_by_trying(config: Path, tmp_path: Path) -> None:
    """It begins at 65,536, far too much for gradients as large as those of this model's first update."""
    out = tmp_path / "out"
    assert trained(run_of(config, out, "precision=fp16", "steps=40")) == [0], log_of(out)
    left_out = [line["not_finite"] for line in metrics(out)]
    assert left_out[0] == 1 and sum(left_out[-15:]) == 0
    out = tmp_path / "never"  # where none helps, the run ends
    changes = ("precision=fp16", "steps=80", "watch.not_finite_most=3")
    assert trained(run_of(config, out, *changes), before=_break_gradients) == [1]
    assert "the gradient is not finite" in log_of(out)


def _break_gradients(rank: int) -> None:
    from flava_model import train

    def broken(parameters: Iterable[torch.nn.Parameter]) -> None:
        first = next(iter(parameters))
        first.grad = torch.full_like(first, torch.inf)

    train.sum_gradients = broken


# What goes wrong


def test_a_gradient_that_is_not_finite_costs_its_update(config: Path, tmp_path: Path) -> None:
    out = tmp_path / "skip"
    assert trained(run_of(config, out), before=_break_gradient) == [0]
    assert [line["not_finite"] for line in metrics(out)] == [0, 0, 0, 0, 0, 1] + [0] * 6
    out = tmp_path / "back"
    assert trained(run_of(config, out, "watch.not_finite=roll_back"), before=_break_gradient) == [0]
    assert sum(line["not_finite"] for line in metrics(out)) == 1
    out = tmp_path / "stop"
    assert trained(run_of(config, out, "watch.not_finite=stop"), before=_break_gradient) == [1]
    assert "update 6: the gradient is not finite" in log_of(out)


def _break_gradient(rank: int) -> None:
    """The sixth norm of a gradient is none."""
    from flava_model import train

    told, norm = [0], train.gradient_norm

    def broken(parameters: Any) -> float:
        told[0] += 1
        return float("nan") if told[0] == 6 else norm(parameters)

    train.gradient_norm = broken


def test_a_run_that_only_diverges_ends(config: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    changes = ("optimizer.lr=1e30", "optimizer.warmup=0", "watch.not_finite_most=3", "optimizer.clip=0")
    assert trained(run_of(config, out, *changes)) == [1]
    assert "the gradient is not finite, for 3 updates now" in log_of(out)


def test_a_rank_that_hangs_is_ended_with_its_stacks(config: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    codes = trained(run_of(config, out, *ALL, "watch.hung_s=4"), world=2, before=_hang)
    assert 70 in codes and 0 not in codes
    assert "no update for" in log_of(out, 0) + log_of(out, 1)
    stacks = "".join(path.read_text() for path in out.glob("hung-rank*.txt"))
    assert "in update" in stacks


def _hang(rank: int) -> None:
    from flava_model import train

    if rank == 1:
        take = train.Streams.take

        def hang(self: Any, kind: Any) -> Any:
            if self.epochs()["pairs"] > 0:
                time.sleep(1000)
            return take(self, kind)

        train.Streams.take = hang  # type: ignore[method-assign]


def test_a_full_disk_ends_the_run_and_leaves_what_was_saved(
    config: Path, whole: Path, tmp_path: Path
) -> None:
    """A limit of a file's size stands for a full disk: the system refuses to write in both cases."""
    out = tmp_path / "out"
    assert trained(run_of(config, out), before=partial(_limit_files, out=out)) == [1]
    assert "File too large" in log_of(out)
    assert [path.name for path in (out / "checkpoints").glob("step-????????")] == ["step-00000004"]
    assert trained(run_of(config, out), resume=True) == [0]
    assert same(weights_of(out), weights_of(whole))


def _limit_files(rank: int, out: Path) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    def limit() -> None:
        while not (out / "checkpoints" / "step-00000004").exists():
            time.sleep(0.001)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    threading.Thread(target=limit, daemon=True).start()


def test_the_command_says_what_is_wrong(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(*given: str) -> str:
        assert cli.run(["train", *given, "--json"]) == 2
        return json.loads(capsys.readouterr().out)["error"]

    assert "unknown key 'stps'; did you mean 'steps'?" in refused(str(config), "stps=3")
    assert "unknown key 'pairs.bach'; did you mean 'batch'?" in refused(str(config), "pairs.bach=3")
    assert "FlavaConfig has no widht; did you mean width?" in refused(str(config), "model.fields.widht=3")
    assert "expected key=value" in refused(str(config), "steps")
    assert "no such file, and no config of ours" in refused("nowhere")
    assert "expected auto" in refused(str(config), "--resume", "yes")
    assert "has no lock.json" in refused(str(config), "pairs.corpus=/tmp/nowhere")


def test_a_damaged_sample_and_a_missing_shard_are_named(config: Path, tmp_path: Path) -> None:
    """In the places of samples there are others, and the run goes on; without a shard it ends."""
    corpus = tmp_path / "corpus"
    shutil.copytree(config.parent / "corpus", corpus)
    tar = corpus / "shards" / "cc3m" / "00000.tar"
    data = bytearray(tar.read_bytes())
    data[5_000] ^= 1
    tar.write_bytes(data)
    out = tmp_path / "damaged"
    where = (f"pairs.corpus={corpus}", f"images.corpus={corpus}", "save.every=100")
    assert trained(run_of(config, out, *where)) == [0], log_of(out)
    told = [json.loads(line) for line in (out / "damaged-rank0.jsonl").read_text().splitlines()]
    assert {line["key"]: line["why"] for line in told} == {
        "coco-5": "not an image that can be decoded: neither JPEG, PNG nor WebP",
        "cc3m-51": f"{tar}: an image is not the one that was stored",
    }
    assert metrics(out)[-1]["damaged"] == len(told)
    assert "samples could not be used, and others were in their places: " in log_of(out)
    tar.unlink()
    out = tmp_path / "missing"
    assert trained(run_of(config, out, *where)) == [1]
    assert f"{tar}: [Errno 2] No such file or directory" in log_of(out)


def test_tensorboard_has_what_the_metrics_have(config: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    changes = ("watch.tensorboard=true", *evaluated(config))
    assert trained(run_of(config, out, *changes)) == [0], log_of(out)
    board = EventAccumulator(str(out / "tensorboard"))
    board.Reload()
    for name in ("itm", "mim"):
        found = [(event.step, event.value) for event in board.Scalars(f"losses/{name}")]
        lines = [(line["update"], line["losses"][name]) for line in metrics(out) if name in line["losses"]]
        assert found == [(step, pytest.approx(loss)) for step, loss in lines]
    (last,) = [line for line in read_lines(out) if line["update"] == 12]
    found = board.Scalars("evals/retrieval/text_to_image@1")[-1]
    assert (found.step, found.value) == (
        12,
        pytest.approx(last["scores"]["retrieval"]["text_to_image@1"]),
    )


# Evaluation beside the training


def evaluated(config: Path) -> tuple[str, ...]:
    where = (f"evals.retrieval.corpus={config.parent / 'corpus'}", "evals.retrieval.sources=['cc3m']")
    return (*where, "save.keep=4")


def test_checkpoints_are_evaluated_beside_the_training(
    config: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert trained(run_of(config, out, *evaluated(config))) == [0], log_of(out)
    assert same(weights_of(out), weights_of(whole)) and losses(out) == losses(whole)
    lines = read_lines(out)
    assert lines[-1]["update"] == 12 and "update 12: retrieval text_to_image@1 " in log_of(out)
    # What it has not come to is made up by the same command, by hand.
    assert cli.run(["eval", "checkpoints", str(out), "--json"]) == 0
    made_up = json.loads(capsys.readouterr().out)["evaluated"]
    assert [line["update"] for line in read_lines(out)] == [4, 8, 12] and len(made_up) == 3 - len(lines)
    # It says what the command on the trained model says.
    given = (str(out / "model"), str(config.parent / "corpus"), "--source", "cc3m")
    assert cli.run(["eval", "retrieval", *given, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {"ok": True} | lines[-1]["scores"]["retrieval"] == found
    # And a checkpoint is a model like any other.
    newest = out / "checkpoints" / "step-00000012"
    assert cli.run(["export-hf", str(newest), "--out", str(tmp_path / "exported")]) == 0
    assert same(load_file(tmp_path / "exported" / "model.safetensors"), weights_of(out))


def test_training_does_not_wait_for_an_evaluation(config: Path, whole: Path, tmp_path: Path) -> None:
    out, seen = tmp_path / "out", tmp_path / "seen"
    assert trained(run_of(config, out, *evaluated(config)), before=partial(_stall, out=out, seen=seen)) == [0]
    assert seen.read_text() == "12 updates, 0 evaluations"
    assert [line["update"] for line in read_lines(out)] == [12]
    assert "update 4: left out, as there are newer ones" in (out / "evals.log").read_text()


def _stall(rank: int, out: Path, seen: Path) -> None:
    """Stop the process that evaluates, until the model is there."""

    def watch() -> None:
        while not (children := _evaluating()):
            time.sleep(0.001)
        os.kill(children[0], signal.SIGSTOP)
        while not (out / "model" / "model.safetensors").exists():
            time.sleep(0.01)
        seen.write_text(f"{len(metrics(out))} updates, {len(read_lines(out))} evaluations")
        os.kill(children[0], signal.SIGCONT)

    threading.Thread(target=watch, daemon=True).start()


def _evaluating() -> list[int]:
    """Processes that this one has started to evaluate."""
    started = [pid for task in Path("/proc/self/task").glob("*/children") for pid in task.read_text().split()]
    return [int(pid) for pid in started if b"checkpoints" in _command_line(pid)]


def _command_line(pid: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:  # it has ended meanwhile
        return b""


def test_a_failed_evaluation_does_not_end_the_training(config: Path, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert trained(run_of(config, out, *evaluated(config)), before=_kill_evaluation) == [1]
    assert same(weights_of(out), weights_of(whole))
    assert "the evaluation has ended with exit code -9, and training goes on" in log_of(out)
    # What it cannot be evaluated on is known before it begins.
    assert trained(run_of(config, tmp_path / "no", "evals.retrieval.corpus=/tmp/nowhere")) == [2]
    assert "has no lock.json" in log_of(tmp_path / "no") and not (tmp_path / "no").exists()


def _kill_evaluation(rank: int) -> None:
    def watch() -> None:
        while not (children := _evaluating()):
            time.sleep(0.001)
        os.kill(children[0], signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()
