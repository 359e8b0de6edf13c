"""Thousands of strange inputs: each is usable or refused in words; nothing crashes, hangs, or takes memory on its word.

The ordinary suite tries a few; `pytest -m slow tests/faults/test_fuzz.py` tries thousands.
"""

import copy
import dataclasses
import hashlib
import json
import math
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save

import lmtrain.application as application
import lmtrain.commands.resuming as resuming
from lmtrain.build import build_limits
from lmtrain.data.encoded import EncodedText
from lmtrain.data.tokenizer import load_tokenizer
from lmtrain.errors import CheckpointError, DataError, SettingsError, UserError
from lmtrain.inference.drawing import SampleSettings
from lmtrain.inference.evaluate import evaluate
from lmtrain.inference.sample import sample_text
from lmtrain.models.arpa import read_arpa
from lmtrain.saved import load_trained
from lmtrain.settings import comparing, reading
from lmtrain.tasks.choose import open_task
from lmtrain.training import checkpoint as checkpoints
from lmtrain.training.checkpoint import find_checkpoint, load_checkpoint
from lmtrain.training.loop import steps
from lmtrain.training.state import TrainState

DTYPES = [torch.int64, torch.int32, torch.float16, torch.float64, torch.bool]
FEW_AND_MANY = [1, pytest.param(20, marks=pytest.mark.slow)]

odd_numbers = [0, -1, 1, 2**31, 2**63, 10**30, 1e308, -0.0, 0.5, True]
numbers = st.one_of(st.integers(-3, 70), st.integers(), st.floats(allow_subnormal=False), st.sampled_from(odd_numbers))
leaves = st.one_of(numbers, st.none(), st.booleans(), st.text(max_size=6), st.sampled_from(["tensor", "${x}", "cpu", "char"]))
documents = st.recursive(
    leaves,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=6), inner, max_size=4)),
    max_leaves=8,
)  # fmt: skip


def tried(num_examples: int, strategy: Any, check: Callable[[Any], None]) -> None:
    """Runs `check` on so many examples of `strategy`."""
    torch.set_flush_denormal(False)  # which a training of this process has set, and the generator of floats does not expect

    @settings(max_examples=num_examples, deadline=None, suppress_health_check=list(HealthCheck))
    @given(strategy)
    def run(example: Any) -> None:
        check(example)

    run()


# ---- the settings parser


KEYS = [
    *application.GROUPS, "resume", "hydra.run.dir", "trainer.num_steps", "trainer.seed", "model.hidden_size", "model.kind",
    "model.hidden_sizes", "model.cutoffs", "model.dropout", "model.cell", "data.path", "optimizer.learning_rate",
]  # fmt: skip
PIECES = [
    "", "=", ",", "[", "]", "{", "}", "(", ")", "'", '"', "\\", "${", "}", "~", "+", "++", "@", ":", ".", " ", "\n", "\t",
    "null", "true", "nan", "-inf", "1e999", "0x10", "choice(", "range(", "glob(*)", "interval(", "sort(", "???", "_target_",
    "lstm", "gru", "1", "-1", "0.5", "9" * 400, "ü", "\x00", "\u2028", "${oc.env:HOME}", "${data.path}", "${trainer}",
]  # fmt: skip
values = st.one_of(st.text(max_size=12), st.lists(st.sampled_from(PIECES), max_size=6).map("".join), numbers.map(str))
overrides = st.one_of(
    st.tuples(st.sampled_from(["", "+", "++", "~"]), st.sampled_from(KEYS), values).map(lambda t: f"{t[0]}{t[1]}={t[2]}"),
    st.lists(st.sampled_from(KEYS + PIECES), max_size=5).map("".join),
)


@pytest.mark.parametrize("many", FEW_AND_MANY)
def test_any_overrides_are_settings_or_refused(many: int) -> None:
    application.register_schemas()

    def check(given: list[str]) -> None:
        with suppress(SettingsError):
            reading.read_config(application.check_overrides(given))

    tried(100 * many, st.lists(overrides, max_size=3), check)


@pytest.mark.parametrize("many", FEW_AND_MANY)
def test_any_settings_file_is_settings_or_refused(many: int) -> None:
    application.register_schemas()
    whole = comparing.config_to_json(reading.read_config(application.check_overrides([])))

    def check(changed: Any) -> None:
        with suppress(SettingsError):
            read = reading.read_config(changed)
            assert reading.read_config(json.loads(json.dumps(comparing.config_to_json(read)))) == read

    tried(60 * many, changes_of(whole), check)


