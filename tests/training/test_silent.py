"""The other processes of a run neither record nor show anything."""

from lmtrain.training.silent import Silent
from lmtrain.training.telemetry import Telemetry


def test_everything_that_can_be_asked_of_telemetry_is_answered_by_silence() -> None:
    """What is inherited would use files and bars that were never opened."""
    asked = {name for name in vars(Telemetry) if not name.startswith("_")} | {"__init__", "__enter__", "__exit__"}
    assert "record_training" in asked
    assert asked - set(vars(Silent)) == set()
