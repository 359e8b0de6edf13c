"""Caches of any shape: what is believed is what would have been written, and everything else is built again.

`forge` writes what only somebody who knows the format would: any content, under checksums that are right.
"""

import copy
import dataclasses
import hashlib
import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lmtrain.data.corpus import Corpus, load_corpus
from lmtrain.data.token_cache import hash_json
from lmtrain.errors import ResourceError

TEXT = "".join(f"to be or not {word} be\nthat is the question\n" for word in ("to", "so", "he", "we", "me")) * 3
ODD = [
    None,
    True,
    -1,
    0,
    1,
    5,
    10**9,
    1 << 53,
    10**400,
    1.5,
    "abc",
    "",
    [],
    [1, 2],
    {},
    {"a": 1},
    "int32",
    "float64",
    "object",
    "0" * 64,
]
FREE = {"num_chars", "num_bytes", "num_lines", "num_filled", "num_marked", "sha256"}
"""Facts about the text that its ids do not tell; a value that could be right is believed."""


@pytest.fixture(params=["char", "byte", "word"])
def cached(request, tmp_path, caplog) -> tuple[Any, Path, Corpus]:
    """A function that loads a corpus, the path of its cache without suffix, and the corpus."""
    (tmp_path / "text.txt").write_text(TEXT)

    def load() -> Corpus:
        caplog.clear()
        return load_corpus(
            tmp_path / "text.txt", tokenizer=request.param, valid_fraction=0.2, test_fraction=0.2, cache_dir=tmp_path / "cache"
        )

    load()
    shutil.copytree(tmp_path / "cache", tmp_path / "kept")
    good = load_corpus(
        tmp_path / "text.txt", tokenizer=request.param, valid_fraction=0.2, test_fraction=0.2, cache_dir=tmp_path / "kept"
    )  # whose memory map no test writes to
    base = next((tmp_path / "cache").glob("*.ids")).with_suffix("")
    shutil.copytree(tmp_path / "cache", tmp_path / "good")
    return load, base, good


def restore(base: Path) -> dict[str, Any]:
    """Makes the cache right again; returns its manifest."""
    shutil.copytree(base.parent.with_name("good"), base.parent, dirs_exist_ok=True)
    return json.loads(base.with_suffix(".json").read_bytes())["manifest"]


def forge(base: Path, manifest: Any) -> None:
    base.with_suffix(".json").write_text(json.dumps({"manifest": manifest, "sha256": hash_json(manifest)}))


