"""Two images and a third Python in one workflow: simulate in one, analyse in the other, summarise here.

``python two_images.py SIMULATION_IMAGE ANALYSIS_IMAGE``, each any image with a Python of its own.
"""

import sys

import parsl
from parsl import bash_app, python_app
from parsl.config import Config
from udi_parsl import UDIHighThroughputExecutor, image, prefetch, retry_handler

SIMULATION, ANALYSIS = sys.argv[1:3]


def version() -> str:
    import platform

    return platform.python_version()


@image(SIMULATION)
@python_app
def simulate(seed):
    import random

    dice = random.Random(seed)
    return version(), [dice.gauss(0, 1) for _ in range(1000)]


@image(ANALYSIS)
@python_app
def analyse(simulated):
    import statistics

    python, values = simulated
    return python, version(), statistics.fmean(values)


@image(ANALYSIS)
@bash_app
def name_system(stdout="system.txt"):
    return ". /etc/os-release && echo $PRETTY_NAME"


if __name__ == "__main__":
    prefetch(SIMULATION, ANALYSIS)
    executor = UDIHighThroughputExecutor(label="workers", max_workers_per_node=2)
    with parsl.load(Config(executors=[executor], retries=2, retry_handler=retry_handler)):
        results = [analyse(simulate(seed)) for seed in range(20)]
        name_system().result()
        print(f"analysed on {open('system.txt').read().strip()}; submitted by Python {version()}")
        for seed, future in enumerate(results):
            simulated_by, analysed_by, mean = future.result()
            print(f"seed {seed:2}: simulated by Python {simulated_by}, analysed by {analysed_by}, mean {mean:+.3f}")
