"""Quality of masks: scores of tomograms, comparisons of methods, and the report of both."""
