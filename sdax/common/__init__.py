"""What every other part of sdax uses: words, checks and type variables."""
