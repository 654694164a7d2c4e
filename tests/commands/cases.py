"""Runs commands one after another in the same processes, started by torchrun: libraries load once.

torchrun --nproc_per_node 2 cases.py CASES.json    # [["train" or "evaluate", [options], a free port], ...]
"""

import json
import os
import sys
from pathlib import Path

import torch
from accelerate.state import AcceleratorState, GradientState, PartialState

from modeling_mote.commands.command_line import run_command


def main() -> int:
    torch.set_num_threads(1)
    os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "False"  # torchrun's own store is good for one process group
    for name, options, port in json.loads(Path(sys.argv[1]).read_text()):
        os.environ["MASTER_PORT"] = str(port)
        code = run_command(name, options)
        if code:
            return code
        for state in (AcceleratorState, PartialState, GradientState):
            state._reset_state()
    return 0


if __name__ == "__main__":
    sys.exit(main())
