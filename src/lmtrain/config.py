"""Every setting there is: its type, its default, its range, its meaning, and whether a resumed run may change it.

Plain dataclasses, without torch and without Hydra, so that settings are checked before anything heavy is imported. The
defaults are those of a plain run; the files of `conf/`, which Hydra composes, say only in what another choice differs. A
checkpoint stores settings as JSON; `lmtrain.settings.reading` turns either mapping into a `Config`, and reports *all* that is
wrong with it at once.
"""

# ruff: noqa: F405
from __future__ import annotations

import typing
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from lmtrain.choices import *  # noqa: F403
from lmtrain.rules import MAX_ORDER, MAX_TABLE_SIZE, OptimizerOptions

MAX_LIST = 1000  # items of a setting that is a list, also in a checkpoint


class Resume(Enum):
    """What happens when a resumed run is given another value than it was started with."""

    allowed = "allowed"
    warned = "warned"
    refused = "refused"


def setting(
    default: Any,
    meaning: str,
    *,
    least: float | None = None,
    most: float | None = None,
    above: float | None = None,
    below: float | None = None,
    resume: Resume = Resume.warned,
) -> Any:
    """A dataclass field with its meaning, its range (least <= value <= most, above < value < below) and its resume rule."""
    metadata = {"meaning": meaning, "least": least, "most": most, "above": above, "below": below, "resume": resume}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def fixed(kind: str) -> Any:
    """The field that says which of several classes of settings a mapping is; it cannot be set to anything else."""
    return field(default=kind, metadata={"meaning": "The kind of these settings.", "only": kind, "resume": Resume.refused})


# ---- models


@dataclass(kw_only=True)
class ModelConfig:
    """A model of any task."""

    kind: str = ""


@dataclass(kw_only=True)
class LanguageConfig(ModelConfig):
    """What every language model has."""

    state_policy: StatePolicy = setting(
        StatePolicy.carry,
        "When the model forgets: never (carry), at a line's end, or at an empty line.",
        resume=Resume.refused,
    )


@dataclass(kw_only=True)
class EmbeddingsConfig(ModelConfig):
    """Where word vectors come from."""

    embeddings: str = setting(
        "", "Word vectors to start from: a run, or a file of vectors; empty: drawn.", resume=Resume.allowed
    )
    freeze_embeddings: float | None = setting(
        0.0, "Epochs before the vectors that were given are trained as well; null: never.", least=0
    )
    project_embeddings: bool = setting(
        False, "Vectors of more numbers than embed_size are projected onto their principal axes.", resume=Resume.refused
    )


@dataclass(kw_only=True)
class NeuralConfig(EmbeddingsConfig, LanguageConfig):
    """What the fixed-window and the recurrent models share."""

    embed_size: int = setting(128, "Size of a token's embedding.", least=1, most=1 << 16, resume=Resume.refused)
    hidden_size: int = setting(512, "Units of each hidden layer.", least=1, most=1 << 16, resume=Resume.refused)
    num_layers: int = setting(1, "Number of hidden layers.", least=1, most=1000, resume=Resume.refused)
    layer_norm: bool = setting(False, "Layer normalisation (Ba et al. 2016).", resume=Resume.refused)
    residual: bool = setting(False, "Adds a layer's input to its output where the sizes agree.", resume=Resume.refused)
    tie_weights: bool = setting(False, "One matrix for embeddings and output (Press and Wolf 2017).", resume=Resume.refused)
    project: bool = setting(
        False,
        "A linear layer to embed_size before the output, for tied weights of another size.",
        resume=Resume.refused,
    )
    head: HeadName = setting(HeadName.full, "Output layer: full, adaptive or sampled softmax.", resume=Resume.refused)
    cutoffs: list[int] = setting(
        [2000, 10000], "Adaptive softmax: the rank at which each tail cluster begins.", least=1, most=1 << 24,
        resume=Resume.refused,
    )  # fmt: skip
    div_value: float = setting(
        4.0,
        "Adaptive softmax: how much smaller each further cluster's features are.",
        least=1,
        resume=Resume.refused,
    )
    num_samples: int = setting(512, "Sampled softmax: shared negatives a chunk.", least=1, most=1 << 24)
    proposal: Proposal = setting(Proposal.log_uniform, "Sampled softmax: where negatives come from.", resume=Resume.refused)
    dropout: float = setting(
        0.0, "Dropout on embeddings, between layers and before the output, where not set below.", least=0, below=1
    )
    input_dropout: float | None = setting(None, "Dropout on the embeddings; null: as `dropout`.", least=0, below=1)
    hidden_dropout: float | None = setting(None, "Dropout between layers; null: as `dropout`.", least=0, below=1)
    output_dropout: float | None = setting(None, "Dropout before the output; null: as `dropout`.", least=0, below=1)
    embedding_dropout: float = setting(0.0, "Drops whole rows of the embedding matrix (Gal 2016).", least=0, below=1)
    locked_dropout: bool = setting(False, "One dropout mask for all steps of a chunk (Gal and Ghahramani 2016).")
    activation_penalty: float = setting(0.0, "AR: weight of the mean square of the features (Merity 2017).", least=0)
    temporal_penalty: float = setting(0.0, "TAR: weight of the mean square of their change in time.", least=0)
    maxent_order: int = setting(
        0, "Hashed n-gram features up to this order feed the output directly (RNN-MaxEnt, Mikolov 2011); 0: none.", least=0,
        most=8, resume=Resume.refused,
    )  # fmt: skip
    maxent_table: int = setting(1 << 22, "Weights of the hashed features.", least=1 << 10, most=MAX_TABLE_SIZE,
                                resume=Resume.refused)  # fmt: skip
    init: Initialisation = setting(
        Initialisation.xavier,
        "Weights: xavier; uniform (+-init_range); fan (+-1/sqrt(hidden_size), PyTorch's); identity (of elman's recurrence).",
        resume=Resume.refused,
    )
    init_range: float = setting(0.1, "Half width of the uniform initialisation, also of embeddings.", above=0, most=10)
    unigram_bias: bool = setting(True, "Starts the output bias at the log unigram frequencies of the training split.")


