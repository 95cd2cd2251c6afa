"""Kernels in C++ for CPUs with bf16 products, compiled on the machine that runs them."""
