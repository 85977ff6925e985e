"""`etsam data collect` brings every file whole to its place, lists the pairs, and goes on where it stopped."""

import json
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import SHAPE, write_mrc
from published_servers import DATASET_PATH, NAMES, SPLITS, files, mask, volume, write_list

from etsam.data.checks import check_samples
from etsam.data.manifest import read_manifest
from etsam.errors import DownloadError, InputError
from etsam.paths import resource_path
from etsam.sources.collection.lists import find_list, read_list
from etsam.sources.collection.portal import choose_tomogram

COMMAND = Path(sys.executable).parent / "etsam"
FILES = [
    "10000/245/target_mask/mask.mrc",
    "10000/245/tomogram/1.mrc",
    "10001/258/target_mask/mask.mrc",
    "10001/258/tomogram/2.mrc",
    "emdb/4603/target_mask/mask.mrc",
    "emdb/4603/tomogram/emd.map",
    "manifest.csv",
    "polnet_data_1/polnet_data_1_generation_4/target_mask/mask.mrc",
    "polnet_data_1/polnet_data_1_generation_4/tomogram/tomo_4.mrc",
]
ZARR = {".zattrs": b"{}", ".zgroup": b'{"zarr_format": 2}', "0/.zarray": b"{}", "0/0/0/0": b"x" * 5000, "1/0/0/0": b"y"}


@pytest.fixture
def bucket(published, monkeypatch):
    """The OME-Zarr folder of 10000/245, listed as S3 lists it (ListObjectsV2, two pages)."""
    site = published.site
    monkeypatch.setenv("BOTO_ENDPOINT_URL", site.url)
    write_list([NAMES[0].split("/")])
    for key, body in ZARR.items():
        site.add(f"/10000/TS_1/1.zarr/{key}", body, kind="application/json" if key[-5:] == "array" else "binary")
    entries = [
        f"<Contents><Key>10000/TS_1/1.zarr/{key}</Key><Size>{len(body)}</Size></Contents>" for key, body in ZARR.items()
    ]

    def answer(query, _):
        assert query["prefix"] == "10000/TS_1/1.zarr/"
        second = "continuation-token" in query
        shown = entries[3:] if second else entries[:3]
        more = "" if second else "<NextContinuationToken>2</NextContinuationToken>"
        page = f"<IsTruncated>{str(not second).lower()}</IsTruncated>{more}{''.join(shown)}"
        return 200, f'<?xml version="1.0"?><ListBucketResult>{page}</ListBucketResult>'.encode()

    site.add("/bucket", answer=answer, kind="application/xml")
    return site


def test_every_file_comes_and_the_manifest_lists_the_rows(published, collect):
    outcome = collect()
    assert outcome.status == 0, outcome.stderr
    assert files() == FILES
    samples = read_manifest("out/manifest.csv")
    assert [(one.dataset_id, one.run_id, one.split) for one in samples] == [
        (*name.split("/"), split) for name, split in zip(NAMES, SPLITS, strict=True)
    ]
    assert {(one.voxel_size_angstrom, one.shape) for one in samples} == {(4.0, SHAPE)}
    assert Path("out/manifest.csv").read_text().splitlines()[1] == (
        f'10000,245,train,10000/245/tomogram/1.mrc,10000/245/target_mask/mask.mrc,4.0,"{SHAPE}"'
    )
    # the files have three voxel sizes, to tell axes apart; a manifest states one
    check_samples([replace(sample, voxel_size_angstrom=None) for sample in samples], splits=("train", "test"))
    assert samples[0].tomogram.read_bytes() == published.site.pages["/10000/TS_1/1.mrc"].body


def test_a_second_run_downloads_nothing(published, collect):
    collect()
    published.site.bytes_sent.clear()
    before = Path("out/manifest.csv").read_bytes()
    assert collect().status == 0
    assert published.site.bytes_sent == {}
    assert Path("out/manifest.csv").read_bytes() == before


