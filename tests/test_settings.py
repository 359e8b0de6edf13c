"""Settings: everything wrong is said at once, with the nearest valid name, before torch is imported or a directory made."""

import dataclasses
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import lmtrain.config as config
from lmtrain.application import Sources, check_overrides, register_schemas
from lmtrain.application.composing import compose
from lmtrain.commands.help import main as show_help
from lmtrain.commands.settings import main, options_of
from lmtrain.errors import SettingsError
from lmtrain.settings import comparing, idle, quoting, reading

register_schemas()
EXPERIMENTS = sorted(path.stem for path in (config.conf_directory() / "experiment").glob("*.yaml"))


def run_lmtrain(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "lmtrain", *arguments], cwd=cwd, capture_output=True, text=True, timeout=60, check=False
    )


def test_all_mistakes_are_reported_together_with_the_nearest_key(tmp_path: Path) -> None:
    result = run_lmtrain(
        "model.hiden_size=3", "+typo=1", "trainer.batch_size=0", "model.dropout=x", "optimizer.learning_rate=nan", cwd=tmp_path
    )
    assert result.returncode == 2
    assert "5 settings cannot be used" in result.stderr
    assert "model.hiden_size does not exist; did you mean model.hidden_size?" in result.stderr
    assert "typo does not exist" in result.stderr
    assert "trainer.batch_size=0 is out of range; allowed is at least 1" in result.stderr
    assert "model.dropout=x is not usable; allowed is a number" in result.stderr
    assert "optimizer.learning_rate=nan is out of range" in result.stderr
    assert "Traceback" not in result.stderr
    assert list(tmp_path.iterdir()) == [], "a run directory appeared although the settings were refused"


