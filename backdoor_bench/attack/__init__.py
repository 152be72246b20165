"""Backdoor attacks, reproduced from the literature to test defenses: base.py, then one file per attack."""

from backdoor_bench.attack.base import Attack, AttackerView, Poisoned, Taxonomy, Trigger, stamp, train_victim

__all__ = ["Attack", "AttackerView", "Poisoned", "Taxonomy", "Trigger", "stamp", "train_victim"]
