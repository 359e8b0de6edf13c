"""Options of the commands that use a trained model: what is refused, with which words, and before anything is written."""

import json
import os
import re
import resource
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lmtrain.commands.options import unescaped

Call = Callable[..., Any]


@pytest.mark.parametrize("command", [["evaluate", "run"], ["score", "run", "text.txt"]], ids=lambda words: words[0])
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--dynamic-rate", "1"], r"--dynamic-rate was given without --dynamic\. .* Type --dynamic sgd as well"),
        (["--dynamic-decay", "0.1", "--cache", "5"], "--dynamic-decay was given without --dynamic"),
        (["--dynamic-segment", "5"], "--dynamic-segment was given without --dynamic"),
        (["--cache-theta", "1", "--cache-weight", "0.1"], "--cache-theta, --cache-weight was given without --cache"),
        (["--cache-weight", "0.1", "--dynamic", "sgd"], r"--cache-weight was given without --cache\. .* Type --cache 2000"),
    ],
    ids=str,
)
def test_an_option_of_an_option_is_refused_without_it(
    command: list[str], options: list[str], words: str, place: Path, call: Call
) -> None:
    ended = call(*command, *options)
    assert (ended.code, ended.out) == (2, "")
    assert re.search(words, ended.err)


def test_options_left_out_have_the_defaults_that_the_help_says(place: Path, call: Call) -> None:
    plain = json.loads(call("evaluate", "run", "--json", "--dynamic", "sgd", "--cache", "50").out)
    typed = ["--dynamic-rate", "0.1", "--dynamic-decay", "0.002", "--dynamic-segment", "20", "--cache-theta", "0.66"]
    spelt = call("evaluate", "run", "--json", "--dynamic", "sgd", "--cache", "50", *typed, "--cache-weight", "0.13")
    assert json.loads(spelt.out) == plain


@pytest.mark.parametrize(
    "arguments",
    [("score", "run"), ("evaluate", "run", "--text"), ("sample", "run", "--prompt-file")],
    ids=lambda words: words[0],
)
def test_the_remedy_for_a_missing_file_is_no_setting(arguments: list[str], place: Path, call: Call) -> None:
    ended = call(*arguments, "nowhere.txt")
    assert (ended.code, ended.out) == (3, "")
    assert "There is no file" in ended.err
    assert "data.path" not in ended.err


def test_score_writes_nothing_before_a_file_that_is_refused(place: Path, call: Call) -> None:
    (place / "late.txt").write_bytes(b"the cat\n" * 300_000 + b"\xff\n")  # several blocks, the last one damaged
    for text in ("late.txt", "run", "nowhere.txt"):
        ended = call("score", "run", text)
        assert (ended.code, ended.out) == (3, ""), text


@pytest.mark.parametrize(
    ("typed", "meant"), [(r"\n", "\n"), (r"a\tb", "a\tb"), (r"\\n", r"\n"), ("\n", "\n"), ("plain", "plain"), (r"\\", "\\")]
)
def test_escapes_are_what_they_are_elsewhere(typed: str, meant: str) -> None:
    assert unescaped(typed) == meant


@pytest.mark.parametrize("typed", [r"\d", "\\"])
def test_another_escape_is_refused(typed: str, place: Path, call: Call) -> None:
    ended = call("sample", "run", "--stop", typed)
    assert (ended.code, ended.out) == (2, "")
    assert r"means nothing; allowed are \n, \t and \\" in ended.err


