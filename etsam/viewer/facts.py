"""A record in words: what the pages say of a mask."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from etsam.prediction.record import OutputNames, threshold_of, weights_of
from etsam.screen import readable_seconds
from etsam.weights.registry import are_random, names_of

_LITTLE, _MUCH = 0.0005, 0.5  # share of membrane below or above which a mask is likely wrong


def share_text(share: float) -> str:
    """Share as per cent with three digits at most.

    Examples
    --------
    >>> share_text(0.01984), share_text(0.000042), share_text(0.0)
    ('1.98 %', '0.0042 %', '0 %')
    """
    return f"{100 * share:.3g} %" if share < 0.0001 else f"{100 * share:.2f} %"


def warnings_of(record: Mapping[str, Any]) -> list[str]:
    """Reasons to doubt a mask, worst first; those that the record holds among them."""
    share, found = record["membrane_share"], []
    if are_random(weights_of(record["settings"])):
        found.append("The weights are random, so this mask means nothing.")
    if share == 0:
        found.append("The mask is empty: nothing was taken for membrane. Try a lower threshold.")
    elif share < _LITTLE:
        found.append("Hardly anything was taken for membrane. Try a lower threshold.")
    elif share > _MUCH:
        found.append("More than half of the tomogram was taken for membrane. Try a higher threshold.")
    return [*found, *(str(text) for text in record.get("warnings", []))]


def headline(record: Mapping[str, Any]) -> str:
    """One sentence: what was found.

    Examples
    --------
    >>> headline({"membrane_share": 0.0211, "pieces": 14}), headline({"membrane_share": 0.0})
    ('Found: 14 pieces of membrane, 2.11 % of the tomogram.', 'No membrane was found.')
    """
    share, pieces = record["membrane_share"], record.get("pieces")
    if not share:
        return "No membrane was found."
    counted = f"{pieces} {'piece' if pieces == 1 else 'pieces'} of membrane" if pieces else "membrane"
    return f"Found: {counted}, {share_text(share)} of the tomogram."


def demo_note(record: Mapping[str, Any]) -> str:
    """Sentence about a mask that the weights made which come with the program; empty for others."""
    if not record.get("demo_weights"):
        return ""
    return (
        "DEMO WEIGHTS: this mask shows what the program does. For real work get the published weights, once: "
        "etsam weights download etsam_v1"
    )


def facts_of(record: Mapping[str, Any], names: OutputNames) -> list[tuple[str, str]]:
    """Heads and texts of the table below the picture."""
    depth, height, width = record["input"]["shape_zyx"]
    size, settings = record["input"]["voxel_size_angstrom_zyx"], record["settings"]
    steps = settings.get("postprocess") or {}
    voxel = "not in the file" if size is None else " × ".join(f"{value:.4g}" for value in size[::-1]) + " Å (x, y, z)"
    facts = [
        ("Tomogram", Path(str(record["input"]["path"])).name),
        ("Size", f"{width} × {height} × {depth} voxels (x, y, z)"),
        ("Voxel size", voxel),
        ("Membrane", share_text(record["membrane_share"])),
        ("Threshold", f"{threshold_of(record):g}" if "stage2" in settings else ""),
        ("Weights", names_of(weights_of(settings))),
        ("Post-processing", ", ".join(name.replace("_", " ") for name in steps) if steps else "none"),
        ("Time", readable_seconds(sum(record["seconds"].values()))),
        (
            "Memory",
            ", ".join(f"{value / 1e3:.1f} GB {kind.upper()}" for kind, value in record["peak_memory_mb"].items()),
        ),
        ("Finished", str(record["environment"]["finished"]).replace("T", " ").replace("+00:00", " UTC")),
        ("Made with", f"etsam {record['environment']['etsam']}"),
        ("Notes", "; ".join(record.get("notes", []))),
        ("Mask", (names.post_processed_mask if steps else names.mask).name),
    ]
    return [(head, text) for head, text in facts if text]
