"""The report of an evaluation: a page, tables, Weights & Biases."""
