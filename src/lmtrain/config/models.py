"""Settings of models, a class for each kind; what several kinds have is stated once, in a class that they share."""

from __future__ import annotations

from lmtrain.choices import *
from lmtrain.config.declaring import FRACTION, SIZE, Settings, fixed, free, kept, noted
from lmtrain.rules import MAX_ORDER, MAX_TABLE_SIZE

FROM_TEXT = "svd"  # as model.embeddings: vectors made of the training text; a run or a file of this name is ./svd


class ModelConfig(Settings):
    """A model of any task."""

    kind: str = fixed("")


class LanguageConfig(ModelConfig):
    """What every language model has."""

    state_policy: StatePolicy = kept(
        StatePolicy.carry, "When the model forgets: never (carry), at a line's end, or at an empty line."
    )


class EmbeddingsConfig(ModelConfig):
    """A model that reads tokens or words as vectors."""

    embed_size: int = kept(100, "Size of the vector of a token or word.", **SIZE)
    init_range: float = noted(0.1, "Half width of the uniform distribution that vectors are drawn from.", above=0, most=10)
    embeddings: str = free("", "Word vectors to start from: a run or a file; empty: drawn.")
    freeze_embeddings: float | None = noted(
        0.0, "Epochs before the vectors that were given are trained as well; null: never.", least=0
    )
    project_embeddings: bool = kept(False, "Vectors of more numbers than embed_size are projected onto their principal axes.")


class RecurrenceConfig(ModelConfig):
    """A model with a recurrence in it."""

    cell: Cell = kept(Cell.lstm, f"Recurrence: {', '.join(names(Cell))}.")
    backend: Backend = noted(Backend.auto, "Who computes the recurrence.")


class WordsConfig(ModelConfig):
    """A model that looks words up for itself."""

    lowercase: bool = kept(False, "Looks up words in lower case.")


class FeaturesConfig(WordsConfig):
    """A model that sees, to tag a word, its neighbours and how it is written."""

    context: int = kept(2, "Tags: words of the window on each side.", least=0, most=100)
    shape_features: bool = kept(True, "Tags: tells capitals, digits and signs in a word.")
    affixes: int = kept(0, "Tags: longest prefixes and suffixes that are features; 0: none.", least=0, most=5)


# ---- language models


class NeuralConfig(EmbeddingsConfig, LanguageConfig):
    """What the fixed-window and the recurrent models share."""

    embed_size: int = 128
    embeddings: str = free("", "Word vectors to start from: a run, a file, or svd (made of the training text); empty: drawn.")
    hidden_size: int = kept(384, "Units of each hidden layer.", **SIZE)
    num_layers: int = kept(1, "Number of hidden layers.", least=1, most=1000)
    layer_norm: bool = kept(False, "Layer normalisation (Ba et al. 2016).")
    residual: bool = kept(False, "Adds a layer's input to its output where the sizes agree.")
    tie_weights: bool = kept(False, "One matrix for embeddings and output (Press and Wolf 2017).")
    project: bool = kept(False, "A linear layer to embed_size before the output, for tied weights of another size.")
    head: HeadName = kept(HeadName.full, "Output layer: full, adaptive or sampled softmax.")
    cutoffs: list[int] = kept(
        [2000, 10000], "Adaptive softmax: the rank at which each tail cluster begins.", least=1, most=1 << 24
    )
    div_value: float = kept(4.0, "Adaptive softmax: how much smaller each further cluster's features are.", least=1)
    num_samples: int = noted(512, "Sampled softmax: shared negatives per chunk.", least=1, most=1 << 24)
    proposal: Proposal = kept(Proposal.log_uniform, "Sampled softmax: where negatives come from.")
    dropout: float = noted(0.0, "Dropout on embeddings, between layers and before the output, where not set below.", **FRACTION)
    input_dropout: float | None = noted(None, "Dropout on the embeddings; null: as `dropout`.", **FRACTION)
    hidden_dropout: float | None = noted(None, "Dropout between layers; null: as `dropout`.", **FRACTION)
    output_dropout: float | None = noted(None, "Dropout before the output; null: as `dropout`.", **FRACTION)
    embedding_dropout: float = noted(0.0, "Drops whole rows of the embedding matrix (Gal 2016).", **FRACTION)
    locked_dropout: bool = noted(False, "One dropout mask for all steps of a chunk (Gal and Ghahramani 2016).")
    activation_penalty: float = noted(0.0, "AR: weight of the mean square of the features (Merity 2017).", least=0)
    temporal_penalty: float = noted(0.0, "TAR: weight of the mean square of their change in time.", least=0)
    maxent_order: int = kept(
        0,
        "Hashed n-gram features up to this order feed the output directly (RNN-MaxEnt, Mikolov 2011); 0: none.",
        least=0,
        most=8,
    )
    maxent_table: int = kept(1 << 22, "Weights of the hashed features.", least=1 << 10, most=MAX_TABLE_SIZE)
    init: Initialisation = kept(
        Initialisation.xavier,
        "Weights: xavier; uniform (+-init_range); fan (+-1/sqrt(hidden_size), PyTorch's); identity (of elman's recurrence).",
    )
    unigram_bias: bool = noted(True, "Starts the output bias at the log unigram frequencies of the training split.")