def test_a_sample_ends_before_the_line_end_that_is_typed_as_an_escape(place: Path, call: Call) -> None:
    assert "\n" in call("sample", "run", "--temperature", "1").out[:-1]
    assert "\n" not in call("sample", "run", "--temperature", "1", "--stop", r"\n").out[:-1]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["sample", "run", "--promt", "x"], r"--promt cannot be used by .* Did you mean --prompt\?"),
        (["sample", "run", "--temp", "1"], r"--temp cannot be used by"),  # no abbreviations: a new option must not change them
        (
            ["sample", "run", "--temperature", "hot"],
            r"Argument --temperature: invalid float value: 'hot'\. See .*sample --help",
        ),
        (["sample"], r"required: RUN\. See  python -m lmtrain sample --help"),
        (["evaluate", "run", "--jsn"], r"--jsn cannot be used by .* It takes RUN \[FILE\]; its options are --help"),
        (
            ["score", "run", "my file.txt", "other file.txt"],
            r": 'other file\.txt' is one argument too many for  python -m lmtrain score\. It takes RUN FILE\.",
        ),
        (["evaluate", "run", "text.txt", "a b"], r": 'a b' is one argument too many .* It takes RUN \[FILE\]\."),
        (["compare", "a", "b", "c", "--json", "d e", "f"], r": 'd e' is one .* It takes RUN_A RUN_B \[FILE\]\."),
        (["sample", "run", "Once upon"], r"'Once upon' is one argument too many .* Did you mean  --prompt 'Once upon'\?"),
        (["export", "run", "d", "--output", "e"], r"d is one argument too many .* Did you mean  --output d\?"),
        (["arpa", "run", "d", "--output", "e"], r"d is one argument too many .* Did you mean  --output d\?"),
        (["evaluate", "run", "text.txt", "--text", "a"], r"text\.txt was given together with --text a\."),
        (["evaluate", "run", "text.txt", "--split", "test"], r"text\.txt was given together with --split test\."),
        (
            ["evaluate", "run", "-"],
            r"Standard input can be read once\..*Type  python -m lmtrain score run -  for its perplexity\.",
        ),
        (["evaluate", "run", "--text", os.devnull], r"null can be read once\..*lmtrain score run"),
        (["evaluate", "run", "--split", "vaild"], r"Did you mean valid\?"),
        (["settings", "modle"], r"Did you mean model\?"),
        (["verify", "now"], r"now is one argument too many for  python -m lmtrain verify\. It takes nothing"),
        (["train"], r"Training needs no command"),
    ],
    ids=str,
)
def test_a_wrong_argument_is_one_paragraph_with_the_remedy(arguments: list[str], words: str, place: Path, call: Call) -> None:
    ended = call(*arguments)
    assert (ended.code, ended.out) == (2, "")
    assert re.search(words, ended.err)
    assert ended.err.count("\n") == 1


def test_evaluate_takes_a_file_with_a_blank_in_its_name_before_and_behind_options(place: Path, call: Call) -> None:
    (place / "small text.txt").write_text("the cat sat\n", encoding="utf-8")
    wanted = call("evaluate", "run", "--text", "small text.txt", "--json")
    assert (wanted.code, json.loads(wanted.out)["text"]) == (0, "small text.txt")
    assert call("evaluate", "run", "small text.txt", "--json") == wanted
    assert call("evaluate", "run", "--json", "small text.txt") == wanted
    for arguments in (("",), ("--text", "")):  # a variable of the shell that is not set
        ended = call("evaluate", "run", *arguments)
        assert (ended.code, "is empty. It must be a path." in ended.err) == (2, True)


def test_what_may_be_left_out_may_stand_behind_an_option(place: Path, call: Call) -> None:
    assert call("compare", "run", "run", "--json", "text.txt") == call("compare", "run", "run", "text.txt", "--json")
    assert call("explain", "--json", "x * y", "x=2", "y=3") == call("explain", "x * y", "--json", "x=2", "y=3")


def test_help_of_a_command_is_the_commands_own(place: Path, call: Call) -> None:
    assert call("help", "score") == call("score", "--help")
    assert call("help", "score").out.startswith("usage: python -m lmtrain score")


def test_lines_are_scored_by_themselves_where_that_is_asked_for(place: Path, call: Call) -> None:
    (place / "same.txt").write_text("the cat sat\n" * 3, encoding="utf-8")
    carried, alone = (call("score", "run", "same.txt", *more).out.splitlines() for more in ((), ("--independent",)))
    assert len({line.split("\t")[1] for line in carried[1:4]}) == 3
    assert len({line.split("\t")[1] for line in alone[1:4]}) == 1
    assert "state forgotten at each line" in alone[-1]
    refused = call("score", "run", "same.txt", "--independent", "--cache", "10")
    assert refused.code == 2
    assert "--independent was given together with --dynamic or --cache." in refused.err


