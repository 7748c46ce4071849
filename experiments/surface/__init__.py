"""What does the loss look like around a solution, small batch and large, plain and residual?"""

from experiments.surface import slices

PARTS = (slices,)
