"""Three Pythons in one workflow: simulate in one image, analyse in another, summarise here.

``python two_images.py``, or ``python two_images.py SIMULATION_IMAGE ANALYSIS_IMAGE``: any two that have a Python.
"""

import platform
import sys
from dataclasses import dataclass

import parsl
from parsl import bash_app, python_app
from parsl.config import Config
from udi_parsl import UDIHighThroughputExecutor, image, prefetch, retry_handler

SIMULATION, ANALYSIS = sys.argv[1:] or ("docker:python:3.9-slim", "docker:python:3.13-slim")


@dataclass
class Sample:
    """Defined here only, and yet both images take it and give it: it travels as source."""

    seed: int
    values: list[float]
    made_by: str

    def spread(self) -> float:
        return max(self.values) - min(self.values)


@image(SIMULATION)
@python_app
def simulate(seed):
    import random

    dice = random.Random(seed)
    return Sample(seed, [dice.gauss(0, 1) for _ in range(1000)], platform.python_version())


@image(ANALYSIS)
@python_app
def analyse(sample):
    return f"{sample.spread():.2f}", sample.made_by, platform.python_version()


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
        print(f"analysed on {open('system.txt').read().strip()}; submitted by Python {platform.python_version()}")
        for seed, future in enumerate(results):
            spread, simulated_by, analysed_by = future.result()
            print(f"seed {seed:2}: simulated by Python {simulated_by}, analysed by {analysed_by}, spread {spread}")
