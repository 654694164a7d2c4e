"""The one dialect of all commands: how options are written, what a typo gets, how a run ends, what is imported."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import modeling_mote
from modeling_mote.commands import COMMANDS, main
from modeling_mote.commands.command_line import (
    Parser,
    add_flag,
    add_labels,
    add_model,
    add_videos,
    number,
    run_command,
)

# The name of the installed command, without which `import modeling_mote` imports PyTorch at once.
AS_MOTE = "import sys; sys.argv[0] = 'mote'\n"


@pytest.fixture
def parser() -> Parser:
    parser = Parser("try", "Tries options.\n\nAnd says more.")
    add_videos(parser)
    add_model(parser)
    add_labels(parser)
    add_flag(parser, "share", "share it")
    parser.add_argument("--batch_size", type=number(1), default=8, help="videos in one forward")
    parser.add_argument("--rate", type=number(0, 1, float, above=True), help="a share")
    return parser


def refused(capsys, parse, *arguments: str) -> str:
    """The sentence with which a command line is refused, the exit code being 2."""
    with pytest.raises(SystemExit) as stop:
        parse(list(arguments))
    said = capsys.readouterr().err
    assert stop.value.code == 2 and said.startswith("error: ") and said.count("\n") == 1
    return said.removeprefix("error: ").strip()


# --- options --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["--batch_size", "--batch-size"])
@pytest.mark.parametrize("form", ["{}=4", "{} 4"])
def test_options_are_written_with_either_line(parser, name, form):
    options = parser.parse_args(["a-b_c.mp4", "--model=a-b/c_d-e", *form.format(name).split()])
    assert (options.batch_size, options.model, options.videos) == (4, "a-b/c_d-e", ["a-b_c.mp4"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--modle", "m"], "there is no option --modle; did you mean --model?"),
        (["--batchsize=4"], "there is no option --batchsize; did you mean --batch_size?"),
        (["--checkpoint", "m"], "there is no option --checkpoint; did you mean --model?"),
        (["--label", "m"], "there is no option --label; did you mean --labels?"),  # no abbreviations
        (["--zzz"], "there is no option --zzz (see"),
        (["-o", "x"], "there is no option -o"),
    ],
)
def test_a_typo_gets_a_suggestion_whatever_else_is_missing(parser, capsys, arguments, message):
    given = arguments if arguments[0].startswith("--") else ["--model", "m", *arguments]
    assert message in refused(capsys, parser.parse_args, "a.mp4", *given)


def test_what_is_missing_is_named(parser, capsys):
    assert "the following arguments are required: --model" in refused(capsys, parser.parse_args, "a.mp4")
    assert "required: VIDEO" in refused(capsys, parser.parse_args, "--model", "m")


@pytest.mark.parametrize(("given", "value"), [([], False), (["--share"], True), (["--share=no"], False)])
def test_flags(parser, given, value):
    assert parser.parse_args(["a.mp4", "--model", "m", *given]).share is value


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--batch_size=0", "0 is out of range: it must be at least 1"),
        ("--batch_size=1.5", "'1.5' is no whole number"),
        ("--rate=0", "0 is out of range: it must be above 0 and at most 1"),
        ("--rate=nan", "nan is out of range"),
        ("--rate=inf", "inf is out of range"),
        ("--rate=x", "'x' is no number"),
        ("--share=perhaps", "'perhaps' is neither true nor false"),
    ],
)
def test_values_out_of_range(parser, capsys, option, message):
    name = option.partition("=")[0]
    assert f"argument {name}: {message}" in refused(capsys, parser.parse_args, "a.mp4", "--model=m", option)


def test_help_shows_defaults_and_the_documentation(parser, capsys):
    with pytest.raises(SystemExit) as stop:
        parser.parse_args(["--help"])
    said = capsys.readouterr().out
    assert stop.value.code == 0 and "usage: mote try" in said and said.rstrip().endswith("And says more.")
    assert "videos in one forward (default 8)" in said and "share it\n" in said


# --- `mote` ---------------------------------------------------------------------------------------------------------


def test_mote_lists_its_commands(capsys):
    assert main(["--help"]) == 0
    said = capsys.readouterr().out
    assert all(f"  {name} " in said for name in COMMANDS)
    assert main([]) == 2
    assert main(["--version"]) == 0 and modeling_mote.__version__ in capsys.readouterr().out


def test_a_misspelt_command_gets_a_suggestion(capsys):
    assert main(["clasify", "a.mp4"]) == 2
    assert "there is no command 'clasify'; did you mean classify?" in capsys.readouterr().err


@pytest.mark.parametrize("command", [["--version"], ["classify", "--help"]])
def test_mote_is_a_module_too(command):
    done = subprocess.run([sys.executable, "-m", "modeling_mote", *command], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout and not done.stderr
    assert Path(sys.executable).with_name("mote").exists() or os.name == "nt"


def test_nothing_heavy_is_imported_before_the_work(tmp_path):
    """Help, typos and wrong paths of every command, in one process that must end without PyTorch."""
    wrong = {
        "classify": ["nowhere.mp4", "--model", "m"],
        "search": ["index", "nowhere", "--model", "m", "--index", "i"],
        "check": ["no/where"],
        "app": ["--model", "nowhere/at/all"],
    }
    code = AS_MOTE + (
        "from modeling_mote.commands import COMMANDS, main\n"
        f"for name, wrong in ({wrong!r}).items():\n"
        "    assert main([name, *wrong]) == 1, name\n"
        "for name in COMMANDS:\n"
        "    assert main([name, '--help']) == 0, name\n"
        "    assert main([name, '--no-such-option']) == 2, name\n"
        "    heavy = {'torch', 'transformers', 'datasets', 'av', 'matplotlib'} & set(sys.modules)\n"
        "    assert not heavy, (name, heavy)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == len(wrong) + len(COMMANDS) and all(line.startswith("error: ") for line in lines)


# --- how a run ends -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("nowhere", "--model nowhere: there is no such folder; a model on the Hub is named owner/name."),
        ("./nowhere/x", "--model ./nowhere/x: there is no such folder."),
        ("/no/where", "--model /no/where: there is no such folder."),
        ("runs/nowhere", "--model runs/nowhere: there is no such folder."),  # where there is a folder `runs`
        ("a/b/c", "--model a/b/c: there is no such folder."),
    ],
)
def test_a_model_that_is_nowhere(tmp_path, monkeypatch, capsys, model, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "a.mp4").touch()
    assert run_command("classify", ["a.mp4", "--model", model]) == 1
    assert capsys.readouterr().err == f"error: {message}\n"


def test_an_error_is_one_line_and_a_traceback_comes_on_request(tmp_path, monkeypatch, capsys):
    (tmp_path / "a.mp4").touch()
    given = ["classify", [str(tmp_path / "a.mp4"), "--model", str(tmp_path)]]
    monkeypatch.delenv("MOTE_DEBUG", raising=False)
    assert run_command(*given) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1 and str(tmp_path) in said
    monkeypatch.setenv("MOTE_DEBUG", "1")
    assert run_command(*given) == 1 and "Traceback" in capsys.readouterr().err


def test_the_system_s_errors_name_the_file_first(monkeypatch, tmp_path, capsys):
    from modeling_mote.commands import check

    monkeypatch.setattr(check, "run", lambda options: (tmp_path / "gone" / "a.txt").open())
    assert run_command("check", ["ucf101"]) == 1
    assert capsys.readouterr().err == f"error: {tmp_path / 'gone' / 'a.txt'}: no such file or directory.\n"


def test_an_error_that_nobody_foresaw_keeps_its_traceback(monkeypatch):
    from modeling_mote.commands import check

    monkeypatch.setattr(check, "run", lambda options: {}["a fault of ours"])
    with pytest.raises(KeyError):
        run_command("check", ["ucf101"])


def test_warnings_are_one_line_each():
    code = AS_MOTE + (
        "import warnings\n"
        "from modeling_mote.commands import check, command_line\n"
        "def run(options):\n"
        "    for _ in range(2): warnings.warn('two\\nlines')\n"
        "    warnings.warn('for programmers', DeprecationWarning)\n"
        "check.run = run\n"
        "sys.exit(command_line.run_command('check', ['ucf101']))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == "warning: two lines\n" * 2


@pytest.mark.skipif(os.name == "nt", reason="Ctrl-C is no signal there")
def test_ctrl_c_is_one_line(tmp_path):
    """A real signal to a real process at work."""
    code = AS_MOTE + (
        "import time\n"
        "from modeling_mote.commands import check, command_line\n"
        "check.run = lambda options: (print('at work', flush=True), time.sleep(600))\n"
        "sys.exit(command_line.run_command('check', ['ucf101']))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path
    )
    assert process.stdout.readline() == "at work\n"
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130 and said == "error: interrupted\n"


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="pipes end otherwise there")
def test_a_reader_that_goes_away_is_no_error():
    """`mote … | head -1`."""
    code = AS_MOTE + (
        "from modeling_mote.commands import check, command_line\n"
        "check.run = lambda options: [print(n, flush=True) for n in range(100_000)] and 0\n"
        "sys.exit(command_line.run_command('check', ['ucf101']))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "0\n"
    process.stdout.close()
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    said = process.stderr.read()
    process.stderr.close()
    assert process.returncode == 1 and said == ""


def test_another_broken_connection_is_said(monkeypatch, capsys):
    from modeling_mote.commands import check

    def run(options):
        raise BrokenPipeError("a process that reads has gone")

    monkeypatch.setattr(check, "run", run)
    assert run_command("check", ["ucf101"]) == 1
    assert capsys.readouterr().err == "error: a process that reads has gone\n"
