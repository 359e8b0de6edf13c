"""The floors of the house: a file imports only from floors below its own, and data/ and ops/ never import each other.

The floors are those that the README gives.
"""

import ast
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


def imports_of(path: Path) -> set[str]:
    """The rooms of the package that a file imports, also within functions; `__main__` loads commands by name."""
    names: set[str] = set()
    for node in ast.walk(ast.parse((SOURCE / path).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    own = {name.split(".")[1] if "." in name else "__init__" for name in names if name.split(".")[0] == "lmtrain"}
    return {name if name in FLOORS else "__init__" for name in own}


def test_the_readme_names_every_room_and_none_besides() -> None:
    assert set(FLOORS) == {room(path) for path in FILES}
    assert len(set(FLOORS.values())) == 10


@pytest.mark.parametrize("path", FILES, ids=str)
def test_a_file_imports_only_from_its_own_room_and_lower_floors(path: Path) -> None:
    own = room(path)
    assert own in FLOORS, f"{path} stands on no floor"
    for other in imports_of(path) - {own}:
        assert FLOORS[other] < FLOORS[own], f"{path} (floor {FLOORS[own]}) imports {other} (floor {FLOORS[other]})"


@pytest.mark.parametrize("path", [path for path in FILES if room(path) in ("models", "ops", "data")], ids=str)
def test_models_ops_and_data_never_see_settings(path: Path) -> None:
    assert "config" not in imports_of(path)


def test_only_the_application_knows_hydra() -> None:
    knows = [
        str(path)
        for path in FILES
        if any(
            (isinstance(node, ast.Import) and any(a.name.split(".")[0] in ("hydra", "omegaconf") for a in node.names))
            or (isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in ("hydra", "omegaconf"))
            for node in ast.walk(ast.parse((SOURCE / path).read_text(encoding="utf-8")))
        )
    ]
    assert knows == ["application.py"]


def test_only_build_and_config_ask_for_a_kind_of_model() -> None:
    """No `isinstance(..., SomeModel)` and no comparison with a model's name outside the room that builds models."""
    classes = {"RecurrentLanguageModel", "WindowLanguageModel", "NgramModel", "RecurrentConfig", "WindowConfig", "NgramConfig"}
    for path in FILES:
        if room(path) in ("build", "config"):
            continue
        for node in ast.walk(ast.parse((SOURCE / path).read_text(encoding="utf-8"))):
            if isinstance(node, ast.MatchClass):
                asked = node.cls
            elif isinstance(node, ast.Call) and getattr(node.func, "id", "") == "isinstance":
                asked = node.args[1]
            else:
                continue
            named = {n.id for n in ast.walk(asked) if isinstance(n, ast.Name)}
            named |= {n.attr for n in ast.walk(asked) if isinstance(n, ast.Attribute)}
            assert not named & classes, f"{path}:{node.lineno} asks which model it holds"
