"""The layers of a `torch.nn.GRU` on a CPU, with their gradients written out.

There PyTorch puts a step together from some fifteen operations, each with a gradient of its own. Here it takes four,
and its gradient four; what needs no other step is computed of many at once.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.amp import custom_bwd, custom_fwd
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional

from .dropout import dropped_out

# Steps whose gradients share their products of matrices, and memory that stays in the processor's cache.
_TOGETHER = 16


def states_of(gru: nn.GRU, steps: Float[Tensor, "step series feature"]) -> Float[Tensor, "step series width"]:
    """The states of the last layer, as `gru(steps)[0]` gives them; on a CPU in fp32, where bf16 takes longer.

    Args:
        gru: of one direction, with biases.
        steps: of all series, one after the other.
    """
    if steps.device.type != "cpu":
        # The library of a GPU has one kernel for all of it.
        return gru(steps)[0]
    for layer in range(gru.num_layers):
        weights = (getattr(gru, f"{name}_l{layer}") for name in ("weight_ih", "bias_ih", "weight_hh", "bias_hh"))
        entering = dropped_out(steps, gru.dropout, gru.training) if layer else steps
        steps = _Layer.apply(entering, *weights)
    return steps


class _Layer(torch.autograd.Function):
    """The states of one layer.

    With what enters its three gates from a step, e, and from the state h before, t:

        r = σ(e_r + t_r),  z = σ(e_z + t_z),  n = tanh(e_n + r t_n),  h' = n + z (h - n)

    Source: the equations of `torch.nn.GRU`, in the order of its weights: reset, update, new.
    """

    @staticmethod
    @custom_fwd(device_type="cpu", cast_inputs=torch.float32)
    def forward(
        ctx: FunctionCtx, steps: Tensor, enter: Tensor, enter_bias: Tensor, turn: Tensor, turn_bias: Tensor
    ) -> Tensor:
        count, series, width = *steps.shape[:2], turn.shape[1]
        (turn_both, turn_new), (both_bias, new_bias) = (x.split([2 * width, width]) for x in (turn, turn_bias))
        bias = enter_bias + functional.pad(both_bias, (0, width))
        # What enters the gates, and in its place what they are.
        gates = torch.addmm(bias, steps.flatten(0, 1), enter.t()).view(count, series, 3 * width)
        states, turned = steps.new_empty(1 + count, series, width), steps.new_empty(count, series, width)
        states[0] = 0
        views = (gates[..., : 2 * width], *gates.split(width, -1), turned, states[:-1], states[1:])
        for both, reset, update, new, own_turned, before, after in zip(*map(torch.unbind, views), strict=True):
            both.addmm_(before, turn_both.t()).sigmoid_()
            torch.addmm(new_bias, before, turn_new.t(), out=own_turned)
            new.addcmul_(reset, own_turned).tanh_()
            torch.lerp(new, before, update, out=after)
        ctx.save_for_backward(steps, gates, states, turned, enter, turn)
        return states[1:]

    @staticmethod
    @custom_bwd(device_type="cpu")
    @once_differentiable
    def backward(ctx: FunctionCtx, above: Tensor) -> tuple[Tensor, ...]:
        steps, gates, states, turned, enter, turn = ctx.saved_tensors
        width = turn.shape[1]
        of_steps, of_enter, of_turn = steps.new_empty(steps.shape), torch.zeros_like(enter), torch.zeros_like(turn)
        of_enter_bias, of_turn_bias = gates.new_zeros(2, 3 * width)
        of_state, room = torch.zeros_like(states[0]), gates.new_empty(_TOGETHER, *gates.shape[1:])
        for end in range(len(steps), 0, -_TOGETHER):
            some = slice(max(0, end - _TOGETHER), end)
            both, (reset, update, new) = gates[some, :, : 2 * width], gates[some].split(width, -1)
            before, entered = states[:-1][some], steps[some].flatten(0, 1)

            # By how much the next state is moved by t and, but for n, as much by e.
            moves = room[: len(new)]
            by_reset, by_update, by_turned = moves.split(width, -1)
            torch.addcmul(both, both, both, value=-1, out=moves[..., : 2 * width])
            by_update *= before - new
            by_new = (1 - update).mul_(new.square().neg_().add_(1))
            by_reset.mul_(by_new).mul_(turned[some])
            torch.mul(by_new, reset, out=by_turned)

            # Backwards in time, from the gradients of the states to those of t.
            of_states = above[some].clone(memory_format=torch.contiguous_format)
            views = (of_states, update, moves, moves.unflatten(-1, (3, width)))
            for own, kept, own_moves, by_gate in reversed(list(zip(*map(torch.unbind, views), strict=True))):
                own += of_state
                by_gate *= own[:, None]
                of_state = (own * kept).addmm_(own_moves, turn)

            of_gates = moves.flatten(0, 1)
            of_turn.addmm_(of_gates.t(), before.flatten(0, 1))
            of_turn_bias += of_gates.sum(0)
            torch.mul(of_states, by_new, out=by_turned)
            of_enter.addmm_(of_gates.t(), entered)
            of_enter_bias += of_gates.sum(0)
            torch.mm(of_gates, enter, out=of_steps[some].view_as(entered))
        return of_steps, of_enter, of_enter_bias, of_turn, of_turn_bias
