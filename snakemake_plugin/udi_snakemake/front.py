"""Started by ``bin/apptainer`` with ``python -ESP``: finds the packages without site, then leaves to :mod:`main`.

Kept to a few lines, because a script is compiled anew at each start and a module is not.
"""

import os
import sys

here = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
# Installed, both packages lie side by side; in a working copy udi_core is one level up.
sys.path[:0] = [here] if os.path.isdir(os.path.join(here, "udi_core")) else [here, os.path.dirname(here)]

from udi_snakemake import late_site  # noqa: E402
from udi_snakemake.main import main  # noqa: E402

late_site.install()
sys.exit(main(sys.argv[1], sys.argv[2:]))
