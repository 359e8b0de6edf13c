"""The least time that the parts of a preset can take on a machine (a roofline; Williams, Waterman and Patterson 2009).

A part has matrix products and bytes that must pass. Its limit is the longer of two times: of its products, each at the rate
that the fastest routine reaches for that very shape, and of its bytes, at the bandwidth of the nearest caches that can hold
them (of a larger set than a cache, that cache holds a share).
Non-linearities, softmax and sums are counted as nothing, so no limit can be reached to the last per cent.

    part         products                                            bytes
    embedding    -                                                   rows that are looked up, and their gradients
    projection   inputs of every layer, gradients of both operands   inputs, projections, weight, their gradients
    forward      T products [B, H] x [H, Z] for each layer           the weight T times; what is read, written and saved
    backward     T products [B, Z] x [Z, H], the weight's gradient   the same, the other way round
    head         logits, gradients of features and weight            weight and gradient
    clip         -                                                   every gradient, read once
    optimizer    -                                                   of Adam: four numbers of each weight read, three written

    legend   T steps · B streams · N = T x B tokens · E inputs of a layer · H hidden · Z gates x H · D features · V vocabulary
"""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.machine import Machine, Product
from benchmarks.measuring import ratio
from benchmarks.presets import NUM_SAMPLES, Preset

FLOAT32 = 4  # bytes of weights, their gradients and moments, and of cells
SAVED = {"elman": 0, "gru": 4, "lstm": 4}  # gates that are saved for the backward pass, each as wide as the products
GRADIENTS = {"elman": 1, "gru": 4, "lstm": 4}  # of gates, behind the backward pass, each counted once


@dataclass(frozen=True)
class Traffic:
    """Bytes that pass once each, out of a set of so many; `updates`: they are read and written, or some read, some written."""

    num_bytes: int
    set_bytes: int
    updates: bool = True


@dataclass(frozen=True)
class Work:
    """What a part must do at least."""

    products: tuple[Product, ...] = ()
    traffic: tuple[Traffic, ...] = ()

    @property
    def flops(self) -> int:
        return sum(product.flops for product in self.products)

    @property
    def num_bytes(self) -> int:
        return sum(traffic.num_bytes for traffic in self.traffic)


@dataclass(frozen=True)
class Limit:
    """The least milliseconds of a part, and what they are needed for: products, L2, L3 or memory."""

    milliseconds: float
    bound: str


@dataclass(frozen=True)
class Reached:
    """A part as it was measured, beside its limit; None where it was not measured."""

    milliseconds: float | None
    limit_milliseconds: float
    fraction: float | None
    bound: str


def compared(measured: dict[str, float], limits: dict[str, Limit], whole_milliseconds: float) -> dict[str, Reached]:
    """Every part, what is measured beside them (`rest`), and the `whole`, which cannot be shorter than all limits together."""
    reached = {
        name: Reached(measured.get(name), limit.milliseconds, ratio(limit.milliseconds, measured.get(name)), limit.bound)
        for name, limit in limits.items()
        if measured
    }
    if measured:
        reached["rest"] = Reached(max(0.0, whole_milliseconds - sum(measured.values())), 0.0, None, "-")
    least = sum(limit.milliseconds for limit in limits.values())
    return reached | {"whole": Reached(whole_milliseconds, least, ratio(least, whole_milliseconds), "all parts")}


def limits_of(preset: Preset, precision: str, machine: Machine) -> dict[str, Limit]:
    """The limit of every part, in the order in which a step does them."""
    return {name: limit(work, precision, machine) for name, work in work_of(preset, precision).items()}


def limit(work: Work, precision: str, machine: Machine) -> Limit:
    """The longer of the two times of a part."""
    products = sum(machine.seconds(product, precision) for product in work.products)
    by_level: dict[str, float] = {}
    for traffic in work.traffic:
        for level, share in machine.shares(traffic.set_bytes).items():
            seconds = share * traffic.num_bytes / machine.bytes_per_second(level, traffic.updates)
            by_level[level] = by_level.get(level, 0.0) + seconds
    passing = sum(by_level.values())
    bound = max(by_level, key=by_level.__getitem__) if passing > products else "products"
    return Limit(1e3 * max(products, passing), bound)


def work_of(preset: Preset, precision: str) -> dict[str, Work]:
    """What each part of a preset must do; nothing for a preset that has none of these parts."""
    width = {"float32": 4, "bfloat16": 2, "int8": 1}[precision]
    if preset.part in ("generate", "score", "samples"):
        return {"tokens": _use(preset, width)}
    recurrence = {
        "projection": _projection(preset, width),
        "forward": _forward(preset, width),
        "backward": _backward(preset, width),
    }
    if preset.part == "recurrence":
        return recurrence
    if preset.part == "head":
        return {"head": _head(preset, width)}
    if preset.part not in ("step", "dropin"):
        return {}
    weights_bytes = FLOAT32 * preset.num_parameters
    return {
        "embedding": _embedding(preset, width),
        **recurrence,
        "head": _head(preset, width),
        "clip": Work(traffic=(Traffic(weights_bytes, weights_bytes, updates=False),)),
        "optimizer": Work(traffic=(Traffic(7 * weights_bytes, 4 * weights_bytes),)),
    }


