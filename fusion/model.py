"""The fused model: encoders, fusion head, outcome heads; and its file format."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..datasets.arguments import as_path, require_cohort, require_numbers
from ..datasets.batch import Batch
from ..datasets.cohort import Cohort
from ..datasets.errors import InputError
from ..datasets.outcomes import OutcomeKind
from ..datasets.prepared import Packed, PreparedSamples, Reader, prepare
from ..datasets.windows import as_far_back
from ..encoders import Encoder, ImageEncoder, LabEncoder, NoteEncoder, StaticEncoder, Tokens
from ..encoders.budget import has_budget, tell_shortened
from .artifact import MALFORMED, new_folder, read_folder, undescribed
from .bottleneck import BottleneckFusion
from .concatenation import ConcatenationFusion
from .cross_attention import CrossAttentionFusion
from .experts import ExpertFusion
from .gated import GatedFusion
from .late import LateFusion
from .low_rank import LowRankFusion
from .outcome_heads import OutcomeHeads, Risk
from .recurrent import RecurrentFusion
from .state import FusedState, Fusion
from .weight_limit import limited_weights

MODALITIES = ("image", "labs", "notes", "static")
_ENCODERS = {"image": ImageEncoder, "labs": LabEncoder, "notes": NoteEncoder, "static": StaticEncoder}
FUSIONS = {
    "cross-attention": CrossAttentionFusion,
    "concatenation": ConcatenationFusion,
    "gated": GatedFusion,
    "late": LateFusion,
    "bottleneck": BottleneckFusion,
    "low-rank": LowRankFusion,
    "recurrent": RecurrentFusion,
    "experts": ExpertFusion,
}
"""Every fusion head, by the name that it has in files and comparisons."""


class FusionModel(nn.Module):
    """Predicts outcomes from any of image, labs, notes and static facts.

    It is constructed as a plan; `fit` fits its readers on the training patients and makes its
    layers under its seed.

    Args:
        image, labs, notes, static: one encoder a modality; leave out what is not to be read.
        fusion: the fusion head; `CrossAttentionFusion()` unless given.
        outcomes: kind of each outcome, as `cohort.outcome_kinds` tells it.
        modality_dropout: probability that, in training, a modality that a patient has is withheld,
            so that the model learns to do without; never all of them.
        auxiliary: weight, in training, of the loss of what each modality predicts alone; 0 for none.
        label_smoothing: share of each binary or categorical label that, in training, is spread evenly over
            the classes, so that few labels, some of them wrong, are not learned by heart; 0 for none.

    Raises:
        InputError: no encoder, no outcome, or settings that make no sense.

    Example:
        >>> model = FusionModel(labs=LabEncoder(width=64), outcomes={"died": "binary"})
    """

    def __init__(
        self,
        *,
        image: Encoder | None = None,
        labs: Encoder | None = None,
        notes: Encoder | None = None,
        static: Encoder | None = None,
        fusion: Fusion | None = None,
        outcomes: Mapping[str, str],
        modality_dropout: float = 0.1,
        auxiliary: float = 0.3,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        given = {"image": image, "labs": labs, "notes": notes, "static": static}
        encoders = {name: encoder for name, encoder in given.items() if encoder is not None}
        if not encoders:
            raise InputError(f"The model has no encoder. Give at least one of {', '.join(MODALITIES)}.")
        if not isinstance(outcomes, Mapping):
            raise InputError(f"outcomes= was given a {type(outcomes).__name__}; expected cohort.outcome_kinds.")
        if not outcomes:
            raise InputError(
                "The model has no outcome. Give outcomes=cohort.outcome_kinds; if that is empty, the table outcomes "
                "needs a column with what is to be predicted."
            )
        unnamed = [name for name in outcomes if not isinstance(name, str) or not name]
        if unnamed:
            raise InputError(f"outcomes= names an outcome {unnamed[0]!r}; expected the name of a column, as text.")
        require_numbers(modality_dropout=modality_dropout, auxiliary=auxiliary, label_smoothing=label_smoothing)
        if not 0 <= modality_dropout < 1:
            raise InputError(f"modality_dropout is {modality_dropout}; expected a probability from 0 to below 1.")
        if not 0 <= auxiliary < math.inf:
            raise InputError(f"auxiliary is {auxiliary}; expected a weight of 0 or more.")
        if not 0 <= label_smoothing < 1:
            raise InputError(f"label_smoothing is {label_smoothing}; expected a share from 0 to below 1.")
        _refuse_misplaced(encoders, fusion)
        self.encoders = nn.ModuleDict(encoders)
        self.fusion = fusion or CrossAttentionFusion()
        self.outcomes = {name: _as_kind(name, kind) for name, kind in outcomes.items()}
        self.modality_dropout, self.auxiliary = modality_dropout, auxiliary
        self.label_smoothing = label_smoothing
        self.thresholds_: dict[str, float] = {}
        """By binary outcome: the risk from which a patient counts as positive, chosen on validation patients."""
        self.history_: float | None = None
        """How many hours back the inputs went that it was built on; None for all."""

    @property
    def modalities(self) -> tuple[str, ...]:
        """The modalities it reads."""
        return tuple(self.encoders)

    @property
    def readers(self) -> dict[str, Reader]:
        """The fitted readers, by modality."""
        return {name: encoder.reader for name, encoder in self.encoders.items()}

    @property
    def plan(self) -> dict[str, object]:
        """What tells this model from another: its parts' settings, its weights, and how it is trained."""
        weights = hashlib.sha256()
        for name, value in sorted(self.state_dict().items()):
            weights.update(
                name.encode() + value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
            )
        parts = {name: encoder.describe() for name, encoder in self.encoders.items()}
        own = {"fusion": self.fusion.describe(), "dropout": self.modality_dropout, "auxiliary": self.auxiliary}
        own["smoothing"] = self.label_smoothing
        return {"layers": repr(self), "parts": parts, "weights": weights.hexdigest(), **own}

    @property
    def is_built(self) -> bool:
        """Whether its readers are fitted and its layers made."""
        return hasattr(self, "heads")

    def build(self, cohort: Cohort, *, seed: int = 0) -> None:
        """Fit the readers on training patients and make the layers, with random weights of `seed`."""
        require_cohort(cohort)
        for name, encoder in self.encoders.items():
            if next(encoder.parameters(), None) is not None:
                raise InputError(f"{name}= was built before, for another model. Give each model encoders of its own.")
        if next(self.fusion.parameters(), None) is not None:
            raise InputError("fusion= was built before, for another model. Give each model a head of its own.")
        self.history_ = cohort.history
        with limited_weights(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for encoder in self.encoders.values():
                encoder.build(cohort)
            self._make_heads()

    def _make_heads(self) -> None:
        widths = {name: encoder.width for name, encoder in self.encoders.items()}
        self.fusion.build(widths, len(self.outcomes))
        self.heads = OutcomeHeads(self.outcomes, self.fusion.width)
        # Each modality also predicts alone in training, so that a quick one does not keep a slow one from learning.
        self.alone = nn.ModuleDict({name: OutcomeHeads(self.outcomes, width) for name, width in widths.items()})

    def read(self, cohort: Cohort, *, labelled: bool = False) -> PreparedSamples:
        """A cohort as the model sees it: through its readers, and as far back as it was trained to look.

        Args:
            cohort: the samples; how far back they go by themselves does not matter.
            labelled: whether to encode the outcomes too.

        Raises:
            InputError: a file cannot be read, or an outcome is missing or does not fit its kind.
        """
        samples = prepare(self.as_seen(cohort), self.readers, self.outcomes if labelled else None)
        return replace(samples, parts={name: self._remarked(name, packed) for name, packed in samples.parts.items()})

    def as_seen(self, cohort: Cohort) -> Cohort:
        """The cohort with inputs as far back as the model was trained to look."""
        return as_far_back(cohort, self.history_)

    def _remarked(self, name: str, packed: Packed) -> Packed:
        """One modality of all samples, with a remark on what its encoder does not read in detail."""
        encoder = self.encoders[name]
        if not has_budget(encoder):
            return packed
        return tell_shortened(packed, encoder.detailed(packed), encoder.budget)

    def fit_scales(self, outcomes: Tensor, known: Tensor, *, balanced: bool) -> None:
        """Learn scales, class weights and starting points of all outcome heads from training outcomes."""
        for heads in (self.heads, *self.alone.values()):
            heads.fit_scales(outcomes, known, balanced=balanced)

    def weigh_classes(self, outcomes: Tensor, known: Tensor, *, balanced: bool) -> None:
        """Learn class weights alone, for a model that is trained further: its scales are what its weights go by."""
        for heads in (self.heads, *self.alone.values()):
            heads.weigh_classes(outcomes, known, balanced=balanced)

    def encode(self, batch: Batch) -> dict[str, Tokens]:
        """The tokens of every modality."""
        return {name: encoder(batch.parts[name], len(batch.sample)) for name, encoder in self.encoders.items()}

    def fuse(self, tokens: Mapping[str, Tokens]) -> Risk:
        """Risks from tokens."""
        return self.heads(self.fusion(tokens))

    def forward(self, batch: Batch) -> Risk:
        tokens = self.encode(batch)
        if not self.training:
            return self.fuse(tokens)
        alone = {
            name: self.alone[name](FusedState(own.gist[:, None].expand(-1, len(self.outcomes), -1))).logits
            for name, own in tokens.items()
        }
        present = {name: own.mask.any(1) for name, own in tokens.items()}
        if self.modality_dropout:
            tokens = withhold_at_random(tokens, self.modality_dropout)
        return self.fuse(tokens)._replace(alone=alone, present=present)

    def loss(self, risk: Risk, batch: Batch) -> tuple[Tensor, Tensor]:
        """Sum of the losses over the known labels, and how many these are.

        In training, labels are smoothed, and what each modality predicts alone adds to it with the weight
        `auxiliary`.
        """
        smoothing = self.label_smoothing if self.training else 0.0
        total, count = self.heads.loss(risk.logits, batch.outcomes, batch.known, smoothing=smoothing)
        for name, logits in risk.alone.items():
            known = batch.known & risk.present[name][:, None]
            own, _ = self.alone[name].loss(logits, batch.outcomes, known, smoothing=smoothing)
            total = total + self.auxiliary * own
        return total, count

    def attention(self, batch: Batch) -> dict[str, Tensor]:
        """How much each outcome's query looks at each token, by modality: `[patient, outcome, token]`.

        Raises:
            InputError: the fusion head has no attention.
        """
        return self.fusion(self.encode(batch), attention=True).attention

    # File format

    def save(self, folder: str | Path) -> None:
        """Write weights (safetensors), description (JSON) and manifest, whole or not at all.

        Raises:
            InputError: the model is not trained, or the folder holds something else.
        """
        if not self.is_built:
            raise InputError("The model has no weights yet. Train it with fit before saving it.")
        description = self.describe()
        with new_folder(as_path("folder", folder), "model") as scratch:
            self.save_weights(scratch / "weights.safetensors")
            (scratch / "model.json").write_text(json.dumps(description))

    def save_weights(self, path: Path) -> None:
        """Write all weights and statistics as a safetensors file."""
        save_file({name: value.detach().cpu().contiguous() for name, value in self.state_dict().items()}, path)

    def describe(self) -> dict[str, object]:
        """Everything but the weights, as plain JSON values.

        Raises:
            InputError: a part of the model is not chiasm's own, and could not be made again.
        """
        kinds = {kind: name for name, kind in FUSIONS.items()}
        ours = {*kinds, *_ENCODERS.values()}
        strange = [type(part).__name__ for part in (self.fusion, *self.encoders.values()) if type(part) not in ours]
        if strange:
            raise InputError(
                f"The model has a {strange[0]}, which chiasm does not know and so could not load again. "
                "Save its weights yourself with safetensors."
            )
        return {
            "encoders": {name: encoder.describe() for name, encoder in self.encoders.items()},
            "fusion": {"kind": kinds[type(self.fusion)], "settings": self.fusion.describe()},
            "outcomes": {name: kind.describe() for name, kind in self.outcomes.items()},
            "modality_dropout": self.modality_dropout,
            "auxiliary": self.auxiliary,
            "label_smoothing": self.label_smoothing,
            "thresholds": self.thresholds_,
            "history": self.history_,
        }

    @classmethod
    def load(cls, folder: str | Path) -> FusionModel:
        """Read what `save` wrote; no code in the folder is ever run.

        Raises:
            InputError: the folder is missing, damaged, or of another schema.
        """
        return read_folder(as_path("folder", folder), "model", cls._loaded)

    @classmethod
    def _loaded(cls, folder: Path) -> FusionModel:
        try:
            description = json.loads((folder / "model.json").read_text())
        except ValueError as error:
            raise undescribed(folder) from error
        return cls.described(description, folder / "weights.safetensors")

    @classmethod
    def described(cls, description: Mapping[str, Mapping], weights: Path) -> FusionModel:
        """The model of which `describe` told, with the weights of a safetensors file.

        Raises:
            InputError: it is no description that this version can follow, or the weights do not fit it.
        """
        try:
            return cls._rebuilt(description, weights).eval()
        except MALFORMED as error:
            if isinstance(error, InputError):
                raise
            raise undescribed(weights.parent) from error

    @classmethod
    def _rebuilt(cls, description: Mapping[str, Mapping], weights: Path) -> FusionModel:
        fusion = description["fusion"]
        model = cls(
            **{name: _ENCODERS[name](**own["settings"]) for name, own in description["encoders"].items()},
            fusion=FUSIONS[fusion["kind"]](**fusion["settings"]),
            outcomes={name: OutcomeKind(**stored) for name, stored in description["outcomes"].items()},
            modality_dropout=description["modality_dropout"],
            auxiliary=description["auxiliary"],
            label_smoothing=description["label_smoothing"],
        )
        with limited_weights(), torch.random.fork_rng(devices=[]):
            for name, encoder in model.encoders.items():
                encoder.rebuild(description["encoders"][name])
            model._make_heads()
        model.load_state_dict(load_file(weights), strict=True)
        model.thresholds_ = {name: float(value) for name, value in description["thresholds"].items()}
        model.history_ = description["history"]
        if model.history_ is not None and not 0 < model.history_ < math.inf:
            raise ValueError("history is no number of hours")
        return model


def _as_kind(name: str, kind: str) -> OutcomeKind:
    if isinstance(kind, OutcomeKind):
        return kind
    if kind == "categorical":
        raise InputError(
            f"The outcome {name} is categorical, but its classes are not given. "
            'Give cohort.outcome_kinds, or OutcomeKind("categorical", classes).'
        )
    return OutcomeKind(kind)


def _refuse_misplaced(encoders: Mapping[str, Encoder], fusion: Fusion | None) -> None:
    if fusion is not None and not isinstance(fusion, Fusion):
        raise InputError(f"fusion= was given a {type(fusion).__name__}; expected a head, such as CrossAttentionFusion.")
    for name, encoder in encoders.items():
        if not isinstance(encoder, Encoder):
            raise InputError(f"{name}= was given a {type(encoder).__name__}; expected an encoder of chiasm.encoders.")
        other = next((own for own, kind in _ENCODERS.items() if type(encoder) is kind and own != name), None)
        if other:
            raise InputError(f"{name}= was given a {type(encoder).__name__}, which belongs to {other}=.")


def withhold(tokens: Mapping[str, Tokens], kept: Mapping[str, Tensor]) -> dict[str, Tokens]:
    """Tokens as if some patients lacked some modalities; `kept` says, by modality, bool `[batch]`, who has it."""
    return {name: own.of(kept[name]) if name in kept else own for name, own in tokens.items()}


def withhold_at_random(tokens: Mapping[str, Tokens], probability: float) -> dict[str, Tokens]:
    """Withhold each modality of each patient with some probability, but never all that a patient has."""
    present = torch.stack([own.mask.any(1) for own in tokens.values()])
    kept = torch.rand(present.shape, device=present.device) >= probability
    nothing_left = ~(present & kept).any(0)
    kept = kept | nothing_left
    return withhold(tokens, dict(zip(tokens, kept, strict=True)))
