"""What was checked is what is used: indices, offsets and lengths that others change between the check and the work, or
that lie about their memory, give an error or the right result, and never foreign memory."""

import contextlib
import threading

import numpy as np
import pytest

import cq
from cq import CqError, _core
from cq.model.batch import Batch, Sequence
from cq.model.deferred import Deferred
from cq.weights import FloatWeight, Weight, pack, pack_floats

FAR = 2**31 - 1
IDS = np.array([1, 2, 3])


class Changes:
    """An array in disguise that changes another one when it is asked for its own."""

    def __init__(self, other, value=FAR):
        self.other, self.value = other, value

    def __array__(self, dtype=None, copy=None):
        self.other[:] = self.value
        return np.array([1, 2])


@pytest.fixture(scope="module")
def models(tiny_encoder, tiny_lm, random_model):
    return {
        "encoder": cq.load(tiny_encoder),
        "lm": cq.load(tiny_lm),
        "int8": cq.quantize(cq.load(tiny_lm), cq.WeightOnly()),
        "classifier": random_model("bert", labels=("a", "b"), classifier="tanh")[0],
    }


WAYS = [
    ("encoder", "forward"),
    ("encoder", "embed"),
    ("encoder", "observe"),
    ("lm", "forward"),
    ("lm", "logits"),
    ("int8", "logits"),
    ("classifier", "classify"),
]


@pytest.mark.parametrize("name, way", WAYS)
def test_ids_that_another_row_changes(models, name, way):
    run = getattr(models[name], way)
    work = (lambda rows: run(rows, lambda site, x: None)) if way == "observe" else run
    expected = work([IDS, [1, 2]])
    for value in (FAR, -1, -FAR - 1, 2**40):
        ids = IDS.copy()
        found = work([ids, Changes(ids, value)])
        assert ids[0] == value
        if expected is not None:
            assert all(np.array_equal(a, b) for a, b in zip(found, expected))
        with pytest.raises(CqError, match=r"tokens\[1\]: token id"):
            work([Changes(IDS.copy()), ids])


def test_ids_that_a_generator_changes(models):
    ids = IDS.copy()

    def rows():
        yield ids
        ids[:] = FAR
        yield [1, 2]

    with pytest.raises(CqError, match="token id"):  # the rows were listed first
        models["encoder"].forward(rows())
    batch = {"input_ids": [ids := IDS.copy(), Changes(ids)], "attention_mask": [[1, 1, 1], [1, 1]]}
    expected = models["encoder"].forward([IDS, [1, 2]])
    assert all(np.array_equal(a, b) for a, b in zip(models["encoder"].forward(batch), expected))
    with pytest.raises(CqError):
        models["lm"].generate([np.array([FAR])], 1)


def test_ids_that_a_callback_changes(models):
    """Samples, targets and windows too: the call ends in a result or in an error of cq's."""
    lm = models["lm"]
    for work in (
        lambda ids: cq.quantize(lm, cq.Static(observer="minmax"), [ids, ids], progress=lambda *a: ids.fill(FAR)),
        lambda ids: cq.quantize(lm, cq.QAT(steps=2, batch_size=2), [ids] * 4, progress=lambda *a: ids.fill(FAR)),
        lambda ids: cq.compare(lm, [ids] * 3, strategies=[cq.Dynamic()], progress=lambda *a: ids.fill(FAR)),
    ):
        ids = np.arange(12)
        with contextlib.suppress(CqError):
            work(ids)
        assert (ids == FAR).all(), "the callback was called"


def test_sequences_are_checked_again(models):
    """What tokens_of gave may have been written to."""
    encoder, types = models["encoder"], np.array([0, 1, 1], np.int32)
    sequence = Sequence(IDS.astype(np.int32), types)
    expected = encoder.forward([sequence])[0]
    assert np.array_equal(encoder.forward([Sequence(IDS, types)])[0], expected)
    for field, value in (("ids", FAR), ("types", FAR), ("types", -1), ("positions", FAR), ("positions", 64)):
        bad = Sequence(IDS.copy(), types.copy(), np.arange(3))
        getattr(bad, field)[1] = value
        with pytest.raises(CqError):
            encoder.forward([bad])
    with pytest.raises(CqError, match="as many"):
        encoder.forward([Sequence(IDS, types[:2])])