def _embedding(preset: Preset, width: int) -> Work:
    """Reads a row per token and adds a gradient to it; the rows are projected ones where words are projected."""
    size, hidden = preset.layer_sizes[0]
    row_bytes = preset.num_gates * hidden * width if preset.projects_words else size * FLOAT32
    rows = min(preset.num_tokens, preset.vocab_size)
    num_bytes = 2 * preset.num_tokens * row_bytes + 2 * rows * row_bytes  # out, and gradients in; rows read, gradients written
    return Work(traffic=(Traffic(num_bytes, num_bytes),))


def _projection(preset: Preset, width: int) -> Work:
    products: list[Product] = []
    num_bytes = 0
    for number, (size, hidden) in enumerate(preset.layer_sizes):
        rows = preset.vocab_size if preset.projects_words and number == 0 else preset.num_tokens
        outputs = preset.num_gates * hidden
        products += [
            Product(rows, size, outputs),
            Product(rows, outputs, size, layout="nn"),
            Product(outputs, rows, size, layout="tn"),
        ]
        num_bytes += 2 * width * rows * (size + outputs) + 2 * FLOAT32 * outputs * size
    return Work(tuple(products), (Traffic(num_bytes, num_bytes),))


def _forward(preset: Preset, width: int) -> Work:
    products, traffic = [], []
    for _, hidden in preset.layer_sizes:
        outputs = preset.num_gates * hidden
        products.append(Product(preset.batch_size, hidden, outputs, preset.chunk_length))
        per_unit = width * (preset.num_gates + 1) + _saved_bytes(preset, width)  # projections in, states out
        traffic += _time_loop(preset, width, outputs * hidden, preset.num_tokens * hidden * per_unit)
    return Work(tuple(products), tuple(traffic))


def _backward(preset: Preset, width: int) -> Work:
    products, traffic = [], []
    for _, hidden in preset.layer_sizes:
        outputs = preset.num_gates * hidden
        products += [
            Product(preset.batch_size, outputs, hidden, preset.chunk_length, "nn"),
            Product(outputs, preset.num_tokens, hidden, layout="tn"),
        ]
        per_unit = width * (2 + GRADIENTS[preset.cell]) + _saved_bytes(preset, width)  # states and gradients in, gates' out
        num_bytes = preset.num_tokens * hidden * per_unit + FLOAT32 * outputs * hidden
        traffic += _time_loop(preset, width, outputs * hidden, num_bytes)
    return Work(tuple(products), tuple(traffic))


def _saved_bytes(preset: Preset, width: int) -> int:
    """Of a unit at a step, behind the forward pass: activated gates, and the cell of an LSTM."""
    return width * SAVED[preset.cell] + FLOAT32 * (preset.cell == "lstm")


def _time_loop(preset: Preset, width: int, num_weights: int, others_bytes: int) -> list[Traffic]:
    weight_bytes = width * num_weights
    return [
        Traffic(preset.chunk_length * weight_bytes, weight_bytes, updates=False),
        Traffic(others_bytes, others_bytes),
    ]


def _head(preset: Preset, width: int) -> Work:
    """Three products. With samples each token has its own row too, which is read and whose gradient is written."""
    tokens, size, sampled = preset.num_tokens, preset.layer_sizes[-1][1], preset.head == "sampled"
    words = NUM_SAMPLES if sampled else preset.vocab_size
    products = (
        Product(tokens, size, words),
        Product(tokens, words, size, layout="nn"),
        Product(words, tokens, size, layout="tn"),
    )
    rows = words + (tokens if sampled else 0)
    num_bytes = 2 * FLOAT32 * rows * size + 2 * width * tokens * size
    return Work(products, (Traffic(num_bytes, num_bytes),))


def _use(preset: Preset, width: int) -> Work:
    """Forward alone. A text that is scored is known, so its products are large ones; one that is written is not."""
    scored = preset.part == "score"
    rows, times = (preset.num_tokens, 1) if scored else (preset.batch_size, preset.chunk_length)
    products: list[Product] = []
    for size, hidden in preset.layer_sizes:
        outputs = preset.num_gates * hidden
        products += [
            Product(rows, size, outputs, times),
            Product(preset.batch_size, hidden, outputs, preset.chunk_length),
        ]
    products.append(Product(rows, preset.layer_sizes[-1][1], preset.vocab_size, times))
    read = sum(product.inner * product.columns for product in products) * width  # the weights, for every token that is written
    if width == 1:  # weights in 8 bits: what there is to compare with reads wider ones, so only their bytes count
        products = []
    return Work(tuple(products), (Traffic(read * times, read, updates=False),))


def table(title: str, reached: dict[str, Reached]) -> str:
    """The parts of one contestant, to be printed."""
    lines = [f"  {title}", f"    {'part':12}{'ms':>9}{'limit':>9}{'reached':>9}  bound by"]
    for name, part in reached.items():
        shown = [
            "-" if value is None else format(value, form)
            for value, form in ((part.milliseconds, ".3f"), (part.limit_milliseconds, ".3f"), (part.fraction, ".0%"))
        ]
        lines.append(f"    {name:12}{shown[0]:>9}{shown[1]:>9}{shown[2]:>9}  {part.bound}")
    return "\n".join(lines)
