"""Tests of others, run in images: Parsl's own suite, Snakemake's own tests of containers."""
