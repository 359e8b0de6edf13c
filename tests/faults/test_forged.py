"""One value of a checkpoint forged at a time: every leaf of its documents, every tensor, under a manifest that agrees.

What no run could have written ends in exit code 4 naming the file and the field; what a run could have written may change the
result, and does nothing worse. `pytest -m slow tests/faults/test_forged.py` tries all there is, the ordinary suite a share.
"""

import copy
import dataclasses
import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import save
from torch import Tensor

import lmtrain.commands.resuming as resuming
from lmtrain.build import build_limits
from lmtrain.errors import UserError
from lmtrain.files.strict_json import to_json
from lmtrain.inference.drawing import SampleSettings
from lmtrain.inference.evaluate import evaluate
from lmtrain.inference.sample import sample_text
from lmtrain.saved import Trained, load_lines
from lmtrain.settings import reading
from lmtrain.tasks.choose import open_task
from lmtrain.tasks.opening import open_saved
from lmtrain.training import checkpoint as checkpoints
from lmtrain.training.checkpoint import find_checkpoint, load_checkpoint
from lmtrain.training.loop import steps
from lmtrain.training.state import TrainState

COMMON = ["TRAIN", "trainer.num_steps=14", "trainer.evaluate_every=3", "trainer.sample_tokens=0", "trainer.log_every=4",
          "trainer.batch_size=4", "trainer.chunk_length=16", "tokenizer=word"]  # fmt: skip
RUNS = {
    "lstm": ["model=lstm", "optimizer.averaging=ema", "schedule=plateau", "model.dropout=0.2", "tokenizer=char"],
    "gru": ["model=gru", "optimizer=sgd", "optimizer.learning_rate=1", "optimizer.momentum=0.9", "optimizer.averaging=nt_asgd",
            "optimizer.patience=1", "trainer.backward_length=20", "model.num_layers=2"],
    "window": ["model=window", "optimizer=rmsprop", "optimizer.momentum=0.5", "model.num_averages=2", "model.average_span=3",
               "tokenizer=byte", "trainer.random_chunk_length=true"],
    "sampled": ["model=gru", "model.head=sampled", "model.num_samples=4", "model.proposal=unigram", "optimizer=sparse_adam"],
    "adaptive": ["model=elman", "model.head=adaptive", "model.cutoffs=[3,6]", "optimizer=adagrad", "schedule=cosine",
                 "trainer.on_nonfinite=rollback"],
    "direct": ["model=lstm", "model.maxent_order=3", "model.maxent_table=1024", "optimizer=adamw", "model.tie_weights=true",
               "model.project=true"],
}  # fmt: skip
RUNS = {name: [*COMMON, *settings] for name, settings in RUNS.items()} | {
    "ngram": ["data=text", "data.path=text.txt", "tokenizer=word", "model=ngram", "model.order=3", "trainer.num_threads=1"]
}
if find_spec("tokenizers"):  # of the extra `subword`; without it test_subword.py skips, and says so
    RUNS["bpe"] = [*COMMON, "model=lstm", "tokenizer=bpe", "tokenizer.vocab_size=260", "data.normalize=nfc"]
CLASSIFIERS = ["task=classify", "data.path=labelled", "trainer.batch_size=7", "trainer.num_threads=1", "trainer.log_every=4"]
RUNS |= {
    "classifier": [*CLASSIFIERS, "model.embed_size=4", "model.hidden_sizes=[3]", "trainer.num_epochs=2"],
    "indicators": [*CLASSIFIERS, "model=logistic", "model.ngrams=2", "trainer.num_epochs=2"],
    "naive Bayes": [*CLASSIFIERS, "model=naive_bayes"],
}
SAVED = Path(__file__).parents[1] / "fixtures" / "saved"
NEW = (  # older checkpoints lack them
    "state.saved_step", "state.trouble", "state.num_stale", "state.evaluation_seconds", "state.includes_evaluation",
)  # fmt: skip
SILENT = {("model.json", "task", "removed"), ("model.json", "task", "renamed"), ("tokenizer.json", "normalize", "removed")}
"""What means the usual: a language model, and a text that is read as it is. Only a run that goes on knows better."""
QUICK = {"lstm": 83, "gru": 83, "ngram": 41, "mixture": 83}  # of so many values one is tried in the ordinary suite
QUICK |= {"bpe": 397} if "bpe" in RUNS else {}
QUICK |= {"classifier": 163, "indicators": 163, "naive Bayes": 163}


class Forgery(NamedTuple):
    """One changed value; `must_fail` where no run could have written it."""

    file: str
    field: str  # where it is, as an error names it
    what: str
    must_fail: bool
    content: Callable[[], bytes]  # of the whole file


