"""The commands of `python -m sdax` for processors. Each has a module of its own."""
