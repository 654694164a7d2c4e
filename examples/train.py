"""Trains MoTE: `mote train` as a script; without options the demo, MovingShapes and a tiny CLIP, 2 minutes on 2 cores.

accelerate launch examples/train.py
accelerate launch examples/train.py --config examples/recipes/kinetics400_vitb16.yaml --data_dir /data/kinetics400
torchrun --nproc_per_node 2 examples/train.py --config my_recipe.yaml --lr 1e-4    # options override the recipe
"""

import sys
from pathlib import Path

from modeling_mote.commands.command_line import run_command

DEMO = Path(__file__).resolve().parent / "recipes" / "moving_shapes.yaml"

if __name__ == "__main__":
    sys.exit(run_command("train", sys.argv[1:] or [f"--config={DEMO}"]))
