"""The parts of `scripts/benchmark.py`: what is timed (presets), against whom (models, steps, pieces), and how (measuring)."""
