"""Schedule: an epoch's requests, from an order and a plan or from a custom sampler."""
