"""Stands for PsychoPy: what the example uses of it."""
