"""Steps that are recorded and replayed: on a GPU by a CUDA graph, otherwise by a tape that stands in for one."""

import logging
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from torch import Generator, Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import lmtrain.config as config
from lmtrain.build import _graphed, build_model
from lmtrain.data.stream import Chunk
from lmtrain.data.tokenizer import ByteTokenizer
from lmtrain.errors import SettingsError
from lmtrain.inference.drawing import SampleSettings
from lmtrain.inference.evaluate import Static, iter_target_log_probs
from lmtrain.inference.sample import generate, read
from lmtrain.inference.writing import Writer
from lmtrain.models.base import NeuralLanguageModel
from lmtrain.ops import backends, linear_cross_entropy
from lmtrain.ops.cuda_graph import Replayed, record_cuda_graph
from lmtrain.ops.native import gradients
from lmtrain.settings import reading
from lmtrain.training import graphed as module
from lmtrain.training.averaging import ExponentialAverage, LastWeights
from lmtrain.training.graphed import GraphedLearner, graphed, why_no_graph
from lmtrain.training.learner import CountLearner, Learner, SequenceLearner, StepReport
from lmtrain.training.optimizer import group_parameters, make_optimizer
from lmtrain.training.schedule import Cosine, OneCycle, Progress

V = 11
T, B = 5, 3


def storages(tensors: Any) -> set[int]:
    return {x.untyped_storage().data_ptr() for x in tree_leaves(tensors) if isinstance(x, Tensor)}


