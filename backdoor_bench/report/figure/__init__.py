"""Figures of records: ``python -m backdoor_bench.report.figure``. The way in from code is :mod:`.draw`."""
