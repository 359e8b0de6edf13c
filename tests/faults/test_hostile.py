"""Files made to harm: the payload does not run, nothing is allocated on their word, and the refusal is in words.

`forge` writes what an attacker would: any content, under a manifest whose hashes are right.
"""

import hashlib
import json
import pickle
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save

from lmtrain.files.durable import FileRecord
from lmtrain.training import checkpoint as checkpoints
from lmtrain.training.checkpoint import find_checkpoint, load_checkpoint, save_checkpoint

Call = Callable[..., Any]
CANARY = "canary.txt"
EVERY_DOOR = [["sample", "run"], ["evaluate", "run"], ["score", "run", "text.txt"], ["mix", "run", "run", "--output", "mixed"]]


class Payload:
    """What writes a file as soon as it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (CANARY, "w"))


def forge(run: Path, **files: bytes) -> Path:
    """Replaces files (name_json=..., name_safetensors=...) of the best checkpoint of `run` and makes the manifest agree."""
    directory = find_checkpoint(run, "best")
    manifest = json.loads((directory / "manifest.json").read_text())
    for key, content in files.items():
        name = ".".join(key.rsplit("_", 1))
        (directory / name).write_bytes(content)
        manifest["files"][name] = vars(FileRecord(len(content), hashlib.sha256(content).hexdigest()))
    manifest["sha256"] = checkpoints._fingerprint(manifest)
    (directory / "manifest.json").write_text(json.dumps(manifest))
    return directory


def changed(run: str, name: str, *path: str, value: Any) -> bytes:
    """The document `name` of the best checkpoint with the value at `path` replaced."""
    document = load_checkpoint(find_checkpoint(run)).documents[name]
    node = document
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    return json.dumps(document).encode()


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


# ---- code


@pytest.mark.parametrize("door", EVERY_DOOR, ids=lambda door: door[0])
@pytest.mark.parametrize("file", ["model_safetensors", "tokenizer_json", "model_json", "texts_safetensors"])
def test_a_malicious_pickle_in_a_run_does_not_run(file: str, door: list[str], place: Path, call: Call) -> None:
    forge(place / "run", **{file: pickle.dumps(Payload())})
    ended = call(*door)
    assert ended.code == 4
    assert "Traceback" not in ended.err
    assert not (place / CANARY).exists()
    pickle.loads(pickle.dumps(Payload())).close()
    assert (place / CANARY).exists(), "the payload is a payload"


def test_a_malicious_pickle_does_not_run_on_resuming_either(place: Path, call: Call) -> None:
    forge(place / "run", training_json=pickle.dumps(Payload()))
    assert call("resume=run", "trainer.num_steps=8").code == 4
    assert not (place / CANARY).exists()


def test_a_target_in_a_setting_is_refused_wherever_it_stands(place: Path, call: Call) -> None:
    target = {"_target_": "os.system", "_args_": [f"touch {CANARY}"]}
    ended = call("TRAIN", "model._target_=os.system")
    assert (ended.code, "model._target_ does not exist" in ended.err) == (2, True)
    ended = call("TRAIN", "+model._target_=os.system", f"+model._args_=[touch {CANARY}]")
    assert ended.code == 2

    own = place / "own"
    own.mkdir()
    (own / "mine.yaml").write_text(f"defaults: [config, _self_]\nmodel: {json.dumps(target)}\n")
    ended = call("TRAIN", "--config-dir", str(own), "--config-name", "mine")
    assert ended.code == 2
    assert "_target_" in ended.err

    settings = json.loads((place / "run" / "settings.json").read_text())
    (place / "run" / "settings.json").write_text(json.dumps(settings | {"model": settings["model"] | target}))
    ended = call("resume=run")
    assert (ended.code, "model._target_ does not exist" in ended.err) == (4, True)

    forge(place / "run", model_json=changed("run", "model", "settings", "_target_", value="os.system"))
    ended = call("sample", "run")
    assert (ended.code, "model._target_ does not exist" in ended.err) == (4, True)
    assert not (place / CANARY).exists()


def test_an_interpolation_in_a_run_is_never_resolved(place: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "hunter2")
    settings = json.loads((place / "run" / "settings.json").read_text())
    settings["data"]["path"] = "${oc.env:SECRET}"
    (place / "run" / "settings.json").write_text(json.dumps(settings))
    ended = call("resume=run")
    assert ended.code == 3
    assert "/${oc.env:SECRET}" in ended.err, "it is the name of a file, and there is none"
    assert "hunter2" not in ended.err

    forge(place / "run", model_json=changed("run", "model", "settings", "hidden_size", value="${oc.env:SECRET}"))
    ended = call("sample", "run")
    assert ended.code == 4
    assert "model.hidden_size=${oc.env:SECRET} is not usable" in ended.err
    assert "hunter2" not in ended.err


# ---- memory


def test_a_tensor_of_terabytes_is_refused_before_anything_is_allocated(place: Path, call: Call) -> None:
    header = json.dumps(
        {"embedding.weight": {"dtype": "F32", "shape": [1 << 20, 1 << 20], "data_offsets": [0, 1 << 42]}}
    ).encode()
    forge(place / "run", model_safetensors=len(header).to_bytes(8, "little") + header)
    before = peak_bytes()
    ended = call("sample", "run")
    assert ended.code == 4
    assert "model.safetensors is damaged" in ended.err
    assert peak_bytes() - before < 50_000_000


@pytest.mark.parametrize(
    ("name", "value"),
    [("hidden_size", 65536), ("hidden_sizes", [65536] * 20), ("hidden_sizes", [8] * 100_000), ("num_layers", 10**30),
     ("embed_size", 65536), ("maxent_table", 1 << 24)],
)  # fmt: skip
def test_a_model_of_absurd_size_in_a_checkpoint_is_refused_before_anything_is_allocated(
    name: str, value: Any, place: Path, call: Call
) -> None:
    forge(place / "run", model_json=changed("run", "model", "settings", name, value=value))
    before = peak_bytes()
    ended = call("sample", "run")
    if name == "maxent_table":
        assert ended.code == 0, "without hashed n-grams their table is never made"
    else:
        assert ended.code == 4, ended.err
    assert peak_bytes() - before < 200_000_000


def test_a_mixture_of_absurdly_many_models_is_refused(place: Path, call: Call) -> None:
    part = load_checkpoint(find_checkpoint("run")).documents["model"]
    document = {"components": [part] * 10_000, "weights": [1e-4] * 10_000}
    forge(place / "run", model_json=json.dumps(document).encode())
    ended = call("sample", "run")
    assert ended.code == 4
    assert "model.json: components has 10000 values. Allowed is a list of 1 to 256" in ended.err


@pytest.mark.parametrize("tokenizer", ["char", "byte", "word"])
def test_a_line_of_ten_million_characters_needs_little_memory(tokenizer: str, tmp_path: Path) -> None:
    """Correct, and in memory that does not grow with the line: for words too, where there are blanks in it."""
    (tmp_path / "line.txt").write_text("ab cdefghi" * 1_000_000, encoding="utf-8")
    program = (
        "import resource, sys\n"
        "from lmtrain.data.corpus import load_corpus\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "corpus = load_corpus('line.txt', tokenizer=sys.argv[1], cache_dir='cache')\n"
        "print(sum(s.num_chars for s in (corpus.train, corpus.valid, corpus.test)),\n"
        "      resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    command = [sys.executable, "-c", program, tokenizer]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=True)
    num_chars, kilobytes = map(int, result.stdout.split())
    assert num_chars == 10_000_000 + (3 if tokenizer == "word" else 0), "each split of words gets its line end"
    assert kilobytes < 120_000


# ---- what does not fit together


def test_weights_of_another_shape_are_said_in_one_line(place: Path, call: Call) -> None:
    forge(place / "run", model_json=changed("run", "model", "settings", "hidden_size", value=9))
    ended = call("sample", "run")
    assert ended.code == 4
    assert "model.safetensors: head.weight_VE has shape (16, 8) instead of (16, 9)" in ended.err
    assert len(ended.err.splitlines()) == 1


def test_weights_that_are_not_finite_end_sampling_with_4(place: Path, call: Call) -> None:
    file = find_checkpoint("run") / "model.safetensors"
    weights = load_file(file)
    weights["embedding.weight"].fill_(torch.nan)
    forge(place / "run", model_safetensors=save(weights))
    ended = call("sample", "run")
    assert ended.code == 4
    assert "model.safetensors: embedding.weight holds nan at [0, 0]" in ended.err


def test_a_checkpoint_of_something_else_is_said_to_be_one(place: Path, call: Call) -> None:
    save_checkpoint(place / "other", 1, {"model": {"w": torch.ones(2)}}, {"model": {}, "tokenizer": {}, "texts": {}})
    ended = call("sample", "other")
    assert ended.code == 4
    assert "tokenizer.json: format is None. Allowed is 1" in ended.err
