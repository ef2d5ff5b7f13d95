"""The workload of the benchmark of a step: patients, chiasm's model, and the same one as written by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from chiasm.datasets import Cohort
from chiasm.datasets.prepared import PreparedSamples
from chiasm.encoders import ImageEncoder, LabEncoder, NoteEncoder
from chiasm.encoders.augmentation import LabAugmentation
from chiasm.encoders.lab_grid import lab_grid, step_features
from chiasm.encoders.lab_summary import summary_table
from chiasm.fusion import CrossAttentionFusion, FusionModel
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

NOW = pd.Timestamp("2030-01-01")
SMALL = {"size": 128, "network": "resnet18", "layers": 4, "bert": 256, "batch": 32}
LARGE = {"size": 224, "network": "resnet50", "layers": 12, "bert": 768, "batch": 256}
CODES, EVENTS, WIDTH, TOKENS = 37, 300, 256, 128


def draw_cohort(folder: Path, patients: int, size: int) -> Cohort:
    """Noise in the shape of patients, with images as files."""
    random = np.random.default_rng(0)
    people = np.arange(patients)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for k in people:
        path = folder / "images" / f"{k}.png"
        if not path.exists():
            Image.fromarray(random.integers(0, 256, (size, size), np.uint8)).save(path, compress_level=0)
    words = np.array(["".join(random.choice(list("aeioulmnrst"), 5)) for _ in range(1500)])
    lengths = random.integers(20, 90, patients)
    who = np.repeat(people, EVENTS)
    hours = pd.to_timedelta(random.uniform(0, 48, len(who)), unit="h")
    codes = [f"code {i}" for i in range(CODES)]
    labs = {"subject_id": who, "time": NOW - hours, "value": random.normal(100, 10, len(who))}
    labs["code"] = pd.Categorical.from_codes(random.integers(0, CODES, len(who)), codes)
    same = {"subject_id": people, "time": NOW - pd.Timedelta("1h")}
    return Cohort(
        pd.DataFrame({"subject_id": people, "prediction_time": NOW, "died": people % 2}),
        labs=pd.DataFrame(labs),
        notes=pd.DataFrame(same | {"text": [" ".join(random.choice(words, n)) for n in lengths]}),
        images=pd.DataFrame(same | {"path": [str(folder / "images" / f"{k}.png") for k in people]}),
    ).with_store(folder / "store")


def chiasm_model(cohort: Cohort, work: dict) -> FusionModel:
    from transformers import BertConfig

    model = FusionModel(
        image=ImageEncoder(work["network"], size=work["size"], augment=False),
        labs=LabEncoder(128, augmentation=LabAugmentation(dropped=0.0)),
        notes=NoteEncoder(bert_config(BertConfig, work), length=TOKENS, word_dropout=0.0),
        fusion=CrossAttentionFusion(WIDTH),
        outcomes=cohort.outcome_kinds,
    )
    model.build(cohort)
    return model


def bert_config(kind: type, work: dict) -> object:
    width = work["bert"]
    return kind(
        vocab_size=8000,
        hidden_size=width,
        num_hidden_layers=work["layers"],
        num_attention_heads=width // 64,
        intermediate_size=4 * width,
        max_position_embeddings=TOKENS,
    )


class BareBlock(nn.Module):
    """Queries read tokens, talk, think."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(WIDTH) for _ in range(3)])
        self.ask, self.tell, self.out = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.talk, self.talked = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.think = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Dropout(0.1), nn.Linear(4 * WIDTH, WIDTH))
        self.drop = nn.Dropout(0.1)

    def forward(self, state: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        read = attend(self.ask(self.norms[0](state)), *self.tell(tokens).chunk(2, -1), mask)
        state = state + self.drop(self.out(read))
        state = state + self.drop(self.talked(attend(*self.talk(self.norms[1](state)).chunk(3, -1), None)))
        return state + self.drop(self.think(self.norms[2](state)))


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    q, k, v = (x.unflatten(-1, (8, -1)).transpose(1, 2) for x in (q, k, v))
    mask = None if mask is None else mask[:, None, None]
    return functional.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)


