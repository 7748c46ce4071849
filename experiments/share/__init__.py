"""What does sharing weights change: gradients, parameters, accuracy?"""

PARTS = ()
