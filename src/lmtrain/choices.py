"""Every closed list of names that one chooses from: one list for settings, for Python and for what is compiled.

Plain enumerations, which import nothing, so that settings are checked before anything heavy is imported. A table with what
stands behind each name is kept beside the code that it belongs to (`ops.activations.ACTIVATIONS`, `models.recurrent.CELLS`);
`tests/test_choices.py` holds every such table against the list here.
"""

from __future__ import annotations

from enum import Enum


class StatePolicy(Enum):
    """When a model forgets: never, at the end of a line, or at an empty line (the end of a document)."""

    carry = "carry"
    line = "line"
    document = "document"


Cell = Enum("Cell", "elman gru lstm")
Nonlinearity = Enum("Nonlinearity", "tanh relu sigmoid identity")  # in the order of the enumeration in ops/native/elman.h
Activation = Enum(
    "Activation", "sigmoid tanh hard_tanh relu leaky_relu parametric_relu silu swish gelu gelu_logistic glu swiglu identity"
)
HeadName = Enum("HeadName", "full adaptive sampled")
Proposal = Enum("Proposal", "log_uniform unigram")
Initialisation = Enum("Initialisation", "xavier uniform fan identity")
Backend = Enum("Backend", "auto reference eager native triton")
Smoothing = Enum("Smoothing", "kneser_ney add_k maximum_likelihood")
TokenizerName = Enum("TokenizerName", "char byte word bpe unigram file")
Unknown = Enum("Unknown", "token spelled")
Normalization = Enum("Normalization", "none nfc nfd nfkc")
OptimizerName = Enum("OptimizerName", "sgd adagrad rmsprop adam adamw sparse_adam")
Averaging = Enum("Averaging", "none nt_asgd ema")
Device = Enum("Device", "auto cpu cuda")
Precision = Enum("Precision", "auto float32 bfloat16")
Distributed = Enum("Distributed", "auto ddp none")
CudaGraph = Enum("CudaGraph", "auto on off")
OnNonfinite = Enum("OnNonfinite", "stop skip rollback")
Objective = Enum("Objective", "softmax logistic max_margin")
Corrupt = Enum("Corrupt", "window word")
Pooling = Enum("Pooling", "last mean max")
SplitWay = Enum("SplitWay", "contiguous shuffled_lines shuffled_documents")
FinalSplit = Enum("FinalSplit", "test valid none")


def names(choice: type[Enum]) -> tuple[str, ...]:
    """What one types for a choice: its names, in order."""
    return tuple(choice.__members__)
