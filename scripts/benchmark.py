"""How fast one training step is, against the same step written with `torch.nn`, in one process on the same numbers.

    python scripts/benchmark.py --preset all --json benchmark.json
    python scripts/benchmark.py --device cuda --preset all --json benchmark_gpu.json

Every contestant starts from the same weights and sees the same batch. First losses and gradients are compared; then the
contestants take turns, so that a machine that slows down slows all of them: a step to warm up, a step that is timed. Ours
keep the memory that tensors free, as in our training; the others have it as glibc gives it. `dropin650` is the plain way
itself, with `lmtrain.nn.LSTM` in the place of `torch.nn.LSTM` and nothing else of ours. A row gives the median time
of a step, the ratio to the plain float32 way (`torch.nn` modules, `cross_entropy`, `torch.optim.Adam` as one would write
it), that to the same way in the row's own precision ("alike"), and the share of the fastest matrix product that the same
run measured. Presets are the shapes of the README's table.

On a GPU, `torch.nn` is cuDNN, in float32, float32 with TF32, bfloat16 and float16. Ours is `eager`, Triton step by step (a)
and in one launch (b, where the weight fits on the chip), each also recorded as a CUDA graph. The recurrences alone give
microseconds a step and layer, forward and backward. Memory is what PyTorch allocates at most; a graph's stays reserved.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from functools import lru_cache, partial
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.utils._pytree import tree_map

import lmtrain.config as config
import lmtrain.nn
from lmtrain.build import build_model, sparse_gradients
from lmtrain.data.stream import Chunk
from lmtrain.errors import UserError
from lmtrain.inference.sample import SampleSettings, sample
from lmtrain.models.base import NeuralLanguageModel
from lmtrain.ops import backends
from lmtrain.ops.linear_cross_entropy import linear_cross_entropy
from lmtrain.training.averaging import LastWeights
from lmtrain.training.graphed import graphed
from lmtrain.training.learner import SequenceLearner
from lmtrain.training.machine import keep_freed_memory
from lmtrain.training.optimizer import group_parameters, make_optimizer
from lmtrain.training.schedule import Constant, Progress

RATE = 0.001
CLIP = 0.25
TOLERANCE = {  # of the loss and of the gradient, relative
    "float32": (1e-5, 1e-3), "tf32": (1e-3, 1e-2), "bfloat16": (1e-2, 6e-2), "float16": (1e-2, 6e-2),
}  # fmt: skip
SLOW_GFLOPS = 10  # bfloat16 without instructions for it
PRECISIONS = {"cpu": ("float32", "bfloat16"), "cuda": ("float32", "tf32", "bfloat16")}


@dataclass(frozen=True)
class Preset:
    """One shape: what is timed, and its sizes."""

    name: str
    part: str  # step, dropin, recurrence, head, generate
    cell: str = "lstm"
    num_layers: int = 2
    hidden_size: int = 200
    batch_size: int = 20
    chunk_length: int = 35
    vocab_size: int = 17112
    tied: bool = True
    head: str = "full"
    embed_size: int = 0  # 0: hidden_size
    last_size: int = 0  # of the last layer; 0: hidden_size
    weight_drop: float = 0.0

    @property
    def layer_sizes(self) -> list[tuple[int, int]]:
        """Input and hidden size of every layer."""
        sizes = [self.embed_size or self.hidden_size, *[self.hidden_size] * self.num_layers]
        sizes[-1] = self.last_size or self.hidden_size
        return list(pairwise(sizes))

    @property
    def num_tokens(self) -> int:
        return self.batch_size * self.chunk_length

    @property
    def flops(self) -> float:
        """Floating-point operations of the matrix products of one training step: two per weight and token, times three."""
        gates = {"elman": 1, "gru": 3, "lstm": 4}[self.cell]
        recurrence = sum(2 * gates * hidden * (size + hidden) for size, hidden in self.layer_sizes)
        outputs = {"sampled": 512}.get(self.head, self.vocab_size)
        head = 2 * self.layer_sizes[-1][1] * outputs
        passes = 1 if self.part == "generate" else 3
        return passes * self.num_tokens * (recurrence * (self.part != "head") + head * (self.part != "recurrence"))


WIKITEXT2, PTB, WIKITEXT103 = 33_278, 10_000, 267_735  # vocabularies
PRESETS = {
    preset.name: preset
    for preset in (
        Preset("lstm200", "step"),
        Preset("lstm650", "step", hidden_size=650),
        Preset("gru650", "recurrence", "gru", hidden_size=650),
        Preset("elman650", "recurrence", "elman", hidden_size=650),
        Preset("char512", "step", num_layers=1, hidden_size=512, batch_size=64, chunk_length=64, vocab_size=65, tied=False),
        Preset("dropin650", "dropin", hidden_size=650, vocab_size=PTB, tied=False),
        Preset("head200", "head"),
        Preset("sampled200", "step", "gru", num_layers=1, batch_size=64, tied=False, head="sampled"),
        Preset("generate200", "generate", batch_size=1, chunk_length=200),
    )
}
GPU_PRESETS = {
    preset.name: preset
    for preset in (
        Preset("step650", "step", hidden_size=650, vocab_size=WIKITEXT2),
        Preset("awd1152", "step", num_layers=3, hidden_size=1152, batch_size=101, chunk_length=70, vocab_size=WIKITEXT2,
               embed_size=400, last_size=400, weight_drop=0.5),
        Preset("step512chars", "step", hidden_size=512, batch_size=64, chunk_length=256, vocab_size=100, tied=False),
        Preset("step200", "step", vocab_size=PTB),
        Preset("step1500", "step", hidden_size=1500, vocab_size=PTB, tied=False),
        Preset("step1024", "step", hidden_size=1024, batch_size=64, chunk_length=70, vocab_size=WIKITEXT103),
        Preset("gru1024", "recurrence", "gru", hidden_size=1024, batch_size=64, chunk_length=128),
        Preset("lstm1024", "recurrence", hidden_size=1024, batch_size=64, chunk_length=128),
        Preset("lstm200x20", "recurrence"),
        Preset("lstm512x64", "recurrence", hidden_size=512, batch_size=64, chunk_length=128),
        Preset("lstm512x128", "recurrence", hidden_size=512, batch_size=128, chunk_length=70),
        Preset("lstm650x20", "recurrence", hidden_size=650),
        Preset("lstm1152x20", "recurrence", num_layers=3, hidden_size=1152, chunk_length=70),
        Preset("lstm1024x128", "recurrence", num_layers=1, hidden_size=1024, batch_size=128, chunk_length=70),
        Preset("lstm1500x20", "recurrence", hidden_size=1500),
        Preset("gru650x20", "recurrence", "gru", hidden_size=650),
        Preset("elman650x20", "recurrence", "elman", hidden_size=650),
        Preset("elman1024x64", "recurrence", "elman", num_layers=1, hidden_size=1024, batch_size=64, chunk_length=128),
        Preset("head10k", "head", hidden_size=650, vocab_size=PTB),
        Preset("head33k", "head", hidden_size=650, vocab_size=WIKITEXT2),
        Preset("head267k", "head", hidden_size=1024, batch_size=64, chunk_length=70, vocab_size=WIKITEXT103),
        Preset("generate650", "generate", hidden_size=650, batch_size=1, chunk_length=200, vocab_size=WIKITEXT2),
    )
}  # fmt: skip


@dataclass
class Contestant:
    """Something that does the work once per call; `probe` returns loss and gradients by name, for comparison."""

    backend: str
    precision: str
    run: Callable[[], object]
    probe: Callable[[], dict[str, Tensor]] | None = None
    parts: Callable[[], dict[str, float]] | None = None
    seconds: list[float] = field(default_factory=list)

    @property
    def name(self) -> str:
        return f"{self.backend} {self.precision}"


@dataclass
class Row:
    preset: str
    backend: str
    precision: str
    milliseconds_per_step: float
    tokens_per_second: float
    ratio: float
    ratio_alike: float
    gflops: float
    fraction_of_peak: float
    peak_megabytes: float
    agrees: bool | None
    parts: dict[str, float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", nargs="+", default=["all"], choices=["all", *PRESETS, *GPU_PRESETS], metavar="NAME",
                        help=f"all, or some of {', '.join(PRESETS | GPU_PRESETS)}")  # fmt: skip
    parser.add_argument("--repeat", type=int, default=15, help="timed turns of every contestant (default: %(default)s)")
    parser.add_argument("--json", metavar="FILE", help="also write the rows there")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int, default=0)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.set_flush_denormal(True)
    device = torch.device(options.device)
    rows: list[Row] = []
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {_processor()}{_gpu(device)}")
    names = list(PRESETS if device.type == "cpu" else GPU_PRESETS) if "all" in options.preset else options.preset
    failed = []
    for name in names:
        try:
            rows += run_preset((PRESETS | GPU_PRESETS)[name], options.repeat, device)
        except (RuntimeError, UserError) as error:  # the other presets are worth having
            print(f"\n{name}: {error}", flush=True)
            failed.append(name)
        gc.collect()  # contestants, with what they hold on the device
        if options.json:
            Path(options.json).write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")
    if failed or any(row.agrees is False for row in rows):
        sys.exit(f"failed: {', '.join(failed)}" if failed else "a contestant does not agree with the plain float32 step")


def run_preset(preset: Preset, repeat: int, device: torch.device) -> list[Row]:
    """Compares, times and prints one preset. A contestant that cannot run here (no memory, no kernel) is left out, with why."""
    torch.manual_seed(0)
    contestants = list(MAKERS[preset.part](preset, device))
    plain = contestants[0]
    with _float32_products(plain.precision, device):
        expected = plain.probe() if plain.probe else {}
    agreements = _of_each(contestants, lambda contestant: _agrees(contestant, expected, device))
    contestants = [contestant for contestant in contestants if contestant.name in agreements]
    warmed_up = _of_each(contestants, lambda contestant: _warm_up(contestant, device))  # which moves the weights
    contestants = [contestant for contestant in contestants if contestant.name in warmed_up]
    peak = {precision: _peak_gflops(precision, device) for precision in {c.precision for c in contestants}}
    for _ in range(repeat):
        for contestant in contestants:
            with _as_it_runs(contestant, device):
                contestant.run()  # its caches and its memory
                contestant.seconds.append(_seconds(contestant.run, device))
    baseline = statistics.median(plain.seconds)
    alike = {c.precision: statistics.median(c.seconds) for c in reversed(contestants) if c.backend == "torch.nn"}
    print(f"\n{preset.name}: {preset.part}, {preset.cell} {preset.num_layers}x{preset.hidden_size}, B={preset.batch_size}, "
          f"T={preset.chunk_length}, V={preset.vocab_size}; matrix products reach "
          + ", ".join(f"{peak[name]:.0f} GFLOP/s in {name}" for name in sorted(peak)))  # fmt: skip
    print(
        f"{'backend':30}{'precision':>10}{'ms':>9}{'tokens/s':>11}{'ratio':>7}{'alike':>7}{'GFLOP/s':>9}{'peak':>6}{'MB':>7}"
        "  agrees  parts (ms; recurrences on a GPU: microseconds a step)"
    )
    rows = []
    for contestant in contestants:
        agrees = agreements[contestant.name]
        seconds = statistics.median(contestant.seconds)
        gflops = preset.flops / seconds / 1e9
        with _as_it_runs(contestant, device):
            megabytes = _peak_megabytes(contestant.run, device)
            parts_of_row = contestant.parts() if contestant.parts else {}
        row = Row(
            preset.name, contestant.backend, contestant.precision, 1e3 * seconds, preset.num_tokens / seconds,
            baseline / seconds, alike.get(contestant.precision, math.nan) / seconds, gflops,
            gflops / peak[contestant.precision], megabytes, agrees, parts_of_row,
        )  # fmt: skip
        parts = " ".join(f"{name} {value:.1f}" for name, value in row.parts.items())
        agrees_word = {True: "yes", False: "NO", None: "-"}[agrees]
        print(f"{row.backend:30}{row.precision:>10}{row.milliseconds_per_step:>9.2f}{row.tokens_per_second:>11,.0f}{row.ratio:>7.2f}{row.ratio_alike:>7.2f}"
              f"{row.gflops:>9.0f}{row.fraction_of_peak:>6.0%}{row.peak_megabytes:>7.0f}"
              f"  {agrees_word:6}  {parts}", flush=True)  # fmt: skip
        rows.append(row)
    return rows


def _of_each(contestants: list[Contestant], work: Callable[[Contestant], Any]) -> dict[str, Any]:
    """What `work` returns by name; says of those that cannot run here (no memory, no kernel) why, and leaves them out."""
    results = {}
    for contestant in contestants:
        try:
            results[contestant.name] = work(contestant)
        except (RuntimeError, UserError) as error:
            if contestant is contestants[0]:
                raise
            print(f"\n{contestant.name} cannot run here: {str(error).partition(chr(10))[0]}")
    return results


def _warm_up(contestant: Contestant, device: torch.device) -> None:
    with _as_it_runs(contestant, device):
        for _ in range(5):
            contestant.run()


# ---- contestants: a whole training step


class PlainModel(nn.Module):
    """The step as one would write it: embedding, nn.LSTM / GRU / RNN, linear layer. `library`: whose nn for the second."""

    def __init__(self, preset: Preset, library: ModuleType = nn) -> None:
        super().__init__()
        sizes = preset.layer_sizes
        self.embedding = nn.Embedding(preset.vocab_size, sizes[0][0])
        module = {"elman": library.RNN, "gru": library.GRU, "lstm": library.LSTM}[preset.cell]
        if len(set(sizes)) == 1:
            self.recurrence = module(*sizes[0], len(sizes))
        else:
            self.recurrence = Stack([module(*size) for size in sizes])
        self.output = nn.Linear(sizes[-1][1], preset.vocab_size)
        if preset.tied:
            self.output.weight = self.embedding.weight

    def forward(self, tokens_TB: Tensor, state: Any) -> tuple[Tensor, Any]:
        hidden_TBH, state = self.recurrence(self.embedding(tokens_TB), state)
        return self.output(hidden_TBH), state


class Stack(nn.Module):
    """Layers of several sizes, to be called like a module of several layers."""

    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        after = []
        for number, layer in enumerate(self.layers):
            x, own = layer(x, None if state is None else state[number])
            after.append(own)
        return x, after


def _plain_weights(recurrence: nn.Module, layer: int) -> dict[str, Tensor]:
    """The parameters of one layer of a plain recurrence, by their names without the number."""
    own, suffix = (recurrence.layers[layer], "_l0") if isinstance(recurrence, Stack) else (recurrence, f"_l{layer}")
    return {name.removesuffix(suffix): weight for name, weight in own.named_parameters() if name.endswith(suffix)}


def make_steps(preset: Preset, device: torch.device) -> Iterator[Contestant]:
    """Plain torch.nn in both precisions, then ours on every backend that serves the shape."""
    tokens_TB = _tokens(preset, device, preset.chunk_length + 1)
    ours = _our_model(preset, "reference", device)
    for precision in _plain_precisions(device):
        yield _plain_step(_plain_model(preset, ours, device), tokens_TB, precision, preset.num_layers)
    for precision in PRECISIONS[device.type]:
        for way in _ways(preset, device, precision):
            yield _our_step(preset, way, precision, tokens_TB, device)


def make_dropins(preset: Preset, device: torch.device) -> Iterator[Contestant]:
    """The plain step, with torch's recurrence and with ours in its place."""
    tokens_TB = _tokens(preset, device, preset.chunk_length + 1)
    ours = _our_model(preset, "reference", device)
    for library in (nn, lmtrain.nn):
        for precision in PRECISIONS[device.type]:
            model = _plain_model(preset, ours, device, library)
            yield _plain_step(model, tokens_TB, precision, preset.num_layers, library.__name__)


