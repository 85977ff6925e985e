"""Flags that people type, of `predict` and `evaluate` alike, and the settings that they stand for."""

import argparse
import os
import re

_UNITS = {"": 1.0, "g": 1.0, "gb": 1.0, "gib": 1.073741824, "m": 1e-3, "mb": 1e-3, "mib": 1.048576e-3}


def add_running_flags(parser: argparse.ArgumentParser, folder: str) -> None:
    """Describe how and where a command works; `folder` is where its outputs go by default."""
    group = parser.add_argument_group("where and how")
    group.add_argument("-o", "--output-dir", metavar="DIR", help=f"where outputs go ({folder})")
    group.add_argument("--gpu", metavar="WHICH", help="such as 0, or 0,1, or all; cpu; mps (Apple)")
    group.add_argument("--memory", metavar="SIZE", help="such as 4GB: work in so much memory, of the GPU if one works")
    group.add_argument("--weights", metavar="NAME", help="etsam_v1, nano ...; `etsam weights list` shows all (auto)")
    group.add_argument("--offline", action="store_true", help="ask no server for anything")
    group.add_argument("--overwrite", action="store_true", help="replace outputs that exist")
    group.add_argument("--resume", action="store_true", help="skip tomograms that are complete")


def add_segmentation_flags(parser: argparse.ArgumentParser) -> None:
    """Describe what decides a mask, the frequent things."""
    group = parser.add_argument_group("often")
    group.add_argument(
        "--threshold",
        "--logit-threshold",
        dest="logit_threshold",
        type=threshold_value,
        metavar="T",
        help="logits above are membrane: lower finds more (that of the weights); auto: chosen for each tomogram",
    )
    add_false_rate_flag(group, "--threshold auto")
    group.add_argument("--membranes", choices=["dark", "bright"], help="contrast in the tomogram (found out)")
    group.add_argument("--voxel-size", type=float, metavar="Å", help="where the header is wrong; the mask gets it, too")
    group.add_argument(
        "--also",
        action="append",
        default=[],
        metavar="FILE",
        help="another reconstruction of the tomogram, or its other half map: logits are averaged (may be repeated)",
    )
    add_region_flags(group)
    group.add_argument("--instances", action="store_true", help="also number the connected membranes")
    group.add_argument("--store-logits", action="store_true", help="also write the logits, for `etsam threshold`")
    group.add_argument("--uncertainty", action="store_true", help="also write the chance that a voxel's call is wrong")
    add_page_flag(group)
    group.add_argument("--strict", action="store_true", help="all or nothing, where one of several cannot be used")
    group.add_argument("--force", action="store_true", help="segment what looks like a mask or a tilt series, too")
    group.add_argument("--quick", action="store_true", help="a first look: every second slice, half the time")
    group.add_argument("--better", action="store_true", help="also seen from the sides: twice the time")


def add_false_rate_flag(group: argparse._ActionsContainer, of: str) -> None:
    """Describe what a threshold is chosen by; `of` is the flag that asks for it."""
    group.add_argument(
        "--false-rate", type=float, metavar="SHARE", help=f"of {of}: share of the marks that may be false (0.2)"
    )


def add_page_flag(group: argparse._ActionsContainer) -> None:
    """Describe the page beside a mask."""
    group.add_argument(
        "--page",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="write a page to scroll through the slices beside each mask, or none (it is written)",
    )


def page_overrides(args: argparse.Namespace) -> list[str]:
    """Overrides of the flag about the page."""
    return [] if args.page is None else [f"write_page={str(args.page).lower()}"]


def add_region_flags(group: argparse._ActionsContainer) -> None:
    """Describe where nothing is to be marked."""
    group.add_argument(
        "--lamella", action="store_true", help="find the slab that holds sample; mark nothing outside it"
    )
    group.add_argument("--exclude", type=artefacts, metavar="WHAT", help="gold, carbon, border: mark nothing there")


