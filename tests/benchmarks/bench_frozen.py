"""Training on frozen networks with their tokens kept, beside the same training with networks run in every epoch.

    OMP_NUM_THREADS=1 python tests/benchmarks/bench_frozen.py --patients 2000 --epochs 10
    OMP_NUM_THREADS=1 python tests/benchmarks/bench_frozen.py --patients 96 --epochs 3 --large

Makes a synthetic hospital, a ResNet-18 for its radiographs at 128 pixels and a BERT of 4 layers for its notes
(--large: a ResNet-50 at 224 pixels and 12 layers of BERT's base size), frozen, at random, since speed does not
depend on weights. The lab encoder and the fusion learn. Prints seconds of processor time (with one thread those of
the wall, where nobody else uses the machine) in all and from the second epoch on, their ratios, the size of what
was kept, and the largest difference of predictions.

Networks are run in every epoch by leaving out the step of `fit` that keeps tokens; --recomputed says for how many
epochs, since each costs the same.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from chiasm.datasets import Cohort
from chiasm.datasets.synthetic import write_hospital
from chiasm.encoders import ImageEncoder, LabEncoder, NoteEncoder
from chiasm.fusion import CrossAttentionFusion, FusionModel, fit, predict, training
from chiasm.fusion.frozen_tokens import TokenKeeper
from transformers import BertConfig


def make_model(large: bool) -> FusionModel:
    """Frozen image and note encoders; a GRU and a fusion head that learn."""
    if large:
        image = ImageEncoder("resnet50", size=224, tuning="frozen")
        config = BertConfig(max_position_embeddings=128)
    else:
        image = ImageEncoder("resnet18", size=128, tuning="frozen")
        sizes = {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 1024}
        config = BertConfig(**sizes, max_position_embeddings=128)
    return FusionModel(
        image=image,
        labs=LabEncoder(64),
        notes=NoteEncoder(config, length=128, tuning="frozen"),
        fusion=CrossAttentionFusion(64, depth=2, heads=4),
        outcomes={"died": "binary"},
    )


def trained(
    train: Cohort, valid: Cohort, large: bool, epochs: int, folder: Path | None
) -> tuple[FusionModel, float, list[float]]:
    """A trained model, and processor seconds in all but reading and of each epoch."""
    if folder:
        train, valid = train.with_store(folder), valid.with_store(folder)
    model = make_model(large)
    model.build(train)
    # Files are decoded before, with or without kept tokens.
    for part in (train, valid):
        model.read(part)
    ends, note = [], training.end_epoch
    training.end_epoch = lambda *given, **named: (ends.append(time.process_time()), note(*given, **named))[1]
    begins, train_epoch = [], training._train_epoch
    training._train_epoch = lambda *given: (begins.append(time.process_time()), train_epoch(*given))[1]
    began = time.process_time()
    history = fit(model, train, valid, epochs=epochs, patience=None, progress=False)
    whole = time.process_time() - began
    training.end_epoch, training._train_epoch = note, train_epoch
    print("  " + "\n  ".join(history.tuning), flush=True)
    return model, whole, [end - begin for begin, end in zip(begins, ends, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patients", type=int, default=2000)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--recomputed", type=int, help="epochs with networks run in each; --epochs unless given")
    parser.add_argument("--large", action="store_true", help="ResNet-50 at 224 px, and 12 layers of BERT")
    arguments = parser.parse_args()
    fewer = arguments.recomputed or arguments.epochs
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_hospital(folder / "hospital", patients=arguments.patients, seed=0, image_size=256)
        cohort = Cohort.read(folder / "hospital", history=96).keep_with_input()
        train, valid, test = cohort.split((0.8, 0.1, 0.1), seed=0)

        print(f"tokens kept, {len(train)} training and {len(valid)} validation samples", flush=True)
        kept, whole, seconds = trained(train, valid, arguments.large, arguments.epochs, folder / "store")
        size = sum(path.stat().st_size for path in (folder / "store").glob("tokens-*/values.npy")) / 1e6
        later = statistics.median(seconds[1:])
        print(f"  {whole:.1f} s in all, {later:.2f} s an epoch, {size:.0f} MB kept", flush=True)

        print(f"networks run in each of {fewer} epochs", flush=True)
        keep, TokenKeeper.keep = TokenKeeper.keep, lambda _, samples, __: samples
        _, plain_whole, plain = trained(train, valid, arguments.large, fewer, None)
        TokenKeeper.keep = keep
        every = statistics.median(plain)
        plain_whole += (arguments.epochs - fewer) * every
        print(f"  {plain_whole:.1f} s for {arguments.epochs} epochs, {every:.2f} s an epoch")
        print(f"{plain_whole / whole:.1f} × faster in all, {every / later:.1f} × from the second epoch on")

        ours, theirs = (predict(kept, part)["risk"] for part in (test.with_store(folder / "store"), test))
        print(f"largest difference of {len(ours)} predictions: {np.abs(ours - theirs).max():.1e}")


if __name__ == "__main__":
    main()