@dataclass(kw_only=True)
class RecurrentConfig(NeuralConfig):
    """Elman, GRU or LSTM layers over embeddings."""

    kind: str = fixed("recurrent")
    cell: Cell = setting(Cell.lstm, f"Recurrence: {', '.join(Cell.__members__)}.", resume=Resume.refused)
    nonlinearity: Nonlinearity = setting(
        Nonlinearity.tanh, "Elman's non-linearity: tanh, relu, sigmoid or identity (none).", resume=Resume.refused
    )
    hidden_sizes: list[int] = setting([], "A size for every layer; replaces hidden_size and num_layers.", least=1, most=1 << 16,
                                      resume=Resume.refused)  # fmt: skip
    projection_size: int = setting(
        0, "Size of a linear projection behind every layer; 0: none.", least=0, most=1 << 16, resume=Resume.refused
    )
    weight_drop: float = setting(0.0, "DropConnect on the recurrent weights, once a chunk (Merity 2017).", least=0, below=1)
    zoneout: float = setting(0.0, "Probability that a unit keeps its state (Krueger 2017).", least=0, below=1)
    forget_bias: float = setting(1.0, "LSTM: initial bias of the forget gate (Jozefowicz 2015).", least=-100, most=100)
    backend: Backend = setting(Backend.auto, "Who computes the recurrence.", resume=Resume.warned)


@dataclass(kw_only=True)
class WindowConfig(NeuralConfig):
    """The fixed-window model (Bengio et al. 2003; grown up: Sun and Iyyer 2021)."""

    kind: str = fixed("window")
    hidden_size: int = setting(256, "Units of each hidden layer.", least=1, most=1 << 16, resume=Resume.refused)
    context: int = setting(8, "Tokens that the model sees: the newest and those before it.", least=1, most=10000,
                           resume=Resume.refused)  # fmt: skip
    activation: Activation = setting(Activation.tanh, "Non-linearity of the hidden layers.", resume=Resume.refused)
    direct: bool = setting(False, "Direct connections from the embeddings to the output.", resume=Resume.refused)
    num_averages: int = setting(0, "Learnt averages of the tokens before the window.", least=0, most=1000,
                                resume=Resume.refused)  # fmt: skip
    average_span: int = setting(0, "How many tokens before the window the averages cover.", least=0, most=100000,
                                resume=Resume.refused)  # fmt: skip


