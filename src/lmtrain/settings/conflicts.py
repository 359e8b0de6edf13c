"""Which settings do not go together: combinations that no single range can refuse, a line each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import fields
from importlib.util import find_spec

from lmtrain import rules
from lmtrain.choices import Backend
from lmtrain.config import (
    COUNTED,
    FROM_TEXT,
    KINDS,
    TASKS,
    Cell,
    ColumnsConfig,
    Config,
    CorpusConfig,
    EmbeddingsConfig,
    ExamplesConfig,
    HeadName,
    Initialisation,
    LabelledConfig,
    LanguageConfig,
    ModelConfig,
    NeuralConfig,
    NgramConfig,
    Objective,
    OneCycleConfig,
    OptimizerConfig,
    OptimizerName,
    Precision,
    RangeTestConfig,
    RecurrentConfig,
    TaggerConfig,
    TextConfig,
    TokenizerConfig,
    Unknown,
    WindowConfig,
    model_name,
    names_of,
    task_of,
)
from lmtrain.data import kinds
from lmtrain.data.characters import character_of
from lmtrain.errors import UserError, as_typed
from lmtrain.settings.quoting import written


def iter_conflicts(config: Config) -> Iterator[str]:
    """Combinations that no single range can refuse, a line each."""
    yield from _of_task(config)
    if isinstance(config.model, NeuralConfig):
        yield from _of_model(config.model)
    if isinstance(config.model, NgramConfig):
        yield from _of_counts(config.model)
    if isinstance(config.data, CorpusConfig):
        yield from _of_text(config.data, config.tokenizer)
    yield from _of_optimizer(config.optimizer, getattr(config.model, "tie_weights", False))
    if config.optimizer.name is OptimizerName.sparse_adam:
        yield from _of_sparse_adam(task_of(config.data, config.model), config.model)
    yield from _of_run(config)


def _of_task(config: Config) -> Iterator[str]:
    """Whether data, model and tokenizer are of one task."""
    task, model = task_of(config.data, config.model), config.model
    allowed = [kind for kinds in TASKS[task][1] for kind in KINDS[ModelConfig] if issubclass(kind, kinds)]
    if type(model) not in allowed:
        names = dict.fromkeys(name for kind in allowed for name in names_of(kind))
        yield (
            f"model={model_name(model)} is no model for data={config.data.kind}, which is for task={task}. "
            f"Type model={'|'.join(names)}, or data of another task."
        )
    if isinstance(config.data, ExamplesConfig):
        yield from _of_examples(config.data)
        for name in ("vocabulary", "unknown", "separators"):
            if getattr(config.tokenizer, name) != getattr(TokenizerConfig(), name):
                yield f"tokenizer.{name} is for running texts; task={task} learns words from its own texts. Leave it out."
    if task != "language":
        if not kinds.KINDS[config.tokenizer.name.name].has_words:
            yield f"task={task} reads words. Type tokenizer=word."
        if getattr(model, "embeddings", "") == FROM_TEXT:
            yield (
                f"model.embeddings={FROM_TEXT} is for language models, which read a running text. Make vectors of a text with  "
                "python -m lmtrain vectors train TEXT --method svd --output FILE  and type model.embeddings=FILE."
            )
        if config.trainer.precision is Precision.bfloat16:
            yield f"trainer.precision=bfloat16 is for language models; task={task} computes in float32. Leave it out."
    if isinstance(model, TaggerConfig) and model.target_class and model.objective is Objective.softmax:
        yield (
            f"model.target_class={model.target_class} is for model.objective=logistic|max_margin: a softmax is over all tags. "
            "Type one of these, or leave model.target_class out."
        )


def _of_examples(data: ExamplesConfig) -> Iterator[str]:
    if bool(data.path) == bool(data.train or data.valid or data.test):
        yield (
            f"data={data.kind} needs data.path=DIRECTORY, or data.train=FILE data.valid=FILE and, where there is one, "
            "data.test=FILE; not both."
        )
    elif not data.path and not (data.train and data.valid):
        yield f"data={data.kind} needs both data.train=FILE and data.valid=FILE (data.test=FILE may be left out)."
    if isinstance(data, LabelledConfig) and data.folds and not 3 <= data.folds >= data.fold:
        yield (
            f"data.folds={data.folds} data.fold={data.fold}: one fold tests, one validates and the others are learnt from. "
            "Type for example data.folds=10 and a data.fold from 1 to 10."
        )
    if isinstance(data, ColumnsConfig):
        token, tag = data.token_column, data.tag_column
        if 0 in (token, tag) or token == tag:
            yield (
                f"data.token_column={token} data.tag_column={tag}: the token and the tag stand in two columns, which are "
                "counted from 1, or from the last one with -1. Type for example data.token_column=1 data.tag_column=-1."
            )
    try:
        "".encode(data.encoding)
    except LookupError:
        yield f"data.encoding={data.encoding} is unknown. Type for example data.encoding=latin-1, or leave it out (utf-8)."


def _of_model(model: NeuralConfig) -> Iterator[str]:
    if model.tie_weights and not model.project:
        last = _last_size(model)
        if last != model.embed_size:
            yield (
                f"model.tie_weights=true needs the last layer to be of size model.embed_size, but they are {last} and "
                f"{model.embed_size}. Set model.embed_size={last}, or model.project=true to add a {last} -> "
                f"{model.embed_size} layer."
            )
    if model.head is HeadName.adaptive and sorted(set(model.cutoffs)) != model.cutoffs:
        yield f"model.cutoffs={written(model.cutoffs)} must ascend. Type for example model.cutoffs=[2000,10000]."
    if model.head is HeadName.adaptive and model.project and not model.tie_weights:
        yield "model.project=true has no meaning for model.head=adaptive without model.tie_weights=true. Leave it out."
    if isinstance(model, RecurrentConfig) and model.backend in (Backend.native, Backend.triton):
        has_no_zoneout = model.backend is Backend.native
        if lacking := ["layer_norm"] * model.layer_norm + ["zoneout"] * (has_no_zoneout and model.zoneout > 0):
            yield (
                f"model.backend={model.backend.value} has no {' and no '.join(f'model.{name}' for name in lacking)}. "
                "Type model.backend=auto."
            )
    if model.maxent_order:
        is_full, penalties = model.head is HeadName.full, model.activation_penalty + model.temporal_penalty
        yield from _typed(
            rules.of_hashed_ngrams(model.maxent_order, has_full_softmax=is_full, is_penalised=penalties > 0),
            order="model.maxent_order=", head="model.head=", activation_penalty="model.activation_penalty=",
            temporal_penalty="model.temporal_penalty=",
        )  # fmt: skip
    if isinstance(model, WindowConfig) and (model.num_averages > 0) != (model.average_span > 0):
        yield (
            f"model.num_averages={model.num_averages} and model.average_span={model.average_span} need each other. Set both "
            "above 0, for example model.num_averages=5 model.average_span=48, or both to 0."
        )
    if model.tie_weights and model.embeddings and model.freeze_embeddings != 0:
        yield (
            f"model.freeze_embeddings={written(model.freeze_embeddings)} would freeze the output layer, too, as "
            "model.tie_weights=true makes it of the same matrix. Type model.freeze_embeddings=0, or leave model.tie_weights "
            "out."
        )
    if model.init is Initialisation.identity and getattr(model, "cell", None) != Cell.elman:
        yield "model.init=identity is for the recurrence of model=elman (Le et al. 2015). Type that, or model.init=xavier."


def _of_text(data: CorpusConfig, tokenizer: TokenizerConfig) -> Iterator[str]:
    if isinstance(data, TextConfig) and not data.path:
        yield "data=text needs data.path. Type data.path=FILE, or a directory with train.txt, valid.txt and test.txt."
    if data.valid_fraction + data.test_fraction >= 1:
        yield "data.valid_fraction and data.test_fraction leave nothing to train on; their sum must stay below 1."
    yield from _of_tokenizer(tokenizer)


def _of_tokenizer(tokenizer: TokenizerConfig) -> Iterator[str]:
    kind = kinds.KINDS[tokenizer.name.name]
    of_words = {
        "tokenizer.vocabulary": tokenizer.vocabulary, "tokenizer.separators": tokenizer.separators,
        "tokenizer.unknown=spelled": tokenizer.unknown is Unknown.spelled,
    }  # fmt: skip
    mistakes = kinds.mistakes(
        kind, min_count=tokenizer.min_count, vocab_size=tokenizer.vocab_size, has_list=bool(tokenizer.vocabulary),
        of_words=[name for name, is_given in of_words.items() if is_given],
    )  # fmt: skip
    yield from _typed(mistakes, name="tokenizer=", min_count="tokenizer.min_count=", vocab_size="tokenizer.vocab_size=")
    if (kind is kinds.FILE) != bool(tokenizer.path):
        yield (
            f"tokenizer={kind.name} and tokenizer.path={tokenizer.path!r} do not go together: a file is read by tokenizer=file "
            "alone, which needs one. Type tokenizer=file tokenizer.path=FILE, or neither."
        )
    for separator in tokenizer.separators:
        try:
            character_of(separator)
        except ValueError as error:
            yield f"tokenizer.separators={separator!r} cannot be used: {error}. Type for example tokenizer.separators=[U+00A0]"
    if kind in (kinds.BPE, kinds.UNIGRAM, kinds.FILE) and find_spec("tokenizers") is None:
        yield (
            f"tokenizer={kind.name} needs the package tokenizers, which is not installed; it comes with lmtrain's extra "
            "`subword`. Type  pip install tokenizers"
        )


def _of_optimizer(optimizer: OptimizerConfig, tie_weights: bool) -> Iterator[str]:
    mistakes = rules.of_optimizer(
        optimizer.name.name, optimizer.learning_rate, optimizer.options, weight_decay=optimizer.weight_decay, l1=optimizer.l1,
        tie_weights=tie_weights,
    )  # fmt: skip
    names = {f.name: f"optimizer.{f.name}=" for f in fields(optimizer)}
    yield from _typed(mistakes, **names | {"name": "optimizer=", "tie_weights": "model.tie_weights="})


def _of_sparse_adam(task: str, model: ModelConfig) -> Iterator[str]:
    """Whether a model has sparse gradients from the first step on: a sampled softmax has some even beside frozen vectors."""
    is_frozen = isinstance(model, EmbeddingsConfig) and bool(model.embeddings) and model.freeze_embeddings != 0
    if task not in ("language", "classify"):
        yield f"optimizer=sparse_adam needs sparse gradients, and those of task={task} are dense. Type optimizer=adam."
    elif is_frozen and getattr(model, "head", None) is not HeadName.sampled:
        yield (
            "optimizer=sparse_adam needs word vectors that are trained, and "
            f"model.freeze_embeddings={written(getattr(model, 'freeze_embeddings'))} freezes them. Type optimizer=adam, or "
            "model.freeze_embeddings=0."
        )


def _of_counts(model: NgramConfig) -> Iterator[str]:
    mistakes = rules.of_counts(model.order, model.smoothing.name, model.add_k, model.prune)
    yield from _typed(mistakes, **{f.name: f"model.{f.name}=" for f in fields(model)})


def _typed(mistakes: Iterable[UserError], **names: str) -> Iterator[str]:
    """The mistakes that a rule finds, in the words of the command line; `names` as for `as_typed`."""
    for mistake in mistakes:
        try:
            with as_typed(**names):
                raise mistake
        except UserError as typed:
            yield str(typed)


def _of_run(config: Config) -> Iterator[str]:
    schedule, trainer = config.schedule, config.trainer
    if isinstance(schedule, OneCycleConfig) and schedule.up + schedule.flat + schedule.down > 1:
        yield "schedule.up, schedule.flat and schedule.down are shares of the run; their sum must be at most 1."
    if isinstance(schedule, RangeTestConfig) and schedule.low >= schedule.high:
        yield f"schedule.low={schedule.low:g} must be below schedule.high={schedule.high:g}."
    if config.resume is not None and not config.resume.strip():
        yield "resume= names no run. Type resume=outputs/RUN, or leave it out."
    if not isinstance(config.model, COUNTED) and trainer.num_steps is trainer.num_epochs is trainer.max_seconds is None:
        yield "nothing ends the training. Set trainer.num_steps, trainer.num_epochs or trainer.max_seconds."
    if config.start_from_new_tokens and not isinstance(config.model, LanguageConfig):
        yield (
            "start_from_new_tokens=true is for language models; taggers and classifiers read new words as unknown. Leave it "
            "out."
        )
    if 0 < trainer.backward_length < trainer.chunk_length:
        yield (
            f"trainer.backward_length={trainer.backward_length} is shorter than trainer.chunk_length="
            f"{trainer.chunk_length}. Set it to 0 (no overlap) or to at least {trainer.chunk_length}."
        )


def _last_size(model: NeuralConfig) -> int:
    """Size of what enters the output layer."""
    if isinstance(model, WindowConfig):
        return model.hidden_size + (model.context * model.embed_size if model.direct else 0)
    assert isinstance(model, RecurrentConfig)
    sizes = model.hidden_sizes or [model.hidden_size]
    return model.projection_size or sizes[-1]
