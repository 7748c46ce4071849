"""What does sharing weights change: gradients, parameters, accuracy?"""

from experiments.share import autoencoder, depth, embedding, position, siamese, uses

PARTS = (uses, position, siamese, autoencoder, depth, embedding)
