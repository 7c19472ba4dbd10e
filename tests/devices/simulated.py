"""A simulated accelerator: its tensors compute on the CPU, and otherwise behave as on a GPU.

They name the device, refuse to be mixed with tensors of the CPU or of another device, and count what would cost time on
a GPU: waits of the CPU for a result, uploads, and operations, each by the line of lsm_probe that causes it.

In torch's C++ code such a tensor is a wrapper on the device type `lazy`, which no kernel of this build serves: all
operations reach `__torch_dispatch__`, and autograd runs backward passes in the thread that asks for them. Python code
sees the name of the simulated device. Nothing is registered with torch: after the block all is as before.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from accelerate.state import AcceleratorState, GradientState
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

import lsm_probe

PACKAGE = str(Path(lsm_probe.__file__).parent) + "/"
MARKER = "lazy"  # the device type in torch's C++ code
aten = torch.ops.aten

COPIES = (aten._to_copy.default, aten.copy_.default)
READS = (aten._local_scalar_dense.default, aten.is_nonzero.default, aten.equal.default)
# The number of elements of their results depends on values, which CUDA therefore copies to the CPU.
SIZED_BY_VALUES = (
    "nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "bincount", "repeat_interleave",
    "argwhere", "_linalg_eigh", "_linalg_svd", "linalg_cholesky_ex",
)  # fmt: skip
INDEXING = ("index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index", "_unsafe_index_put")


class Events(Counter[str]):
    """How often something happened, by place: `instruments/norms.py:103`, or `elsewhere`.

    Attributes:
        elements: of all tensors concerned, by place.
    """

    def __init__(self) -> None:
        super().__init__()
        self.elements: Counter[str] = Counter()

    def within(self, prefix: str) -> int:
        """How often in the files whose path in the package begins with the prefix."""
        return sum(number for place, number in self.items() if place.startswith(prefix))

    def note(self, elements: int) -> None:
        place = _place()
        self[place] += 1
        self.elements[place] += elements

    def reset(self) -> None:
        self.clear()
        self.elements.clear()


class SimulatedDevice:
    """What [`simulated_device`] gives.

    Attributes:
        name: as users give it, such as `cuda`.
        waits: copies to the CPU and all else that makes the CPU wait for the device.
        uploads: copies from the CPU to the device.
        operations: kernels that the device would launch; views are none.
    """

    def __init__(self, name: str, count: int, without: frozenset[torch.dtype]):
        self.name = name
        self.count = count
        self.without = without  # dtypes
        self.waits, self.uploads, self.operations = Events(), Events(), Events()
        self.generators = [torch.Generator().manual_seed(0) for _ in range(count)]

    def reset(self) -> None:
        """Sets all counts to zero."""
        for events in (self.waits, self.uploads, self.operations):
            events.reset()

    def marked(self, value: Any) -> Any:
        """The device of torch's C++ code for one that Python code names; any other value as it is."""
        if isinstance(value, str) and value.split(":")[0] == self.name:
            value = torch.device(value)
        if not isinstance(value, torch.device) or value.type not in (self.name, MARKER):
            return value
        index = value.index or 0
        if index >= self.count:
            raise RuntimeError(f"{self.name.upper()} error: invalid device ordinal")
        return torch.device(MARKER, index)

    def named(self, device: torch.device) -> torch.device:
        return torch.device(self.name, device.index or 0) if device.type == MARKER else device

    def wrap(self, inner: Tensor, marker: torch.device) -> SimulatedTensor:
        if inner.dtype in self.without:
            raise TypeError(f"Cannot convert a {self.name.upper()} Tensor to {inner.dtype}: it does not support that")
        return SimulatedTensor(inner, marker, self)

    def run(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Runs an operation of which an argument is on the device, or which is to make a tensor there."""
        flat, spec = tree_flatten((args, kwargs))
        tensors = [value for value in flat if isinstance(value, Tensor)]
        if func in COPIES:
            return self._copy(func, args, kwargs)
        marker = self._find_marker(func, args, kwargs, tensors)
        self._count(func, args, tensors)
        inner = [_inner(torch.device("cpu") if _is_marker(value) else value) for value in flat]
        inner_args, inner_kwargs = tree_unflatten(inner, spec)
        if marker is not None and inner_kwargs.get("pin_memory"):
            inner_kwargs["pin_memory"] = False
        if marker is not None and _has_generator(func) and inner_kwargs.get("generator") is None:
            inner_kwargs["generator"] = self.generators[marker.index or 0]
        result = func(*inner_args, **inner_kwargs)
        if marker is None or func in READS:
            return result
        # An operation in place returns its argument.
        given = {id(own): value for own, value in zip(inner, flat, strict=True) if isinstance(value, SimulatedTensor)}

        def back(value: Any) -> Any:
            if not isinstance(value, Tensor) or isinstance(value, SimulatedTensor):
                return value
            return given[id(value)] if id(value) in given else self.wrap(value, marker)

        return tree_map(back, result)

    def _copy(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        if func is aten.copy_.default:
            to, source = args[:2]
            self._count_copy(source, to.device, kwargs)
            func(_inner(to), _inner(source))
            return to
        (source,) = args
        target = self.marked(kwargs.get("device") or torch.Tensor.device.__get__(source))
        if target.type == "meta":
            return func(_inner(source), **kwargs)
        self._count_copy(source, target, kwargs)
        wanted = {key: value for key, value in kwargs.items() if key not in ("device", "non_blocking", "pin_memory")}
        copy = func(_inner(source), device=torch.device("cpu"), **wanted)
        return self.wrap(copy, target) if target.type == MARKER else copy

    def _count_copy(self, source: Tensor, target: torch.device, kwargs: dict[str, Any]) -> None:
        to_device = target.type in (MARKER, self.name)
        if not isinstance(source, SimulatedTensor):
            if to_device:
                self.uploads.note(source.numel())
        elif not to_device:
            self.waits.note(source.numel())
        else:
            self.operations.note(source.numel())

    def _find_marker(self, func: Any, args: Any, kwargs: dict[str, Any], tensors: list[Tensor]) -> torch.device | None:
        """The device of the result; refuses a mixture as CUDA does: numbers and indices alone may be on the CPU."""
        own = [tensor for tensor in tensors if isinstance(tensor, SimulatedTensor)]
        devices = {tensor.device for tensor in own}
        indices = _indices(func, args)
        for tensor in tensors:
            if isinstance(tensor, SimulatedTensor) or (tensor.device.type == "cpu" and tensor.dim() == 0):
                continue
            if own and any(tensor is index for index in indices):
                self.uploads.note(tensor.numel())
            elif own:
                devices.add(tensor.device)
        if len(devices) > 1:
            found = " and ".join(sorted(map(str, devices)))
            raise RuntimeError(
                f"Expected all tensors to be on the same device, but found at least two devices, {found}! "
                f"({func}, at {_place()})"
            )
        asked = kwargs.get("device")
        if asked is not None:
            marked = self.marked(torch.device(asked))
            return marked if marked.type == MARKER else None
        return torch.Tensor.device.__get__(own[0]) if own else None

    def _count(self, func: Any, args: Any, tensors: list[Tensor]) -> None:
        elements = sum(tensor.numel() for tensor in tensors if isinstance(tensor, SimulatedTensor))
        name = func.overloadpacket.__name__
        by_mask = any(index.dtype in (torch.bool, torch.uint8) for index in _indices(func, args))
        if elements and (func in READS or name in SIZED_BY_VALUES or by_mask):
            self.waits.note(elements)
        if func not in READS and not _is_view(func):
            self.operations.note(elements)


class SimulatedTensor(Tensor):
    """A tensor on the device."""

    inner: Tensor
    simulated: SimulatedDevice
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(
        cls,
        inner: Tensor,
        marker: torch.device | None = None,
        simulated: SimulatedDevice | None = None,
        requires_grad: bool = True,
    ) -> Any:
        if marker is None or simulated is None:  # as accelerate makes parameters, of the class they have
            return torch.nn.Parameter(inner, requires_grad)
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=marker,
        )
        made.inner, made.simulated = inner, simulated
        return made

    def __init__(self, *_: Any, **__: Any) -> None:
        super().__init__()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        flat, _ = tree_flatten((args, kwargs))
        simulated = next(value.simulated for value in flat if isinstance(value, SimulatedTensor))
        return simulated.run(func, args, kwargs or {})

    @property
    def device(self) -> torch.device:
        return self.simulated.named(torch.Tensor.device.__get__(self))

    @property
    def is_cuda(self) -> bool:
        return self.simulated.name == "cuda"

    @property
    def data(self) -> Tensor:
        return self.detach()

    @data.setter
    def data(self, value: SimulatedTensor) -> None:
        torch.Tensor.data.__set__(self, value)
        self.inner = value.inner

    # With these two, `Module.to` exchanges a parameter's content and keeps the object: tied weights stay tied.
    def __tensor_flatten__(self) -> tuple[list[str], Any]:
        return ["inner"], (torch.Tensor.device.__get__(self), self.simulated)

    @staticmethod
    def __tensor_unflatten__(inner: dict[str, Tensor], context: Any, size: Any, stride: Any) -> SimulatedTensor:
        return SimulatedTensor(inner["inner"], *context)

    def tolist(self) -> Any:
        self.simulated.waits.note(self.numel())
        return self.inner.tolist()

    def numpy(self, **_: Any) -> Any:
        raise TypeError(f"can't convert {self.device} device type tensor to numpy: use Tensor.cpu() first")

    def __array__(self, *_: Any, **__: Any) -> Any:
        self.numpy()

    def data_ptr(self) -> int:
        return self.inner.data_ptr()

    def untyped_storage(self) -> Any:
        return self.inner.untyped_storage()

    def __repr__(self, **_: Any) -> str:
        return f"SimulatedTensor({self.device}, {tuple(self.shape)}, {self.dtype})"

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        if id(self) not in memo:
            copy: Tensor = self.detach().clone()
            memo[id(self)] = (
                torch.nn.Parameter(copy, self.requires_grad)
                if isinstance(self, torch.nn.Parameter)
                else copy.requires_grad_(self.requires_grad)
            )
        return memo[id(self)]


class _Functions(TorchFunctionMode):
    """Replaces the names of the device by torch's marker, in what Python code hands to torch's functions."""

    def __init__(self, simulated: SimulatedDevice):
        super().__init__()
        self.simulated = simulated

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        simulated = self.simulated
        if func is torch.Tensor.backward:
            with self:  # for the hooks that backward calls
                return torch.autograd.backward(*args, kwargs.pop("gradient", None), **kwargs)
        if func is torch.Tensor.cuda:
            return args[0].to(torch.device(MARKER, 0))
        if func in (torch.tensor, torch.as_tensor, torch.asarray, torch.Tensor.new_tensor):
            return self._from_data(func, args, kwargs)
        if func in (torch.Tensor.__getitem__, torch.Tensor.__setitem__) and isinstance(args[0], SimulatedTensor):
            args = (args[0], _index_tensors(args[1]), *args[2:])
        if func is torch.nn.functional.scaled_dot_product_attention and not torch.is_grad_enabled():
            return self._attend(args, kwargs)
        if func is torch.device:
            return func(*map(self._numbered, args), **kwargs) if len(args) == 1 else func(*args, **kwargs)
        if func is torch.Tensor.pin_memory:  # needs a real device
            return args[0]
        if func in (torch.Tensor.to, torch._C._nn._parse_to):  # which also take the number of a device
            args = tuple(self._numbered(value) for value in args)
        if "device" in kwargs:
            kwargs["device"] = self._numbered(kwargs["device"])
        args = tuple(simulated.marked(value) for value in args)
        kwargs = {key: simulated.marked(value) for key, value in kwargs.items()}
        return func(*args, **kwargs)

    def _numbered(self, value: Any) -> Any:
        return f"{self.simulated.name}:{value}" if type(value) is int else value

    def _from_data(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        device = kwargs.pop("device", None)
        if func is torch.Tensor.new_tensor:
            like, *args = args
            device = like.device if device is None else device
            func, kwargs = torch.tensor, {"dtype": like.dtype, **kwargs}
        device = self.simulated.marked(self._numbered(device))
        grad = kwargs.pop("requires_grad", False)
        made = func(*args, **kwargs) if device is None else func(*args, **kwargs).to(device)
        return made.requires_grad_() if grad else made

    def _attend(self, args: Any, kwargs: dict[str, Any]) -> Any:
        """One operation, as on a GPU; where a graph is kept, torch's composite of several."""
        flat, spec = tree_flatten((args, kwargs))
        own = [value for value in flat if isinstance(value, SimulatedTensor)]
        if not own:
            return torch.nn.functional.scaled_dot_product_attention(*args, **kwargs)
        devices = {value.device for value in flat if isinstance(value, Tensor)}
        if len(devices) > 1:
            raise RuntimeError(f"Expected all tensors to be on the same device, but found {devices} at {_place()}")
        self.simulated.operations.note(sum(value.numel() for value in own))
        inner_args, inner_kwargs = tree_unflatten([_inner(value) for value in flat], spec)
        attended = torch.nn.functional.scaled_dot_product_attention(*inner_args, **inner_kwargs)
        return self.simulated.wrap(attended, torch.Tensor.device.__get__(own[0]))


class _Operations(TorchDispatchMode):
    """Runs operations without an argument on the device that make a tensor there."""

    def __init__(self, simulated: SimulatedDevice):
        super().__init__()
        self.simulated = simulated

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        flat, _ = tree_flatten((args, kwargs))
        asked = kwargs.get("device")
        if any(isinstance(value, SimulatedTensor) for value in flat) or (
            asked is not None and torch.device(asked).type in (MARKER, self.simulated.name)
        ):
            return self.simulated.run(func, args, kwargs)
        return func(*args, **kwargs)


@contextmanager
def simulated_device(
    name: str = "cuda", *, count: int = 2, bfloat16: bool = True, memory: int = 2**36
) -> Iterator[SimulatedDevice]:
    """In the block, torch has `count` devices of this name; afterwards all is as before.

    Args:
        name: `cuda`, or `mps`, which has no float64.
        count: how many; an MPS device is always alone.
        bfloat16: whether it has bfloat16; CUDA without instructions for it emulates it.
        memory: bytes of each that are reported as free.
    """
    missing = {torch.float64, torch.complex128} | (set() if bfloat16 else {torch.bfloat16})
    simulated = SimulatedDevice(name, count if name == "cuda" else 1, frozenset(missing if name == "mps" else ()))
    with ExitStack() as stack:
        # accelerate remembers the device of the process.
        for reset in (partial(AcceleratorState._reset_state, True), GradientState._reset_state):
            reset()
            stack.callback(reset)
        for target, replacement in _replacements(simulated, bfloat16, memory).items():
            stack.enter_context(patch(target, replacement))
        stack.enter_context(_Operations(simulated))
        stack.enter_context(_Functions(simulated))
        yield simulated


def _replacements(simulated: SimulatedDevice, bfloat16: bool, memory: int) -> dict[str, Any]:
    """Functions of torch that ask for devices, by name, and what they are in the block."""
    is_cuda = simulated.name == "cuda"

    def synchronize(*_: Any, **__: Any) -> None:
        simulated.waits.note(0)

    def seed_all(seed: int) -> None:
        for generator in simulated.generators:
            generator.manual_seed(seed)

    def generator(device: Any = 0) -> torch.Generator:
        index = device if isinstance(device, int) else torch.device(device).index
        return simulated.generators[index or 0]

    class Event:
        def __init__(self, **_: Any) -> None:
            self.record, self.synchronize = lambda: None, synchronize

    here = {
        "torch.Event": Event,
        "torch.accelerator.is_available": lambda: True,
        "torch.accelerator.current_accelerator": lambda *_, **__: torch.device(simulated.name),
        "torch.accelerator.device_count": lambda: simulated.count,
        "torch.accelerator.current_device_index": lambda: 0,
        "torch.accelerator.current_stream": lambda *_: SimpleNamespace(is_capturing=lambda: False),
        "torch.accelerator.synchronize": synchronize,
        f"torch.{simulated.name}.synchronize": synchronize,
        f"torch.{simulated.name}.empty_cache": lambda: None,
        f"torch.{simulated.name}.device_count": lambda: simulated.count,
    }
    random = {
        "manual_seed": lambda seed: generator().manual_seed(seed),
        "get_rng_state": lambda device=0: generator(device).get_state(),
        "set_rng_state": lambda state, device=0: generator(device).set_state(state),
    }
    modules = ("torch.cuda", "torch.cuda.random") if is_cuda else ("torch.mps",)
    here |= {f"{module}.{name}": function for module in modules for name, function in random.items()}
    if not is_cuda:
        return here | {"torch.backends.mps.is_available": lambda: True, "torch.mps.is_available": lambda: True}
    return here | {
        "torch.cuda.is_available": lambda: True,
        "torch.cuda._lazy_init": lambda: None,
        "torch.cuda.manual_seed_all": seed_all,
        "torch.cuda.current_device": lambda: 0,
        "torch.cuda.set_device": lambda _: None,
        "torch.cuda.mem_get_info": lambda *_: (memory, memory),
        "torch.cuda.memory_reserved": lambda *_: 0,
        "torch.cuda.memory_allocated": lambda *_: 0,
        "torch.cuda.get_device_properties": lambda *_: SimpleNamespace(total_memory=memory, is_integrated=False),
        "torch.cuda.is_bf16_supported": lambda including_emulation=True: bfloat16 or including_emulation,
        "torch.cuda.get_device_capability": lambda *_: (9, 0) if bfloat16 else (7, 0),
        "torch.cuda.get_device_name": lambda *_: "simulated",
    }


def _inner(value: Any) -> Any:
    return value.inner if isinstance(value, SimulatedTensor) else value


def _is_marker(value: Any) -> bool:
    return isinstance(value, torch.device) and value.type == MARKER


def _indices(func: Any, args: Any) -> list[Tensor]:
    if func.overloadpacket.__name__ not in INDEXING:
        return []
    return [index for index in args[1] if isinstance(index, Tensor)]


def _index_tensors(index: Any) -> Any:
    """An index in which lists are tensors of the CPU, which is what torch makes of them."""
    if isinstance(index, tuple):
        return tuple(map(_index_tensors, index))
    return torch.tensor(index) if isinstance(index, list) else index


def _is_view(func: Any) -> bool:
    infos = [value.alias_info for value in func._schema.returns]
    return any(info is not None and not info.is_write for info in infos)


def _has_generator(func: Any) -> bool:
    return any(argument.name == "generator" for argument in func._schema.arguments)


def _place() -> str:
    """The innermost line of lsm_probe that is running."""
    frame: Any = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        if file.startswith(PACKAGE):
            return f"{file.removeprefix(PACKAGE)}:{frame.f_lineno}"
        frame = frame.f_back
    return "elsewhere"