@pytest.mark.parametrize("threads", [1, 2])
def test_the_core_looks_again(models, threads):
    """The core checks ids, positions, types and offsets itself, also where nothing in Python did."""
    before = _core.get_threads()
    _core.set_threads(threads)
    try:
        word, table, types = (np.ones((n, 700), np.float32) for n in (5, 7, 2))
        ids, some = np.zeros(200, np.int32), np.zeros(200, np.int32)
        packed = pack_floats(word.T), cq.pack(cq.quantize_tensor(word.T, axis=1))
        for value in (5, -1, FAR, -FAR - 1):
            for place, weights in ((150, word), (3, packed[0]), (199, packed[1])):
                ids[:], ids[place] = 0, value
                with pytest.raises(CqError, match=f"embed: .* {place} is out of range"):
                    _core.embed(ids, weights)
        ids[:] = 0
        for value, rows in ((7, "position"), (2, "type"), (-1, "type"), (FAR, "position")):
            some[:], some[9] = 0, value
            position, kind = (some, ids) if rows == "position" else (ids, some)
            with pytest.raises(CqError, match="embed: .* 9 is out of range"):
                _core.embed(ids, word, position, table, kind, types)
        with pytest.raises(CqError, match="position: "):
            _core.embed(ids, word, None, table)
        x, turns = np.ones((200, 64), np.float32), np.ones((7, 16), np.float32)
        some[9] = 7
        with pytest.raises(CqError, match="rope: .* 9 is out of range"):
            _core.rope(x, 2, 32, turns, turns, some)
        for offsets in ([0, 201], [0, 50, 40, 200], [-1, 200], [0, FAR], [-FAR, 5]):
            with pytest.raises(CqError, match="attention: .* is out of range"):
                _core.attention(x, np.array(offsets, np.int32), 2, 1, False, 0.1)
        model = models["lm"]
        batch = Batch([IDS.astype(np.int32)])
        batch.ids[1] = FAR
        with pytest.raises(CqError, match="embed: .* 1 is out of range"):
            model.hidden(batch)
    finally:
        _core.set_threads(before)


def test_recorded_calls_look_too():
    tape, ids, word = _core.Tape(8), np.zeros(8, np.int32), np.ones((5, 16), np.float32)
    with tape:
        _core.embed(ids, word)
    tape.replay(4)
    ids[2] = FAR
    with pytest.raises(CqError, match="2 is out of range"):
        tape.replay(4)
    tape.replay(2)


def test_weights_are_what_they_say():
    """Also those that are packed when a product wants them."""
    codes, floats = np.ones((8, 5), np.int8), np.ones((8, 5), np.float32)
    x, coded = np.ones((3, 8), np.float32), _core.Coded(np.ones((3, 8), np.uint8), 1.0, 0)
    bare, wide = pack(codes), pack_floats(floats)
    for message, call in (
        ("no scales", lambda: _core.linear(x, bare)),
        ("no scales", lambda: _core.embed(np.zeros(2, np.int32), bare)),
        ("int8 weight", lambda: _core.matmul_integer(coded, wide)),
        ("b: need int8", lambda: pack(Deferred((8, 5), np.int8, lambda: floats)).panels),
        ("b: need int8 matrices of shape .8, 5", lambda: pack(Deferred((8, 5), np.int8, lambda: codes[1:])).panels),
        (
            "panels: need a int8 array of shape .128",
            lambda: Weight(codes[0], np.ones(5, np.int32), None, None, 8, 5, 8),
        ),
        ("column_sums: ", lambda: Weight(bare.panels, np.ones(4, np.int32), None, None, 8, 5, 8)),
        ("panels: ", lambda: FloatWeight(wide.panels[1:].copy(), 8, 5)),
        ("k, n, group_size", lambda: FloatWeight(wide.panels, -8, 5)),
        ("is above 65793", lambda: _core.Packed(65_794, 1, 65_794).pack(np.ones((65_794, 1), np.int8))),
    ):
        with pytest.raises(CqError, match=message):
            call()
    bare.put(np.zeros(128, np.int8), np.zeros(5, np.int32))
    assert (bare.column_sums == 8).all(), "the arrays that came first stay"