@pytest.mark.parametrize("output", ["text.txt/mixed", "new/" + "x" * 300, "/proc/mixed"])
def test_a_mixture_that_could_not_be_saved_is_refused_before_anything_is_scored(output: str, place: Path, call: Call) -> None:
    ended = call("mix", "run", "run", "--output", output)
    assert (ended.code, ended.out) == (2, "")
    found = (
        r"is below text\.txt, which is no directory" if "text" in output else r"cannot be made: .*\. It must be a new path .*"
    )
    assert re.search(rf"--output {output} {found}\. .*Give another path\.\n$", ended.err)
    assert "scores" not in ended.err
    assert not (place / "new").exists()


def test_a_mixture_that_fails_leaves_nothing_behind_but_what_others_made(
    place: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        (place / "new" / "of another").mkdir()
        raise KeyboardInterrupt

    monkeypatch.setattr("lmtrain.tasks.mixing.fit_weights", fail)
    assert call("mix", "run", "run", "--output", "new/mixed").code == 130
    assert [path.name for path in (place / "new").iterdir()] == ["of another"]
    assert call("mix", "run", "nowhere", "--output", "newer/mixed").code == 4
    assert not (place / "newer").exists()


def test_a_mixture_says_which_model_it_scores(place: Path, call: Call) -> None:
    ended = call("mix", "run", "run/", "--output", "new/mixed")
    assert re.match(r"1 of 2: run scores \d+ tokens of validation\n2 of 2: run/ scores", ended.err)
    assert call("evaluate", "new/mixed").code == 0


def test_a_file_that_names_a_checkpoint_is_as_good_as_the_checkpoint(place: Path, call: Call) -> None:
    best = str(place / "run" / "checkpoints" / "best")
    for command in (["evaluate", "--json"], ["score", "text.txt"], ["sample"]):
        command.insert(1, best)
        ended = call(*command)
        assert ended.code == 0, ended.err
    assert call("mix", best, "run/checkpoints/last", "--output", "mixed").code == 0


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ("score run ''", "FILE"), ("score '' text.txt", "RUN"), ("sample ''", "RUN"), ("sample run --words ''", "--words"),
        ("mix run '' --output new", "RUN"), ("compare run ''", "RUN_B"), ("arpa '' --output new", "SOURCE"),
        ("vectors neighbours '' the", "RUN|FILE"), ("report ''", "RUN"), ("runs ''", "DIR"), ("rescore ''", "FILE"),
        ("score run text.txt --html ''", "--html"), ("sample run --novelty ''", "--novelty"), ("inspect --svg ''", "--svg"),
    ],
)  # fmt: skip
def test_an_empty_path_is_said_to_be_empty(arguments: str, name: str, place: Path, call: Call) -> None:
    """It would be the current directory."""
    ended = call(*shlex.split(arguments))
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith(f"lmtrain: {name} is empty. It must be a path.")


@pytest.mark.parametrize(
    "arguments",
    [
        "score run run", "sample run --words run", "sample run --prompt-file run", "rescore run --weights 1 0",
        "score run text.txt --independent --with run --other-weight fit --fit-on run",
    ],
)  # fmt: skip
def test_a_directory_is_no_text(arguments: str, place: Path, call: Call) -> None:
    ended = call(*shlex.split(arguments))
    assert ended.code == 3
    assert ended.err.endswith("run is a directory. A text file is needed. Give a file.\n")


@pytest.mark.parametrize("arguments", ["evaluate {} --checkpoint {}", "vectors export {} --checkpoint {} --output new",
                                       "compare {} run/checkpoints/best --checkpoint {}"])  # fmt: skip
def test_a_path_that_says_which_checkpoint_leaves_no_choice(arguments: str, place: Path, call: Call) -> None:
    ended = call(*arguments.format("run/checkpoints/best", "last").split())
    assert (ended.code, ended.out) == (2, "")
    assert "--checkpoint last was given together with run/checkpoints/best" in ended.err


@pytest.mark.parametrize("pointer", ["best", "last"])
def test_a_path_may_name_the_checkpoint_that_is_chosen(pointer: str, place: Path, call: Call) -> None:
    step = (place / "run/checkpoints" / pointer).read_text(encoding="utf-8").strip()
    for path in (f"run/checkpoints/{pointer}", f"run/checkpoints/{step}", "run"):
        assert call("sample", path, "--checkpoint", pointer, "--max-tokens", "1").code == 0
    assert call("compare", "run", f"run/checkpoints/{pointer}", "--checkpoint", "last").code == 0  # the option is of the first
    assert call("vectors", "export", f"run/checkpoints/{pointer}", "--format", "npz", "--output", "new.npz").code == 0


