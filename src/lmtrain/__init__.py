"""Trains fixed-window and recurrent language models whose recurrences are written by hand."""

__version__ = "0.1.0"