def _plain_step(model: PlainModel, tokens_TB: Tensor, precision: str, num_layers: int, backend: str = "torch.nn") -> Contestant:
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
    inputs_TB, targets_TB = tokens_TB[:-1], tokens_TB[1:]
    state: Any = None

    def loss_of() -> Tensor:
        nonlocal state
        with _autocast(precision, tokens_TB.device):
            logits_TBV, after = model(inputs_TB, state)
            loss = F.cross_entropy(logits_TBV.flatten(0, 1), targets_TB.flatten())
        state = tree_map(Tensor.detach, after)
        return loss

    def run() -> float:
        loss = loss_of()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        return loss.item()

    def probe() -> dict[str, Tensor]:
        nonlocal state
        state = None
        model.zero_grad()
        loss = loss_of()
        loss.backward()
        state = None
        gradients = {"loss": loss.detach(), "embedding": _gradient(model.embedding.weight)}
        for layer in range(num_layers):
            weights = _plain_weights(model.recurrence, layer)
            gradients[f"input{layer}"] = _gradient(weights["weight_ih"])
            gradients[f"recurrent{layer}"] = _gradient(weights["weight_hh"])
        return gradients | {"bias": _gradient(model.output.bias)}

    # without scaling, gradients in float16 are not to be compared
    return Contestant(backend, precision, run, probe if precision != "float16" else None)


