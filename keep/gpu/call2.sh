#!/usr/bin/env bash
# Two GPUs: the teacher at 256 px from the weights in .wt/gpu/from. MIN: minutes of steps. LR.
set -u
python3 -c "import typer, sentencepiece, safetensors, PIL" || exit 3
export PYTHONSAFEPATH=1 PYTHONPATH=$PWD/.wt/gpu/code PYTHONUNBUFFERED=1 OMP_NUM_THREADS=8
[ -e $PYTHONPATH/turbodiffusion/demo/model ] || cp -r turbodiffusion/demo/model $PYTHONPATH/turbodiffusion/demo/model
A=.cache/demo-release/atlas.npz; R=/tmp/runs; mkdir -p $R/vae $R/from; cp .wt/gpu/init/vae/* $R/vae/
cat .wt/gpu/from/flow.safetensors.* > $R/from/flow.safetensors; cp .wt/gpu/from/spiece.model $R/from/
nvidia-smi --query-gpu=index,name --format=csv,noheader
timeout 572 torchrun --standalone --nproc-per-node 2 -m turbodiffusion.training.commands flow --folder $R/flow --vae-run $R/vae --atlas $A --from $R/from/flow.safetensors --batch ${BATCH:-64} --clips 3072 --minutes ${MIN:-6.6} --lr ${LR:-1e-3} > $OUT/flow.log 2>&1
echo "flow done $SECONDS, exit $?" >> $OUT/flow.log
split -b 15000000 $R/flow/flow.safetensors $OUT/flow.safetensors.
cp $R/flow/spiece.model $OUT/; tar -C $R -cf $OUT/small.tar $(cd $R; ls flow/log.jsonl flow/sheet*.png)
tail -12 $OUT/flow.log; ls -la $OUT; echo total $SECONDS
[ -f $R/flow/flow.safetensors ]
