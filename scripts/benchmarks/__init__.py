"""The parts of `scripts/benchmark.py`: what is timed (presets), against whom (models, steps, pieces, using, ngrams), and how
(measuring, rows, readme); and the least time that it can take (machine, parts, roofline)."""
