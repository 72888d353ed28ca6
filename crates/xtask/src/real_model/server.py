"""Serves a language model on loopback, with OpenAI's protocol, until standard input ends. Prints its address.

    python server.py MODEL.gguf SHA256 CONTEXT
"""

import hashlib
import pathlib
import sys

import xllamacpp

path, sha256, context = sys.argv[1:]
found = hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest()
if found != sha256:
    sys.exit(f"{path} has sha256 {found}, not {sha256}")
parameters = xllamacpp.CommonParams()
parameters.model.path = path
parameters.n_ctx = int(context)
parameters.n_parallel = 1
parameters.n_gpu_layers = 0
# One thread, so that what trains or compiles meanwhile has the other cores.
parameters.cpuparams.n_threads = 1
parameters.cpuparams_batch.n_threads = 1
parameters.hostnames = ["127.0.0.1"]
parameters.port = 0
server = xllamacpp.Server(parameters)
print(server.listening_address, flush=True)
sys.stdin.read()
