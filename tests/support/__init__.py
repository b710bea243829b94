"""Real parts for the tests: images made from Debian packages, registries, users, file systems, a Slurm."""
