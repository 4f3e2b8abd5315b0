"""The work and the contestants of the benchmarks, and `python -m sdax bench`, which runs a part.

The directory benchmarks/ of the source has the rest. It compares more, with pytest-benchmark.
"""
