"""Tagging: a class for every token, from a window of words (Collobert and Weston 2008; Collobert et al. 2011).

The windows of a sentence are filled up with `<eos>`, whose vector a language model has learnt as the border of its lines.
A model learns from windows, which are shuffled anew in each epoch. Max-margin learns from pairs of a window of a class and a
corrupted one.
"""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import lmtrain.config as config
from lmtrain.build import build_gradient_learner
from lmtrain.data.batches import Batches, Position, Shuffled, random_of
from lmtrain.data.columns import (
    OUTSIDE,
    Columns,
    Sentence,
    entities,
    intended,
    iter_misfits,
    read_columns,
    scheme_of,
    split_tag,
)
from lmtrain.data.examples import find_splits
from lmtrain.data.features import Features, learn_features
from lmtrain.errors import DataError, SettingsError
from lmtrain.expected import compare, within
from lmtrain.memory import check_weights, count_parameters
from lmtrain.models.tagger import IndicatorTagger, TaggerNetwork, Windows, WindowTagger
from lmtrain.quantity import counted
from lmtrain.saved import describe_tokenizer
from lmtrain.settings import comparing
from lmtrain.shell import one_line
from lmtrain.tasks.base import Files, Loaded, SplitName, Task
from lmtrain.tasks.baselines import Comparison
from lmtrain.tasks.embeddings import given_vectors, put_vectors, say_coverage
from lmtrain.tasks.inspection import Material, Section, material_of, shares_of
from lmtrain.tasks.language import check_tokenizer
from lmtrain.tasks.restoring import text_to_tensor
from lmtrain.tasks.starting import check_known
from lmtrain.tasks.tag_baselines import compare as compare_taggers
from lmtrain.tasks.tag_model import Outputs, TagModel, place, softmax
from lmtrain.tasks.tag_score import TagScore, average_precision_of, best_threshold, score_tags
from lmtrain.training.checkpoint import Checkpoint
from lmtrain.training.learner import GradientLearner, load_weights, shared_once
from lmtrain.training.score import Score, Wording
from lmtrain.vectors.table import Vectors

if TYPE_CHECKING:
    from lmtrain.tasks.tag_saved import Tagger

log = logging.getLogger("lmtrain")

SHAPE_SIZE, AFFIX_SIZE = 10, 20  # of the vectors of shapes and affixes
WORST = 20  # errors that are shown
MAX_TAGS = 100  # with more, and few tokens of each, a message asks whether they are tags


