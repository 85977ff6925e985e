# What the recipes of this folder share; they set net, polnet, out, seed, data and settings, and read this file.

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
  etsam train name="${net}_$1" output_dir="$folder" seed="$seed" trainer=auto trainer.precision=bf16-mixed \
    data.cache_folder="$out/cache" "${settings[@]}" "${@:2}" "${resume[@]}"
  touch "$folder/finished"
}

last() { echo "$out/seed$seed/$1/checkpoints/last.ckpt"; }
