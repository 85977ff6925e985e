"""All membranes of a tomogram in one EMDB-SFF file, the format in which segmentations are deposited with a map."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from etsam.errors import ConfigError
from etsam.measure.colours import colour_of
from etsam.measure.mesh import Mesh

_TERM = ("GO:0016020", "http://purl.obolibrary.org/obo/GO_0016020", "membrane")
"""Of the Gene Ontology: accession, address, label."""


def require_sff() -> None:
    """Say what to install, if the format's library is missing."""
    try:
        import sfftkrw  # noqa: F401
    except ImportError as error:
        raise ConfigError("--mesh-format sff needs sfftk-rw; install: pip install 'etsam[sff]'") from error


def write_sff(
    path: Path,
    name: str,
    meshes: Sequence[Mesh],
    numbers: Sequence[int],
    shape: tuple[int, int, int],
    voxel_angstrom: float,
    origin_angstrom: Sequence[float],
    version: str,
) -> None:
    """Write membranes as segments of an EMDB-SFF 0.8 file: meshes (x, y, z) in Å, where the tomogram's header puts it.

    Parameters
    ----------
    path
        Ends in `.hff` (HDF5), `.sff` (XML) or `.json`, which decides how it is stored.
    name
        Of the segmentation.
    meshes, numbers
        Membranes in voxels, and their numbers, which the segments have in their names.
    shape
        (Z, Y, X) of the tomogram.
    voxel_angstrom
        Side of a voxel.
    origin_angstrom
        (z, y, x) of the tomogram.
    version
        Of etsam.

    Raises
    ------
    ConfigError
        If the format's library is missing.
    """
    require_sff()
    import sfftkrw as sff

    found = sff.SFFSegmentation(name=name, primary_descriptor="mesh_list")
    found.details = "Middles of membranes, from a segmented tomogram; vertices in angstrom."
    found.software_list = sff.SFFSoftwareList()
    found.software_list.append(sff.SFFSoftware(name="etsam", version=version))
    found.transform_list = sff.SFFTransformList()
    found.transform_list.append(sff.SFFTransformationMatrix.from_array(np.eye(3, 4, dtype=np.float32)))
    low = np.asarray(origin_angstrom, float)[::-1]
    high = low + np.array(shape[::-1]) * voxel_angstrom
    found.bounding_box = sff.SFFBoundingBox(
        xmin=low[0], xmax=high[0], ymin=low[1], ymax=high[1], zmin=low[2], zmax=high[2]
    )
    found.global_external_references = sff.SFFGlobalExternalReferenceList()
    found.lattice_list = sff.SFFLatticeList()
    found.segment_list = sff.SFFSegmentList()
    accession, address, label = _TERM
    for number, mesh in zip(numbers, meshes, strict=True):
        segment = sff.SFFSegment(id=number, parent_id=0)
        segment.biological_annotation = sff.SFFBiologicalAnnotation(name=f"membrane {number}", number_of_instances=1)
        references = sff.SFFExternalReferenceList()
        references.append(sff.SFFExternalReference(id=0, resource="go", url=address, accession=accession, label=label))
        segment.biological_annotation.external_references = references
        red, green, blue = (value / 255 for value in colour_of(number))
        segment.colour = sff.SFFRGBA(red=red, green=green, blue=blue, alpha=1.0)
        # (z, y, x) -> (x, y, z) is a reflection: the triangles turn round with it, and still face outwards
        vertices = (mesh.vertices * voxel_angstrom + np.asarray(origin_angstrom))[:, ::-1]
        segment.mesh_list = sff.SFFMeshList()
        segment.mesh_list.append(
            sff.SFFMesh(
                id=0,
                vertices=sff.SFFVertices.from_array(np.ascontiguousarray(vertices, np.float32)),
                normals=sff.SFFNormals.from_array(np.ascontiguousarray(mesh.normals[:, ::-1], np.float32)),
                triangles=sff.SFFTriangles.from_array(np.ascontiguousarray(mesh.faces[:, ::-1], np.uint32)),
            )
        )
        found.segment_list.append(segment)
    found.export(str(path))
