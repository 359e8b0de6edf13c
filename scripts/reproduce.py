"""Makes the tables of results of language models again: trains, evaluates, mixes, and writes the tables into their READMEs.

    python scripts/reproduce.py ../shared/data                          # whatever scripts/results.json does not have yet
    python scripts/reproduce.py ../shared/data --only "Kneser-Ney 5" --seed 1
    python scripts/reproduce.py --list                                  # every row, and the seeds that were measured
    python scripts/reproduce.py --render                                # only write the tables

Every row that was made goes into scripts/results.json at once, with its seed, machine, date, version, command and time, and
into the README. So several sittings, also on several machines, complete the tables. A training that was stopped goes on.
Trained rows have seeds 1, 2 and 3; a row has one seed where nothing is drawn, and where it takes more than half an hour.
Settings that were tuned were tuned on validation alone. All rows take about seven hours, most of them on one core.
"""

from __future__ import annotations

from reproducing.brown import TABLES
from reproducing.program import run

if __name__ == "__main__":
    assert __doc__
    run(TABLES, __doc__, "outputs/reproduce")
