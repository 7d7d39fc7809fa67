"""The names of the package, which are imported when they are asked for."""

import ast
import subprocess
import sys
from pathlib import Path

import swinv2


def test_the_package_imports_a_name_when_it_is_asked_for() -> None:
    script = (
        "import pickle, sys, swinv2\n"
        "assert set(swinv2.__all__) | {'__version__'} <= set(dir(swinv2))\n"
        "assert 'torch' not in sys.modules\n"
        "from swinv2 import *\n"
        "from swinv2.config import Swinv2Config as same\n"
        "assert Swinv2Config is same is swinv2.Swinv2Config\n"
        "assert all(name in globals() for name in swinv2.__all__)\n"
        "assert pickle.loads(pickle.dumps(Swinv2Config)) is same\n"
        "swinv2.register()\n"
        "assert not hasattr(swinv2, 'nonsense')\n"
        "try:\n"
        "    from swinv2 import nonsense\n"
        "except ImportError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("cannot import name 'nonsense' from 'swinv2'")


def test_what_type_checkers_see_is_what_there_is() -> None:
    """The names that are imported for type checkers are those that are imported when they are asked for."""
    tree = ast.parse(Path(swinv2.__file__).read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {name.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for name in node.names}
    assert seen == {name: f"swinv2.{home}" for name, home in swinv2._HOMES.items()}
    assert sorted(seen) == swinv2.__all__
