"""Explanations that are ready made: the examples with which the lectures teach gradients.

    chain      the chain rule for one variable, and for several: Jacobians are multiplied
    softmax    cross entropy behind a softmax: both cases of its gradient
    window     a scored window s = u^T f(W x + b), down to the vector of each of its words
    collapse   layers without a non-linearity between them are one layer
    elman, gru, lstm   one step of each cell (`cells`)

Each takes its sizes and its seed as `name=value` and returns an `Explanation`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import numpy as np

from lmtrain.explain.explanation import Explanation
from lmtrain.explain.gates import Array
from lmtrain.explain.graph import Graph
from lmtrain.explain.parser import parse
from lmtrain.explain.reader import parse_value
from lmtrain.explain.source import ExpressionError
from lmtrain.explain.text import jacobian_of
from lmtrain.explain.values import bind, number, show
from lmtrain.quantity import counted
from lmtrain.shell import one_line

Settings = dict[str, object]
ACTIVATIONS = ("tanh", "sigmoid", "relu", "identity")
SENTENCE = ("museums", "in", "Paris", "are", "amazing")
STEP = 1e-4  # of numeric gradients, as in the lectures


def whole(name: str, text: str, least: int, most: int) -> int:
    """A whole number that a lesson takes. Raises ExpressionError for another."""
    if not text.strip().isdecimal() or not text.isascii() or len(text) > 12 or not least <= int(text) <= most:
        raise ExpressionError(
            f"{name}={one_line(text)[:40]} cannot be used.", f"{name} is a whole number from {least} to {most}.",
            f"Type for example  {name}={least + 1}  .",
        )  # fmt: skip
    return int(text)


def take(lesson: str, words: Iterable[str], defaults: Mapping[str, str]) -> dict[str, str]:
    """The `name=value` words of a lesson over its defaults. Raises ExpressionError for a name that it does not take."""
    taken: dict[str, str] = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not equals or name not in defaults or name in taken:
            problem = "was given twice" if name in taken else "cannot be used here"
            raise ExpressionError(
                f'"{one_line(word)[:60]}" {problem}.', f"explain {lesson} takes {', '.join(defaults) or 'nothing'}.",
                f"Type for example  explain {lesson} {' '.join(f'{n}={v}' for n, v in defaults.items() if v)}".rstrip() + "  .",
            )  # fmt: skip
        taken[name] = text
    return {**defaults, **taken}


def draw_value(generator: np.random.Generator, *shape: int) -> Array:
    """Numbers with one decimal, so that they can be followed by hand; none is 0."""
    drawn = generator.integers(1, 10, size=shape) * generator.choice([-0.1, 0.1], size=shape)
    return np.asarray(drawn.round(1), dtype=np.float64)


def made(expression: str, values: Mapping[str, object]) -> Graph:
    graph = parse(expression)
    bind(graph, values)
    return graph


def chain(words: Iterable[str]) -> Explanation:
    """z = 3 y, y = x^2; then h = f(W x + b) with its Jacobians."""
    x = parse_value("x", take("chain", words, {"x": "2"})["x"])
    if x.ndim:
        raise ExpressionError("x of explain chain is not a scalar.", "It is a number.", "Type for example  x=2  .")
    explanation = Explanation(
        made("y = x ** 2; z = 3 * y", {"x": x}),
        ["The chain rule for one variable: z = 3 y and y = x^2, so dz/dx = (dz/dy) (dy/dx) = 3 * 2x = 6x."],
    )
    h = made("z = W @ x + b; h = sigmoid(z)", {"W": [[0.5, -0.2, 0.1], [0.3, 0.8, -0.4]], "x": [1, 2, -1], "b": [0.1, -0.3]})
    h.forward(), h.backward()
    nodes = {node.name: node for node in h.nodes_topologically_sorted()}
    outer, inner, bias = jacobian_of(nodes["h"], 0), jacobian_of(nodes["z"], 0), jacobian_of(nodes["z"], 1)
    product = jacobian_of(nodes["z"].inputs[0], 1)
    explanation.remarks = [
        "The same for several variables: h = f(z), z = W x + b. Jacobians are multiplied, dh/dx = (dh/dz) (dz/dx):",
        f"  dh/dz = diag(f'(z))         = {show(outer)}",
        f"  dz/dx = W                   = {show(inner @ product)}",
        f"  dz/db = I                   = {show(bias)}",
        f"  dh/dx = diag(f'(z)) W       = {show(outer @ inner @ product)}",
        f"For s = u^T h also ds/du = h^T = {show(nodes['h'].value if nodes['h'].value is not None else outer)}.",
    ]
    return explanation


def softmax(words: Iterable[str]) -> Explanation:
    """J = -log softmax(z)_y and both cases of dJ/dz_k."""
    given = take("softmax", words, {"C": "3", "y": "1", "z": ""})
    size = whole("C", given["C"], 2, 40)
    target = whole("y", given["y"], 1, size)
    z = parse_value("z", given["z"]) if given["z"] else np.round(np.linspace(2, -1, size), 2)
    if z.shape != (size,):
        raise ExpressionError(
            f"z has the shape {z.shape}.", f"With C={size} it is a vector of {size} numbers.", "Give z and C that fit."
        )
    one_hot = [int(k == target) for k in range(1, size + 1)]
    explanation = Explanation(
        made(f"p = softmax(z); J = -log({one_hot} @ p)", {"z": z}),
        [
            f"Cross entropy behind a softmax: J = -log p_y, p = softmax(z), C = {size} classes (counted from 1), y = {target}.",
            "  case k = y     dJ/dz_k = -(1/p_y) p_y (1 - p_y) = p_y - 1",
            "  case k != y    dJ/dz_k = -(1/p_y) (-p_y p_k)    = p_k",
            "  together       dJ/dz = p - t, where t is 1 for class y and 0 for the others",
        ],
    )
    p = np.exp(z - z.max()) / np.exp(z - z.max()).sum()
    explanation.remarks = ["k   case     z_k        p_k        by the case   by the graph   numeric (h = 1e-4)"]
    for k in range(size):
        numeric = (_cross_entropy(z, target - 1, k, STEP) - _cross_entropy(z, target - 1, k, -STEP)) / (2 * STEP)
        by_case, by_graph = p[k] - (k == target - 1), explanation.gradients["z"][k]
        case = "k = y" if k == target - 1 else "k != y"
        cells = f"{number(z[k]):10} {number(p[k]):10} {number(by_case):13} {number(by_graph):14} {number(numeric)}"
        explanation.remarks.append(f"{k + 1:<3} {case:8} {cells}")
    return explanation


def _cross_entropy(z: Array, target: int, k: int, step: float) -> float:
    shifted = z.copy()
    shifted[k] += step
    return float(np.log(np.exp(shifted - shifted.max()).sum()) + shifted.max() - shifted[target])


def window(words: Iterable[str]) -> Explanation:
    """s = u^T f(W x + b), where x is the vectors of a window's words, one behind the other."""
    from lmtrain.explain.cells import through_activation

    defaults = {"activation": "tanh", "words": "5", "size": "2", "hidden": "3", "seed": "1"}
    given = take("window", words, defaults)
    activation = given["activation"]
    if activation not in ACTIVATIONS:
        raise ExpressionError(
            f"activation={one_line(activation)[:40]} cannot be used.", f"Allowed are {', '.join(ACTIVATIONS)}.",
            "Type for example  activation=tanh  .",
        )  # fmt: skip
    num_words, size = whole("words", given["words"], 1, 15), whole("size", given["size"], 1, 100)
    hidden, seed = whole("hidden", given["hidden"], 1, 100), whole("seed", given["seed"], 0, 10**9)
    if num_words % 2 == 0:
        raise ExpressionError(
            f"words={num_words} has no word in the middle.",
            "A window is an odd number of words.",
            f"Type  words={num_words + 1}  .",
        )
    generator = np.random.default_rng(seed)
    values: dict[str, object] = {
        "W": draw_value(generator, hidden, num_words * size), "x": draw_value(generator, num_words * size),
        "b": draw_value(generator, hidden), "u": draw_value(generator, hidden),
    }  # fmt: skip
    f = "z" if activation == "identity" else f"{activation}(z)"
    explanation = Explanation(
        made(f"z = W @ x + b; s = u @ {f}" if f == "z" else f"z = W @ x + b; h = {f}; s = u @ h", values),
        [
            f"A scored window: s = u^T f(W x + b), f = {activation}; x is the vectors of {counted(num_words, 'word')},",
            f"one behind the other, {counted(size, 'number')} each; {counted(hidden, 'hidden unit')}.",
        ],
    )
    delta, d_x = explanation.gradients["b"], explanation.gradients["x"]
    named = SENTENCE if num_words == len(SENTENCE) else [f"word {i + 1}" for i in range(num_words)]
    explanation.remarks = [
        "In the lectures' words",
        f"  delta = u o f'(z)      = {show(delta)}   (the error signal; it is ds/db)",
        "  ds/dW = delta x^T        an outer product: entry i, j is delta_i x_j",
        "  ds/dx = W^T delta        the vector of each word gets its own part, and with it an update of its embedding:",
        *(f"    {word:10} {show(d_x[i * size : (i + 1) * size])}" for i, word in enumerate(named)),
        "",
        *through_activation(explanation, activation),
    ]
    return explanation


