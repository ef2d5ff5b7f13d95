"""Training in processes of their own, which can be killed at any time and be several of one run.

They are forked from a server that has imported everything once, so that a run begins within a second.
"""

import gc
import hashlib
import multiprocessing
import os
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from multiprocessing.process import BaseProcess
from pathlib import Path

_SERVED = multiprocessing.get_context("forkserver")
_SERVED.set_forkserver_preload(
    [
        *("chiasm.fusion.ensemble_training", "chiasm.recipes.demo", "chiasm.recipes.runs", "chiasm.datasets.pictures"),
        *("transformers.models.bert.modeling_bert", "timm", "accelerate", "joblib", "torch.distributed.fsdp"),
    ]
)


def start(work: Callable[..., None], *given: object, processes: int = 1, said: Path) -> list[BaseProcess]:
    """Run a function in one or several processes of one run.

    Args:
        work: of a module, called with what is given.
        given: picklable.
        processes: that train together, as if a launcher had started them.
        said: folder for what each writes to standard error, as `0.txt` and so on.
    """
    said.mkdir(parents=True, exist_ok=True)
    rooms = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
    ranks = [
        {"RANK": str(rank), "LOCAL_RANK": str(rank)} | rooms if processes > 1 else {"WORLD_SIZE": "1"}
        for rank in range(processes)
    ]
    started = [_SERVED.Process(target=_run, args=(said / f"{i}.txt", own, work, given)) for i, own in enumerate(ranks)]
    # Where they find this module; last, since a folder of that place has the name of a package.
    sys.path.append(str(Path(__file__).parent.parent))
    try:
        for process in started:
            process.start()
    finally:
        sys.path.pop()
    return started


def _run(said: Path, environment: Mapping[str, str], work: Callable[..., None], given: tuple[object, ...]) -> None:
    """What a process does: speak into its file, and end as a command would."""
    import torch
    from chiasm.datasets import InputError
    from chiasm.fusion.stopping import Stopped

    # What the server imported is not looked through for garbage, and so stays shared with it.
    gc.freeze()
    os.environ.update(environment)
    torch.set_num_threads(1)
    # Who started the tests in the background has made them, and their children, deaf to Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), sys.stderr.fileno())
    code = 0
    try:
        work(*given)
    except Stopped as stopped:
        code = 128 + stopped.number
    except (InputError, OSError) as error:
        print(f"chiasm: {error}", file=sys.stderr)
        code = 2
    except SystemExit as ended:
        code = ended.code
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    sys.exit(code)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def digest(model: Path) -> str:
    """SHA-256 of a saved model's weights."""
    return hashlib.sha256((model / "weights.safetensors").read_bytes()).hexdigest()
