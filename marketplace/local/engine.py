"""The demo's inference engine: llama.cpp's own HTTP server, in the foreground of this process.

python -m marketplace.local.engine --model tiny.gguf --port 8201 --n-ctx 4096 --n-parallel 2
"""

import argparse
import signal
import sys
import threading
from pathlib import Path

from marketplace.local.tiny_model import write_tiny_model

_WAKE_S = 1.0


def serve(model_path: Path, port: int, n_ctx: int, n_parallel: int) -> None:
    """Serves `model_path` at 127.0.0.1:`port` until SIGTERM or SIGINT; each of `n_parallel` slots gets its
    share of `n_ctx`. Raises RuntimeError when the server cannot start (port taken, file not a model).
    """
    # Imported here: the wheel loads libgomp, and a caller that only parses arguments should not need it.
    from xllamacpp import CommonParams, Server

    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    parameters = CommonParams()
    parameters.model.path = str(model_path)
    parameters.hostnames = ["127.0.0.1"]
    parameters.port = port
    parameters.n_ctx = n_ctx
    parameters.n_parallel = n_parallel
    parameters.endpoint_metrics = True
    parameters.cpuparams.n_threads = 1  # Two demo engines and the whole market share a small machine.
    server = Server(parameters)
    print(f"engine: {model_path.name} at {server.listening_address}", flush=True)
    while not stopping.wait(_WAKE_S):
        pass
    del server  # Stops the server's threads and frees the model.


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m marketplace.local.engine", description=__doc__)
    parser.add_argument(
        "--model", type=Path, required=True, help="GGUF file; the tiny model is written if it is absent"
    )
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--n-ctx", type=int, default=4096, help="context of all slots together, in tokens")
    parser.add_argument("--n-parallel", type=int, default=2, help="requests served at the same time")
    parser.add_argument("--seed", type=int, default=1, help="which random model to write if it is absent")
    chosen = parser.parse_args(arguments)
    if not chosen.model.exists():
        chosen.model.parent.mkdir(parents=True, exist_ok=True)
        write_tiny_model(chosen.model, seed=chosen.seed)
    try:
        serve(chosen.model, chosen.port, chosen.n_ctx, chosen.n_parallel)
    except (RuntimeError, OSError) as error:
        print(f"engine: cannot serve {chosen.model} on port {chosen.port}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
