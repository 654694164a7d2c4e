"""`mote app`, as a Space runs it: the variable MOTE_MODEL names the checkpoint."""

import sys

from modeling_mote.commands.command_line import run_command

sys.exit(run_command("app"))
