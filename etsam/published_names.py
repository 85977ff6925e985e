"""Words of the published tool for settings, and ours: flags of its command, arguments of its Python interface."""

PROMPTS = {"zero": "zero", "grid": "grid", "grid_zero": "grid_zero", "etsam_stage1_partial": "stage1_mask"}
"""Prompts -> config group `prompt`."""

NORMALIZATIONS = {
    "min_max_positive_values": "min_max_positive",
    "softplus_minmax": "softplus_minmax",
    "robust": "robust",
}
"""Normalisations -> config group `normalize`."""
