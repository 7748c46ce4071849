"""The five operations of manualgrad.equations as Triton kernels. None is here yet.

Installed as ``manualgrad.triton_kernels``: the import name ``triton_kernels`` is Triton's own.
"""
