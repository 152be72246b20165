"""Measured, not tested: speed and memory beside plain loops. ``make bench``."""
