"""An ONNX graph as it is drawn, node by node, and the file that holds it. Knows no transformer."""

import importlib
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from ...errors import UnsupportedError
from ...model.deferred import Deferred, read
from ..files import replacing, write_whole
from ..tensors import raw_bytes

OPSET, IR_VERSION = 21, 10  # the first opset with blocked DequantizeLinear; the first ONNX release with it
LARGEST = 2**31 - 2**20  # bytes of constants in one file: a protobuf ends at 2 GiB, and nodes take room too
APART = 1 << 10  # bytes of a constant from which it goes to the second file, where there is one
ALIGNED = 1 << 12  # a page: constants can be mapped

Operand = str | np.ndarray | np.generic | None  # name of a value, a constant, or what is left out


def package() -> ModuleType:
    """The onnx package. Raises UnsupportedError where it is missing."""
    try:
        return importlib.import_module("onnx")
    except ImportError:
        raise UnsupportedError("export to ONNX needs the package onnx: pip install 'cquant[onnx]'") from None


class Graph:
    """Nodes in the order of work, constants, inputs and outputs. Values are known by their names; those of nodes begin
    with the place that is drawn, as "layers.0.attention.query/Gemm"."""

    def __init__(self) -> None:
        self.onnx = package()
        self.inputs: list[Any] = []
        self.outputs: list[Any] = []
        self.constants: dict[str, np.ndarray | Deferred] = {}
        self._nodes: list[Any] = []
        self._place: list[str] = []
        self._names: Counter[str] = Counter()
        self._alike: dict[tuple, str] = {}  # small constants, by what they hold
        self._owned: dict[int, str] = {}  # large ones, by the id of what they belong to

    @contextmanager
    def inside(self, place: str) -> Iterator[None]:
        """What is drawn meanwhile belongs there."""
        self._place.append(place)
        try:
            yield
        finally:
            self._place.pop()

    def add(self, op: str, *operands: Operand, **attributes: object) -> str:
        """The name of a new node's result."""
        return self.add_several(op, 1, *operands, **attributes)[0]

    def add_several(self, op: str, results: int, *operands: Operand, **attributes: object) -> list[str]:
        """The same of a node with so many results."""
        name = self._unique(f"{self._place[-1]}/{op}" if self._place else op)
        names = [name] if results == 1 else [f"{name}:{i}" for i in range(results)]
        while operands and operands[-1] is None:
            operands = operands[:-1]
        given = ["" if operand is None else self._named(operand) for operand in operands]
        self._nodes.append(self.onnx.helper.make_node(op, given, names, name=name, **attributes))
        return names

    def constant(self, name: str, array: np.ndarray | Deferred, owner: object = None) -> str:
        """The name of a constant that has one: made once, and shared by all who ask for it, or for one of the same
        owner, such as a layer that several blocks share."""
        name = name if owner is None else self._owned.setdefault(id(owner), name)
        self.constants.setdefault(name, array)
        return name

    def input(self, name: str, dtype: type, shape: tuple[int | str, ...]) -> str:
        self.inputs.append(self._value(name, dtype, shape))
        return name

    def output(self, name: str, value: str, shape: tuple[int | str, ...]) -> None:
        """float32 `value` under a name for callers."""
        self._nodes.append(self.onnx.helper.make_node("Identity", [value], [name], name=name))
        self.outputs.append(self._value(name, np.float32, shape))

    def _value(self, name: str, dtype: type, shape: tuple[int | str, ...]) -> Any:
        helper = self.onnx.helper
        return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), shape)

    def _unique(self, name: str) -> str:
        self._names[name] += 1
        return name if self._names[name] == 1 else f"{name}_{self._names[name] - 1}"

    def _named(self, operand: str | np.ndarray | np.generic) -> str:
        if isinstance(operand, str):
            return operand
        array = np.asarray(operand)
        key = array.dtype.str, array.shape, array.tobytes()
        if key not in self._alike:
            self._alike[key] = self._unique(f"{self._place[-1]}/constant" if self._place else "constant")
            self.constants[self._alike[key]] = array
        return self._alike[key]

    # --- the file -----------------------------------------------------------------------------------------------------

    def write(self, path: Path) -> None:
        """Writes the graph whole or not at all; constants that one file cannot hold go to a second one, of the same
        name with ".data" behind it, which then belongs to it. Raises OSError, CqError as `files.replacing`."""
        if sum(array.nbytes for array in self.constants.values()) <= LARGEST:
            write_whole(path, self._model([self._tensor(*constant) for constant in self.constants.items()]))
            return
        data = path.with_name(path.name + ".data")
        with replacing(path) as file, replacing(data) as beside:  # the second stands at its place first
            tensors = []
            for name, array in self.constants.items():
                apart = array.nbytes >= APART
                tensors.append(self._tensor(name, array, data.name, beside if apart else None))
            file.write(self._model(tensors))

    def _tensor(self, name: str, array: np.ndarray | Deferred, data: str = "", beside: Any = None) -> Any:
        """A constant; its elements in the file `beside`, which is called `data`, or with it."""
        tensor = self.onnx.TensorProto(name=name, dims=array.shape)
        tensor.data_type = self.onnx.helper.np_dtype_to_tensor_dtype(np.dtype(array.dtype))
        elements = raw_bytes(read(array))
        if beside is None:
            tensor.raw_data = bytes(elements)
            return tensor
        beside.seek(-(-beside.tell() // ALIGNED) * ALIGNED, os.SEEK_SET)
        tensor.data_location = self.onnx.TensorProto.EXTERNAL
        for key, value in (("location", data), ("offset", beside.tell()), ("length", len(elements))):
            tensor.external_data.add(key=key, value=str(value))
        beside.write(elements)
        return tensor

    def _model(self, tensors: list[Any]) -> bytes:
        helper = self.onnx.helper
        graph = helper.make_graph(self._nodes, "transformer", self.inputs, self.outputs, tensors)
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="cq"
        )
        whole: bytes = model.SerializeToString()
        return whole
