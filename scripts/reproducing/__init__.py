"""What `scripts/reproduce.py` and `scripts/reproduce_tasks.py` share: results in a file (results), tables in READMEs (tables),
runs that rows are made of (running), the command line (program), and the rows themselves (brown, tasks)."""
