"""The laws of fusion heads: one contract that all keep, what attention means, and what each paper's formula says."""

from itertools import combinations

import pandas as pd
import pytest
import torch
from chiasm.datasets import InputError
from chiasm.encoders import Tokens
from chiasm.fusion import (
    BottleneckFusion,
    ConcatenationFusion,
    CrossAttentionFusion,
    ExpertFusion,
    FusionModel,
    GatedFusion,
    LateFusion,
    LowRankFusion,
    RecurrentFusion,
    predict,
)
from chiasm.fusion.cross_attention import _attended
from chiasm.fusion.model import FUSIONS
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
    "gated": lambda: GatedFusion(16),
    "late": lambda: LateFusion(16),
    "bottleneck": lambda: BottleneckFusion(16, depth=2, heads=4, bottlenecks=2),
    "low-rank": lambda: LowRankFusion(16, rank=2),
    "recurrent": lambda: RecurrentFusion(16),
    "experts": lambda: ExpertFusion(16, experts=3),
}
READ_TIME = (CrossAttentionFusion, BottleneckFusion)
# Here an absent modality says nothing, unless all are absent; elsewhere it is a learned token.
SILENT = (LateFusion, RecurrentFusion)


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
            if own.values.grad is None:
                # Of what has a summary of its own, some heads read no more.
                assert own.summary is not None
                continue
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


def test_on_a_cpu_queries_read_in_fp32_also_where_the_rest_is_in_half_precision():
    q, k, v = torch.randn(3, 2, 1, 4, 8).bfloat16()
    mask = torch.tensor([True, True, False, True]).expand(2, 1, 1, 4)
    with torch.autocast("cpu", torch.bfloat16):
        read = _attended(q, k, v, mask)
    scores = (q.float() @ k.float().transpose(-1, -2)) / 8**0.5
    assert read.dtype == torch.float32
    assert_close(read, scores.masked_fill(~mask, -torch.inf).softmax(-1) @ v.float())


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
        if isinstance(head, READ_TIME):
            assert (fused(head, later) - fused(head, tokens)).abs().max() > 1e-5


def test_absence_is_learned_where_something_is_absent_and_only_there(head):
    silent = isinstance(head, SILENT)
    for name in WIDTHS:
        head.zero_grad()
        head(draw([tuple(WIDTHS), (name,)])).values.square().sum().backward()
        assert not head.entry.absent[name].grad.any()
        assert all(head.entry.absent[other].grad.any() != silent for other in WIDTHS if other != name)
    head.zero_grad()
    head(draw([()])).values.square().sum().backward()
    assert all(own.grad.any() for own in head.entry.absent.values())


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


def test_a_head_without_attention_says_so(head):
    if not isinstance(head, CrossAttentionFusion):
        with pytest.raises(InputError, match=f"{type(head).__name__} has no attention weights. Use CrossAttention"):
            head(draw(), attention=True)


@pytest.mark.parametrize("name", FUSIONS)
def test_a_model_with_any_head_is_loaded_as_it_was_saved(name, cohort, small_model, tmp_path):
    model = small_model(("labs", "static"), outcomes={"died": "binary"}, fusion=FUSIONS[name](16))
    model.build(cohort, seed=1)
    model.save(tmp_path / "model")
    again = FusionModel.load(tmp_path / "model")
    assert type(again.fusion) is FUSIONS[name]
    pd.testing.assert_frame_equal(predict(again, cohort), predict(model, cohort))


# What the papers say


def built(head: Fusion) -> Fusion:
    torch.manual_seed(3)
    head.build(WIDTHS, OUTCOMES)
    return head.eval()


def test_every_head_is_under_contract_and_known_by_a_name():
    assert {type(make()) for make in HEADS.values()} == set(FUSIONS.values())


def test_late_fusion_is_the_mean_of_what_each_modality_says_alone():
    head = built(LateFusion(16))
    together = draw([tuple(WIDTHS)])
    empty = {name: nobody(own) for name, own in together.items()}
    alone = [fused(head, empty | {name: own}) for name, own in together.items()]
    close(fused(head, together), torch.stack(alone).mean(0))


def nobody(own: Tokens) -> Tokens:
    """As if nobody had the modality."""
    return Tokens(own.values, torch.zeros_like(own.mask), own.hours, own.summary)


