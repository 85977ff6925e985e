"""Weights that are known by a name: `registry` says which file a name means, `store` downloads and verifies it."""
