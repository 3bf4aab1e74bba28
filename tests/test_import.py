"""What importing the package costs."""

import subprocess
import sys

import pytest


def test_packages_alone_import_nothing_heavy():
    code = (
        "import sys, fedexp; fedexp.__version__; dir(fedexp); "
        "import fedexp.clients, fedexp.datasets, fedexp.hypergradients, fedexp.runs; "
        "import fedexp.learned_steps; "
        "print(sorted({'torch', 'numpy', 'flwr', 'ray', 'pandas', 'rich'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_its_names_are_there_when_they_are_asked_for():
    import fedexp

    assert all(callable(getattr(fedexp, name)) for name in fedexp.__all__ if name[0] != "_")
    with pytest.raises(AttributeError, match="has no attribute 'simulat'"):
        fedexp.simulat  # noqa: B018 - that it raises is the test


def test_a_name_may_be_called_otherwise_in_its_module():
    from fedexp.extras import later

    getattr_, dir_ = later("fedexp", "torch", Old="fractions:Fraction", Fraction="fractions")
    assert getattr_("Old") is getattr_("Fraction")
    assert {"Old", "Fraction", "__version__"} <= set(dir_())


def test_another_package_that_is_missing_is_named_as_it_is():
    from fedexp.extras import later

    getattr_, _ = later("fedexp", "torch", Thing="no_such_module")
    with pytest.raises(ModuleNotFoundError, match=r"^No module named 'no_such_module'$"):
        getattr_("Thing")
