"""From records to tables, a page and figures. The way in is :func:`backdoor_bench.report.frame.load`."""