class Tape(TorchDispatchMode):
    """Stands in for a CUDA graph: keeps every operation beneath autograd with the very memory it worked on.

    Recording undoes what it wrote to memory that was there before, because a graph does nothing while it is recorded. To ask
    for a number, or to send one, is refused, as it is on a GPU.
    """

    WAITS = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default, torch.ops.aten.lift_fresh.default)

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any]] = []
        self.made: set[int] = set()
        self.older: set[int] = set()
        self.before: dict[int, tuple[Tensor, Tensor]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in self.WAITS:
            raise RuntimeError("the host waits for the device")
        self.older |= storages((args, kwargs)) - self.made
        for argument, value in zip(func._schema.arguments, args, strict=False):
            if argument.alias_info is not None and argument.alias_info.is_write:
                self._remember(value)
        for argument in func._schema.arguments:
            if argument.name in kwargs and argument.alias_info is not None and argument.alias_info.is_write:
                self._remember(kwargs[argument.name])
        made = func(*args, **kwargs)
        self.made |= storages(made) - self.older
        self.calls.append((func, args, kwargs, made))
        return made

    def _remember(self, written: Any) -> None:
        for x in tree_leaves(written):
            if storages(x) <= self.older:
                self.before.setdefault(x.data_ptr(), (x, x.clone()))

    def undo(self) -> None:
        with torch.no_grad():
            for x, value in self.before.values():
                x.copy_(value)

    def play(self) -> None:
        with torch.no_grad():
            for func, args, kwargs, made in self.calls:
                for old, new in zip(tree_leaves(made), tree_leaves(func(*args, **kwargs)), strict=True):
                    if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():
                        old.copy_(new)


def record_on_tape(work: Callable[[], None], generator: Generator | None) -> Callable[[], None]:
    """In place of `record_cuda_graph`."""
    state, tape = generator and generator.get_state(), Tape()
    with tape, pytest.MonkeyPatch.context() as patch:
        for name in ("tolist", "numpy", "cpu"):  # no tape sees these on a CPU
            patch.setattr(Tensor, name, _refuse)
        patch.setattr(backends, "is_followed", lambda: False)  # nothing follows what a CUDA graph records
        work()
    tape.undo()
    if generator is not None:
        generator.set_state(state)
    return tape.play


def _refuse(*_: object) -> None:
    raise RuntimeError("the host waits for the device")


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """A device, with kernels that a tape can follow where there is no GPU."""
    if request.param == "cpu":
        monkeypatch.setitem(backends.AUTO, "cpu", ("eager",))
        monkeypatch.setattr(linear_cross_entropy, "_check_targets", lambda *_: None)  # a GPU does not look either
        monkeypatch.setattr(gradients, "clip", lambda *_: None)
        monkeypatch.setattr(module, "record_cuda_graph", record_on_tape)
    return torch.device(request.param)


def make(device: torch.device, optimizer: str = "adam", *, ema: bool = False, **changes: Any) -> GraphedLearner:
    """A learner of a small model with everything random that there is."""
    return recording(plain(device, optimizer, ema=ema, **changes))


def recording(learner: SequenceLearner) -> GraphedLearner:
    made = graphed(learner)
    device = learner.generator.device
    made.record = record_on_tape if device.type == "cpu" else record_cuda_graph
    return made


EVERYTHING = config.RecurrentConfig(
    cell=config.Cell.lstm, embed_size=4, hidden_size=4, num_layers=2, tie_weights=True, dropout=0.3, zoneout=0.2,
    weight_drop=0.3, embedding_dropout=0.2, state_policy=config.StatePolicy.line, activation_penalty=1.0, temporal_penalty=1.0,
)  # fmt: skip


def plain(
    device: torch.device,
    optimizer: str = "adam",
    *,
    ema: bool = False,
    settings: config.NeuralConfig = EVERYTHING,
    **changes: Any,
) -> SequenceLearner:
    model = build_model(settings, vocab_size=V, eos_id=0, seed=1)
    assert isinstance(model, NeuralLanguageModel)
    model.to(device)
    groups = group_parameters(model.named_parameters(), 0.0 if optimizer == "sparse_adam" else 1e-3)
    momentum = {"momentum": 0.9} if optimizer == "sgd" else {}
    return SequenceLearner(
        model=model,
        optimizer=make_optimizer(optimizer, groups, learning_rate=0.01, **momentum),
        schedule=Cosine(0.1, 0.0),
        averaging=ExponentialAverage(model.named_parameters(), 0.9) if ema else LastWeights(),
        generator=Generator(device).manual_seed(3),
        learning_rate=0.01,
        clip_norm=0.5,
        l1=1e-4,
        **changes,
    )


def chunks(lengths: list[int]) -> list[tuple[Chunk, Progress]]:
    generator = Generator().manual_seed(5)
    made = []
    for index, length in enumerate(lengths):
        tokens_TB = torch.randint(V, (length + 1, B), generator=generator)
        chunk = Chunk(tokens_TB[:-1], tokens_TB[1:], starts_epoch=index % 6 == 0, epoch=index // 6, index=index % 6)
        made.append((chunk, Progress(step=index, epoch=index / 6, fraction=index / len(lengths))))
    return made


def run(learner: SequenceLearner, lengths: list[int]) -> list[StepReport]:
    return [learner.step(chunk, progress) for chunk, progress in chunks(lengths)]


def assert_same(one: SequenceLearner, other: SequenceLearner) -> None:
    """Weights, moments, averages, carried state and generator, bit by bit."""
    ours, theirs = one.tensors(), other.tensors()
    for file in ours:
        assert ours[file].keys() == theirs[file].keys()
        for name, tensor in ours[file].items():
            assert torch.equal(tensor, theirs[file][name]), name
    assert one.document() == other.document()


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
def test_replayed_steps_equal_eager_ones_bit_for_bit(
    optimizer: str, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    replaying, eager = make(device, optimizer), make(device, optimizer)
    reports = run(replaying, [T] * 9)
    monkeypatch.setattr(module, "EAGER_STEPS", 1000)
    assert run(eager, [T] * 9) == reports
    assert (replaying.num_replayed, eager.num_replayed) == (6, 0)
    assert len({report.learning_rate for report in reports}) == 9
    assert_same(replaying, eager)


def test_the_plain_learner_agrees_within_the_rounding_of_the_rate(device: torch.device) -> None:
    for ours, its in zip(run(make(device), [T] * 9), run(plain(device), [T] * 9), strict=True):
        assert ours.loss == pytest.approx(its.loss, rel=1e-5)
        assert ours.grad_norm == pytest.approx(its.grad_norm, rel=1e-4)


def test_a_chunk_of_another_shape_is_eager_and_replays_go_on(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = [T, 2, T, T, T, T, 2, T, T, 3, T]
    replaying, eager = make(device, ema=True), make(device, ema=True)
    reports = run(replaying, lengths)
    monkeypatch.setattr(module, "EAGER_STEPS", 1000)
    assert run(eager, lengths) == reports
    assert replaying.num_replayed == lengths.count(T) - 3
    assert_same(replaying, eager)


def test_gradients_that_reach_back_are_recorded_too(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    replaying, eager = make(device, overlap=2), make(device, overlap=2)
    reports = run(replaying, [T] * 9)
    monkeypatch.setattr(module, "EAGER_STEPS", 1000)
    assert run(eager, [T] * 9) == reports
    assert replaying.num_replayed > 0
    assert_same(replaying, eager)


@pytest.mark.parametrize("poison", [{6}, {0, 1, 2}, {1, 7}], ids=str)
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_where_the_loss_is_not_finite_nothing_is_updated(
    optimizer: str, poison: set[int], device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    def poisoned(learner: GraphedLearner) -> list[StepReport]:
        bias, reports = learner.model.get_parameter("head.bias_V"), []
        for number, (chunk, progress) in enumerate(chunks([T] * 9)):
            healthy = bias.detach().clone()
            if number in poison:
                bias.data[0] = torch.inf
            reports.append(learner.step(chunk, progress))
            if number in poison:
                assert bias[0] == torch.inf
                bias.data.copy_(healthy)
        return reports

    replaying, eager = make(device, optimizer), make(device, optimizer)
    reports = poisoned(replaying)
    assert [number for number, report in enumerate(reports) if not report.is_finite] == sorted(poison)
    assert replaying.num_replayed > 0
    monkeypatch.setattr(module, "EAGER_STEPS", 1000)
    assert str(poisoned(eager)) == str(reports)  # NaN is not equal to itself
    assert_same(replaying, eager)


def test_a_resumed_run_goes_on_as_if_it_had_not_been_interrupted(device: torch.device) -> None:
    whole, first, second = make(device, ema=True), make(device, ema=True), make(device, ema=True)
    reports = run(whole, [T] * 12)
    steps = chunks([T] * 12)
    for chunk, progress in steps[:5]:
        first.step(chunk, progress)
    assert first.num_replayed == 2
    second.generator.manual_seed(99)
    second.load({file: {n: x.clone() for n, x in own.items()} for file, own in first.tensors().items()}, first.document())
    assert [second.step(chunk, progress) for chunk, progress in steps[5:]] == reports[5:]
    assert second.num_replayed == 4
    assert_same(second, whole)


def test_what_is_loaded_into_a_learner_that_has_recorded_is_used(device: torch.device) -> None:
    learner, fresh = make(device), make(device)
    document, tensors = fresh.document(), fresh.tensors()
    run(learner, [T] * 5)
    learner.load({file: {n: x.clone() for n, x in own.items()} for file, own in tensors.items()}, document)
    assert run(learner, [T] * 5) == run(fresh, [T] * 5)
    assert_same(learner, fresh)


def test_work_that_waits_for_the_device_cannot_be_recorded() -> None:
    """So the stand-in would notice what a GPU would."""
    for work in (
        lambda: torch.ones(()).sum().item(),
        lambda: torch.ones(2).tolist(),
        lambda: torch.tensor(1, device="cpu"),
        lambda: torch.ones(2).nonzero(),
    ):
        with pytest.raises(RuntimeError, match="the host waits for the device"):
            record_on_tape(work, Generator())  # type: ignore[arg-type]


@pytest.mark.parametrize("policy", ["carry", "line", "document"])
@pytest.mark.parametrize(
    "settings",
    [
        config.RecurrentConfig(cell=config.Cell.elman),
        config.RecurrentConfig(cell=config.Cell.gru, locked_dropout=True, residual=True),
        config.RecurrentConfig(cell=config.Cell.lstm, layer_norm=True, zoneout=0.1),
        config.RecurrentConfig(cell=config.Cell.lstm, maxent_order=3, maxent_table=64),
        config.WindowConfig(context=3),
        config.WindowConfig(context=3, num_averages=2, average_span=4, direct=True),
    ],
    ids=["elman", "gru", "lstm", "lstm direct", "window", "window averages"],
)
def test_what_every_model_does_in_a_step_can_be_recorded_or_is_not(
    settings: config.RecurrentConfig | config.WindowConfig, policy: str, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = replace(
        settings, embed_size=4, hidden_size=4, num_layers=1, dropout=0.2, state_policy=config.StatePolicy[policy]
    )
    first, second = plain(device, settings=settings), plain(device, settings=settings)
    if reason := why_no_graph(first):
        assert reason == "what DirectNgramHead does depends on the words of a chunk"
        return
    replaying, eager = recording(first), recording(second)
    reports = run(replaying, [T] * 6)
    monkeypatch.setattr(module, "EAGER_STEPS", 1000)
    assert run(eager, [T] * 6) == reports
    assert replaying.num_replayed == 3
    assert_same(replaying, eager)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"optimizer": "rmsprop"}, "RMSprop has no fused kernel that can leave out an update"),
        ({"optimizer": "sparse_adam"}, "SparseAdam updates another number of rows in every step"),
        ({"schedule": OneCycle(0.3, 0.1, 0.3, 10.0, 0.7, 0.8)}, "OneCycle moves beta1, which would be recorded"),
        ({"full_length": T}, "chunks of random length have no common shape"),
        ({"head": "sampled"}, "what SampledSoftmax does depends on the words of a chunk"),
        ({"head": "adaptive"}, "what AdaptiveSoftmax does depends on the words of a chunk"),
    ],
    ids=str,
)
def test_what_cannot_be_recorded_says_why(change: dict[str, Any], reason: str) -> None:
    head, schedule = change.pop("head", None), change.pop("schedule", None)
    learner = plain(torch.device("cpu"), **change)
    if head:
        settings = config.RecurrentConfig(cell=config.Cell.gru, head=config.HeadName[head], cutoffs=[4])
        model = build_model(settings, vocab_size=V, eos_id=0)
        assert isinstance(model, NeuralLanguageModel)
        learner.model = model
    if schedule:
        learner.schedule = schedule
    assert why_no_graph(learner) == reason


def test_the_setting_decides_who_learns(caplog: pytest.LogCaptureFixture) -> None:
    cpu, cuda, choice = torch.device("cpu"), torch.device("cuda"), config.CudaGraph
    learner = plain(cpu)
    assert type(_graphed(learner, choice.auto, cpu)) is SequenceLearner
    assert type(_graphed(learner, choice.off, cuda)) is SequenceLearner
    assert isinstance(_graphed(learner, choice.auto, cuda), GraphedLearner)
    with pytest.raises(SettingsError, match=r"trainer\.cuda_graph=on cannot be done: the device is cpu\. Type"):
        _graphed(learner, choice.on, cpu)
    learner = plain(cpu, "rmsprop")
    with caplog.at_level(logging.INFO, logger="lmtrain"):
        assert type(_graphed(learner, choice.auto, cuda)) is SequenceLearner
    assert caplog.messages == [
        "Steps are not recorded as a CUDA graph: RMSprop has no fused kernel that can leave out an update."
    ]


@pytest.mark.parametrize(("given", "name"), [("auto", "auto"), ("on", "on"), (True, "on"), ("off", "off"), (False, "off")])
def test_on_and_off_are_read_as_yaml_writes_them(given: object, name: str) -> None:
    problems: list[str] = []
    settings = reading.read_settings(config.TrainerConfig, {"cuda_graph": given}, "trainer", problems)
    assert not problems
    assert settings.cuda_graph is config.CudaGraph[name]


# ---- evaluation and generation


@pytest.fixture
def replays(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> list[Replayed]:
    """What evaluation and generation record from now on."""
    made: list[Replayed] = []
    record = record_on_tape if device.type == "cpu" else record_cuda_graph

    def replayed(self: NeuralLanguageModel, function: Any, device: object) -> Replayed:
        made.append(Replayed(function, record))
        return made[-1]

    monkeypatch.setattr(NeuralLanguageModel, "replayed", replayed)
    return made


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("num_streams", [1, 3])
def test_replayed_evaluation_gives_the_same_numbers(
    temperature: float, num_streams: int, device: torch.device, replays: list[Replayed], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = plain(device).model  # forgets at line ends, so the last token read is part of its state
    ids = torch.randint(V, (3 * 29 + 2,), generator=Generator().manual_seed(5)).numpy()

    def numbers() -> list[float]:
        chunks = iter_target_log_probs(
            model, ids, eos_id=0, num_streams=num_streams, chunk_length=4, method=Static(temperature), device=device
        )
        return [number for scored in chunks for number in scored.log_probs.flatten().tolist()]

    got = numbers()
    assert len(replays) == 1
    assert replays[0]._play is not None, "something was recorded"
    monkeypatch.setattr(NeuralLanguageModel, "replayed", lambda self, function, device: function)
    assert got == numbers()


def test_replayed_generation_writes_the_same_text(
    device: torch.device, replays: list[Replayed], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = plain(device).model
    settings = SampleSettings(max_tokens=30)

    def texts() -> list[list[int]]:
        """Two texts, written in turns."""
        log_probs_V, state = read(model, torch.tensor([0, 3, 4]).numpy(), model.initial_state(1), device)
        make_reader = model.reader_factory(device)
        pair = [
            generate(
                make_reader(state), log_probs_V, settings, [Generator().manual_seed(n)],
                [Writer(ByteTokenizer(), "", ())], excluded=None,
            )
            for n in (1, 2)
        ]  # fmt: skip
        return [[a.token, b.token] for (_, a, _), (_, b, _) in zip(*pair, strict=True)]

    got = texts()
    assert [replay._play is not None for replay in replays] == [True], "one record serves all texts"
    monkeypatch.setattr(NeuralLanguageModel, "replayed", lambda self, function, device: function)
    assert got == texts()


def test_what_cannot_be_recorded_is_said_and_computed(caplog: pytest.LogCaptureFixture) -> None:
    def refuse(*_: object) -> Callable[[], None]:
        raise RuntimeError("operation not permitted")

    double = Replayed(lambda x: (2 * x,), refuse)
    assert [double(torch.tensor([float(n)]))[0].item() for n in range(6)] == [0, 2, 4, 6, 8, 10]
    assert [record.getMessage() for record in caplog.records] == [
        "This cannot be recorded as a CUDA graph, and is computed kernel by kernel: operation not permitted"
    ]


def test_a_learner_that_records_keeps_every_attribute_of_the_plain_one() -> None:
    learner = plain(torch.device("cpu"))
    assert {field.name for field in fields(learner)} == vars(learner).keys()
    learner.rate_scale, learner.overlap, learner.state = 0.25, 3, (torch.ones(2),)
    learner.earlier_TB = torch.ones(3, 2)
    made = graphed(learner)
    for name, value in vars(learner).items():
        assert getattr(made, name) is value, name
    (report,), (expected,) = run(made, [T]), run(plain(torch.device("cpu"), overlap=3), [T])
    assert report.learning_rate == pytest.approx(expected.learning_rate / 4)


def test_every_attribute_that_a_learner_declares_is_a_field_or_belongs_to_its_class() -> None:
    """One that is neither would be lost wherever a learner is made from another's fields."""
    for kind in (Learner, SequenceLearner, CountLearner, GraphedLearner):
        declared = {name for base in kind.__mro__ for name in vars(base).get("__annotations__", {})}
        assert declared - {field.name for field in fields(kind)} == {"can_diverge", "has_gradients"}
        assert "can_diverge" in vars(Learner)