@st.composite
def changes_of(draw: Any, document: Any) -> Any:
    """`document` with one to three of its values replaced, removed or added to."""
    changed = copy.deepcopy(document)
    for _ in range(draw(st.integers(1, 3))):
        node, key = changed, None
        parent: Any = None
        while isinstance(node, (dict, list)) and node and (key is None or draw(st.integers(0, 9)) > 1):
            key = draw(st.sampled_from(list(node))) if isinstance(node, dict) else draw(st.integers(0, min(len(node), 40) - 1))
            parent, node = node, node[key]
        if parent is None:
            return draw(documents)
        match draw(st.integers(0, 5)):
            case 0:
                del parent[key]
            case 1 if isinstance(parent, dict):
                parent[draw(st.text(max_size=6))] = draw(documents)
            case 2 if isinstance(node, (int, float)) and not isinstance(node, bool):
                parent[key] = draw(numbers)
            case _:
                parent[key] = draw(documents)
    return changed


# ---- tokenizers and ARPA files


@pytest.mark.parametrize("many", FEW_AND_MANY)
def test_any_document_is_a_tokenizer_or_refused(many: int) -> None:
    pieces = st.lists(
        st.one_of(st.characters(), st.text(max_size=4), st.sampled_from(["\n", "<unk>", "<eos>"]), leaves), max_size=12
    )
    near = st.fixed_dictionaries(
        {"format": st.sampled_from([1, 1, 1, 2, True]), "name": st.sampled_from(["char", "byte", "word", "bpe", 3])},
        optional={"tokens": st.one_of(pieces, pieces.map(lambda p: [*p, "\n", "<unk>", "<eos>"]), documents)},
    )

    def check(document: Any) -> None:
        try:
            tokenizer = load_tokenizer(document)
        except CheckpointError:
            return
        ids = tokenizer.encode("a ü\n<unk> x")
        assert 0 <= min(ids, default=0) <= max(ids, default=0) < tokenizer.vocab_size
        assert tokenizer.decode(ids)
        assert load_tokenizer(json.loads(json.dumps(tokenizer.to_json()))).to_json() == tokenizer.to_json()

    tried(100 * many, st.one_of(documents, near), check)


ARPA = (
    "\\data\\\nngram 1=4\nngram 2=2\n\n\\1-grams:\n-1\t<s>\t-0.3\n-0.6\t</s>\n-0.4\ta\t-0.2\n-1\t<unk>\t0\n\n"
    "\\2-grams:\n-0.2\t<s> a\n-0.3\ta </s>\n\n\\end\\\n"
)


@pytest.mark.parametrize("many", FEW_AND_MANY)
def test_any_arpa_file_is_a_model_or_refused(many: int, tmp_path: Path) -> None:
    pieces = st.sampled_from(
        ["\n", "\t", " ", "\\", "ngram 1=", "999999999999", "-99", "1e400", "nan", "<s>", "a", "\x00", "=", "-"]
    )

    @st.composite
    def edited(draw: Any) -> bytes:
        text = ARPA
        for _ in range(draw(st.integers(1, 4))):
            begin = draw(st.integers(0, len(text)))
            text = text[:begin] + draw(st.one_of(pieces, st.just(""))) + text[begin + draw(st.integers(0, 5)) :]
        return text.encode()

    def check(content: bytes) -> None:
        (tmp_path / "model.arpa").write_bytes(content)
        try:
            model, tokens = read_arpa(tmp_path / "model.arpa")
        except DataError:
            return
        assert model.vocab_size == len(tokens)
        log_probs_TBV, _ = model.log_probs(torch.zeros(2, 1, dtype=torch.long), model.initial_state(1))
        assert not log_probs_TBV.isnan().any()

    tried(100 * many, st.one_of(edited(), st.binary(max_size=60)), check)


# ---- checkpoints


