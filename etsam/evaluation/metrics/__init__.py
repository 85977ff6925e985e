"""Scores of a mask against its truth: overlap, thresholds, surfaces, inclination, topology, points."""
