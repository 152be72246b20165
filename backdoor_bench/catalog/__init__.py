"""What there is, from ``conf/`` and the classes it names: ``python -m backdoor_bench.catalog defenses --format json``.

No list of methods is kept anywhere. Defaults are those that Hydra composes, notes are the YAML's own comments, the
source is its first comment. Classes are read, not imported: torch would take seconds, and no data set is needed.
"""

from backdoor_bench.catalog.entry import GROUPS, Entry, Option, entries
from backdoor_bench.catalog.page import markdown, terminal

__all__ = ["GROUPS", "Entry", "Option", "entries", "markdown", "terminal"]
