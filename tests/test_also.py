"""Several reconstructions or half maps of one tomogram: each normalised by itself, logits averaged."""

import json
import os

import numpy as np
import pytest
from conftest import write_mrc

from etsam import segment
from etsam.errors import InputError, OutputError
from etsam.volume import read_volume

SHAPE = (7, 14, 19)
COMMAND = ("predict", "--weights", "random", "-o", "out", "net=tiny_voxel_test", "trainer=cpu", "write_preview=false")
SETTINGS = ["weights=random", "net=tiny_voxel_test"]


@pytest.fixture(scope="module")
def halves():
    random = np.random.default_rng(0)
    common = random.normal(0, 1, SHAPE)
    common[:, 6:9] -= 3
    return [(common + random.normal(0, 1, SHAPE)).astype(np.float32) for _ in range(2)]


def logits_of(work, name):
    return read_volume(work / f"out/{name}_etsam_predicted_logits.mrc").read()


def test_logits_of_all_inputs_are_averaged_each_with_its_own_grey_values(halves):
    alone = [segment(one, overrides=SETTINGS, device="cpu").logits.clip(-10, 10) for one in halves]
    scaled = halves[1] * 40 - 7
    both = segment(halves[0], also=[scaled], overrides=SETTINGS, device="cpu").logits
    np.testing.assert_allclose(both, (alone[0] + alone[1]) / 2, atol=0.02)
    assert np.abs(both - alone[0]).max() > 0.1


def test_the_command_takes_the_other_half_map_and_keeps_it_in_the_record(etsam, work, halves):
    for name, half in zip(("t_EVN", "t_ODD"), halves, strict=True):
        write_mrc(work / f"{name}.mrc", half)
    done = etsam(*COMMAND, "t_EVN.mrc", "--also", "t_ODD.mrc", "--store-logits")
    assert done.status == 0, done.stderr
    expected = segment(work / "t_EVN.mrc", also=[work / "t_ODD.mrc"], overrides=SETTINGS, device="cpu").logits
    np.testing.assert_array_equal(logits_of(work, "t_EVN"), expected)
    record = json.loads((work / "out/t_EVN_etsam_predicted_record.json").read_text(encoding="utf-8"))
    (other,) = record["input"]["also"]
    assert other["path"] == str(work / "t_ODD.mrc")
    assert other["fingerprint"] != record["input"]["fingerprint"]
    assert record["settings"]["also"] == [str(work / "t_ODD.mrc")]
    resumed = [*COMMAND, "t_EVN.mrc", "--store-logits", "--resume"]
    assert etsam(*resumed, "--also", "t_ODD.mrc").status == 0
    assert "(also)" in etsam(*resumed, "--force").stderr
    write_mrc(work / "t_ODD.mrc", halves[1] + 1)
    os.utime(work / "t_ODD.mrc", (1, 1))
    changed = etsam(*resumed, "--also", "t_ODD.mrc")
    assert changed.status == 1
    assert "t_ODD.mrc, which has changed" in changed.stderr


def test_another_shape_itself_and_several_tomograms_are_refused(etsam, work, halves):
    write_mrc(work / "a.mrc", halves[0])
    write_mrc(work / "b.mrc", halves[1][:, :-1])
    write_mrc(work / "c.mrc", halves[1])
    other = etsam(*COMMAND, "a.mrc", "--also", "b.mrc").stderr
    assert "b.mrc" in other
    assert "a.mrc" in other
    assert "--also a.mrc" in etsam(*COMMAND, "a.mrc", "--also", "a.mrc").stderr
    assert "--also c.mrc" in etsam(*COMMAND, "a.mrc", "b.mrc", "--also", "c.mrc").stderr
    assert not (work / "out").exists()
    with pytest.raises(InputError, match="also"):
        segment(halves[0], also=[halves[1][:, :-1]], overrides=SETTINGS, device="cpu")


def test_a_mask_and_the_same_file_twice_are_refused(etsam, work, halves):
    write_mrc(work / "t.mrc", halves[0])
    write_mrc(work / "of_t.mrc", (halves[0] < -2).astype(np.int8))
    assert "of_t.mrc" in etsam(*COMMAND, "t.mrc", "--also", "of_t.mrc").stderr
    write_mrc(work / "other.mrc", halves[1])
    twice = etsam(*COMMAND, "t.mrc", "--also", "other.mrc", "--also", "other.mrc")
    assert twice.status == 1
    assert "--also other.mrc" in twice.stderr
    os.symlink("t.mrc", work / "link.mrc")
    assert etsam(*COMMAND, "t.mrc", "--also", "link.mrc").status == 1


def test_no_input_is_overwritten(work, halves):
    for name, half in zip(("a", "b"), halves, strict=True):
        write_mrc(work / f"{name}.mrc", half)
    before = (work / "b.mrc").read_bytes()
    with pytest.raises(OutputError, match=r"b\.mrc"):
        segment(work / "a.mrc", also="b.mrc", output_path="b.mrc", overwrite=True, overrides=SETTINGS, device="cpu")
    assert (work / "b.mrc").read_bytes() == before


def test_where_the_first_is_padded_there_is_no_membrane(halves):
    first, other = (np.pad(one, ((1, 2), (0, 0), (0, 0))) for one in halves)
    other[0] = other[4]
    found = segment(first, also=[other], overrides=SETTINGS, device="cpu").logits
    assert (found[0] == -32).all()
    inner = segment(halves[0], also=[halves[1]], overrides=SETTINGS, device="cpu").logits
    assert np.corrcoef(found[1:-2].ravel(), inner.ravel())[0, 1] > 0.8