def _our_step(preset: Preset, way: Way, precision: str, tokens_TB: Tensor, device: torch.device) -> Contestant:
    model = _our_model(preset, way.backend, device)
    learner = SequenceLearner(
        model=model,
        optimizer=make_optimizer("adam", group_parameters(model.named_parameters()), learning_rate=RATE),
        schedule=Constant(),
        averaging=LastWeights(),
        generator=torch.Generator(device).manual_seed(1),
        learning_rate=RATE,
        clip_norm=CLIP,
        autocast=lambda: _autocast(precision, device),
    )
    if way.graph:
        learner = graphed(learner)
    chunk = Chunk(tokens_TB[:-1], tokens_TB[1:], starts_epoch=False, epoch=0, index=0)
    progress = Progress(step=0, epoch=0.0, fraction=0.0)

    def step() -> object:
        with way.variant():
            return learner.step(chunk, progress)

    def probe() -> dict[str, Tensor]:
        model.zero_grad()
        model.eval()  # without weight-drop, so that it can be compared
        with learner.autocast(), way.variant():
            nats, _, _ = model.training_loss(
                chunk.inputs_TB, chunk.targets_TB, model.initial_state(preset.batch_size), learner.generator
            )
        (nats / preset.num_tokens).backward()
        gradients = {"loss": nats.detach() / preset.num_tokens, "embedding": _gradient(model.embedding.weight)}
        for number, layer in enumerate(model.layers):
            gradients[f"input{number}"] = _gradient(layer.weight_input_ZE)
            gradients[f"recurrent{number}"] = _gradient(layer.weight_recurrent_ZH)
        return gradients | {"bias": _gradient(model.head.bias_V)}

    def parts() -> dict[str, float]:
        with way.variant():
            return {} if way.graph else _parts(learner, chunk, preset, device)

    name = f"lmtrain {way}" + ("" if preset.head == "full" else f", {preset.head}")
    return Contestant(name, precision, step, probe if preset.head == "full" else None, parts)