def forge(directory: Path, name: str, content: bytes) -> None:
    """Replaces a file of a checkpoint and makes the manifest agree, as whoever writes checkpoints can."""
    manifest = json.loads((directory / "manifest.json").read_text())
    (directory / name).write_bytes(content)
    manifest["files"][name] = {"size_bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    manifest["sha256"] = checkpoints._fingerprint(manifest)
    (directory / "manifest.json").write_text(json.dumps(manifest))


def use(path: Path) -> None:
    """Loads a model and uses it, or is told in words why not."""
    with suppress(UserError):
        trained = load_trained(path)
        ids = next(iter(trained.texts.values())).ids[:20] if trained.texts else np.zeros(3, np.int32)
        bill = evaluate(trained.model, EncodedText(ids, 9, 9), trained.tokenizer)
        assert bill.num_tokens == len(ids)
        sample_text(trained.model, trained.tokenizer, "a", SampleSettings(max_tokens=2))


def json_of(document: Any) -> bytes:
    """As JSON, with what JSON does not have as large numbers."""

    def plain(value: Any) -> Any:
        if isinstance(value, float) and not math.isfinite(value):
            return 1e308
        if isinstance(value, dict):
            return {str(key).encode("utf-8", "replace").decode(): plain(item) for key, item in value.items()}
        if isinstance(value, list):
            return [plain(item) for item in value]
        return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value

    return json.dumps(plain(document)).encode()


@pytest.mark.parametrize("many", FEW_AND_MANY)
@pytest.mark.parametrize("name", ["model", "tokenizer", "texts"])
@pytest.mark.parametrize("kind", ["lstm", "ngram"])
def test_any_change_of_a_documents_content_is_usable_or_refused(
    kind: str, name: str, many: int, place: Path, call: Callable[..., Any], tmp_path: Path
) -> None:
    if kind == "ngram":
        assert call("data=text", "data.path=text.txt", "model=ngram", "tokenizer=word", "hydra.run.dir=counted").code == 0
    original = find_checkpoint(place / ("run" if kind == "lstm" else "counted"), "best")
    document = load_checkpoint(original).documents[name]
    directory = tmp_path / "forged"
    shutil.copytree(original, directory)

    def check(changed: Any) -> None:
        forge(directory, f"{name}.json", json_of(changed))
        use(directory)

    tried(25 * many, changes_of(document), check)


@pytest.mark.parametrize("many", FEW_AND_MANY)
@pytest.mark.parametrize("kind", ["lstm", "ngram"])
def test_any_change_of_tensors_is_usable_or_refused(
    kind: str, many: int, place: Path, call: Callable[..., Any], tmp_path: Path
) -> None:
    if kind == "ngram":
        assert call("data=text", "data.path=text.txt", "model=ngram", "tokenizer=word", "hydra.run.dir=counted").code == 0
    original = find_checkpoint(place / ("run" if kind == "lstm" else "counted"), "best")
    files = {name: load_checkpoint(original).tensors[name] for name in ("model", "texts")}
    directory = tmp_path / "forged"
    shutil.copytree(original, directory)

    @st.composite
    def spoilt(draw: Any) -> tuple[str, dict[str, torch.Tensor]]:
        file = draw(st.sampled_from(list(files)))
        tensors = {name: tensor.clone() for name, tensor in files[file].items()}
        name = draw(st.sampled_from(list(tensors)))
        tensor = tensors[name]
        match draw(st.integers(0, 6)):
            case 0:
                del tensors[name]
            case 1:
                tensors[draw(st.sampled_from(["other", "0.x", "order_9.keys"]))] = tensor.clone()
            case 2:
                tensors[name] = tensor.to(
                    draw(st.sampled_from([torch.int64, torch.int32, torch.float16, torch.float64, torch.bool]))
                )
            case 3:
                tensors[name] = tensor.flatten()[: draw(st.integers(0, tensor.numel()))].clone()
            case 4:
                tensors[name] = tensor[None].clone()
            case _ if tensor.numel():
                flat = tensor.flatten()
                for _ in range(draw(st.integers(1, 3))):
                    large = draw(st.sampled_from([-1, 2**31 - 1, 1000, -(2**31)]))
                    flat[draw(st.integers(0, tensor.numel() - 1))] = (
                        math.nan if tensor.is_floating_point() and large < 0 else large
                    )
            case _:
                tensors[name] = torch.zeros(3)
        return file, tensors

    def check(example: tuple[str, dict[str, torch.Tensor]]) -> None:
        file, tensors = example
        for name in files:
            forge(directory, f"{name}.safetensors", save(tensors if name == file else files[name]))
        use(directory)

    tried(40 * many, spoilt(), check)


@pytest.mark.parametrize("many", FEW_AND_MANY)
@pytest.mark.parametrize(
    "features", [["optimizer.averaging=ema", "schedule=plateau"], ["optimizer.averaging=nt_asgd", "optimizer=sgd"]]
)
def test_any_change_of_a_state_goes_on_or_is_refused(
    features: list[str], many: int, place: Path, call: Callable[..., Any], tmp_path: Path
) -> None:
    assert call("TRAIN", *features, "hydra.run.dir=featured").code == 0
    original = find_checkpoint("featured", "last")
    document = load_checkpoint(original).documents["training"]
    read = reading.read_config(json.loads(Path("featured/settings.json").read_text()))
    read = dataclasses.replace(read, trainer=dataclasses.replace(read.trainer, num_steps=1 << 52))
    task = open_task(read, torch.device("cpu"))
    directory = tmp_path / "step-00000006"
    shutil.copytree(original, directory)

    def check(changed: Any) -> None:
        forge(directory, "training.json", json_of(changed))
        state = TrainState(task.learner(), task.wording)
        with suppress(UserError):
            resuming.load_state(state, directory, task)
            next(steps(state, task.batches, build_limits(read)), None)

    tried(40 * many, changes_of(document), check)