@dataclass(kw_only=True)
class NgramConfig(LanguageConfig):
    """Counts; interpolated modified Kneser-Ney by default (Chen and Goodman 1998)."""

    kind: str = fixed("ngram")
    state_policy: StatePolicy = setting(StatePolicy.line, "When the model forgets.", resume=Resume.refused)
    order: int = setting(5, "Longest n-gram.", least=1, most=MAX_ORDER, resume=Resume.refused)
    smoothing: Smoothing = setting(Smoothing.kneser_ney, "How unseen n-grams get their share.", resume=Resume.refused)
    add_k: float = setting(0.1, "The k of add-k smoothing.", above=0, resume=Resume.refused)
    prune: list[int] = setting([], "For orders 1, 2, ...: n-grams that occur so often or less are left out; [0,0,1]: trigrams "
                               "and longer ones that occur once.", least=0, most=1 << 31, resume=Resume.refused)  # fmt: skip


@dataclass(kw_only=True)
class TaggerConfig(EmbeddingsConfig):
    """A window tagger: the vectors of a word and its neighbours, hidden layers, a score for each class (Collobert 2011)."""

    kind: str = fixed("tagger")
    context: int = setting(2, "Words of the window on each side.", least=0, most=100, resume=Resume.refused)
    embed_size: int = setting(50, "Size of a word's vector.", least=1, most=1 << 16, resume=Resume.refused)
    lowercase: bool = setting(True, "Looks up words in lower case.", resume=Resume.refused)
    shape_features: bool = setting(True, "Tells capitals, digits and signs in a word.", resume=Resume.refused)
    affixes: int = setting(0, "Longest prefixes and suffixes that are features; 0: none.", least=0, most=5,
                           resume=Resume.refused)  # fmt: skip
    hidden_sizes: list[int] = setting([100], "Units of each hidden layer; []: none (linear).", least=1, most=1 << 16,
                                      resume=Resume.refused)  # fmt: skip
    activation: Activation = setting(Activation.tanh, "Non-linearity of the hidden layers.", resume=Resume.refused)
    dropout: float = setting(0.3, "Dropout on the window and on hidden layers.", least=0, below=1)
    init_range: float = setting(0.1, "Half width of the uniform distribution that vectors are drawn from.", above=0, most=10)
    objective: Objective = setting(
        Objective.softmax, "What is learnt: softmax over the tags; logistic or max_margin, a scorer for each class.",
        resume=Resume.refused,
    )  # fmt: skip
    corrupt: Corrupt = setting(
        Corrupt.window, "max_margin: the corrupted window is another one of the data (window), or has a random centre (word).",
    )  # fmt: skip
    target_class: str = setting("", "logistic, max_margin: the only class to find; empty: all of them.", resume=Resume.refused)


@dataclass(kw_only=True)
class WordVectorsConfig(ModelConfig):
    """Vectors of words, learnt from the words around them."""

    embed_size: int = setting(100, "Size of a word's vector.", least=1, most=1 << 16, resume=Resume.refused)
    window: int = setting(5, "Words of the window on each side.", least=1, most=1000, resume=Resume.refused)


@dataclass(kw_only=True)
class NegativeSamplingConfig(WordVectorsConfig):
    """What is predicted is told from words drawn at random (Mikolov et al. 2013)."""

    num_negatives: int = setting(
        5, "Words drawn at random for each prediction; 0: none, but an exact softmax over all words.", least=0, most=1000,
        resume=Resume.refused,
    )  # fmt: skip
    noise_power: float = setting(0.75, "They are drawn in proportion to their count raised to this power.", least=0, most=10,
                                 resume=Resume.refused)  # fmt: skip
    subsample: float = setting(
        1e-3, "Words whose share of the text is larger are passed over now and then; 0: never.", least=0, most=1,
        resume=Resume.refused,
    )  # fmt: skip


@dataclass(kw_only=True)
class SkipgramConfig(NegativeSamplingConfig):
    """A word predicts each of its neighbours."""

    kind: str = fixed("skipgram")


@dataclass(kw_only=True)
class CbowConfig(NegativeSamplingConfig):
    """The mean of its neighbours predicts a word."""

    kind: str = fixed("cbow")


@dataclass(kw_only=True)
class GloveConfig(WordVectorsConfig):
    """Products of vectors are the logarithms of how often words stand together (Pennington et al. 2014)."""

    kind: str = fixed("glove")
    x_max: float = setting(10.0, "Pairs that were seen so often, or more often, weigh 1.", above=0, resume=Resume.refused)
    power: float = setting(0.75, "A rarer pair weighs (its count / x_max) raised to this power.", least=0, most=10,
                           resume=Resume.refused)  # fmt: skip


