"""Removes what a killed process left half done in its run directory, and checks that the disk has room for this one."""

from __future__ import annotations

import logging
import re
import shutil
from pathlib import Path

from lmtrain.errors import ResourceError

log = logging.getLogger("lmtrain")

WRITTEN = r"settings\.json|run\.json|metrics\.jsonl|range_test\.svg|last|best|step-\d{8,18}(?:-\d{1,9})?"  # by a run
TEMPORARY = re.compile(rf"(?:{WRITTEN})\.(?:tmp-\d{{1,10}}-[0-9a-f]{{8}}|\d{{1,10}}-[0-9a-f]{{8}}\.tmp)")


def remove_temporaries(directory: Path) -> None:
    """Removes what was left half done of a run's files in `directory`. A warning names what cannot be removed.

    Only for the process that holds the run's lock, and only while it is writing nothing.
    """
    for path in sorted(directory.glob("*tmp*")):
        if TEMPORARY.fullmatch(path.name):
            try:
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
            except OSError as error:
                log.warning("%s cannot be removed (%s); it only takes space, and is tried again later.", path, error)


def check_free_space(directory: Path, num_bytes: int, *, is_resumed: bool = False, can_keep_fewer: bool = False) -> None:
    """Raises ResourceError unless the file system of `directory` has `num_bytes` free (quotas are not seen).

    The message tells how a run goes on elsewhere, which for one that `is_resumed` needs a copy of it, and whether it could do
    with fewer checkpoints.
    """
    free_bytes = shutil.disk_usage(directory).free
    if free_bytes < num_bytes:
        raise ResourceError(
            f"{directory} has {free_bytes / 1e9:.3g} GB free.",
            f"This run's checkpoints need {num_bytes / 1e9:.3g} GB.",
            f"Free some space, {'keep fewer checkpoints with trainer.keep=2, ' if can_keep_fewer else ''}or "
            + (
                "copy the run to a larger disk and resume the copy."
                if is_resumed
                else "run elsewhere: hydra.run.dir=DIRECTORY."
            ),
        )
