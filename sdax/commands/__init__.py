"""The commands of `python -m sdax` that are about processors, each in a module of its own."""
