#!/usr/bin/env python3
"""Our training step on one GPU beside the same model in PyTorch, alternately in one run.

    tools/compare_torch.py                  attention, SSD scan and Memory Converter alone, forward and backward; then
                                            seconds a step of both and their ratio, per model size and schedule
    tools/compare_torch.py --kernels        only the kernels
    tools/compare_torch.py --check          only: does the PyTorch model compute what the golden files say?
    tools/compare_torch.py --peer-only ...  any of these without our program

The peer is what a PyTorch user trains fast with today: bfloat16 matrices with float32 masters, torch.compile without
graph breaks on each layer (with the next layer's norm), cuDNN's attention on the prefix alone, the SSM and the Memory
Converter in mamba-ssm's Triton kernels with the best chunk for each, the causal convolution left to the compiler (the
package causal_conv1d is one kernel less fused, and needs a build), gradient clipping, fused AdamW. Its parameters that
are no matrices are float32, as ours. A step is forward, backward, clipping and AdamW; times are of many steps between
two synchronisations. mamba-ssm's Triton files are taken from --mamba-ssm FOLDER, an unpacked source distribution, or
else downloaded; its CUDA extensions are neither built nor needed. PyTorch (2.6 or newer, for CUDA), einops and h5py
must be there, or the first run installs them in build/peer-torch-gpu. Words --section.key VALUE go to our program.
"""
import argparse, json, math, os, re, subprocess, sys, tarfile, tempfile
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parent))
import compare_torch_cpu as common
ROOT = common.ROOT
PEER = ROOT / "build" / "peer-torch-gpu"
REQUIRED = ["torch>=2.6", "numpy>=1.26", "h5py>=3.10", "einops>=0.7", "packaging"]
FILES = ["wide_64.h5", "wide_96.h5"]  # PyTorch has no fused attention for two widths
NAMES = {24: "419M", 64: "1.03B"}


