"""Simulated tomograms: a specimen, a tilt series of it, and its reconstruction."""
