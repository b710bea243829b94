"""Parsl's own test-suite, with every task in an image; run by scripts/parsl-conformance."""
