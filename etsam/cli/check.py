"""`etsam data check`: look at every file of a manifest before a training does."""

import argparse
from typing import TYPE_CHECKING, Any

from etsam.cli import add_command

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from etsam.data.checks import Examined, Finding


def add(commands: Any) -> None:
    """Describe the command."""
    parser = add_command(
        commands,
        "check",
        run,
        help="manifest -> everything that is wrong with it",
        description="Open every tomogram and mask of a manifest, read them once, and list what is wrong: exit status "
        "1 if anything cannot be used like this, else 0.",
    )
    parser.add_argument("manifest", help="CSV file, see `etsam data manifest`")
    parser.add_argument("--root", metavar="DIR", help="folder that relative names start from (the manifest's)")
    parser.add_argument("--quick", action="store_true", help="read the masks only: no NaN, no contrast")


def run(args: argparse.Namespace) -> None:
    """Print a table and all findings; raises `InputError` if there is a fault."""
    from rich.console import Console

    from etsam.cli.console import print_line, progress_bar
    from etsam.data.checks import examine, missing_splits
    from etsam.data.manifest import read_manifest
    from etsam.errors import InputError

    samples = read_manifest(args.manifest, args.root)
    with progress_bar("checking", len(samples)) as progress:
        examined, findings = examine(
            samples,
            grey_values=not args.quick,
            progress=progress,
        )
    findings = [*missing_splits(samples, ("train", "val"), "warning"), *findings]
    faults = [finding for finding in findings if finding.severity == "fault"]
    warnings = [finding for finding in findings if finding.severity == "warning"]
    console = Console(highlight=False)
    _print_table(console, examined, findings)
    _print_list(console, "Warnings", "yellow", warnings)
    _print_list(console, "Faults", "red", faults)
    if faults:
        raise InputError(
            f"{args.manifest}: {_count(len(faults), 'fault')} and {_count(len(warnings), 'warning')} in "
            f"{_count(len(samples), 'sample')}, listed above; correct the faults and check again"
        )
    splits = list(dict.fromkeys(sample.split for sample in samples))
    numbers = ", ".join(f"{sum(sample.split == split for sample in samples)} {split}" for split in splits)
    summary = f"no fault in {_count(len(samples), 'sample')} ({numbers}), {_count(len(warnings), 'warning')}"
    print_line(f"{args.manifest}: {summary}.")


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")


def _print_table(console: "Console", examined: "Sequence[Examined]", findings: "Sequence[Finding]") -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    one_set = len({item.sample.dataset_id for item in examined}) == 1
    table.add_column("run" if one_set else "data set / run", overflow="fold")
    table.add_column("split", overflow="fold")
    table.add_column("shape (Z, Y, X)", no_wrap=True)
    table.add_column("Å", justify="right", no_wrap=True)
    table.add_column("membrane", justify="right", no_wrap=True)
    table.add_column("contrast", no_wrap=True)
    table.add_column("result", no_wrap=True)
    for item in examined:
        result, style = "ok", "green"
        severities = {finding.severity for finding in findings if _concerns(finding, item)}
        if severities:
            result, style = ("FAULT", "red") if "fault" in severities else ("warning", "yellow")
        shape = "-" if item.shape is None else " x ".join(map(str, item.shape))
        name = item.sample.run_id if one_set else item.sample.name
        row = (name, item.sample.split, shape, _voxel_size(item), _share(item), _contrast(item))
        table.add_row(*(Text(cell) for cell in row), Text(result, style))
    console.print(table)


def _concerns(finding: "Finding", item: "Examined") -> bool:
    if finding.sample:
        return finding.sample == item.sample.name
    return any(str(path) in finding.what for path in (item.sample.tomogram, item.sample.target_mask))


def _voxel_size(item: "Examined") -> str:
    size = item.voxel_size_angstrom
    if size is None:
        stated = item.sample.voxel_size_angstrom
        return "?" if stated is None else f"{stated:.2f}"
    return f"{size[2]:.2f}" if max(size) - min(size) <= 0.01 * max(size) else f"{size[2]:.2f}*"


def _share(item: "Examined") -> str:
    if item.summary is None or item.shape is None:
        return "-"
    z, y, x = item.shape
    return f"{100 * int(item.summary.membrane.sum()) / (z * y * x):.2f} %"


def _contrast(item: "Examined") -> str:
    if item.pair is None or item.pair.contrast is None:
        return "-"
    return f"{'bright' if item.pair.contrast > 0 else 'dark'} {item.pair.contrast:+.2f}"


def _print_list(console: "Console", title: str, style: str, findings: "Sequence[Finding]") -> None:
    from rich.text import Text

    if not findings:
        return
    console.print(Text(f"{title}:", style=style))
    for number, finding in enumerate(findings, 1):
        console.print(Text(f" {number}. {finding.text}"), soft_wrap=True)
    console.print()
