"""Snakemake's ``container:`` directive, served by UDI."""
