"""Kernels for NVIDIA GPUs, in Triton: what surrounds a block's products, in one pass each.

Importing a module here needs Triton, which torch's builds for CUDA bring; `ops` imports one where
a plan has chosen it.
"""
