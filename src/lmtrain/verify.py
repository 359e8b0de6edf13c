"""Checks, on the user's machine, every function whose gradient was written by hand.

    central differences   (L(x + s) - L(x - s)) / 2s for every number of every input, L a random projection of the outputs;
                          float64, s = 1e-5, recurrences plain and with all options
    torch.nn              the same values and gradients as RNN, GRU, LSTM with the same weights; float64
    h = 1e-4, delta form  the lectures' scorer of two layers (`lmtrain.explain.scorer`): numeric gradients, error signals
    float64               what a fast backend computes in float32, against the reference in float64

Sizes are small and odd: T=4 steps, B=3 streams, H=5 hidden. An error is the largest absolute difference divided by the
largest absolute value that was expected.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, partial

import torch
from torch import Generator, Tensor, nn

import lmtrain.nn
from lmtrain.explain.scorer import Gradient
from lmtrain.models.direct import DirectCrossEntropyFunction
from lmtrain.ops.activations import ACTIVATIONS, GATED, LEARNT
from lmtrain.ops.backends import Call, why_not
from lmtrain.ops.bags import average
from lmtrain.ops.elman import NONLINEARITIES, elman
from lmtrain.ops.glove import glove_loss
from lmtrain.ops.gru import gru
from lmtrain.ops.linear import LinearFunction
from lmtrain.ops.linear_cross_entropy import linear_cross_entropy
from lmtrain.ops.lookup import lookup
from lmtrain.ops.lstm import lstm
from lmtrain.ops.negative_sampling import negative_sampling
from lmtrain.ops.objectives import affine, logistic_loss, max_margin_loss, softmax_loss, window_vectors
from lmtrain.ops.sampled_cross_entropy import sampled_cross_entropy
from lmtrain.ops.transforms import MatmulFunction

log = logging.getLogger("lmtrain")

T, B, H, E = 4, 3, 5, 2
STEP = 1e-5
ALLOWED = {"central differences": 1e-6, "torch.nn": 1e-10, "float64": 1e-5, "h = 1e-4": 1e-6, "delta form": 1e-12}

NamedTensors = dict[str, Tensor]
TensorFunction = Callable[[NamedTensors], NamedTensors]


@dataclass(frozen=True)
class Check:
    """One tensor of one function: its largest relative error against what it was compared with."""

    function: str
    backend: str
    against: str
    tensor: str
    error: float

    @property
    def passed(self) -> bool:
        return self.error <= ALLOWED[self.against]  # False for NaN


@dataclass(frozen=True)
class Subject:
    """A function with inputs for it: `run(inputs, backend)` gives its outputs, all by name, inputs in float64."""

    name: str
    operation: str
    run: Callable[[NamedTensors, str], NamedTensors]
    inputs: NamedTensors


def iter_checks() -> Iterator[Check]:
    """All checks, one after the other; some seconds, and more where a backend has to be compiled first."""
    generator = Generator().manual_seed(1)
    plain, resets, everything = (list(_recurrences(generator, options)) for options in ("", " with resets", " with everything"))
    output_layers = [_output_layer(generator), _sampled_output_layer(generator)]
    others = [
        *output_layers,
        _direct_output_layer(generator),
        _lookup(generator),
        _linear(generator),
        _matmul(generator),
    ]
    others += [*_word_vectors(generator), *_window_classifiers(generator), _average(generator)]
    for subject in [*plain, *everything, *others, *_activations(generator)]:
        yield from _check_differences(subject)
    yield from _check_against_torch(generator)
    fast_backends = cache(lambda operation: list(_fast_backends(operation)))  # asked once: it warns
    for subject in [*plain, *resets, *output_layers]:
        for backend, device in fast_backends(subject.operation):
            yield from _check_float32(subject, backend, device)


def lecture_checks(gradients: Mapping[str, Gradient]) -> Iterator[Check]:
    """Of every parameter of the lectures' scorer: backpropagation through gates against differences and the delta form."""
    for name, (numeric, graph, delta) in gradients.items():
        for against, expected in (("h = 1e-4", numeric), ("delta form", delta)):
            error = _error(torch.from_numpy(graph), torch.from_numpy(expected))
            yield Check("two-layer scorer", "gates", against, f"d_{name}", error)


