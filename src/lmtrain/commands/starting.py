"""Keeps the model that a run starts from (`start_from=RUN`) in the run's own directory, so that the run goes on without RUN.

OUTPUT/start/checkpoints/step-...    model, tokenizer and texts as RUN has them; origin.json says where they came from
"""

from __future__ import annotations

from pathlib import Path

from lmtrain.tasks.base import Task
from lmtrain.training.checkpoint import find_checkpoint, load_checkpoint, load_document, save_checkpoint
from lmtrain.training.run_directory import RunDirectory

DIRECTORY = "start"


def kept_start(run: RunDirectory) -> Path | None:
    """Returns where an earlier process of the run kept the model that it started from; None if it did not."""
    place = run.path / DIRECTORY
    return find_checkpoint(place, "last") if (place / "checkpoints" / "last").exists() else None


def keep_start(run: RunDirectory, task: Task) -> None:
    """Keeps the model that the run starts from, and notes in run.json where it came from."""
    if task.start is None:
        return
    path: Path = task.start.path
    if (kept := kept_start(run)) is None:
        checkpoint = load_checkpoint(path)
        files = ("model", "tokenizer", "subword", "texts", "features", "lines")
        tensors = {name: members for name, members in checkpoint.tensors.items() if name in files}
        documents = {name: document for name, document in checkpoint.documents.items() if name in files}
        origin = {"path": str(path.resolve()), "step": checkpoint.step}
        kept = save_checkpoint(run.path / DIRECTORY, checkpoint.step, tensors, documents | {"origin": origin})
    run.note(started_from=load_document(kept, "origin"))
