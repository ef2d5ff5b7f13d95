"""Tensors that claim to be on a GPU and are computed with on the CPU, so that mistakes of place show without a GPU.

What a GPU refuses is refused: an operation on tensors of both, unless one of them is a single number; a tensor on the
CPU that is looked up by an index on the GPU; and NumPy. Kernels, rounding and speed of a GPU are not to be seen here.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from unittest import mock

import torch
from torch import Tensor
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

_GPU = torch.device("cuda", 0)
_aten = torch.ops.aten
_MOVES = (_aten._to_copy.default, _aten.copy_.default)
_LOOKS_UP = (_aten.index.Tensor, _aten.index_put.default, _aten.index_put_.default, _aten._index_put_impl_.default)
_WAITS = (_aten._local_scalar_dense, _aten.nonzero, _aten.bincount, _aten.unique_consecutive, _aten.equal)
_CUDA = {
    **dict.fromkeys(("is_available", "is_initialized", "is_bf16_supported"), True),
    **dict.fromkeys(("current_device", "_exchange_device", "_maybe_exchange_device"), 0),
    **dict.fromkeys(("device_count", "max_memory_reserved"), 1),
    **dict.fromkeys(("_lazy_init", "_lazy_call", "set_rng_state", "empty_cache", "reset_peak_memory_stats"), None),
}
"""What functions of torch.cuda answer."""


class _OnGpu(Tensor):
    """A tensor on the claimed GPU. Of its kernels' own code, PyTorch runs that for the CPU, for which it takes it."""

    @staticmethod
    def __new__(cls, held: Tensor) -> "_OnGpu":
        return Tensor._make_wrapper_subclass(cls, held.shape, strides=held.stride(), dtype=held.dtype)

    def __init__(self, held: Tensor) -> None:
        self.held = held

    device, is_cuda = property(lambda _: _GPU), property(lambda _: True)

    def numpy(self, **_: object) -> None:
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first.")

    __array__ = numpy

    def cpu(self) -> Tensor:
        return self.to("cpu")

    tolist = property(lambda self: self.cpu().tolist)

    def new_tensor(self, data: object) -> Tensor:
        return torch.tensor(data, dtype=self.dtype).to(_GPU)

    # Of tensors that have these, a module that is moved leaves its parameters the objects that they are.
    __tensor_flatten__ = __tensor_unflatten__ = None
    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, operation: Callable, *_: object) -> None:
        raise RuntimeError(f"{operation} outside of claimed_gpu()")


class _Placing(TorchDispatchMode):
    """Computes on the CPU, and has results where a GPU would have them."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []

    def __torch_dispatch__(self, operation: Callable, _: object, args: tuple = (), kwargs: dict | None = None):
        kwargs = kwargs or {}
        given = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
        there = any(isinstance(value, _OnGpu) for value in given)
        plain = any(value.ndim and not isinstance(value, _OnGpu) for value in given)
        may_differ = operation in _MOVES or (operation in _LOOKS_UP and isinstance(args[0], _OnGpu))
        if there and plain and not may_differ:
            raise RuntimeError(f"Expected all tensors to be on the same device, but {operation} has cuda:0 and cpu.")
        target = kwargs.get("device")
        if _is_waited_for(operation, given, target, kwargs.get("non_blocking", False)):
            self.waits.append(operation.name())
        if target is not None and target.type == "cuda":
            if kwargs.get("generator") is not None:
                raise RuntimeError("Expected a 'cuda' device type for generator but found 'cpu'")
            there, kwargs = True, kwargs | {"device": torch.device("cpu")}
        elif torch._C._current_graph_task_id() != -1:
            # Gradients are made where PyTorch's own code takes the tensors to be.
            there = there or not given
        elif target is not None and operation in _MOVES:
            there = False
        held = tree_map(lambda value: value.held if isinstance(value, _OnGpu) else value, (args, kwargs))
        result = operation(*held[0], **held[1])
        if not there:
            return result
        if torch.Tag.inplace_view in operation.tags:
            with no_dispatch():
                operation(*args, **kwargs)
        if operation._schema.is_mutable:
            return args[0] if isinstance(result, Tensor) else result
        return tree_map(lambda value: _OnGpu(value) if isinstance(value, Tensor) else value, result)


def _is_waited_for(operation: Callable, given: list[Tensor], target: torch.device | None, at_once: bool) -> bool:
    """Whether the CPU has to wait for what the GPU is at."""
    on_gpu = [isinstance(value, _OnGpu) for value in given]
    if operation in _MOVES:
        ends = {*on_gpu, *(() if target is None else (target.type == "cuda",))}
        return len(ends) > 1 and not at_once and given[-1].ndim > 0
    if operation in _LOOKS_UP:
        return on_gpu[0] and any(value.dtype == torch.bool for value in given[1:])
    return any(on_gpu) and operation.overloadpacket in _WAITS


def _moved(value: Tensor, *args: object, copy: bool = False, **kwargs: object) -> Tensor:
    """As `Tensor.to` does it."""
    if args and isinstance(args[0], Tensor):
        args = (args[0].device, args[0].dtype, *args[1:])
    device, kind, at_once, layout = torch._C._nn._parse_to(*args, **kwargs)
    device, kind = device or value.device, kind or value.dtype
    if (device.type, kind) == (value.device.type, value.dtype) and layout is None and not copy:
        return value
    device = _GPU if device.type == "cuda" else device
    return _aten._to_copy(value, dtype=kind, device=device, non_blocking=at_once, memory_format=layout)


@contextmanager
def claimed_gpu() -> Iterator[list[str]]:
    """Inside the block there seems to be one GPU, which Accelerate takes too; the operations that waited for it."""
    from accelerate.state import AcceleratorState

    begun, made = torch.autocast.__init__, torch.tensor
    with ExitStack() as changed:
        changed.callback(AcceleratorState._reset_state, reset_partial_state=True)
        AcceleratorState._reset_state(reset_partial_state=True)
        for owner, name, stand_in in (
            *((torch.cuda, name, mock.Mock(return_value=value)) for name, value in _CUDA.items()),
            (torch.cuda, "get_rng_state", lambda *_: torch.get_rng_state()),
            (torch.optim.Optimizer, "_accelerator_graph_capture_health_check", mock.Mock()),
            (torch.backends.cudnn, "is_acceptable", mock.Mock(return_value=False)),
            (torch.autocast, "__init__", lambda own, device_type, *a, **k: begun(own, device_type and "cpu", *a, **k)),
            (torch, "tensor", lambda data, *, device="cpu", **kwargs: made(data, **kwargs).to(device)),
            (Tensor, "to", _moved),
            (Tensor, "pin_memory", Tensor.clone),
            # What is made in that mode has no views.
            (torch.inference_mode, "__enter__", torch.no_grad.__enter__),
            (torch.inference_mode, "__exit__", torch.no_grad.__exit__),
        ):
            changed.enter_context(mock.patch.object(owner, name, stand_in))
        yield changed.enter_context(_Placing()).waits
