"""A sweep ends in the table of its runs, whichever launcher ran them: the real joblib and submitit (its local executor).

What the jobs reached travels through their files, so a job that fails, in whatever process, costs its own row alone.
"""

import re
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

TINY = [
    "data=text", "tokenizer=word", "model.embed_size=6", "model.hidden_size=8", "trainer.batch_size=4",
    "trainer.chunk_length=10", "trainer.num_steps=3", "trainer.max_seconds=null", "trainer.sample_tokens=5",
    "trainer.num_threads=1",
]  # fmt: skip
LAUNCHERS = {
    "joblib": ("joblib_launcher", ["hydra.launcher.n_jobs=2"]),
    "submitit_local": ("submitit_launcher", ["hydra.launcher.timeout_min=10"]),
}


def need(plugin: str) -> None:
    package = f"hydra-{plugin.replace('_', '-')}"
    if find_spec("hydra_plugins") is None or find_spec(f"hydra_plugins.hydra_{plugin}") is None:
        pytest.skip(f"{package} is not installed")


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_sweep_ends_in_the_table_of_its_runs_and_the_reason_of_those_that_failed(launcher: str, place: Path) -> None:
    plugin, settings = LAUNCHERS[launcher]
    need(plugin)
    ended = subprocess.run(
        [sys.executable, "-m", "lmtrain", "-m", *TINY, f"hydra/launcher={launcher}", *settings, "hydra.sweep.dir=sweep",
         "data.path=text.txt,missing.txt", "trainer.seed=1,2"],
        capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    assert ended.returncode == 3, ended.stderr
    assert "There is no file or directory" in ended.stderr
    assert "Traceback" not in ended.stderr
    table = ended.stdout.rpartition("language: 2 runs, best first")[2]
    assert {line.split()[0] for line in re.findall(r"(?m)^  (sweep/.*)", table)} == {"sweep/0", "sweep/1"}
    assert "mean ± standard deviation over seeds" in table
    assert "±" in table.rpartition("seeds")[2]


def test_the_settings_of_a_slurm_job_compose(call: Callable[..., Any], place: Path) -> None:
    need("submitit_launcher")
    ended = call(
        *TINY, "data.path=text.txt", "hydra/launcher=submitit_slurm", "hydra.launcher.partition=gpu",
        "hydra.launcher.gpus_per_node=1", "hydra.launcher.timeout_min=120", "--cfg", "hydra", "-p", "hydra.launcher",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    for line in ("partition: gpu", "gpus_per_node: 1", "timeout_min: 120", "submitit_launcher.SlurmLauncher"):
        assert line in ended.out
    refused = call("-m", *TINY, "data.path=text.txt", "hydra/launcher=submitit_slurm", "trainer.seed=1,2")
    assert refused.code == 2, "there is no Slurm here"
    assert "srun" in refused.err