def test_what_fails_is_named_and_a_second_run_completes_it(published, collect):
    site = published.site
    site.pages["/10000/TS_1/1.mrc"].faults = ["500!"]
    site.pages["/store/1000"].faults = ["html!"]
    whole = site.pages["/store/1003"].body  # mask of 10001/258
    site.pages["/store/1003"].body = whole[:-1] + b"\7"
    outcome = collect()
    assert outcome.status == 1
    for failed in ("10000/TS_1/1.mrc", "api/access/datafile/1000", "api/access/datafile/1003"):
        assert f"{site.url}/{failed}" in outcome.message
    assert all(name in outcome.message for name in ("10000/245 tomogram", "emdb/4603 tomogram", "10001/258 mask"))
    missing = {"10000/245/tomogram/1.mrc", "10001/258/target_mask/mask.mrc", "emdb/4603/tomogram/emd.map"}
    assert files() == sorted(set(FILES) - missing)
    assert [one.name for one in read_manifest("out/manifest.csv")] == NAMES[3:]

    for path in ("/10000/TS_1/1.mrc", "/store/1000"):
        site.pages[path].faults = []
    site.pages["/store/1003"].body = whole
    site.bytes_sent.clear()
    assert collect().status == 0
    assert files() == FILES
    assert sorted(site.bytes_sent) == ["/10000/TS_1/1.mrc", "/store/1000", "/store/1003"]
    assert [one.name for one in read_manifest("out/manifest.csv")] == NAMES


def test_a_dry_run_lists_sizes_and_writes_nothing(published, collect, capsys):
    from etsam.cli.main import main

    main(["data", "collect", "--csv", "list.csv", "--output-dir", "out", "--dry-run"])
    lines = capsys.readouterr().out.splitlines()
    assert not Path("out").exists()
    assert len(lines) == 10
    assert lines[1].split() == ["10000/245", "tomogram", "portal", "54.8", "kB", "to", "download"]
    assert lines[2].split() == ["10000/245", "mask", "Dataverse", "14.5", "kB", "to", "download"]
    total = sum(len(page.body) for page in published.site.pages.values())
    assert lines[-1].split()[:5] == ["all", "8", "files", f"{total / 1000:.1f}", "kB"]
    collect()
    capsys.readouterr()
    main(["data", "collect", "--csv", "list.csv", "--output-dir", "out", "--dry-run"])
    lines = capsys.readouterr().out.splitlines()
    assert all(line.split()[-1] == "there" for line in lines[1:-1])
    assert "0 bytes to download" in lines[-1]


def test_a_dry_run_fails_when_something_cannot_be_had(published, collect):
    del published.runs[1]
    outcome = collect("--dry-run")
    assert outcome.status == 1
    assert "10001/258 tomogram" in outcome.message
    assert files() == []


def test_masks_and_tomograms_may_be_collected_one_after_the_other(published, collect):
    assert collect("--what", "masks").status == 0
    assert files() == [name for name in FILES if "target_mask" in name]
    assert collect("--what", "tomograms").status == 0
    assert files() == FILES
    assert [one.name for one in read_manifest("out/manifest.csv")] == NAMES


def test_another_list_into_the_same_folder_keeps_the_rows_of_the_first(published, collect):
    write_list([NAMES[0].split("/")], "first.csv")
    write_list([NAMES[2].split("/")], "second.csv")
    collect(csv="first.csv")
    collect(csv="second.csv")
    assert [one.name for one in read_manifest("out/manifest.csv")] == [NAMES[0], NAMES[2]]


def test_rows_stay_in_the_manifest_when_a_server_is_away(published, collect):
    collect()
    before = Path("out/manifest.csv").read_bytes()
    published.site.pages["/graphql"].answer = lambda *_: (500, b"down")
    outcome = collect()
    assert outcome.status == 1
    assert "10000/245 tomogram" in outcome.message
    assert "10001/258 tomogram" in outcome.message
    assert sorted(one.name for one in read_manifest("out/manifest.csv")) == sorted(NAMES)
    shutil.rmtree("out/10000")
    collect()
    assert sorted(one.name for one in read_manifest("out/manifest.csv")) == sorted(NAMES[1:])
    assert before.count(b"\n") == 5


def test_tomograms_without_ground_truth_come_without_mask(published, collect, caplog):
    write_list([NAMES[0].split("/")])
    Path("list.csv").write_text(Path("list.csv").read_text().replace("train", "robustness"))
    outcome = collect()
    assert outcome.status == 0
    assert "10000/245" in caplog.text
    assert files() == ["10000/245/tomogram/1.mrc"]


def test_a_file_of_unknown_content_is_not_replaced(published, collect):
    write_mrc("out/emdb/4603/tomogram/emd.map", volume(99))
    mine = Path("out/emdb/4603/tomogram/emd.map").read_bytes()
    outcome = collect()
    assert outcome.status == 1
    assert "out/emdb/4603/tomogram/emd.map" in outcome.message
    assert Path("out/emdb/4603/tomogram/emd.map").read_bytes() == mine