class Tag(Task):
    """The task of tagging sentences, those of `splits` if they have been read already."""

    compared: ClassVar[tuple[str, ...]] = ("tokenizer", "features")

    def __init__(
        self,
        settings: config.Config,
        device: torch.device,
        splits: dict[str, Columns] | None = None,
        start: Tagger | None = None,
    ) -> None:
        self.settings, self.device, self.start = settings, device, start
        assert isinstance(settings.data, config.ColumnsConfig)
        assert isinstance(settings.model, config.TaggerConfig | config.LogisticConfig)
        self.model = settings.model
        self.given = given_vectors(self.model, self.model.embed_size) if isinstance(self.model, config.TaggerConfig) else None
        self.splits = splits or read_splits(settings.data)
        train = self.splits["train"].sentences
        self.features = start.model.features if start is not None else learn_features(
            train, lowercase=self.model.lowercase, shapes=self.model.shape_features, affixes=self.model.affixes,
            min_count=settings.tokenizer.min_count, vocab_size=settings.tokenizer.vocab_size,
            more=self.given.words if self.given else (),
        )  # fmt: skip
        self.objective = self.model.objective.name if isinstance(self.model, config.TaggerConfig) else "softmax"
        self._check_tags()
        self.outputs = self._outputs(train) if start is None else self._outputs_of(start, train)
        self.known_entities = frozenset(
            sentence.tokens[entity.start : entity.end] for sentence in train for entity in entities(sentence.tags)
        )
        words = "\n".join(self.given.words) if self.given else ""
        self.fingerprint = hashlib.sha256("".join([*(c.sha256 for c in self.splits.values()), words]).encode()).hexdigest()
        self.wording = Wording(
            "windows", "margin_per_window" if self.objective == "max_margin" else "nats_per_window", self._judged_by(),
            higher_is_better=True,
        )  # fmt: skip

    @property
    def _target(self) -> str:
        """Returns the only class to find; empty: all of them."""
        return self.model.target_class if isinstance(self.model, config.TaggerConfig) else ""

    def _check_tags(self) -> None:
        """Raises an error if nothing can be told from anything else, or where the class to find is lacking."""
        is_softmax = self.objective == "softmax"
        found = self.known_tags if is_softmax else {split_tag(tag).cls for tag in self.known_tags}
        if len(found) < 2:
            (only,) = found
            raise DataError(
                f"Every token of the training data {'has one tag' if is_softmax else 'is of one class'}, {one_line(only)}.",
                "There is something to learn where tokens are of two classes or more, of which O may be one.",
                f"Give data with {'entities' if only == OUTSIDE else 'another class, or O'}.",
            )
        if self._target and self._target not in (classes := found - {OUTSIDE}):
            raise SettingsError(
                f"model.target_class={one_line(self._target)} is no class of the training data.",
                f"Their classes are {', '.join(map(one_line, sorted(classes)))}.", "Type one of them, or leave it out for all.",
            )  # fmt: skip

    def _outputs(self, train: Sequence[Sentence]) -> Outputs:
        tags = Counter(tag for sentence in train for tag in sentence.tags)
        ordered = sorted(tags, key=lambda tag: (tag != OUTSIDE, -tags[tag], tag))
        if self.objective == "softmax":
            return Outputs(tuple(ordered), (), scheme_of(train))
        classes = tuple(dict.fromkeys(cls for cls in (split_tag(tag).cls for tag in ordered) if cls != OUTSIDE))
        return Outputs((), (self._target,) if self._target else classes, scheme_of(train))

    def _outputs_of(self, start: Tagger, train: Sequence[Sentence]) -> Outputs:
        """Returns those of the tagger to start from, which must know every tag of the training data."""
        outputs = start.model.outputs
        tags = {tag for sentence in train for tag in sentence.tags}
        if outputs.tags:
            check_known("tag", tags, outputs.tags)
        elif not self._target:
            check_known("class", {split_tag(tag).cls for tag in tags} - {OUTSIDE}, outputs.classes)
        return outputs

    def _judged_by(self) -> str:
        if self.outputs.classes and self._target:
            return "average_precision"
        has_outside = any(tag == OUTSIDE for sentence in self.splits["train"].sentences for tag in sentence.tags)
        return "entity_f1" if has_outside else "accuracy"

    # ---- what is learnt from

    @cached_property
    def _training_arrays(self) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        """Returns the features [R, F] of all rows, the places [M] of tokens in them, and the output [M] of each (-1: none)."""
        sentences = self.splits["train"].sentences
        rows_RF, centres_M = place([sentence.tokens for sentence in sentences], self.features, self.model.context)
        tags = [tag for sentence in sentences for tag in sentence.tags]
        return rows_RF, centres_M, self._wrap(None).classes_of(tags)

    @cached_property
    def batches(self) -> Batches:
        trainer = self.settings.trainer
        _, centres_M, outputs_M = self._training_arrays
        self._items = np.arange(len(centres_M)) if self.objective != "max_margin" else np.flatnonzero(outputs_M >= 0)
        return Shuffled(len(self._items), self._batch, batch_size=trainer.batch_size, seed=trainer.seed)

    def check(self) -> None:
        num_outputs = len(self.outputs.names)
        num_parameters = count_parameters(lambda: build_tagger(self.model, self.features, num_outputs))
        check_weights(self.settings, num_parameters, self.device)
        super().check()

    def _batch(self, numbers: NDArray[Any], position: Position) -> Windows:
        _, centres_M, outputs_M = self._training_arrays
        items = self._items[numbers]
        targets_N = outputs_M[items]
        corrupted = self._corrupted(items, targets_N, position) if self.objective == "max_margin" else None
        return Windows(
            torch.from_numpy(self._windows(centres_M[items])), torch.from_numpy(targets_N), position.epoch, position.index,
            None if corrupted is None else torch.from_numpy(corrupted),
        )  # fmt: skip

    def _windows(self, centres_N: NDArray[Any]) -> NDArray[Any]:
        offsets_W = np.arange(-self.model.context, self.model.context + 1)
        return np.asarray(self._training_arrays[0][centres_N[:, None] + offsets_W])

    def _corrupted(self, items: NDArray[Any], classes_N: NDArray[Any], position: Position) -> NDArray[Any]:
        """Returns windows whose centre is not of the class, or the same windows with a random word in their centre."""
        rows_RF, centres_M, outputs_M = self._training_arrays
        random = random_of("corrupt", self.settings.trainer.seed, position.epoch, position.index)
        drawn = random.randint(0, len(centres_M), len(items))
        if isinstance(self.model, config.TaggerConfig) and self.model.corrupt is config.Corrupt.word:
            windows_NWF = self._windows(centres_M[items]).copy()
            windows_NWF[:, self.model.context] = rows_RF[centres_M[drawn]]
            return windows_NWF
        while (same := outputs_M[drawn] == classes_N).any():
            drawn[same] = random.randint(0, len(centres_M), int(same.sum()))
        return self._windows(centres_M[drawn])

    def learner(self) -> GradientLearner:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.settings.trainer.seed)
            network = build_tagger(self.model, self.features, len(self.outputs.names))
        rows_RF, centres_M, outputs_M = self._training_arrays
        if self.given is not None and isinstance(network, WindowTagger):
            words = self.features.tokenizer.tokens
            counts = np.bincount(rows_RF[centres_M, 0], minlength=len(words))
            assert isinstance(self.model, config.TaggerConfig)
            say_coverage(self.model.embeddings, put_vectors(network.tables[0], words, self.given), counts)
        network.start_at([float((outputs_M == number).mean()) for number in range(network.num_outputs)])
        if self.start is not None:
            load_weights(network, shared_once(self.start.model.network))
        return build_gradient_learner(self.settings, network.to(self.device), self.device, "tables.0")

    # ---- how good it is

    def _wrap(self, network: TaggerNetwork | None) -> TagModel:
        return TagModel(network, self.features, self.outputs, self.model.context, self.device)  # type: ignore[arg-type]

    def score(self, model: TaggerNetwork) -> TagScore:
        """Returns `final_score` on validation, where the thresholds of max-margin scores are chosen first."""
        sentences = self.splits["valid"].sentences
        wrapped = self._wrap(model)
        scores_MC = wrapped.scores([sentence.tokens for sentence in sentences])
        if self.objective == "max_margin":
            outputs_M = wrapped.classes_of([tag for sentence in sentences for tag in sentence.tags])
            chosen = [best_threshold(scores_MC[:, c], outputs_M == c) for c in range(model.num_outputs)]
            model.thresholds_C.copy_(torch.tensor(chosen))
        return judge(wrapped, sentences, scores_MC, self.known_entities, self.wording.value)

    def final_score(self, model: TaggerNetwork, split: SplitName) -> TagScore:
        sentences, wrapped = self.splits[split].sentences, self._wrap(model)
        scores_MC = wrapped.scores([sentence.tokens for sentence in sentences])
        return judge(wrapped, sentences, scores_MC, self.known_entities, self.wording.value)

    def has(self, split: SplitName) -> bool:
        return split in self.splits

    def show(self, model: TaggerNetwork) -> str:
        return "\n".join(worst_errors(self._wrap(model), self.splits["valid"].sentences))

    def shown(self) -> str:
        return "The worst errors on the validation split (how sure it was, what it is, what it was taken for)"

    def comparison(self, model: TaggerNetwork, final: Score | None = None) -> Comparison:
        """Compares the model with the simplest ones, on train, valid and the split of the final score."""
        return compare_taggers(self, model)

    @property
    def known_tags(self) -> frozenset[str]:
        return frozenset(tag for sentence in self.splits["train"].sentences for tag in sentence.tags)

    def vectors(self, model: TaggerNetwork) -> Vectors | None:
        return vectors_in(model, self.features)

    # ---- what is said, and what is saved

    def describe(self) -> str:
        lines = [f"{'split':<6}{'sentences':>11}{'tokens':>10}{'entities':>10}{'unknown':>9}"]
        for name, columns in self.splits.items():
            unknown = self._unknown_share(name)
            num_entities = sum(len(entities(sentence.tags)) for sentence in columns.sentences)
            lines.append(f"{name:<6}{len(columns.sentences):>11,}{columns.num_tokens:>10,}{num_entities:>10,}{unknown:>9.2%}")
        names = ", ".join(map(one_line, self.outputs.names[:20])) + ", ..." * (len(self.outputs.names) > 20)
        lines.append(f"vocabulary: {self.features.tokenizer.vocab_size:,} words, learnt from train alone; tags are {names}")
        lines.append(f"tags are written as {self.outputs.scheme.name}")
        return "\n".join(lines)

    def material(self) -> Material:
        tags = {name: Counter(tag for s in columns.sentences for tag in s.tags) for name, columns in self.splits.items()}
        return material_of(
            {name: [sentence.tokens for sentence in columns.sentences] for name, columns in self.splits.items()},
            line="sentence", unknown={name: self._unknown_share(name) for name in self.splits},
            sections=[shares_of("tags", "Tags, and their shares", tags), shared_entities(self.splits)],
        )  # fmt: skip

    def _unknown_share(self, name: str) -> float:
        words = self.features.of([token for sentence in self.splits[name].sentences for token in sentence.tokens])[:, 0]
        return float((words == self.features.tokenizer.unk_id).mean())

    def iter_advice(self) -> Iterator[str]:
        num_tags, num_tokens = len(self.known_tags), self.splits["train"].num_tokens
        if num_tags > MAX_TAGS and num_tags > num_tokens / 10:
            yield f"train has {num_tags:,} different tags for {num_tokens:,} tokens. Are these words and tags in columns?"
        train = {sentence.tokens for sentence in self.splits["train"].sentences}
        for name in ("valid", "test"):
            if name in self.splits:
                sentences = self.splits[name].sentences
                if shared := sum(sentence.tokens in train for sentence in sentences):
                    of, are = counted(len(sentences), "sentence"), "is" if shared == 1 else "are"
                    yield f"{shared:,} of {of} of {name} {are} in train: scores on them say too much."
                if lacking := {tag for sentence in sentences for tag in sentence.tags} - self.known_tags:
                    listed = ", ".join(map(one_line, sorted(lacking)))
                    yield f"{name} has tags that train lacks, and that count as missed: {listed}."
                if self.wording.value != "accuracy" and not any(map(self._has_entity, sentences)):
                    yield f"{name} has nothing to be found, so its score is 0 for any model."
        yield from self._advice_on_writing()

    def _has_entity(self, sentence: Sentence) -> bool:
        return any(not self._target or entity.cls == self._target for entity in entities(sentence.tags))

    def _advice_on_writing(self) -> Iterator[str]:
        """Yields which tags are written otherwise than the others, or look like tags of another meaning."""
        meant = {tag: intended(tag) for tag in self.known_tags}
        odd = sorted(tag for tag in meant if meant[tag] != tag)
        if odd and OUTSIDE in meant.values():  # which tags of parts of speech have not
            shown = ", ".join(f"{one_line(tag)} looks like {one_line(meant[tag])}" for tag in odd[:5])
            lacks = "" if OUTSIDE in meant else "No tag is O, which marks words outside of entities. "
            yield f"{lacks}{shown}{', ...' * (len(odd) > 5)}; as they are written, these are classes of their own."
            return
        scheme = self.outputs.scheme
        for name, columns in self.splits.items():
            misfits = list(iter_misfits(columns.sentences, scheme))
            if misfits:
                (sentence, place), num_tags = misfits[0], sum(tag != OUTSIDE for s in columns.sentences for tag in s.tags)
                number, are = f"{len(misfits):,} of {counted(num_tags, 'tag')}", "is" if len(misfits) == 1 else "are"
                yield (
                    f"{number} of entities in {name} {are} not written as {scheme.name}, as this model writes tags. The first "
                    f"is {one_line(sentence.tags[place])} of {one_line(sentence.tokens[place])!r}, in the sentence of line "
                    f"{sentence.line:,}."
                )

    def files(self) -> Files:
        tensors, documents = describe_sentences(self.splits)
        tokenizer_tensors, tokenizer_documents = describe_tokenizer(self.features.tokenizer)
        documents |= tokenizer_documents
        documents["model"] = {
            "task": "tag", "settings": comparing.config_to_json(self.model), **self.outputs.to_json(),
        }  # fmt: skip
        documents["features"] = self.features.to_json()
        documents["texts"] = {"train_entities": sorted(map(list, self.known_entities)), "judged_by": self.wording.value}
        return Files({"texts": tensors, **tokenizer_tensors}, documents)

    def check_saved(self, checkpoint: Checkpoint) -> config.ModelConfig:
        check_tokenizer(checkpoint, self.features.tokenizer)
        with within("features.json: "):
            compare(self.features.to_json(), checkpoint.documents.get("features"))
        from lmtrain.tasks.tag_saved import read_tag_settings

        with within("model.json: "):
            settings, outputs = read_tag_settings(checkpoint.documents.get("model"))
            compare(self.outputs._replace(scheme=outputs.scheme).to_json(), outputs.to_json())
        if outputs.scheme != self.outputs.scheme:
            log.info("This run goes on to write tags as it began: as %s.", outputs.scheme.name)
        self.outputs = outputs
        return settings

    def load(self, path: Path) -> Loaded:
        from lmtrain.tasks.tag_saved import load_tagger

        saved = load_tagger(path, device=str(self.device))
        return Loaded(saved.path, saved.step, saved.model.network)

    def next_steps(self, run: str) -> list[str]:
        return [f"python -m lmtrain predict {run} FILE", f"python -m lmtrain evaluate {run}"]


