"""Tables of scores are read as other programs write them, and refused where they cannot be meant so."""

import re

import numpy as np
import pandas as pd
import pytest

from etsam.errors import InputError
from etsam.evaluation.compare.compare import compare
from etsam.evaluation.compare.tables import Source, join_scores, parse_source, read_scores
from etsam.paths import resource_path

pytestmark = pytest.mark.workshop


def table(path, text):
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a=b.csv", ("b.csv", "a", "")),
        ("b.csv", ("b.csv", "", "")),
        ("two words=dir/b.csv:x_{metric}_-0.25", ("dir/b.csv", "two words", "x_{metric}_-0.25")),
        ("a=C:/x.csv", ("C:/x.csv", "a", "")),
    ],
)
def test_a_source_is_name_file_and_pattern(text, expected):
    source = parse_source(text)
    assert (str(source.path), source.name, source.pattern) == expected


@pytest.mark.parametrize("text", ["=b.csv", "a=", ""])
def test_a_source_without_name_or_file_is_refused(text):
    with pytest.raises(InputError, match=r"NAME=TABLE\.csv"):
        parse_source(text)


def test_a_pattern_takes_the_columns_of_one_threshold_only():
    path = resource_path("data", "reference_results") / "etsam.csv"
    raw = pd.read_csv(path)
    found = read_scores(Source(path, "x", "etsam_stage2_{metric}_0.25"))
    assert list(found.columns) == ["method", "tomogram", "error", "dice", "iou", "precision", "recall"]
    np.testing.assert_array_equal(found["dice"], raw["etsam_stage2_dice_0.25"])
    assert found["tomogram"][0] == "10000/245"


@pytest.mark.parametrize("text", ["tomogram;dice\na;0,5\nb;0.25\n", "tomogram\tdice\na\t0.5\nb\t0.25\n"])
def test_tables_of_spreadsheets_are_read_with_their_separators_and_decimal_commas(work, text):
    assert list(read_scores(Source(table(work / "t.csv", text), "x"))["dice"]) == [0.5, 0.25]


def test_names_that_look_like_numbers_keep_their_zeros(work):
    path = table(work / "t.csv", "tomogram,Dice,note\n007,0.5,fine\n1e5,,good\n")
    found = read_scores(Source(path, "x"))
    assert list(found["tomogram"]) == ["007", "1e5"]
    assert list(found.columns) == ["method", "tomogram", "error", "dice"]
    assert np.isnan(found["dice"][1])


def test_infinite_distances_are_missing_with_a_warning_that_names_table_and_tomogram(work, caplog):
    path = table(work / "t.csv", "tomogram,dice,hausdorff95_angstrom\nx,0.5,12\ny,0,inf\nz,0,-Infinity\n")
    found = read_scores(Source(path, "a"))
    np.testing.assert_array_equal(found["hausdorff95_angstrom"], [12, np.nan, np.nan])
    assert re.search(r"t\.csv.*hausdorff95_angstrom.*y, z", caplog.text)
    assert compare(found, ["hausdorff95_angstrom"]).means["n"].tolist() == [1]


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("tomogram,dice\na,inf\n", "dice of a is inf"),
        ("tomogram,dice\na,0.5\na,0.6\n", "a is"),
        ("tomogram,dice\na,78.7\n", "dice of a is 78.7"),
        ("tomogram,dice\na,good\n", "good"),
        ("tomogram,size\na,3\n", "dice"),
        ("tomogram,my_dice_3\na,3\n", r"'NAME=t.csv:my_\{metric\}_3'"),
        ("name,dice\na,0.5\n", "tomogram"),
        ("tomogram,dice\n,0.5\n", "tomogram"),
        ("tomogram,dice\n", "t.csv"),
        ("tomogram,dice,dice_score\na,0.5,0.6\n", "dice_score"),
        ("method,tomogram,dice\nx,a,0.5\ny,a,0.5\n", "x, y"),
        ("", "t.csv"),
    ],
)
def test_tables_that_cannot_be_used_are_refused(work, text, part):
    table(work / "t.csv", text)
    with pytest.raises(InputError, match=part):
        read_scores(parse_source("NAME=t.csv"))


def test_a_name_chooses_the_rows_of_a_table_of_several_methods(work):
    table(work / "t.csv", "method,tomogram,dice\nx,a,0.5\ny,a,0.6\n")
    assert list(read_scores(parse_source("y=t.csv"))["dice"]) == [0.6]
    assert list(read_scores(parse_source("t.csv"))["method"]) == ["x", "y"]
    with pytest.raises(InputError, match="for y"):
        join_scores([read_scores(parse_source("t.csv")), read_scores(parse_source("y=t.csv"))])
