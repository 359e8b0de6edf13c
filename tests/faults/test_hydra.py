"""What Hydra accepts, we accept: where it looks for settings, its own groups, where it goes; what it refuses is a paragraph."""

import json
import os
import re
import shlex
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
import pytest
import torch
from hydra._internal.hydra import Hydra

from lmtrain.settings import quoting
from lmtrain.training.checkpoint import _fingerprint

Call = Callable[..., Any]
FEW = ["trainer.num_steps=2"]


@pytest.fixture
def mine(place: Path) -> Path:
    """`mine/`: settings of one's own, in every group."""
    experiment = (
        "# @package _global_\ndefaults:\n  - override /model: gru\n  - override /trainer: epochs\ntrainer: {num_epochs: 3}\n"
    )
    files = {
        "experiment/mine.yaml": experiment,
        "experiment/deep/er.yaml": experiment,
        "experiment/2003.yaml": experiment,
        "model/small.yaml": "defaults: [/schema/model/recurrent@_here_, _self_]\ncell: elman\nhidden_size: 7\n",
        "optimizer/slow.yaml": "defaults: [/schema/optimizer/optimizer@_here_, _self_]\nname: sgd\nlearning_rate: 0.5\n",
        "size/tiny.yaml": "# @package _global_\ntrainer: {batch_size: 3}\n",
        "primary.yaml": "defaults: [config, _self_]\ntrainer: {batch_size: 2}\nhydra: {searchpath: ['file://${oc.env:PWD}/more']}\n",
        "../more/tokenizer/rare.yaml": "defaults: [/schema/tokenizer/tokenizer@_here_, _self_]\nname: word\nmin_count: 2\n",
    }
    for name, text in files.items():
        path = place / "mine" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return place / "mine"