def read_splits(data: config.ColumnsConfig) -> dict[str, Columns]:
    """Returns the sentences of every split. Raises DataError for tags that train lacks, if that is asked for."""
    files = find_splits(data.path, {"train": data.train, "valid": data.valid, "test": data.test})
    splits = {
        name: read_columns(path, token_column=data.token_column, tag_column=data.tag_column, encoding=data.encoding)
        for name, path in files.items()
    }
    known = {tag for sentence in splits["train"].sentences for tag in sentence.tags}
    for name, split in splits.items() if data.strict_tags else ():
        for sentence in split.sentences:
            if lacking := [tag for tag in sentence.tags if tag not in known]:
                raise DataError(
                    f"{one_line(str(files[name]))} has the tag {one_line(lacking[0])} (in the sentence of line "
                    f"{sentence.line:,}), which the training split lacks.",
                    "With data.strict_tags=true every tag must be learnt from.",
                    "Mend the tag, or leave data.strict_tags out: such tags then count as missed.",
                )
    return splits


def shared_entities(splits: dict[str, Columns]) -> Section:
    """Counts the entities of each split that are in train as well, with the same words and the same class."""
    mentions = {
        name: [(s.tokens[e.start : e.end], e.cls) for s in columns.sentences for e in entities(s.tags)]
        for name, columns in splits.items()
    }
    known, lines, document = set(mentions["train"]), [], {}
    for name, all_of_them in mentions.items():
        different = set(all_of_them)
        shared, shared_different = sum(each in known for each in all_of_them), len(different & known)
        document[name] = {"entities": len(all_of_them), "different": len(different)}
        if name == "train":
            lines.append(f"train has {len(all_of_them):,}, of which {len(different):,} are different")
            continue
        document[name] |= {"in_train": shared, "different_in_train": shared_different}
        lines.append(
            f"{name} has {len(all_of_them):,}, of which {shared:,} are in train; {len(different):,} different ones, of which "
            f"{shared_different:,} are"
        )
    return Section("entities", "Entities (the same words and class)", lines, document)


