"""Specification of `etsam.threads`: threads over slices, and that they change nothing but the time."""

import os
import signal
import subprocess
import sys
import threading
import time

import cc3d
import numpy as np
import pytest
from conftest import write_mrc
from scipy import ndimage
from skimage.morphology import skeletonize

from etsam.errors import ConfigError, InputError
from etsam.evaluation.metrics.normals import angles_to_z, inclination_counts
from etsam.evaluation.metrics.scores import METRICS, Metrics, Scored
from etsam.evaluation.metrics.surface import surface_voxels
from etsam.postprocess import misconnections
from etsam.postprocess.steps import RemoveThinNoise, SeverMisconnections, apply_steps
from etsam.threads import MOST_BY_DEFAULT, in_order, worker_count
from etsam.volume import MrcWriter, read_volume

SHAPE = (17, 45, 62)
NUMBERS = [1, 2]


def blobs(seed, share=0.25, sigma=1.5):
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=SHAPE), sigma)
    return noise > np.quantile(noise, 1 - share)


def ladders():
    """Sheets joined by rungs that move from slice to slice, rough and with specks, (Z, Y, X) uint8."""
    rng = np.random.default_rng(3)
    mask = rng.random(SHAPE) < 0.01
    for z in range(SHAPE[0]):
        for top in (5, 13, 21):
            mask[z, top : top + 3] = True
        for x in rng.integers(0, SHAPE[2] - 3, 4):
            mask[z, 8:13, x : x + 2] = mask[z, 24:30, x : x + 2] = True
    return mask.astype(np.uint8)


def full(slices):
    return np.stack([slices[z] for z in range(slices.shape[0])])


def own_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("slices")]


def straightforward(mask, min_slices, max_bridge_len):
    """Thin noise and misconnections with the whole volume in memory and whole slices, without windows or crops."""
    labels = cc3d.connected_components(mask, connectivity=26)
    spans = [0 if box is None else box[0].stop - box[0].start for box in ndimage.find_objects(labels.astype(np.int32))]
    kept = np.array([False, *(span >= min_slices for span in spans)])[labels]
    for plane in kept:
        skeleton = skeletonize(plane)
        neighbours = ndimage.convolve(skeleton.astype(int), np.ones((3, 3), int), mode="constant") - 1
        junctions = ndimage.label(skeleton & (neighbours >= 3), np.ones((3, 3)))[0]
        segments, count = ndimage.label(skeleton & (neighbours < 3), np.ones((3, 3)))
        rungs = np.zeros(count + 1, bool)
        for number in range(1, count + 1):
            around = ndimage.binary_dilation(segments == number, np.ones((3, 3)))
            touched = set(junctions[around]) - {0}
            rungs[number] = len(touched) >= 2 and (segments == number).sum() <= max_bridge_len
        nearest = ndimage.distance_transform_edt(~skeleton, return_distances=False, return_indices=True)
        plane &= ~rungs[segments][tuple(nearest)]
    return kept


@pytest.mark.parametrize("workers", NUMBERS)
def test_post_processing_is_that_of_the_straightforward_computation(workers):
    mask = ladders()
    expected = straightforward(mask, 3, 5)
    assert 0 < expected.sum() < mask.sum()
    result = apply_steps(mask, [RemoveThinNoise(3), SeverMisconnections(5)], workers=workers)
    np.testing.assert_array_equal(full(result), expected)
    backwards = [result[z] for z in reversed(range(SHAPE[0]))]
    np.testing.assert_array_equal(backwards[::-1], expected)


@pytest.mark.parametrize("workers", NUMBERS)
def test_the_command_gives_the_same_with_any_number_of_workers(etsam, workers):
    write_mrc("mask.mrc", ladders().astype(np.int8))
    outcome = etsam("postprocess", "mask.mrc", "clean.mrc", f"workers={workers}", "--post-process-min-slices", "3")
    assert outcome.status == 0, outcome.stderr
    np.testing.assert_array_equal(read_volume("clean.mrc").read(), straightforward(ladders(), 3, 5))
    assert own_threads() == []


