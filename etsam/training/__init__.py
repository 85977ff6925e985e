"""Training of one stage: what a clip is prompted with, its forward through the tracker of inference, its losses."""
