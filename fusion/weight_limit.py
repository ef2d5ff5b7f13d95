"""A bound on the weights of a model, so that sizes that no machine has end in a line and not in a kill."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from ..datasets.errors import InputError
from .memory import memory_bytes

# In training each weight has its gradient, two moments of AdamW and a moving average beside it.
_COPIES = 5
_BYTES = 4


@contextmanager
def limited_weights(most: int | None = None) -> Iterator[None]:
    """Count the weights of all layers that are made inside, and stop before any that the memory cannot hold.

    Args:
        most: how many there may be; None for as many as can be trained in this machine's memory.

    Raises:
        InputError: there would be more.
    """
    limit = memory_bytes() // (_COPIES * _BYTES) if most is None else most
    counted = 0

    def count(_: nn.Module, __: str, weight: nn.Parameter | None) -> None:
        nonlocal counted
        counted += 0 if weight is None else weight.numel()
        if counted > limit:
            raise _too_many(f"more than {counted:.3g} weights", limit)

    # A layer has its weights registered before they are drawn: until then the system gives no memory for them.
    hook = register_module_parameter_registration_hook(count)
    try:
        yield
    except (RuntimeError, TypeError, MemoryError, OverflowError) as error:
        # So torch calls sizes that it cannot even ask for.
        if isinstance(error, InputError) or not any(word in str(error) for word in ("allocate", "Storage", "overflow")):
            raise
        raise _too_many("a layer of more weights than can be asked for", limit) from error
    finally:
        hook.remove()


def _too_many(what: str, limit: int) -> InputError:
    return InputError(
        f"The model would have {what}, where {limit:.3g} can be trained in the memory of this machine. Choose smaller "
        "sizes (width, layers, depth), or a smaller network."
    )
