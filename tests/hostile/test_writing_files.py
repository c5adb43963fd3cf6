"""Files are written whole or not at all, keep their mode and leave nothing else behind; Ctrl-C ends the command in one
line, also while it is being loaded; the floating-point mode of the calling thread changes no bits."""

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from interrupts import heed_interrupts

import cq
from cq.formats import files
from cq.formats.files import replacing, replacing_folder, write_whole
from cq.report import trials

UNNAMED = pytest.mark.parametrize("unnamed", [True, False], ids=["unnamed", "named"])


@pytest.fixture
def kind(unnamed, monkeypatch):
    """Whether a file has no name until it is whole; it has one where the file system knows no unnamed files."""
    if not unnamed:
        monkeypatch.setattr(files._Unfinished, "_unnamed", lambda self: None)
    return unnamed


@UNNAMED
def test_new_and_replaced(tmp_path, kind):
    path, umask = tmp_path / "a.json", os.umask(0o027)
    try:
        write_whole(path, b"one")
        assert path.read_bytes() == b"one" and stat.S_IMODE(path.stat().st_mode) == 0o640
        for mode in (0o600, 0o444, 0o755, 0o664):
            path.chmod(mode)
            write_whole(path, str(mode).encode())
            assert path.read_bytes() == str(mode).encode() and stat.S_IMODE(path.stat().st_mode) == mode
        (tmp_path / "link").symlink_to("a.json")
        write_whole(tmp_path / "link", b"through")
        assert path.read_bytes() == b"through" and (tmp_path / "link").is_symlink()
        with pytest.raises(RuntimeError), replacing(path) as file:
            file.write(b"half")
            raise RuntimeError
        assert path.read_bytes() == b"through" and sorted(p.name for p in tmp_path.iterdir()) == ["a.json", "link"]
    finally:
        os.umask(umask)


