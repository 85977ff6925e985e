"""What Dataverse and the portal offer for a row is chosen by one rule, and what they do not offer is named."""

import json
import re

import pytest
from conftest import SHAPE
from published_servers import DATASET_PATH, NAMES, files, mask, volume, write_list

from etsam.data.manifest import read_manifest
from etsam.data.portal import PortalTomogram, choose_tomogram
from etsam.errors import DownloadError

# Which tomogram is taken


def test_of_several_tomograms_that_of_the_rows_voxel_size_and_shape_is_taken(published, collect):
    coarse = volume(8, (3, 20, 28))
    published.reconstruct(10000, 245, 7, coarse, spacing=8.0)
    published.reconstruct(10000, 245, 8, volume(9, (7, 40, 56)))
    published.tomograms.reverse()
    assert collect().status == 0
    assert "10000/245/tomogram/1.mrc" in files()


def test_an_ambiguous_choice_is_an_error_that_lists_the_choices(published, collect):
    published.reconstruct(10000, 245, 7, volume(8), processing="denoised", isVisualizationDefault=True)
    outcome = collect()
    assert outcome.status == 1
    assert "10000/245 tomogram: the portal has 2 tomograms of 4 Å, 6 x 40 x 56 in this run: " in outcome.message
    assert (
        "1 (4 Å, 6 x 40 x 56, WBP, raw); 7 (4 Å, 6 x 40 x 56, WBP, denoised, shown by the portal); " in outcome.message
    )
    assert "add a column tomogram_id to the list, or --if-several default" in outcome.message
    assert [one.name for one in read_manifest("out/manifest.csv")] == NAMES[1:]
    assert collect("--if-several", "default").status == 0
    assert "10000/245/tomogram/7.mrc" in files()


def test_the_list_may_name_the_tomogram(published, collect):
    published.reconstruct(10000, 245, 7, volume(8))
    columns = ("voxel_size", "shape", "tomogram_id")
    write_list([NAMES[0].split("/")], columns=columns, values=("4.0", str(SHAPE), "7"))
    assert collect().status == 0
    assert files()[:2] == ["10000/245/target_mask/mask.mrc", "10000/245/tomogram/7.mrc"]


def tomograms(*entries):
    return [
        PortalTomogram(number, size, shape, "raw", "WBP", shown, "u", "", "") for number, size, shape, shown in entries
    ]


A, B = (6, 40, 56), (3, 20, 28)


@pytest.mark.parametrize(
    ("settings", "number"),
    [
        ({"voxel_size_angstrom": 4.03}, 1),
        ({"voxel_size_angstrom": 8.0, "shape": A}, 4),
        ({"shape": B, "if_several": "first"}, 2),
        ({"voxel_size_angstrom": 8.0, "if_several": "default"}, 3),
        ({"tomogram_id": 4, "voxel_size_angstrom": 4.0}, 4),
    ],
)
def test_the_rule_for_choosing(settings, number):
    listed = tomograms((1, 4.0, A, False), (2, 8.0, B, False), (3, 8.0, B, True), (4, 8.0, A, False))
    assert choose_tomogram(listed, **settings).id == number


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        ({"voxel_size_angstrom": 5.0}, "has no tomogram of 5 Å in this run, but 1 (4 Å, 6 x 40 x 56, WBP, raw); 2 (8"),
        ({"voxel_size_angstrom": 4.0, "shape": B}, "has no tomogram of 4 Å, 3 x 20 x 28 in this run"),
        ({"tomogram_id": 9}, "has no tomogram of tomogram_id 9"),
        ({}, "has 3 tomograms in this run: 1 (4 Å"),
        ({"shape": B, "if_several": "default"}, "has 2 tomograms of 3 x 20 x 28"),
    ],
)
def test_what_the_rule_cannot_choose(settings, part):
    listed = tomograms((1, 4.0, A, False), (2, 8.0, B, True), (3, 8.0, B, True))
    with pytest.raises(DownloadError, match=re.escape(part)):
        choose_tomogram(listed, **settings)


# What the servers do not have


def test_a_run_that_the_portal_does_not_have_or_that_moved_is_named(published, collect):
    published.runs[0]["datasetId"] = 10999
    del published.runs[1]
    message = collect().message
    assert "10000/245 tomogram: run 245 of the portal belongs to dataset 10999, not 10000" in message
    assert "10001/258 tomogram: the portal has no run 258; its numbers may have changed" in message


def test_a_tomogram_that_the_portal_lost_is_taken_from_dataverse_if_it_has_a_copy(published, collect, caplog):
    del published.runs[0]
    published.deposit("10000/245/tomogram", "copy.mrc", volume(1))
    outcome = collect()
    assert outcome.status == 0
    assert "10000/245 tomogram: taken from Dataverse, because the portal has no run 245" in caplog.text
    assert "10000/245/tomogram/copy.mrc" in files()


def test_a_mask_that_is_missing_or_restricted_in_dataverse_is_named(published, collect):
    published.files[2]["restricted"] = True
    del published.files[3]
    message = collect().message
    assert "10000/245 mask:" in message
    assert "its owner restricts it" in message
    assert (
        "10001/258 mask: Dataverse (doi:10.7910/DVN/K4JKCW) has to have one volume in 10001/258/target_mask" in message
    )


def test_a_mask_of_another_shape_is_no_row(published, collect):
    published.files.pop(4)
    published.deposit("emdb/4603/target_mask", "mask.mrc", mask(0, (6, 40, 57)))
    message = collect().message
    assert "emdb/4603: the mask has the shape (6, 40, 57), the tomogram (6, 40, 56)" in message
    assert NAMES[2] not in [one.name for one in read_manifest("out/manifest.csv")]


# What the servers refuse


def test_without_dataverse_nothing_begins(published, collect):
    published.site.pages[DATASET_PATH].answer = lambda *_: (404, b'{"status":"ERROR","message":"no such dataset"}')
    outcome = collect()
    assert outcome.status == 1
    assert "404 Not Found (no such dataset)" in outcome.message
    assert files() == []


@pytest.mark.parametrize(
    ("answer", "part"),
    [(b'{"status":"OK","data":{}}', "answers in a form this program does not know"), (b"<html>", "expected JSON, got")],
)
def test_an_unknown_answer_of_dataverse_is_told(published, collect, answer, part):
    published.site.pages[DATASET_PATH].answer = lambda *_: (200, answer)
    assert part in collect().message


def test_a_refusal_of_the_portal_is_told(published, collect):
    refusal = json.dumps({"errors": [{"message": "query too complex"}], "data": None}).encode()
    published.site.pages["/graphql"].answer = lambda *_: (200, refusal)
    assert "query too complex" in collect().message
