"""The shapes that are timed, those of a CPU and those of a GPU."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from lmtrain.models.recurrent import CELLS

WIKITEXT2, PTB, WIKITEXT103 = 33_278, 10_000, 267_735  # vocabularies
NUM_SAMPLES = 512  # of the sampled softmax


@dataclass(frozen=True)
class Preset:
    """One shape: what is timed, and its sizes."""

    name: str
    part: str  # step, dropin, packed, recurrence, head, generate, score, samples, ngram
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
    order: int = 0  # of an n-gram model, which has none of the sizes above
    data: str = ""  # the directory of its texts

    @property
    def layer_sizes(self) -> list[tuple[int, int]]:
        """Input and hidden size of every layer."""
        sizes = [self.embed_size or self.hidden_size, *[self.hidden_size] * self.num_layers]
        sizes[-1] = self.last_size or self.hidden_size
        return list(pairwise(sizes))

    @property
    def num_gates(self) -> int:
        return CELLS[self.cell].num_gates

    @property
    def num_tokens(self) -> int:
        return self.batch_size * self.chunk_length

    @property
    def num_parameters(self) -> int:
        """Weights of our whole model. The candidate of a GRU has a bias of its own for the recurrent product."""
        layers = sum(
            self.num_gates * hidden * (size + hidden + 1) + hidden * (self.cell == "gru") for size, hidden in self.layer_sizes
        )
        tables = self.vocab_size * (self.layer_sizes[0][0] + (0 if self.tied else self.layer_sizes[-1][1]))
        return tables + self.vocab_size + layers

    @property
    def projects_words(self) -> bool:
        """Whether our model multiplies the first layer's input weight with its small vocabulary, and not with every token."""
        return self.part == "step" and 2 * self.vocab_size <= min(self.num_tokens, 4 * self.layer_sizes[0][0])

    @property
    def flops(self) -> float:
        """Floating-point operations of the matrix products of one training step: two per weight and token, times three."""
        if self.part == "ngram":
            return 0
        recurrence = sum(2 * self.num_gates * hidden * (size + hidden) for size, hidden in self.layer_sizes)
        outputs = {"sampled": NUM_SAMPLES}.get(self.head, self.vocab_size)
        head = 2 * self.layer_sizes[-1][1] * outputs
        passes = 1 if self.part in ("generate", "score", "samples") else 3
        has_head = self.part not in ("recurrence", "packed")
        return passes * self.num_tokens * (recurrence * (self.part != "head") + head * has_head)


CPU_PRESETS = {
    preset.name: preset
    for preset in (
        Preset("lstm200", "step"),
        Preset("lstm650", "step", hidden_size=650),
        Preset("gru650", "recurrence", "gru", hidden_size=650),
        Preset("elman650", "recurrence", "elman", hidden_size=650),
        Preset("char512", "step", num_layers=1, hidden_size=512, batch_size=64, chunk_length=64, vocab_size=65, tied=False),
        Preset("dropin200", "dropin", tied=False),
        Preset("dropin650", "dropin", hidden_size=650, vocab_size=PTB, tied=False),
        Preset("packed256", "packed", hidden_size=256, batch_size=32, chunk_length=32),
        Preset("head200", "head"),
        Preset("sampled200", "step", "gru", num_layers=1, batch_size=64, tied=False, head="sampled"),
        Preset("generate200", "generate", batch_size=1, chunk_length=200),
        Preset("score200", "score", batch_size=128, chunk_length=54),
        Preset("samples200", "samples", batch_size=64, chunk_length=32),
        Preset("ngram3", "ngram", order=3),
        Preset("ngram5", "ngram", order=5),
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
PRESETS = CPU_PRESETS | GPU_PRESETS
