#!/usr/bin/env bash
# Two GPUs: the teacher goes on at 256 px; then, on GPU 0, new and old teacher before the judge, on GPU 1 rCM for a minute.
set -u
python3 -c "import typer, sentencepiece, safetensors, PIL, scipy" || exit 3
export PYTHONSAFEPATH=1 PYTHONPATH=$PWD/.wt/gpu/code PYTHONUNBUFFERED=1 OMP_NUM_THREADS=8
cp -r turbodiffusion/demo/model $PYTHONPATH/turbodiffusion/demo/model
A=.cache/demo-release/atlas.npz; R=/tmp/runs; mkdir -p $R/vae $R/from
cat .wt/gpu/from/flow.safetensors.* > $R/from/flow.safetensors; cp .wt/gpu/from/spiece.model $R/from/
python3 - <<'P' || exit 4
import json, torch
from pathlib import Path
from turbodiffusion.training import runs
folder = "turbodiffusion/demo/model"
vae = runs.read_teacher(folder, torch.device("cpu")).vae
runs.write_weights(Path("/tmp/runs/vae/vae.safetensors"), vae.state_dict())
Path("/tmp/runs/vae/vae.json").write_text(json.dumps({"config": json.loads(Path(folder, "model.json").read_text())["vae"], "psnr": 33.3}))
P
nvidia-smi --query-gpu=index,name --format=csv,noheader
T="python3 -m turbodiffusion.training.commands"
timeout $((400-SECONDS)) torchrun --standalone --nproc-per-node 2 -m turbodiffusion.training.commands flow --folder $R/flow --vae-run $R/vae --atlas $A --from $R/from/flow.safetensors --batch ${BATCH:-64} --clips 3072 --minutes ${MIN:-4.9} --lr ${LR:-1e-3} > $OUT/flow.log 2>&1
echo "flow done $SECONDS, exit $?" >> $OUT/flow.log
split -b 15000000 $R/flow/flow.safetensors $OUT/flow.safetensors.
tar -C $R -cf $OUT/small.tar $(cd $R; ls flow/log.jsonl flow/sheet*.png)
CUDA_VISIBLE_DEVICES= $T pack $R/model --vae-run $R/vae --flow-run $R/flow --atlas $A > $OUT/pack.log 2>&1
(
 CUDA_VISIBLE_DEVICES=0 timeout $((505-SECONDS)) python3 -m turbodiffusion evaluate --quality teacher=$R/model,num_steps=50,kernels=reference old_teacher=demo,num_steps=50,kernels=reference --probe .wt/judge/probe.safetensors --atlas $A --output $OUT/quality.json --prompts ${PROMPTS:-384} > $OUT/judge.log 2>&1
) &
(
 CUDA_VISIBLE_DEVICES=1 timeout $((495-SECONDS)) $T rcm --folder $R/rcm --teacher $R/model --atlas $A --steps 60 --warmup 20 --no-compile --clips 512 > $OUT/rcm.log 2>&1
 tar -C $R -rf $OUT/small.tar $(cd $R; ls rcm/log.jsonl rcm/sheet*.png)
) &
wait
tail -4 $OUT/flow.log; tail -30 $OUT/judge.log; tail -6 $OUT/rcm.log; ls -la $OUT; echo total $SECONDS
[ -f $R/flow/flow.safetensors ]
