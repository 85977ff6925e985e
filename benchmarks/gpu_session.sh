#!/usr/bin/env bash
# All that ten minutes of a GPU can tell, in the order of its worth: each part is timed out and leaves its own files, so that
# a session that is cut keeps what came before.
#
#   bash benchmarks/gpu_session.sh OUTPUT_FOLDER            # needs `make install`, or the package on the path
#   DRY=1 bash benchmarks/gpu_session.sh OUTPUT_FOLDER      # toy sizes on a CPU: does every part run?
#   PARTS="pairs profile" bash benchmarks/gpu_session.sh OUTPUT_FOLDER
#
# Parts: tests, pairs (beside SAM2's predictor), profile (one slice, steady state), whole (500 x 928 x 960 from file to file),
# nano (the same with the embedded weights), training (50 steps of experiment=stage1).
set -uo pipefail
[ $# -eq 1 ] || { sed -n '2,11s/^# \{0,1\}//p' "$0"; exit 1; }
out=$(mkdir -p "$1" && cd "$1" && pwd)
cd "$(dirname "$0")/.."
parts=${PARTS:-tests pairs profile whole nano training}
if [ -n "${DRY:-}" ]; then
  device=cpu precision=32-true net=tiny_test shape=12,72,80 first=6 profiled=4 trainer=cpu steps=2 gpu=()
  small=(net=tiny_test weights=random) training=(net=tiny_test trainer=cpu data.crop=64 data.num_slices=8 data.batch_size=1 start=null)
else
  device=cuda precision=bf16-mixed net=sam2.1_hiera_b+ shape=500,928,960 first=30 profiled=20 trainer=gpus steps=50
  small=(net=sam2.1_hiera_b+ normalize=min_max_positive weights=random) training=(trainer=gpus start=null)
fi
pairs=${shape/#500,/60,} failed=0

part() {  # NAME SECONDS COMMAND...: its output in NAME.log, its time in times.csv
  case " $parts " in *" $1 "*) ;; *) return ;; esac
  local begun=$SECONDS status=0
  timeout "$2" "${@:3}" > "$out/$1.log" 2>&1 || status=$?
  echo "$1,$((SECONDS - begun)),$status" | tee -a "$out/times.csv"
  [ "$status" -eq 0 ] || { failed=1; tail -n 5 "$out/$1.log"; }
}

python - "$out" <<'PYTHON'
import json, pathlib, platform, sys
import psutil, torch
facts = {"torch": torch.__version__, "python": platform.python_version(), "cores": psutil.cpu_count(False)}
cpu = [line.partition(":")[2].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")]
facts["cpu"] = cpu[0] if cpu else platform.processor()
if torch.cuda.is_available():
    card = torch.cuda.get_device_properties(0)
    facts |= {"gpu": card.name, "gpu_gb": round(card.total_memory / 1e9, 1), "cuda": torch.version.cuda}
pathlib.Path(sys.argv[1], "machine.json").write_text(json.dumps(facts, indent=1) + "\n")
print(facts)
PYTHON
[ -e "$out/times.csv" ] || echo "part,seconds,status" > "$out/times.csv"

made() {  # a tomogram of the wanted size, once: rings and noise
  [ -e "$out/made.mrc" ] || PYTHONPATH="$PWD/benchmarks${PYTHONPATH:+:$PYTHONPATH}" python - "$out/made.mrc" "$shape" <<'PYTHON'
import sys, mrcfile, numpy as np
from speed import made_volume, parse_shape
with mrcfile.new(sys.argv[1]) as file:
    file.set_data((100 * made_volume(parse_shape(sys.argv[2]))).astype(np.int8))
    file.voxel_size = 10.0
PYTHON
}

predict() { python -m etsam predict "$out/made.mrc" --output-dir "$out/$1" --overwrite trainer=$trainer write_preview=false "${@:2}"; }
export -f predict; export out trainer

part tests 150 python -m pytest -q -m gpu
part pairs 200 python benchmarks/speed.py --device $device --precision $precision --net $net --shape "$pairs" --repeats 2 --no-parts \
  --output-dir "$out/pairs" --overwrite
part profile 120 python benchmarks/gpu_profile.py --device $device --precision $precision --net $net --shape "$pairs" \
  --first $first --slices $profiled --output-dir "$out/profile"
case " $parts " in *" whole "* | *" nano "*) made ;; esac
part whole 150 bash -c 'predict whole "$@"' _ trainer.precision=$precision "${small[@]}"
part nano 100 bash -c 'predict nano "$@"' _ trainer.precision=$precision
case " $parts " in *" training "*)
  [ -e "$out/data/manifest.csv" ] || python -m etsam data simulate --n 2 --shape 32,128,128 --voxel-size 10 --val-fraction 0.5 --output-dir "$out/data" > "$out/data.log" 2>&1
esac
part training 150 python train.py experiment=stage1 normalize=robust name=gpu output_dir="$out/training" trainer.max_steps=$steps trainer.log_every_n_steps=5 \
  trainer.precision=$([ $device = cuda ] && echo bf16-mixed || echo 32-true) data.sources.own.manifest="$out/data/manifest.csv" overwrite=true "${training[@]}"
rm -f "$out/made.mrc"
rm -rf "$out/whole" "$out/training/checkpoints"
exit $failed
