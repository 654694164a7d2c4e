"""Names that are imported when they are first used."""

import importlib
import subprocess
import sys

import pytest

import modeling_mote


@pytest.mark.parametrize("package", ["modeling_mote", "modeling_mote.processing"])
def test_every_public_name_is_there(package):
    module = importlib.import_module(package)
    for name in getattr(module, "__all__", ()):
        assert getattr(module, name) is not None
        assert name in dir(module)
    with pytest.raises(AttributeError, match=f"module '{package}' has no attribute 'nothing'"):
        _ = module.nothing


def test_a_name_is_imported_when_it_is_used():
    code = (
        "import sys; sys.argv[0] = 'mote'\n"  # else `import modeling_mote` registers with transformers at once
        "import modeling_mote.processing as processing\n"
        "assert 'torch' not in sys.modules\n"
        "assert processing.parse_labels('a, b') == ['a', 'b'] and 'torch' not in sys.modules\n"
        "processing.encode_classes\n"
        "assert 'torch' in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_importing_the_package_registers_it():
    code = "import sys, modeling_mote\nassert 'modeling_mote.registration' in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0
    assert modeling_mote.__version__