def _parts(learner: SequenceLearner, chunk: Chunk, preset: Preset, device: torch.device) -> dict[str, float]:
    """Milliseconds of the parts of a step, each timed alone, forward and backward; what is left is `rest`."""
    model: Any = learner.model
    state = model.initial_state(preset.batch_size)
    with torch.no_grad(), learner.autocast():
        features = model.features(chunk.inputs_TB, state, learner.generator)[0]

    def recurrence() -> None:  # with the embedding, which may be projected word by word
        with learner.autocast():
            x = model.activations(chunk.inputs_TB, state, learner.generator)[0]
        x.backward(torch.ones_like(x))

    def head() -> None:
        with learner.autocast():
            nats = model.head.loss(features.detach().requires_grad_(), chunk.targets_TB, learner.generator)
        nats.backward()

    def optimizer() -> None:
        learner.optimizer.step()

    measured = {}
    learner.step(chunk, Progress(step=0, epoch=0.0, fraction=0.0))
    for work in (recurrence, head, optimizer):
        if work is not optimizer:
            model.zero_grad(set_to_none=True)
        else:
            learner.step(chunk, Progress(step=0, epoch=0.0, fraction=0.0))
        measured[work.__name__] = 1e3 * min(_seconds(work, device) for _ in range(5))
    whole = 1e3 * min(
        _seconds(lambda: learner.step(chunk, Progress(step=0, epoch=0.0, fraction=0.0)), device) for _ in range(5)
    )
    return measured | {"rest": max(0.0, whole - sum(measured.values()))}


