"""The laws of fusion heads: one contract that both keep, and what attention means."""

from itertools import combinations

import pytest
import torch
from chiasm.datasets import InputError
from chiasm.encoders import Tokens
from chiasm.fusion import ConcatenationFusion, CrossAttentionFusion
from chiasm.fusion.state import Fusion
from chiasm.fusion.token_entry import TokenEntry, time_features
from torch.nn import functional
from torch.testing import assert_close

WIDTHS = {"image": 12, "labs": 8, "notes": 10, "static": 6}
LENGTHS = {"image": 4, "labs": 7, "notes": 9, "static": 3}
OUTCOMES = 3
SUBSETS = [subset for size in range(5) for subset in combinations(WIDTHS, size)]
HEADS = {
    "cross-attention": lambda: CrossAttentionFusion(16, depth=2, heads=4, latents=2),
    "cross-attention without latents": lambda: CrossAttentionFusion(16, depth=1, heads=1, latents=0, dropout=0.0),
    "concatenation": lambda: ConcatenationFusion(16),
}


def draw(subsets=SUBSETS, seed: int = 0, longer: int = 0) -> dict[str, Tokens]:
    """Random tokens: patient i has the modalities of subset i, in different numbers, and NaN where nothing is real."""
    tokens = {}
    for place, (name, width) in enumerate(WIDTHS.items()):
        random = torch.Generator().manual_seed(100 * seed + place)
        length = LENGTHS[name]
        values = torch.randn(len(subsets), length, width, generator=random)
        hours = -100 * torch.rand(len(subsets), length, generator=random)
        number = torch.randint(1, length + 1, (len(subsets), 1), generator=random)
        has = torch.tensor([name in subset for subset in subsets])
        mask = (torch.arange(length) < number) & has[:, None]
        values = functional.pad(values.masked_fill(~mask[..., None], torch.nan), (0, 0, 0, longer), value=torch.nan)
        hours = functional.pad(hours.masked_fill(~mask, torch.nan), (0, longer), value=torch.nan)
        summary = None
        if name == "labs":
            summary = torch.randn(len(subsets), width, generator=random).masked_fill(~has[:, None], torch.nan)
        tokens[name] = Tokens(values, functional.pad(mask, (0, longer)), hours, summary)
    return tokens


def each(tokens: dict[str, Tokens], values, hours=lambda own: own, mask=lambda own: own) -> dict[str, Tokens]:
    """Tokens of which the fields went through functions."""
    return {
        name: Tokens(
            values(own.values),
            mask(own.mask),
            hours(own.hours),
            None if own.summary is None else values(own.summary),
        )
        for name, own in tokens.items()
    }


def pick(tokens: dict[str, Tokens], index) -> dict[str, Tokens]:
    return each(tokens, *[lambda own: own[index]] * 3)


@pytest.fixture(params=HEADS)
def head(request) -> Fusion:
    torch.manual_seed(0)
    made = HEADS[request.param]()
    made.build(WIDTHS, OUTCOMES)
    return made.eval()


def fused(head: Fusion, tokens: dict[str, Tokens]) -> torch.Tensor:
    with torch.no_grad():
        return head(tokens).values


def close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    assert_close(ours, theirs, atol=1e-5, rtol=0)


# The contract


def test_every_head_keeps_the_protocol(head):
    assert isinstance(head, Fusion)
    state = fused(head, draw())
    assert state.shape == (len(SUBSETS), OUTCOMES, head.width)


def test_a_description_makes_the_same_plan_again(head):
    again = type(head)(**head.describe())
    assert again.describe() == head.describe()
    again.build(WIDTHS, OUTCOMES)
    again.load_state_dict(head.state_dict(), strict=True)
    assert torch.equal(fused(again.eval(), draw()), fused(head, draw()))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("together", [True, False])
def test_every_subset_of_modalities_gives_finite_states_and_gradients(head, training, precision, together):
    head.train(training)
    for batch in [SUBSETS] if together else [[subset] for subset in SUBSETS]:
        head.zero_grad()
        tokens = draw(batch)
        for own in tokens.values():
            own.values.requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            state = head(tokens).values
        state.float().square().sum().backward()
        assert state.isfinite().all()
        for own in tokens.values():
            assert own.values.grad.isfinite().all()
            assert not own.values.grad[~own.mask].any()
        # The absent tokens of modalities that everybody has get no gradient, or zeros; no parameter is left out.
        for parameter in head.parameters():
            assert parameter.grad is not None
            assert parameter.grad.isfinite().all()