def build_tagger(settings: config.ModelConfig, features: Features, num_outputs: int) -> TaggerNetwork:
    """Returns a new network, with weights drawn from PyTorch's global generator."""
    match settings:
        case config.LogisticConfig():
            return IndicatorTagger(num_outputs, sizes=features.sizes, context=settings.context)
        case config.TaggerConfig():
            sizes = [settings.embed_size] + [SHAPE_SIZE] * bool(features.shapes) + [AFFIX_SIZE] * len(features.affixes)
            return WindowTagger(
                num_outputs, sizes=features.sizes, embed_sizes=sizes, context=settings.context,
                hidden_sizes=settings.hidden_sizes, activation=settings.activation.name, objective=settings.objective.name,
                dropout=settings.dropout, init_range=settings.init_range,
            )  # fmt: skip
    raise AssertionError(f"no tagger for {type(settings).__name__}")


def vectors_in(network: TaggerNetwork, features: Features) -> Vectors | None:
    """Returns the vectors of words that a tagger has; None for one of indicators."""
    if not isinstance(network, WindowTagger):
        return None
    return Vectors(tuple(features.tokenizer.tokens), network.tables[0].detach().cpu().numpy())


def judge(
    model: TagModel, sentences: Sequence[Sentence], scores_MC: NDArray[np.float64],
    known_entities: frozenset[tuple[str, ...]], judged_by: str,
) -> TagScore:  # fmt: skip
    """Says how well a model that gave these scores tags the sentences."""
    tagged = model.tags_of(scores_MC, [len(sentence.tokens) for sentence in sentences])
    precision: dict[str, float] = {}
    if classes := model.outputs.classes:
        outputs_M = model.classes_of([tag for sentence in sentences for tag in sentence.tags])
        precision = {name: average_precision_of(scores_MC[:, c], outputs_M == c) for c, name in enumerate(classes)}
    known = set(model.outputs.tags) or {tag for sentence in sentences for tag in sentence.tags}
    return score_tags(
        sentences, [each.tags for each in tagged], known_entities=known_entities, known_tags=known, judged_by=judged_by,
        classes=set(classes) or None, average_precision=precision, is_finite=bool(np.isfinite(scores_MC).all()),
    )  # fmt: skip


