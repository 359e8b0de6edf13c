"""`python -m lmtrain inspect`: what a task's data look like, as text, JSON and Zipf's plot.

A task hands out its `Material`: every split as numbers, and what is particular to it as sections. The rest is common to all.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmtrain.data import statistics
from lmtrain.data.corpus import Corpus
from lmtrain.data.overlap import find_overlap
from lmtrain.data.sources import NAMES
from lmtrain.explain.drawing import GRADIENT, INK, NORMAL, QUIET, SMALL, VALUE, svg_document, svg_text
from lmtrain.shell import num_columns, one_line, padded

NUM_FREQUENT, NUM_EXAMPLES = 20, 5
WIDTH, HEIGHT, LEFT, TOP = 560.0, 380.0, 80.0, 60.0


@dataclass(frozen=True)
class Section:
    """Something that only one task has to tell: a heading, lines, and the same for programs under `name`."""

    name: str
    heading: str
    lines: Sequence[str]
    document: Any


@dataclass(frozen=True)
class Overlap:
    """How many lines of a split are in another one, of how many that were looked for."""

    split: str
    other: str
    found: int
    compared: int


@dataclass(frozen=True)
class Material:
    """What a task has to be looked at.

    ids       of every split, `end` behind every line
    end       the id of a line's end
    word      the text of an id
    unit      what a token is: word, char, ...;  line: what a line is: line, sentence, text
    unknown   share of tokens of a split that the vocabulary, learnt from train, does not know; None if nothing is unknown
    examples  lines of train as they are
    """

    ids: Mapping[str, NDArray[Any]]
    end: int
    word: Callable[[int], str]
    unit: str
    line: str
    unknown: Mapping[str, float | None]
    overlaps: Sequence[Overlap]
    examples: Sequence[str]
    sections: Sequence[Section] = field(default=())


def material_of(
    lines: Mapping[str, Sequence[Sequence[str]]], *, line: str, unknown: Mapping[str, float | None],
    sections: Sequence[Section] = (),
) -> Material:  # fmt: skip
    """Of splits that are lists of lines, each a list of words as they are written."""
    words = ["", *dict.fromkeys(word for split in lines.values() for each in split for word in each)]
    number = {word: index for index, word in enumerate(words)}
    number[""] = 0
    ids = {
        name: np.array([i for each in split for i in (*(number[word] for word in each), 0)], np.int64)
        for name, split in lines.items()
    }
    whole = {name: [tuple(each) for each in split] for name, split in lines.items()}
    sets = {name: set(split) for name, split in whole.items()}
    overlaps = [
        Overlap(name, other, sum(each in sets[other] for each in whole[name]), len(whole[name]))
        for name, other in pairs_of(lines)
    ]
    examples = [" ".join(each) for each in lines["train"][:NUM_EXAMPLES]]
    return Material(ids, 0, words.__getitem__, "word", line, unknown, overlaps, examples, sections)


def material_of_corpus(corpus: Corpus, with_all_types: Callable[[], Corpus] | None) -> Material:
    """Of a text, as its tokenizer reads it. `with_all_types` gives the same text with an id for what the vocabulary lacks."""
    splits = {name: split for name in NAMES if (split := getattr(corpus, name)) is not None}
    has_unknown = corpus.tokenizer.unk_id is not None
    num_tokens = {name: np.count_nonzero(split.ids != corpus.tokenizer.eos_id) for name, split in splits.items()}
    unknown = {name: split.num_unk / max(num_tokens[name], 1) if has_unknown else None for name, split in splits.items()}
    lacks = any(split.num_unk for split in splits.values())
    if lacks and with_all_types is not None:
        corpus, lacks = with_all_types(), False
        splits = {name: getattr(corpus, name) for name in splits}
    tokenizer = corpus.tokenizer
    overlaps = []
    for name, other in pairs_of(splits):
        found = find_overlap(splits[name].lines, splits[other].lines)
        overlaps.append(Overlap(name, other, found.num_found, found.num_compared))
    notes = ["A line of less than 32 bytes is looked for together with those that follow; of long texts a sample is."]
    if lacks:
        notes.append("What the vocabulary lacks is one type here, <unk>.")
    elif any(unknown.values()):
        notes.append("What the vocabulary lacks is counted here as it is written, each as a type of its own.")
    first = np.asarray(splits["train"].ids[:100_000])
    lines = np.split(first, np.flatnonzero(first == tokenizer.eos_id) + 1)
    return Material(
        {name: np.asarray(split.ids) for name, split in splits.items()}, tokenizer.eos_id, tokenizer.token_text, tokenizer.name,
        "line", unknown, overlaps, [tokenizer.decode(line.tolist()).rstrip("\n") for line in lines[:NUM_EXAMPLES]],
        [Section("notes", "Notes", notes, notes)],
    )  # fmt: skip


def pairs_of(splits: Iterable[str]) -> list[tuple[str, str]]:
    """Says which splits are looked for in which."""
    names = list(splits)
    return [(name, other) for index, name in enumerate(names) for other in names[:index]]


def shares_of(name: str, heading: str, counts: Mapping[str, Counter[str]]) -> Section:
    """Counts how often each tag or label occurs in every split."""
    labels = [label for label, _ in sum(counts.values(), Counter[str]()).most_common()]
    width = max([num_columns(one_line(label)) for label in labels], default=0)
    lines = [" " * width + "".join(f"{split:>18}" for split in counts)]
    for label in labels:
        cells = [f"{c[label]:>10,}{c[label] / max(c.total(), 1):>8.1%}" for c in counts.values()]
        lines.append(padded(one_line(label), width) + "".join(cells))
    return Section(name, heading, lines, {split: dict(counter) for split, counter in counts.items()})


class Inspection:
    """All that is known of the material."""

    def __init__(self, material: Material) -> None:
        self.material = material
        train = material.ids["train"]
        self.sizes = {name: statistics.sizes_of(ids, material.end) for name, ids in material.ids.items()}
        self.lengths = {name: statistics.lengths_of(ids, material.end) for name, ids in material.ids.items()}
        self.growth = statistics.growth(train, material.end)
        self.exponent = statistics.zipf_exponent(self._counts)
        others = {name: ids for name, ids in material.ids.items() if name != "train"}
        self.sparsity = {name: statistics.sparsity(train, ids, material.end) for name, ids in others.items()}

    @cached_property
    def _counts(self) -> NDArray[np.int64]:
        return statistics.counts_of(self.material.ids["train"], self.material.end)

    @cached_property
    def frequent(self) -> list[tuple[str, int]]:
        """Returns the most frequent words of train; of equally frequent ones the first by number."""
        order = np.argsort(-self._counts, kind="stable")[:NUM_FREQUENT]
        return [(self.material.word(int(i)), int(self._counts[i])) for i in order if self._counts[i]]

    def to_json(self) -> dict[str, Any]:
        """Everything for programs."""
        material = self.material
        return {
            "unit": material.unit,
            "splits": {
                name: {**self.sizes[name]._asdict(), "unknown": material.unknown[name], "lengths": self.lengths[name]._asdict()}
                for name in material.ids
            },
            "growth": self.growth,
            "zipf_exponent": self.exponent,
            "frequent": self.frequent,
            "overlaps": [asdict(overlap) for overlap in material.overlaps],
            "unseen_ngrams": {name: [each._asdict() for each in found] for name, found in self.sparsity.items()},
            **{section.name: section.document for section in material.sections},
            "examples": list(material.examples),
        }

    def format(self) -> str:
        """Everything as lines to read."""
        material, unit = self.material, self.material.unit
        parts = [("", self._sizes()), (f"Lengths of {material.line}s, in tokens", self._lengths())]
        parts.append((f"Types among the first tokens of train ({unit} tokens)", self._growth()))
        total = max(self.sizes["train"].tokens, 1)
        frequent = [f"{one_line(word)!s:<20} {count:>10,} {count / total:>7.2%}" for word, count in self.frequent]
        parts.append(("The most frequent of train", frequent))
        if self.exponent is not None:
            parts.append(("", [f"Zipf: the frequency falls as rank^-{self.exponent:.2f} (ranks 10 to 1000)"]))
        parts.append((f"{material.line.capitalize()}s of one split in another", [_overlap(o) for o in material.overlaps]))
        parts.append((f"n-grams never seen in train ({unit} tokens, within a {material.line})", self._sparsity()))
        parts += [(section.heading, list(section.lines)) for section in material.sections]
        parts.append(("The beginning of train", [one_line(example)[:160] for example in material.examples]))
        return "\n\n".join(
            "\n".join([heading + ":"] * bool(heading) + [("  " if heading else "") + line for line in lines])
            for heading, lines in parts
            if lines
        )

    def _sizes(self) -> list[str]:
        lines = [f"{'split':<6}{self.material.line + 's':>12}{'tokens':>14}{'types':>11}{'hapaxes':>11}{'unknown':>9}"]
        for name, sizes in self.sizes.items():
            share = self.material.unknown[name]
            unknown = "-" if share is None else f"{share:.2%}"
            lines.append(f"{name:<6}{sizes.lines:>12,}{sizes.tokens:>14,}{sizes.types:>11,}{sizes.hapaxes:>11,}{unknown:>9}")
        return [
            *lines,
            "Line ends are not counted. Hapaxes are types that occur once; what is unknown is not in train's vocabulary.",
        ]

    def _lengths(self) -> list[str]:
        head = f"{'':<6}{'shortest':>9}{'median':>9}{'mean':>9}{'90 %':>9}{'99 %':>9}{'longest':>9}"
        return [head] + [
            f"{name:<6}{of.shortest:>9,}{of.median:>9,.0f}{of.mean:>9,.1f}{of.p90:>9,.0f}{of.p99:>9,.0f}{of.longest:>9,}"
            for name, of in self.lengths.items()
        ]

    def _growth(self) -> list[str]:
        shown = self.growth[-1:] + [point for point in self.growth[:-1] if str(point[0]).startswith("1")]
        return [f"{tokens:>14,} {types:>11,}" for tokens, types in sorted(shown)]

    def _sparsity(self) -> list[str]:
        if not self.sparsity:
            return []
        lines = ["order " + "".join(f"{name:>10}{'different':>12}" for name in self.sparsity)]
        for rows in zip(*self.sparsity.values(), strict=True):
            cells = [f"{_percent(r.num_unseen, r.num):>10}{_percent(r.num_unseen_types, r.num_types):>12}" for r in rows]
            lines.append(f"{rows[0].order:<6}" + "".join(cells))
        cut = len(self.material.ids["train"]) > statistics.MAX_TOKENS
        return lines + [f"Train is its first {statistics.MAX_TOKENS:,} tokens here."] * cut

    def svg(self) -> str:
        """Zipf's plot of train: the frequency of every type over its rank, both on logarithmic axes."""
        frequencies = np.sort(self._counts[self._counts > 0])[::-1]
        across = max(math.ceil(math.log10(max(len(frequencies), 2))), 1)
        up = max(math.ceil(math.log10(max(int(frequencies[0]) if len(frequencies) else 1, 2))), 1)
        title = f"Zipf's plot: {len(frequencies):,} types of train"
        if self.exponent is not None:
            title += f", frequency ~ rank^-{self.exponent:.2f}"
        body = [svg_text(LEFT, 30, title, NORMAL, INK, "start", bold=True)]

        def place(rank: float, frequency: float) -> tuple[float, float]:
            return LEFT + math.log10(rank) / across * WIDTH, TOP + (1 - math.log10(frequency) / up) * HEIGHT

        for power in range(up + 1):
            y = place(1, 10.0**power)[1]
            body.append(f'<path d="M{LEFT:.1f},{y:.1f} h{WIDTH:.1f}" stroke="#e5e7eb" stroke-width="1"/>')
            body.append(svg_text(LEFT - 10, y + 4, f"{10**power:,}", SMALL, QUIET, "end"))
        for power in range(across + 1):
            body.append(svg_text(place(10.0**power, 1)[0], TOP + HEIGHT + 20, f"{10**power:,}", SMALL, QUIET, "middle"))
        body.append(svg_text(LEFT + WIDTH / 2, TOP + HEIGHT + 42, "rank", SMALL, INK, "middle"))
        body.append(svg_text(LEFT, TOP - 10, "frequency", SMALL, INK, "end"))
        ranks = sorted({round(10 ** (i / 40)) for i in range(40 * across + 1)} | {len(frequencies)})
        points = [place(rank, float(frequencies[rank - 1])) for rank in ranks if 1 <= rank <= len(frequencies)]
        line = " ".join(f"{'L' if i else 'M'}{x:.1f},{y:.1f}" for i, (x, y) in enumerate(points))
        body.append(f'<path d="{line}" fill="none" stroke="{VALUE}" stroke-width="2"/>')
        body += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{GRADIENT}"/>' for x, y in points]
        return svg_document(title, LEFT + WIDTH + 40, TOP + HEIGHT + 60, body)


def _overlap(overlap: Overlap) -> str:
    return (
        f"{overlap.found:,} of {overlap.compared:,} of {overlap.split} ({_percent(overlap.found, overlap.compared)}) are in "
        f"{overlap.other}"
    )


def _percent(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "-"
