"""A sweep compares, and a search makes small, only what can be compared."""

import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lmtrain.application import jobs, register_schemas
from lmtrain.application.checking import varies_vocabulary
from lmtrain.commands.train import Reached
from lmtrain.training.run_record import find_curves

TINY = [
    "model.state_policy=carry", "trainer.batch_size=4", "trainer.chunk_length=10", "trainer.num_steps=3",
    "trainer.max_seconds=null", "trainer.sample_tokens=5", "trainer.num_threads=1",
]  # fmt: skip
Call = Callable[..., Any]
SPELT = Reached(1.5, 2.5, 0, "a")
UNSPELT = Reached(5.0, None, 7, "b")


@pytest.fixture
def unspelt(place: Path) -> None:
    """Validation has words that training has not."""
    lines = Path("text.txt").read_text().splitlines()
    Path("text.txt").write_text("\n".join([*lines, *(f"{line} odd{number}" for number, line in enumerate(lines[:9]))]) + "\n")


def test_bits_per_character_are_not_listed_for_models_that_do_not_spell_every_word(
    unspelt: None, place: Path, call: Call
) -> None:
    ended = call("-m", "TRAIN", "tokenizer=word,byte", "hydra.sweep.dir=sweep")
    assert ended.code == 0, ended.err
    table = ended.out.rpartition("language: 2 runs")[2]
    assert "Vocabularies differ: compare bits per character." in table
    assert "Runs with <unk>, which they do not spell, have no bits per character: compare them within one vocabulary." in table
    assert re.search(r"^  sweep/0 +word +1 +- +\d+\.\d\d +- +\d+\.\d\d ", table, re.MULTILINE)
    assert re.search(r"^  sweep/1 +byte +1 +\d\.\d{4} +\d+\.\d\d +\d\.\d{4} +\d+\.\d\d ", table, re.MULTILINE)
    assert table.index("sweep/1") < table.index("sweep/0"), "what compares comes first"


def test_jobs_of_one_vocabulary_are_compared_in_nats_per_token_with_the_mean_over_seeds(
    unspelt: None, place: Path, call: Call
) -> None:
    ended = call("-m", "TRAIN", "tokenizer=word", "trainer.seed=1,2", "hydra.sweep.dir=sweep")
    table = ended.out.rpartition("language: 2 runs")[2]
    assert "valid nats/token" in table
    assert "±" in table.rpartition("mean ± standard deviation")[2]
    assert "bits/char" not in table
    assert call("runs", "sweep").out.strip() == ended.out[ended.out.rindex("language: 2 runs") :].strip(), (
        "it is that of `runs`"
    )
    more = call("-m", "TRAIN", "tokenizer=word", "trainer.seed=3", "hydra.sweep.dir=sweep", "hydra.sweep.subdir=third")
    assert "sweep/0" not in more.out.rpartition("language: 1 run,")[2], "a sweep shows its own runs"


LAUNCHER = """
import subprocess, sys
from pathlib import Path
from hydra.core.utils import JobReturn, JobStatus, configure_log, filter_overrides
from hydra.plugins.launcher import Launcher

class Elsewhere(Launcher):
    def setup(self, *, hydra_context, task_function, config):
        self.config = config

    def launch(self, job_overrides, initial_job_idx):
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        for number, overrides in enumerate(job_overrides, initial_job_idx):
            place = str(Path(self.config.hydra.sweep.dir) / str(number))
            words = [o for o in overrides if not o.startswith("hydra")]
            subprocess.run([sys.executable, "-m", "lmtrain", *words, f"hydra.run.dir={place}"], check=True)
        return [JobReturn(overrides=o, _return_value=1.0, status=JobStatus.COMPLETED) for o in job_overrides]
"""


@pytest.mark.slow
def test_a_sweep_whose_jobs_run_in_other_processes_ends_in_the_same_table(place: Path) -> None:
    """As joblib's and submitit's launchers have it: this process sees no job, only what lies on the disk."""
    Path("plugins/hydra_plugins/elsewhere").mkdir(parents=True)
    Path("plugins/hydra_plugins/elsewhere/__init__.py").touch()
    Path("plugins/hydra_plugins/elsewhere/launcher.py").write_text(LAUNCHER)
    path = os.pathsep.join([str(place / "plugins"), *filter(None, [os.environ.get("PYTHONPATH")])])
    ended = subprocess.run(
        [sys.executable, "-m", "lmtrain", "-m", "data=text", "data.path=text.txt", *TINY, "model=gru,ngram",
         "hydra.launcher._target_=hydra_plugins.elsewhere.launcher.Elsewhere", "hydra.sweep.dir=sweep"],
        capture_output=True, text=True, timeout=300, env=os.environ | {"PYTHONPATH": path},
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    table = ended.stdout.rpartition("language: 2 runs, best first")[2]
    assert {line.split()[0] for line in table.splitlines() if line.startswith("  ")} == {"run", "sweep/0", "sweep/1"}


@pytest.mark.parametrize(("tokenizer", "is_there"), [("word", False), ("byte", True)])
def test_neither_do_the_records_and_tensorboard_hold_them(
    tokenizer: str, is_there: bool, unspelt: None, place: Path, call: Call
) -> None:
    assert call("TRAIN", f"tokenizer={tokenizer}", "hydra.run.dir=unspelt").code == 0
    records = [json.loads(line) for line in Path("unspelt/metrics.jsonl").read_text().splitlines()]
    assert any("val/nats_per_token" in record for record in records)
    assert any("val/bits_per_character" in record for record in records) is is_there
    tensorboard = EventAccumulator(str(find_curves(Path("unspelt/tensorboard"))))
    tensorboard.Reload()
    assert ("val/bits_per_character" in tensorboard.Tags()["scalars"]) is is_there


@pytest.mark.parametrize(
    ("overrides", "varies"),
    [
        (["model.hidden_size=8,16"], False), (["optimizer=adam,sgd"], False), (["tokenizer=word,char"], True),
        (["tokenizer.min_count=1,2"], True), (["data.path=a,b"], True), (["data.valid_fraction=0.1,0.2"], True),
        (["data.cache_dir=a,b"], False), (["data=text,pydocs", "data.path=null"], True), (["tokenizer=word,word"], False),
        (["experiment=char_lstm,brown_lstm"], True), (["experiment=zaremba_small,zaremba_medium"], False),
    ],
)  # fmt: skip
def test_it_is_known_beforehand_whether_vocabularies_vary(overrides: list[str], varies: bool) -> None:
    register_schemas()
    base = [] if any(override.startswith(("data=", "experiment=")) for override in overrides) else ["data=text"]
    given = [*base, *[o for o in overrides if not o.endswith("=null")]]
    assert varies_vocabulary(given) is varies


def test_a_search_never_prefers_a_model_that_does_not_spell(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    searches = SimpleNamespace(sweeper={"_target_": "hydra_plugins.hydra_optuna_sweeper.optuna_sweeper.OptunaSweeper"})
    monkeypatch.setattr(jobs.HydraConfig, "get", lambda: searches)
    assert jobs.searched(SPELT, varies=False) == 1.5
    assert jobs.searched(UNSPELT, varies=False) == 5.0, "of one vocabulary they compare"
    assert jobs.searched(SPELT, varies=True) == 2.5
    assert capsys.readouterr().err == ""
    assert jobs.searched(UNSPELT, varies=True) == math.inf
    assert (
        "does not spell 7 <unk> of validation: it counts as infinitely bad. Search with tokenizer=byte"
        in capsys.readouterr().err
    )