def test_torch_is_not_imported_before_the_settings_are_checked() -> None:
    code = (
        "import sys; from lmtrain.application import check_overrides, register_schemas; register_schemas();"
        "check_overrides(['model=gru']); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_help_imports_neither_torch_nor_hydra() -> None:
    code = (
        "import sys; from lmtrain.__main__ import main; main(['--help']);"
        "assert not {'torch', 'hydra', 'numpy'} & set(sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], check=True, timeout=60, capture_output=True, text=True)
    assert "python -m lmtrain sample RUN" in result.stdout
    assert re.search(r"model=\s.*elman,.* gru,.* lstm, .*ngram, .*window", result.stdout)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model=lstmm", r"model=lstmm does not exist; allowed are .*did you mean lstm\?"),
        ("model.cell=lstn", r"model\.cell=lstn .*allowed are elman, gru, lstm.*; did you mean lstm"),
        ("trainer.chunk_length=2.5", r"trainer\.chunk_length=2\.5 is not usable; allowed is a whole number"),
        ("trainer.seed=true", r"trainer\.seed=true is not usable; allowed is a whole number"),
        ("trainer.seed=-1", r"at least 0"),
        ("model.dropout=1", r"at least 0 and below 1"),
        ("trainer.keep=-1", r"at least 0"),
        ("model=7", r"model=7 does not exist"),
        ("~trainer", r"would remove"),
        ("model.kind=window", r"Choose the group: model=NAME"),
        ("trainer=3", r"trainer=3 does not exist"),
        ("data.path=a=b{", r"cannot be read as key=value. Quote"),
        ("text.txt", r"is not key=value. Is it part of a value that contains spaces\?"),
        ("model.init=identity", r"is for the recurrence of model=elman"),
        ("tokenizer.vocab_size=2", r"at least 3"),
        ("resume=", r"names no run"),
        ("trainer.patience=0", r"at least 1"),
        ("model.patience=3", r"model\.patience does not exist; trainer\.patience=N ends training .* the best checkpoint that"),
        ("+early_stopping=true", r"early_stopping does not exist; trainer\.patience=N ends training"),
        ("trainer.early_stopping_patience=3", r"optimizer\.patience is NT-ASGD's, schedule\.patience that of schedule=plateau"),
        ("schedule.patience=3", r"it belongs to schedule settings of the kind plateau"),
        ("optimizer.patince=3", r"did you mean optimizer\.patience\?"),
    ],
)
def test_a_wrong_setting_is_refused_with_what_is_allowed(override: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        check_overrides([override])


def test_a_bare_path_is_answered_with_the_settings_that_read_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my text.txt").write_text("the cat\n", encoding="utf-8")
    with pytest.raises(SettingsError, match=r"""type  data=text 'data\.path="my text\.txt"'"""):
        check_overrides(["my text.txt"])


def test_tied_sizes_that_differ_name_both_and_the_remedy() -> None:
    with pytest.raises(SettingsError, match=r"650 and 128\. Set model\.embed_size=650, or model\.project=true"):
        check_overrides(["model.tie_weights=true", "model.hidden_size=650"])


def test_a_group_that_lacks_what_the_experiment_sets_is_said_in_our_words() -> None:
    with pytest.raises(SettingsError, match=r"word_language_model sets schedule\.factor, which the schedule that was chosen"):
        check_overrides(["experiment=word_language_model", "data.path=x", "schedule=constant"])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model=window", "model.num_averages=3"], r"num_averages=3 and model\.average_span=0 need each other"),
        (["model=window", "model.average_span=3"], r"num_averages=0 and model\.average_span=3 need each other"),
        (["tokenizer=byte", "tokenizer.min_count=2"], r"cannot change the vocabulary of tokenizer=byte, which is fixed"),
        (["schedule=range_test", "schedule.low=2"], r"schedule\.low=2 must be below schedule\.high=1\."),
        (
            ["model.tie_weights=true", "model.project=true", "model.embeddings=svd", "model.freeze_embeddings=null"],
            r"model\.freeze_embeddings=null would freeze the output layer",
        ),
        (["model.head=adaptive", "model.cutoffs=[9,5]"], r"model\.cutoffs=\[9,5\] must ascend"),
    ],
)
def test_settings_that_exclude_each_other_are_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        check_overrides(overrides)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["task=tag", "data.path=x"], r"those of task=tag are dense\. Type optimizer=adam\."),
        (["task=tag", "data.path=x", "model=logistic"], r"those of task=tag are dense"),
        *((["task=vectors", f"model={model}"], r"those of task=vectors are dense") for model in ("skipgram", "cbow", "glove")),
        (["model.embeddings=x", "model.freeze_embeddings=null"], r"freeze_embeddings=null freezes them\. Type optimizer=adam"),
        (["model.embeddings=x", "model.freeze_embeddings=1"], r"model\.freeze_embeddings=1\.0 freezes them"),
        (["model.tie_weights=true", "model.project=true"], r"model\.tie_weights=true\. That changes every row"),
    ],
)
def test_sparse_adam_needs_a_model_with_sparse_gradients(overrides: list[str], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        check_overrides([*overrides, "optimizer=sparse_adam"])


@pytest.mark.parametrize(
    "overrides",
    [
        ["model.embeddings=x"],
        ["model.freeze_embeddings=1"],
        ["model.embeddings=x", "model.freeze_embeddings=null", "model.head=sampled"],
        ["task=classify", "data.path=x"],
        ["task=classify", "data.path=x", "model=logistic"],
    ],
)
def test_sparse_adam_takes_a_model_with_sparse_gradients(overrides: list[str]) -> None:
    assert check_overrides([*overrides, "optimizer=sparse_adam"])


@pytest.mark.parametrize(
    ("overrides", "key", "need"),
    [
        (["schedule=range_test"], "optimizer.learning_rate", "another schedule than range_test"),
        (["schedule=one_cycle"], "optimizer.beta1", "another schedule than one_cycle"),
        (["schedule=one_cycle", "optimizer=sgd"], "schedule.beta1_low", "optimizer=adam, or a momentum"),
        (["schedule=range_test"], "trainer.final_split", "another schedule than range_test"),
        (["schedule=range_test"], "trainer.baselines", "a final test"),
        (["trainer.final_split=none"], "trainer.baselines", "a final test"),
        (["task=tag", "data.path=x", "model=logistic"], "model.ngrams", "task=classify"),
        *(
            (["task=classify", "data.path=x", "model=logistic"], f"model.{name}", "task=tag")
            for name in ("context", "affixes", "shape_features")
        ),
        ([], "data.valid_fraction", "a single text, data=text data.path=FILE"),
        (["data=text", "data.path=."], "data.test_fraction", "a single text, data=text data.path=FILE"),
        ([], "model.hidden_dropout", "two layers or more"),
        (["task=vectors", "data.path=x"], "tokenizer.unknown", "a language model"),
        (["task=vectors", "data.path=x", "model=glove"], "data.reverse", "another model than glove"),
        ([], "model.residual", "a layer of as many outputs as inputs"),
        (["model=window"], "model.residual", "a layer of as many outputs as inputs"),
        ([], "model.locked_dropout", "a model.dropout above 0"),
        (
            ["model.head=adaptive", "model.tie_weights=true", "model.project=true"],
            "model.div_value",
            "without model.tie_weights",
        ),
    ],
)
def test_a_setting_that_nothing_reads_is_said(overrides: list[str], key: str, need: str) -> None:
    (note,) = idle.iter_idle(reading.read_config(check_overrides(overrides)), [key])
    assert note.startswith(f"{key} has no effect here: it needs ")
    assert need in note


@pytest.mark.parametrize(
    ("overrides", "keys"),
    [
        (["schedule=one_cycle", "optimizer=sgd", "optimizer.momentum=0.9"], ["optimizer.momentum"]),
        (["task=tag", "data.path=x", "model=logistic"], ["model.context", "model.affixes", "model.shape_features"]),
        (["task=tag", "data.path=x"], ["model.context", "model.affixes", "model.shape_features", "trainer.baselines"]),
        (["task=classify", "data.path=x", "model=logistic"], ["model.ngrams"]),
        (["task=classify", "data.path=x", "model=naive_bayes"], ["model.add_k"]),
        (["model=window"], ["model.context", "trainer.final_split", "trainer.baselines"]),
        (["model.embed_size=384"], ["model.residual", "tokenizer.unknown", "data.reverse"]),
        (["task=vectors", "data.path=x"], ["data.reverse"]),
        (["model.projection_size=128"], ["model.residual"]),
        (["model=window", "model.num_layers=2"], ["model.residual"]),
    ],
)
def test_a_setting_that_a_neighbour_reads_is_not_said(overrides: list[str], keys: list[str]) -> None:
    assert not list(idle.iter_idle(reading.read_config(check_overrides(overrides)), keys))


def test_a_setting_that_something_reads_is_not() -> None:
    overrides = ["data=text", "data.path=one.txt", "model.hidden_sizes=[5,6]", "model.dropout=0.1", "schedule=one_cycle"]
    keys = [
        "data.valid_fraction",
        "model.hidden_dropout",
        "model.locked_dropout",
        "schedule.beta1_low",
        "optimizer.learning_rate",
    ]
    assert not list(idle.iter_idle(reading.read_config(check_overrides(overrides)), keys))


@pytest.mark.parametrize(
    "text", ["outputs/2026-01-02_03", "my run", "a,b", "it's", 'say "a"', "a=b", "ümlaut", "x\\y", "x\\", "$HOME", "2026"]
)
def test_a_printed_setting_can_be_typed_back(text: str) -> None:
    (word,) = shlex.split(quoting.typed("data.path", text))
    assert check_overrides(["data=text", word])["data"]["path"] == text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--lr", "0.1"], "--lr is not an option of training. Settings are written key=value, without dashes."),
        (["--trainer.seed=3"], "Type for example  python -m lmtrain trainer.seed=3"),
        (["data.path=my.txt"], "Type data=text or data=columns or data=labelled as well."),
        (["model=window", "model.cell=gru"], f"Type model={'|'.join(config.Cell.__members__)} as well."),
        (["task=tag", "model.window=3"], "model.window does not exist."),  # vectors have it, which tag nothing
        (["model.lr=1"], "model.lr does not exist; did you mean optimizer.learning_rate?"),
        (["model.k=1"], "model.k does not exist."),
        (["model.batch_size=1"], "model.batch_size does not exist; did you mean trainer.batch_size?"),
        (["trainer.threads=1"], "trainer.threads does not exist; did you mean trainer.num_threads?"),
    ],
)
def test_what_is_not_a_setting_says_how_one_is_written(arguments: list[str], words: str, tmp_path: Path) -> None:
    result = run_lmtrain(*arguments, cwd=tmp_path)
    assert result.returncode == 2
    assert words in result.stderr
    assert " \n" not in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_help_may_stand_behind_settings(tmp_path: Path) -> None:
    result = run_lmtrain("model=gru", "--help", cwd=tmp_path)
    assert result.stdout.startswith("lmtrain trains")
    assert list(tmp_path.iterdir()) == []


