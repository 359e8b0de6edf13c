"""Makes the tables of taggers, classifiers and word vectors again, as `reproduce.py` makes those of language models.

    python scripts/reproduce_tasks.py ../shared/data
    python scripts/reproduce_tasks.py ../shared/data --table wikigold wnut17     # some of the tables
    python scripts/reproduce_tasks.py ../shared/data --only max_margin           # rows that have this in their name or settings

Numbers are means of seeds 1, 2 and 3, with the standard deviation of the three (dividing by 2), one process at a time on one
core. All tables take about two hours. Settings were chosen on validation splits; test splits are shown and decide nothing.
"""

from __future__ import annotations

from reproducing.program import run
from reproducing.tasks import TABLES

if __name__ == "__main__":
    assert __doc__
    run(TABLES, __doc__, "outputs/tasks")
