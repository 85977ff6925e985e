"""Named weights: where they are looked for, `etsam weights`, and downloads that happen only when they are asked for."""

import hashlib
import json
import socket
from pathlib import Path

import pytest
import torch

from etsam.app import compose_config
from etsam.download import record_path
from etsam.errors import CheckpointError, ConfigError, DownloadError
from etsam.network.build import build_network, build_tracker
from etsam.weights import registry
from etsam.weights.registry import REGISTRY, StageWeights, weights_folder
from etsam.weights.store import ensure_weights, fetch_weights, original_url, with_automatic_weights

STAGES = ["etsam_stage1_v1.pt", "etsam_stage2_v1.pt"]
RECORD = "/api/records/17571925"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch, no_pauses):
    """A cache of our own, an empty current folder, no weights beside the program, and no address but the test's."""
    monkeypatch.setattr(registry, "resource_paths", lambda *parts: [])
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("ETSAM_ZENODO_URL", "http://127.0.0.1:9")
    for name in ("ETSAM_CHECKPOINT_DIR", "ETSAM_WEIGHTS_MIRRORS", "ETSAM_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "cache" / "etsam"


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Weights of the toy network, as the published files hold them: bytes by name."""
    tmp_path = tmp_path_factory.mktemp("toy")
    bodies = {}
    for seed, name in enumerate(STAGES):
        torch.manual_seed(seed)
        network = build_network(compose_config("predict", ["net=tiny_test"]).net)
        torch.save({"model": network.state_dict()}, tmp_path / "made.pt")
        bodies[name] = (tmp_path / "made.pt").read_bytes()
    return bodies


@pytest.fixture
def zenodo(site, checkpoints, monkeypatch):
    """Record 17571925 as Zenodo's REST API describes it, with both files."""
    monkeypatch.setenv("ETSAM_ZENODO_URL", site.url)
    for name, body in checkpoints.items():
        site.add(f"/records/17571925/files/{name}", body)
    describe(site, checkpoints)
    return site


def describe(site, bodies):
    entries = [
        {
            "id": f"id-{name}",
            "key": name,
            "size": len(body),
            "checksum": f"md5:{hashlib.md5(body).hexdigest()}",
            "links": {"self": f"{site.url}{RECORD}/files/{name}/content"},
        }
        for name, body in bodies.items()
    ]
    site.add(RECORD, json.dumps({"id": 17571925, "files": entries}).encode(), kind="application/json")


def put(folder, name, body=b"weights"):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(body)
    return folder / name


def test_downloads_go_to_the_users_cache_or_where_the_environment_says(cache, monkeypatch, tmp_path):
    assert weights_folder() == cache
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # to be ignored, says the XDG specification
    assert weights_folder() == Path("~/.cache/etsam").expanduser()
    monkeypatch.setenv("ETSAM_CHECKPOINT_DIR", str(tmp_path / "mine"))
    assert weights_folder() == tmp_path / "mine"


@pytest.mark.parametrize(
    ("name", "file_name"),
    [
        ("sam2.1_hiera_base_plus", "sam2.1_hiera_base_plus.pt"),
        ("sam2.1_hiera_tiny.pt", "sam2.1_hiera_tiny.pt"),
        ("etsam_stage1_v1", "etsam_stage1_v1.pt"),
        ("checkpoints/etsam_stage2_v1.pt", "etsam_stage2_v1.pt"),
        ("nano_stage1", "nano_stage1.safetensors"),
    ],
)
def test_a_name_finds_its_file_in_the_cache_and_in_checkpoints(cache, name, file_name):
    in_cache = put(cache, file_name)
    assert StageWeights.resolve(name).path == in_cache
    put(Path("checkpoints"), file_name)
    assert StageWeights.resolve(name).path.resolve() == Path("checkpoints", file_name).resolve()


def test_weights_that_come_with_the_program_are_found_last(cache, monkeypatch, tmp_path):
    shipped = put(tmp_path / "program" / "checkpoints", "nano_stage1.safetensors")
    monkeypatch.setattr(registry, "resource_paths", lambda *parts: [tmp_path.joinpath("program", *parts)])
    assert StageWeights.resolve("checkpoints/nano_stage1.safetensors").path == shipped
    in_cache = put(cache, "nano_stage1.safetensors")
    assert StageWeights.resolve("nano_stage1").path == in_cache


def test_a_path_is_taken_as_given_and_never_for_another_file_of_that_name(cache):
    put(cache, "etsam_stage1_v1.pt")
    mine = put(Path("mine"), "etsam_stage1_v1.pt")
    assert StageWeights.resolve(str(mine)).path == mine
    with pytest.raises(CheckpointError, match=r"other/etsam_stage1_v1\.pt"):
        StageWeights.resolve("other/etsam_stage1_v1.pt")
    assert StageWeights.resolve(None, 3) == StageWeights(None, 3)


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("sam2.1_hiera_large", "etsam weights download sam2.1_hiera_large"),
        ("checkpoints/etsam_stage1_v1.pt", "etsam weights download etsam_v1"),
        ("etsam_v1", "etsam_stage2_v1"),
        ("nano_stage1", "weights=etsam_v1"),
        ("sam2_large", "sam2.1_hiera_tiny"),
    ],
)
def test_what_is_not_there_is_told_with_the_way_to_get_it(cache, name, part):
    with pytest.raises(CheckpointError) as caught:
        StageWeights.resolve(name)
    assert part in str(caught.value)


