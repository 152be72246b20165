"""Attacks and defenses on image classifiers: train a victim, purify it, measure both, keep the record."""
