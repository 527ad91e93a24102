"""Compare a teacher's derivative in time (JVP) with secants of its trajectories, time by time.

python benchmarks/derivative.py --atlas .cache/demo-world/atlas.npz [--model demo] [--clips 16] [--guidance 4]

rCM's continuous consistency follows dF/dt, the discrete one a step of finite width. Printed for each flow time: the
cosine between both and the derivative's length as a share of the secant's, means over clips of the demo world, at
three widths in radians of TrigFlow's time.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch

from turbodiffusion.training import artifacts as runs
from turbodiffusion.training.recipes import rcm
from turbodiffusion.training.trainer import step_generator, torch_generator

TIMES = (0.1, 0.2, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.97, 0.98)  # flow times
WIDTHS = (0.001, 0.01, 0.1)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--atlas", type=Path, default=Path(".cache/demo-world/atlas.npz"))
    options.add_argument("--model", default="demo")
    options.add_argument("--clips", type=int, default=16)
    options.add_argument("--batch", type=int, default=4)
    options.add_argument("--guidance", type=float, help="the model's own by default")
    asked = options.parse_args()
    device = runs.prepare()
    known = runs.read_teacher(asked.model, device)
    bank = runs.bank_of(known, asked.atlas, size=asked.clips, fresh=1, seed=900)
    bank.advance(0)
    guidance = asked.guidance or known.preset.guidance or 1.0
    recipe = rcm.RCMRecipe(batch=asked.batch, guidance=guidance, compile=False)
    networks = rcm.Networks(known.transformer, known.transformer, known.transformer, known.prompt_encoder.encoder)
    forward = dict.fromkeys(("student", "fake", "teacher"), known.transformer)
    generator = torch_generator(step_generator(recipe.seed, 0), device)
    print(f"{asked.model}, guidance {guidance:g}, {asked.clips} clips; cosine and length at widths {WIDTHS}")
    for time in TIMES:
        t_B = rcm.trig_times(torch.full((asked.batch,), time, device=device), 1.0)
        found = []  # of each batch [cosine and length, widths, clips]
        for k in range(asked.clips // asked.batch):
            at = rcm._Step(networks, bank, recipe, k, forward)
            noise = torch.randn(at.x0.shape, generator=generator, device=device)
            x = rcm.noised(at.x0, noise, t_B)
            found.append(torch.stack(rcm.against_secants(at.guided_teacher(), x, t_B, WIDTHS)))
        cosines, lengths = torch.cat(found, 2).mean(2).tolist()
        means = "  ".join(f"{c:.3f} {n:5.2f}x" for c, n in zip(cosines, lengths, strict=True))
        print(f"flow time {time:.2f}  {means}", flush=True)


if __name__ == "__main__":
    main()