# ---- documents


def iter_leaves(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths to all values in a document, those that hold others too; of long lists the first and the last."""
    if path:
        yield path
    if isinstance(node, dict):
        for key in node:
            yield from iter_leaves(node[key], (*path, key))
    elif isinstance(node, list):
        for number in sorted({0, len(node) - 1}) if node else ():
            yield from iter_leaves(node[number], (*path, number))


def iter_replacements(value: Any, is_setting: bool) -> Iterator[tuple[Any, bool]]:
    """Other values, and whether they certainly are not what a run writes there; of settings a few (see test_settings.py)."""
    if is_setting:
        yield from ((other, False) for other in ("x\x1b[31m", None, [], -1, True, 2**62, 1e308))
        return
    wrong_type = [text for text in ("x", "", [], {}, [1], {"a": 1}, "\x1b[31m") if type(text) is not type(value)]
    yield from ((other, True) for other in wrong_type)
    if not isinstance(value, bool):
        yield from ((flag, True) for flag in (True, False))
    if value is not None:
        yield None, not isinstance(value, float)
    if isinstance(value, bool):
        yield not value, False
        yield from ((number, True) for number in (0, 1, -1, 0.5))
    elif isinstance(value, int):
        yield from ((other, True) for other in (-1, -(2**70), 2**62, 10**4000, value + 0.5, float(value), -0.0, 1e308))
        yield from ((other, False) for other in (0, 1, value + 1, value - 1))
    elif isinstance(value, float):
        yield from ((other, True) for other in (-1e308, 1e308, 10**4000))
        yield from ((other, False) for other in (0, -1, -0.0, value + 1, value / 2, -value))
    elif value is None:
        yield from ((other, False) for other in (0, 1, -1, 2**62, 0.5))
    elif isinstance(value, str):
        yield from ((other, False) for other in (value + "x", value[1:], value.upper(), value + "\x1b[31m", "0" * len(value)))


def iter_documents(document: Any) -> Iterator[tuple[str, str, bool, Callable[[], bytes]]]:
    """Every document with one change: where, what, whether no run could have written it, and the whole."""
    for path in iter_leaves(document):
        *parents, key = path
        is_setting = "settings" in parents
        field = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")

        def changed(change: Callable[[Any], Any], parents: list[Any] = parents) -> Callable[[], bytes]:
            def content() -> bytes:
                whole = copy.deepcopy(document)
                change(_at(whole, parents))
                return json.dumps(whole).encode()

            return content

        for value, is_wrong in iter_replacements(_at(document, path), is_setting):
            is_wrong = is_wrong and not (value is None and field in NEW)
            replaced = changed(lambda node, key=key, value=value: node.__setitem__(key, value))
            yield field, f":= {value!r:.30}", is_wrong, replaced
        is_name = isinstance(key, str)
        is_wrong = is_name and not is_setting and field not in NEW
        yield field, "removed", is_wrong, changed(lambda node, key=key: node.__delitem__(key))
        if is_name:
            yield field, "renamed", True, changed(lambda node, key=key: node.__setitem__(key + "s", node.pop(key)))
            added = changed(lambda node: node.__setitem__("other\x1b[31m", 1))
            yield field.rpartition(".")[0], "added to", True, added


def _at(node: Any, path: Sequence[Any]) -> Any:
    for part in path:
        node = node[part]
    return node


# ---- tensors


def iter_tensors(tensors: dict[str, Tensor]) -> Iterator[tuple[str, str, bool, Callable[[], bytes]]]:
    """The tensors of a file with one of them changed: where, what, whether no run could have written it, and the whole."""
    for name, tensor in tensors.items():
        begins_at_0 = f"{name.removesuffix('.step')}.sum" in tensors  # Adagrad counts before the first step
        for what, other, is_wrong in iter_changes(name, tensor, begins_at_0):
            yield name, what, is_wrong, partial(save, tensors | {name: other})
        rest = {other: tensors[other] for other in tensors if other != name}
        yield name, "removed", name != "earlier", partial(save, rest)
        yield name, "renamed", True, partial(save, rest | {f"{name}s": tensor})
        yield name, "added to", True, partial(save, tensors | {f"{name}\x1b[31m": tensor.clone()})


def iter_changes(name: str, tensor: Tensor, begins_at_0: bool) -> Iterator[tuple[str, Tensor, bool]]:
    """What, the changed tensor, and whether no run could have written it."""
    flat = tensor.flatten()
    is_count = name.endswith(".step")
    shapes = {
        "()": flat[:1].sum().to(tensor.dtype), "one more": torch.cat([flat, flat[:1]]), "one fewer": flat[:-1].clone(),
        "empty": flat[:0].clone(), "ten times": flat.repeat(10), "flat": flat.clone(), "another axis": tensor[None].clone(),
        "transposed": tensor.movedim(0, -1).contiguous() if tensor.dim() else tensor,
    }  # fmt: skip
    for shape, other in shapes.items():
        if other.shape != tensor.shape:
            yield shape, other, not (tensor.dim() == 1 and re.match(r"(\d+\.)?order_|valid|test|train_start", name))
    for dtype in (torch.float64, torch.float32, torch.float16, torch.int64, torch.int32, torch.uint8, torch.bool):
        if dtype is not tensor.dtype:
            yield str(dtype), tensor.to(dtype), True
    if not tensor.numel():
        return
    values: list[tuple[float, bool]] = [(-1, is_count or not tensor.is_floating_point()), (0, is_count and not begins_at_0)]
    if tensor.is_floating_point():
        values += [(torch.nan, True), (torch.inf, True), (-torch.inf, "log_" not in name), (0.5, is_count), (1e30, is_count)]
    elif tensor.dtype is torch.uint8:  # text in UTF-8
        values = [(0, False), (255, True)]
    else:
        is_any = "keys" in name or name in ("counts_VC", "texts_C")  # of other data they may be larger
        values += [(1 << 20, not is_any), (torch.iinfo(tensor.dtype).max, True), (torch.iinfo(tensor.dtype).min, True)]
    is_square = name.endswith(("exp_avg_sq", "square_avg", ".sum"))
    for place in {0, tensor.numel() - 1}:
        for value, is_wrong in values:
            other = tensor.flatten().clone()
            other[place] = value
            yield f"[{place}] := {value}", other.view(tensor.shape), is_wrong or (is_square and value < 0)


# ---- who reads them


class Forger:
    """A trained run, copies of whose newest checkpoint are changed and read in every way."""

    def __init__(self, run: Path, where: Path) -> None:
        original = find_checkpoint(run, "last")
        self.directory = where / original.name
        shutil.copytree(original, self.directory)
        self.whole = load_checkpoint(original)
        self.files = {file.name: file.read_bytes() for file in original.iterdir()}
        self.forged = "manifest.json"
        self.doors = [self.use]
        if (run / "settings.json").exists():
            self.doors.append(self.resume)
            self._know(run)

    def _know(self, run: Path) -> None:
        """What a run knows that goes on."""
        read = reading.read_config(json.loads((run / "settings.json").read_text()))
        trainer = dataclasses.replace(read.trainer, num_steps=1 << 52)
        self.settings = dataclasses.replace(read, trainer=trainer)
        self.task = open_task(self.settings, torch.device("cpu"))

    def iter_forgeries(self) -> Iterator[Forgery]:
        """All of them."""
        for name, document in self.whole.documents.items():
            for forgery in iter_documents(document):
                forged = Forgery(f"{name}.json", *forgery)
                yield forged._replace(must_fail=False) if forged[:3] in SILENT else forged
        for name, tensors in self.whole.tensors.items():
            for forgery in iter_tensors(tensors):
                forged = Forgery(f"{name}.safetensors", *forgery)
                is_any = (name == "lines" and could_be_hashes(forged)) or (name == "features" and could_be_keys(forged))
                yield forged._replace(must_fail=False) if is_any else forged

    def forge(self, file: str, content: bytes) -> None:
        (self.directory / self.forged).write_bytes(self.files[self.forged])
        self.forged = file
        (self.directory / file).write_bytes(content)
        manifest = json.loads(self.files["manifest.json"])
        manifest["files"][file] = {"size_bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        manifest["sha256"] = checkpoints._fingerprint(manifest)
        (self.directory / "manifest.json").write_text(json.dumps(manifest))

    def resume(self) -> None:
        """Loads the state, takes two steps, evaluates, and has it saved."""
        state = TrainState(self.task.learner(), self.task.wording)
        resuming.load_state(state, self.directory, self.task)
        for _, _ in zip(range(2), steps(state, self.task.batches, build_limits(self.settings)), strict=False):
            pass
        with state.learner.evaluated() as evaluated:
            self.task.score(evaluated)
        state.learner.after_evaluation(2.0)
        to_json(state.document())
        for tensors in state.tensors().values():
            save({name: tensor.contiguous() for name, tensor in tensors.items()})

    def use(self) -> None:
        """Loads the model, evaluates it and samples from it."""
        trained = open_saved(self.directory)
        if not isinstance(trained, Trained):
            trained.evaluate("valid")
            return
        load_lines(trained)
        text = dataclasses.replace(trained.texts["valid"], ids=trained.texts["valid"].ids[:20])
        evaluate(trained.model, text, trained.tokenizer)
        sample_text(trained.model, trained.tokenizer, "the", SampleSettings(max_tokens=2))


def write_labelled(directory: Path) -> None:
    """Texts with labels, for classifiers."""
    directory.mkdir()
    for name, count in (("train", 30), ("dev", 6), ("test", 5)):
        lines = [f"{'good' if n % 2 else 'bad'} {'fine' if n % 2 else 'dull'} film {n % 4}\n" for n in range(count)]
        (directory / f"{name}.txt").write_text("".join(lines), encoding="utf-8")


def could_be_hashes(forgery: Forgery) -> bool:
    """Whether another text has such hashes: any ascending numbers will do. An imported model has none of training."""
    return forgery.what.startswith("[") or forgery.what in ("one fewer", "empty") or forgery[1:3] == ("train.0", "removed")


def could_be_keys(forgery: Forgery) -> bool:
    """Whether other texts have such n-grams: fewer of them. Then it is the weights that do not fit."""
    return forgery.what in ("one fewer", "empty")


def read(forger: Forger, forgery: Forgery) -> str:
    """How a forged checkpoint is taken: nothing, or what is wrong, for this test to fail with."""
    forger.forge(forgery.file, forgery.content())
    refused = []
    unread = {"training": forger.use, "texts": forger.resume, "lines": forger.resume}.get(forgery.file.partition(".")[0])
    doors = [door for door in forger.doors if door != unread]
    for door in doors:
        try:
            door()
        except UserError as error:
            message = str(error)
            if error.exit_code != 4:
                return f"{door.__name__} ends with {error.exit_code}: {message}"
            if forgery.field == "corpus" and "The text has changed since" in message:
                return ""
            if not forgery.must_fail and "its probabilities are not numbers" in message:  # of a weight of 1e30
                return ""
            if not re.search(r"step-[\d-]+/\w+\.(json|safetensors): ", message) or "\n" in message:
                return f"{door.__name__} does not name the file: {message}"
            if forgery.file == "subword.json":  # another library's, which is believed or not as a whole
                refused.append(door)
                continue
            if forgery.must_fail and re.sub(r"\[\d+\]$", "", forgery.field).rpartition(".")[2] not in message:
                return f"{door.__name__} does not name the field: {message}"
            refused.append(door)
        except Exception as error:
            return f"{door.__name__}: {type(error).__name__}: {error}"
    return f"is accepted by {len(doors) - len(refused)} of {len(doors)}" if forgery.must_fail and refused != doors else ""


@pytest.mark.parametrize(
    ("name", "share"),
    [*QUICK.items(), *(pytest.param(name, 1, marks=pytest.mark.slow, id=f"{name}-all") for name in [*RUNS, "mixture"])],
)
def test_what_no_run_wrote_is_refused_by_file_and_field(
    name: str, share: int, place: Path, tmp_path: Path, call: Callable[..., Any]
) -> None:
    if name == "mixture":
        shutil.copytree(SAVED / name, "forged")
    else:
        write_labelled(Path("labelled"))
        assert call(*RUNS[name], "hydra.run.dir=forged").code == 0
    forger = Forger(Path("forged"), tmp_path)
    for door in forger.doors:
        door()
    forgeries = list(forger.iter_forgeries())[::share]
    problems = [(f, problem) for f in forgeries if (problem := read(forger, f))]
    print(f"{name}: {len(forgeries)} forgeries, {sum(f.must_fail for f in forgeries)} of which no run could have written")
    assert not problems, "\n".join(f"{f.file}: {f.field} {f.what}: {problem}" for f, problem in problems)


def test_moments_of_one_number_are_refused_before_a_kernel_writes_past_them(place: Path, call: Callable[..., Any]) -> None:
    """Fused Adam ended the process with SIGSEGV, or "malloc(): smallbin double linked list corrupted"."""
    original = find_checkpoint("run", "last")
    forger = Forger(place / "run", place / "elsewhere")
    training = forger.whole.tensors["training"]
    moments = {name: torch.tensor(5.0) for name in training if name.endswith(".exp_avg")}
    forger.forge("training.safetensors", save(training | moments))
    shutil.rmtree(original)
    shutil.copytree(forger.directory, original)
    ended = call("resume=run", "trainer.num_steps=8")
    assert ended.code == 4
    assert "training.safetensors: optimizer.embedding.weight.exp_avg has shape () instead of (16, 6)" in ended.err