@dataclass(kw_only=True)
class FrequentConfig(ModelConfig):
    """A baseline: each word's most frequent tag in training, or the most frequent label."""

    kind: str = fixed("frequent")


@dataclass(kw_only=True)
class LogisticConfig(ModelConfig):
    """A baseline: logistic regression on indicators (of words; for tags also of their neighbours, shapes and affixes)."""

    kind: str = fixed("logistic")
    ngrams: int = setting(1, "Labels: indicators of n-grams up to this length.", least=1, most=5, resume=Resume.refused)
    context: int = setting(2, "Tags: words of the window on each side.", least=0, most=100, resume=Resume.refused)
    shape_features: bool = setting(True, "Tags: tells capitals, digits and signs in a word.", resume=Resume.refused)
    affixes: int = setting(3, "Tags: longest prefixes and suffixes that are features; 0: none.", least=0, most=5,
                           resume=Resume.refused)  # fmt: skip
    lowercase: bool = setting(False, "Looks up words in lower case.", resume=Resume.refused)


@dataclass(kw_only=True)
class NaiveBayesConfig(ModelConfig):
    """A baseline: how often each class has each word, and nothing else (Maron 1961)."""

    kind: str = fixed("naive_bayes")
    add_k: float = setting(1.0, "Added to the count of every word in every class.", above=0, resume=Resume.refused)
    lowercase: bool = setting(False, "Looks up words in lower case.", resume=Resume.refused)


@dataclass(kw_only=True)
class AveragingConfig(EmbeddingsConfig):
    """The average of the word vectors of a text, then a softmax; with hidden layers a deep averaging network (Iyyer 2015)."""

    kind: str = fixed("averaging")
    embed_size: int = setting(100, "Size of a word's vector.", least=1, most=1 << 16, resume=Resume.refused)
    lowercase: bool = setting(False, "Looks up words in lower case.", resume=Resume.refused)
    hidden_sizes: list[int] = setting([], "Units of each hidden layer; []: none.", least=1, most=1 << 16,
                                      resume=Resume.refused)  # fmt: skip
    activation: Activation = setting(Activation.relu, "Non-linearity of the hidden layers.", resume=Resume.refused)
    word_dropout: float = setting(0.3, "Probability that a word is left out of the average.", least=0, below=1)
    dropout: float = setting(0.0, "Dropout on the average and on hidden layers.", least=0, below=1)
    init_range: float = setting(0.1, "Half width of the uniform distribution that vectors are drawn from.", above=0, most=10)


@dataclass(kw_only=True)
class EncoderConfig(EmbeddingsConfig):
    """A recurrence over the words of a text, its states pooled, then a softmax."""

    kind: str = fixed("encoder")
    cell: Cell = setting(Cell.lstm, f"Recurrence: {', '.join(Cell.__members__)}.", resume=Resume.refused)
    pooling: Pooling = setting(Pooling.max, "Of all states of a text: the last, their mean, or the largest of each unit.",
                               resume=Resume.refused)  # fmt: skip
    embed_size: int = setting(100, "Size of a word's vector.", least=1, most=1 << 16, resume=Resume.refused)
    lowercase: bool = setting(False, "Looks up words in lower case.", resume=Resume.refused)
    hidden_size: int = setting(100, "Units of each layer.", least=1, most=1 << 16, resume=Resume.refused)
    num_layers: int = setting(1, "Number of layers.", least=1, most=1000, resume=Resume.refused)
    dropout: float = setting(0.0, "Dropout on vectors, between layers and before the softmax.", least=0, below=1)
    init_range: float = setting(0.1, "Half width of the uniform distribution that vectors are drawn from.", above=0, most=10)
    backend: Backend = setting(Backend.auto, "Who computes the recurrence.", resume=Resume.warned)


# ---- data and tokenizers


@dataclass(kw_only=True)
class DataConfig:
    kind: str = ""


@dataclass(kw_only=True)
class CorpusConfig(DataConfig):
    """A running text for language models."""

    valid_fraction: float = setting(0.05, "Share of a single text that validates.", above=0, below=1,
                                    resume=Resume.refused)  # fmt: skip
    test_fraction: float = setting(0.05, "Share of a single text that tests; 0: no test split.", least=0, below=1,
                                   resume=Resume.refused)  # fmt: skip
    normalize: Normalization = setting(
        Normalization.none, "Unicode form in which all text is read: none, nfc, nfd or nfkc.", resume=Resume.refused
    )
    reverse: bool = setting(
        False, "A backward model: the tokens of each line are read from the last to the first.", resume=Resume.refused
    )
    cache_dir: str = setting("outputs/cache", "Where token ids are kept, keyed by content.", resume=Resume.allowed)