@pytest.mark.parametrize("arguments", ["sample run --words - --prompt-file -", "rescore - --references -"])
def test_standard_input_is_read_by_one_option(arguments: str, place: Path, call: Call) -> None:
    ended = call(*arguments.split())
    assert ended.code == 2
    assert "are both -. Standard input can be read once." in ended.err


def test_the_home_directory_is_meant_where_a_shell_leaves_its_sign(
    place: Path, call: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert call("runs", "run", "--csv", "~/runs.csv").code == 0
    assert call("vectors", "export", "run", "--format", "npz", "--output", "~/new/vectors.npz").code == 0
    assert (tmp_path / "runs.csv").is_file()
    assert (tmp_path / "new" / "vectors.npz").is_file()
    assert not (place / "~").exists()


def test_directories_above_a_file_to_write_are_made(place: Path, call: Call) -> None:
    for number, command in enumerate(
        ("score run text.txt --html", "report run --tokens 0 --output", "runs run --csv", "explain x x=1 --svg",
         "vectors export run --format npz --output", "vectors plot run a t --output")
    ):  # fmt: skip
        file = Path(f"new{number}") / "below" / "file.svg"
        ended = call(*command.split(), str(file))
        assert ended.code == 0, ended.err
        assert file.is_file()
    assert call("score", "run", "nowhere", "--html", "none/file").code == 3
    assert not Path("none").exists()


def test_paragraphs_of_a_help_stay_and_so_does_what_is_indented(place: Path, call: Call) -> None:
    assert "\n\n    total = score + lm_weight * log-probability + word_penalty * words\n\n" in call("rescore", "--help").out
    assert "\n\n    python -m lmtrain completion >> ~/.bashrc\n\n" in call("completion", "--help").out


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        ("score run text.txt --unit word --html new/x.html", "--html new/x.html"),
        ("inspect data=text data.path=text.txt --svg new/x.svg", "--svg new/x.svg"),
        ("mix run run --output new/mixed", "--output new/mixed"),
        ("runs run --csv new/runs.csv", "--csv new/runs.csv"),
        ("report run --tokens 0 --output new/report.html", "--output new/report.html"),
    ],
)
def test_a_full_disk_is_said_of_what_was_typed(arguments: str, what: str, place: Path, call: Call) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        ended = call(*arguments.split())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert ended.err.splitlines()[-1] == (
        f"lmtrain: {what} cannot be written: File too large. It is written as a whole or not at all. "
        "Free some space, or give a path on another disk."
    )
    assert ended.code == 6
    assert not (place / "new").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        "runs run --csv text.txt/x",
        "report run --output text.txt/x",
        "arpa run --output text.txt/x",
        "export run --output text.txt/x",
    ],
)
def test_a_file_in_the_place_of_a_directory_is_a_path_typed_wrong(arguments: str, place: Path, call: Call) -> None:
    ended = call(*arguments.split())
    assert (ended.code, ended.out) == (2, "")
    assert re.search(r"--(csv|output) text\.txt/x is below text\.txt, which is no directory\.", ended.err)


def test_a_file_whose_name_begins_like_an_option_is_named_with_its_directory(place: Path, call: Call) -> None:
    (place / "-a.txt").write_text("the cat\n")
    for arguments in (["score", "run", "-a.txt"], ["score", "run", "text.txt", "-a.txt"]):
        assert call(*arguments).err.endswith("For the file of this name, type ./-a.txt\n")


def test_standard_input_that_evaluate_cannot_read_twice_is_no_option(place: Path, call: Call) -> None:
    assert "once. A text is read more than once here" in call("evaluate", "run", "-").err


def test_inspect_says_how_a_path_with_a_comma_or_a_dollar_is_typed(place: Path, call: Call) -> None:
    refused = call("inspect", "data=text", "data.path=a,b.txt")
    assert "quote it twice: 'data.path=\"a,b.txt\"'" in refused.err
    refused = call("inspect", "data=text", 'data.path="a${x}.txt"')
    assert "data.path=a${x}.txt cannot be resolved: Interpolation key 'x' not found." in refused.err
    assert "type 'data.path=\"a\\${x}.txt\"'" in refused.err
    assert "There is no file or directory" in call("inspect", "data=text", 'data.path="a\\${x}.txt"').err
