"""`python -m lmtrain` without a command: what was typed is checked, and Hydra is told to train, to sweep or to show."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lmtrain.application import checking, jobs
from lmtrain.application.checking import check_overrides, refuse_sweep
from lmtrain.application.composing import Sources, register_schemas
from lmtrain.application.overrides import as_meant, given_values, keys_of, of_hydra, parse, resumed_run
from lmtrain.errors import CheckpointError, SettingsError, check_address_space
from lmtrain.settings import idle, quoting, reading
from lmtrain.shell import expanded
from lmtrain.terminal import warn

TAKES_VALUE = ("--cfg", "-c", "--package", "-p", "--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd",
               "--experimental-rerun")  # fmt: skip
MAY_TAKE_WORD = ("--info", "-i")
TAKES_NOTHING = ("--hydra-help", "--resolve", "--run", "-r", "--multirun", "-m", "--shell-completion", "-sc")
"""The options of Hydra itself."""

PURPOSES = (("--run", "-r"), ("--multirun", "-m"), ("--cfg", "-c"), ("--info", "-i"), ("--shell-completion", "-sc"))
"""Those of which one is enough."""


def run(arguments: Sequence[str]) -> None:
    """Checks the overrides, then lets Hydra train, sweep or show.

    Of several processes that torchrun started, the first one does; the others train what it tells them.
    """
    if not is_one_of_several():
        _run(arguments)
        return
    check_address_space()
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # before it is imported: what it warns of, we say
    from lmtrain.commands.together import follow, tell
    from lmtrain.distributed.launch import joined, remembered_directory

    with joined() as group:
        if not group.leads:
            follow(group)
            return
        _run(_going_on(arguments, remembered_directory(group)))
        tell(group, None)


def is_one_of_several() -> bool:
    """Whether the environment says that this is one of several processes, which train one model together."""
    return os.environ.get("WORLD_SIZE", "1") not in ("", "1")


def _going_on(arguments: Sequence[str], directory: str | None) -> Sequence[str]:
    """The command line of a start by torchrun; where an earlier one made a run, the one that goes on with it."""
    if directory is None or not (Path(directory) / "settings.json").is_file():  # left again
        return arguments
    return [f"resume={quoting.quoted(directory)}", *(o for o in of_hydra(arguments) if not o.startswith("hydra.run.dir"))]


def _run(arguments: Sequence[str]) -> None:
    _refuse_other_options(arguments)
    register_schemas()
    overrides = overrides_of(arguments)
    options = [argument for argument in arguments if argument not in overrides]
    _refuse_several_purposes(options)
    changes: dict[str, Any] = {}
    if not {"--hydra-help", "--shell-completion", "-sc"} & set(options):
        overrides, changes = checked(overrides, options)
    # Overrides first: argparse takes them from one place only, and we do not want to mind where they were typed.
    sys.argv = [sys.argv[0], *overrides, *options]
    swept = {item.key_or_group for item in parse(overrides) if item.is_sweep_override()}
    if _sweeps(options) and is_one_of_several():
        raise SettingsError(
            f"-m was given to one of several processes (WORLD_SIZE={os.environ['WORLD_SIZE']}).",
            "torchrun starts the processes of one training.",
            "Leave -m out and call torchrun once for each run, or start the sweep without torchrun.",
        )
    varies = bool(swept) and checking.varies_vocabulary(overrides, _sources(overrides, options))
    alone = overrides if not options and {*keys_of(of_hydra(overrides))} <= {"hydra.run.dir", "hydra.output_subdir"} else None
    jobs.call_hydra(changes, swept, varies=varies, alone=alone)


def overrides_of(arguments: Sequence[str]) -> list[str]:
    """The arguments that are neither one of Hydra's own options nor the value of one."""
    before = ["", *arguments]
    return [
        argument
        for previous, argument in zip(before, arguments, strict=False)
        if not argument.startswith("-")
        and previous not in TAKES_VALUE
        and not (previous in MAY_TAKE_WORD and "=" not in argument)
    ]


