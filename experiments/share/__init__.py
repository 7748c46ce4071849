"""What does sharing weights change: gradients, parameters, accuracy?"""

from experiments.share import (
    autoencoder,
    convolution,
    depth,
    embedding,
    position,
    siamese,
    uses,
)

PARTS = (uses, position, convolution, siamese, autoencoder, depth, embedding)
