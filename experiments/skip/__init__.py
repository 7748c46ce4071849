"""What do skip connections change: the error's way down, training, depth?"""

from experiments.skip import delta, forks, nielsen, shatter, training

PARTS = (delta, nielsen, shatter, training, forks)
