"""Meaning of each column of the tables: for the page, the documents and whoever reads a CSV file."""

COLUMNS: dict[str, str] = {
    "membrane": "Number in the label volume; 1 is the largest.",
    "label": "Number in the mask that was given, with --instances only.",
    "closed": "closed: no open edge, so there is an inside; open: it has an edge, often where the tomogram ends.",
    "area_nm2": "Area of the middle of the membrane, nm².",
    "volume_nm3": "Volume enclosed by the middle of the membrane, nm³; of closed membranes only.",
    "diameter_nm": "Diameter of the sphere of that volume, nm; where open, of the sphere that fits best, if it is at"
    " least a fifth of that sphere and off it by 15 % of the radius at most.",
    "diameter_from": "volume, sphere fit or none: where the diameter comes from.",
    "sphere_radius_nm": "Radius of the sphere that fits best, nm; huge for flat membranes.",
    "sphere_rms_nm": "Root mean square distance of the membrane from that sphere, nm: how little it is one.",
    "axis_1_nm": "Longest axis of the ellipsoid with the same moments, nm.",
    "axis_2_nm": "Its middle axis, nm.",
    "axis_3_nm": "Its shortest axis, nm.",
    "mean_curvature_per_nm": "Mean over the area of (1/r1 + 1/r2)/2, 1/nm; positive where it bulges outwards. A"
    " sphere of radius r has 1/r. An open membrane bulges to the side of its normals, and its very edge is left out.",
    "mean_curvature_sd_per_nm": "Standard deviation of the mean curvature over the membrane, 1/nm.",
    "gaussian_curvature_per_nm2": "Mean over the area of 1/(r1 r2), 1/nm².",
    "inclination_degrees": "Mean angle between the normal and the beam: 0 lies flat in the slices, where the"
    " missing wedge hides it, 90 stands upright.",
    "open_edge_nm": "Length of its open edges, nm.",
    "open_edge_at_border_share": "Share of these edges where the tomogram ends: 1 means that it goes on outside.",
    "joined_share": "Share of the area that lies across gaps of the mask, where the surfaces on both sides continue"
    " each other.",
    "centre_z_voxel": "Centre, slice.",
    "centre_y_voxel": "Centre, row.",
    "centre_x_voxel": "Centre, column.",
    "nearest_membrane": "Number of the membrane that comes nearest; 0 if it is the only one.",
    "nearest_min_nm": "Least distance between the middles of the two, nm.",
    "nearest_mean_nm": "Mean over the membrane of the distance to whichever other membrane is nearest, nm.",
    "mask_width_nm": "Median width of the mask across the membrane, nm: a property of the segmentation, not the"
    " thickness of the membrane.",
    "thickness_nm": "Thickness from the tomogram's density, nm; see the method for what it is.",
    "thickness_method": "two leaflets: between the peaks of the two leaflets; full width: width at half maximum of"
    " the one peak that can be seen, which is larger; none: nothing could be measured.",
    "thickness_reliable": "yes if nothing is against the value: two leaflets well apart, no fringes, nothing else"
    " between them, and the same in all parts of the membrane. Few are; a no is no proof that the value is wrong.",
    "thickness_low_nm": "Lower end of the 95 % interval from resampling patches of the membrane, nm.",
    "thickness_high_nm": "Upper end of it, nm.",
    "thickness_local_sd_nm": "Standard deviation over the patches where leaflets can be told apart, nm.",
    "thickness_why": "What is against the value.",
}
"""Of `NAME_membranes.csv`."""

CONTACT_COLUMNS: dict[str, str] = {
    "membrane": "Number of the one membrane.",
    "other": "Number of the other.",
    "area_nm2": "Area within the contact distance, mean of both sides, nm².",
    "distance_mean_nm": "Mean distance over that area, nm.",
    "distance_min_nm": "Least distance, nm.",
}
"""Of `NAME_contacts.csv`."""
