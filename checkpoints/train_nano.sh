#!/usr/bin/env bash
# The weights of this folder from nothing: simulated tomograms, then both stages, on a GPU where there is one, else on one
# core of a CPU. What is finished is not done again.
#
#   bash checkpoints/train_nano.sh POLNET_MANIFEST OUTPUT_FOLDER [SEED] [KEY=VALUE of train.py ...]
#
# POLNET_MANIFEST lists the PolNet tomograms to learn from (split train) and to validate on (split val), as
# `etsam data polnet` writes it. Time and what came of it: checkpoints/README.md. Wants bash 4.
set -euo pipefail
[ $# -ge 2 ] || { sed -n '2,8s/^# \{0,1\}//p' "$0"; exit 1; }
polnet=$1 out=$2 seed=${3:-1}
shift $(($# < 3 ? $# : 3))
settings=("$@")
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
data=$out/simulated

simulate() {  # NAME COUNT SEED SHAPE VOXEL_SIZE [KEY=VALUE ...]
  local folder=$data/$1
  [ -e "$folder/manifest.csv" ] || etsam data simulate --n "$2" --seed "$3" --shape "$4" --voxel-size "$5" --val-fraction 0 \
    --output-dir "$folder" --resume min_contrast=0.3 'storages={int8:1,float32:1,int16:0.5,float16:0.5,uint16:0}' "${@:6}"
}

# noise and reconstruction like PolNet's
clean=(64,160,160 9,12 'specimen.contrast=[0.35,0.8]' 'specimen.core=[0,0.15]' 'specimen.thickness_angstrom=[25,36]'
  specimen.empty_probability=0.06 'specimen.crowding=[0.02,0.15]' 'acquisition.snr=[0.5,2]' 'acquisition.defocus_um=[-1,0]'
  'acquisition.misalignment_voxels=[0.6,1.5]' 'acquisition.max_tilt_degrees=[58,62]' 'acquisition.tilt_step_degrees=[2.8,3.2]'
  'acquisition.reconstructions={wbp:1,sirt:0}' 'acquisition.filters={none:4,lowpass:1,deconvolved:0,denoised:0}'
  'acquisition.cutoff=[0.36,0.44]' 'acquisition.background=[0,0.2]' acquisition.white_probability=0.9)
# everything that differs between microscopes and programs
fine=(64,160,160 7,16 bright_probability=0.15)
coarse=(64,160,160 16,45 bright_probability=0.15)
# cut from a larger field, with gold: rays of what lies beside cross the tomogram, also where there is only ice
streaks=(64,160,160 7,16 bright_probability=0.3 margin_voxels=80 specimen.gold_probability=0.6 'specimen.filled_depth=[0.3,0.8]')
# shells of particles of one size in much empty ice
shells=(80,144,144 30,48 margin_voxels=80 bright_probability=0.5 'specimen.radius_angstrom=[400,700]'
  'specimen.kinds={vesicle:10,sheet:0.3,network:0.1}' 'specimen.membranes=[4,60]' 'specimen.contrast=[0.6,1.3]'
  specimen.coat_probability=0.8 specimen.filled_probability=0.4 specimen.empty_probability=0.1 'specimen.filled_depth=[0.3,0.8]'
  'specimen.crowding=[0,0.08]' specimen.gold_probability=0.4 'acquisition.snr=[0.2,3]' acquisition.white_probability=0.8
  'acquisition.defocus_um=[-1,3]' 'acquisition.misalignment_voxels=[0,0.5]' 'acquisition.cutoff=[0.4,0.5]'
  'acquisition.background=[0,0.5]' 'acquisition.reconstructions={wbp:1,sirt:0}'
  'acquisition.filters={none:4,lowpass:1,deconvolved:0,denoised:0}')
# shells of larger particles, hard to see
virus=(64,160,160 32,48 bright_probability=0.5 'specimen.radius_angstrom=[450,900]'
  'specimen.kinds={vesicle:8,tube:0.3,sheet:0.3,double:0.3,stack:0.2,network:0.1}' 'specimen.membranes=[4,40]'
  specimen.coat_probability=0.75 specimen.filled_probability=0.5 specimen.empty_probability=0.1 'acquisition.snr=[0.1,1.5]'
  'acquisition.reconstructions={wbp:3,sirt:1}' 'acquisition.filters={none:3,lowpass:1,deconvolved:1,denoised:1}')
# what is no membrane
none=(64,160,160 8,30 margin_voxels=80 bright_probability=0.3 specimen.empty_probability=1 specimen.filament_probability=0.8
  'specimen.microtubules=[2,8]' specimen.gold_probability=0.4)

simulate clean 80 500 "${clean[@]}"
simulate fine 60 100 "${fine[@]}"
simulate coarse 45 200 "${coarse[@]}"
simulate streaks 60 900 "${streaks[@]}"
simulate shells 45 700 "${shells[@]}"
simulate virus 45 600 "${virus[@]}"
simulate none 15 800 "${none[@]}"

net=nano
source "$(dirname "$0")/recipe.sh"

mapfile -t seen < <(sources own=1 clean=1 fine=0.4 coarse=0.25 streaks=0.4 shells=0.45 virus=0.3 none=0.12)
mapfile -t unseen < <(sources own=0.6 clean_unseen=1 fine_unseen=0.3 streaks_unseen=0.4 shells_unseen=0.4 virus_unseen=0.25 none_unseen=0.1)

step slices experiment=nano_slices data.batch_size=32 data.epoch_clips=9600 trainer.max_epochs=8 optimizer.lr=9e-4 \
  optimizer.encoder_lr=9e-4 optimizer.warmup_steps=50 "${seen[@]}"
step stage1 experiment=nano_stage1 start="$(last slices)" trainer.max_epochs=1 data.epoch_clips=1000 optimizer.lr=2e-4 \
  optimizer.encoder_lr=1e-4 optimizer.warmup_steps=20 "${seen[@]}"
# for stage 2: on tomograms that stage 1 has learned by heart its logits are better than they will be on others
simulate clean_unseen 12 501 "${clean[@]}"
simulate fine_unseen 6 101 "${fine[@]}"
simulate streaks_unseen 10 901 "${streaks[@]}"
simulate shells_unseen 12 701 "${shells[@]}"
simulate virus_unseen 12 601 "${virus[@]}"
simulate none_unseen 3 801 "${none[@]}"

second=(stage1.checkpoint="$(last stage1)" stage1.folder="$out/seed$seed/logits" "${unseen[@]}")
step stage2_slices experiment=nano_stage2_slices start="$(last stage1)" trainer.max_epochs=3 optimizer.lr=4e-4 \
  optimizer.encoder_lr=4e-4 optimizer.warmup_steps=50 "${second[@]}"
step stage2 experiment=nano_stage2 start="$(last stage2_slices)" trainer.max_epochs=1 data.epoch_clips=400 optimizer.lr=1.5e-4 \
  optimizer.encoder_lr=1e-4 optimizer.warmup_steps=10 "${second[@]}"

for stage in stage1 stage2; do
  etsam export "$(last $stage)" "$out/seed$seed/nano_$stage.safetensors" --half --overwrite
done
echo "weights: $out/seed$seed/nano_stage1.safetensors and nano_stage2.safetensors"
