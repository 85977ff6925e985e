"""Tomogram -> mask: prompts, tiles, propagation, the two stages, post-processing and the files they end in."""
