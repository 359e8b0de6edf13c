"""What the TAB key offers is what is then accepted: asked of the real bash."""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lmtrain.__main__ import COMMANDS
from lmtrain.application import check_overrides, register_schemas
from lmtrain.commands.completion import SCRIPT, offers

Call = Callable[..., Any]
ASK = """
COMP_LINE="$1"; COMP_POINT=${#1}; COMP_TYPE=9; COMP_KEY=9
COMP_WORDS=($(sed 's/=/ = /g' <<< "$1")); [[ "$1" == *" " || "$1" == *= ]] && COMP_WORDS+=("")
[[ "$1" == *= ]] && unset 'COMP_WORDS[-1]'
COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
compopt() { :; }
_lmtrain; printf '%s\\n' "${COMPREPLY[@]}"
"""


def test_bash_offers_commands_options_settings_values_and_runs(place: Path, call: Call) -> None:
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("there is no bash here")
    script = call("completion").out
    assert script.strip() == SCRIPT.strip()
    for line, wanted in (
        ("python -m lmtrain sam", {"sample"}),
        ("python -m lmtrain sample ru", {"run"}),
        ("python -m lmtrain runs --mark", {"--markdown"}),
        ("python -m lmtrain optimizer.averaging=", {"none", "nt_asgd", "ema"}),
        ("python -m lmtrain model=gru optimizer.averaging=e", {"ema"}),
        ("python -m lmtrain resume=r", {"run"}),
    ):
        ended = subprocess.run([bash, "--norc", "-c", script + ASK, "bash", line], capture_output=True, text=True, timeout=120)
        assert set(ended.stdout.split()) == wanted, (line, ended.stderr)


def test_every_value_that_is_offered_is_accepted(place: Path) -> None:
    register_schemas()
    tried = 0
    for key in offers("lmtrain optimizer.") + offers("lmtrain trainer.") + ["model.head=", "model.tie_weights=", "model.init="]:
        for offer in offers(f"lmtrain {key}"):
            found: Any = check_settings(offer)
            assert found is not None, offer
            tried += 1
    assert tried > 20
    for group in ("model", "optimizer", "schedule", "tokenizer"):
        assert len(offers(f"lmtrain {group}=")) >= 4
        assert all("Averaging" not in offer for offer in offers(f"lmtrain {group}."))


def check_settings(override: str) -> Any:
    """The settings with it, or None where its value is none; what goes with what is another matter."""
    try:
        return check_overrides(["model.embed_size=512", "optimizer.momentum=0", override])
    except Exception as error:
        return None if "is not" in str(error) or "must be" in str(error) or "does not exist" in str(error) else str(error)


def test_options_and_commands_are_those_of_the_commands(place: Path) -> None:
    assert set(COMMANDS) <= set(offers("lmtrain "))
    assert {"--output", "--help", "--tokens"} <= set(offers("lmtrain report --"))
    assert offers("lmtrain sample run --device ") == ["cpu", "cuda"]
    assert offers("lmtrain -m model=gru,l") == ["model=gru,logistic", "model=gru,lstm"]
    assert offers("lmtrain help re") == ["report", "rescore"]
    assert offers("lmtrain nothing-there x") == []
    assert "text.txt" in offers("lmtrain evaluate run --text te")
