"""What do skip connections change: the error's way down, training, depth?"""

PARTS = ()
