"""Settings of optimisers, schedules and the training itself."""

from __future__ import annotations

from dataclasses import fields

from lmtrain.choices import *
from lmtrain.config.declaring import FRACTION, Settings, fixed, free, kept, noted
from lmtrain.rules import OptimizerOptions


class OptimizerConfig(Settings):
    name: OptimizerName = kept(OptimizerName.adam, "Optimiser.")
    learning_rate: float = noted(0.006, "Learning rate before the schedule.", above=0, most=1000)
    weight_decay: float = noted(0.0, "L2: decoupled in adamw, in the gradient elsewhere; not on biases and norms.", least=0)
    l1: float = noted(0.0, "L1: weight of the sum of absolute weights.", least=0)
    momentum: float = noted(
        OptimizerOptions.momentum, "SGD and RMSprop. Above 0, schedule=one_cycle moves it from beta1_high.", **FRACTION
    )
    nesterov: bool = noted(OptimizerOptions.nesterov, "SGD with Nesterov's momentum.")
    beta1: float = noted(OptimizerOptions.beta1, "Adam: decay of the mean of gradients.", **FRACTION)
    beta2: float = noted(OptimizerOptions.beta2, "Adam: decay of the mean of squares.", **FRACTION)
    alpha: float = noted(OptimizerOptions.alpha, "RMSprop: decay of the mean of squares.", **FRACTION)
    epsilon: float = noted(OptimizerOptions.epsilon, "Added to the denominator.", least=0)
    averaging: Averaging = kept(Averaging.none, "Weights used for evaluation: nt_asgd, ema, or none.")
    ema_decay: float = noted(0.999, "EMA: weight of the past.", **FRACTION)
    patience: int = noted(5, "NT-ASGD: evaluations without improvement before averaging starts.", least=1)

    @property
    def options(self) -> OptimizerOptions:
        """Those of the settings that some optimisers read and others do not."""
        return OptimizerOptions(**{spec.name: getattr(self, spec.name) for spec in fields(OptimizerOptions)})


# ---- schedules


class ScheduleConfig(Settings):
    kind: str = fixed("")


class ConstantConfig(ScheduleConfig, kind="constant"):
    pass


class WarmupConfig(ScheduleConfig):
    """Linear warm-up, then down to a final rate."""

    warmup: float = noted(0.02, "Share of the run that warms up.", **FRACTION)
    final: float = noted(0.0, "Rate at the end, as a share of the learning rate.", least=0, most=1)


class CosineConfig(WarmupConfig, kind="cosine"):
    """Linear warm-up, then half a cosine."""


class LinearConfig(WarmupConfig, kind="linear"):
    """Linear warm-up, then a straight line."""


class StepConfig(ScheduleConfig, kind="step"):
    """Multiplies the rate by `factor` every `every` epochs, after `after` epochs (Zaremba 2014: 0.5, after 4)."""

    factor: float = noted(0.5, "What the rate is multiplied by.", above=0, most=1)
    every: float = noted(1.0, "Epochs between two changes.", above=0)
    after: float = noted(0.0, "Epochs before the first change; 0: as many as `every`.", least=0)


class ExponentialConfig(ScheduleConfig, kind="exponential"):
    """Multiplies the rate by `factor` per epoch, continuously."""

    factor: float = noted(0.9, "What the rate is multiplied by in an epoch.", above=0, most=1)


class PlateauConfig(ScheduleConfig, kind="plateau"):
    """Multiplies the rate by `factor` when validation has not improved for `patience` evaluations."""

    factor: float = noted(0.25, "What the rate is multiplied by.", above=0, below=1)
    patience: int = noted(1, "Evaluations without improvement before that.", least=1)


class OneCycleConfig(ScheduleConfig, kind="one_cycle"):
    """Up, flat, down, and a cosine to zero, with Adam's beta1, or a momentum, moving against the rate (Smith 2018)."""

    up: float = noted(0.083, "Share of the run that rises.", **FRACTION)
    flat: float = noted(0.417, "Share that stays at the peak.", **FRACTION)
    down: float = noted(0.417, "Share that falls back; the rest anneals to zero.", **FRACTION)
    div: float = noted(10.0, "The peak over the first rate.", least=1)
    beta1_low: float = noted(0.7, "Adam's beta1, or the momentum of SGD and RMSprop where one is set, at the peak.", **FRACTION)
    beta1_high: float = noted(0.8, "The same at both ends.", **FRACTION)