def format_table(checks: list[Check]) -> str:
    """A line for every check, and a last one that counts those which failed."""
    head = ("function", "backend", "against", "tensor", "error", "allowed", "")
    rows = [
        (
            c.function,
            c.backend,
            c.against,
            c.tensor,
            f"{c.error:.1e}",
            f"{ALLOWED[c.against]:.0e}",
            "" if c.passed else "FAILED",
        )
        for c in checks
    ]
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in [head, *rows]]
    num_failed = sum(not check.passed for check in checks)
    return "\n".join([*lines, "", f"{len(checks)} checks, {num_failed or 'none'} failed"])


def _recurrences(generator: Generator, options: str) -> Iterator[Subject]:
    """The cells: plain, with resets, or with resets, zoneout and layer normalisation at once."""
    randn = partial(torch.randn, generator=generator, dtype=torch.float64)
    rand = partial(torch.rand, generator=generator, dtype=torch.float64)
    everything = options == " with everything"
    masks: NamedTensors = {"keep_TB": (rand(T, B) < 0.7).double()} if options else {}
    masks |= {"zoneout_TBH": rand(T, B, H)} if everything else {}
    cell_masks = {**masks, "cell_zoneout_TBH": rand(T, B, H)} if everything else masks

    def gain(letters: str, gates: int) -> NamedTensors:
        return {f"norm_gain_{letters}": 1 + 0.1 * randn(gates * H)} if everything else {}

    inputs = {"projected_TBH": randn(T, B, H), "h0_BH": randn(B, H), "weight_HH": randn(H, H), **gain("H", 1)}
    for nonlinearity in NONLINEARITIES:
        run = partial(_run_cell, elman, {"nonlinearity": nonlinearity, **masks}, ("states_TBH", "h_BH"))
        yield Subject(f"elman {nonlinearity}{options}", "elman", run, inputs)

    inputs = {"projected_TBZ": randn(T, B, 3 * H), "h0_BH": randn(B, H), "weight_ZH": randn(3 * H, H)}
    inputs |= {"candidate_bias_H": randn(H), **gain("Z", 3)}
    yield Subject(f"gru{options}", "gru", partial(_run_cell, gru, masks, ("states_TBH", "h_BH")), inputs)

    inputs = {"projected_TBZ": randn(T, B, 4 * H), "h0_BH": randn(B, H), "c0_BH": randn(B, H)}
    inputs |= {"weight_ZH": randn(4 * H, H), **gain("Z", 4)}
    yield Subject(f"lstm{options}", "lstm", partial(_run_cell, lstm, cell_masks, ("states_TBH", "h_BH", "c_BH")), inputs)


def _run_cell(
    cell: Callable[..., tuple[Tensor, ...]],
    options: Mapping[str, object],
    names: tuple[str, ...],
    inputs: NamedTensors,
    backend: str,
) -> NamedTensors:
    device = next(iter(inputs.values())).device
    placed = {name: x.to(device) if isinstance(x, Tensor) else x for name, x in options.items()}
    return dict(zip(names, cell(**inputs, **placed, backend=backend), strict=True))


def _output_layer(generator: Generator) -> Subject:
    """Linear layer and cross entropy in one."""
    randn = partial(torch.randn, generator=generator, dtype=torch.float64)
    targets_N = torch.randint(7, (6,), generator=generator)

    def run(inputs: NamedTensors, backend: str) -> NamedTensors:
        features, weight, bias = inputs.values()
        return {"total": linear_cross_entropy(features, weight, bias, targets_N.to(features.device), backend=backend)}

    inputs = {"features_ND": randn(6, H), "weight_VD": randn(7, H), "bias_V": randn(7)}
    return Subject("linear_cross_entropy", "linear_cross_entropy", run, inputs)