def test_text_without_a_path_says_what_to_type() -> None:
    with pytest.raises(SettingsError, match=r"Type data\.path=FILE"):
        check_overrides(["data=text"])


@pytest.mark.parametrize(
    ("value", "text"), [(None, "null"), (True, "true"), (False, "false"), (0.5, "0.5"), ([1, 2], "[1,2]"), ("a", "a")]
)
def test_a_value_is_written_as_settings_write_it(value: object, text: str) -> None:
    assert quoting.written(value) == text
    assert shlex.split(quoting.typed("model.x", value)) == [f"model.x={text}"]


def test_text_in_a_list_is_quoted_where_it_needs_it() -> None:
    assert quoting.as_override(["word", "a,b", "null", 1, None]) == '[word,"a,b","null",1,null]'


def test_every_value_of_a_sweep_is_checked() -> None:
    with pytest.raises(SettingsError, match="model=gruu does not exist"):
        check_overrides(["model=lstm,gruu"])


def test_every_model_of_a_sweep_is_checked_with_the_other_settings() -> None:
    with pytest.raises(SettingsError, match=r"model\.context does not exist here; it belongs to .* window"):
        check_overrides(["model=window,lstm", "model.context=3"])
    with pytest.raises(SettingsError, match="too large for adam"):
        check_overrides(["optimizer=sgd,adam", "optimizer.learning_rate=20"])