def test_rooms_that_do_not_fit_are_not_kept():
    kept, room = _core.Kept(1, 1, 16, "float32"), np.zeros(64 * 16, np.float32)
    for arguments in ((0, 65, 64, room, room), (0, 0, 64, room, room[1:].copy()), (1, 0, 64, room, room)):
        with pytest.raises(CqError):
            kept.put(*arguments)
    with pytest.raises(CqError, match="no room"):
        kept.move(0, -1)


class Lies(np.ndarray):
    """Says another shape, or other strides, than its memory has."""

    shape = property(lambda self: (4096, 64))
    strides = property(lambda self: (1 << 30, 1 << 20))
    ndim = property(lambda self: 2)


def test_arrays_that_lie_about_their_memory():
    codes, x = np.ones((8, 5), np.int8), np.ones((3, 8), np.float32)
    packed = cq.pack(cq.quantize_tensor(np.ones((8, 5), np.float32)))
    true = cq.pack(codes)
    lied = cq.pack(codes.view(Lies))
    assert lied.shape == (8, 5) and lied.panels.tobytes() == true.panels.tobytes()
    for array in (np.ones((3, 8), np.uint8), np.ones((3, 8), np.int8)):
        assert np.array_equal(cq.matmul_integer(array.view(Lies), true), cq.matmul_integer(array, true))
    assert np.array_equal(cq.linear(x.view(Lies), packed), cq.linear(x, packed))
    with pytest.raises(CqError):
        _core.embed(np.zeros(3, np.int32).view(Lies), x)


def test_zero_points_that_change_after_their_check():
    zero_points = np.zeros(5, np.int64)

    class Late:
        def __array__(self, dtype=None, copy=None):
            return zero_points

    packed = cq.pack(np.ones((8, 5), np.int8), Late())
    zero_points[:] = 10**9
    assert packed.zero_points is None or (packed.zero_points == 0).all()
    tensor = cq.quantize_tensor(np.ones((3, 8), np.float32), axis=0)
    tensor.zero_point[:] = 10**9
    weight = cq.pack(cq.quantize_tensor(np.ones((8, 5), np.float32)))
    with pytest.raises(CqError, match="x.zero_point"):
        cq.linear(tensor, weight)


@pytest.mark.parametrize("name", ["encoder", "lm", "int8"])
def test_ids_in_other_layouts(models, name):
    """Read-only, strided, reversed, of other bytes and widths: the same numbers."""
    run = models[name].forward
    expected = run([IDS])[0].tobytes()
    fixed = IDS.copy()
    fixed.flags.writeable = False
    odd = np.frombuffer(b"x" + IDS.astype("<i4").tobytes(), np.uint8)[1:].view("<i4")  # not aligned
    wide = np.zeros((3, 7), np.int16)
    wide[:, 2] = IDS
    for ids in (fixed, odd, wide[:, 2], IDS[::-1].copy()[::-1], *(IDS.astype(t) for t in (">i2", ">u8", "u1", "<i8"))):
        assert run([ids])[0].tobytes() == expected


def test_threads_that_change_ids_meanwhile(models):
    """A race of 400 calls: each gives the result of the valid ids or an error."""
    ids, stop = IDS.copy(), threading.Event()
    expected = {name: models[name].forward([IDS, [1, 2]]) for name in ("encoder", "lm")}

    def change():
        while not stop.is_set():
            ids[:] = FAR
            ids[:] = IDS

    thread = threading.Thread(target=change)
    thread.start()
    try:
        for _ in range(200):
            for name, wanted in expected.items():
                try:
                    found = models[name].forward([ids, [1, 2]])
                except CqError as error:
                    assert "token id" in str(error)
                else:
                    assert all(map(np.array_equal, found, wanted))
    finally:
        stop.set()
        thread.join()
