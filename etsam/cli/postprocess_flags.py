"""Flags of post-processing, those of the published tool, as overrides of the config group `postprocess`."""

import argparse

# numbers of the published post-processing flags -> step and argument
_STEP_NUMBERS = {
    "post_process_min_slices": ("thin_noise", "min_slices"),
    "post_process_max_bridge_len": ("misconnections", "max_bridge_len"),
    "post_process_max_spur_len": ("misconnections", "max_spur_len"),
}


def add_postprocess_flags(parser: argparse.ArgumentParser) -> None:
    """Describe the flags."""
    group = parser.add_argument_group("post-processing")
    group.add_argument("--post-process", action="store_true", help="all steps: thin noise, then misconnections")
    group.add_argument(
        "--postprocess-remove-thin-noise", action="store_true", help="remove blobs that span too few slices"
    )
    group.add_argument(
        "--postprocess-remove-parallel-membrane-misconnections",
        action="store_true",
        help="cut small bridges between parallel membranes, slice by slice",
    )
    group.add_argument("--post-process-min-slices", type=int, metavar="N", help="slices a blob has to span (10)")
    group.add_argument("--post-process-max-bridge-len", type=int, metavar="N", help="longest bridge cut, voxels (5)")
    group.add_argument("--post-process-max-spur-len", type=int, metavar="N", help="longest spur cut, voxels (0: none)")


def postprocess_overrides(args: argparse.Namespace, default: str | None = None) -> list[str]:
    """Translate the published flags into overrides of the group `postprocess`; `default` if none asks for a step."""
    thin, bridges = args.postprocess_remove_thin_noise, args.postprocess_remove_parallel_membrane_misconnections
    numbers = {name: getattr(args, name) for name in _STEP_NUMBERS if getattr(args, name) is not None}
    group = default
    if args.post_process or (thin and bridges):
        group = "all"
    elif thin or bridges:
        group = "thin_noise" if thin else "misconnections"
    if group is None and numbers:
        flag = "--" + next(iter(numbers)).replace("_", "-")
        raise ValueError(f"{flag} does nothing without post-processing; add --post-process")
    if group is None:
        return []
    overrides = [f"postprocess={group}"]
    for name, value in numbers.items():
        step, argument = _STEP_NUMBERS[name]
        if group not in ("all", step):
            raise ValueError(f"--{name.replace('_', '-')} belongs to a step that is not run; add --post-process")
        overrides.append(f"postprocess.{step}.{argument}={value}")
    return overrides
