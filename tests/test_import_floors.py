"""The floors of the house: a file imports only from floors below its own, and data/ and ops/ never import each other.

The floors are those that the README gives.
"""

import ast
import functools
import re
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "lmtrain"
README = Path(__file__).parents[1] / "README.md"
FLOORS = {"__init__": 0} | {
    name: int(floor) for name, floor in re.findall(r"(?m)^  (\w+)/? .*  floor (\d+)$", README.read_text(encoding="utf-8"))
}
FILES = sorted(path.relative_to(SOURCE) for path in SOURCE.rglob("*.py"))


def room(path: Path) -> str:
    return path.parts[0].removesuffix(".py")


@functools.cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse((SOURCE / path).read_text(encoding="utf-8"))


@functools.cache
def imports_of(path: Path) -> set[str]:
    """The rooms of the package that a file imports, also within functions; `__main__` loads commands by name."""
    names: set[str] = set()
    tree = tree_of(path)
    if path == Path("__init__.py"):  # imports what it offers when it is asked for; a type checker reads it at once
        later = [node for node in tree.body if not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")]
        tree = ast.Module(later, [])
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    own = {name.split(".")[1] if "." in name else "__init__" for name in names if name.split(".")[0] == "lmtrain"}
    return {name if name in FLOORS else "__init__" for name in own}


def test_the_readme_names_every_room_and_none_besides() -> None:
    assert set(FLOORS) == {room(path) for path in FILES}
    assert len(set(FLOORS.values())) == 12


@pytest.mark.parametrize("path", FILES, ids=str)
def test_a_file_imports_only_from_its_own_room_and_lower_floors(path: Path) -> None:
    own = room(path)
    assert own in FLOORS, f"{path} stands on no floor"
    for other in imports_of(path) - {own}:
        assert FLOORS[other] < FLOORS[own], f"{path} (floor {FLOORS[own]}) imports {other} (floor {FLOORS[other]})"


@pytest.mark.parametrize("path", [path for path in FILES if room(path) in ("models", "ops", "data")], ids=str)
def test_models_ops_and_data_never_see_settings(path: Path) -> None:
    assert not {"config", "settings"} & imports_of(path)


def test_only_the_application_knows_hydra() -> None:
    knows = {
        room(path)
        for path in FILES
        if any(
            (isinstance(node, ast.Import) and any(a.name.split(".")[0] in ("hydra", "omegaconf") for a in node.names))
            or (isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in ("hydra", "omegaconf"))
            for node in ast.walk(tree_of(path))
        )
    }
    assert knows == {"application"}


def classes_of(path: Path) -> set[str]:
    return {n.name for n in ast.walk(tree_of(path)) if isinstance(n, ast.ClassDef)}


def asked_kinds(path: Path, kinds: set[str]) -> set[str]:
    """Which of `kinds` a file asks for with `isinstance` or `case Kind()`."""
    found: set[str] = set()
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.MatchClass):
            asked = node.cls
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") == "isinstance":
            asked = node.args[1]
        else:
            continue
        found |= {n.id for n in ast.walk(asked) if isinstance(n, ast.Name)}
        found |= {n.attr for n in ast.walk(asked) if isinstance(n, ast.Attribute)}
    return found & kinds


def test_who_asks_for_a_kind_is_who_build_says() -> None:
    """Every class of models, heads, optimisers, schedules and averages, and every class of settings of one."""
    rooms = ("optimizer", "schedule", "averaging", "learner")
    kinds: set[str] = set()
    for path in FILES:
        if room(path) == "config":
            kinds |= {name for name in classes_of(path) if name.endswith("Config")}
        if room(path) == "models" or (room(path) == "training" and path.stem in rooms):
            kinds |= classes_of(path)
    assert {"Mixture", "DirectNgramModel", "NeuralLanguageModel", "NeuralConfig", "RangeTestConfig", "SparseAdam"} <= kinds
    may_ask = ("build", "config", "settings", "tasks")  # a task knows the settings of its own data and models
    asking = {str(path): asked_kinds(path, kinds) for path in FILES if room(path) not in may_ask}
    assert {path: names for path, names in asking.items() if names} == {
        "export/plain.py": {
            "Mixture",
            "NgramModel",
            "NeuralLanguageModel",
            "DirectNgramModel",
            "DirectNgramHead",
            "RecurrentLanguageModel",
            "WindowLanguageModel",
            "GRULayer",
            "ElmanLayer",
            "FullSoftmax",
            "SampledSoftmax",
            "AdaptiveSoftmax",
        },
        "inference/dynamic.py": {"Mixture", "NeuralLanguageModel"},
        "memory.py": {"NeuralConfig"},
        "saved.py": {"LanguageConfig", "NgramModel", "NeuralLanguageModel", "Mixture"},
        "models/direct.py": {"FullSoftmax"},
        "models/growth.py": {"AdaptiveSoftmax", "DirectNgramModel"},
        "training/graphed.py": {"SparseAdam"},
        "training/gradient_watch.py": {"RecurrentLayer", "SequenceLearner"},
    }
