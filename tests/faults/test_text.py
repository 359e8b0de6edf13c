"""Text that looks the same and is not."""

from pathlib import Path

from lmtrain.data.corpus import load_corpus


def test_composed_and_decomposed_letters_stay_what_they_are(tmp_path: Path) -> None:
    """ "é" as one character and as two, and a zero-width joiner: three different things, read and written as they are."""
    text = "\u00e9 e\u0301 a\u200db\n" * 50
    (tmp_path / "text.txt").write_text(text, encoding="utf-8")
    corpus = load_corpus(tmp_path / "text.txt", tokenizer="char", cache_dir=tmp_path / "cache")
    assert corpus.tokenizer.decode(corpus.tokenizer.encode(text)) == text
    assert corpus.tokenizer.unknown_pieces("\u00e9\u0301\u200d") == []
    words = load_corpus(tmp_path / "text.txt", tokenizer="word", cache_dir=tmp_path / "cache").tokenizer
    assert words.vocab_size == 5, "three words, <eos>, <unk>"