def collapse(words: Iterable[str]) -> Explanation:
    """W2 (W1 x + b1) + b2 is W x + b with W = W2 W1; with a non-linearity in between it is not."""
    given = take("collapse", words, {"input": "3", "hidden": "4", "seed": "1"})
    size, hidden = whole("input", given["input"], 1, 100), whole("hidden", given["hidden"], 1, 100)
    generator = np.random.default_rng(whole("seed", given["seed"], 0, 10**9))
    W1, W2 = draw_value(generator, hidden, size), draw_value(generator, 2, hidden)
    b1, b2 = draw_value(generator, hidden), draw_value(generator, 2)
    values = {"W1": W1, "W2": W2, "b1": b1, "b2": b2, "x": draw_value(generator, size)}
    explanation = Explanation(
        made("h = W1 @ x + b1; y = W2 @ h + b2", values),
        ["Two linear layers with nothing between them: y = W2 (W1 x + b1) + b2."],
    )
    inputs = generator.standard_normal((1000, size))
    W, b = W2 @ W1, W2 @ b1 + b2
    two, one = (inputs @ W1.T + b1) @ W2.T + b2, inputs @ W.T + b
    curved = np.tanh(inputs @ W1.T + b1) @ W2.T + b2
    extended = np.hstack([inputs, np.ones((1000, 1))])
    missed = curved - extended @ np.linalg.lstsq(extended, curved, rcond=None)[0]
    share = float((missed**2).sum() / ((curved - curved.mean(0)) ** 2).sum())
    difference = float(np.abs(two - one).max())
    explanation.facts = {"W": W.tolist(), "b": b.tolist(), "largest_difference": difference, "missed_with_tanh": share}
    explanation.remarks = [
        "They collapse into one layer: y = W x + b with W = W2 W1 and b = W2 b1 + b2",
        f"  W = {show(W)}",
        f"  b = {show(b)}",
        f"  largest difference between two layers and one on 1,000 random inputs: {difference:.1e}",
        "With tanh between them they do not: y = W2 tanh(W1 x + b1) + b2",
        f"  the best single layer (least squares) misses {100 * share:.1f} % of the variance",
        "So more layers without non-linearities compute nothing that one could not. A model that shows it when it is trained:",
        "  python -m lmtrain model=window model.num_layers=2 model.activation=identity",
    ]
    return explanation


def _cell(name: str) -> Callable[[Iterable[str]], Explanation]:
    def explain_cell(words: Iterable[str]) -> Explanation:
        from lmtrain.explain.cells import step

        given = take(name, words, {"hidden": "2", "seed": "1"})
        return step(name, whole("hidden", given["hidden"], 1, 20), whole("seed", given["seed"], 0, 10**9))

    return explain_cell


LESSONS: dict[str, Callable[[Iterable[str]], Explanation]] = {
    "chain": chain, "softmax": softmax, "window": window, "collapse": collapse,
    "elman": _cell("elman"), "gru": _cell("gru"), "lstm": _cell("lstm"),
}  # fmt: skip
"""Every lesson by the word that `explain` takes; each takes `name=value` words."""