@pytest.mark.parametrize("value", [0, -2, 1.5, "many", True])
def test_a_number_of_workers_that_makes_no_sense_is_refused(etsam, value):
    write_mrc("mask.mrc", ladders().astype(np.int8))
    outcome = etsam("postprocess", "mask.mrc", "clean.mrc", f"workers={str(value).lower()}")
    assert outcome.status == 1
    assert f"workers={str(value).lower()}" in outcome.message
    with pytest.raises(ConfigError, match="workers"):
        Metrics(workers=value)


def test_as_many_workers_as_cores_that_the_process_may_use(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5, 6}, raising=False)
    assert worker_count() == 3
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    assert worker_count() == MOST_BY_DEFAULT
    assert worker_count(64) == 64


@pytest.mark.parametrize("known", [False, True])
def test_all_scores_are_the_same_with_one_worker_and_with_two(known):
    truth, logits = blobs(0).astype(np.uint8), ndimage.gaussian_filter(blobs(1) - 0.3, 1).astype(np.float32)
    if known:
        truth[blobs(2, share=0.1)] = 255
    one, two = (Metrics(METRICS, workers=workers)(truth, Scored(logits, 0.1), (4.0, 3.0, 2.0)) for workers in NUMBERS)
    assert repr((one.metrics, one.planes, one.inclination)) == repr((two.metrics, two.planes, two.inclination))
    assert 0 < one.metrics["cldice"] < 1
    np.testing.assert_array_equal(one.counts, two.counts)


@pytest.mark.parametrize("workers", NUMBERS)
def test_angles_are_those_of_the_gradient_of_the_whole_volume(workers):
    mask, size = blobs(4), (4.0, 3.0, 2.0)
    voxels = surface_voxels(mask)
    smooth = ndimage.gaussian_filter(mask.astype(np.float64), [8 / side for side in size], mode="nearest", truncate=3)
    gradient = np.array(np.gradient(smooth, *size))
    length = np.linalg.norm(gradient, axis=0)
    angle = np.degrees(np.arccos(np.abs(gradient[0]) / length))
    padded = [np.pad(values, 1, constant_values=-1) for values in (length, angle)]
    at = np.column_stack([voxels.z(0, SHAPE[0]), voxels.yx]) + 1
    around = [at + step for step in np.vstack([np.zeros(3, int), np.eye(3, dtype=int), -np.eye(3, dtype=int)])]
    lengths, angles = (np.stack([values[tuple(to.T)] for to in around]) for values in padded)
    expected = angles[lengths.argmax(axis=0), np.arange(len(at))]
    # where two neighbours are equally steep but for rounding, either may be taken
    clear = np.diff(np.sort(lengths, axis=0)[-2:], axis=0)[0] > 1e-6
    assert clear.mean() > 0.9
    np.testing.assert_allclose(angles_to_z(voxels, mask, size, workers=workers)[clear], expected[clear], atol=0.05)


def test_inclination_bins_are_those_of_numpys_histogram():
    angles = np.random.default_rng(0).integers(0, 181, 2000).astype(np.float32) / 2  # many at the edges
    angles[::7] = np.nan
    hits = angles > 33
    edges = [*range(0, 90, 10), 90.001]
    expected = [np.histogram(values, edges)[0] for values in (angles, angles[hits])]
    np.testing.assert_array_equal(inclination_counts(angles, hits), np.transpose(expected))


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_results_come_in_order_and_few_items_are_taken_ahead(workers):
    taken, open_ones = [], []

    def items():
        for number in range(20):
            taken.append(number)
            yield number

    results = []
    for result in in_order(lambda number: number**2, items(), workers):
        results.append(result)
        open_ones.append(len(taken) - len(results))
    assert results == [number**2 for number in range(20)]
    assert max(open_ones) <= workers
    assert own_threads() == []