def test_training_may_start_from_a_name(cache, checkpoints):
    put(cache, "sam2.1_hiera_base_plus.pt", checkpoints[STAGES[0]])
    cfg = compose_config("train", ["net=tiny_test", "start=sam2.1_hiera_base_plus", "name=x"])
    tracker = build_tracker(cfg.net, cfg.stage.tracker.checkpoint, seed=5)
    expected = torch.load(cache / "sam2.1_hiera_base_plus.pt", weights_only=True)["model"]
    found = {key.removeprefix("network."): value for key, value in tracker.state_dict().items()}
    assert set(found) == set(expected)
    assert all(torch.equal(found[key], value) for key, value in expected.items())


def test_prediction_does_not_download_unasked(refused, tomogram, zenodo):
    message = refused("tomo.mrc", "--weights", "etsam_v1")
    assert "`etsam weights download etsam_v1`" in message
    assert "weights.download=true" in message
    assert zenodo.requests == []


def test_prediction_downloads_when_it_is_asked_to(predict, tomogram, zenodo, cache):
    outcome = predict("tomo.mrc", "--weights", "etsam_v1", "weights.download=true")
    assert outcome.status == 0, outcome.stderr
    assert [path.name for path in sorted(cache.glob("*.pt"))] == STAGES
    record = json.loads(Path("out/tomo_etsam_predicted_record.json").read_text())
    digest = hashlib.sha256((cache / STAGES[1]).read_bytes()).hexdigest()
    assert record["settings"]["weights"]["stage2"] == {"name": STAGES[1], "sha256": digest}
    zenodo.requests.clear()
    assert predict("tomo.mrc", "--weights", "etsam_v1", "--overwrite").status == 0
    assert zenodo.requests == []


def test_the_switch_is_true_or_false_and_for_named_weights_only():
    with pytest.raises(ConfigError, match=r"weights\.download=yes"):
        ensure_weights({"name": "etsam_v1", "download": "yes"})
    with pytest.raises(ConfigError, match="weights=files"):
        ensure_weights({"name": "files", "download": True})
    ensure_weights({"name": "nano (random)"})


def test_a_download_is_verified_recorded_and_done_once(etsam, zenodo, cache, checkpoints):
    assert etsam("weights", "download", "etsam_v1").status == 0
    for name, body in checkpoints.items():
        assert (cache / name).read_bytes() == body
        record = json.loads(record_path(cache / name).read_text())
        assert record["checksums"] == {"md5": hashlib.md5(body).hexdigest(), "sha256": hashlib.sha256(body).hexdigest()}
        assert record["url"] == f"{zenodo.url}/records/17571925/files/{name}?download=1"
    zenodo.requests.clear()
    assert etsam("weights", "download", "etsam_v1").status == 0
    assert zenodo.requests == []


def test_a_download_that_zenodo_describes_otherwise_is_refused(etsam, zenodo, cache, checkpoints):
    changed = checkpoints[STAGES[1]][:-1] + b"?"
    zenodo.pages[f"/records/17571925/files/{STAGES[1]}"].body = changed
    outcome = etsam("weights", "download", "etsam_v1")
    assert outcome.status == 1
    assert f"{STAGES[1]}?download=1" in outcome.message
    assert sorted(path.name for path in cache.iterdir()) == [STAGES[0], f"{STAGES[0]}.download.json"]