@dataclass(kw_only=True)
class PydocsConfig(CorpusConfig):
    """The documentation of the Python that is running."""

    kind: str = fixed("pydocs")


@dataclass(kw_only=True)
class TextConfig(CorpusConfig):
    """Your own text: one file, or a directory holding train, valid and test (.txt or .tokens)."""

    kind: str = fixed("text")
    path: str = setting("", "A text file, or a directory with train.txt, valid.txt and test.txt.", resume=Resume.allowed)
    split: SplitWay = setting(SplitWay.contiguous, "How a text without splits is cut: contiguous, shuffled_lines or "
                              "shuffled_documents.", resume=Resume.refused)  # fmt: skip
    split_seed: int = setting(1, "Seed of a shuffled split.", least=0, most=2**32 - 1, resume=Resume.refused)
    field: str = setting("text", "Which field of each record of a .jsonl is its text.", resume=Resume.refused)
    workers: int = setting(0, "Processes that read shards; 0: one per core.", least=0, most=1024, resume=Resume.allowed)


@dataclass(kw_only=True)
class ExamplesConfig(DataConfig):
    """Examples with their answers, in files for training, validation and test."""

    path: str = setting("", "A directory with a file each for train, valid (or dev) and test.", resume=Resume.allowed)
    train: str = setting("", "The file to learn from, whatever its name; with valid, and test where there is one.",
                         resume=Resume.allowed)  # fmt: skip
    valid: str = setting("", "The file to validate on.", resume=Resume.allowed)
    test: str = setting("", "The file to test on; it may be left out.", resume=Resume.allowed)
    encoding: str = setting("utf-8", "Encoding of the files.", resume=Resume.refused)


@dataclass(kw_only=True)
class ColumnsConfig(ExamplesConfig):
    """Tokens with tags, a token per line in columns, as of CoNLL; a blank line ends a sentence."""

    kind: str = fixed("columns")
    token_column: int = setting(1, "Which column holds the token, from 1; -1 is the last.", least=-100, most=100,
                                resume=Resume.refused)  # fmt: skip
    tag_column: int = setting(-1, "Which column holds the tag, from 1; -1 is the last.", least=-100, most=100,
                              resume=Resume.refused)  # fmt: skip
    strict_tags: bool = setting(False, "Refuses tags of valid and test that train lacks, instead of counting them as missed.",
                                resume=Resume.allowed)  # fmt: skip


@dataclass(kw_only=True)
class LabelledConfig(ExamplesConfig):
    """Texts with labels, one per line: the label, then a tab or a space, then the text."""

    kind: str = fixed("labelled")
    folds: int = setting(0, "Cuts all texts together into so many folds for cross-validation; 0: none.", least=0, most=1000,
                         resume=Resume.refused)  # fmt: skip
    fold: int = setting(1, "Which fold is the test, from 1; the one after it validates.", least=1, most=1000,
                        resume=Resume.refused)  # fmt: skip


@dataclass(kw_only=True)
class TokenizerConfig:
    name: TokenizerName = setting(
        TokenizerName.char,
        "What a token is: char, byte, word, bpe or unigram (subwords) or what a file says.",
        resume=Resume.refused,
    )
    min_count: int = setting(1, "Rarer words or characters of the training split become <unk>; rarer pairs stay two.", least=1,
                             resume=Resume.refused)  # fmt: skip
    vocab_size: int = setting(0, "Largest vocabulary; 0: no limit.", least=0, resume=Resume.refused)
    lowercase: bool = setting(False, "Reads all text in lower case.", resume=Resume.refused)
    path: str = setting("", "tokenizer=file: a file of the library tokenizers (tokenizer.json).", resume=Resume.allowed)
    vocabulary: str = setting("", "tokenizer=word: a file with a word per line, or a RUN whose words are taken.",
                              resume=Resume.allowed)  # fmt: skip
    unknown: Unknown = setting(
        Unknown.token, "tokenizer=word: unknown words are one token, or their letters are paid for as well (spelled).",
        resume=Resume.refused,
    )  # fmt: skip
    separators: list[str] = setting([], "tokenizer=word: characters besides blanks that separate, such as [U+00A0].",
                                    resume=Resume.refused)  # fmt: skip


