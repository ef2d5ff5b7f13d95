"""Transformers of Hugging Face as encoders of notes: made, given weights, and stripped of what is not read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING

import torch
from torch import nn

from ..datasets.errors import InputError
from .weights import read_weights, refuse_not_finite, tell_misfit, told

if TYPE_CHECKING:
    from transformers import PretrainedConfig


# The number of a layer in the name of a weight.
_NUMBERED = re.compile(r"\.\d+\.")


def fresh_transformer(config: PretrainedConfig) -> nn.Module:
    """An encoder at random.

    Raises:
        InputError: there is no such model, its sizes do not agree, or it has a decoder.
    """
    from transformers import AutoModel

    try:
        model = AutoModel.from_config(config, dtype=torch.float32, trust_remote_code=False)
    except ValueError as error:
        raise InputError(f"No model can be made of this config of type {config.model_type!r}: {error}") from error
    return _encoder_only(model)


def load_transformer(source: str, weights: bool | str | Path | Mapping[str, object] = True) -> nn.Module:
    """A Hugging Face encoder in float32, without its pooling layer.

    Args:
        source: its name or local folder.
        weights: True for its own, False for none, or a safetensors file or a state dict.

    Raises:
        InputError: it cannot be found, reached or read, lacks weights or has others, needs code of its
            own, or is no encoder.
    """
    from safetensors import SafetensorError
    from transformers import AutoConfig, AutoModel

    given = None if isinstance(weights, bool) else read_weights(weights)
    name = repr(source) if isinstance(weights, bool) else told(weights)
    # Code that comes with a model is never run, nor is the user asked whether it should be.
    safely = {"trust_remote_code": False}
    # Names and shapes that do not match are reported, not raised and not left at random.
    reporting = {"dtype": torch.float32, "output_loading_info": True, "ignore_mismatched_sizes": True}
    try:
        if weights is True:
            model, report = AutoModel.from_pretrained(source, **reporting, **safely)
        else:
            config = AutoConfig.from_pretrained(source, **safely)
            model, report = fresh_transformer(config), {}
        if given is not None:
            model, report = type(model).from_pretrained(None, config=config, state_dict=given, **reporting)
    except (OSError, ValueError, RuntimeError, UnpicklingError, SafetensorError) as error:
        cut = ": its file of weights is cut short or damaged" if isinstance(error, SafetensorError) else ""
        raise InputError(
            f"No model could be loaded from {source!r} ({type(error).__name__}{cut}). Give the name of a Hugging Face "
            "encoder that can be reached, or a local folder with config.json, weights and tokenizer.json."
        ) from error
    _refuse_misfit(model, report, name)
    refuse_not_finite(model.state_dict(), name)
    return _encoder_only(model)


def _refuse_misfit(model: nn.Module, report: Mapping[str, object], source: str) -> None:
    """Raise `InputError` if weights did not match; what the file lacks would stay random without a word."""
    own = model.state_dict()
    lists = {name.rpartition(f"{number.group()}")[0] for name in own if (number := _NUMBERED.search(name))}
    unread = (name.removeprefix(f"{model.base_model_prefix}.") for name in report.get("unexpected_keys", ()))
    kinds = {
        "missing": sorted(name for name in report.get("missing_keys", ()) if "pooler." not in name),
        # Heads of other tasks are left where they are; layers beyond those of the config are not.
        "unexpected": sorted(name for name in unread if _NUMBERED.split(name)[0] in lists),
        "of another shape": sorted(
            f"{name} {list(theirs)} for {list(ours)}" for name, theirs, ours in report.get("mismatched_keys", ())
        ),
    }
    if misfit := tell_misfit(kinds, len(own)):
        raise InputError(
            f"The weights of {source} are not those of the model that its config.json describes: {misfit}. Take "
            "config.json and weights from one model."
        )


def _encoder_only(model: nn.Module) -> nn.Module:
    """The model without the layer that chiasm does not use, so that every parameter learns.

    Raises:
        InputError: a decoder is part of it.
    """
    if model.config.is_encoder_decoder:
        raise InputError(
            f"A model of type {model.config.model_type!r} has a decoder besides its encoder. Give an encoder, such "
            "as one of the families of BERT, RoBERTa, ELECTRA, DeBERTa or ModernBERT."
        )
    if getattr(model, "pooler", None) is not None:
        model.pooler = None
    return model


def longest_input(model: nn.Module) -> int:
    """Tokens that the model takes at once; 512 where its config sets no limit."""
    positions = int(getattr(model.config, "max_position_embeddings", None) or 512)
    # RoBERTa and its descendants number positions from the padding's number + 1 on.
    reserved = [
        layer.padding_idx + 1
        for name, layer in model.named_modules()
        if name.endswith("position_embeddings") and getattr(layer, "padding_idx", None) is not None
    ]
    return (positions if positions > 0 else 512) - max(reserved, default=0)
