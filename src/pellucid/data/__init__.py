"""Documents with domains, their tokens, and the batches made of them."""
