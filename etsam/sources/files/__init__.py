"""Own files: pairs of tomogram and mask, splits, copick projects, and a look into a file."""