def test_low_rank_fusion_is_the_product_of_all_modalities_with_their_ones_through_a_tensor():
    head = built(LowRankFusion(4, rank=2))
    torch.nn.init.normal_(head.weight)
    tokens = draw()
    with torch.no_grad():
        entered = [functional.pad(gist, (0, 1), value=1.0) for gist in head.entry(tokens).values()]
        whole = torch.einsum("pa,pb,pc,pd->pabcd", *entered)
        maps = [torch.cat([own.weight, own.bias[:, None]], 1).unflatten(0, (2, 4)) for own in head.factor.values()]
        tensor = torch.einsum("r,rha,rhb,rhc,rhd->habcd", head.weight[:, 0], *maps)
        expected = head.out(torch.einsum("pabcd,habcd->ph", whole, tensor))
    close(fused(head, tokens).flatten(1), expected)


def test_recurrent_fusion_is_an_lstm_over_the_modalities_that_are_there():
    head = built(RecurrentFusion(16))
    lstm = torch.nn.LSTM(16, 16, batch_first=True)
    lstm.load_state_dict({f"{name}_l0": value for name, value in head.read.state_dict().items()})
    for i, subset in enumerate(SUBSETS[1:], 1):
        with torch.no_grad():
            gists = head.entry(pick(draw(), slice(i, i + 1)))
            expected = head.out(lstm(torch.stack([gists[name] for name in sorted(subset)], 1))[0][:, -1])
        close(fused(head, pick(draw(), slice(i, i + 1))).flatten(1), expected)


def test_gated_fusion_is_what_each_modality_says_times_its_gate():
    head = built(GatedFusion(4))
    with torch.no_grad():
        gists = head.entry(draw())
        gates = torch.sigmoid(head.gate(torch.cat(list(gists.values()), 1))).unflatten(1, (len(WIDTHS), -1))
        said = torch.stack([torch.tanh(head.say[name](gist)) for name, gist in gists.items()], 1)
    close(fused(head, draw()).flatten(1), (gates * said).sum(1))


def test_what_a_modality_says_reaches_another_only_through_the_bottlenecks():
    tokens = draw([tuple(WIDTHS)])
    moved = tokens | each({"labs": tokens["labs"]}, lambda values: values.flip(-1))
    head = built(BottleneckFusion(16, depth=2, heads=4, bottlenecks=2))
    seen = []
    for layer in head.layers:
        layer["notes"].register_forward_hook(lambda *call: seen.append(call[-1]))
    fused(head, tokens)
    fused(head, moved)
    first, second, first_moved, second_moved = seen
    assert torch.equal(first, first_moved)
    assert (second - second_moved).abs().max() > 1e-4


def test_experts_are_weighted_by_who_has_what_and_every_pattern_has_weights_of_its_own():
    head = built(ExpertFusion(16, experts=3))
    torch.nn.init.zeros_(head.by_content.weight)
    with torch.no_grad():
        known = head.norm(torch.cat(list(head.entry(draw()).values()), 1))
        has = torch.tensor([[name in subset for name in WIDTHS] for subset in SUBSETS]).float()
        share = head.by_pattern(has).softmax(-1)
        said = torch.stack([expert(known) for expert in head.expert], 1)
    close(fused(head, draw()).flatten(1), torch.einsum("pe,pes->ps", share, said))
    assert len(share.unique(dim=0)) == len(SUBSETS)


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


@pytest.mark.parametrize(
    "head",
    [ConcatenationFusion, GatedFusion, LateFusion, RecurrentFusion, LowRankFusion, BottleneckFusion, ExpertFusion],
)
@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"width": 0}, "width is 0; expected a whole number of at least 1"),
        ({"dropout": 1.0}, r"dropout is 1\.0; expected a probability from 0 to below 1"),
        ({"dropout": -0.1}, r"dropout is -0\.1; expected a probability"),
    ],
)
def test_sizes_of_other_heads_out_of_range_are_refused(head, wrong, match):
    with pytest.raises(InputError, match=match):
        head(**wrong)


@pytest.mark.parametrize(
    ("head", "wrong", "match"),
    [
        (LowRankFusion, {"rank": 0}, "rank is 0; expected a whole number of at least 1"),
        (ExpertFusion, {"experts": 0}, "experts is 0; expected"),
        (BottleneckFusion, {"depth": 0}, "depth is 0; expected"),
        (BottleneckFusion, {"heads": 0}, "heads is 0; expected"),
        (BottleneckFusion, {"bottlenecks": 0}, "bottlenecks is 0; expected"),
        (BottleneckFusion, {"width": 30, "heads": 4}, "width is 30 and heads 4; expected heads that divide the width"),
    ],
)
def test_sizes_that_one_head_has_are_refused_out_of_range(head, wrong, match):
    with pytest.raises(InputError, match=match):
        head(**wrong)
