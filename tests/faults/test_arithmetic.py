"""A run that goes on in another arithmetic than before says so; `run.json` keeps what each process computed with."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import lmtrain.build as build
import lmtrain.ops.backends as backends
import lmtrain.training.arithmetic as arithmetic

Call = Callable[..., Any]
NO_LONGER = "the run is no longer the one it was"
BF16 = "trainer.precision=auto"


def warnings(ended: Any) -> list[str]:
    assert ended.code == 0, ended.err
    return [line for line in ended.out.splitlines() if NO_LONGER in line]


def sessions(run: str) -> list[dict[str, Any]]:
    return [session.get("arithmetic") for session in json.loads(Path(run, "run.json").read_bytes())["sessions"]]


def test_what_auto_became_is_kept_and_compared(place: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "has_native_bfloat16", lambda device: True)
    assert warnings(call("TRAIN", BF16, "hydra.run.dir=auto")) == []
    assert warnings(call("resume=auto", "trainer.num_steps=8")) == [], "nothing changed"
    monkeypatch.setattr(build, "has_native_bfloat16", lambda device: False)
    assert warnings(call("resume=auto", "trainer.num_steps=10")) == [
        f"Resuming with products in float32 instead of bfloat16: {NO_LONGER}."
    ]
    assert warnings(call("resume=auto", "trainer.num_steps=12")) == [], "it is what it has become"
    assert [session["precision"] for session in sessions("auto")] == ["bfloat16", "bfloat16", "float32", "float32"]
    assert "lstm in bfloat16 on cpu" in sessions("auto")[0]["backends"]


def test_another_backend_is_warned_of_when_it_is_chosen(place: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(backends.AUTO, "cpu", ("reference",))
    assert warnings(call("TRAIN", "hydra.run.dir=other")) == []
    monkeypatch.setitem(backends.AUTO, "cpu", ("eager",))
    lines = warnings(call("resume=other", "trainer.num_steps=8"))
    assert len(lines) == 2, "the recurrence and the output layer"
    assert lines[0] == f"lstm in float32 on cpu is computed by eager instead of reference: {NO_LONGER}."
    first, second = sessions("other")
    assert first["backends"]["lstm in float32 on cpu"] == "reference"
    assert second["backends"]["lstm in float32 on cpu"] == "eager"


def test_threads_limits_and_versions_are_compared(place: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    assert warnings(call("TRAIN", "trainer.num_threads=0", "hydra.run.dir=more")) == []
    torch.set_num_threads(2)
    assert warnings(call("resume=more", "trainer.num_steps=8")) == [
        f"Resuming with number of threads 2 instead of 1: {NO_LONGER}."
    ]
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    monkeypatch.setattr(arithmetic, "processor_name", lambda: "another")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "OTHER")
    monkeypatch.setattr(torch, "__version__", "2.9.9")
    (line,) = warnings(call("resume=more", "trainer.num_steps=10"))
    for words in ("processor another", "limits on instructions ONEDNN_MAX_CPU_ISA=AVX2", "PyTorch 2.9.9"):
        assert f"{words} instead of " in line
    assert re.search(r"instructions OTHER( AMX)? instead of ", line)


def test_a_process_that_saved_nothing_does_not_count(
    place: Path, call: Call, monkeypatch: pytest.MonkeyPatch, at_step: Callable[..., None]
) -> None:
    """The run goes on from a checkpoint of the process before it."""
    monkeypatch.setattr(build, "has_native_bfloat16", lambda device: True)
    assert warnings(call("TRAIN", BF16, "hydra.run.dir=dies")) == []
    monkeypatch.setattr(build, "has_native_bfloat16", lambda device: False)

    def die(_: object) -> None:
        raise RuntimeError("killed")

    at_step({7: die})
    with pytest.raises(RuntimeError, match="killed"):
        call("resume=dies", "trainer.num_steps=8")
    at_step({})
    assert len(warnings(call("resume=dies", "trainer.num_steps=8"))) == 1


def test_counts_have_no_arithmetic(place: Path, call: Call) -> None:
    ended = call("data=text", "data.path=text.txt", "model=ngram", "hydra.run.dir=counts")
    assert warnings(ended) == []
    assert sessions("counts") == [{}]


@pytest.mark.parametrize("said", [None, 3, [], {"backends": 3, "precision": {}}, {"backends": {"lstm in float32 on cpu": 5}}])
def test_a_record_of_any_form_is_no_reason_to_fail(said: Any, place: Path, call: Call) -> None:
    """`run.json` can be written by anybody, and checkpoints older than this record have none."""
    document = json.loads((place / "run" / "run.json").read_bytes())
    document["sessions"][-1]["arithmetic"] = said
    (place / "run" / "run.json").write_text(json.dumps(document), encoding="utf-8")
    assert warnings(call("resume=run", "trainer.num_steps=8")) == []


def test_a_record_of_others_reaches_no_terminal_raw(place: Path, call: Call) -> None:
    document = json.loads((place / "run" / "run.json").read_bytes())
    document["sessions"][-1]["arithmetic"] = {"torch": "\x1b[31m" + "x" * 1000, "backends": {"lstm in float32 on cpu": "\x9b"}}
    (place / "run" / "run.json").write_text(json.dumps(document), encoding="utf-8")
    lines = warnings(call("resume=run", "trainer.num_steps=8"))
    assert len(lines) == 2
    assert r"\x1b[31m" in lines[0]
    assert len(lines[0]) < 300
    assert not re.search("[\x1b\x9b]", "".join(lines))


def test_a_record_that_cannot_be_written_ends_nothing(place: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    from lmtrain.training.run_directory import RunDirectory

    note = RunDirectory.note

    def full(self: RunDirectory, **facts: Any) -> None:
        if "arithmetic" in facts:
            raise OSError(28, "No space left on device")
        note(self, **facts)

    monkeypatch.setattr(RunDirectory, "note", full)
    ended = call("TRAIN", "hydra.run.dir=full")
    assert ended.code == 0
    assert "run.json cannot be written" in ended.out


def test_what_is_computed_after_a_run_is_none_of_it(place: Path, call: Call, caplog: pytest.LogCaptureFixture) -> None:
    document = json.loads((place / "run" / "run.json").read_text(encoding="utf-8"))
    document["sessions"][-1]["arithmetic"]["backends"]["lstm in float64 on cpu"] = "reference"
    (place / "run" / "run.json").write_text(json.dumps(document), encoding="utf-8")
    assert call("resume=run", "trainer.num_steps=8").code == 0
    caplog.clear()
    backends.choose("eager", backends.Call("lstm", "cpu", torch.float64, {}))
    assert caplog.messages == []