# ---- contestants: the recurrence alone, the head alone, generation


def make_recurrences(preset: Preset, device: torch.device) -> Iterator[Contestant]:
    """Forward and backward of the layers over given inputs."""
    ours = _our_model(preset, "reference", device)
    plain = _plain_model(preset, ours, device).recurrence
    inputs = torch.randn(preset.chunk_length, preset.batch_size, preset.layer_sizes[0][0], device=device)
    upstream = torch.randn(preset.chunk_length, preset.batch_size, preset.layer_sizes[-1][1], device=device)
    plainly, weights = Way("torch.nn", "auto", False), list(plain.named_parameters())
    for precision in _plain_precisions(device):
        yield _recurrence("torch.nn", plainly, precision, lambda x: plain(x)[0], weights, inputs, upstream, preset)
    for precision in PRECISIONS[device.type]:
        for way in _ways(preset, device, precision):
            model = _our_model(preset, way.backend, device)
            initial = model.initial_state(preset.batch_size)

            def forward(x: Tensor, model: Any = model, initial: Any = initial) -> Tensor:
                used = 1
                for layer in model.layers:
                    x, after = layer(x, initial[used : used + layer.num_states], None, None)
                    used += len(after)
                return x

            weights = list(model.layers.named_parameters())
            yield _recurrence(f"lmtrain {way}", way, precision, forward, weights, inputs, upstream, preset)


