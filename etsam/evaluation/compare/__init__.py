"""Comparison of methods by their scores on the same tomograms."""