class RecurrentConfig(RecurrenceConfig, NeuralConfig, kind="recurrent"):
    """Elman, GRU or LSTM layers over embeddings."""

    nonlinearity: Nonlinearity = kept(Nonlinearity.tanh, "Elman's non-linearity: tanh, relu, sigmoid or identity (none).")
    hidden_sizes: list[int] = kept([], "A size for every layer; replaces hidden_size and num_layers.", **SIZE)
    projection_size: int = kept(0, "Size of a linear projection behind every layer; 0: none.", least=0, most=1 << 16)
    weight_drop: float = noted(0.0, "DropConnect on the recurrent weights, once per chunk (Merity 2017).", **FRACTION)
    zoneout: float = noted(0.0, "Probability that a unit keeps its state (Krueger 2017).", **FRACTION)
    forget_bias: float = noted(1.0, "LSTM: initial bias of the forget gate (Jozefowicz 2015).", least=-100, most=100)


class WindowConfig(NeuralConfig, kind="window"):
    """The fixed-window model (Bengio et al. 2003; grown up: Sun and Iyyer 2021)."""

    hidden_size: int = 256
    context: int = kept(8, "Tokens that the model sees: the newest and those before it.", least=1, most=10000)
    activation: Activation = kept(Activation.tanh, "Non-linearity of the hidden layers.")
    direct: bool = kept(False, "Direct connections from the embeddings to the output.")
    num_averages: int = kept(0, "Learnt averages of the tokens before the window.", least=0, most=1000)
    average_span: int = kept(0, "How many tokens before the window the averages cover.", least=0, most=100000)


class NgramConfig(LanguageConfig, kind="ngram"):
    """Counts; interpolated modified Kneser-Ney by default (Chen and Goodman 1998)."""

    state_policy: StatePolicy = StatePolicy.line
    order: int = kept(5, "Longest n-gram.", least=1, most=MAX_ORDER)
    smoothing: Smoothing = kept(Smoothing.kneser_ney, "How unseen n-grams get their share.")
    add_k: float = kept(0.1, "The k of add-k smoothing.", above=0)
    prune: list[int] = kept(
        [],
        "For orders 1, 2, ...: n-grams that occur so often or less are left out; [0,0,1]: trigrams and longer ones that occur "
        "once.",
        least=0,
        most=1 << 31,
    )


# ---- word vectors


class WordVectorsConfig(ModelConfig):
    """Vectors of words, learnt from the words around them."""

    embed_size: int = kept(100, "Size of a word's vector.", **SIZE)
    window: int = kept(5, "Words of the window on each side.", least=1, most=1000)


