"""How our own norms compute: tables of moments, gradients of their own, blocks that stay in the cache."""
