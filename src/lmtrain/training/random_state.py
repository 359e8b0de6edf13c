"""The states of random generators as JSON: hexadecimal text, so that a resumed run draws what the first one would have."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Generator

from lmtrain.errors import CheckpointError

logger = logging.getLogger("lmtrain")


def random_document(generators: Mapping[str, Generator]) -> dict[str, Any]:
    """The states of `generators`, by name, as JSON holds them."""
    return {
        name: {"device": generator.device.type, "state": generator.get_state().numpy().tobytes().hex()}
        for name, generator in generators.items()
    }


def load_random_document(document: Any, generators: Mapping[str, Generator]) -> None:
    """Puts `generators` into the states in `document`; CheckpointError where it is not one of these generators.

    A state of another kind of device cannot be taken over: the generator keeps its seed then, with a warning.
    """
    if not isinstance(document, dict) or document.keys() != generators.keys():
        raise _unusable(f"It names {list(document)[:8] if isinstance(document, dict) else 'none'}, not {list(generators)}")
    for name, generator in generators.items():
        match document[name]:
            case {"device": str(device), "state": str(state)}:
                if device != generator.device.type:
                    logger.warning(
                        "The random generator %r was saved on %s and is on %s now: it starts again from its seed, so this run "
                        "will differ from one that was not interrupted.", name, device[:20], generator.device.type,
                    )  # fmt: skip
                    continue
                try:
                    generator.set_state(torch.tensor(list(bytes.fromhex(state)), dtype=torch.uint8))
                except (ValueError, RuntimeError) as error:
                    raise _unusable(f"The state of {name!r} is not one ({str(error).splitlines()[0]})") from error
            case _:
                raise _unusable(f"The entry of {name!r} is not made of device and state")


def _unusable(problem: str) -> CheckpointError:
    return CheckpointError(
        f"The random generators of this checkpoint cannot be restored. {problem}.",
        "A state is the hexadecimal text that this version of PyTorch writes for the same generator.",
        "Take another checkpoint of the run.",
    )