def _direct_output_layer(generator: Generator) -> Subject:
    """The output layer with hashed n-gram features, whose slices of the table overlap."""
    randn = partial(torch.randn, generator=generator, dtype=torch.float64)
    starts_NO, targets_N = torch.randint(4, (6, 2), generator=generator), torch.randint(7, (6,), generator=generator)

    def run(inputs: NamedTensors, _: str) -> NamedTensors:
        return {"total": DirectCrossEntropyFunction.apply(*inputs.values(), starts_NO, targets_N)}

    inputs = {"features_ND": randn(6, H), "weight_VD": randn(7, H), "bias_V": randn(7), "table": randn(10)}
    return Subject("direct_cross_entropy", "direct_cross_entropy", run, inputs)


def _sampled_output_layer(generator: Generator) -> Subject:
    """The same with a sampled normaliser; two of the targets are among the samples, one of them twice."""
    randn = partial(torch.randn, generator=generator, dtype=torch.float64)
    targets_N, samples_K = torch.tensor([0, 2, 6, 2, 5, 3]), torch.tensor([1, 2, 3])

    def run(inputs: NamedTensors, backend: str) -> NamedTensors:
        features, weight, bias = inputs.values()
        log_expected_K = torch.tensor([0.5, 0.9, 0.2], dtype=torch.float64).log()
        constants = (x.to(features.device) for x in (targets_N, samples_K, log_expected_K))
        return {"total": sampled_cross_entropy(features, weight, bias, *constants, backend=backend)}

    inputs = {"features_ND": randn(6, H), "weight_VD": randn(7, H), "bias_V": randn(7)}
    return Subject("sampled_cross_entropy", "sampled_cross_entropy", run, inputs)


def _lookup(generator: Generator) -> Subject:
    """Rows of a table, one of them never taken."""
    ids_TB = torch.tensor([[0, 2, 2], [3, 0, 2]])
    table_VZ = torch.randn(4, H, generator=generator, dtype=torch.float64)
    return Subject("lookup", "lookup", lambda inputs, _: {"y": lookup(inputs["table_VZ"], ids_TB)}, {"table_VZ": table_VZ})


def _linear(generator: Generator) -> Subject:
    """The linear layer in front of a recurrence."""
    randn = partial(torch.randn, generator=generator, dtype=torch.float64)
    inputs = {"x_NE": randn(B, E), "weight_ZE": randn(H, E), "bias_Z": randn(H)}
    return Subject("linear", "linear", lambda inputs, _: {"y": LinearFunction.apply(*inputs.values())}, inputs)


def _matmul(generator: Generator) -> Subject:
    """The product for bfloat16 on a CPU that has no instructions for it; in float64 it rounds nothing."""
    randn = partial(torch.randn, generator=generator, dtype=torch.float64)
    inputs = {"a_TBK": randn(T, B, E), "b_KN": randn(E, H), "bias_N": randn(H)}
    return Subject("matmul", "transforms", lambda inputs, _: {"y": MatmulFunction.apply(*inputs.values())}, inputs)


def _word_vectors(generator: Generator) -> Iterator[Subject]:
    """The losses of word vectors: CBOW, of which skip-gram is the case of one context, and GloVe."""
    randn = partial(torch.randn, generator=generator, dtype=torch.float64)
    contexts_NC, targets_N = torch.tensor([[0, 1, -1], [2, -1, -1], [1, 1, 4]]), torch.tensor([3, 0, 2])
    samples_NK = torch.tensor([[0, 3], [4, 4], [1, 0]])

    def predict(inputs: NamedTensors, _: str) -> NamedTensors:
        return {"total": negative_sampling(inputs["input_VE"], inputs["output_VE"], contexts_NC, targets_N, samples_NK)}

    yield Subject("negative_sampling", "negative_sampling", predict, {"input_VE": randn(5, E), "output_VE": randn(5, E)})
    words_N, contexts_N = torch.tensor([0, 1, 1, 3]), torch.tensor([2, 1, 0, 3])
    counts_N = torch.tensor([0.5, 3.0, 150.0, 7.0], dtype=torch.float64)

    def fit(inputs: NamedTensors, _: str) -> NamedTensors:
        word_VE, context_VE, word_bias_V, context_bias_V = inputs.values()
        return {"total": glove_loss(word_VE, context_VE, word_bias_V, context_bias_V, words_N, contexts_N, counts_N)}

    inputs = {"word_VE": randn(4, E), "context_VE": randn(4, E), "word_bias_V": randn(4), "context_bias_V": randn(4)}
    yield Subject("glove", "glove", fit, inputs)


