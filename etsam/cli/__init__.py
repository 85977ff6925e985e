"""Console command `etsam`: one module for each command; `main` finds them."""