def test_without_zenodos_list_the_download_is_recorded_and_checked_from_then_on(zenodo, cache, caplog, checkpoints):
    del zenodo.pages[RECORD]
    fetch_weights(["etsam_v1"])
    assert RECORD in caplog.text
    (cache / STAGES[0]).unlink()  # its record stays
    zenodo.pages[f"/records/17571925/files/{STAGES[0]}"].body = checkpoints[STAGES[1]]
    with pytest.raises(DownloadError, match=hashlib.sha256(checkpoints[STAGES[1]]).hexdigest()):
        fetch_weights(["etsam_v1"])


@pytest.mark.parametrize("body", [b"[]", b'{"files": [{}]}', b'{"files": 3}', b"{}"])
def test_an_unknown_answer_of_zenodo_is_no_obstacle(zenodo, cache, body):
    zenodo.pages[RECORD].body = body
    assert [path.name for path in fetch_weights(["etsam_v1"])] == STAGES


def test_weights_that_changed_after_the_download_are_refused(zenodo, cache, etsam):
    fetch_weights(["etsam_v1"])
    path = cache / STAGES[0]
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(CheckpointError, match=STAGES[0]):
        StageWeights.resolve("etsam_stage1_v1")
    assert StageWeights.resolve("etsam_stage2_v1").path == cache / STAGES[1]


def test_mirrors_come_first_and_the_original_last(site, cache, monkeypatch, checkpoints):
    second = site.add("/second", b"")
    for name, body in checkpoints.items():
        site.add(f"/second/{name}", body)
    monkeypatch.setenv("ETSAM_WEIGHTS_MIRRORS", f"{second}/")
    monkeypatch.setenv("ETSAM_ZENODO_URL", f"{site.url}/zenodo")
    fetch_weights(["etsam_v1"], mirrors=[f"{site.url}/first"])
    asked = [path for _, path, _ in site.requests if path.endswith(STAGES[0])]
    assert asked == [f"/first/{STAGES[0]}", f"/second/{STAGES[0]}"]
    assert (cache / STAGES[0]).read_bytes() == checkpoints[STAGES[0]]


def test_a_mirror_may_be_named_on_the_command_line_or_in_the_config(etsam, predict, tomogram, site, cache, checkpoints):
    for name, body in {**checkpoints, "sam2.1_hiera_tiny.pt": b"tiny"}.items():
        site.add(f"/m/{name}", body)
    assert etsam("weights", "download", "sam2.1_hiera_tiny", "--mirror", f"{site.url}/m").status == 0
    assert (cache / "sam2.1_hiera_tiny.pt").read_bytes() == b"tiny"
    mirror = f"weights.mirrors=[{site.url}/m]"
    outcome = predict("tomo.mrc", "--weights", "etsam_v1", "weights.download=true", mirror)
    assert outcome.status == 0, outcome.stderr


def test_offline_nothing_is_asked(etsam, zenodo, monkeypatch):
    outcome = etsam("weights", "download", "etsam_v1", "--offline")
    assert outcome.status == 1
    assert all(name in outcome.stderr for name in STAGES)
    monkeypatch.setenv("ETSAM_OFFLINE", "1")
    assert etsam("weights", "download", "etsam_v1").message == outcome.message
    assert zenodo.requests == []


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["download"], "NAME"),
        (["download", "etsam_v2"], "etsam_v2"),
        (["download", "nano"], "nano"),
        (["verify", "etsam_v1"], "not as downloaded"),
        (["remove"], "remove"),
    ],
)
def test_what_does_not_fit_is_refused(etsam, arguments, part):
    outcome = etsam("weights", *arguments)
    assert outcome.status == 1
    assert part in outcome.message


def told(capsys, *arguments):
    """What `etsam weights ...` prints, line by line, cut at blanks; and its status."""
    from etsam.cli.main import main

    capsys.readouterr()
    status = 0
    try:
        main(["weights", *arguments])
    except SystemExit as end:
        status = end.code
    return status, [line.split() for line in capsys.readouterr().out.splitlines()]


