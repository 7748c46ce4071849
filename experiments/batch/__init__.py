"""What does the batch size change: noise, steps, budgets, flatness, time?"""

from experiments.batch import averaging, edge, minima

PARTS = (averaging, edge, minima)