# ---- optimisers and schedules


@dataclass(kw_only=True)
class OptimizerConfig:
    name: OptimizerName = setting(OptimizerName.adam, "Optimiser.", resume=Resume.refused)
    learning_rate: float = setting(0.004, "Learning rate before the schedule.", above=0, most=1000)
    weight_decay: float = setting(0.0, "L2: decoupled in adamw, in the gradient elsewhere; not on biases and norms.", least=0)
    l1: float = setting(0.0, "L1: weight of the sum of absolute weights.", least=0)
    momentum: float = setting(OptimizerOptions.momentum, "SGD and RMSprop.", least=0, below=1)
    nesterov: bool = setting(OptimizerOptions.nesterov, "SGD with Nesterov's momentum.")
    beta1: float = setting(OptimizerOptions.beta1, "Adam: decay of the mean of gradients.", least=0, below=1)
    beta2: float = setting(OptimizerOptions.beta2, "Adam: decay of the mean of squares.", least=0, below=1)
    alpha: float = setting(OptimizerOptions.alpha, "RMSprop: decay of the mean of squares.", least=0, below=1)
    epsilon: float = setting(OptimizerOptions.epsilon, "Added to the denominator.", least=0)
    averaging: Averaging = setting(Averaging.none, "Weights used for evaluation: nt_asgd, ema, or none.",
                                   resume=Resume.refused)  # fmt: skip
    ema_decay: float = setting(0.999, "EMA: weight of the past.", least=0, below=1)
    patience: int = setting(5, "NT-ASGD: evaluations without improvement before averaging starts.", least=1)


@dataclass(kw_only=True)
class ScheduleConfig:
    kind: str = ""


@dataclass(kw_only=True)
class ConstantConfig(ScheduleConfig):
    kind: str = fixed("constant")


@dataclass(kw_only=True)
class CosineConfig(ScheduleConfig):
    """Linear warm-up, then half a cosine."""

    kind: str = fixed("cosine")
    warmup: float = setting(0.02, "Share of the run that warms up.", least=0, below=1)
    final: float = setting(0.0, "Rate at the end, as a share of the learning rate.", least=0, most=1)


@dataclass(kw_only=True)
class LinearConfig(ScheduleConfig):
    """Linear warm-up, then a straight line."""

    kind: str = fixed("linear")
    warmup: float = setting(0.02, "Share of the run that warms up.", least=0, below=1)
    final: float = setting(0.0, "Rate at the end, as a share of the learning rate.", least=0, most=1)


@dataclass(kw_only=True)
class StepConfig(ScheduleConfig):
    """Multiplies the rate by `factor` every `every` epochs, after `after` epochs (Zaremba 2014: 0.5, after 4)."""

    kind: str = fixed("step")
    factor: float = setting(0.5, "What the rate is multiplied by.", above=0, most=1)
    every: float = setting(1.0, "Epochs between two changes.", above=0)
    after: float = setting(0.0, "Epochs before the first change; 0: as many as `every`.", least=0)


@dataclass(kw_only=True)
class ExponentialConfig(ScheduleConfig):
    """Multiplies the rate by `factor` per epoch, continuously."""

    kind: str = fixed("exponential")
    factor: float = setting(0.9, "What the rate is multiplied by in an epoch.", above=0, most=1)


@dataclass(kw_only=True)
class PlateauConfig(ScheduleConfig):
    """Multiplies the rate by `factor` when validation has not improved for `patience` evaluations."""

    kind: str = fixed("plateau")
    factor: float = setting(0.25, "What the rate is multiplied by.", above=0, below=1)
    patience: int = setting(1, "Evaluations without improvement before that.", least=1)


@dataclass(kw_only=True)
class OneCycleConfig(ScheduleConfig):
    """Up, flat, down, and a cosine to zero, with Adam's beta1 moving against the rate (Smith 2018)."""

    kind: str = fixed("one_cycle")
    up: float = setting(0.083, "Share of the run that rises.", least=0, below=1)
    flat: float = setting(0.417, "Share that stays at the peak.", least=0, below=1)
    down: float = setting(0.417, "Share that falls back; the rest anneals to zero.", least=0, below=1)
    div: float = setting(10.0, "The peak over the first rate.", least=1)
    beta1_low: float = setting(0.7, "Adam's beta1 at the peak.", least=0, below=1)
    beta1_high: float = setting(0.8, "Adam's beta1 at both ends.", least=0, below=1)


