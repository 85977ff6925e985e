"""Lists and arguments that `etsam data collect` cannot use are refused, and the program's own lists are found."""

import re
import sys
from pathlib import Path

import pytest

from etsam.data.published import find_list, read_list
from etsam.errors import InputError
from etsam.paths import share


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--what", "mask"], "--what mask does not fit; allowed: tomograms, masks"),
        (["--jobs", "0"], "--jobs 0 does not fit"),
        (["--format", "tiff"], "invalid choice: 'tiff'"),
        (["--csv", "no.csv"], "no.csv: no such list; give a CSV file or one of dataset, testset, robustness"),
        (["surplus"], "unknown argument surplus"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(work, etsam, arguments, part):
    outcome = etsam("data", "collect", *arguments)
    assert outcome.status == 1
    assert part in outcome.message
    assert list(work.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("dataset_id,run_id\n1,2\n", "lacks the columns split"),
        ("dataset_id,run_id,split\n", "names no tomogram"),
        ("dataset_id,run_id,split\n../x,2,test\n", "line 2: dataset_id '../x' is no name"),
        ("dataset_id,run_id,split\n1,2,test\n1,2,test\n", "line 3: 1/2 is listed twice"),
        ("dataset_id,run_id,split\n1,ts,test\n", "run_id 'ts' of the portal's dataset 1 is no number"),
        ("dataset_id,run_id,split,voxel_size\n1,2,test,big\n", "voxel_size 'big' is no positive number"),
    ],
)
def test_a_malformed_list_is_told(work, text, part):
    Path("list.csv").write_text(text)
    with pytest.raises(InputError, match=re.escape(part)):
        read_list(Path("list.csv"))


def test_the_shipped_lists_are_found_by_name_and_know_voxel_sizes_and_shapes(work):
    assert share("data", "testset.csv") == find_list("testset") == find_list("data/testset.csv")
    test = read_list(find_list("testset"))
    assert len(test) == 17
    assert all(row.split == "test" and row.voxel_size_angstrom and row.shape for row in test)
    assert sum(row.on_portal for row in test) == 11
    rows = {row.name: row for row in read_list(find_list("dataset"))}
    assert len(rows) == 128
    assert (rows["10010/12000"].voxel_size_angstrom, rows["10010/12000"].shape) == (28.4, (250, 464, 480))
    assert [row.has_mask for row in read_list(find_list("robustness"))] == [False] * 5
    assert share("data", "polnet_config", "polnet_data_2", "sample_config.yaml").is_file()


def test_without_the_portals_package_the_command_says_what_to_install(published, collect, monkeypatch):
    monkeypatch.setitem(sys.modules, "cryoet_data_portal", None)
    outcome = collect()
    assert outcome.status == 1
    assert "pip install 'etsam[data]'" in outcome.message
