"""What does the batch size change: noise, steps, budgets, flatness, time?"""

from experiments.batch import averaging, budget, noise, steps, throughput

PARTS = (averaging, noise, steps, budget, throughput)
