"""The five operations of manualgrad.equations on the GPU. So far: the activations' formulas.

Installed as ``manualgrad.triton_kernels``: the import name ``triton_kernels`` is Triton's own.
Imports torch and triton, never manualgrad.
"""