def leaves(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a document, inner ones too."""
    if path:
        yield path
    for key in node if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ():
        yield from leaves(node[key], (*path, key))


def check(corpus: Corpus, good: Corpus, changed: Any = None) -> None:
    """The corpus is the good one, but for the free fact `changed`."""
    assert corpus.tokenizer.to_json() == good.tokenizer.to_json()
    for name in ("train", "valid", "test"):
        split, expected = getattr(corpus, name), getattr(good, name)
        assert split.ids.dtype == expected.ids.dtype
        assert split.ids.tolist() == expected.ids.tolist()
        assert split.lines.tolist() == expected.lines.tolist()
        for field in dataclasses.fields(split):
            value = getattr(split, field.name)
            if field.name not in ("ids", "lines") and field.name != changed:
                assert value == getattr(expected, field.name)
                assert type(value) is int
    if changed != "sha256":
        assert corpus.fingerprint == good.fingerprint


@pytest.mark.parametrize("stride", [11, pytest.param(1, marks=pytest.mark.slow)])
def test_any_change_of_a_manifest_is_noticed_or_could_be_right(cached, caplog, stride):
    """Every leaf is replaced by every odd value (in the quick part by one or two) and removed."""
    load, base, good = cached
    num_rebuilt = num_tried = 0
    for number, path in enumerate(leaves(restore(base))):
        for value in [*ODD, "remove"][number % stride :: stride]:
            manifest = restore(base)
            node = manifest
            for key in path[:-1]:
                node = node[key]
            if value == "remove":
                del node[path[-1]]
            else:
                node[path[-1]] = copy.deepcopy(value)
            forge(base, manifest)
            corpus = load()
            is_rebuilt = any("are damaged and are built again" in message for message in caplog.messages)
            is_free = path[0] == "splits" and path[-1] in FREE
            check(corpus, good, path[-1] if is_free and not is_rebuilt else None)
            num_rebuilt, num_tried = num_rebuilt + is_rebuilt, num_tried + 1
    assert num_tried > 700 / stride
    assert num_rebuilt > 0.8 * num_tried


@pytest.mark.parametrize(
    "content",
    [
        b"", b"[" * 200_000, b'{"manifest": ' * 100_000, b"[]", b"1", b"null", b'"abc"', b"{}", b"\xff", b"NaN",
        b'{"manifest": NaN, "sha256": "x"}', b'{"manifest": 1e999, "sha256": 1}', b'{"manifest": ' + b"9" * 5000 + b"}",
        b"{" + b" " * (2 << 20) + b"}", json.dumps({"manifest": {}, "sha256": hash_json({})}).encode(),
    ],
    ids=lambda content: repr(content[:20]),
)  # fmt: skip
def test_a_manifest_of_any_bytes_is_built_again(cached, caplog, content):
    load, base, good = cached
    base.with_suffix(".json").write_bytes(content)
    check(load(), good)
    assert "are damaged and are built again" in "".join(caplog.messages)


@pytest.mark.parametrize("many", [40, pytest.param(2000, marks=pytest.mark.slow)])
def test_any_change_of_the_ids_is_noticed_or_stays_in_the_vocabulary(cached, caplog, many):
    """Without its checksum every change is noticed. With it, ids may be others, but none is outside the vocabulary."""
    load, base, good = cached
    draw = random.Random(1)
    contents = base.with_suffix(".ids").read_bytes()
    for number in range(many):
        manifest, data = restore(base), bytearray(contents)
        match number % 4:
            case 0:
                data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
            case 1:
                place = 2 * draw.randrange(len(data) // 2)
                data[place : place + 2] = draw.choice([b"\xff\xff", b"\x00\x80", b"\x00\x00", b"\x05\x01"])
            case 2:
                del data[draw.randrange(len(data)) :]
            case 3:
                data += draw.randbytes(draw.randrange(1, 20))
        base.with_suffix(".ids").write_bytes(data)
        if data != contents:
            check(load(), good)
            assert "are damaged and are built again" in "".join(caplog.messages)
        base.with_suffix(".ids").write_bytes(data)
        manifest["sha256"] = hashlib.sha256(data).hexdigest()
        forge(base, manifest)
        corpus = load()
        for split in (corpus.train, corpus.valid, corpus.test):
            assert 0 <= split.ids.min() <= split.ids.max() < corpus.tokenizer.vocab_size
            assert split.num_unk == np.count_nonzero(split.ids == corpus.tokenizer.unk_id)
            assert (np.diff(split.lines) > 0).all()
        if len(data) != len(contents):
            check(corpus, good)


def test_a_cache_under_the_key_of_another_text_is_built_again(cached, tmp_path, caplog):
    load, base, good = cached
    other = tmp_path / "other.txt"
    other.write_text(TEXT.replace("question", "queation"))
    load_corpus(other, tokenizer=good.tokenizer.name, valid_fraction=0.2, test_fraction=0.2, cache_dir=tmp_path / "others")
    wrong = next((tmp_path / "others").glob("*.ids")).with_suffix("")
    for suffix in (".ids", ".json"):
        shutil.copyfile(wrong.with_suffix(suffix), base.with_suffix(suffix))
    check(load(), good)
    assert "the manifest is that of another text or tokenizer" in "".join(caplog.messages)


def test_a_directory_in_place_of_the_ids_is_said_in_words(cached):
    load, base, _ = cached
    base.with_suffix(".ids").unlink()
    base.with_suffix(".ids").mkdir()
    with pytest.raises(ResourceError, match="cannot be written: Is a directory"):
        load()
