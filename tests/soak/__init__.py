"""Long runs on real parts, apart from `make test`: what only repetition shows."""