@pytest.mark.parametrize("workers", NUMBERS)
@pytest.mark.parametrize("where", ["item", "function"])
def test_an_error_is_raised_in_its_place_and_ends_the_threads(workers, where):
    def items():
        for number in range(9):
            if where == "item" and number == 5:
                raise InputError("number 5")
            yield number

    def function(number):
        if where == "function" and number == 5:
            raise InputError("number 5")
        return number

    results = in_order(function, items(), workers)
    assert [next(results) for _ in range(5)] == [0, 1, 2, 3, 4]
    with pytest.raises(InputError, match="number 5"):
        next(results)
    assert own_threads() == []


def test_a_slice_that_cannot_be_read_raises_when_it_is_asked_for():
    mask = ladders().astype(np.int8)
    mask[4, 0, 0] = -1
    result = SeverMisconnections()(mask, workers=2)
    expected = full(SeverMisconnections()(mask[:4], workers=1))
    for z in range(4):
        np.testing.assert_array_equal(result[z], expected[z])
    with pytest.raises(InputError, match="slice 4 of the mask holds the value -1"):
        result[4]
    np.testing.assert_array_equal(result[3], expected[3])
    assert own_threads() == []


def test_a_caller_that_stops_early_leaves_no_threads():
    results = in_order(lambda number: number, iter(range(10**6)), 2)
    assert next(results) == 0
    assert own_threads() != []
    results.close()
    assert own_threads() == []


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_while_threads_are_at_work_ends_them_and_leaves_nothing(etsam, monkeypatch, number, status):
    write_mrc("mask.mrc", ladders().astype(np.int8))
    real, calls = misconnections.sever_misconnections, []

    def sever(plane, *lengths):
        calls.append(plane)
        if len(calls) == 4:
            # until the caller has read ahead and waits for this one: a signal between the opening of a file and its
            # `with` leaves that file to the garbage collector, which warns
            time.sleep(0.2)
            os.kill(os.getpid(), number)
        return real(plane, *lengths)

    monkeypatch.setattr("etsam.postprocess.steps.sever_misconnections", sever)
    outcome = etsam("postprocess", "mask.mrc", "clean.mrc", "workers=2")
    assert outcome.status == status
    assert outcome.message.startswith(("interrupted", "told to stop"))
    assert len(calls) < SHAPE[0]
    assert sorted(os.listdir()) == ["mask.mrc"]
    assert own_threads() == []


POSTPROCESS = """
import sys
from pathlib import Path
from etsam.postprocess.steps import RemoveThinNoise, SeverMisconnections
from etsam.postprocess.steps import postprocess_file
from etsam.prediction.record import peak_memory_mb
steps = [RemoveThinNoise(3), SeverMisconnections()]
postprocess_file(Path(sys.argv[1]), Path(sys.argv[2]), steps, overwrite=True, workers=int(sys.argv[3]))
print(peak_memory_mb()["ram"])
"""


@pytest.mark.parametrize("workers", NUMBERS)
def test_peak_memory_of_post_processing_does_not_follow_the_number_of_slices(tmp_path, workers):
    side, few, many = (480, 512), 20, 140
    y, x = np.indices(side, dtype=np.float32)
    peaks = []
    for slices in (few, many):
        with MrcWriter(tmp_path / "mask.mrc", (slices, *side), np.int8, overwrite=True) as writer:
            for z in range(slices):
                writer[z] = abs((y + 0.5 * z + 15 * np.sin(x / 40)) % 64 - 32) < 2
        command = [sys.executable, "-c", POSTPROCESS, tmp_path / "mask.mrc", tmp_path / "out.mrc", str(workers)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        peaks.append(float(done.stdout))
    assert peaks[1] - peaks[0] < 0.1 * (many - few) * side[0] * side[1] / 1e6  # a tenth of the mask, a byte a voxel
