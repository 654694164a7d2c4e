"""Runs the tests on the newest packages that there are, and says which of them broke what.

    python tests/latest.py                               # make test-latest
    python tests/latest.py --write constraints.txt       # make lock: writes the versions down if all tests pass
    python tests/latest.py --hold transformers==5.23.0   # as newest, but for this one (make lock HOLD=...)

Installs into `.venv-latest`. If tests fail, each direct dependency that is newer than in constraints.txt is put back
to its version there, alone, and the failed tests run again: the packages with which they then pass are named.
"""

import argparse
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[1]
VENV = ROOT / ".venv-latest"
REPORT = VENV / "report.xml"


def python(*arguments: str, check: bool = True) -> int:
    command = [str(VENV / ("Scripts" if sys.platform == "win32" else "bin") / "python"), *arguments]
    return subprocess.run(command, cwd=ROOT, check=check).returncode


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def installed() -> dict[str, str]:
    """{package: version} of the environment, without this project."""
    command = [str(VENV / ("Scripts" if sys.platform == "win32" else "bin") / "python"), "-m", "pip", "freeze"]
    frozen = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return dict(pinned(frozen.splitlines()))


def pinned(lines: list[str]) -> list[tuple[str, str]]:
    """(package, version) of the lines `package==version`."""
    return [
        (canonical(name), version)
        for name, equals, version in (line.strip().partition("==") for line in lines)
        if equals and "#" not in name
    ]


def direct() -> set[str]:
    """Packages that pyproject.toml names."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [
        *project["dependencies"],
        *(each for extra in project["optional-dependencies"].values() for each in extra),
    ]
    return {canonical(re.split(r"[^\w.-]", each)[0]) for each in wanted} - {canonical(project["name"])}


def failed(tests: list[str]) -> list[str]:
    """Runs tests; returns those that fail, as names that pytest takes."""
    REPORT.unlink(missing_ok=True)
    code = python(
        "-m",
        "pytest",
        "-q",
        "-m",
        "not slow",
        "-n",
        "2",
        "--dist",
        "loadfile",
        f"--junitxml={REPORT}",
        "-o",
        "junit_family=xunit1",
        *tests,
        check=False,
    )
    if code not in (0, 1) or not REPORT.is_file():
        sys.exit(f"error: pytest ended with code {code}, which is no result of tests.")
    cases = ElementTree.parse(REPORT).getroot().iter("testcase")
    broken = [case for case in cases if case.find("failure") is not None or case.find("error") is not None]
    return [f"{case.get('file')}::{case.get('name')}" for case in broken]


def find_culprits(tests: list[str], newer: dict[str, tuple[str, str]]) -> None:
    """Puts each newer package back alone, and says which of the failed tests pass then."""
    for package, (before, now) in newer.items():
        if python("-m", "pip", "install", "--quiet", f"{package}=={before}", check=False):
            print(f"{package}: {before} can't be installed beside the others")
            continue
        passed = sorted(set(tests) - set(failed(tests)))
        if passed:
            print(f"{package} {now} breaks (with {before} they pass): {', '.join(passed)}")
        python("-m", "pip", "install", "--quiet", f"{package}=={now}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", type=Path, help="file to write the versions to if all tests pass")
    parser.add_argument(
        "--hold", action="append", default=[], metavar="PACKAGE==VERSION", help="not the newest of this"
    )
    options = parser.parse_args()
    print(f"Installing into {VENV.name}/: 7 GB in 2 to 5 minutes; pip says nothing until it is done.", flush=True)
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(VENV)], check=True)
    python("-m", "pip", "install", "--quiet", "-e", ".[dev]", *options.hold)
    tested = dict(pinned((ROOT / "constraints.txt").read_text().splitlines()))
    versions = installed()
    newer = {
        package: (tested[package], version)
        for package, version in versions.items()
        if package in tested and tested[package] != version
    }
    print(
        "Other versions than in constraints.txt:",
        *(f"  {name} {old} -> {new}" for name, (old, new) in newer.items()),
        sep="\n",
        flush=True,
    )
    broken = failed(["tests"])
    if broken:
        print(f"{len(broken)} tests fail:", *(f"  {each}" for each in broken), sep="\n", flush=True)
        find_culprits(broken, {name: change for name, change in newer.items() if name in direct()})
        sys.exit(
            "error: the newest packages do not pass: bound one that is known to break in pyproject.toml, or --hold it."
        )
    print("All tests pass on the versions of today.")
    if options.write is not None:
        header = "# Every package at a version that passed the tests; written by `make lock`.\n"
        lines = "".join(f"{package}=={version}\n" for package, version in sorted(versions.items()))
        options.write.write_text(header + lines)


if __name__ == "__main__":
    main()
