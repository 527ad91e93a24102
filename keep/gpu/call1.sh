#!/usr/bin/env bash
# GPU 0: text encoder, then a teacher at 128 px from the old transformer. GPU 1: the judge.
set -u; python3 -c "import typer, sentencepiece, safetensors, PIL" || exit 3
export PYTHONSAFEPATH=1 PYTHONPATH=$PWD/.wt/gpu/code PYTHONUNBUFFERED=1 OMP_NUM_THREADS=8
[ -e $PYTHONPATH/turbodiffusion/demo/model ] || cp -r turbodiffusion/demo/model $PYTHONPATH/turbodiffusion/demo/model
A=.cache/demo-release/atlas.npz; R=/tmp/runs; mkdir -p $R/vae $R/text; cp .wt/gpu/init/vae/* $R/vae/
nvidia-smi --query-gpu=index,name --format=csv,noheader
(
 export CUDA_VISIBLE_DEVICES=1
 timeout 560 python3 -m turbodiffusion.training.commands probe --folder $R/probe --atlas $A --minutes ${PM:-7.3} --vae-run $R/vae > $OUT/probe.log 2>&1
 cp $R/probe/probe.safetensors $OUT/ ; ls -la $R/probe >> $OUT/probe.log
) & P=$!
(
 export CUDA_VISIBLE_DEVICES=0
 timeout 120 python3 -m turbodiffusion.training.commands text --folder $R/text --atlas $A --steps ${TS:-600} > $OUT/flow.log 2>&1
 python3 - <<'P' >> $OUT/flow.log 2>&1
from safetensors.torch import load_file, save_file
s=load_file(".wt/gpu/init/old_transformer.safetensors")|load_file("/tmp/runs/text/text.safetensors")
save_file(s,"/tmp/runs/text/init.safetensors")
P
 echo "text done $SECONDS" >> $OUT/flow.log
 timeout $((560-SECONDS)) python3 -m turbodiffusion.training.commands flow --folder $R/small --vae-run $R/vae --atlas $A --from $R/text/init.safetensors --side 128 --batch 256 --clips 5120 --minutes ${FM:-4.8} --lr 2e-3 >> $OUT/flow.log 2>&1
 echo "flow done $SECONDS" >> $OUT/flow.log
 split -b 15000000 $R/small/flow.safetensors $OUT/flow.safetensors.
 cp $R/small/spiece.model $OUT/; tar -C $R -cf $OUT/small.tar small/log.jsonl text/log.jsonl $(cd $R; ls small/sheet*.png) 
) & F=$!
wait $P $F
tail -5 $OUT/probe.log; tail -12 $OUT/flow.log; ls -la $OUT; echo total $SECONDS