def worst_errors(model: TagModel, sentences: Sequence[Sentence], number: int = WORST) -> list[str]:
    """Returns the tokens that are wrong and of which the model was surest, in their sentences."""
    scores_MC = model.scores([sentence.tokens for sentence in sentences])
    tagged = model.tags_of(scores_MC, [len(sentence.tokens) for sentence in sentences])
    sureness = softmax(scores_MC).max(1) if model.outputs.tags else np.abs(scores_MC).max(1)
    errors, place_in_all = [], 0
    for sentence, each in zip(sentences, tagged, strict=True):
        for position, (right, guess) in enumerate(zip(sentence.tags, each.tags, strict=True)):
            is_wrong = right != guess if model.outputs.tags else (
                (split_tag(right).cls if split_tag(right).cls in model.outputs.classes else OUTSIDE) != split_tag(guess).cls
            )  # fmt: skip
            if is_wrong:
                errors.append((float(sureness[place_in_all + position]), sentence, position, right, guess))
        place_in_all += len(sentence.tokens)
    errors.sort(key=lambda error: -error[0])
    return [
        f"{sure:.3f}  {right} as {guess}: {_in_context(s, position)}" for sure, s, position, right, guess in errors[:number]
    ]


def _in_context(sentence: Sentence, position: int, span: int = 6) -> str:
    tokens = [f"[{token}]" if number == position else token for number, token in enumerate(sentence.tokens)]
    start, end = max(0, position - span), position + span + 1
    return one_line("... " * (start > 0) + " ".join(tokens[start:end]) + " ..." * (end < len(tokens)))


def describe_sentences(splits: dict[str, Columns]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Returns validation and test for a checkpoint, as bytes of text, so that a tagger can be judged without its data."""
    tensors: dict[str, Tensor] = {}
    for name in ("valid", "test"):
        if name in splits:
            blocks = [
                "".join(f"{token}\t{tag}\n" for token, tag in zip(sentence.tokens, sentence.tags, strict=True))
                for sentence in splits[name].sentences
            ]
            tensors[name] = text_to_tensor("\n".join(blocks))
    return tensors, {}