@dataclass(kw_only=True)
class RangeTestConfig(ScheduleConfig):
    """The rate rises geometrically from `low` to `high`, and `range_test.svg` shows the loss over it (Smith 2017)."""

    kind: str = fixed("range_test")
    low: float = setting(1e-5, "The first rate.", above=0)
    high: float = setting(1.0, "The last rate.", above=0)


# ---- trainer


@dataclass(kw_only=True)
class TrainerConfig:
    batch_size: int = setting(64, "Parallel streams.", least=1, most=1 << 20, resume=Resume.refused)
    chunk_length: int = setting(
        0, "Steps of truncated backpropagation through time; 0: 35 for words, 64 for characters and bytes.", least=0,
        most=1 << 20, resume=Resume.refused,
    )  # fmt: skip
    backward_length: int = setting(
        0, "Steps that gradients reach back (k2); more than chunk_length (k1) overlaps; 0: chunk_length.", least=0,
        resume=Resume.refused,
    )  # fmt: skip
    random_chunk_length: bool = setting(False, "Draws chunk lengths near chunk_length and scales the rate (Merity 2017).",
                                        resume=Resume.refused)  # fmt: skip
    random_offset: bool = setting(True, "Each epoch starts at another offset.", resume=Resume.refused)
    num_steps: int | None = setting(None, "Steps to train; null: no limit.", least=0, resume=Resume.allowed)
    num_epochs: float | None = setting(None, "Epochs to train; null: no limit.", least=0, resume=Resume.allowed)
    max_seconds: float | None = setting(75.0, "Seconds to train; null: no limit.", least=0, resume=Resume.allowed)
    patience: int | None = setting(
        None, "Ends training after so many evaluations in a row without improvement; null: never.", least=1,
        resume=Resume.allowed,
    )  # fmt: skip
    clip_norm: float = setting(1.0, "Largest norm of the gradient; 0: no clipping.", least=0)
    log_every: int = setting(10, "Steps between two records of the loss.", least=1, resume=Resume.allowed)
    evaluate_every: int = setting(100, "Steps between two evaluations; 0: every epoch.", least=0)
    evaluation_streams: int = setting(16, "Streams of the evaluations during training; the last one uses 1.", least=1)
    evaluation_tokens: int | None = setting(
        None, "Tokens that each evaluation during training reads, in evenly spaced blocks; 0: all; null: at most a tenth of "
        "those trained between two, but 1,000,000 at the least. The final test reads all.", least=0,
    )  # fmt: skip
    save_every: int = setting(0, "Steps between two checkpoints; 0: at every evaluation.", least=0, resume=Resume.allowed)
    keep: int = setting(
        2, "Newest checkpoints kept besides the best; while a run trains, two at the least. 0: in the end the best alone.",
        least=0, most=10000, resume=Resume.allowed,
    )  # fmt: skip
    final_split: FinalSplit = setting(
        FinalSplit.test, "What the best model is judged by in the end: test (valid where there is none), valid, or none.",
        resume=Resume.allowed,
    )  # fmt: skip
    baselines: bool | None = setting(
        None, "Tags and labels: in the end logistic regression is trained, too, to compare with; null: where it takes seconds.",
        resume=Resume.allowed,
    )  # fmt: skip
    projector: bool = setting(
        True,
        "In the end the vectors of the most frequent words are written for TensorBoard's projector.",
        resume=Resume.allowed,
    )
    sample_tokens: int = setting(400, "Tokens of the sample at each evaluation; 0: none.", least=0, most=100000,
                                 resume=Resume.allowed)  # fmt: skip
    sample_temperature: float = setting(0.5, "Temperature of these samples.", least=0, most=100, resume=Resume.allowed)
    precision: Precision = setting(
        Precision.auto, "float32, bfloat16 (products only), or auto: bfloat16 where the device has instructions for it."
    )
    device: Device = setting(Device.auto, "auto, cpu or cuda.", resume=Resume.warned)
    distributed: Distributed = setting(
        Distributed.auto, "Several processes, which torchrun starts, train one model together: auto, ddp (nothing else), none.",
        resume=Resume.allowed,
    )  # fmt: skip
    cuda_graph: CudaGraph = setting(CudaGraph.auto, "On a GPU a step is recorded once and replayed: auto, on or off.",
                                    resume=Resume.allowed)  # fmt: skip
    num_threads: int = setting(0, "CPU threads; 0: as many as PyTorch chooses.", least=0, most=1024)
    seed: int = setting(1, "Seed of everything random.", least=0, most=2**32 - 1, resume=Resume.refused)
    check_gradients: int = setting(
        0, "Entries of every parameter whose gradient is checked against differences of the loss, before the first step and at "
        "each evaluation; 0: none.", least=0, most=1 << 20, resume=Resume.allowed,
    )  # fmt: skip
    watch_gradients: bool = setting(
        False, "Records gradients by time lag, saturated units and gates, and dead units at each evaluation.",
        resume=Resume.allowed,
    )  # fmt: skip
    on_nonfinite: OnNonfinite = setting(
        OnNonfinite.stop, "At a loss, gradient or validation that is not finite: stop (it is kept in crash/), skip the chunk, "
        "or rollback to the newest checkpoint with half the rate.", resume=Resume.allowed,
    )  # fmt: skip


