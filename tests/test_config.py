"""The laws of flava_model/config.py: a run is what its file and its changes say, and nothing else."""

from pathlib import Path

import pytest

from flava_model.config import read_run
from flava_model.models.flava import preset
from pmd.errors import BadRequest

CONFIGS = sorted((Path(__file__).parents[1] / "flava_model" / "configs").glob("*.toml"))
NEEDED = ("pairs.corpus=corpus", "images.corpus=corpus", "tokenizer=tokenizer")


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_every_config_of_ours_can_be_read(file: Path) -> None:
    texts = ["texts.folder=texts"] if "[texts]" in file.read_text() else []
    run = read_run(file.stem, [*NEEDED, *texts])
    assert run.name == file.stem and run.model.config(500).vocabulary == 500
    assert file.read_text().startswith("#") and f"flava train {file.stem}" in file.read_text().replace(
        "flava_model train", "flava train"
    )


def test_the_base_config_is_the_papers() -> None:
    run = read_run("flava_base_pmd", [*NEEDED, "texts.folder=texts"])
    assert run.model.config(30_522) == preset("base")
    assert (run.optimizer.lr, run.optimizer.betas, run.optimizer.weight_decay) == (1e-3, (0.9, 0.999), 0.1)
    assert run.optimizer.warmup == 10_000 and {run.spec(kind).batch for kind in run.kinds} == {8192}
    assert (run.mix.pairs, run.mix.images, run.mix.texts) == (0.70, 0.15, 0.15)
    assert round(run.steps * run.mix.pairs, -3) == 150_000


def test_paths_are_relative_to_the_file_or_to_where_one_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "run.toml").write_text(
        'name = "x"\nout = "out"\nsteps = 3\ntokenizer = "hub:bert"\n'
        '[pairs]\ncorpus = "../corpus"\ncache = "~/c"\n'
    )
    monkeypatch.chdir(tmp_path)
    run = read_run("in/run.toml", ["images.corpus=s3://bucket/c", "images.cache=kept"])
    assert run.pairs is not None and run.images is not None
    assert run.out == str(tmp_path / "in" / "out") and run.pairs.corpus == str(tmp_path / "corpus")
    assert run.pairs.cache == str(Path.home() / "c") and run.tokenizer == "hub:bert"
    assert (run.images.corpus, run.images.cache) == ("s3://bucket/c", str(tmp_path / "kept"))


def test_faults_are_told(tmp_path: Path) -> None:
    def refused(*changes: str) -> str:
        with pytest.raises(BadRequest) as error:
            read_run("flava_tiny", changes)
        return str(error.value)

    assert "'pairs.corpus' is missing" in refused("tokenizer=t", "images.corpus=c")
    assert "give a corpus or a folder" in refused(*NEEDED, "images.folder=f")
    assert "tokenizer: pairs and texts need one" in refused(*NEEDED[:2])
    assert "expected one of tiny, small, base" in refused(*NEEDED, "model.preset=huge")
    assert "'save.keep': input should be greater than or equal to 2" in refused(*NEEDED, "save.keep=1")
    assert "name.x=3: name is a value, not a section" in refused("name.x=3")
    (tmp_path / "no.toml").write_text("steps = ")
    with pytest.raises(BadRequest, match="not TOML"):
        read_run(tmp_path / "no.toml")
    (tmp_path / "nothing.toml").write_text('name = "x"\nout = "o"\nsteps = 1\n')
    with pytest.raises(BadRequest, match="there is nothing to train on"):
        read_run(tmp_path / "nothing.toml")


def test_what_decides_a_run_does_not_tell_where_things_lie() -> None:
    told = read_run("flava_tiny", NEEDED).deciding()
    assert "corpus" not in told["pairs"] and "corpus" not in told["images"]
    assert {"out", "tokenizer", "threads", "micro_batch", "save", "watch"}.isdisjoint(told)
    assert {"seed", "steps", "optimizer", "loss", "hide", "mix", "model", "precision"} <= told.keys()
    other = read_run("flava_tiny", [*NEEDED, "threads=7", "out=elsewhere", "pairs.corpus=moved"])
    assert other.deciding() == told
