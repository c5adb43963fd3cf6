"""The tensors of a file as compressed-tensors writes them: codes, scales and zero points, checked as they are taken.
Knows no plan's meaning."""

import math

import numpy as np

from .. import _core, affine
from ..errors import FormatError, UnsupportedError, brief
from ..model import Config
from ..model.deferred import Deferred, read
from ..model.linear import Linear
from ..model.sites import Graph
from ..plan import LayerPlan, WeightCoding
from ..weights import Weight, pack
from .compressed_config import Group
from .name_tables import FAMILIES
from .names import canonical, foreign_name

_LEAVES = ("weight_packed", "weight_shape", "weight_scale", "weight_zero_point", "input_scale", "input_zero_point")
_REFUSED = ("weight_g_idx", "weight_global_scale", "input_global_scale", "output_scale", "output_zero_point")
Tensors = dict[str, np.ndarray | Deferred]


class FileCodes:
    """What conversion takes of a file. floats: its tensors in float32 by their names there, with shapes without memory
    where codes will come."""

    def __init__(self, tensors: Tensors, config: Config, where: str):
        if not FAMILIES[config.family].plain:
            raise UnsupportedError(f"{where}: {config.family} models in compressed-tensors' codes are not implemented")
        self.where, self._config = where, config
        self._parts = dict[str, Tensors]()  # module → end of the name → tensor, of modules in codes
        self._packed = dict[str, bool]()  # canonical name → whether four codes lie in an int32
        self.floats: Tensors = {}
        for name, array in tensors.items():
            module, _, leaf = name.rpartition(".")
            if leaf in _LEAVES + _REFUSED or (leaf == "weight" and array.dtype == np.int8):
                self._parts.setdefault(module, {})[leaf] = array
            else:
                self.floats[name] = array
        for module, parts in self._parts.items():
            if f"{module}.weight" not in self.floats:
                self.floats[f"{module}.weight"] = np.broadcast_to(np.float32(0), self._said_shape(module, parts))
        ours = canonical({name: name for name in self.floats}, config.family, where, head=config)
        self._modules: dict[str, str] = {name: theirs.rpartition(".")[0] for name, theirs in ours.items()}
        self._check_places(ours, config)

    def _said_shape(self, module: str, parts: Tensors) -> tuple[int, ...]:
        """What the file says of a weight's shape; it is compared with the configuration's before codes are read."""
        if "weight" in parts:
            return parts["weight"].shape
        shape = read(parts["weight_shape"]) if "weight_shape" in parts else np.empty(0)
        if "weight_packed" not in parts or shape.shape != (2,) or shape.dtype.kind not in "iu" or (shape < 1).any():
            raise FormatError(
                f"{self.where}: {brief(module)} has {', '.join(sorted(parts))}, but neither an int8 weight nor "
                "weight_packed with its weight_shape"
            )
        if (shape >= 2**31).any():
            raise FormatError(f"{self.where}: {brief(module)}: weight_shape {shape.tolist()} is no shape of a matrix")
        return int(shape[0]), int(shape[1])

    def _check_places(self, ours: dict[str, str], config: Config) -> None:
        """Codes stand where there are linear layers, or the word table; elsewhere only with what no layer reads."""
        layers = {f"{name}.weight" for name in Graph(config).reads} | {"embed.word"}
        known = set()
        for name, theirs in ours.items():
            module = theirs.rpartition(".")[0]
            if module in self._parts:
                known.add(module)
                refused = next((leaf for leaf in self._parts[module] if leaf in _REFUSED), "")
                if refused or (theirs == f"{module}.weight" and name not in layers):
                    raise UnsupportedError(
                        f"{self.where}: {f'{module}.{refused}'.rstrip('.')} is not implemented; codes are read of "
                        "linear layers and of the word table, with one scale for neighbouring inputs"
                    )
        self._parts = {module: parts for module, parts in self._parts.items() if module in known}

    # --- what the plan asks for ---------------------------------------------------------------------------------------

    def module(self, name: str) -> str:
        """The file's name of the module whose weight this is canonically, or the family's where a tied head has no
        weight of its own."""
        if name in self._modules:
            return self._modules[name]
        return foreign_name(name, self._config).rpartition(".")[0]

    def check_form(self, name: str, group: Group | str) -> None:
        """Raises FormatError unless the weight is in codes where the configuration says so, and not elsewhere."""
        module, coded = self.module(name), self.module(name) in self._parts
        if isinstance(group, str):
            if coded:
                raise FormatError(f"{self.where}: {module} is in codes, but: {group}")
        elif not coded or name not in self._modules:
            raise FormatError(
                f"{self.where}: {module} has no codes, though quantization_config says so, without ignore"
            )
        else:
            self._packed[name] = group.packed

    def input_parameters(self, name: str, symmetric: bool) -> tuple[float, int]:
        """Scale and zero point of a layer's activations, which are the same for all of them."""
        module = self.module(f"{name}.weight")
        scale = self._scales(module, "input_scale", ((), (1,), (1, 1)))
        zero_point = self._zero_points(module, "input_zero_point", scale.shape, symmetric)
        return float(scale.reshape(())), int(zero_point.reshape(()))

    def check_all_taken(self) -> None:
        """Raises FormatError for tensors that no layer reads."""
        left = [f"{module}.{leaf}" for module, parts in self._parts.items() for leaf in parts]
        if left:
            raise FormatError(f"{self.where}: tensors that no layer reads: {', '.join(sorted(left)[:5])}")

    # --- what conversion asks for -------------------------------------------------------------------------------------

    def weight(self, name: str, layer: Linear, plan: LayerPlan) -> Weight:
        """The file's codes, packed."""
        return self._weight(f"{name}.weight", layer.shape, plan.coding)

    def bias(self, name: str, layer: Linear, plan: LayerPlan, weight: Weight) -> np.ndarray | None:
        """In float32, as it was read with the model."""
        return layer.bias

    def word(self, table: np.ndarray | Deferred, coding: WeightCoding) -> Weight:
        """As `weight`, of the word table."""
        words, hidden = table.shape
        return self._weight("embed.word", (hidden, words), coding)

    def _weight(self, name: str, shape: tuple[int, int], coding: WeightCoding) -> Weight:
        (k, n), module, size = shape, self.module(name), coding.group_size or 0
        if k > _core.MAX_K:
            raise UnsupportedError(f"{self.where}: {module}: {k} inputs are more than int32 sums take")
        if size and k % size:
            raise FormatError(f"{self.where}: {module}: groups of {size} do not divide its {k} inputs")
        one = ((), (1,), (1, 1))
        shapes = {"per_tensor": one, "per_channel": ((n, 1), (n,)), "per_group": ((n, k // (size or k)),)}
        scales = self._scales(module, "weight_scale", shapes[coding.granularity])
        packed = self._packed[name] and coding.granularity != "per_tensor"
        zero_points = self._zero_points(module, "weight_zero_point", scales.shape, coding.symmetric, packed)
        groups = math.ceil(k / size) if size else 1
        scales, zero_points = (
            np.ascontiguousarray(np.broadcast_to(p.reshape(-1, groups).T, (groups, n))) for p in (scales, zero_points)
        )
        codes = self._packed_codes(module, n, k) if self._packed[name] else self._take(module, "weight", "int8", (n, k))
        return pack(codes.T, zero_points if zero_points.any() else None, scales, size)

    def _packed_codes(self, module: str, n: int, k: int) -> np.ndarray:
        """Four codes in an int32, the first in its lowest byte, each with 128 added."""
        said = self._parts[module].pop("weight_shape", None)
        if said is not None and read(said).tolist() != [n, k]:
            raise FormatError(f"{self.where}: {module}.weight_shape: {brief(read(said).tolist())}, wanted {[n, k]}")
        return _unpacked(self._take(module, "weight_packed", "int32", (n, math.ceil(k / 4))), k)

    def _scales(self, module: str, leaf: str, shapes: tuple[tuple[int, ...], ...]) -> np.ndarray:
        scales = self._take(module, leaf, "float32", *shapes)
        if not np.isfinite(scales).all() or scales.min() < affine.SMALLEST_SCALE:
            raise FormatError(f"{self.where}: {module}.{leaf}: not all are positive numbers of at least 2**-126")
        return scales

    def _zero_points(
        self, module: str, leaf: str, shape: tuple[int, ...], symmetric: bool, packed: bool = False
    ) -> np.ndarray:
        """int32 of the scales' shape; 0 where symmetric, also where the file says so."""
        if symmetric and leaf not in self._parts.get(module, {}):
            return np.zeros(shape, np.int32)
        there = self._parts.get(module, {}).get(leaf)
        if packed and there is not None and there.dtype == np.int32:
            n, groups = (*shape, 1)[:2]
            columns = self._take(module, leaf, "int32", (math.ceil(n / 4), groups))
            zero_points = _unpacked(columns.T, n).T.reshape(shape).astype(np.int32)
        else:
            kind = "int8" if there is None or there.dtype.kind not in "iu" else there.dtype.name
            zero_points = self._take(module, leaf, kind, shape)
        if zero_points.min() < -128 or zero_points.max() > 127 or (symmetric and zero_points.any()):
            wanted = "0, since its codes are symmetric" if symmetric else "-128 … 127"
            raise FormatError(f"{self.where}: {module}.{leaf}: {brief(zero_points.ravel().tolist())}, wanted {wanted}")
        return zero_points.astype(np.int32)

    def _take(self, module: str, leaf: str, dtype: str, *shapes: tuple[int, ...]) -> np.ndarray:
        """A tensor, which nobody else takes."""
        array = self._parts.get(module, {}).pop(leaf, None)
        if array is None:
            raise FormatError(f"{self.where}: no tensor {f'{module}.{leaf}'!r}")
        if array.dtype != dtype or array.shape not in shapes:
            raise FormatError(
                f"{self.where}: {module}.{leaf}: {array.dtype} of shape {array.shape}, wanted {dtype} of {shapes[0]}"
            )
        return read(array)


def _unpacked(packed: np.ndarray, count: int) -> np.ndarray:
    """int32 (rows, words) → the int8 codes (rows, count) that lie in them."""
    raw = np.ascontiguousarray(packed, "<i4").view(np.uint8)
    return (raw[:, :count] ^ 0x80).view(np.int8)
