#!/usr/bin/env bash
# One rCM arm on one GPU: distil the shipped teacher for some minutes, draw sheets, leave small files.
#
#   PYTHONPATH=COPY ATLAS=.cache/demo-24/atlas.npz distil_arm.sh OUT GPU MINUTES [options of `train rcm`]
#
# OUT gets rcm.safetensors (EMA student), student.safetensors, fake.safetensors, log.jsonl, console.txt (command, cards,
# lines of the run) and sheet-STEP-in-{4,2,1}.png: 8 files, each below 16 MiB; copied every 30 s while it runs, so that a
# time limit loses little. Two arms in one call of `run` (8 files and 64 MiB in all): WEIGHTS="rcm fake" SMALL=tar, which
# puts all that is not weights into small.tar; go on from the EMA then (--from rcm.safetensors --from-fake fake...).
# The big resume state stays in RUN (default /tmp/distil/NAME OF OUT): the same call again goes on with it.
# MINUTES are those of the steps, with compilation (100 s); filling the bank and the sheets come on top.
# Environment: PYTHON (python3), WEIGHTS, SMALL, ATLAS, TEACHER (the copy's turbodiffusion/demo/model), RUN.
set -euo pipefail
out=${1:?OUT}; gpu=${2:?GPU}; minutes=${3:?MINUTES}; shift 3
python=${PYTHON:-python3}
atlas=${ATLAS:-.cache/demo-24/atlas.npz}
: "${PYTHONPATH:?the frozen copy of the package}"
teacher=${TEACHER:-${PYTHONPATH%%:*}/turbodiffusion/demo/model}
mkdir -p "$out"
run=${RUN:-/tmp/distil/$(basename "$out")}
mkdir -p "$run"
[ -f "$atlas" ] || { echo "no atlas at $atlas" >&2; exit 2; }
[ -f "$teacher/model.json" ] || { echo "no teacher at $teacher" >&2; exit 2; }
export PYTHONSAFEPATH=1 CUDA_VISIBLE_DEVICES=$gpu OMP_NUM_THREADS=${OMP_NUM_THREADS:-8} PYTHONUNBUFFERED=1

small() { echo console.txt; cd "$run"; ls log.jsonl 2>/dev/null || true; ls -t sheet-*.png 2>/dev/null | head -3 || true; }
keep() {
  for name in ${WEIGHTS:-rcm student fake}; do
    [ ! -f "$run/$name.safetensors" ] || cp -p "$run/$name.safetensors" "$out/"
  done
  if [ "${SMALL:-}" = tar ]; then
    tar -C "$run" -cf "$run/small.tar" $(small) && cp "$run/small.tar" "$out/"
  else
    for name in $(small); do cp -p "$run/$name" "$out/"; done
  fi
}
( while sleep 30; do keep 2>/dev/null || true; done ) & copier=$!
trap 'kill $copier 2>/dev/null || true' EXIT

command=("$python" -m turbodiffusion train rcm --folder "$run" --teacher "$teacher" --atlas "$atlas"
  --minutes "$minutes" "$@")
{
  date -u +%FT%TZ
  nvidia-smi --query-gpu=index,name,memory.total --format=csv,noheader 2>/dev/null || true
  "$python" -c 'import sys, torch; print("python", sys.version.split()[0], "torch", torch.__version__)'
  printf '%q ' "${command[@]}"; echo
} >> "$run/console.txt"
status=0
"${command[@]}" >> "$run/console.txt" 2>&1 || status=$?
echo "exit $status after $SECONDS s" | tee -a "$run/console.txt"
tail -4 "$run/console.txt"
keep
find "$out" -type f -size +16777215c -exec echo "too large to come back:" {} \;
exit $status
