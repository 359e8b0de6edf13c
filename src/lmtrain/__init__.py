"""Trains fixed-window and recurrent language models whose recurrences are written by hand."""

from importlib import import_module
from types import ModuleType

__version__ = "0.1.0"
__all__ = ["__version__", "nn"]


def __getattr__(name: str) -> ModuleType:
    """What is imported when it is first used, so that `import lmtrain` is light: PyTorch takes seconds."""
    if name != "nn":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return import_module(f"{__name__}.{name}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