def _window_classifiers(generator: Generator) -> Iterator[Subject]:
    """A layer over windows of words, in which words come again, under each of the three objectives of the lectures."""
    randn = partial(torch.randn, generator=generator, dtype=torch.float64)
    ids_NW, classes_N = torch.tensor([[0, 1, 2], [2, 2, 0], [1, 3, 2], [3, 0, 0]]), torch.tensor([0, 2, 1, 2])
    corrupted_NW = torch.tensor([[0, 3, 2], [2, 1, 0], [1, 0, 2], [3, 2, 0]])

    def scores(inputs: NamedTensors, windows: Tensor) -> Tensor:
        return affine(window_vectors(inputs["table_VE"], windows), inputs["weight_CD"], inputs["bias_C"])

    def margin(inputs: NamedTensors, _: str) -> NamedTensors:
        good_N, bad_N = (scores(inputs, windows).gather(1, classes_N[:, None])[:, 0] for windows in (ids_NW, corrupted_NW))
        return {"total": max_margin_loss(good_N, bad_N)}

    inputs = {"table_VE": randn(4, E), "weight_CD": randn(3, 3 * E), "bias_C": randn(3)}
    is_there_NC = classes_N[:, None] == torch.arange(3)
    yield Subject("softmax", "softmax", lambda given, _: {"total": softmax_loss(scores(given, ids_NW), classes_N)}, inputs)
    yield Subject("logistic", "logistic", lambda given, _: {"total": logistic_loss(scores(given, ids_NW), is_there_NC)}, inputs)
    bias_C = inputs["bias_C"]  # a window and its corruption are scored by one class, so its bias has no gradient
    given = {name: tensor for name, tensor in inputs.items() if name != "bias_C"}
    yield Subject("max_margin", "max_margin", lambda part, _: margin({**part, "bias_C": bias_C}, ""), given)


def _average(generator: Generator) -> Subject:
    """Averages of rows over bags: one bag is empty, of another nothing is kept, one row is never read and one is read twice."""
    ids_M, offsets_N = torch.tensor([0, 2, 2, 1, 4, 0]), torch.tensor([0, 3, 3, 4])
    keep_M = torch.tensor([True, True, True, False, True, True])
    table_VE = torch.randn(5, H, generator=generator, dtype=torch.float64)

    def run(inputs: NamedTensors, _: str) -> NamedTensors:
        return {"y": average(inputs["table_VE"], ids_M, offsets_N, keep_M)}

    return Subject("average", "average", run, {"table_VE": table_VE})


def _activations(generator: Generator) -> Iterator[Subject]:
    """Every non-linearity, with its learnt parameter if it has one."""
    for name, function in ACTIVATIONS.items():
        inputs = {"x": 2 * torch.randn(6 if name in GATED else 5, 4, generator=generator, dtype=torch.float64)}
        if name in LEARNT:
            inputs["parameter"] = torch.full((4,), LEARNT[name], dtype=torch.float64)
        yield Subject(name, name, lambda inputs, _, f=function: {"y": f(*inputs.values())}, inputs)  # type: ignore[misc]


def _check_differences(subject: Subject) -> Iterator[Check]:
    """Gradients by hand against central differences."""

    def run(inputs: NamedTensors) -> NamedTensors:
        return subject.run(inputs, "eager")

    made = _results(run, subject.inputs)
    for name, x in subject.inputs.items():
        differences = torch.empty_like(x)
        for index in range(x.numel()):
            shift = torch.zeros_like(x)
            shift.view(-1)[index] = STEP
            above, below = (_projection(run({**subject.inputs, name: x + sign * shift})) for sign in (1, -1))
            differences.view(-1)[index] = (above - below) / (2 * STEP)
        error = _error(made[f"d_{name}"], differences)
        yield Check(subject.name, "eager", "central differences", f"d_{name}", error)


