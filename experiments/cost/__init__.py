"""What does a backward pass cost: in parameters, uses, depth, batch size and memory?"""

from experiments.cost import depth_and_batch, differences, parameters, uses

PARTS = (parameters, differences, uses, depth_and_batch)
