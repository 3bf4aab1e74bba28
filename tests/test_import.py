"""What importing the package costs."""

import subprocess
import sys


def test_the_package_alone_imports_nothing_heavy():
    code = (
        "import sys, fedexp; fedexp.__version__; dir(fedexp); "
        "print(sorted({'torch', 'numpy', 'flwr', 'ray', 'pandas', 'rich'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_its_names_are_there_when_they_are_asked_for():
    import fedexp

    assert all(callable(getattr(fedexp, name)) for name in fedexp.__all__ if name[0] != "_")