class NegativeSamplingConfig(WordVectorsConfig):
    """What is predicted is told from words drawn at random (Mikolov et al. 2013)."""

    num_negatives: int = kept(
        5, "Words drawn at random for each prediction; 0: none, but an exact softmax over all words.", least=0, most=1000
    )
    noise_power: float = kept(0.75, "They are drawn in proportion to their count raised to this power.", least=0, most=10)
    subsample: float = kept(
        0.001, "Words whose share of the text is larger are passed over now and then; 0: never.", least=0, most=1
    )


class SkipgramConfig(NegativeSamplingConfig, kind="skipgram"):
    """A word predicts each of its neighbours."""


class CbowConfig(NegativeSamplingConfig, kind="cbow"):
    """The mean of its neighbours predicts a word."""


class GloveConfig(WordVectorsConfig, kind="glove"):
    """Products of vectors are the logarithms of how often words stand together (Pennington et al. 2014)."""

    x_max: float = kept(10.0, "Pairs that were seen so often, or more often, weigh 1.", above=0)
    power: float = kept(0.75, "A rarer pair weighs (its count / x_max) raised to this power.", least=0, most=10)


# ---- tags and labels


class TaggerConfig(EmbeddingsConfig, FeaturesConfig, kind="tagger"):
    """A window tagger: the vectors of a word and its neighbours, hidden layers, a score for each class (Collobert 2011)."""

    embed_size: int = 50
    lowercase: bool = True
    hidden_sizes: list[int] = kept([100], "Units of each hidden layer; []: none (linear).", **SIZE)
    activation: Activation = kept(Activation.tanh, "Non-linearity of the hidden layers.")
    dropout: float = noted(0.3, "Dropout on the window and on hidden layers.", **FRACTION)
    objective: Objective = kept(
        Objective.softmax, "What is learnt: softmax over the tags; logistic or max_margin, a scorer for each class."
    )
    corrupt: Corrupt = noted(
        Corrupt.window, "max_margin: the corrupted window is another one of the data (window), or has a random centre (word)."
    )
    target_class: str = kept("", "logistic, max_margin: the only class to find; empty: all of them.")


class FrequentConfig(ModelConfig, kind="frequent"):
    """A baseline of task=classify: the most frequent label of the training texts."""


class LogisticConfig(FeaturesConfig, kind="logistic"):
    """A baseline: logistic regression on indicators (of words; for tags also of their neighbours, shapes and affixes)."""

    ngrams: int = kept(1, "Labels: indicators of n-grams up to this length.", least=1, most=5)
    affixes: int = 3


class NaiveBayesConfig(WordsConfig, kind="naive_bayes"):
    """A baseline: how often each class has each word, and nothing else (Maron 1961)."""

    add_k: float = kept(1.0, "Added to the count of every word in every class.", above=0)


class AveragingConfig(EmbeddingsConfig, WordsConfig, kind="averaging"):
    """The average of the word vectors of a text, then a softmax; with hidden layers a deep averaging network (Iyyer 2015)."""

    hidden_sizes: list[int] = kept([], "Units of each hidden layer; []: none.", **SIZE)
    activation: Activation = kept(Activation.relu, "Non-linearity of the hidden layers.")
    word_dropout: float = noted(0.3, "Probability that a word is left out of the average.", **FRACTION)
    dropout: float = noted(0.0, "Dropout on the average and on hidden layers.", **FRACTION)


class EncoderConfig(RecurrenceConfig, EmbeddingsConfig, WordsConfig, kind="encoder"):
    """A recurrence over the words of a text, its states pooled, then a softmax."""

    pooling: Pooling = kept(Pooling.max, "Of all states of a text: the last, their mean, or the largest of each unit.")
    hidden_size: int = kept(100, "Units of each layer.", **SIZE)
    num_layers: int = kept(1, "Number of layers.", least=1, most=1000)
    dropout: float = noted(0.0, "Dropout on vectors, between layers and before the softmax.", **FRACTION)
