"""Colours of the report's pictures and curves, by Okabe & Ito (2008): told apart with every kind of colour vision.

Those of text, paper and badges are in `templates/page.css`.
"""

from etsam.pictures import FOUND, MISSED, WRONG

TRUTH = "#F0E442"
NAMES = {TRUTH: "yellow", FOUND: "green", WRONG: "orange", MISSED: "blue"}
"""For text beside pictures that cannot show a colour (W&B)."""

LEGEND = (
    (TRUTH, "truth: membrane as annotated"),
    (FOUND, "found: prediction and truth agree"),
    (WRONG, "wrong: predicted, but not membrane"),
    (MISSED, "missed: membrane that was not predicted"),
)
METHODS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Of curves and bars; their yellow is too pale for lines on white."""