class BareModel(nn.Module):
    """The same networks and a cross-attention head, as one would write them for this workload alone."""

    def __init__(self, model: FusionModel, work: dict, layout: torch.memory_format = torch.channels_last) -> None:
        super().__init__()
        import timm
        from transformers import BertConfig, BertModel

        labs, notes = model.encoders["labs"], model.encoders["notes"]
        image = timm.create_model(work["network"], in_chans=1, num_classes=0, global_pool="")
        self.image, self.layout = image.to(memory_format=layout), layout
        config = bert_config(BertConfig, work)
        config.vocab_size = notes.transformer.config.vocab_size
        self.bert = BertModel(config, add_pooling_layer=False)
        self.enter = nn.Sequential(nn.Linear(3 * CODES + 2, 128), nn.LayerNorm(128), nn.Dropout(0.2))
        self.gru = nn.GRU(128, 128, batch_first=True)
        self.summary = nn.Sequential(
            nn.Dropout(0.5), nn.Linear(labs.bend.features, 128), nn.GELU(), nn.Dropout(0.2), nn.Linear(128, 128)
        )
        widths = (image.num_features, 128, work["bert"])
        self.project, self.gist = (
            nn.ModuleList([nn.Sequential(nn.LayerNorm(own), nn.Linear(own, WIDTH)) for own in widths]) for _ in "pg"
        )
        self.kind = nn.Parameter(0.02 * torch.randn(3, WIDTH))
        self.queries = nn.Parameter(0.02 * torch.randn(5, WIDTH))
        self.start = nn.Linear(3 * WIDTH, WIDTH)
        self.norm, self.blocks = nn.LayerNorm(WIDTH), nn.ModuleList([BareBlock(), BareBlock()])
        self.head = nn.Linear(WIDTH, 1)

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        pixels = (batch["pixels"].float() / 255 - 0.5) / 0.25
        cells = functional.adaptive_avg_pool2d(
            self.image.forward_features(pixels.contiguous(memory_format=self.layout)), 4
        )
        real = torch.arange(batch["tokens"].shape[1], device=pixels.device) < batch["length"][:, None]
        parts = [
            cells.flatten(2).transpose(1, 2),
            self.gru(self.enter(batch["steps"]))[0],
            self.bert(input_ids=batch["tokens"], attention_mask=real.long()).last_hidden_state,
        ]
        some = torch.ones(parts[0].shape[:2], dtype=torch.bool, device=pixels.device)
        masks = [some, batch["real"], real]
        note = (parts[2] * real[..., None]).sum(1) / real.sum(1, keepdim=True)
        gists = (parts[0].mean(1), self.summary(batch["summary"]), note)
        gists = [gist(own) for gist, own in zip(self.gist, gists, strict=True)]
        tokens = [own(part) + self.kind[k] for k, (own, part) in enumerate(zip(self.project, parts, strict=True))]
        sequence, mask = self.norm(torch.cat([*tokens, torch.stack(gists, 1)], 1)), torch.cat([*masks, some[:, :3]], 1)
        state = self.queries + self.start(torch.cat(gists, -1))[:, None]
        for block in self.blocks:
            state = block(state, sequence, mask)
        return self.head(state[:, 0].float())[:, 0]


@torch.no_grad()
def ready(samples: PreparedSamples, positions: list[int], model: FusionModel) -> dict[str, Tensor]:
    """A batch as the bare loop wants it: nothing is left to compute."""
    batch, labs = samples[positions], model.encoders["labs"]
    part = batch.parts["labs"]
    grid = lab_grid(part, len(positions), labs.codes)
    return {
        "pixels": batch.parts["image"].pixels,
        "steps": step_features(grid).contiguous(),
        "real": grid.real,
        "summary": labs.bend(summary_table(grid, part)),
        "tokens": batch.parts["notes"].tokens,
        "length": batch.parts["notes"].length,
        "died": batch.outcomes[:, 0],
    }