class Worker:
    """The peer's process, which keeps its model between requests and leaves the GPU idle meanwhile."""

    def __init__(self, a):
        job = json.dumps({"mamba_ssm": str(a.mamba_ssm or "")})
        words = [a.python, ROOT / "tools" / "torch_peer.py", "--worker", job]
        cache = {"TORCHINDUCTOR_CACHE_DIR": str(PEER / "inductor"), "TRITON_CACHE_DIR": str(PEER / "triton")}
        self.process = subprocess.Popen([*map(str, words)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                                        env=cache | os.environ)

    def send(self, do, **job):
        print(json.dumps({"do": do, **job}), file=self.process.stdin, flush=True)

    def answer(self):
        for line in self.process.stdout:
            if line.startswith("answer "):
                return json.loads(line.removeprefix("answer "))
        sys.exit(f"the peer ended with {self.process.wait()}")

    def ask(self, do, **job):
        self.send(do, **job)
        return self.answer()

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def has(python, *modules):
    words = [str(python), "-c", "import importlib.util as i, sys; sys.exit(not all(map(i.find_spec, sys.argv[1:])))"]
    return subprocess.run(words + [*modules], capture_output=True).returncode == 0


def install(a):
    """Python and mamba-ssm's sources for the peer: what is there, else from PyPI."""
    here = has(sys.executable, "torch", "triton", "einops", "h5py")
    a.python = a.python or (sys.executable if here else PEER / "bin" / "python")
    if not Path(a.python).exists():
        print(f"installing {', '.join(REQUIRED)} in {PEER.relative_to(ROOT)}, once", flush=True)
        common.call([sys.executable, "-m", "venv", PEER])  # on Debian this needs the package python3-venv
        common.call([a.python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *REQUIRED])
    if a.mamba_ssm or has(a.python, "mamba_ssm"):
        return
    if not list(PEER.glob("mamba_ssm-*/mamba_ssm")):
        print(f"downloading mamba-ssm's sources to {PEER.relative_to(ROOT)}, once", flush=True)
        words = ["download", "--quiet", "--no-deps", "--no-build-isolation", "--no-binary", ":all:", "--dest", PEER]
        common.call([a.python, "-m", "pip", *words, "mamba-ssm==2.3.2.post1"])
        with tarfile.open(next(PEER.glob("mamba_ssm-*.tar.gz"))) as archive:
            archive.extractall(PEER, [m for m in archive if "/mamba_ssm/" in m.name and m.isfile()])
    a.mamba_ssm = next(PEER.glob("mamba_ssm-*/mamba_ssm")).parent


def shape(a, layers, schedule):
    """What the worker is told of a model."""
    points = {"transformer": [a.seq_len], "mamba": [0], "hybrid": [0, a.seq_len],
              "V9": [0, 128, 256, 512, 1024, 2048, 4096, 8192]}
    points = points.get(schedule) or [int(p) for p in schedule.split(",")]
    config = {"vocab_size": a.vocab, "hidden_size": a.hidden, "num_layers": layers, "layer_pattern": "T-",
              "num_heads": a.heads, "qk_head_dim": a.hidden // a.heads, "v_head_dim": a.hidden // a.heads,
              "ffn_hidden_size": a.ffn, "transpoints": ",".join(map(str, points)), "tie_embeddings": True,
              "batch": a.batch, "seq_len": a.seq_len}
    return {"config": config}


def ours(a, folder, layers, schedule):
    """Seconds of the steps of one run of `transmamba train`, but the first few."""
    a.layers, a.transpoints = layers, shape(a, layers, schedule)["config"]["transpoints"]
    keys = {"model.transpoint_unit": "token", "model.num_heads": a.heads, "model.ffn_hidden_size": a.ffn,
            "model.tie_embeddings": "true", "train.device": a.device, "train.dtype": a.dtype, "train.threads": 0}
    run = common.ours(a, folder, a.steps + 3, **keys)
    return {"seconds": run["seconds"][""][3:], "bytes": run["tensors"],
            "parameters": int(re.search(r"(\d+) parameters", run["text"])[1])}


def compare_steps(a, peer, folder, chunks):
    print(f"\nhidden {a.hidden}, {a.heads} heads of {a.hidden // a.heads}, FFN {a.ffn}, vocabulary {a.vocab}, tied; "
          f"batch {a.batch} x T {a.seq_len}; {a.rounds} rounds of {a.steps} steps, medians\n"
          f"{'layers':8}{'schedule':12} {'PyTorch s':>10} {'tokens/s':>9} {'GiB':>5}   {'ours s':>8} {'tokens/s':>9} "
          f"{'GiB':>5}   {'ratio':>6} {'least':>6} {'most':>6}")
    error, where = peer.ask("check_compiled", **shape(a, 4, a.schedules[0]), chunks=chunks)["error"]
    if not error <= 0.05:
        sys.exit(f"torch.compile changed the gradient of {where} by {error:.2g} of it")
    tokens, rows = a.batch * a.seq_len, []
    for layers in a.models:
        for schedule in a.schedules:
            built = peer.ask("build", **shape(a, layers, schedule), chunks=chunks)
            theirs, mine, memory = [], [], (0, 0)
            for _ in range(a.rounds):
                run = peer.ask("steps", steps=a.steps)
                theirs.append(run["seconds"])
                if not math.isfinite(run["loss"]):
                    sys.exit(f"the peer's loss is {run['loss']}")
                if not a.peer_only:
                    own = ours(a, folder, layers, schedule)
                    if own["parameters"] != built["parameters"]:
                        sys.exit(f"PyTorch's model has {built['parameters']} parameters, ours {own['parameters']}")
                    mine.append(median(own["seconds"]))
                    memory = run["bytes"], own["bytes"]
            middle = median(theirs)
            line = f"{NAMES.get(layers, layers):<8}{schedule:12} {middle:10.4f} {tokens / middle:9.0f} "
            line += f"{run['bytes'] / 2**30:5.1f}"
            if mine:
                ratios = [t / m for t, m in zip(theirs, mine)]
                line += f"   {median(mine):8.4f} {tokens / median(mine):9.0f} {memory[1] / 2**30:5.1f}   " \
                        f"{median(ratios):6.3f} {min(ratios):6.3f} {max(ratios):6.3f}"
            print(f"{line}   ({built['parameters'] / 1e6:.0f}M parameters, {built['seconds']:.0f} s to compile)")
            rows.append({"layers": layers, "schedule": schedule, "peer_seconds": theirs, "our_seconds": mine})
    return rows


def compare_kernels(a, peer, folder):
    best, mine = peer.ask("kernels", **shape(a, 2, "mamba")), {}
    if not a.peer_only:
        out = folder / "kernels.json"
        words = {"model.vocab_size": a.vocab, "model.hidden_size": a.hidden, "model.num_heads": a.heads,
                 "train.seq_len": a.seq_len, "train.micro_batch": a.batch, "train.global_batch": a.batch}
        common.call([a.program, "bench", "kernels", "--device", a.device, "--dtype", a.dtype, "--json", out,
                     "--filter", "^(attention|ssd_scan|ssd_summary)(_backward)?$",
                     *(w for k, v in words.items() for w in ("--" + k, v)), *a.extra])
        mine = {k["name"]: 1e3 * k["seconds"] for k in json.loads(out.read_text())["kernels"]}
    print(f"\nbatch {a.batch}, T {a.seq_len}, {a.heads} heads of {a.hidden // a.heads}; all tokens attend, are scanned "
          f"or are converted\n{'kernel':24} {'PyTorch ms':>11} {'chunk':>6} {'ours ms':>9} {'ratio':>6}")
    for name, (ms, chunk) in best.items():
        own = f"{mine[name]:9.3f} {ms / mine[name]:6.2f}" if name in mine else ""
        print(f"{name:24} {ms:11.3f} {chunk or '':>6} {own}")
    return [{"kernel": k, "peer_ms": v[0], "chunk": v[1], "our_ms": mine.get(k)} for k, v in best.items()]


def main():
    sys.stdout.reconfigure(line_buffering=True)
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for key, default, text in (("hidden", 1536, "width"), ("heads", 16, "heads"), ("ffn", 4096, "MLP width"),
                               ("vocab", 32768, "vocabulary"), ("seq-len", 8192, "tokens a sequence, T"),
                               ("batch", 2, "sequences a step"), ("rounds", 3, "alternations"),
                               ("steps", 10, "steps timed in each")):
        p.add_argument("--" + key, type=int, default=default, help=f"{text} ({default})")
    p.add_argument("--models", type=lambda s: [int(x) for x in s.split(",")], default=[24, 64],
                   help="numbers of layers (24,64: 419M and 1.03B parameters)")
    p.add_argument("--schedules", type=lambda s: s.split(":"), default=["V9", "transformer", "mamba", "hybrid"],
                   help="names, or lists of TransPoints, with colons between (V9:transformer:mamba:hybrid)")
    p.add_argument("--kernels", action="store_true", help="compare only single kernels")
    p.add_argument("--check", action="store_true", help="only compare the PyTorch model with golden files")
    p.add_argument("--peer-only", action="store_true", help="time PyTorch alone")
    p.add_argument("--python", type=Path, help="a Python with PyTorch for CUDA, Triton, einops and h5py")
    p.add_argument("--mamba-ssm", type=Path, help="folder that holds mamba_ssm/ops/triton")
    p.add_argument("--program", default=ROOT / "build" / "cuda" / "transmamba", help="ours (build/cuda/transmamba)")
    p.add_argument("--device", default="cuda", help="ours: cuda or cpu (cuda)")
    p.add_argument("--dtype", default="bfloat16", help="ours (bfloat16)")
    p.add_argument("--json", type=Path, help="write the numbers here")
    a, a.extra = p.parse_known_args()
    a.threads = 0
    if not a.peer_only and not a.check and not os.access(a.program, os.X_OK):
        sys.exit(f"no {a.program}: cmake --preset cuda && cmake --build build/cuda --target transmamba")
    install(a)
    parts = min(12, os.cpu_count())
    peer, checks = Worker(a), {name: Worker(a) for name in FILES}
    helpers = [Worker(a) for _ in range(0 if a.check else parts)]
    for name, helper in checks.items():
        helper.send("check", file=name)
    for part, helper in enumerate(helpers):  # Triton keeps what they compile on disk
        helper.send("precompile", **shape(a, 2, "mamba"), part=part, parts=parts)
    for name, helper in checks.items():
        found = helper.answer()
        print("PyTorch's model on {}: at most {worst:.2f} times the error of measure_bf16_error.py ({where})".format(
            name, **found))
        if not found["worst"] <= 3:
            sys.exit("that is more than 3 times: the two are not the same model")
    for helper in helpers:
        helper.answer()
    for helper in [*checks.values(), *helpers]:
        helper.close()
    if a.check:
        return peer.close()
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        common.write_tokens(folder, a.vocab, max(200_000, 4 * a.batch * a.seq_len))
        rows = compare_kernels(a, peer, folder)
        chunks = [row["chunk"] for row in rows if row["chunk"]]
        rows += [] if a.kernels else compare_steps(a, peer, folder, chunks)
    peer.close()
    if a.json:
        a.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
