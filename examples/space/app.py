"""`mote app`, as a Space runs it: the variable MOTE_MODEL names the checkpoint."""

import sys

from modeling_mote.commands.command_line import run_command

if __name__ == "__main__":  # the processes that read videos import this file too
    sys.exit(run_command("app"))
