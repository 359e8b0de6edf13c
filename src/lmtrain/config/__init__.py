"""Every setting there is: its type, its default, its range, its meaning, and whether a resumed run may change it.

    declaring   how a setting is declared      data, models, training   the groups      whole   all of a run, and the tasks

Plain dataclasses, without torch and without Hydra, so that settings are checked before anything heavy is imported. The
defaults are those of a plain run; the files of `conf/`, which Hydra composes, say only in what another choice differs. A
checkpoint stores settings as JSON; `lmtrain.settings.reading` turns either mapping into a `Config`, and reports *all* that is
wrong with it at once. Everything here is read as `config.NAME` behind `import lmtrain.config as config`.
"""

from lmtrain.choices import *
from lmtrain.config.data import *
from lmtrain.config.declaring import MAX_LIST as MAX_LIST
from lmtrain.config.declaring import Resume as Resume
from lmtrain.config.models import *
from lmtrain.config.training import *
from lmtrain.config.whole import *