@dataclass(kw_only=True)
class Config:
    """All settings of a run."""

    model: ModelConfig
    data: DataConfig
    tokenizer: TokenizerConfig
    optimizer: OptimizerConfig
    schedule: ScheduleConfig
    trainer: TrainerConfig
    resume: str | None = setting(None, "A run directory to go on with.", resume=Resume.allowed)
    start_from: str | None = setting(
        None, "A run whose weights and tokenizer a new run starts from, on another text, with a new optimiser.",
        resume=Resume.refused,
    )  # fmt: skip
    start_from_new_tokens: bool | None = setting(
        None, "Words that the new text adds: true adds them to the vocabulary, false reads them as <unk>, null refuses them.",
        resume=Resume.refused,
    )  # fmt: skip


KINDS: dict[type, tuple[type, ...]] = {
    ModelConfig: (
        RecurrentConfig, WindowConfig, NgramConfig, TaggerConfig, AveragingConfig, EncoderConfig, LogisticConfig,
        NaiveBayesConfig, FrequentConfig, SkipgramConfig, CbowConfig, GloveConfig,
    ),
    DataConfig: (PydocsConfig, TextConfig, ColumnsConfig, LabelledConfig),
    ScheduleConfig: (
        ConstantConfig, CosineConfig, LinearConfig, StepConfig, ExponentialConfig, PlateauConfig, OneCycleConfig,
        RangeTestConfig,
    ),
}  # fmt: skip
"""Which classes a setting of several kinds may be of; its field `kind` tells."""

TASKS: dict[str, tuple[tuple[type, ...], tuple[type, ...]]] = {
    "language": ((CorpusConfig,), (LanguageConfig,)),
    "vectors": ((CorpusConfig,), (WordVectorsConfig,)),
    "tag": ((ColumnsConfig,), (TaggerConfig, LogisticConfig)),
    "classify": (
        (LabelledConfig,),
        (AveragingConfig, EncoderConfig, LogisticConfig, NaiveBayesConfig, FrequentConfig),
    ),
}
"""What can be learnt: from which kinds of data, by which kinds of models. `conf/task/` has a choice of settings for each."""

COUNTED = (NgramConfig, NaiveBayesConfig, FrequentConfig)
"""Models that are counted in one pass over the data, without gradients."""


def task_of(data: DataConfig, model: ModelConfig) -> str:
    """The task that learns from such data by such a model; where none does, the first one that learns from such data."""
    names = [name for name, (data_kinds, _) in TASKS.items() if isinstance(data, data_kinds)]
    return next((name for name in names if isinstance(model, TASKS[name][1])), names[0])


GROUPS: dict[str, type] = {
    name: hint
    for name, hint in typing.get_type_hints(Config).items()
    if isinstance(hint, type)  # the settings of no group, such as `resume`, may be null
}
"""The groups of settings, each with its class."""


def conf_directory() -> Path:
    """`conf/` inside an installed wheel, else at the top of the checkout."""
    inside = Path(__file__).parent / "conf"
    return inside if inside.is_dir() else Path(__file__).parents[2] / "conf"


def joined(path: str, name: str) -> str:
    """The name of a setting within a group."""
    return f"{path}.{name}" if path else name


def names_of(kind: type) -> tuple[str, ...]:
    """What one types behind `model=` for a kind of model."""
    return tuple(Cell.__members__) if kind is RecurrentConfig else (getattr(kind, "kind"),)


def model_name(model: ModelConfig) -> str:
    """What one types behind `model=` for it."""
    return model.cell.name if isinstance(model, RecurrentConfig) else model.kind