@pytest.mark.parametrize("change", ["shortened", "other bytes"])
def test_a_file_that_is_written_into_while_it_is_mapped(tiny_lm, tmp_path, change):
    """Weights that were not read yet are not there, or are others."""
    path = tmp_path / "a.safetensors"
    path.write_bytes(tiny_lm.read_bytes())
    model, size = cq.load(path), path.stat().st_size
    os.utime(path, ns=(0, 0))  # so that the clock's steps do not matter
    if change == "shortened":
        os.truncate(path, size // 2)
    else:
        with open(path, "r+b") as file:
            file.seek(size - 1)
            file.write(b"x")
    with pytest.raises(cq.FormatError, match="a.safetensors: written to since it was loaded; load it again"):
        cq.quantize(model, cq.Dynamic())


@UNNAMED
@pytest.mark.parametrize("length", [200, 230, 242, 255])
def test_names_of_any_length(tiny_lm, tmp_path, kind, length):
    for name in ("n" * (length - 12) + ".safetensors", "é" * ((length - 12) // 2) + ".safetensors"):
        model, path = cq.load(tiny_lm), tmp_path / name
        for _ in range(2):
            cq.save(model, path)
        assert cq.load(path).nbytes == model.nbytes
    with pytest.raises((cq.CqError, OSError)) as raised:
        cq.save(model, tmp_path / ("n" * 256 + ".safetensors"))
    assert len(str(raised.value)) <= 1000 and len(list(tmp_path.iterdir())) == 2


WRITER = """
import os, sys
from cq.formats import files
if sys.argv[2] == "named":
    files._Unfinished._unnamed = lambda self: None
with files.replacing(sys.argv[1]) as file:
    while True:
        file.write(b"x" * 65536)
        file.flush()
        print("wrote", flush=True)
"""


@pytest.mark.parametrize("way", ["unnamed", "named"])
def test_a_killed_writer_leaves_nothing(tmp_path, way):
    path = tmp_path / "a.bin"
    path.write_bytes(b"whole")
    writer = subprocess.Popen([sys.executable, "-c", WRITER, path, way], stdout=subprocess.PIPE)
    assert writer.stdout.readline() == b"wrote\n"
    beside = tmp_path / "b.bin"
    write_whole(beside, b"while the other one is at work")  # which keeps its file
    assert len(list(tmp_path.iterdir())) == 2 + (way == "named")
    writer.kill()
    writer.wait()
    writer.stdout.close()
    assert path.read_bytes() == b"whole"
    if way == "named":
        write_whole(beside, b"sweeps")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.bin", "b.bin"]


FOLDER_WRITER = """
import sys
from pathlib import Path
from cq.formats.files import replacing_folder, write_whole
with replacing_folder(Path(sys.argv[1])) as folder:
    write_whole(folder / "a.bin", b"x")
    print("wrote", flush=True)
    sys.stdin.read()
"""


def test_a_killed_writer_of_a_folder_leaves_nothing(tmp_path):
    path = tmp_path / "out"
    command = [sys.executable, "-c", FOLDER_WRITER, path]
    writer = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert writer.stdout.readline() == b"wrote\n"
    write_whole(tmp_path / "b.bin", b"while the other one is at work")  # which keeps its folder
    assert len(list(tmp_path.iterdir())) == 2 and not path.exists()
    writer.kill()
    writer.communicate()
    with replacing_folder(path) as folder:
        assert sorted(p.name for p in tmp_path.iterdir()) == sorted(["b.bin", folder.name])
        write_whole(folder / "a.bin", b"whole")
    with pytest.raises(RuntimeError), replacing_folder(tmp_path / "other"):
        raise RuntimeError
    assert sorted(p.name for p in tmp_path.iterdir()) == ["b.bin", "out"]
    assert (path / "a.bin").read_bytes() == b"whole"


def test_everything_is_written_by_it(monkeypatch, tmp_path, tiny_lm):
    """Every file is flushed to disk, the record of a search included."""
    synced, real = [], os.fsync
    monkeypatch.setattr(files.os, "fsync", lambda descriptor: (synced.append(descriptor), real(descriptor)))
    trials.Search(tmp_path / "mix.json", {"a": 1}, 1.0).value("x", lambda: 2.0)
    assert len(synced) == 2
    cq.save(cq.load(tiny_lm), tmp_path / "a.safetensors")
    assert len(synced) == 4 and len(list(tmp_path.iterdir())) == 2
    for source in Path(cq.__file__).parent.rglob("*.py"):
        text = source.read_text()
        opened = [mode for mode in ('"wb"', '"w"', '"xb"', ".write_text(", "os.replace(") if mode in text]
        assert not opened or source.name == "files.py", source


LOADS = """
import os, sys, time
print("loading", flush=True)
time.sleep(60)
"""


COMMANDS = {"module": ["-m", "cq"], "script": [str(Path(sys.executable).with_name("cq"))]}


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_interrupted_while_it_is_loaded(tmp_path, command):
    if len(command) == 1 and not Path(command[0]).exists():
        pytest.skip("cq is not installed as a command here")
    (tmp_path / "tokenizers").mkdir()
    (tmp_path / "tokenizers" / "__init__.py").write_text(LOADS)
    run = subprocess.Popen(
        [sys.executable, *command, "info"],
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        preexec_fn=heed_interrupts,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert run.stdout.readline() == b"loading\n"
    run.send_signal(signal.SIGINT)
    output, errors = run.communicate(timeout=200)
    assert (run.returncode, output, errors) == (130, b"", b"cq: interrupted\n")


def test_importing_changes_no_handler():
    """A program that imports cq keeps its own handler of Ctrl-C."""
    code = "import signal; before = signal.getsignal(signal.SIGINT); import cq; assert signal.getsignal(2) is before"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


FLUSHED = """
import ctypes, mmap, sys
import numpy as np, cq
from cq import _core, functions
from cq.train.passes import exponents
from cq.weights import pack_floats
# mov eax, edi; push rax; ldmxcsr [rsp]; pop rax; ret — and its reverse
code = mmap.mmap(-1, 4096, prot=7)
code.write(bytes.fromhex("89f8500fae142458c3") + bytes(7) + bytes.fromhex("500fae1c245 8c3".replace(" ", "")))
at = ctypes.addressof(ctypes.c_char.from_buffer(code))
put, get = ctypes.CFUNCTYPE(None, ctypes.c_uint)(at), ctypes.CFUNCTYPE(ctypes.c_uint)(at + 16)
rng = np.random.default_rng(0)
x = (rng.standard_normal((512, 256)) * np.float32(1e-38)).astype(np.float32)
w = rng.standard_normal((256, 256)).astype(np.float32)
packed, small = pack_floats(w), np.full(256, 1e-38, np.float32)
norm = type("N", (), dict(weight=small, bias=None, eps=1e-6, rms=True))
def bits():
    results = [_core.linear(x, packed), _core.norm(x, norm)[0], _core.gate(x, x, "silu"), functions.matmul(x, w)]
    results += [exponents(x.copy(), 1.0, False), functions.exp(x), np.float32(_core.min_max(x))]
    return [r.tobytes() for r in results]
expected = {}
modes = {"usual": 0x1f80, "flushed": 0x9fc0, "up": 0x5f80, "flushed, zero": 0xffc0}
with_denormals = np.abs(np.frombuffer(bits()[3], np.float32))
assert ((with_denormals > 0) & (with_denormals < 1.17e-38)).any()
for threads in (1, 2):
    cq.set_num_threads(threads)
    for name, mode in modes.items():
        put(mode)
        found, after = bits(), get()
        put(0x1f80)
        assert after & 0xffc0 == mode & 0xffc0, (name, hex(after))
        expected.setdefault(0, found)
        assert [a == b for a, b in zip(found, expected[0])] == [True] * len(found), (name, threads)
"""


def test_the_calling_threads_floating_point_mode():
    """Denormals flushed, other rounding: the same bits with 1 and 2 threads, and the mode stays."""
    run = subprocess.run([sys.executable, "-c", FLUSHED], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
