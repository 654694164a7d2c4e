"""`mote evaluate` as a script, for launchers of several processes.

accelerate launch examples/evaluate.py --protocol ucf101-zero-shot --model mote-vitb16 --data_dir /data/ucf101
torchrun --nproc_per_node 2 examples/evaluate.py --protocol half-classes --model runs/mine/model --data my_test.csv
"""

import sys

from modeling_mote.commands.command_line import run_command

if __name__ == "__main__":
    sys.exit(run_command("evaluate"))
