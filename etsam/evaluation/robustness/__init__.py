"""Scores of simulated tomograms against the conditions they were made under."""
