"""The Hydra application: the only room that knows Hydra.

    command        what was typed without a command, and Hydra's own options       -> trains, sweeps or shows
    overrides      `key=value` as it was typed: parsed, and read as it was meant
    composing      the files of settings that Hydra composes
    checking       everything that is wrong with overrides, said at once
    jobs           what Hydra runs: one training, or the jobs of a sweep
    directories    what Hydra makes on the disk: run directories, the log, `.hydra/`
    from_python    the same training in the process of a caller

Overrides are checked before Hydra acts on them, so that everything wrong with them is said before torch is imported and before
a run directory appears. Hydra then composes `conf/`, makes the run directory and calls `jobs.train`.
"""

from lmtrain.application.checking import check_overrides as check_overrides
from lmtrain.application.checking import read_settings as read_settings
from lmtrain.application.command import run as run
from lmtrain.application.composing import Sources as Sources
from lmtrain.application.composing import register_schemas as register_schemas
from lmtrain.application.directories import BeforeDirectoriesAreMade as BeforeDirectoriesAreMade  # named in conf/config.yaml
from lmtrain.application.directories import LogFile as LogFile  # as well, and in the .hydra/ of every run
from lmtrain.application.from_python import train_here as train_here
from lmtrain.application.jobs import VARIED as VARIED
from lmtrain.application.overrides import GROUPS as GROUPS
from lmtrain.application.overrides import parse as parse
