#!/usr/bin/env bash
# Weights of net=nano from nothing: simulated tomograms, then both stages, on a GPU where there is one, else on the
# cores of a CPU that OMP_NUM_THREADS allows. What is finished is not done again, what was cut goes on.
#
#   bash checkpoints/train_nano.sh POLNET_MANIFEST OUTPUT_FOLDER [SEED] [KEY=VALUE of train.py ...]
#
# PART=4 before it: a quarter of the tomograms to learn from and of the steps, to compare seeds. In a folder of its own.
#
# POLNET_MANIFEST lists the PolNet tomograms to learn from (split train) and to validate on (split val), as
# `etsam data polnet` writes it. Time and what came of it: checkpoints/README.md. Wants bash 4.
set -euo pipefail
[ $# -ge 2 ] || { sed -n '2,10s/^# \{0,1\}//p' "$0"; exit 1; }
polnet=$1 out=$2 seed=${3:-1}
shift $(($# < 3 ? $# : 3))
settings=("$@")
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
data=$out/simulated

part() { echo $((($1 + ${PART:-1} - 1) / ${PART:-1})); }

simulate() {  # NAME COUNT SEED SHAPE VOXEL_SIZE [KEY=VALUE ...]
  local folder=$data/$1 count
  [[ $1 == val_* ]] && count=$2 || count=$(part "$2")
  [ -e "$folder/manifest.csv" ] || etsam data simulate --n "$count" --seed "$3" --shape "$4" --voxel-size "$5" --val-fraction 0 \
    --output-dir "$folder" --resume "${@:6}"
}

# everything that differs between microscopes and programs
plain=(64,160,160 7,16 min_contrast=0.3 margin_voxels=40)
coarse=(64,160,160 16,45 min_contrast=0.3 margin_voxels=40 bright_probability=0.15)
# vesicles and organelles full of protein, with carbon and gold, of which rays cross the tomogram
filled=(64,160,160 8,24 min_contrast=0.3 margin_voxels=40 specimen.filled_probability=0.8 'specimen.filled_depth=[0.3,0.9]'
  'specimen.radius_angstrom=[250,1200]' specimen.carbon_probability=0.3 specimen.gold_probability=0.6 'acquisition.snr=[0.2,3]')
# organelles: membranes larger than the tomogram, apposed and stacked, a wide missing wedge
large=(64,192,192 7,16 min_contrast=0.3 margin_voxels=40 'specimen.radius_angstrom=[600,3000]'
  'specimen.kinds={vesicle:5,tube:0.5,sheet:2,double:2,stack:1,network:0.5}' specimen.filled_probability=0.7
  'specimen.crowding=[0.02,0.2]' 'acquisition.max_tilt_degrees=[42,62]')
# shells of particles of one size in much empty ice
shells=(80,144,144 30,48 min_contrast=0.3 margin_voxels=60 bright_probability=0.5 'specimen.radius_angstrom=[400,700]'
  'specimen.kinds={vesicle:10,sheet:0.3,network:0.1}' 'specimen.membranes=[4,60]' 'specimen.contrast=[0.6,1.3]'
  specimen.coat_probability=0.8 specimen.filled_probability=0.4 specimen.empty_probability=0.1 'specimen.filled_depth=[0.3,0.8]'
  'specimen.crowding=[0,0.08]' specimen.gold_probability=0.4 'acquisition.snr=[0.2,3]' acquisition.white_probability=0.8
  'acquisition.defocus_um=[-1,3]' 'acquisition.misalignment_voxels=[0,0.5]' 'acquisition.cutoff=[0.4,0.5]'
  'acquisition.background=[0,0.5]' 'acquisition.reconstructions={wbp:1,sirt:0}'
  'acquisition.filters={none:4,lowpass:1,deconvolved:0,denoised:0}')
# shells of larger particles, hard to see
virus=(64,160,160 32,48 min_contrast=0.3 margin_voxels=40 bright_probability=0.5 'specimen.radius_angstrom=[450,900]'
  'specimen.kinds={vesicle:8,tube:0.3,sheet:0.3,double:0.3,stack:0.2,network:0.1}' 'specimen.membranes=[4,40]'
  specimen.coat_probability=0.75 specimen.filled_probability=0.5 specimen.empty_probability=0.1 'acquisition.snr=[0.1,1.5]'
  'acquisition.reconstructions={wbp:3,sirt:1}' 'acquisition.filters={none:3,lowpass:1,deconvolved:1,denoised:1}')
# what is no membrane: filaments, microtubules, gold, carbon, ice
none=(64,160,160 8,30 margin_voxels=80 bright_probability=0.3 specimen.empty_probability=1 specimen.filament_probability=0.8
  'specimen.microtubules=[2,8]' specimen.gold_probability=0.4 specimen.carbon_probability=0.3)
tubes=(64,160,160 7,18 margin_voxels=60 specimen.empty_probability=0.75 specimen.filament_probability=1
  'specimen.microtubules=[2,10]' specimen.gold_probability=0.3 'acquisition.snr=[0.1,3]')
# microtubules where they are most like membranes: sharp and finely sampled
mt=(64,160,160 7,16 margin_voxels=60 specimen.empty_probability=0.8 specimen.filament_probability=1 'specimen.microtubules=[3,10]'
  specimen.gold_probability=0.3 'acquisition.snr=[0.1,3]' 'acquisition.filters={none:1,lowpass:1,deconvolved:3,denoised:2}')
ice=(64,160,160 8,45 margin_voxels=60 specimen.empty_probability=1 specimen.filament_probability=0.3 specimen.gold_probability=0.5
  specimen.carbon_probability=0.5 'acquisition.snr=[0.05,1]')
crowd=(64,160,160 7,16 min_contrast=0.3 margin_voxels=40 'specimen.crowding=[0.1,0.25]')
# voxels finer than the resolution, as of most real tomograms: membranes are broad and soft. To validate on only: in training
# they helped nothing else (benchmarks/nano_runs.md)
soft=(64,160,160 6,24 min_contrast=0.3 margin_voxels=40 'specimen.radius_angstrom=[250,1500]' specimen.filled_probability=0.6
  'acquisition.filters={none:0,lowpass:1,deconvolved:0,denoised:0}' 'acquisition.lowpass_sigma_voxels=[1.2,2.6]'
  'acquisition.misalignment_voxels=[0.3,1.8]' 'acquisition.max_tilt_degrees=[36,66]')
# the wedge of lysosomes and lamellae: what costs most of all that differs
wide='acquisition.max_tilt_degrees=[36,66]'

simulate plain 80 11 "${plain[@]}"
simulate filled 80 12 "${filled[@]}"
simulate large 30 300 "${large[@]}"
simulate coarse 36 200 "${coarse[@]}"
simulate shells 36 700 "${shells[@]}"
simulate virus 30 600 "${virus[@]}"
simulate none 26 800 "${none[@]}"
simulate tubes 48 850 "${tubes[@]}"
simulate mt 36 4800 "${mt[@]}"
simulate plain_wide 36 2011 "${plain[@]}" "$wide"
simulate filled_wide 40 2012 "${filled[@]}" "$wide"
simulate coarse_wide 24 2200 "${coarse[@]}" "$wide"
simulate tubes_wide 48 2850 "${tubes[@]}" specimen.empty_probability=0.5 "$wide"
simulate ice 16 2800 "${ice[@]}" "$wide"
simulate crowd 24 2900 "${crowd[@]}" "$wide"
# for stage 2: on tomograms that stage 1 has learned by heart its logits are better than they will be on others
simulate plain_unseen 30 1101 "${plain[@]}"
simulate filled_unseen 30 1201 "${filled[@]}"
simulate large_unseen 14 1300 "${large[@]}"
simulate coarse_unseen 30 1200 "${coarse[@]}"
simulate shells_unseen 24 1700 "${shells[@]}"
simulate virus_unseen 15 1600 "${virus[@]}"
simulate none_unseen 26 1800 "${none[@]}"
simulate tubes_unseen 36 1850 "${tubes[@]}"
simulate mt_unseen 36 4850 "${mt[@]}"
simulate plain_wide_unseen 24 3011 "${plain[@]}" "$wide"
simulate filled_wide_unseen 30 3012 "${filled[@]}" "$wide"
simulate coarse_wide_unseen 12 3200 "${coarse[@]}" "$wide"
simulate tubes_wide_unseen 30 3850 "${tubes[@]}" specimen.empty_probability=0.5 "$wide"
simulate ice_unseen 16 3800 "${ice[@]}" "$wide"
simulate crowd_unseen 16 3900 "${crowd[@]}" "$wide"
# never trained on: the threshold and all choices are made on these (benchmarks/nano_table.py)
simulate val_plain 3 9011 "${plain[@]}"
simulate val_filled 3 9012 "${filled[@]}"
simulate val_shells 3 9700 "${shells[@]}"
simulate val_coarse 3 9200 64,160,160 20,45 min_contrast=0.3 margin_voxels=40 bright_probability=0.5
simulate val_soft 4 9600 "${soft[@]}"
simulate val_mt 24 9800 64,160,160 8,16 margin_voxels=60 specimen.empty_probability=1 specimen.filament_probability=1 'specimen.microtubules=[4,10]'
for size in 5 8 12 16 24 32 45; do
  simulate val_curve_$size 2 $((9300 + size)) 48,128,128 $size min_contrast=0.3 margin_voxels=32 specimen.empty_probability=0
done

sources() {  # NAME=WEIGHT ...: overrides that mix PolNet and simulated tomograms
  for part in "$@"; do
    local name=${part%=*} plus=+ manifest=$data/${part%=*}/manifest.csv
    [ "$name" = own ] && plus= manifest=$polnet
    echo "${plus}data.sources.$name.manifest=$manifest"
    echo "${plus}data.sources.$name.weight=${part#*=}"
  done
}

step() {  # NAME [KEY=VALUE ...]: trains unless it is finished, and goes on where it was cut
  local folder=$out/seed$seed/$1
  [ -e "$folder/finished" ] && return
  local resume=()
  [ -e "$folder/checkpoints/last.ckpt" ] && resume=(ckpt_path=last)
  etsam train name="nano_$1" output_dir="$folder" seed="$seed" trainer=auto trainer.precision=bf16-mixed \
    data.cache_folder="$out/cache" "${settings[@]}" "${@:2}" "${resume[@]}"
  touch "$folder/finished"
}

last() { echo "$out/seed$seed/$1/checkpoints/last.ckpt"; }

mapfile -t seen < <(sources own=0.8 plain=1.8 plain_wide=1.3 filled=1.8 filled_wide=1.5 large=1 coarse=0.5 coarse_wide=0.8 shells=0.8 \
  virus=0.5 none=1 tubes=1 tubes_wide=1 mt=1.4 ice=0.35 crowd=0.6)
mapfile -t unseen < <(sources own=0.8 plain_unseen=1.3 plain_wide_unseen=1.1 filled_unseen=1.3 filled_wide_unseen=1.3 large_unseen=0.8 \
  coarse_unseen=0.7 coarse_wide_unseen=1 shells_unseen=0.9 virus_unseen=0.5 none_unseen=1 tubes_unseen=1 tubes_wide_unseen=1 \
  mt_unseen=1.4 ice_unseen=0.4 crowd_unseen=0.6)

# what a membrane looks like is learned on single slices, which takes most of the time; then memory on clips, the trunk as it is:
# small batches of slices that are alike make it worse (benchmarks/nano_runs.md)
step slices experiment=nano_slices data.epoch_clips=9600 trainer.max_epochs="$(part 16)" optimizer.lr=1e-3 optimizer.encoder_lr=1.5e-3 \
  optimizer.warmup_steps=100 data.invert_probability=0.1 "${seen[@]}"
clips=(freeze_image_encoder=true optimizer.lr=8e-4 optimizer.encoder_lr=8e-4 optimizer.warmup_steps=40)
step stage1 experiment=nano_stage1 start="$(last slices)" trainer.max_epochs=1 data.epoch_clips="$(part 1200)" data.batch_size=4 \
  "${clips[@]}" "${seen[@]}"

second=(stage1.checkpoint="$(last stage1)" stage1.folder="$out/seed$seed/logits" "${unseen[@]}")
step stage2_slices experiment=nano_stage2_slices start="$(last stage1)" trainer.max_epochs=2 data.epoch_clips="$(part 9600)" optimizer.lr=8e-4 \
  optimizer.encoder_lr=8e-4 optimizer.warmup_steps=40 "${second[@]}"
step stage2 experiment=nano_stage2 start="$(last stage2_slices)" trainer.max_epochs=1 data.epoch_clips="$(part 640)" "${clips[@]}" "${second[@]}"

for stage in stage1 stage2; do
  etsam export "$(last $stage)" "$out/seed$seed/nano_$stage.safetensors" --half --overwrite
done
echo "weights: $out/seed$seed/nano_stage1.safetensors and nano_stage2.safetensors"
