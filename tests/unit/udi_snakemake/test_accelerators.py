"""What --nv and --rocm bring along, from the text of ldconfig -p."""

from __future__ import annotations

from udi_snakemake.accelerators import NVIDIA, ROCM, shares

LDCONFIG = """\
7 libs found in cache `/etc/ld.so.cache'
\tlibcuda.so.1 (libc6,x86-64) => /usr/lib/x86_64-linux-gnu/libcuda.so.1
\tlibcuda.so.1 (libc6) => /usr/lib/i386-linux-gnu/libcuda.so.1
\tlibnvidia-ml.so.1 (libc6,x86-64) => /usr/lib/x86_64-linux-gnu/libnvidia-ml.so.1
\tlibGLX_nvidia.so.0 (libc6,x86-64) => /usr/lib/x86_64-linux-gnu/libGLX_nvidia.so.0
\tlibamdhip64.so.6 (libc6,x86-64) => /opt/rocm/lib/libamdhip64.so.6
\tlibcudart.so.12 (libc6,x86-64) => /usr/local/cuda/lib64/libcudart.so.12
\tlibc.so.6 (libc6,x86-64) => /lib/x86_64-linux-gnu/libc.so.6
"""


def test_drivers_come_along_and_toolkits_do_not() -> None:
    assert shares(NVIDIA, LDCONFIG, {"nvidia-smi": "/usr/bin/nvidia-smi"}.get) == [
        ("/usr/lib/x86_64-linux-gnu/libcuda.so.1", "/.singularity.d/libs/libcuda.so.1"),
        ("/usr/lib/x86_64-linux-gnu/libnvidia-ml.so.1", "/.singularity.d/libs/libnvidia-ml.so.1"),
        ("/usr/lib/x86_64-linux-gnu/libGLX_nvidia.so.0", "/.singularity.d/libs/libGLX_nvidia.so.0"),
        ("/usr/bin/nvidia-smi", "/.singularity.d/programs/nvidia-smi"),
    ]


def test_rocm() -> None:
    assert shares(ROCM, LDCONFIG, lambda name: None) == [
        ("/opt/rocm/lib/libamdhip64.so.6", "/.singularity.d/libs/libamdhip64.so.6")
    ]


def test_a_node_without_either() -> None:
    assert shares(NVIDIA, "0 libs found in cache\n", lambda name: None) == []
