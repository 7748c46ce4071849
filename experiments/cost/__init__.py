"""What does a backward pass cost: time, memory, against differences, per use?"""

PARTS = ()
