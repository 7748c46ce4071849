"""What does the batch size change: noise, steps, budgets, flatness, time?"""

from experiments.batch import averaging, budget, edge, minima, noise, steps, throughput

PARTS = (averaging, noise, steps, budget, edge, minima, throughput)