@pytest.mark.parametrize(
    ("arguments", "pattern"),
    [
        (["--config-dir", "mine", "experiment=mine"], r"cell: gru"),
        (["--config-dir={here}/mine", "experiment=deep/er"], r"num_epochs: 3"),
        (["-cd", "mine", 'experiment="2003"'], r"cell: gru"),
        (["--config-dir", "mine", "experiment=mine.yaml"], r"cell: gru"),
        (["--config-dir", "mine", "model=small", "optimizer=slow"], r"cell: elman(.|\n)*learning_rate: 0.5"),
        (["--config-dir", "mine", "+size=tiny", "trainer.batch_size=4"], r"batch_size: 4"),
        (["hydra.searchpath=[file://{here}/mine]", "experiment=mine"], r"cell: gru"),
        (["hydra.searchpath=[file://{here}/mine,file://{here}/more]", "tokenizer=rare"], r"min_count: 2"),
        (["--config-dir", "mine", "hydra.searchpath=[file://{here}/more]", "tokenizer=rare", "model=small"], r"min_count: 2"),
        (["--config-dir", "mine", "--config-name", "primary", "tokenizer=rare"], r"min_count: 2"),
        (["hydra.searchpath=[pkg://lmtrain]"], r"cell: lstm"),
        (["data.cache_dir=${hydra:runtime.cwd}/tokens", "--resolve"], r"cache_dir: .*/here/tokens"),
    ],
)
def test_settings_are_found_where_hydra_finds_them(
    arguments: list[str], pattern: str, mine: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PWD", str(mine.parent))
    arguments = [argument.replace("{here}", str(mine.parent)) for argument in arguments]
    ended = call("TRAIN", "--cfg", "job", *arguments)
    assert ended.code == 0, ended.err
    assert re.search(pattern, ended.out)


def test_a_run_holds_settings_of_ones_own_itself(mine: Path, call: Call) -> None:
    ended = call("TRAIN", *FEW, "hydra.run.dir=own", "--config-dir", "mine", "experiment=mine")
    assert ended.code == 0, ended.err
    assert '"cell": "gru"' in Path("own", "settings.json").read_text(encoding="utf-8")
    assert call("resume=own", "trainer.num_steps=3").code == 0


def test_a_choice_that_is_nowhere_is_refused_with_those_that_are_anywhere(mine: Path, call: Call) -> None:
    ended = call("TRAIN", "--config-dir", "mine", "experiment=mein", "model=smal", "tokenizer=rar")
    assert ended.code == 2
    assert "experiment=mein does not exist; allowed are 2003, awd_lstm," in ended.err
    assert "did you mean mine?" in ended.err
    assert "did you mean small?" in ended.err
    assert call("TRAIN", "--config-dir", "nowhere").err.startswith("lmtrain: --config-dir nowhere is not a directory.")
    assert "Quote it: 'experiment=\"2003\"'" in call("TRAIN", "--config-dir", "mine", "experiment=2003").err


def hydra_choices() -> list[Any]:
    """Every choice of Hydra's own groups, and those that its plug-ins register; the quick part has those that did not work."""
    files = (Path(hydra.__file__).parent / "conf" / "hydra").glob("*/*.yaml")
    names = sorted(f"{path.parent.name}={path.stem}" for path in files)
    assert "job_logging=stdout" in names
    return [
        pytest.param(name, marks=[] if name in ("job_logging=stdout", "job_logging=disabled") else pytest.mark.slow)
        for name in [*names, "launcher=basic", "sweeper=basic"]
    ]


@pytest.mark.parametrize("choice", hydra_choices())
def test_every_choice_of_hydras_own_groups_works(choice: str, place: Path, call: Call) -> None:
    for arguments in (["hydra.run.dir=own"], ["-m", "trainer.seed=1,2", "hydra.sweep.dir=sweep"]):
        ended = call("TRAIN", *FEW, f"hydra/{choice}", *arguments)
        assert ended.code == 0, ended.err
    assert (place / "sweep" / "1" / "checkpoints" / "best").is_file()


@pytest.mark.parametrize(
    "arguments",
    [
        ["-m", "--cfg", "job"], ["--cfg", "job", "--info"], ["--run", "--multirun"], ["--resolve"],
        ["hydra/job_logging=nowhere"], ["hydra.job.env_copy=[NO_SUCH_VARIABLE]"], ["--experimental-rerun", "nowhere"],
        ["hydra.sweeper._target_=no.such.Sweeper", "-m", "trainer.seed=1,2"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_what_hydra_refuses_is_a_paragraph(arguments: list[str], place: Path, call: Call) -> None:
    ended = call(*arguments)
    assert ended.code == 2
    assert ended.err.startswith("lmtrain: ")


def test_a_training_is_composed_once_and_is_what_hydra_makes_of_it(
    place: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(Hydra, "get_mode", lambda *_, **__: asked.append("composed, to look at hydra.mode"))
    assert call("TRAIN", *FEW, "hydra.run.dir=one").code == 0
    assert asked == []
    assert call("TRAIN", *FEW, "--run", "hydra.run.dir=two").code == 0
    assert len(asked) == 1
    for name in ("config", "hydra", "overrides"):
        ours, theirs = (Path(run, ".hydra", f"{name}.yaml").read_text(encoding="utf-8") for run in ("one", "two"))
        assert re.sub(r"\btwo$", "one", theirs, flags=re.MULTILINE) == ours


@pytest.mark.parametrize("value", ["0", ""])
def test_no_environment_changes_exit_codes(value: str, place: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYDRA_FULL_ERROR", value)
    ended = call("TRAIN", "-m", "trainer.batch_size=4,5000", "hydra.sweep.dir=sweep")
    assert ended.code == 3
    assert "Traceback" not in ended.err


def test_no_path_moves_with_hydras_working_directory(place: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    chdir = "hydra.job.chdir=true"
    ended = call("TRAIN", chdir, "data.cache_dir=tokens", "hydra.run.dir=moved")
    assert ended.code == 0, ended.err
    assert Path.cwd() == place
    assert list((place / "tokens").glob("*.ids"))
    lines = [line.strip() for line in ended.out.splitlines() if line.startswith("  python -m lmtrain ")]
    assert len(lines) == 3
    for line in lines:
        assert call(*shlex.split(line.replace("FILE", "text.txt"))[3:], *([chdir] if "resume=" in line else [])).code == 0
    assert sorted(path.name for path in (place / "moved").iterdir() if not path.name.startswith(".")) == [
        "checkpoints", "lmtrain.log", "metrics.jsonl", "run.json", "settings.json", "tensorboard",
    ]  # fmt: skip
    swept = call("TRAIN", *FEW, chdir, "-m", "trainer.seed=1,2", "hydra.sweep.dir=sweep")
    assert swept.code == 0, swept.err


@pytest.mark.parametrize("name", ["123", "1_0", *(pytest.param(name, marks=pytest.mark.slow) for name in ("1e5", "true"))])
def test_a_run_and_a_text_whose_names_are_numbers(name: str, place: Path, call: Call) -> None:
    (place / name).write_bytes((place / "text.txt").read_bytes())
    ended = call("TRAIN", *FEW, f"data.path={name}", f"hydra.run.dir=runs/{name}")
    assert ended.code == 0, ended.err
    os.chdir("runs")
    assert call(f"resume={name}", "trainer.num_steps=3", f"data.path=../{name}").code == 0
    assert Path(name, "settings.json").is_file()


def test_a_name_that_begins_with_a_tilde(place: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(place / "home"))
    (place / "~no_such_user.txt").write_bytes((place / "text.txt").read_bytes())
    ended = call("TRAIN", *FEW, 'data.path="~no_such_user.txt"', 'hydra.run.dir="~/runs/a"', 'data.cache_dir="~/tokens"')
    assert ended.code == 0, ended.err
    assert (place / "home" / "runs" / "a" / "settings.json").is_file()
    assert (place / "home" / "tokens").is_dir()
    assert call('resume="~/runs/a"', "trainer.num_steps=3").code == 0
    assert call("score", "run", "~no_such_user.txt").code == 0
    ended = call("TRAIN", *FEW, 'hydra.run.dir="~no_such_user"')
    lines = [line.strip() for line in ended.out.splitlines() if line.startswith("  python -m lmtrain ")]
    assert len(lines) == 3
    for line in lines:
        assert call(*shlex.split(line.replace("FILE", "text.txt"))[3:]).code == 0, line


def test_no_warning_is_said_twice_of_a_search_path_that_is_not_there(place: Path, call: Call) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert call("--cfg", "job", "hydra.searchpath=[file:///no/such/place]").code == 0
    assert len([warning for warning in caught if "is not available" in str(warning.message)]) == 1


@pytest.mark.parametrize("name", ["a${oc.env:HOME}b", "x${model}y", "a$b"])
def test_a_run_directory_may_have_any_name_and_is_taken_literally(name: str, place: Path, call: Callable[..., Any]) -> None:
    written = quoting.typed("hydra.run.dir", name)
    assert call("TRAIN", *shlex.split(written)).code == 0
    assert {"settings.json", "lmtrain.log", "checkpoints"} <= {entry.name for entry in (place / name).iterdir()}
    ended = call(*shlex.split(quoting.typed("resume", name)), "trainer.num_steps=8")
    assert ended.code == 0, ended.err
    assert {entry.name for entry in place.iterdir()} == {"run", "text.txt", "outputs", name}


def test_the_short_form_of_cfg_is_no_abbreviation(place: Path, call: Callable[..., Any]) -> None:
    ended = call("-c", "job")
    assert ended.code == 0, ended.err
    assert "trainer:" in ended.out


def test_a_link_in_place_of_the_log_is_not_followed(place: Path, call: Callable[..., Any]) -> None:
    (place / "victim.txt").write_text("mine\n", encoding="utf-8")
    (place / "run" / "lmtrain.log").unlink()
    (place / "run" / "lmtrain.log").symlink_to("../victim.txt")
    ended = call("resume=run", "trainer.num_steps=8")
    assert ended.code == 0
    assert "nothing is logged there" in ended.err
    assert (place / "victim.txt").read_text(encoding="utf-8") == "mine\n"


def test_a_flipped_letter_in_the_settings_of_a_run_is_damage_and_no_typing_error(place: Path, call: Callable[..., Any]) -> None:
    file = place / "run" / "settings.json"
    file.write_text(file.read_text(encoding="utf-8").replace("num_threads", "num_phreads"), encoding="utf-8")
    ended = call("resume=run", "trainer.num_steps=12")
    assert ended.code == 4
    assert f"{file.relative_to(place)} cannot be used: trainer.num_phreads does not exist" in " ".join(ended.err.split())


def test_a_run_that_was_killed_as_soon_as_it_was_locked_begins_again(place: Path, call: Callable[..., Any]) -> None:
    (place / "new" / "checkpoints").mkdir(parents=True)
    (place / "new" / "run.lock").write_text('{"process": 1, "host": "here", "since": "2026-11-28"}\n', encoding="utf-8")
    ended = call("TRAIN", "hydra.run.dir=new")
    assert ended.code == 0, ended.err
    assert "it is taken over" in (place / "new" / "lmtrain.log").read_text(encoding="utf-8")


def test_fewer_threads_than_asked_for_are_never_had(call: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch's products of bfloat16 are wrong then."""
    monkeypatch.setenv("OMP_DYNAMIC", "true")
    call("--version")
    assert "OMP_DYNAMIC" not in os.environ


def test_fewer_threads_than_asked_for_are_never_had_from_python() -> None:
    library = next((Path(torch.__file__).parent / "lib").glob("libgomp*"), None)
    if library is None:
        pytest.skip("this PyTorch has no libgomp of its own")
    code = (
        f"import ctypes, torch, lmtrain; omp = ctypes.CDLL({str(library)!r}); assert omp.omp_get_dynamic(); "
        "lmtrain.Vectors(['a', 'b'], torch.eye(2)).neighbours('a'); print(omp.omp_get_dynamic())"
    )
    environment = os.environ | {"OMP_DYNAMIC": "true"}
    ended = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True, timeout=60)
    assert ended.stdout == b"0\n"


def test_a_run_that_is_given_less_than_it_has_used_says_so_and_what_is_more(place: Path, call: Callable[..., Any]) -> None:
    ended = call("resume=run", "trainer.num_steps=2")
    assert ended.code == 0
    assert "The run was already at step 6, beyond trainer.num_steps=2. To go on from there:" in ended.out
    assert "resume=run trainer.num_steps=12" in ended.out


def test_text_of_others_forges_no_line_of_ours(place: Path, call: Callable[..., Any]) -> None:
    forged = "9\nlmtrain: All is well. Type: rm -rf ~"
    (place / forged).write_text("x", encoding="utf-8")
    path = max((place / "run" / "checkpoints").glob("step-*")) / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8")) | {"schema": 99, "lmtrain": forged}
    manifest["sha256"] = _fingerprint(manifest)
    path.write_text(json.dumps(manifest), encoding="utf-8")
    for command in (["sample", str(path.parent)], ["sample", "nosuch"], ["score", "run", "nosuch.txt"]):
        ended = call(*command)
        assert ended.code in (3, 4)
        assert not any(line.startswith("lmtrain: All is well") for line in ended.err.splitlines()), ended.err
