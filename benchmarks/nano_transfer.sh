#!/usr/bin/env bash
# Simulated tomograms that lie outside the ranges of checkpoints/train_nano.sh, one domain each: what a network does there says
# more of real tomograms than what it does within. Never train on them; choose between runs by them, then look at real ones.
#
#   bash benchmarks/nano_transfer.sh FOLDER
#   python benchmarks/nano_table.py tomograms SET --simulated FOLDER --polnet polnet/manifest.csv --real real
#
# Then as in nano_table.py. What is finished is not done again.
set -euo pipefail
[ $# -eq 1 ] || { sed -n '5p' "$0"; exit 1; }
out=$1

domain() {  # NAME SEED [KEY=VALUE ...]
  local folder=$out/val_far_$1
  [ -e "$folder/manifest.csv" ] || etsam data simulate --n 2 --seed "$2" --shape 48,128,128 --voxel-size 8,16 --val-fraction 0 \
    --output-dir "$folder" --resume min_contrast=0.3 margin_voxels=32 specimen.empty_probability=0 "${@:3}"
}

# a wider missing wedge, fewer tilts
domain wedge 9401 'acquisition.max_tilt_degrees=[36,42]' 'acquisition.tilt_step_degrees=[3,5]'
# another program: many iterations, then denoised
domain sirt 9402 'acquisition.reconstructions={sirt:1,wbp:0}' 'acquisition.sirt_iterations=[40,80]' \
  'acquisition.filters={denoised:1,none:0,lowpass:0,deconvolved:0}' 'acquisition.denoise_sigma_voxels=[2,2.6]'
# another spectrum: noise and background of long waves
domain noise 9403 acquisition.white_probability=0 'acquisition.noise_envelope=[0.06,0.12]' 'acquisition.background=[1.5,2.5]' \
  'acquisition.snr=[0.1,0.5]'
# the opposite: nothing filtered, up to the end of the ramp, white noise
domain sharp 9404 'acquisition.filters={none:1,lowpass:0,deconvolved:0,denoised:0}' 'acquisition.cutoff=[0.49,0.5]' \
  'acquisition.reconstructions={wbp:1,sirt:0}' 'acquisition.snr=[0.2,0.4]' acquisition.white_probability=1
# another specimen: more and denser protein than any other set
domain crowded 9405 'specimen.crowding=[0.25,0.35]' 'specimen.protein_density=[1.1,1.4]' 'specimen.species=[8,10]'
# thin tubes and networks among filaments, no vesicle
domain networks 9406 'specimen.kinds={tube:1,network:1,vesicle:0,sheet:0,double:0,stack:0}' 'specimen.radius_angstrom=[80,140]' \
  specimen.filament_probability=1