def _recurrence(
    name: str,
    way: Way,
    precision: str,
    forward: Callable[[Tensor], Tensor],
    weights: list[tuple[str, Tensor]],
    inputs: Tensor,
    upstream: Tensor,
    preset: Preset,
) -> Contestant:
    leaf = inputs.clone().requires_grad_()

    def only_forward() -> Tensor:
        with _autocast(precision, inputs.device), way.variant():
            return forward(leaf)

    def both() -> Tensor:
        for _, weight in weights:
            weight.grad = None
        leaf.grad = None
        outputs = only_forward()
        with way.variant():
            outputs.backward(upstream.to(outputs.dtype))
        return outputs

    def probe() -> dict[str, Tensor]:
        outputs = run()
        first = next(w for n, w in weights if n.endswith(("weight_hh_l0", "0.weight_recurrent_ZH")))
        return {"loss": outputs.detach().float().square().mean(), "inputs": _gradient(leaf), "recurrent": _gradient(first)}

    def parts() -> dict[str, float]:
        """Microseconds of a step in one layer."""
        half, whole = (min(_seconds(work, inputs.device) for _ in range(10)) for work in (shown_forward, run))
        steps = preset.chunk_length * preset.num_layers
        return {"forward": 1e6 * half / steps, "backward": 1e6 * (whole - half) / steps}

    run, shown_forward = both, only_forward
    if way.graph:
        run, shown_forward = _Captured(both, precision), _Captured(only_forward, precision)
    return Contestant(name, precision, run, probe, parts if inputs.is_cuda else None)


class _Captured:
    """Work that is captured as a CUDA graph when it is first called, after a few plain calls."""

    def __init__(self, work: Callable[[], Tensor], precision: str) -> None:
        self.work, self.precision = work, precision
        self.graph: Any = None

    def __call__(self) -> Tensor:
        if self.graph is None:
            for _ in range(3):
                self.work()
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):
                self.outputs = self.work()
        self.graph.replay()
        return self.outputs


