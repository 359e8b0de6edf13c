import os
import re
import sys

import pytest

from lmtrain.data import pydocs
from lmtrain.data.corpus import load_corpus
from lmtrain.data.pydocs import make_splits, module_text, write_pydocs
from lmtrain.errors import DataError

NAMES = ("train", "valid", "test")


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return write_pydocs(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def tiny_python(tmp_path, monkeypatch):
    """A standard library of a few modules, whose root is returned."""
    root = tmp_path / "python"
    for name, source in {
        "abc.py": '"""First module."""\n',
        "zipfile/__init__.py": 'class Zip:\n    """Second."""\n',
        "test/test_abc.py": '"""Secret."""\n',
        "json/tests/test_json.py": '"""Secret."""\n',
        "idlelib/run.py": '"""Secret."""\n',
        "lib2to3/main.py": '"""Secret."""\n',
        "site-packages/numpy.py": '"""Secret."""\n',
        "_sysconfigdata__linux.py": '"""Secret."""\n',
        "sitecustomize.py": '"""Secret."""\n',
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(source)
    monkeypatch.setattr(pydocs.sysconfig, "get_path", {"stdlib": str(root)}.__getitem__)
    return root


def test_it_is_about_two_megabytes_dealt_90_5_5(directory):
    sizes = {name: len((directory / f"{name}.txt").read_text()) for name in NAMES}
    total = sum(sizes.values())
    assert 1_500_000 < total < 3_000_000
    assert 0.88 < sizes["train"] / total < 0.92
    assert 0.04 < sizes["valid"] / total < 0.06
    assert 0.04 < sizes["test"] / total < 0.06


def test_splits_are_alike(directory):
    texts = {name: (directory / f"{name}.txt").read_text() for name in NAMES}
    lowercase = {name: sum("a" <= char <= "z" for char in text) / len(text) for name, text in texts.items()}
    assert max(lowercase.values()) - min(lowercase.values()) < 0.05
    for text in texts.values():
        assert text.count("****\n\n") >= 3, "headings of the language reference"


def test_it_is_english_and_code_without_control_characters(directory):
    text = (directory / "train.txt").read_text()
    assert "The following" in text
    assert ">>> " in text
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f]", text)
    assert not re.search(r" \n|\n\n\n", text)
    assert text.endswith("\n")


def test_no_long_paragraph_of_one_split_stands_in_another(directory):
    paragraphs = {}
    for name in NAMES:
        blocks = (directory / f"{name}.txt").read_text().split("\n\n")
        paragraphs[name] = {key for key in (" ".join(block.split()) for block in blocks) if len(key) >= 80}
    assert not paragraphs["train"] & (paragraphs["valid"] | paragraphs["test"])
    assert not paragraphs["valid"] & paragraphs["test"]


def test_it_is_a_corpus_of_every_tokenizer(directory, tmp_path):
    for tokenizer in ("char", "byte", "word"):
        corpus = load_corpus(directory, tokenizer=tokenizer, cache_dir=tmp_path)
        assert corpus.test is not None
        assert corpus.valid.num_unk < len(corpus.valid.ids) / 5


def test_nothing_of_the_installation_is_in_it(directory):
    for name in NAMES:
        text = (directory / f"{name}.txt").read_text()
        assert sys.prefix not in text
        assert os.path.dirname(os.__file__) not in text


def test_it_depends_on_the_content_of_the_library_not_on_its_place(tiny_python, tmp_path, monkeypatch):
    first = write_pydocs(tmp_path / "one")
    moved = tiny_python.rename(tmp_path / "elsewhere")
    monkeypatch.setattr(pydocs.sysconfig, "get_path", {"stdlib": str(moved)}.__getitem__)
    second = write_pydocs(tmp_path / "two")
    assert first.name == second.name
    for name in NAMES:
        assert (first / f"{name}.txt").read_bytes() == (second / f"{name}.txt").read_bytes()
    (moved / "abc.py").write_text('"""Changed."""\n')
    assert write_pydocs(tmp_path / "two").name != first.name


def test_tests_tools_and_installed_packages_are_left_out(tiny_python, tmp_path):
    directory = write_pydocs(tmp_path / "cache")
    text = "".join((directory / f"{name}.txt").read_text() for name in NAMES)
    assert "First module." in text
    assert "Second." in text
    assert "Secret" not in text


def test_nothing_is_executed(tiny_python, tmp_path):
    (tiny_python / "evil.py").write_text(f'"""Evil."""\nopen({str(tmp_path / "canary")!r}, "w")\n')
    write_pydocs(tmp_path / "cache")
    assert not (tmp_path / "canary").exists()


def test_it_is_collected_once(tiny_python, tmp_path, monkeypatch):
    first = write_pydocs(tmp_path)
    monkeypatch.setattr(pydocs, "make_splits", None)
    assert write_pydocs(tmp_path) == first


@pytest.mark.parametrize("name", ["train.txt", "test.txt", "sha256.json"])
@pytest.mark.parametrize("damage", [os.unlink, lambda path: os.truncate(path, 10)])
def test_a_damaged_copy_is_collected_again(tiny_python, tmp_path, caplog, name, damage):
    directory = write_pydocs(tmp_path)
    whole = (directory / name).read_bytes()
    damage(directory / name)
    assert write_pydocs(tmp_path) == directory
    assert (directory / name).read_bytes() == whole
    assert "incomplete or damaged and is collected again" in caplog.text


def test_docstrings_are_found_wherever_something_is_defined():
    source = (
        '"""Module."""\n'
        "try:\n    import x\nexcept ImportError:\n"
        '    def f():\n        """In a handler."""\n'
        "else:\n    if x:\n        pass\n    else:\n"
        '        class C:\n            """A class.\n\n            Indented.\n            """\n'
        '            async def g(self):\n                """A method."""\n                "no docstring"\n'
        'x = """No docstring."""\n'
        'pattern = "\\d"\n'
    )
    assert module_text(source.encode()) == "Module.\n\nIn a handler.\n\nA class.\n\nIndented.\n\nA method."


def test_whole_documents_go_to_the_splits_in_their_order():
    modules = {f"m{i:02}": f"text {i}" for i in range(40)}
    texts = make_splits({}, modules)
    parts = {name: text.rstrip("\n").split("\n\n") for name, text in texts.items()}
    assert sorted(text for part in parts.values() for text in part) == sorted(modules.values())
    assert [len(parts[name]) for name in NAMES] == [36, 2, 2]
    assert parts["train"] == [text for text in modules.values() if text in parts["train"]]


def test_a_python_without_documentation_is_named_with_a_remedy(tiny_python, tmp_path, monkeypatch):
    monkeypatch.setattr(pydocs.sysconfig, "get_path", {"stdlib": str(tmp_path / "none")}.__getitem__)
    with pytest.raises(DataError, match=re.escape(f"there are no sources in {tmp_path}/none")):
        write_pydocs(tmp_path)
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(DataError, match=re.escape("data=text data.path=FILE")):
        write_pydocs(tmp_path)


def test_tables_and_long_runs_of_blanks_do_not_teach_a_model_to_draw() -> None:
    table = "Codes:\n\n+------+\n| a    |\n+------+\n| b    |\n\nThey end."
    code = "x = 1               # one\n" + " " * 20 + "deep\n    shallow"
    assert pydocs._tidy(table) == "Codes:\n\n\nThey end."
    assert pydocs._tidy("Codes:\n" + "| a |") == "Codes:"
    assert pydocs._tidy(code) == "x = 1  # one\n        deep\n    shallow"
    assert pydocs._tidy("if a | b:\n    | c") == "if a | b:\n    | c"