class RangeTestConfig(ScheduleConfig, kind="range_test"):
    """The rate rises geometrically from `low` to `high`, and `range_test.svg` shows the loss over it (Smith 2017)."""

    low: float = noted(1e-05, "The first rate.", above=0)
    high: float = noted(1.0, "The last rate.", above=0)


# ---- the trainer


class TrainerConfig(Settings):
    batch_size: int = kept(64, "Parallel streams.", least=1, most=1 << 20)
    chunk_length: int = kept(35, "Steps of truncated backpropagation through time.", least=1, most=1 << 20)
    backward_length: int = kept(
        0, "Steps that gradients reach back (k2); more than chunk_length (k1) overlaps; 0: chunk_length.", least=0
    )
    random_chunk_length: bool = kept(False, "Draws chunk lengths near chunk_length and scales the rate (Merity 2017).")
    random_offset: bool = kept(True, "Each epoch starts at another offset.")
    num_steps: int | None = free(None, "Steps to train; null: no limit.", least=0)
    num_epochs: float | None = free(None, "Epochs to train; null: no limit.", least=0)
    max_seconds: float | None = free(
        45.0, "Seconds of training, without evaluations, samples and saving; null: no limit.", least=0,
    )  # fmt: skip
    patience: int | None = free(
        None, "Ends training after so many evaluations in a row without improvement; null: never.", least=1
    )
    clip_norm: float = noted(1.0, "Largest norm of the gradient; 0: no clipping.", least=0)
    log_every: int = free(10, "Steps between two records of the loss.", least=1)
    evaluate_every: int = noted(100, "Steps between two evaluations; 0: every epoch.", least=0)
    evaluation_streams: int = noted(16, "Streams of the evaluations during training; the last one uses 1.", least=1)
    evaluation_tokens: int | None = noted(
        None,
        "Tokens that each evaluation during training reads, in evenly spaced blocks; 0: all; null: at most a tenth of those "
        "trained between two, but 1,000,000 at the least. The final test reads all.",
        least=0,
    )
    save_every: int = free(0, "Steps between two checkpoints; 0: at every evaluation.", least=0)
    keep: int = free(
        2,
        "Newest checkpoints kept besides the best; while a run trains, two at the least. 0: in the end the best alone.",
        least=0,
        most=10000,
    )
    final_split: FinalSplit = free(
        FinalSplit.test, "What the best model is judged by in the end: test (valid where there is none), valid, or none."
    )
    baselines: bool | None = free(
        None,
        "In the end a simple model is trained, too, to compare with: Kneser-Ney n-grams beside a language model, logistic "
        "regression beside tags and labels; null: where it takes seconds.",
    )
    projector: bool = free(True, "In the end the vectors of the most frequent words are written for TensorBoard's projector.")
    sample_tokens: int | None = free(
        None, "Tokens of the sample at each evaluation; null: 400 characters or bytes, 100 words or subwords; 0: none.",
        least=0, most=100000,
    )  # fmt: skip
    sample_temperature: float = free(0.5, "Temperature of these samples.", least=0, most=100)
    precision: Precision = noted(
        Precision.auto, "float32, bfloat16 (products only), or auto: bfloat16 where the device has instructions for it."
    )
    device: Device = noted(Device.auto, "auto, cpu or cuda.")
    distributed: Distributed = free(
        Distributed.auto, "Several processes, which torchrun starts, train one model together: auto, ddp (nothing else), none."
    )
    cuda_graph: CudaGraph = free(CudaGraph.auto, "On a GPU a step is recorded once and replayed: auto, on or off.")
    num_threads: int = noted(0, "CPU threads; 0: as many as PyTorch chooses.", least=0, most=1024)
    seed: int = kept(1, "Seed of everything random.", least=0, most=2**32 - 1)
    check_gradients: int = free(
        0,
        "Entries of every parameter whose gradient is checked against differences of the loss, before the first step and at "
        "each evaluation; 0: none.",
        least=0,
        most=1 << 20,
    )
    watch_gradients: bool = free(
        False, "Records gradients by time lag, saturated units and gates, and dead units at each evaluation."
    )
    on_nonfinite: OnNonfinite = free(
        OnNonfinite.stop,
        "At a loss, gradient or validation that is not finite: stop (it is kept in crash/), skip the chunk, or rollback to the "
        "newest checkpoint with half the rate.",
    )