def test_the_list_names_every_file_and_its_place(capsys, cache):
    path = put(cache, "sam2.1_hiera_small.pt")
    status, lines = told(capsys, "list")
    assert status == 0
    rows = {line[0]: line for line in lines[1 : 1 + len(REGISTRY)]}
    assert list(rows) == list(REGISTRY)
    assert [not REGISTRY[name].page for name in rows] == sorted((not w.page for w in REGISTRY.values()), reverse=True)
    assert rows["sam2.1_hiera_small"][-2:] == ["here", str(path.parent)]
    assert rows["sam2.1_hiera_small"][-5:-3] == ["7", "bytes"]
    assert rows["sam2.1_hiera_large"][-3:] == ["not", "here", str(cache)]
    missing = [line[0] for line in lines[1 + len(REGISTRY) :] if len(line) == 1]
    assert missing[0].endswith(f"{STAGES[0]}?download=1")
    assert not any(address.endswith(path.name) for address in missing)


def test_verify_reads_every_file_that_is_there(capsys, zenodo, cache, checkpoints):
    fetch_weights(["etsam_v1"])
    put(cache, "sam2.1_hiera_small.pt")
    status, lines = told(capsys, "verify")
    states = {line[0]: line[1:] for line in lines[1:]}
    assert status == 0
    assert states[STAGES[0]][:2] == ["verified", hashlib.sha256(checkpoints[STAGES[0]]).hexdigest()]
    assert states["sam2.1_hiera_small.pt"][:2] == ["no", "record"]
    assert "sam2.1_hiera_large.pt" not in states
    assert "sam2.1_hiera_large" in next(line for line in lines if line[:2] == ["not", "here:"])
    (cache / STAGES[1]).write_bytes(b"other")
    status, lines = told(capsys, "verify", "etsam_v1")
    assert status == 1
    assert [line[1] for line in lines[1:3]] == ["verified", "changed"]


def test_verify_of_nothing_and_of_half_is_no_success(etsam, cache):
    assert etsam("weights", "verify").status == 1
    put(cache, STAGES[0])
    outcome = etsam("weights", "verify")
    assert outcome.status == 1
    assert f"{STAGES[1]} (missing)" in outcome.stderr


def test_without_network_one_try_says_which_file_goes_where(etsam, cache, monkeypatch):
    asked = []

    def unresolved(*address, **_):
        asked.append(address[0])
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unresolved)
    monkeypatch.setenv("ETSAM_ZENODO_URL", "http://nowhere.invalid")
    outcome = etsam("weights", "download", "etsam_v1")
    assert outcome.status == 1
    assert asked == ["nowhere.invalid"]
    assert str(cache) in outcome.message
    told = [line.strip() for line in outcome.stderr.splitlines()]
    assert told[-2:] == [f"http://nowhere.invalid/records/17571925/files/{name}?download=1" for name in STAGES]
    assert etsam("weights", "download", "etsam_v1", "--offline").message == outcome.message


def test_automatic_weights_are_the_published_ones_once_both_files_are_there(cache):
    def chosen(*settings):
        return with_automatic_weights(settings)

    assert chosen("views=2") == ["views=2"]
    put(cache, STAGES[0])
    assert chosen() == []
    put(cache, STAGES[1])
    published = ["weights=etsam_v1", "+weights.asked=auto"]
    assert chosen() == published
    assert chosen("views=2") == [*published, "views=2"]
    assert chosen("--multirun", "weights=auto", "views=2,4") == ["--multirun", *published, "views=2,4"]
    for own in ("weights=nano", "net=tiny_test", "weights.stage1=mine.pt"):
        assert chosen(own) == [own]


def test_automatic_weights_bring_their_network_and_normalisation(cache):
    embedded = compose_config("predict", with_automatic_weights([]))
    assert (embedded.weights.name, embedded.weights.asked) == ("nano", "auto")
    for name in STAGES:
        put(cache, name)
    found = compose_config("predict", with_automatic_weights(["normalize=softplus_minmax"]))
    assert (found.weights.name, found.weights.asked, found.net.image_size) == ("etsam_v1", "auto", 1024)
    assert found.normalize._target_.endswith("SoftplusMinMax")


def test_the_published_addresses_are_those_of_the_registry(monkeypatch):
    monkeypatch.delenv("ETSAM_ZENODO_URL")
    urls = [
        original_url(weights, file_name) for weights in REGISTRY.values() if weights.page for file_name in weights.files
    ]
    assert urls == [
        "https://zenodo.org/records/17571925/files/etsam_stage1_v1.pt?download=1",
        "https://zenodo.org/records/17571925/files/etsam_stage2_v1.pt?download=1",
        *(
            f"https://dl.fbaipublicfiles.com/segment_anything_2/092824/sam2.1_hiera_{size}.pt"
            for size in ("tiny", "small", "base_plus", "large")
        ),
    ]
