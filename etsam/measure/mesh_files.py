"""Meshes as files: vertices (x, y, z) in Å with the tomogram's origin, and values at them where the format has any."""

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import trimesh
from matplotlib import colormaps

from etsam.errors import ConfigError
from etsam.measure.deposition import require_sff
from etsam.measure.mesh import Mesh

FORMATS = ("ply", "obj", "stl", "glb", "vtp")
"""A file for each membrane."""
SEGMENTATION_FORMATS = ("sff",)
"""One file for all of them."""
_COLOURED_BY = "mean_curvature_per_nm"  # where a format has colours and no values


def check_formats(names: Sequence[str]) -> tuple[str, ...]:
    """Formats as they are named; ConfigError for any other, or where its library is missing."""
    allowed = FORMATS + SEGMENTATION_FORMATS
    unknown = [name for name in names if name not in allowed]
    if unknown:
        raise ConfigError(f"--mesh-format {unknown[0]} is unknown; allowed are {', '.join(allowed)}.")
    if "sff" in names:
        require_sff()
    return tuple(dict.fromkeys(names))


def write_mesh(
    path: Path,
    kind: str,
    mesh: Mesh,
    values: Mapping[str, np.ndarray],
    voxel_angstrom: float,
    origin_angstrom: Sequence[float],
) -> None:
    """Write one membrane.

    Parameters
    ----------
    path
        Written as it is; the name decides nothing.
    kind
        One of `FORMATS`. STL has no values; GLB has them as attributes `_NAME`; OBJ has colours by mean curvature.
    mesh
        In voxels.
    values
        Name -> (V,) numbers; what is not finite becomes 0 in GLB, which allows no other.
    voxel_angstrom
        Side of a voxel.
    origin_angstrom
        (z, y, x) of the tomogram.
    """
    # (z, y, x) -> (x, y, z) is a reflection: the triangles turn round with it, and still face outwards
    vertices = (mesh.vertices * voxel_angstrom + np.asarray(origin_angstrom))[:, ::-1]
    faces, normals = mesh.faces[:, ::-1], mesh.normals[:, ::-1]
    plain = {name: np.asarray(value, np.float32) for name, value in values.items()}
    if kind == "vtp":
        path.write_bytes(_vtp(vertices, faces, normals, plain))
        return
    if kind == "glb":
        plain = {f"_{name.upper()}": np.where(np.isfinite(value), value, 0) for name, value in plain.items()}
    colours = _colours(plain[_COLOURED_BY]) if kind == "obj" and _COLOURED_BY in plain else None
    body = trimesh.Trimesh(vertices, faces, vertex_normals=normals, vertex_colors=colours, process=False)
    if kind in ("ply", "glb"):
        body.vertex_attributes.update(plain)
    with path.open("wb") as file:
        body.export(file, file_type=kind)


def _colours(values: np.ndarray) -> np.ndarray:
    """(V, 4) uint8: blue below 0, white, red above."""
    largest = max(float(np.percentile(np.abs(values), 98)), 1e-9)
    found: np.ndarray = (255 * colormaps["coolwarm"](values / (2 * largest) + 0.5)).astype(np.uint8)
    return found


def _vtp(vertices: np.ndarray, faces: np.ndarray, normals: np.ndarray, values: Mapping[str, np.ndarray]) -> bytes:
    """PolyData of VTK (XML, binary in base64), which ParaView and PyVista open."""

    def array(name: str, data: np.ndarray, kind: str) -> str:
        raw = np.ascontiguousarray(data, {"Float32": "<f4", "Int64": "<i8"}[kind]).tobytes()
        text = base64.b64encode(np.array([len(raw)], "<u8").tobytes() + raw).decode("ascii")
        parts = f' NumberOfComponents="{data.shape[1]}"' if data.ndim == 2 else ""
        return f'<DataArray type="{kind}" Name="{name}"{parts} format="binary">{text}</DataArray>\n'

    scalars = "".join(array(name, value, "Float32") for name, value in values.items())
    text = (
        '<?xml version="1.0"?>\n'
        '<VTKFile type="PolyData" version="1.0" byte_order="LittleEndian" header_type="UInt64">\n'
        f'<PolyData><Piece NumberOfPoints="{len(vertices)}" NumberOfPolys="{len(faces)}">\n'
        f'<PointData Normals="normals">\n{array("normals", normals, "Float32")}{scalars}</PointData>\n'
        f"<Points>\n{array('points', vertices, 'Float32')}</Points>\n"
        f"<Polys>\n{array('connectivity', faces.ravel(), 'Int64')}"
        f"{array('offsets', 3 * np.arange(1, len(faces) + 1), 'Int64')}</Polys>\n"
        "</Piece></PolyData></VTKFile>\n"
    )
    return text.encode("ascii")
