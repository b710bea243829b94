"""Jupyter kernels inside images."""