def test_tokens_in_half_precision_are_read_too(head):
    tokens = each(draw(), torch.Tensor.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        state = fused(head, tokens)
    assert_close(state.float(), fused(head, draw()), atol=0.1, rtol=0.1)


def test_permuting_patients_permutes_states(head):
    order = torch.randperm(len(SUBSETS), generator=torch.Generator().manual_seed(1))
    close(fused(head, pick(draw(), order)), fused(head, draw())[order])


def test_a_patient_alone_has_the_state_that_they_have_beside_others(head):
    together = fused(head, draw())
    for i in range(len(SUBSETS)):
        close(fused(head, pick(draw(), slice(i, i + 1))), together[i : i + 1])


def test_the_order_of_tokens_means_nothing(head):
    tokens = {}
    for name, own in draw().items():
        order = torch.randperm(own.mask.shape[1], generator=torch.Generator().manual_seed(2))
        tokens[name] = Tokens(own.values[:, order], own.mask[:, order], own.hours[:, order], own.summary)
    close(fused(head, tokens), fused(head, draw()))


def test_the_order_in_which_modalities_are_given_means_nothing(head):
    tokens = draw()
    assert torch.equal(fused(head, dict(reversed(tokens.items()))), fused(head, tokens))


def test_attention_is_the_same_whatever_order_of_modalities_it_was_built_with():
    torch.manual_seed(0)
    first, second = HEADS["cross-attention"](), HEADS["cross-attention"]()
    first.build(WIDTHS, OUTCOMES)
    second.build(dict(reversed(WIDTHS.items())), OUTCOMES)
    second.load_state_dict(first.state_dict(), strict=True)
    close(fused(first.eval(), draw()), fused(second.eval(), draw()))


def test_what_is_masked_changes_nothing(head):
    zeros = each(draw(), lambda own: own.nan_to_num(0.0), lambda own: own.nan_to_num(0.0))
    other = each(draw(), lambda own: own.nan_to_num(1e30), lambda own: own.nan_to_num(torch.inf))
    assert torch.equal(fused(head, draw()), fused(head, zeros))
    assert torch.equal(fused(head, draw()), fused(head, other))


def test_padding_changes_nothing(head):
    close(fused(head, draw(longer=5)), fused(head, draw()))


def test_nothing_at_all_is_a_state_too(head):
    empty = {
        name: Tokens(torch.zeros(2, 0, width), torch.zeros(2, 0, dtype=torch.bool), torch.zeros(2, 0))
        for name, width in WIDTHS.items()
    }
    padded = pick(draw([(), ()]), slice(None))
    assert fused(head, empty).isfinite().all()
    close(fused(head, empty), fused(head, padded))


def test_every_modality_is_read_and_by_attention_so_is_when_it_was(head):
    tokens = draw([tuple(WIDTHS)])
    for name in WIDTHS:
        own = {name: tokens[name]}
        moved = tokens | each(own, lambda values: values + torch.randn(values.shape))
        later = tokens | each(own, lambda values: values, lambda hours: hours / 7)
        assert (fused(head, moved) - fused(head, tokens)).abs().max() > 1e-4
        if isinstance(head, CrossAttentionFusion):
            assert (fused(head, later) - fused(head, tokens)).abs().max() > 1e-5


def test_absence_is_learned_where_something_is_absent_and_only_there(head):
    for name in WIDTHS:
        head.zero_grad()
        head(draw([tuple(WIDTHS), (name,)])).values.square().sum().backward()
        assert not head.entry.absent[name].grad.any()
        assert all(head.entry.absent[other].grad.any() for other in WIDTHS if other != name)


def test_a_head_is_built_for_one_model(head):
    head.build(WIDTHS, OUTCOMES)
    with pytest.raises(InputError, match=r"was built for 3 outcomes and tokens of the widths .*'labs': 8.*'labs': 9"):
        head.build(WIDTHS | {"labs": 9}, OUTCOMES)
    with pytest.raises(InputError, match=r"was built for 3 outcomes .* now meets 2 and"):
        head.build(WIDTHS, 2)


# Where tokens enter


def test_in_front_of_each_modality_stands_its_gist_or_its_absence():
    torch.manual_seed(0)
    entry = TokenEntry(WIDTHS, 16)
    with torch.no_grad():
        entered = entry(draw())
    for name, own in entered.items():
        has = torch.tensor([name in subset for subset in SUBSETS])
        assert own.mask[:, 0].all()
        assert torch.equal(own.mask[:, 1:], draw()[name].mask)
        assert not own.hours[:, 0].any()
        gist = entry.project_gist[name](draw()[name].gist) + entry.kind[name]
        assert_close(own.values[has, 0], gist[has])
        assert_close(own.values[~has, 0], (entry.absent[name] + entry.kind[name]).expand((~has).sum(), -1))
        assert own.values.isfinite().all()
        assert own.hours.isfinite().all()


def test_age_is_told_as_its_logarithm_and_as_decays_over_hours_to_a_month():
    features = time_features(torch.tensor([[0.0, -24.0]]))
    hours = torch.tensor([1.0, 6, 24, 168, 720])
    assert_close(features[0, 0], torch.tensor([0.0, 1, 1, 1, 1, 1]))
    assert_close(features[0, 1], torch.cat([torch.log(torch.tensor([25.0])) / 5, torch.exp(-24 / hours)]))


# Attention


@pytest.fixture
def attentive() -> CrossAttentionFusion:
    torch.manual_seed(0)
    head = HEADS["cross-attention"]()
    head.build(WIDTHS, OUTCOMES)
    return head.eval()


def test_attention_sums_to_one_and_never_looks_at_what_is_masked(attentive):
    tokens = draw()
    with torch.no_grad():
        state = attentive(tokens, attention=True)
    assert torch.equal(state.values, fused(attentive, tokens))
    assert_close(sum(own.sum(-1) for own in state.attention.values()), torch.ones(len(SUBSETS), OUTCOMES))
    for name, own in state.attention.items():
        # In front stands the gist or the absence of the modality, which is always real.
        real = functional.pad(tokens[name].mask, (1, 0), value=True)
        assert own.shape == (len(SUBSETS), OUTCOMES, real.shape[1])
        assert not own.transpose(1, 2)[~real].any()
        assert (own.transpose(1, 2)[real] > 0).all()


def test_each_block_reads_what_attention_in_torch_reads(attentive):
    tokens, seen = draw(), []
    for block in attentive.blocks:
        block.read.register_forward_hook(lambda layer, given, result: seen.append((layer, given, result)))
    with torch.no_grad():
        state = attentive(tokens, attention=True)
        looked = []
        for layer, (queries, sequence, mask), result in seen:
            read, weights = functional.multi_head_attention_forward(
                queries.transpose(0, 1),
                sequence.transpose(0, 1),
                sequence.transpose(0, 1),
                attentive.width,
                attentive.heads,
                torch.cat([layer.ask.weight, layer.tell.weight]),
                torch.cat([layer.ask.bias, layer.tell.bias]),
                None,
                None,
                False,
                0.0,
                layer.out.weight,
                layer.out.bias,
                training=False,
                key_padding_mask=~mask,
            )
            assert_close(result, read.transpose(0, 1), atol=1e-5, rtol=1e-4)
            looked.append(weights)
    assert len(looked) == attentive.depth
    expected = torch.stack(looked).mean(0)[:, :OUTCOMES]
    assert_close(torch.cat(list(state.attention.values()), -1), expected, atol=1e-6, rtol=1e-4)


def test_concatenation_has_no_attention_and_says_so():
    head = ConcatenationFusion(8)
    head.build(WIDTHS, 1)
    with pytest.raises(InputError, match="Concatenation has no attention weights"):
        head(draw(), attention=True)


# Settings


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"width": 30, "heads": 4}, "width is 30 and heads 4; expected heads that divide the width"),
        ({"width": 0}, "width is 0 and heads 8"),
        ({"heads": 0}, "heads 0"),
        ({"depth": 0}, "depth is 0"),
        ({"latents": -1}, "latents -1"),
        ({"gist_dropout": 1.0}, "gist_dropout 1.0"),
        ({"dropout": 1.0}, r"dropout 1\.0"),
    ],
)
def test_sizes_of_attention_out_of_range_are_refused(wrong, match):
    with pytest.raises(InputError, match=match):
        CrossAttentionFusion(**wrong)


@pytest.mark.parametrize("wrong", [{"width": 0}, {"dropout": -0.1}, {"dropout": 1.0}])
def test_sizes_of_concatenation_out_of_range_are_refused(wrong):
    with pytest.raises(InputError, match="expected at least 1, and 0 to below 1"):
        ConcatenationFusion(**wrong)
