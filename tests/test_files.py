import errno
import os
import resource
import signal
import stat
import subprocess
import sys
from contextlib import contextmanager

import numpy as np
import pytest

from fedexp.files import read_json, reason, save_json, save_model, save_text

MODEL = {"w": np.ones((50, 50))}


@contextmanager
def files_of_at_most(size):
    """A disk that is full, as far as the kernel's limit on files can play one."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_every_file_has_the_permissions_that_the_umask_gives(umask, tmp_path):
    before = os.umask(umask)
    try:
        save_model(tmp_path / "model.safetensors", MODEL)
        save_text(tmp_path / "text", "x")
    finally:
        os.umask(before)
    modes = {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert modes == {0o666 & ~umask}


@pytest.mark.parametrize(
    "save", [lambda p: save_model(p, MODEL), lambda p: save_text(p, "x" * 20_000)]
)
def test_a_file_that_does_not_fit_leaves_the_old_one_and_the_systems_own_error(save, tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with files_of_at_most(1000), pytest.raises(OSError, match="too large") as caught:
        save(path)
    assert caught.value.errno == errno.EFBIG
    assert path.read_text() == "old"
    assert [x.name for x in tmp_path.iterdir()] == ["file"]


def test_the_reason_names_the_file():
    assert reason(OSError(errno.ENOSPC, "No space left on device", "a/b")) == (
        "No space left on device (a/b)"
    )
    assert reason(OSError("no cluster")) == "no cluster"


def test_text_is_utf_8_whatever_the_locale(tmp_path):
    code = (
        "from pathlib import Path; from fedexp.config import Config; from fedexp.files import *\n"
        "name = 'Zo\\u00eb \\u03b7\\n'\n"
        "save_text(Path('run.toml'), Config(name=name).to_toml())\n"
        "save_json(Path('x.json'), [name]); assert read_json(Path('x.json')) == [name]\n"
        "assert Config.of(Config.read('run.toml')).name == name\n"
    )
    env = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONPATH": os.getcwd()}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, check=True)
    assert 'name = "Zoë η\\n"' in (tmp_path / "run.toml").read_text(encoding="utf-8")


def test_json_gives_back_what_was_saved(tmp_path):
    save_json(tmp_path / "x.json", {"κ": [1, None, 0.5]})
    assert read_json(tmp_path / "x.json") == {"κ": [1, None, 0.5]}
