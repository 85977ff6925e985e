"""Meshes as files: vertices (x, y, z) in Å with the tomogram's origin, values and colours where the format has any."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import trimesh
from matplotlib import colormaps
from matplotlib.colors import to_hex

from etsam.errors import ConfigError
from etsam.measure.colours import colour_of
from etsam.measure.deposition import require_sff
from etsam.measure.mesh import Mesh

FORMATS = ("ply", "obj", "stl", "glb", "vtp")
"""A file for each membrane."""
SEGMENTATION_FORMATS = ("sff",)
"""One file for all of them."""
_UNKNOWN = (0.6, 0.6, 0.6, 1.0)  # grey: no value there


@dataclass(frozen=True)
class ColourScale:
    """Colours of a value, the same for all tomograms, so that they can be compared.

    Attributes
    ----------
    palette
        Of matplotlib, safe for all colour visions.
    low, high
        Values of its first and last colour.
    unit
        Of the value.
    """

    palette: str
    low: float
    high: float
    unit: str

    def colours(self, values: np.ndarray) -> np.ndarray:
        """(V, 4) uint8 of (V,) values; grey where a value is not finite."""
        place = (np.asarray(values, np.float64) - self.low) / (self.high - self.low)
        shown = colormaps[self.palette].with_extremes(bad=_UNKNOWN)(np.ma.masked_invalid(place))
        found: np.ndarray = np.rint(255 * shown).astype(np.uint8)
        return found

    def key(self, steps: int = 5) -> list[tuple[str, str]]:
        """Colours, such as `#440154`, and the values that they stand for."""
        places = np.linspace(0, 1, steps)
        numbers = [f"{self.low + place * (self.high - self.low):g}" for place in places]
        numbers[-1] += f" {self.unit}"
        return [(to_hex(colormaps[self.palette](place)), text) for place, text in zip(places, numbers, strict=True)]


COLOUR_SCALES = {
    "thickness_nm": ColourScale("viridis", 2.0, 6.0, "nm"),  # leaflets of lipid bilayers: 3 to 5 nm apart
    "mean_curvature_per_nm": ColourScale("coolwarm", -0.05, 0.05, "1/nm"),  # blue bends inwards, red outwards
}
"""Values at vertices by which meshes are coloured: the thickness where it was measured, else the curvature."""


def check_formats(names: Sequence[str]) -> tuple[str, ...]:
    """Formats as they are named; ConfigError for any other, or where its library is missing."""
    allowed = FORMATS + SEGMENTATION_FORMATS
    unknown = [name for name in names if name not in allowed]
    if unknown:
        what = unknown[0] or "nothing between commas"
        raise ConfigError(
            f"--mesh-format: {what} is no format; allowed: {', '.join(allowed)}, several with commas; none."
        )
    if "sff" in names:
        require_sff()
    return tuple(dict.fromkeys(names))


def write_mesh(
    path: Path,
    kind: str,
    mesh: Mesh,
    values: Mapping[str, np.ndarray],
    coloured_by: str,
    voxel_angstrom: float,
    origin_angstrom: Sequence[float],
) -> None:
    """Write one membrane.

    Parameters
    ----------
    path
        Written as it is; the name decides nothing.
    kind
        One of `FORMATS`. STL has neither values nor colours, OBJ no values, VTP no colours; GLB has values as
        attributes `_NAME`.
    mesh
        In voxels.
    values
        Name -> (V,) numbers; what is not finite becomes 0 in GLB, which allows no other.
    coloured_by
        One of `COLOUR_SCALES`, by which vertices are coloured; grey where it is not among the values.
    voxel_angstrom
        Side of a voxel.
    origin_angstrom
        (z, y, x) of the tomogram's first voxel (`Volume.first_voxel_angstrom`).
    """
    plain = {name: np.asarray(value, np.float32) for name, value in values.items()}
    if kind == "vtp":
        path.write_bytes(_vtp(*_placed(mesh, voxel_angstrom, origin_angstrom), plain))
        return
    body = _body(mesh, plain, coloured_by, voxel_angstrom, origin_angstrom, colours=kind != "stl")
    if kind == "glb":
        plain = {f"_{name.upper()}": np.where(np.isfinite(value), value, 0) for name, value in plain.items()}
    if kind in ("ply", "glb"):
        body.vertex_attributes.update(plain)
    with path.open("wb") as file:
        body.export(file, file_type=kind)


def write_scene(
    path: Path,
    meshes: Mapping[int, Mesh],
    values: Sequence[Mapping[str, np.ndarray]],
    coloured_by: str | None,
    voxel_angstrom: float,
    origin_angstrom: Sequence[float],
) -> None:
    """Write all membranes as one coloured scene (GLB), named `membrane_001`, ...

    Parameters
    ----------
    meshes
        Number -> membrane.
    values
        Of each.
    coloured_by
        As of `write_mesh`; None: each has the colour of its number.
    path, voxel_angstrom, origin_angstrom
        As of `write_mesh`.
    """
    scene = trimesh.Scene()
    for (number, mesh), own in zip(meshes.items(), values, strict=True):
        name = f"membrane_{number:03d}"
        if coloured_by is None:
            vertices, faces, normals = _placed(mesh, voxel_angstrom, origin_angstrom)
            drawn = np.tile(np.array([*colour_of(number), 255], np.uint8), (len(vertices), 1))
            body = trimesh.Trimesh(vertices, faces, vertex_normals=normals, vertex_colors=drawn, process=False)
        else:
            body = _body(mesh, own, coloured_by, voxel_angstrom, origin_angstrom)
        scene.add_geometry(body, node_name=name, geom_name=name)
    with path.open("wb") as file:
        scene.export(file, file_type="glb")


def _placed(
    mesh: Mesh, voxel_angstrom: float, origin_angstrom: Sequence[float]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Vertices and normals (V, 3) as (x, y, z), Å, and faces (F, 3) between them."""
    # (z, y, x) -> (x, y, z) is a reflection: the triangles turn round with it, and still face outwards
    vertices = (mesh.vertices * voxel_angstrom + np.asarray(origin_angstrom))[:, ::-1]
    return vertices, mesh.faces[:, ::-1], mesh.normals[:, ::-1]


def _body(
    mesh: Mesh,
    values: Mapping[str, np.ndarray],
    coloured_by: str,
    voxel_angstrom: float,
    origin_angstrom: Sequence[float],
    colours: bool = True,
) -> trimesh.Trimesh:
    vertices, faces, normals = _placed(mesh, voxel_angstrom, origin_angstrom)
    shown = values.get(coloured_by, np.full(len(vertices), np.nan))
    drawn = COLOUR_SCALES[coloured_by].colours(shown) if colours else None
    return trimesh.Trimesh(vertices, faces, vertex_normals=normals, vertex_colors=drawn, process=False)


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