def test_files_of_the_published_script_are_verified_and_kept(published, collect):
    for path, page in (
        ("out/emdb/4603/tomogram/emd.map", "/store/1000"),
        ("out/10000/245/tomogram/1.mrc", "/10000/TS_1/1.mrc"),
    ):
        Path(path).parent.mkdir(parents=True)
        Path(path).write_bytes(published.site.pages[page].body)
    assert collect().status == 0
    assert "/store/1000" not in published.site.bytes_sent
    assert "/10000/TS_1/1.mrc" not in published.site.bytes_sent


def test_a_piece_of_a_tomogram_is_not_taken_for_whole(published, collect):
    path = write_mrc("out/10000/245/tomogram/1.mrc", volume(1))
    path.write_bytes(path.read_bytes()[:-100])
    message = collect().message
    assert "out/10000/245/tomogram/1.mrc" in message
    assert "54684" in message
    assert path.stat().st_size == 54684


def test_no_room_is_told_before_anything_is_downloaded(published, collect, monkeypatch):
    usage = shutil._ntuple_diskusage(10**9, 10**9, 10**8)
    monkeypatch.setattr("etsam.sources.collection.collect.shutil.disk_usage", lambda _: usage)
    assert "--output-dir" in collect().message
    assert published.site.bytes_sent == {}


def test_an_ome_zarr_folder_gets_its_name_when_it_is_complete(bucket, collect):
    bucket.pages["/10000/TS_1/1.zarr/0/0/0/0"].faults = ["500!"]
    outcome = collect("--format", "zarr")
    assert outcome.status == 1
    assert "/10000/TS_1/1.zarr/0/0/0/0" in outcome.message
    folder = Path("out/10000/245/tomogram")
    assert [path.name for path in folder.iterdir()] == ["1.zarr.part"]
    bucket.pages["/10000/TS_1/1.zarr/0/0/0/0"].faults = []
    bucket.bytes_sent.clear()
    outcome = collect("--format", "zarr")
    assert outcome.status == 0, outcome.stderr
    assert list(bucket.bytes_sent) == ["/10000/TS_1/1.zarr/0/0/0/0"]
    found = {path.relative_to(folder / "1.zarr").as_posix() for path in folder.rglob("*") if path.is_file()}
    assert found == set(ZARR)
    assert all((folder / "1.zarr" / key).read_bytes() == body for key, body in ZARR.items())
    sample = read_manifest("out/manifest.csv")[0]
    assert (sample.tomogram, sample.shape) == (folder / "1.zarr", SHAPE)
    bucket.requests.clear()
    assert collect("--format", "zarr").status == 0
    assert bucket.asked("/bucket") == []


def test_ctrl_c_keeps_parts_and_the_same_command_goes_on(published, collect):
    site = published.site
    big = published.deposit("emdb/1/tomogram", "big.mrc", volume(5, (40, 100, 100)))
    published.deposit("emdb/1/target_mask", "mask.mrc", mask(5, (40, 100, 100)))
    big.waits = True
    write_list([["emdb", "1"]], values=("4.0", "(40, 100, 100)"))
    command = [COMMAND, "data", "collect", "--csv", "list.csv", "--output-dir", "out"]
    running = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert big.waiting.wait(60)
    part = Path("out/emdb/1/tomogram/big.mrc.part")
    while part.stat().st_size == 0:  # what was sent is on its way
        assert running.poll() is None
    running.send_signal(signal.SIGINT)
    _, stderr = running.communicate(timeout=30)
    assert running.returncode == 130
    lines = [line for line in stderr.splitlines() if not line.startswith("INFO")]
    assert len(lines) == 1
    assert ".part" in lines[0]
    assert not Path("out/emdb/1/tomogram/big.mrc").exists()
    big.waits = False
    assert collect().status == 0
    assert Path("out/emdb/1/tomogram/big.mrc").read_bytes() == big.body
    assert site.asked(f"/store/{1000 + len(published.files) - 2}")[-1][2].startswith("bytes=")
    assert [path.name for path in Path("out").rglob("*.part*")] == []


# Lists and arguments


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--what", "mask"], "--what"),
        (["--jobs", "0"], "--jobs"),
        (["--format", "tiff"], "tiff"),
        (["--csv", "no.csv"], "no.csv"),
        (["surplus"], "surplus"),
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
        ("dataset_id,run_id\n1,2\n", "split"),
        ("dataset_id,run_id,split\n", "list.csv"),
        ("dataset_id,run_id,split\n../x,2,test\n", "../x"),
        ("dataset_id,run_id,split\n1,2,test\n1,2,test\n", "line 3"),
        ("dataset_id,run_id,split\n1,ts,test\n", "run_id"),
        ("dataset_id,run_id,split,voxel_size\n1,2,test,big\n", "voxel_size"),
    ],
)
def test_a_malformed_list_is_told(work, text, part):
    Path("list.csv").write_text(text)
    with pytest.raises(InputError, match=re.escape(part)):
        read_list(Path("list.csv"))


