"""From a mask to numbers: membranes one by one, their meshes, thickness, distances and points. Arrays in, tables out.

`midsurface` finds points in the middle of membranes, `membranes` tells one membrane from another, `mesh` makes
triangles of each, `shape` its row; `thickness` asks the tomogram, `points` makes positions for picking. Files: `run`,
`mesh_files` and `page`. Positions are (z, y, x) in voxels, centres of voxels at whole numbers, unless a name says Å or
nm.
"""
