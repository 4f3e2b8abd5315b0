"""The benchmarks' work and contestants, and the half-minute of it that `python -m sdax bench` runs.

The rest is in the directory benchmarks/ of the source, which compares more, with pytest-benchmark.
"""
