"""Settings of data and tokenizers."""

from __future__ import annotations

from lmtrain.choices import *
from lmtrain.config.declaring import FRACTION, Settings, fixed, free, kept


class DataConfig(Settings):
    kind: str = fixed("")


class CorpusConfig(DataConfig):
    """A running text for language models."""

    valid_fraction: float = kept(0.05, "Share of a single text that validates.", above=0, below=1)
    test_fraction: float = kept(0.05, "Share of a single text that tests; 0: no test split.", **FRACTION)
    normalize: Normalization = kept(Normalization.none, "Unicode form in which all text is read: none, nfc, nfd or nfkc.")
    reverse: bool = kept(False, "A backward model: the tokens of each line are read from the last to the first.")
    cache_dir: str = free("outputs/cache", "Where token ids are kept, keyed by content.")


class PydocsConfig(CorpusConfig, kind="pydocs"):
    """The documentation of the Python that is running."""


class TextConfig(CorpusConfig, kind="text"):
    """Your own text: one file, many, or a directory holding train, valid and test (.txt or .tokens)."""

    path: str = free("", "A text file; a pattern, a list or a directory of files; or a directory with train, valid and test.")
    split: SplitWay = kept(
        SplitWay.contiguous, "How a text without splits is cut: contiguous, shuffled_lines or shuffled_documents."
    )
    split_seed: int = kept(1, "Seed of a shuffled split.", least=0, most=2**32 - 1)
    field: str = kept("text", "Which field of each record of a .jsonl is its text.")
    workers: int = free(0, "Processes that read shards; 0: one per core.", least=0, most=1024)


class ExamplesConfig(DataConfig):
    """Examples with their answers, in files for training, validation and test."""

    path: str = free("", "A directory with a file each for train, valid (or dev) and test.")
    train: str = free("", "The file to learn from, whatever its name; with valid, and test where there is one.")
    valid: str = free("", "The file to validate on.")
    test: str = free("", "The file to test on; it may be left out.")
    encoding: str = kept("utf-8", "Encoding of the files.")


class ColumnsConfig(ExamplesConfig, kind="columns"):
    """Tokens with tags, a token per line in columns, as of CoNLL; a blank line ends a sentence."""

    token_column: int = kept(1, "Which column holds the token, counted from 1; -1 is the last.", least=-100, most=100)
    tag_column: int = kept(-1, "Which column holds the tag, counted from 1; -1 is the last.", least=-100, most=100)
    strict_tags: bool = free(False, "Refuses tags of valid and test that train lacks, instead of counting them as missed.")


class LabelledConfig(ExamplesConfig, kind="labelled"):
    """Texts with labels, one per line: the label, then a tab or a space, then the text."""

    path: str = free("", "A directory with a file each for train, valid (or dev) and test; with data.folds also a single file.")
    folds: int = kept(0, "Cuts all texts together into so many folds for cross-validation; 0: none.", least=0, most=1000)
    fold: int = kept(1, "Which fold is the test, from 1; the one after it validates.", least=1, most=1000)


class TokenizerConfig(Settings):
    name: TokenizerName = kept(
        TokenizerName.char, "What a token is: char, byte, word, bpe or unigram (subwords) or what a file says."
    )
    min_count: int = kept(1, "Rarer words or characters of the training split become <unk>; rarer pairs stay two.", least=1)
    vocab_size: int = kept(0, "Largest vocabulary; 0: no limit.", least=0)
    lowercase: bool = kept(False, "Reads all text in lower case.")
    path: str = free("", "tokenizer=file: a file of the library tokenizers (tokenizer.json).")
    vocabulary: str = free("", "tokenizer=word: a file with a word per line, or a RUN whose words are taken.")
    unknown: Unknown = kept(
        Unknown.token, "tokenizer=word: unknown words are one token, or their letters are paid for as well (spelled)."
    )
    separators: list[str] = kept([], "tokenizer=word: characters besides blanks that separate, such as [U+00A0].")
