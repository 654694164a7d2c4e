"""Runs scripts of `examples/` one after another in the same processes, started by torchrun: libraries load once.

torchrun --nproc_per_node 2 cases.py CASES.json    # [["train" or "evaluate", {options}, a free port], ...]
"""

import importlib.util
import json
import os
import sys
from pathlib import Path

import torch
from accelerate.state import AcceleratorState, GradientState, PartialState

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def main() -> None:
    torch.set_num_threads(1)
    os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "False"  # torchrun's own store is good for one process group
    for name, options, port in json.loads(Path(sys.argv[1]).read_text()):
        os.environ["MASTER_PORT"] = str(port)
        spec = importlib.util.spec_from_file_location(f"{name}_script", EXAMPLES / f"{name}.py")
        script = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(script)
        getattr(script, name)(script.Arguments(**options))
        for state in (AcceleratorState, PartialState, GradientState):
            state._reset_state()


if __name__ == "__main__":
    main()
