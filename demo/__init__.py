"""``make demo``: one image, from a registry to a Snakemake rule and a plain command."""