def checked(overrides: Sequence[str], options: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """The overrides for Hydra, checked; and the settings to be changed in a run that goes on."""
    overrides = as_meant(overrides)
    resumed = resumed_run(overrides)
    if resumed is not None:
        return _in_its_own_directory(resumed, overrides, options), given_values(overrides)
    settings = reading.read_config(check_overrides(overrides, _sources(overrides, options)))
    if not _sweeps(options) and not any("hydra.mode" in override for override in overrides):
        refuse_sweep(overrides)
    for note in idle.iter_idle(settings, keys_of(overrides)):
        warn(note)
    return overrides, {}


def _sweeps(options: Sequence[str]) -> bool:
    return bool({"-m", "--multirun"} & set(options))


# ---- Hydra's own options


def _refuse_other_options(arguments: Sequence[str]) -> None:
    """`--lr 0.1`: neither ours nor Hydra's."""
    for argument in arguments:
        name, _, value = argument.partition("=")
        if name.startswith("-") and name not in (*TAKES_VALUE, *MAY_TAKE_WORD, *TAKES_NOTHING):
            example = f"{name.lstrip('-')}={value or 'VALUE'}" if "." in name else "optimizer.learning_rate=0.1"
            raise SettingsError(
                f"{argument} is not an option of training.",
                "Settings are written key=value, without dashes.",
                f"Type for example  python -m lmtrain {example};  all settings:  python -m lmtrain settings",
            )


def _refuse_several_purposes(options: Sequence[str]) -> None:
    """Hydra trains, sweeps, shows the settings or shows something else; and refuses two of these with a ValueError."""
    given = {option.partition("=")[0] for option in options}
    purposes = [next(name for name in names if name in given) for names in PURPOSES if given & set(names)]
    if len(purposes) > 1:
        raise SettingsError(
            f"{' and '.join(purposes)} were given together.", "Each of them does something else.",
            f"Leave {' or '.join(purposes)} out.",
        )  # fmt: skip
    if "--resolve" in given and not {"--cfg", "-c"} & given:
        raise SettingsError("--resolve was given without --cfg.", "It says how settings are shown.", "Type --cfg job as well.")


def _sources(overrides: Sequence[str], options: Sequence[str]) -> Sources:
    """Where Hydra will look, by its options and overrides. Raises SettingsError for a directory that does not exist."""
    parser = argparse.ArgumentParser(add_help=False)
    for long, short in (("--config-name", "-cn"), ("--config-path", "-cp"), ("--config-dir", "-cd"), ("--cfg", "-c")):
        parser.add_argument(long, short, default=argparse.SUPPRESS)
    given = vars(parser.parse_known_args(list(options))[0])
    given.pop("cfg", None)  # it is here only so that -c is no abbreviation of another
    directory = given.get("config_dir")
    if directory is not None and not os.path.isdir(directory):
        raise SettingsError(
            f"--config-dir {directory} is not a directory.", "It holds groups of settings as conf/ does.", "Check the path."
        )
    given |= {} if directory is None else {"config_dir": os.path.abspath(directory)}
    searchpath = [override for override in overrides if override.partition("=")[0] == "hydra.searchpath"]
    return Sources(**given, searchpath=tuple(searchpath))


def _in_its_own_directory(resumed: str, overrides: Sequence[str], options: Sequence[str]) -> list[str]:
    """The overrides with which Hydra goes on in the directory of the run; what it wrote there at the start stays as it is."""
    elsewhere = [o for o in overrides if o.startswith(("hydra.run.dir=", "hydra.sweep.", "hydra.mode"))]
    elsewhere += [option for option in options if option in ("-m", "--multirun")]
    if elsewhere:
        raise SettingsError(
            f"{' '.join(elsewhere)} was given together with resume=.",
            "A run goes on in its own directory, one run at a time.",
            f"Leave {' '.join(elsewhere)} out.",
        )
    directory = expanded(resumed).resolve()
    if not (directory / "settings.json").is_file():  # before Hydra makes it
        raise CheckpointError(
            f"resume={resumed} is not a run directory: {directory} holds no settings.json.",
            "A run directory is what a training wrote under outputs/.",
            "Type resume=outputs/RUN; to use a single checkpoint, see  python -m lmtrain sample --help.",
        )
    place = quoting.quoted(str(directory))
    return [f"resume={place}", f"hydra.run.dir={place}", "hydra.output_subdir=null", *of_hydra(overrides)]
