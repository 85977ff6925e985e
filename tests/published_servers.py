"""Dataverse and the CryoET Data Portal, in the forms that they document, on one server; lists of what they hold."""

import csv
import functools
import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pytest
from conftest import SHAPE, write_mrc

pytest.importorskip("cryoet_data_portal")
import gql.client  # a part of the portal's client

DATASET_PATH = "/api/datasets/:persistentId/"
NAMES = ["10000/245", "10001/258", "emdb/4603", "polnet_data_1/polnet_data_1_generation_4"]
SPLITS = ["train", "test", "test", "train"]

# The client builds the portal's schema anew for every address, half a second each time; here it builds it once.
parse_once = functools.cache(gql.client.parse)
build_schema, schemas = gql.client.build_ast_schema, {}


def build_schema_once(tree):
    if id(tree) not in schemas:  # parse_once keeps the tree, so that its id stays
        schemas[id(tree)] = build_schema(tree)
    return schemas[id(tree)]


class Published:
    """The two servers on one: MRC files, Dataverse's list of them, the portal's GraphQL answers."""

    def __init__(self, site, folder):
        self.site, self.folder = site, folder
        self.files, self.runs, self.tomograms = [], [], []
        site.add(DATASET_PATH, answer=self.dataset, kind="application/json")
        site.add("/graphql", answer=self.graphql, kind="application/json")

    def body(self, data):
        return write_mrc(self.folder / "made.mrc", data).read_bytes()

    def deposit(self, folder, name, data, **more):
        """Put a volume into Dataverse; the entry has the form of its native interface."""
        body = data if isinstance(data, bytes) else self.body(data)
        number = 1000 + len(self.files)
        md5 = hashlib.md5(body).hexdigest()
        self.site.add(f"/store/{number}", body, etag=None)
        path = f"/api/access/datafile/{number}"
        self.site.add(path, redirect=f"{self.site.url}/store/{number}")  # as with S3 storage
        self.files.append(
            {
                "label": name, "restricted": False, "directoryLabel": folder, "version": 1, "datasetVersionId": 7,
                "dataFile": {
                    "id": number, "persistentId": "", "filename": name, "contentType": "application/octet-stream",
                    "filesize": len(body), "storageIdentifier": f"s3://x:{number}", "rootDataFileId": -1, "md5": md5,
                    "checksum": {"type": "MD5", "value": md5}, **more,
                },
            }
        )  # fmt: skip
        return self.site.pages[f"/store/{number}"]

    def dataset(self, query, _):
        if query != {"persistentId": "doi:10.7910/DVN/K4JKCW"}:
            return 404, b'{"status":"ERROR","message":"not found"}'
        version = {"id": 7, "versionNumber": 1, "versionState": "RELEASED", "files": self.files}
        return 200, json.dumps({"status": "OK", "data": {"id": 3, "latestVersion": version}}).encode()

    def reconstruct(self, dataset, run, number, data, *, name="TS_1", spacing=4.0, **more):
        """Put a tomogram on the portal; the fields are those of its GraphQL schema."""
        body = self.body(data)
        base = f"{self.site.url}/{dataset}/{name}"
        z, y, x = data.shape
        self.site.add(f"/{dataset}/{name}/{number}.mrc", body)
        if not any(known["id"] == run for known in self.runs):
            self.runs.append({"id": run, "datasetId": dataset, "name": name, "s3Prefix": "", "httpsPrefix": base})
        self.tomograms.append(
            {
                "id": number, "runId": run, "name": name, "sizeX": x, "sizeY": y, "sizeZ": z, "voxelSpacing": spacing,
                "reconstructionMethod": "WBP", "processing": "raw", "isVisualizationDefault": False,
                "httpsMrcFile": f"{base}/{number}.mrc", "s3MrcFile": f"s3://bucket/{dataset}/{name}/{number}.mrc",
                "httpsOmezarrDir": f"{base}/{number}.zarr", "s3OmezarrDir": f"s3://bucket/{dataset}/{name}/{number}.zarr",
                "depositionId": 1, **more,
            }
        )  # fmt: skip
        return self.site.pages[f"/{dataset}/{name}/{number}.mrc"]

    def graphql(self, _, sent):
        query = json.loads(sent)["query"]
        root, field = re.search(r"(runs|tomograms)\(where: \{\s*(id|runId):", query).groups()
        numbers = {int(text) for text in re.search(r"_in: \[([\d, ]*)\]", query)[1].split(",")}
        entries = self.runs if root == "runs" else self.tomograms
        asked = re.findall(r"^\s+(\w+)$", query, re.MULTILINE)
        found = [{name: entry.get(name) for name in asked} for entry in entries if entry[field] in numbers]
        return 200, json.dumps({"data": {root: found}}).encode()


def volume(seed, shape=SHAPE):
    return np.random.default_rng(seed).normal(0, 1, shape).astype(np.float32)


def mask(seed, shape=SHAPE):
    return np.random.default_rng(seed).integers(0, 2, shape).astype(np.int8)


def write_list(rows, name="list.csv", columns=("voxel_size", "shape"), values=("4.0", str(SHAPE))):
    with open(name, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["dataset_id", "run_id", "split", "organism_name", *columns])
        for row, split in zip(rows, SPLITS, strict=False):
            writer.writerow([*row, split, "Homo sapiens", *values])


def publish(site, folder, monkeypatch):
    """Put the four tomograms and masks of NAMES on a server, name it to the program, and write `list.csv`."""
    monkeypatch.setattr(gql.client, "parse", parse_once)
    monkeypatch.setattr(gql.client, "build_ast_schema", build_schema_once)
    monkeypatch.setenv("ETSAM_DATAVERSE_URL", site.url)
    monkeypatch.setenv("ETSAM_PORTAL_URL", f"{site.url}/graphql")
    servers = Published(site, folder)
    servers.reconstruct(10000, 245, 1, volume(1))
    servers.reconstruct(10001, 258, 2, volume(2), name="TS_2")
    servers.deposit("emdb/4603/tomogram", "emd.map", volume(3))
    servers.deposit("polnet_data_1/polnet_data_1_generation_4/tomogram", "tomo_4.mrc", volume(4))
    for number, name in enumerate(NAMES):
        servers.deposit(f"{name}/target_mask", "mask.mrc", mask(number))
    write_list([name.split("/") for name in NAMES])
    return servers


def files():
    """Names of the files below `out`, without the records of their downloads."""
    found = sorted(path.relative_to("out").as_posix() for path in Path("out").rglob("*") if path.is_file())
    return [name for name in found if not name.endswith(".download.json")]
