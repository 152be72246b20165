"""Questions asked of one victim and its purified networks: ``python -m backdoor_bench.analysis NAME +attack=badnet``.

Unlike a defense, an analysis may see the trigger; each of its outputs says whether it did.
"""
