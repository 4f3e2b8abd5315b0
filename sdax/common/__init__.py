"""Words, checks and type variables for every other part of sdax."""