def take_negative_numbers(parser: argparse.ArgumentParser) -> None:
    """Let `-1e-3` be a threshold; argparse alone would take it for a flag."""
    parser._negative_number_matcher = re.compile(r"^-(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?$")


def threshold_value(text: str) -> float | str:
    """A number, or `auto`; raises ArgumentTypeError."""
    try:
        return text if text == "auto" else float(text)
    except ValueError as error:
        hint = "files stand before this flag" if os.path.exists(text) else "write such as 0.5, without comma, or auto"
        raise argparse.ArgumentTypeError(f"{text} is no threshold; {hint}") from error


def artefacts(text: str) -> list[str]:
    """Words of a list with commas, each a name; raises ArgumentTypeError."""
    words = [word.strip() for word in text.split(",")]
    if not all(re.fullmatch(r"[a-z_]+", word) for word in words):
        raise argparse.ArgumentTypeError(f"{text} is no list of words; write such as gold,border")
    return words


def region_overrides(args: argparse.Namespace) -> list[str]:
    """Overrides of the flags about where nothing is to be marked."""
    return ["sample=slab"] * args.lamella + ([] if args.exclude is None else [f"exclude=[{','.join(args.exclude)}]"])


def add_settings_flag(parser: argparse.ArgumentParser) -> None:
    """Describe `--settings`, which is looked for before everything else."""
    parser.add_argument(
        "--settings", dest="show_settings", nargs="?", const="", metavar="WORD", help="show every KEY=VALUE (with WORD)"
    )


def running_overrides(args: argparse.Namespace) -> list[str]:
    """Overrides of the flags about where and how, but for names, which need quoting.

    Raises
    ------
    ValueError
        If a value is none.
    """
    overrides = [] if args.gpu is None else _devices(args.gpu)
    if args.memory is not None:
        overrides.append(f"memory_budget_gb={_gigabytes(args.memory):.9g}")
    return overrides + [f"{key}=true" for key in ("overwrite", "resume", "debug") if getattr(args, key)]


def segmentation_overrides(args: argparse.Namespace) -> list[str]:
    """Overrides of the frequent flags but for the threshold; raises ValueError if they contradict each other."""
    if args.quick and args.better:
        raise ValueError("--quick leaves slices out and --better looks at more; give one of them")
    overrides = [] if args.membranes is None else [f"normalize.membranes={args.membranes}"]
    overrides += [] if args.false_rate is None else [f"false_rate={args.false_rate}"]
    overrides += [] if args.voxel_size is None else [f"voxel_size={args.voxel_size}"]
    overrides += region_overrides(args)
    overrides += page_overrides(args)
    overrides += ["strict=true"] * args.strict + ["force=true"] * args.force
    overrides += ["write_logits=true"] * args.store_logits + ["write_instances=true"] * args.instances
    overrides += ["write_uncertainty=true"] * args.uncertainty
    return overrides + ["slice_stride=2"] * args.quick + ["axes=[z,y,x]", "side_slice_stride=2"] * args.better


def _devices(which: str) -> list[str]:
    if which in ("cpu", "auto"):
        return [f"trainer={which}"]
    if which == "mps":
        return ["trainer=auto", "trainer.accelerator=mps"]
    if which == "all":
        return ["trainer=gpus"]
    if re.fullmatch(r"\d+", which):
        return ["trainer=auto", "trainer.accelerator=gpu", f"trainer.devices=[{which}]"]
    if re.fullmatch(r"\d+(,\d+)+", which):
        return ["trainer=gpus", f"trainer.devices=[{which}]"]
    raise ValueError(f"--gpu {which} is none; write numbers such as 0 or 0,1, or all, cpu, mps, auto")


def _gigabytes(size: str) -> float:
    found = re.fullmatch(r"(\d+\.?\d*|\.\d+)\s*([a-z]*)", size.strip().lower())
    if found is None or found[2] not in _UNITS or not float(found[1]):
        raise ValueError(f"--memory {size} is no size; write it such as 4GB or 800MB")
    return float(found[1]) * _UNITS[found[2]]
