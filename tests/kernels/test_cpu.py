"""What cq makes of a CPU's features and the registers that its system saves: src/cpu.c, asked about other machines."""

import ctypes
from pathlib import Path

import pytest
from compiled import compiled

SOURCE = Path(__file__).parents[2] / "src" / "cpu.c"
AVX2, AVX512VNNI, AVXVNNI, UNSAVED_AVX, UNSAVED_AVX512, AVX512BW, UNSAVED_AVX512BW = 1, 2, 4, 8, 16, 32, 64  # cpu.h
AMX, UNSAVED_AMX = 128, 256
UNSAVED, SERVER = UNSAVED_AVX512 | UNSAVED_AVX512BW, AVX2 | AVXVNNI | AVX512BW | AVX512VNNI
AVX_STATE, AVX512_STATE, AMX_STATE = 0x6, 0xE6, 0x600E6
# Bits of CPUID: leaf 1 ecx; leaf 7 ebx, ecx, edx; leaf 7, subleaf 1, eax. From Intel's manual, volume 2A.
FMA, OSXSAVE, AVX = 1 << 12, 1 << 27, 1 << 28
HAS_AVX2, F, DQ, BW, VL = 1 << 5, 1 << 16, 1 << 17, 1 << 30, 1 << 31
VNNI, AVX_VNNI, AMX_TILE, AMX_INT8 = 1 << 11, 1 << 4, 1 << 24, 1 << 25
LEAF_1, AVX512 = FMA | OSXSAVE | AVX, HAS_AVX2 | F | DQ | BW | VL


@pytest.fixture(scope="module")
def features_of(tmp_path_factory):
    library = compiled(
        tmp_path_factory.mktemp("cpu"),
        f'#include "{SOURCE}"\n'
        "unsigned ask(unsigned c1, unsigned last7, unsigned b7, unsigned c7, unsigned d7, unsigned a71,\n"
        "             uint64_t state) {\n"
        "    return features_of(c1, last7, b7, c7, d7, a71, state);\n}\n",
        f"-I{SOURCE.parent}",
    )
    if library is None:
        pytest.skip("no C compiler to compile src/cpu.c for other machines")
    ask = ctypes.CDLL(str(library)).ask
    ask.restype, ask.argtypes = ctypes.c_uint, [ctypes.c_uint] * 6 + [ctypes.c_uint64]
    return ask


@pytest.mark.parametrize(
    "machine, leaves, state, expected",
    [
        ("before AVX", (0, 0, 0, 0, 0, 0), 0, 0),
        ("AVX without FMA and AVX2", (AVX | OSXSAVE, 0, 0, 0, 0, 0), AVX_STATE, 0),
        ("Haswell", (LEAF_1, 0, HAS_AVX2, 0, 0, 0), AVX_STATE, AVX2),
        ("Haswell under a system that has no XSAVE", (LEAF_1 & ~OSXSAVE, 0, HAS_AVX2, 0, 0, 0), 0, UNSAVED_AVX),
        ("Haswell under a system that saves SSE alone", (LEAF_1, 0, HAS_AVX2, 0, 0, 0), 0x2, UNSAVED_AVX),
        ("Skylake server", (LEAF_1, 0, AVX512, 0, 0, 0), AVX512_STATE, AVX2 | AVX512BW),
        ("Skylake server under a system for AVX", (LEAF_1, 0, AVX512, 0, 0, 0), AVX_STATE, AVX2 | UNSAVED_AVX512BW),
        ("Xeon Phi, without BW", (LEAF_1, 0, AVX512 & ~(BW | DQ | VL), 0, 0, 0), AVX512_STATE, AVX2),
        ("Ice Lake", (LEAF_1, 0, AVX512, VNNI, 0, 0), AVX512_STATE, AVX2 | AVX512BW | AVX512VNNI),
        ("Ice Lake without VL", (LEAF_1, 0, AVX512 & ~VL, VNNI, 0, 0), AVX512_STATE, AVX2 | AVX512BW),
        ("Ice Lake under a system for AVX", (LEAF_1, 0, AVX512, VNNI, 0, 0), AVX_STATE, AVX2 | UNSAVED),
        ("Ice Lake, high registers unsaved", (LEAF_1, 0, AVX512, VNNI, 0, 0), 0x66, AVX2 | UNSAVED),
        ("Alder Lake", (LEAF_1, 1, HAS_AVX2, 0, 0, AVX_VNNI), AVX_STATE, AVX2 | AVXVNNI),
        ("Alder Lake under an old system", (LEAF_1, 1, HAS_AVX2, 0, 0, AVX_VNNI), 0x2, UNSAVED_AVX),
        ("a CPU without subleaf 1", (LEAF_1, 0, HAS_AVX2, 0, 0, AVX_VNNI), AVX_STATE, AVX2),
        ("Zen 5", (LEAF_1, 1, AVX512, VNNI, 0, AVX_VNNI), AVX512_STATE, AVX2 | AVXVNNI | AVX512BW | AVX512VNNI),
        ("Sapphire Rapids", (LEAF_1, 1, AVX512, VNNI, AMX_TILE | AMX_INT8, AVX_VNNI), AMX_STATE, SERVER | AMX),
        (
            "Sapphire Rapids under a system that saves no tiles",
            (LEAF_1, 1, AVX512, VNNI, AMX_TILE | AMX_INT8, AVX_VNNI),
            AVX512_STATE,
            SERVER | UNSAVED_AMX,
        ),
        ("tiles without int8", (LEAF_1, 1, AVX512, VNNI, AMX_TILE, AVX_VNNI), AMX_STATE, SERVER),
    ],
)
def test_features(features_of, machine, leaves, state, expected):
    assert features_of(*leaves, state) == expected, machine
