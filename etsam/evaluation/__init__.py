"""How good masks are: scores of tomograms, comparisons of methods, and the report of both."""
