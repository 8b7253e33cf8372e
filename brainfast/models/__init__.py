"""Trainable heads, one file each; every one ends in `fold()`."""