def make_heads(preset: Preset, device: torch.device) -> Iterator[Contestant]:
    """Output layer and loss, forward and backward."""
    features = torch.randn(preset.num_tokens, preset.hidden_size, device=device)
    weight = torch.empty(preset.vocab_size, preset.hidden_size, device=device).uniform_(-0.1, 0.1)
    bias, targets = torch.zeros(preset.vocab_size, device=device), _tokens(preset, device, preset.chunk_length).flatten()

    def plain(f: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return F.cross_entropy(F.linear(f, w, b), targets, reduction="sum")

    for precision in PRECISIONS[device.type]:
        yield _head("torch.nn", precision, plain, features, weight, bias)
    if hasattr(F, "linear_cross_entropy"):

        def torchs(f: Tensor, w: Tensor, b: Tensor) -> Tensor:
            options = torch.nn.LinearCrossEntropyOptions()
            return F.linear_cross_entropy(f, w, targets, linear_bias=b, reduction="sum", options=options)

        yield _head("torch linear_cross_entropy", "float32", torchs, features, weight, bias)
    for backend in ("eager", "native") if device.type == "cpu" else ("eager", "triton"):
        for precision in PRECISIONS[device.type]:
            dtype = _dtype(precision)

            def ours(f: Tensor, w: Tensor, b: Tensor, backend: str = backend, dtype: torch.dtype = dtype) -> Tensor:
                return linear_cross_entropy(f, w, b, targets, compute_dtype=dtype, backend=backend)

            yield _head(f"lmtrain {backend}", precision, ours, features, weight, bias)


def _head(
    name: str, precision: str, loss: Callable[[Tensor, Tensor, Tensor], Tensor], features: Tensor, weight: Tensor, bias: Tensor
) -> Contestant:
    leaves = [tensor.clone().requires_grad_() for tensor in (features, weight, bias)]

    def run() -> Tensor:
        for leaf in leaves:
            leaf.grad = None
        with _autocast(precision, features.device):
            nats = loss(*leaves)
        nats.backward()
        return nats

    def probe() -> dict[str, Tensor]:
        nats = run()
        return {
            "loss": nats.detach(),
            **{n: _gradient(leaf) for n, leaf in zip(("features", "weight", "bias"), leaves, strict=True)},
        }

    return Contestant(name, precision, run, probe)


def make_generators(preset: Preset, device: torch.device) -> Iterator[Contestant]:
    """One stream of text, token by token. Plain bfloat16 is autocast without its cache of weights, which inference lacks."""
    ours = _our_model(preset, "auto", device).eval()
    plain = _plain_model(preset, ours, device).eval()

    @torch.no_grad()
    def write(precision: str) -> None:
        token, state = torch.zeros(1, 1, dtype=torch.long, device=device), None
        for _ in range(preset.chunk_length):
            with _autocast(precision, device):
                logits, state = plain(token, state)
            token = torch.multinomial(logits[0].float().softmax(-1), 1)

    settings = SampleSettings(max_tokens=preset.chunk_length, allow_unk=True, statistics=False)

    endless: dict[str, Any] = {}

    def write_ours(precision: str) -> None:
        tokenizer: Any = _Numbers(preset.vocab_size)
        with _autocast(precision, device):
            if precision not in endless:
                endless[precision] = sample(ours, tokenizer, "", settings, num_samples=10**9, device=device)
            for _ in next(endless[precision]):
                pass

    for name, work in (("torch.nn", write), ("lmtrain", write_ours)):
        for precision in ("float32", "bfloat16"):
            yield Contestant(name, precision, partial(work, precision))


class _Numbers:
    """A tokenizer whose tokens are written as nothing."""

    eos_id, unk_id = 0, None

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size

    def unknown_pieces(self, text: str) -> list[str]:
        return []

    def encode(self, text: str) -> Any:
        return torch.zeros(0, dtype=torch.int32).numpy()

    def make_decoder(self, before: str = "") -> _Numbers:
        return self

    def push(self, token_id: int) -> str:
        return ""

    def flush(self) -> str:
        return ""


MAKERS: dict[str, Callable[[Preset, torch.device], Iterator[Contestant]]] = {
    "step": make_steps,
    "dropin": make_dropins,
    "recurrence": make_recurrences,
    "head": make_heads,
    "generate": make_generators,
}


# ---- what they share


def _our_model(preset: Preset, backend: str, device: torch.device) -> Any:
    model: Any = copy.deepcopy(_first_model(preset, device))
    for layer in model.layers:
        layer.backend = backend
    return model


@lru_cache(maxsize=1)  # drawing hundreds of millions of weights takes longer than a preset's steps
def _first_model(preset: Preset, device: torch.device) -> NeuralLanguageModel:
    sizes = preset.layer_sizes
    settings = config.RecurrentConfig(
        cell=config.Cell[preset.cell], embed_size=sizes[0][0], hidden_sizes=[hidden for _, hidden in sizes],
        hidden_size=preset.hidden_size, num_layers=preset.num_layers, tie_weights=preset.tied,
        head=config.HeadName[preset.head], weight_drop=preset.weight_drop,
    )  # fmt: skip
    model = build_model(
        settings, vocab_size=preset.vocab_size, eos_id=0, seed=1,
        sparse_embeddings=sparse_gradients(preset.num_tokens, preset.vocab_size, device),
    )  # fmt: skip
    assert isinstance(model, NeuralLanguageModel)
    return model.to(device)


@torch.no_grad()
def _plain_model(preset: Preset, ours: Any, device: torch.device, library: ModuleType = nn) -> PlainModel:
    """The plain model with our weights."""
    with device:
        plain = PlainModel(preset, library)
    plain.embedding.weight.copy_(ours.embedding.weight)
    plain.output.weight.copy_(ours.head.weight_VE)
    plain.output.bias.zero_()
    for number, layer in enumerate(ours.layers):
        weights = _plain_weights(plain.recurrence, number)
        weights["weight_ih"].copy_(layer.weight_input_ZE)
        weights["weight_hh"].copy_(layer.weight_recurrent_ZH)
        weights["bias_ih"].copy_(layer.bias_Z)
        weights["bias_hh"].zero_()
    return plain


@dataclass(frozen=True)
class Way:
    """How ours computes: the backend, for Triton its variant, and whether as a CUDA graph."""

    backend: str
    variant_name: str
    graph: bool

    def variant(self) -> AbstractContextManager[None]:
        if self.backend != "triton":
            return nullcontext()
        from lmtrain.ops.triton.launch import variant

        return variant(self.variant_name)

    def __str__(self) -> str:
        letter = {"auto": " a+b" if self.backend == "triton" else "", "steps": " a", "persistent": " b"}[self.variant_name]
        return f"{self.backend}{letter}{' graph' if self.graph else ''}"


def _ways(preset: Preset, device: torch.device, precision: str) -> list[Way]:
    """Those that can serve the shape here; on a GPU with and without a graph."""
    sizes = {"T": preset.chunk_length, "B": preset.batch_size, "H": preset.hidden_size}
    call = backends.Call(preset.cell, device.type, _dtype(precision), sizes)
    ways = [Way(name, "auto", False) for name in ("eager", "native") if backends.why_not(name, call) is None]
    if backends.why_not("triton", call) is None:
        ways.append(Way("triton", "steps", False))
        fits = _fit(preset, device, precision)
        if any(fits):
            ways.append(Way("triton", "persistent" if all(fits) else "auto", False))
    return [
        Way(w.backend, w.variant_name, graph) for w in ways for graph in ((False, True) if device.type == "cuda" else (False,))
    ]


def _fit(preset: Preset, device: torch.device, precision: str) -> list[bool]:
    """Of every layer whether its weight can be held on the chip."""
    from lmtrain.ops.triton.persistent import make_plan

    gates, dtype = {"elman": 1, "gru": 3, "lstm": 4}[preset.cell], _dtype(precision)
    with _float32_products(precision, device):
        return [make_plan(device, dtype, gates, preset.batch_size, hidden) is not None for _, hidden in preset.layer_sizes]


def _tokens(preset: Preset, device: torch.device, length: int) -> Tensor:
    """Ids as frequent as those of a text: 1 / rank."""
    ranks = torch.arange(1, preset.vocab_size + 1, dtype=torch.float64)
    return torch.multinomial(1 / ranks, length * preset.batch_size, replacement=True).view(length, preset.batch_size).to(device)


def _dtype(precision: str) -> torch.dtype:
    return {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(precision, torch.float32)


def _plain_precisions(device: torch.device) -> tuple[str, ...]:
    """PyTorch's own modules also know float16, where cuDNN has its fastest recurrences."""
    return PRECISIONS[device.type] + (("float16",) if device.type == "cuda" else ())


def _autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    dtype = _dtype(precision)
    return nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype)


@contextmanager
def _as_it_runs(contestant: Contestant, device: torch.device) -> Iterator[None]:
    """What holds for the whole process: the kind of products in float32, and whether freed memory is kept."""
    keep_freed_memory(contestant.backend.split()[0] == "lmtrain")  # not with lmtrain.nn: a foreign script does not
    with _float32_products(contestant.precision, device):
        yield


@contextmanager
def _float32_products(precision: str, device: torch.device) -> Iterator[None]:
    """On a GPU: whether products of float32 are exact or TF32, in cuBLAS and in cuDNN."""
    if device.type != "cuda":
        yield
        return
    switches: tuple[Any, ...] = torch.backends.cuda.matmul, torch.backends.cudnn.rnn
    before = [switch.fp32_precision for switch in switches]
    with ExitStack() as stack:
        for switch, value in zip(switches, before, strict=True):
            stack.callback(setattr, switch, "fp32_precision", value)
            switch.fp32_precision = "tf32" if precision == "tf32" else "ieee"
        yield


def _gradient(tensor: Tensor) -> Tensor:
    assert tensor.grad is not None
    return (tensor.grad.to_dense() if tensor.grad.is_sparse else tensor.grad).detach().float().clone()


def _agrees(contestant: Contestant, expected: dict[str, Tensor], device: torch.device) -> bool | None:
    """Whether loss and gradients are those of the plain float32 step, within the precision's tolerance."""
    if contestant.probe is None:
        return None
    with _float32_products(contestant.precision, device):
        got = contestant.probe()
    loss, gradient = TOLERANCE[contestant.precision]
    errors = {name: float((got[name] - want).norm() / want.norm()) for name, want in expected.items()}
    return all(error <= (loss if name == "loss" else gradient) for name, error in errors.items())


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    started_at = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started_at


def _peak_gflops(precision: str, device: torch.device) -> float:
    """The best rate of a large square product; of a smaller one where products of this type are very slow."""
    best = 0.0
    for size in (512, 2048) if device.type == "cpu" else (512, 8192):
        a = torch.randn(size, size, device=device, dtype=_dtype(precision))
        with _float32_products(precision, device):
            best = max(2 * size**3 / _seconds(partial(torch.mm, a, a), device) / 1e9 for _ in range(6))
        if best < SLOW_GFLOPS:
            break
    return best


def _peak_megabytes(work: Callable[[], object], device: torch.device) -> float:
    """How much one call adds to the process at most (Linux; 0 elsewhere), on a GPU to the memory allocated there."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before_bytes = torch.cuda.memory_allocated()
        work()
        return (torch.cuda.max_memory_allocated() - before_bytes) / (1 << 20)
    try:
        Path("/proc/self/clear_refs").write_text("5")
        before = _memory("VmRSS")
        work()
        return (_memory("VmHWM") - before) / 1024
    except OSError:
        return 0.0


def _memory(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1])


def _gpu(device: torch.device) -> str:
    if device.type != "cuda":
        return ""
    import triton

    return (
        f"; {torch.cuda.get_device_name()}, CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}, "
        f"Triton {triton.__version__}"
    )


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return "unknown processor"
    return f"{name} ({torch.backends.cpu.get_cpu_capability()})"


if __name__ == "__main__":
    main()