def _check_against_torch(generator: Generator) -> Iterator[Check]:
    """Values and gradients of `lmtrain.nn` against PyTorch's own modules, every parameter the same."""
    cells: dict[str, tuple[str, dict[str, str]]] = {
        "elman tanh": ("RNN", {}), "elman relu": ("RNN", {"nonlinearity": "relu"}), "gru": ("GRU", {}), "lstm": ("LSTM", {}),
    }  # fmt: skip
    for name, (cls, options) in cells.items():
        with torch.random.fork_rng(devices=[]):  # the modules draw weights from the global generator, which are not used
            ours = getattr(lmtrain.nn, cls)(E, H, **options, backend="eager", dtype=torch.float64)
            theirs = getattr(nn, cls)(E, H, **options, dtype=torch.float64)
        shapes = {"x_TBE": (T, B, E), "h0_BH": (B, H), **({"c0_BH": (B, H)} if cls == "LSTM" else {})}
        shapes |= {key: tuple(parameter.shape) for key, parameter in theirs.named_parameters()}
        inputs = {key: torch.randn(shape, generator=generator, dtype=torch.float64) for key, shape in shapes.items()}
        made = _results(partial(_layer, ours), inputs)
        for tensor, expected in _results(partial(_layer, theirs), inputs).items():
            yield Check(name, "eager", "torch.nn", tensor, _error(made[tensor], expected))


def _layer(module: nn.RNNBase, inputs: NamedTensors) -> NamedTensors:
    """What a module of one layer computes with the given parameters."""
    x_TBE, *states = (x if name == "x_TBE" else x[None] for name, x in inputs.items() if "_l0" not in name)
    weights = {name: x for name, x in inputs.items() if "_l0" in name}
    states_TBH, final = torch.func.functional_call(module, weights, (x_TBE, tuple(states) if len(states) > 1 else states[0]))
    finals = final if isinstance(final, tuple) else (final,)
    return {"states_TBH": states_TBH, **{key: y[0] for key, y in zip(("h_BH", "c_BH"), finals, strict=False)}}


def _fast_backends(operation: str) -> Iterator[tuple[str, str]]:
    """Those of the compiled backends that serve the operation in float32 here, each with its device."""
    for backend, device in (("native", "cpu"), ("triton", "cuda")):
        if device == "cuda" and not torch.cuda.is_available():
            continue
        if reason := why_not(backend, Call(operation, device, torch.float32, {"T": T, "B": B, "H": H})):
            log.warning("%s is not checked with backend %s: %s", operation, backend, reason)
        else:
            yield backend, device


def _check_float32(subject: Subject, backend: str, device: str) -> Iterator[Check]:
    """Values and gradients of a backend in float32, against the reference's in float64 for the same numbers."""
    rounded = {name: x.float() for name, x in subject.inputs.items()}
    exact = {name: x.double() for name, x in rounded.items()}
    placed = {name: x.to(device) for name, x in rounded.items()}
    made = _results(lambda inputs: subject.run(inputs, backend), placed)
    for name, expected in _results(lambda inputs: subject.run(inputs, "reference"), exact).items():
        yield Check(subject.name, backend, "float64", name, _error(made[name], expected))


def _results(run: TensorFunction, inputs: NamedTensors) -> NamedTensors:
    """The outputs, and the gradient d_<name> of their projection for every input."""
    leaves = {name: x.detach().requires_grad_() for name, x in inputs.items()}
    outputs = run(leaves)
    gradients = torch.autograd.grad(_projection(outputs), list(leaves.values()))
    return {**outputs, **{f"d_{name}": d for name, d in zip(leaves, gradients, strict=True)}}


def _projection(outputs: NamedTensors) -> Tensor:
    """The outputs' sum, weighted at random but always alike: a scalar in which no gradient can hide."""
    generator = Generator().manual_seed(2)
    weighted = [y.double().cpu() * torch.randn(y.shape, generator=generator, dtype=torch.float64) for y in outputs.values()]
    return torch.stack([y.sum() for y in weighted]).sum()


def _error(made: Tensor, expected: Tensor) -> float:
    difference = (made.detach().double().cpu() - expected.detach()).abs().max()
    return float(difference / expected.detach().abs().max())
