"""`etsam compare`: tables of scores of any programs against each other."""

import argparse
from pathlib import Path
from typing import Any

from etsam.cli import add_command

_DESCRIPTION = """\
Compare methods on the same tomograms: means with 95 % intervals, paired t-test and Wilcoxon test with Holm's
correction, effect size, and which tomograms are missing.

A table is a CSV file with a row a tomogram: the columns tomogram (or dataset_id and run_id) and dice, iou, precision,
recall (also found as dice_score, mean_iou_score, ...). Write

  NAME=TABLE.csv           NAME is what the method is called
  NAME=TABLE.csv:PATTERN   columns with names of their own; {metric} stands for dice, iou, ...
  TABLE.csv                a table with a column method, such as the scores.csv of an evaluation
"""
_EXAMPLES = """\
examples:
  etsam compare --published
  etsam compare --published mine=scores.csv --baseline mine --output-dir comparison
  etsam compare 'at 0=etsam.csv:etsam_stage2_{metric}_0.0' 'at -0.25=etsam.csv:etsam_stage2_{metric}_-0.25'
"""


def add(commands: Any) -> None:
    """Describe the command."""
    parser = add_command(
        commands,
        "compare",
        run,
        help="tables of scores -> tests and a report",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("sources", nargs="*", metavar="NAME=TABLE.csv", help="tables of scores")
    parser.add_argument("--published", action="store_true", help="add the published scores (data/reference_results)")
    parser.add_argument("--metric", metavar="NAMES", help="metrics to compare, with commas (dice,iou,precision,recall)")
    parser.add_argument("--baseline", metavar="NAME", help="compare all with this method only (default: all pairs)")
    parser.add_argument("-o", "--output-dir", type=Path, metavar="DIR", help="write the page and the tables there")
    parser.add_argument("--overwrite", action="store_true", help="replace a comparison that is there")
    parser.set_defaults(takes_settings=True)  # NAME=TABLE.csv may also stand between and after flags


def run(args: argparse.Namespace) -> None:
    """Read the tables, print the comparison, and write the report if a folder is given."""
    from etsam.errors import ConfigError
    from etsam.evaluation.compare.tables import (
        join_scores,
        parse_source,
        published_scores,
        read_scores,
        results_of_scores,
    )
    from etsam.evaluation.report.report import write_report
    from etsam.evaluation.report.tables import build_tables, failures

    given = [*args.sources, *args.settings]
    tables = [read_scores(parse_source(text)) for text in given]
    if args.published:
        tables.append(published_scores())
    if not tables:
        raise ConfigError("no tables are given; write NAME=TABLE.csv for each method, or --published.")
    results = results_of_scores(join_scores(tables))
    metrics = [name.strip() for name in args.metric.split(",") if name.strip()] if args.metric else None
    if args.output_dir is not None:
        settings: dict[str, Any] = {"tables": [*given, *(["the published scores"] if args.published else [])]}
        settings |= {"baseline": args.baseline or "none: all pairs", "metrics": args.metric or "all usual ones"}
        title = "Membrane segmentation: comparison of methods"
        more: dict[str, Any] = {"metrics": metrics, "baseline": args.baseline, "title": title}
        write_report(results, args.output_dir, settings, overwrite=args.overwrite, **more)
    found = build_tables(results, metrics=metrics, baseline=args.baseline)
    _show(found.comparison, failures(found.frames["scores"]), args.output_dir)


def _columns(table: tuple[list[str], list[list[str]]], chosen: tuple[int, ...]) -> tuple[list[str], list[list[str]]]:
    """Metric, methods, n, difference, and p with Holm's correction of both tests: what a terminal has room for."""
    heads, rows = table
    return [heads[i] for i in chosen], [[row[i] for i in chosen] for row in rows]


def _show(comparison: Any, sentences: list[str], output_dir: Path | None) -> None:
    from etsam.cli.console import print_line, print_table
    from etsam.evaluation.report.tables import cells_of_means, cells_of_pairs

    for title, (heads, rows) in (
        ("Means and 95 % intervals", cells_of_means(comparison)),
        ("Paired comparison", _columns(cells_of_pairs(comparison), (0, 1, 2, 3, 7, 8, 9, 10))),
    ):
        if rows:
            print_table(heads, rows, title)
    for line in [*sentences, *comparison.notes]:
        print_line(line)
    if output_dir is not None:
        print_line(f"Written to {output_dir}")