def test_the_shipped_lists_are_found_by_name_and_know_voxel_sizes_and_shapes(work):
    assert resource_path("data", "testset.csv") == find_list("testset") == find_list("data/testset.csv")
    test = read_list(find_list("testset"))
    assert len(test) == 17
    assert all(row.split == "test" and row.voxel_size_angstrom and row.shape for row in test)
    assert sum(row.on_portal for row in test) == 11
    rows = {row.name: row for row in read_list(find_list("dataset"))}
    assert len(rows) == 128
    assert (rows["10010/12000"].voxel_size_angstrom, rows["10010/12000"].shape) == (28.4, (250, 464, 480))
    assert [row.has_mask for row in read_list(find_list("robustness"))] == [False] * 5
    assert resource_path("data", "polnet_config", "polnet_data_2", "sample_config.yaml").is_file()


def test_without_the_portals_package_the_command_says_what_to_install(published, collect, monkeypatch):
    monkeypatch.setitem(sys.modules, "cryoet_data_portal", None)
    outcome = collect()
    assert outcome.status == 1
    assert "etsam[data]" in outcome.message


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
    assert "10000/245 tomogram" in outcome.message
    assert "tomogram_id" in outcome.message
    assert "denoised" in outcome.message
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
        SimpleNamespace(
            id=number, voxel_spacing=spacing, size_z=shape[0], size_y=shape[1], size_x=shape[2], processing="raw",
            reconstruction_method="WBP", is_visualization_default=shown,
        )
        for number, spacing, shape, shown in entries
    ]  # fmt: skip


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
        ({"voxel_size_angstrom": 5.0}, "5 Å"),
        ({"voxel_size_angstrom": 4.0, "shape": B}, "4 Å, 3 x 20 x 28"),
        ({"tomogram_id": 9}, "tomogram_id 9"),
        ({}, "1 (4 Å, 6 x 40 x 56"),
        ({"shape": B, "if_several": "default"}, "3 x 20 x 28"),
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
    assert "10999" in message
    assert "10001/258 tomogram" in message


def test_a_tomogram_that_the_portal_lost_is_taken_from_dataverse_if_it_has_a_copy(published, collect, caplog):
    del published.runs[0]
    published.deposit("10000/245/tomogram", "copy.mrc", volume(1))
    outcome = collect()
    assert outcome.status == 0
    assert "10000/245 tomogram" in caplog.text
    assert "10000/245/tomogram/copy.mrc" in files()


def test_a_mask_that_is_missing_or_restricted_in_dataverse_is_named(published, collect):
    published.files[2]["restricted"] = True
    del published.files[3]
    message = collect().message
    assert "10000/245 mask" in message
    assert "10001/258/target_mask" in message
    assert "10000/245/target_mask/mask.mrc" not in files()


def test_a_mask_of_another_shape_is_no_row(published, collect):
    published.files.pop(4)
    published.deposit("emdb/4603/target_mask", "mask.mrc", mask(0, (6, 40, 57)))
    message = collect().message
    assert "(6, 40, 57)" in message
    assert NAMES[2] not in [one.name for one in read_manifest("out/manifest.csv")]


# What the servers refuse


def test_without_dataverse_nothing_begins(published, collect):
    published.site.pages[DATASET_PATH].answer = lambda *_: (404, b'{"status":"ERROR","message":"no such dataset"}')
    outcome = collect()
    assert outcome.status == 1
    assert "no such dataset" in outcome.message
    assert files() == []


@pytest.mark.parametrize(
    "answer", [b'{"status":"OK","data":{}}', b"<html>", b"[]", b'{"data":{"latestVersion":{"files":[{}]}}}']
)
def test_an_unknown_answer_of_dataverse_is_told(published, collect, answer):
    published.site.pages[DATASET_PATH].answer = lambda *_: (200, answer)
    assert DATASET_PATH in collect().message


def test_offline_no_server_is_asked(published, collect, monkeypatch):
    monkeypatch.setenv("ETSAM_OFFLINE", "1")
    assert "ETSAM_OFFLINE" in collect().message
    assert published.site.requests == []


def test_a_refusal_of_the_portal_is_told(published, collect):
    refusal = json.dumps({"errors": [{"message": "query too complex"}], "data": None}).encode()
    published.site.pages["/graphql"].answer = lambda *_: (200, refusal)
    assert "query too complex" in collect().message
