"""Trained word vectors as a checkpoint holds them, and the way back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import lmtrain.config as config
from lmtrain.arguments import checked_methods
from lmtrain.build import build_corpus
from lmtrain.data.corpus import encode_file
from lmtrain.data.tokenizer import Tokenizer
from lmtrain.expected import ANY_LENGTH, MAX_COUNT, Anything, Like, agree, compare, within
from lmtrain.quantity import counted
from lmtrain.shell import expanded
from lmtrain.tasks.opening import text_field, training_settings
from lmtrain.tasks.restoring import chosen_splits, open_checkpoint, read_model_settings, read_word_tokenizer, run_settings
from lmtrain.tasks.vectors_model import VectorScore, build_vectors, held_out, judge, wording_of
from lmtrain.training.checkpoint import believing
from lmtrain.training.learner import load_weights
from lmtrain.vectors.table import Vectors
from lmtrain.vectors.text import as_text


@checked_methods
class TrainedVectors:
    """Word vectors as they were saved, with what they were trained for. `lmtrain.load` makes one of a run of task=vectors.

    path, step  the checkpoint's directory, and the steps that they were trained for
    network     what was trained, as PyTorch code sees it
    tokenizer   text to token ids and back
    """

    def __init__(
        self, path: Path, step: int, network: nn.Module, tokenizer: Tokenizer, settings: config.WordVectorsConfig,
        texts: dict[str, NDArray[Any]], counts: NDArray[np.int64], device: str,
    ) -> None:  # fmt: skip
        self.path, self.step, self.network, self.tokenizer = path, step, network, tokenizer
        self._settings, self._texts, self._counts, self._device = settings, texts, counts, device

    def __repr__(self) -> str:
        sizes = f"{counted(len(self._counts), 'word')} of {counted(self._settings.embed_size, 'number')}"
        return f"<lmtrain.TrainedVectors {self._settings.kind}, {sizes}, {self.path}>"

    @property
    def vectors(self) -> Vectors:
        """Returns the words with their vectors, the most frequent first; of GloVe the sum of both vectors of each."""
        return vectors_in(self.network, words_of(self.tokenizer))

    @property
    def splits(self) -> list[str]:
        """Returns the splits that were saved with them: valid, and test where there was one."""
        return list(self._texts)

    def evaluate(self, split: str | None = None) -> VectorScore:
        """Returns the loss on a split that was saved with them. By default the test split, where there was one, else valid.

        Raises DataError, which is a KeyError here, if there is none of this name.
        """
        (ids,) = chosen_splits(self._texts, [] if split is None else [split], self.path)
        return self._judge(ids)

    def evaluate_file(self, path: str | Path) -> VectorScore:
        """Returns the loss on a text file."""
        return self._judge(encode_file(expanded(path), self.tokenizer, text_field(self.path)).ids)

    def evaluate_training(self) -> VectorScore:
        """Returns the loss on the text that they were trained on, from where that was then."""
        settings = training_settings(self.path)
        return self._judge(build_corpus(settings.data, settings.tokenizer).train.ids)

    def _judge(self, ids: NDArray[Any]) -> VectorScore:
        text = as_text(ids, self.tokenizer, counts=self._counts)
        return judge(self.network, held_out(self._settings, text), wording_of(self._settings), self._device)

    @property
    def settings(self) -> dict[str, Any]:
        """Returns the settings of the run, as nested dictionaries."""
        return run_settings(self.path, self._settings)


def words_of(tokenizer: Tokenizer) -> tuple[str, ...]:
    """Returns the words that have a vector: all but the end of a line and the unknown word."""
    special = (tokenizer.eos_id, tokenizer.unk_id)
    return tuple(tokenizer.token_text(token) for token in range(tokenizer.vocab_size) if token not in special)


def vectors_in(network: nn.Module, words: Sequence[str]) -> Vectors:
    """Returns the vectors that a network has learnt."""
    table = network.vectors
    assert isinstance(table, Tensor)
    return Vectors(tuple(words), table.float().cpu().numpy())


def load_word_vectors(path: str | Path, *, prefer: Literal["best", "last"] = "best", device: str = "cpu") -> TrainedVectors:
    """Returns the vectors in a run or checkpoint directory of task=vectors. Raises CheckpointError for what does not fit
    together."""
    checkpoint = open_checkpoint(path, prefer, "vectors", ("model", "tokenizer", "texts"), ("subword",))
    with believing(checkpoint.path):
        tokenizer = read_word_tokenizer(checkpoint)
        with within("model.json: "):
            settings = read_vector_settings(checkpoint.documents.get("model"))
        num_words = len(words_of(tokenizer))
        with within("model.safetensors: "):
            network = _restore(settings, num_words, checkpoint.tensors.get("model", {}))
        texts, counts = _read_texts(checkpoint.tensors.get("texts", {}), tokenizer.vocab_size, num_words)
    network.to(device).eval()
    return TrainedVectors(checkpoint.path, checkpoint.step, network, tokenizer, settings, texts, counts, device)


def _restore(settings: config.WordVectorsConfig, num_words: int, weights: Mapping[str, Tensor]) -> nn.Module:
    """Returns the network; its size is compared with the saved tensors before memory is taken for it."""
    table = next((tensor for tensor in weights.values() if tensor.dim() == 2), torch.empty(0, 0))
    size = (num_words, settings.embed_size)
    agree(tuple(table.shape) == size, "the table", f"has shape {tuple(table.shape)}", f"{size}, as words and settings have it")
    network = build_vectors(settings, num_words)
    load_weights(network, weights)
    return network


def read_vector_settings(document: Any) -> config.WordVectorsConfig:
    """Returns the settings that model.json holds. Raises UnfitError."""
    compare({"task": "vectors", "settings": Anything()}, document)
    return read_model_settings(document["settings"], (config.WordVectorsConfig,), "one of word vectors alone")


def _read_texts(
    tensors: Mapping[str, Tensor], vocab_size: int, num_words: int
) -> tuple[dict[str, NDArray[Any]], NDArray[np.int64]]:
    names = [name for name in ("valid", "test") if name in tensors]
    split = Like((range(2, ANY_LENGTH.stop),), torch.int32, least=0, most=vocab_size - 1)
    with within("texts.safetensors: "):
        counts = Like((num_words,), torch.int64, least=0, most=MAX_COUNT)
        compare(dict.fromkeys(names, split) | {"train_counts": counts}, tensors)
        agree(bool(tensors["train_counts"].any()), "train_counts", "has no word", "how often each word was seen")
    return {name: tensors[name].numpy() for name in names}, tensors["train_counts"].numpy()
