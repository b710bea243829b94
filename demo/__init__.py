"""``make demo``: one image, from a registry to a Parsl app, a Snakemake rule and a plain command."""