def test_several_runs_cannot_go_on_at_once(tmp_path: Path) -> None:
    result = run_lmtrain("-m", "resume=a,b", cwd=tmp_path)
    assert result.returncode == 2
    assert "resume=a,b names several runs" in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_composes(experiment: str) -> None:
    settings = check_overrides([f"experiment={experiment}", "data.path=x"])
    assert reading.read_config(settings)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_opens_with_its_command(experiment: str) -> None:
    first = (config.conf_directory() / "experiment" / f"{experiment}.yaml").read_text(encoding="utf-8").splitlines()[:2]
    assert any(f"python -m lmtrain experiment={experiment}" in line for line in first)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_ends_with_what_it_reaches_as_the_readme_says(experiment: str) -> None:
    last = (config.conf_directory() / "experiment" / f"{experiment}.yaml").read_text(encoding="utf-8").splitlines()[-1]
    assert last.startswith(("# Measured on ", "# Not measured here"))
    if last.startswith("# Measured"):
        measured = re.findall(r"\d+\.\d+", last)
        places = ("scripts", "src/lmtrain/vectors")
        readmes = "".join((Path(__file__).parents[1] / p / "README.md").read_text(encoding="utf-8") for p in places)
        assert measured
        assert [number for number in measured if number not in readmes] == []


@pytest.mark.parametrize(
    "choices",
    [
        {},
        {"model": "gru", "data": "text", "tokenizer": "word", "optimizer": "sgd", "schedule": "halve", "trainer": "epochs"},
        {"model": "window", "optimizer": "adamw", "schedule": "one_cycle"},
        {"model": "ngram", "tokenizer": "byte"},
    ],
)
def test_what_is_listed_of_a_choice_is_what_typing_it_gives(choices: dict[str, str]) -> None:
    composed = compose(Sources(), tuple(f"{group}={name}" for group, name in choices.items()))
    for group in config.GROUPS:
        options = options_of(group)
        name = choices.get(group, next(iter(options)))
        assert comparing.config_to_json(options[name]) == composed[group], f"{group}={name}"


def test_the_list_of_settings_begins_with_those_of_a_plain_run(capsys: pytest.CaptureFixture[str]) -> None:
    main([])
    shown = capsys.readouterr().out
    for key, value in (("optimizer.learning_rate", "0.006"), ("trainer.max_seconds", "45.0"), ("model.hidden_size", "384")):
        found = re.search(rf"(?m)^  {key}=(\S+) ", shown)
        assert found
        assert found[1] == value
    assert re.search(r"optimizer=sgd +Instead of optimizer=adam: .*optimizer.learning_rate=20.0", shown)
    assert f"Recurrence: {', '.join(config.Cell.__members__)}." in shown


@pytest.mark.parametrize("model", ["lstm", "gru", "elman", "window", "ngram"])
def test_settings_survive_the_way_through_json(model: str) -> None:
    read = reading.read_config(check_overrides([f"model={model}"]))
    assert reading.read_config(comparing.config_to_json(read)) == read


def test_changes_between_two_settings_carry_their_rule_for_resuming() -> None:
    old = reading.read_config(check_overrides([]))
    new = reading.read_config(check_overrides(["model.hidden_size=7", "trainer.num_steps=9", "trainer.clip_norm=2"]))
    rules = {key: rule for key, _, _, rule in comparing.iter_changes(old, new)}
    assert rules == {
        "model.hidden_size": config.Resume.refused,
        "trainer.num_steps": config.Resume.allowed,
        "trainer.clip_norm": config.Resume.warned,
    }


def test_a_misspelt_command_names_the_nearest(tmp_path: Path) -> None:
    result = run_lmtrain("smaple", cwd=tmp_path)
    assert result.returncode == 2
    assert "python -m lmtrain sample" in result.stderr


def test_hydra_can_be_asked_what_it_composed_from_any_directory(tmp_path: Path) -> None:
    result = run_lmtrain("--cfg", "job", "model=elman", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "cell: elman" in result.stdout
    assert os.listdir(tmp_path) == []


def test_there_is_one_set_of_defaults() -> None:
    """What a plain run is composed of is what the classes of settings say; files in `conf/` hold only what differs from it."""
    register_schemas()
    plain = reading.read_config(check_overrides([]))
    kinds = {group: {"kind": getattr(plain, group).kind} for group in ("model", "data", "schedule")}
    assert reading.read_config(kinds) == plain


def test_vectors_of_the_training_text_are_offered_where_they_can_be_made(capsys: pytest.CaptureFixture[str]) -> None:
    main(["model"])
    parts = capsys.readouterr().out.split("\n\n")
    offered = {re.match(r"\s*model=(\w+)", part)[1]: "or svd" in part for part in parts if "model.embeddings=" in part}  # type: ignore[index]
    assert offered == {"lstm": True, "window": True, "tagger": False, "averaging": False, "encoder": False}, offered


def test_the_help_names_all_that_can_be_trained(capsys: pytest.CaptureFixture[str]) -> None:
    show_help([])
    assert "taggers, classifiers and word vectors" in capsys.readouterr().out.splitlines()[0]


def test_settings_outside_groups_are_listed_too(capsys: pytest.CaptureFixture[str]) -> None:
    main([])
    printed = capsys.readouterr().out
    alone = [field.name for field in dataclasses.fields(config.Config) if field.name not in config.GROUPS]
    assert "resume" in alone
    assert [name for name in alone if f"\n  {name}=null" not in printed] == []
