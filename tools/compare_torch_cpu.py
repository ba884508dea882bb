#!/usr/bin/env python3
"""Our training step on the CPU beside the same model in PyTorch, in one run and on the same cores.

    tools/compare_torch_cpu.py             seconds a step and peak memory of both, and the ratio
    tools/compare_torch_cpu.py --check     only: does the PyTorch model compute what the golden files say?
    tools/compare_torch_cpu.py --memory    only: our peak memory at T = 512 .. 8192, schedules mamba and transformer

The peer is the model of tests/golden/transmamba_reference.py, written with what PyTorch does fastest here: float32,
fused attention, convolution, norm, softplus and loss, one matrix a projection group, the SSM in the chunked matrix form
of the Mamba-2 paper, the best of three chunks and four environments. It is timed for forward and backward alone; ours
is the whole step of `transmamba train`, AdamW too, and says the shape. The first run installs PyTorch in
build/peer-torch, unless there is --python. Words --section.key VALUE go to our program: --model.tie_embeddings true.
"""
import argparse, array, json, os, re, struct, subprocess, sys, tempfile, time
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[1]
PEER = ROOT / "build" / "peer-torch"
REQUIRED = ["torch>=2.6", "numpy>=1.26", "h5py>=3.10"]
PASSIVE = {"OMP_WAIT_POLICY": "passive"}
KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "4294967296", "MALLOC_TRIM_THRESHOLD_": "4294967296"}  # no page fault twice
IS_WORKER = sys.argv[1:2] == ["--worker"]
if IS_WORKER:  # these run in the peer's environment; everything else needs only Python
    import torch
    import torch.nn.functional as F
    sys.path.insert(0, str(ROOT / "tests" / "golden"))
    import transmamba_reference as reference


# ---- The peer. Shapes and letters are the reference's; inside a mixer heads come before time: (b, h, t, n). ----
def pack(params, c):
    """The reference's parameters, with those that multiply the same input in one matrix, as ours has them."""
    P = {k: v for k, v in params.items() if "layers." not in k or k.endswith(".norm.weight")}
    for i in range(c.num_layers):
        mixer, mlp = f"layers.{i}.mixer.", f"layers.{i}.mlp."
        joined = lambda form, parts: torch.cat([params[form.format(s)] for s in parts.split()])
        if c.kind(i) == "T":
            P |= {f"{i}.{k}": params[mixer + k] for k in "dt_bias A_log D out_norm.weight out_proj.weight".split()}
            P[f"{i}.in"] = joined(mixer + "{}_proj.weight", "q k v z dt")
            P[f"{i}.conv"] = joined(mixer + "conv_{}.weight", "q k v")[:, None, None]
            P[f"{i}.conv_bias"] = joined(mixer + "conv_{}.bias", "q k v")
        else:
            P[f"{i}.in"] = joined(mlp + "{}_proj.weight", "gate up")
            P[f"{i}.out_proj.weight"] = params[mlp + "down_proj.weight"]
    return P


class Peer:
    def __init__(self, c, chunk):
        self.c, self.chunk, n, dtype = c, chunk, c.qk_head_dim, getattr(torch, c.dtype)
        angle = torch.arange(c.seq_len)[:, None] * c.rope_theta ** (-torch.arange(0, n, 2, dtype=dtype) / n)
        self.cos, self.sin = angle.cos().repeat(1, 2), torch.cat([-angle.sin(), angle.sin()], -1)

    def rope(self, x):
        return x * self.cos[:x.shape[2]] + torch.cat(x.chunk(2, -1)[::-1], -1) * self.sin[:x.shape[2]]

    def ssd(self, q, k, v, dt, A, cut):
        """Outputs from `cut` on of the SSM that starts with the converter's state there. Scanning from the last chunk's
        border before `cut`, and throwing the first outputs away, gives the same and needs less padding."""
        (b, h, T, n), p, C = q.shape, v.shape[-1], self.chunk
        start = cut // C * C if self.c.memory_converter else cut
        chunks = -(-(T - start) // C)
        steps, weighted = A[:, None] * dt, v * dt[..., None]
        def fold(x):  # (b, h, t, ..) from `start` -> (b, h, chunks, C, ..); dt = 0 after the end
            padding = (0, 0) * (x.dim() - 3) + (0, chunks * C - (T - start))
            return (F.pad(x[:, :, start:], padding) if padding[-1] else x[:, :, start:]).unflatten(2, (chunks, C))
        def decays(cum):  # exp of the sums over (j, i], lower triangle
            upper = torch.ones(cum.shape[-1], cum.shape[-1], dtype=torch.bool).triu(1)
            return (cum[..., :, None] - cum[..., None, :]).masked_fill(upper, -torch.inf).exp()
        before = torch.zeros(b, h, n, p, dtype=q.dtype)
        if start and self.c.memory_converter:
            sums = steps[:, :, :start].cumsum(2)
            before = k[:, :, :start].mT @ (weighted[:, :, :start] * (sums[:, :, -1:] - sums).exp()[..., None])
        q, k, x, cum = fold(q), fold(k), fold(weighted), fold(steps).cumsum(-1)
        y = (q @ k.mT * decays(cum)) @ x
        local = k.mT @ (x * (cum[..., -1:] - cum).exp()[..., None])
        states = torch.cat([before[:, :, None], local[:, :, :-1]], 2)
        states = decays(F.pad(cum[:, :, :-1, -1], (1, 0)).cumsum(-1)) @ states.flatten(-2)
        y = y + (q * cum.exp()[..., None]) @ states.unflatten(-1, (n, p))
        return y.flatten(2, 3)[:, :, cut - start:T - start]

    def mixer(self, u, P, i):
        c, (b, T, _) = self.c, u.shape
        h, n, p, w, cut = c.num_heads, c.qk_head_dim, c.v_head_dim, c.conv_width, c.transpoint(i)
        channels = h * (2 * n + p)
        x, z, dt = F.linear(u, P[f"{i}.in"]).split([channels, h * p, h], -1)
        # As an image of height 1, channels last: F.conv1d knows only channels first, with a backward 4 times as slow.
        x = F.pad(x, (0, 0, w - 1, 0)).mT[:, :, None]
        x = F.silu(F.conv2d(x, P[f"{i}.conv"], P[f"{i}.conv_bias"], groups=channels)[:, :, 0].mT)
        q, k, v = (s.unflatten(-1, (h, -1)).transpose(1, 2).contiguous() for s in x.split([h * n, h * n, h * p], -1))
        z, dt = z.unflatten(-1, (h, p)).transpose(1, 2), F.softplus(dt + P[f"{i}.dt_bias"]).transpose(1, 2)
        parts = []
        if cut > 0:
            q_rot, k_rot = self.rope(q[:, :, :cut]), self.rope(k[:, :, :cut])
            y = F.scaled_dot_product_attention(q_rot, k_rot, v[:, :, :cut], is_causal=True)
            parts.append(y * F.silu(z[:, :, :cut]) if c.gate == "all" else y)
        if cut < T:
            y = self.ssd(q, k, v, dt, -torch.exp(P[f"{i}.A_log"]), cut) + P[f"{i}.D"][:, None, None] * v[:, :, cut:]
            parts.append(y if c.gate == "none" else y * F.silu(z[:, :, cut:]))
        y = F.rms_norm(torch.cat(parts, 2).transpose(1, 2), (p,), None, c.norm_eps).flatten(2)
        return F.linear(y * P[f"{i}.out_norm.weight"], P[f"{i}.out_proj.weight"])

    def logits(self, P, tokens):
        norm = lambda x, weight: F.rms_norm(x, x.shape[-1:], weight, self.c.norm_eps)
        r = F.embedding(tokens, P["embedding.weight"])
        for i in range(self.c.num_layers):
            u = norm(r, P[f"layers.{i}.norm.weight"])
            if self.c.kind(i) == "T":
                r = r + self.mixer(u, P, i)
            else:
                gate, up = F.linear(u, P[f"{i}.in"]).chunk(2, -1)
                r = r + F.linear(F.silu(gate) * up, P[f"{i}.out_proj.weight"])
        head = "embedding.weight" if self.c.tie_embeddings else "lm_head.weight"
        return F.linear(norm(r, P["final_norm.weight"]), P[head])

    def loss(self, P, tokens):
        return F.cross_entropy(self.logits(P, tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())


# ---- What workers do: one job, a JSON object in argv; the last line they print is the answer. ----
def config_of(values):
    kinds = reference.Config.__annotations__
    return reference.Config(**{k: kinds[k](v) for k, v in values.items() if k in kinds})


def check(job):
    """Largest error against any golden file, relative to the largest number of the tensor (1e-9 if smaller)."""
    import h5py
    errors, files = [], sorted((ROOT / "tests" / "golden").glob("*.h5"))
    for path, chunk in ((path, chunk) for path in files for chunk in (16, 64)):
        with h5py.File(path) as f:
            c, read = config_of(f.attrs), lambda name: torch.tensor(f[name][()])
            P = {k: read("params/" + k).requires_grad_() for k in reference.init_params(c)}
            want = {k: read(k) for k in ("logits", "loss", *("grads/" + k for k in P))}
            tokens = read("tokens")[0]
        peer, packed = Peer(c, chunk), pack(P, c)
        loss = peer.loss(packed, tokens)
        got = {"grads/" + k: g for k, g in reference.gradients(loss, P).items()}
        got |= {"loss": loss.detach(), "logits": peer.logits(packed, tokens[:, :-1]).detach()}
        errors += [(float(((got[k] - w).abs().max() / w.abs().max().clamp_min(1e-9)).nan_to_num(torch.inf)),
                    f"{path.name} {k}, chunk {chunk}") for k, w in want.items()]
    return len(files), *max(errors)


def measure(job):
    """Seconds of forward and backward by chunk, and peak memory."""
    torch.set_num_threads(job["threads"])
    resident = lambda key: 1024 * int(re.search(key + r":\s*(\d+)", Path("/proc/self/status").read_text())[1])
    c, libraries, seconds = config_of(job["config"]), resident("VmRSS"), {}
    P = {k: v.detach().clone().requires_grad_() for k, v in pack(reference.init_params(c), c).items()}
    tokens = reference.batches(c, 1)[0]
    for chunk in job["chunks"]:
        loss, times = Peer(c, chunk).loss, []
        if job["compile"]:
            loss = torch.compile(loss, fullgraph=True, dynamic=False)
        for _ in range(job["warmup"] + job["steps"]):
            start = time.perf_counter()
            torch.autograd.grad(loss(P, tokens), list(P.values()), allow_unused=True)
            times.append(time.perf_counter() - start)
        seconds[chunk] = times[job["warmup"]:]
    return {"seconds": seconds, "resident": resident("VmHWM"), "tensors": resident("VmHWM") - libraries,
            "version": torch.__version__, "parameters": sum(p.numel() for p in P.values())}


# ---- The runs. ----
def call(command, environment={}, limit=None):
    done = subprocess.run([*map(str, command)], env=os.environ | environment, capture_output=True, text=True,
                          timeout=limit)
    if done.returncode:
        what = f"{' '.join(map(str, command[:3]))} ended with {done.returncode}"  # -N: signal N
        sys.exit(f"{what}:\n{done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def install():
    """Python of the peer's environment, which the first call makes."""
    done = PEER / "installed"
    if not done.exists() or done.read_text() != " ".join(REQUIRED):
        print(f"installing {', '.join(REQUIRED)} in {PEER.relative_to(ROOT)}, once")
        call([sys.executable, "-m", "venv", "--clear", PEER])  # on Debian this needs the package python3-venv
        call([PEER / "bin" / "pip", "install", "--quiet", "--disable-pip-version-check", *REQUIRED])
        done.write_text(" ".join(REQUIRED))
    return PEER / "bin" / "python"


def work(a, do, environment={}, limit=None, **job):
    environment = environment | {"TORCHINDUCTOR_CACHE_DIR": f"{PEER}/inductor", "TORCHINDUCTOR_COMPILE_THREADS": "1"}
    return json.loads(call([a.python, __file__, "--worker", do, json.dumps(job)], environment, limit).splitlines()[-1])


def ours(a, folder, steps, **keys):
    """One run of our program: seconds of its steps but the first two, what it printed and its peak memory."""
    keys = {"model.vocab_size": a.vocab, "model.hidden_size": a.hidden, "model.num_layers": a.layers,
            "model.transpoints": a.transpoints, "model.transpoint_unit": "fraction", "data.path": folder / "tokens",
            "train.seq_len": a.seq_len, "train.micro_batch": a.batch, "train.global_batch": a.batch,
            "train.steps": steps + 2, "train.threads": a.threads, "optimizer.warmup_steps": 0,
            "log.metrics": folder / "metrics.jsonl", **keys}
    (folder / "run.cfg").write_text("".join("[{1}]\n{2} = {0}\n".format(v, *k.split(".")) for k, v in keys.items()))
    text = call([a.program, "train", folder / "run.cfg", *a.extra])
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    tokens = int(keys["train.global_batch"]) * int(keys["train.seq_len"])
    return {"text": text, "seconds": {"": [tokens / x["tokens_per_second"] for x in lines[2:]]},
            "resident": lines[-1]["resident_bytes"], "tensors": lines[-1]["memory_bytes"]}


def write_tokens(folder, vocab, count):
    tokens = array.array("i", (i * i // 7 % vocab for i in range(count)))
    (folder / "tokens.bin").write_bytes(tokens)  # as Megatron has them
    (folder / "tokens.idx").write_bytes(b"MMIDIDX\0\0" + struct.pack("<QBQQiqqq", 1, 4, 1, 2, len(tokens), 0, 0, 1))


def compare(a, folder):
    text = ours(a, folder, 1)["text"]
    count, points = re.search(r"(\d+) parameters, TransPoints ([\d,]+) of", text).groups()
    config = {k: {"true": True, "false": False}.get(v, v) for k, v in re.findall(r"^(\w+) = (.*)$", text, re.M)}
    config |= {"transpoints": points, "batch": a.batch}
    print("\nhidden {hidden_size}, {num_layers} layers {layer_pattern}, {num_heads} heads of {qk_head_dim}, FFN "
          "{ffn_hidden_size}, vocabulary {vocab_size}, T {seq_len}, batch {batch}, {dtype}".format(**config),
          f"\n{count} parameters, TransPoints {points}, {a.threads} threads")
    job = {"config": config, "threads": a.threads, "compile": False}
    tried = []
    for e in ({}, PASSIVE, KEEP_MEMORY, PASSIVE | KEEP_MEMORY):
        answer = work(a, "measure", e, **job, chunks=[64, 128, 256], warmup=2, steps=4)
        tried += [(median(s), e, int(chunk)) for chunk, s in answer["seconds"].items()]
    _, theirs, chunk = min(tried, key=lambda run: run[0])
    if answer["parameters"] != int(count):
        sys.exit(f"PyTorch's model has {answer['parameters']} parameters, ours {count}")
    name = lambda e: " ".join(f"{k}={v}" for k, v in e.items()) or "the environment as it is"
    print(f"best for PyTorch {answer['version']}: chunk {chunk}, {name(theirs)}")
    job |= {"chunks": [chunk], "warmup": 3, "steps": a.steps}
    rows = {"ours, whole step": lambda: ours(a, folder, a.steps),
            "PyTorch, forward and backward": lambda: work(a, "measure", theirs, **job),
            "PyTorch, compiled": lambda: work(a, "measure", theirs, a.compile, **job | {"compile": True})}
    runs = {row: [] for row in rows if a.compile or "compiled" not in row}
    for row in filter(runs.__contains__, [*runs] * a.repeats):
        try:
            runs[row].append(rows[row]())
        except subprocess.TimeoutExpired:
            print(f"torch.compile was not done after {a.compile} s")
            del runs[row]
    print(f"\n{'seconds a step':30} {'median':>8} {'min':>8} {'max':>8}  tokens/s  peak memory      tensors")
    medians = []
    for row, results in runs.items():
        times = [[*r["seconds"].values()][0] for r in results]
        medians.append([median(t) for t in times])
        middle, peaks = median(medians[-1]), [max(r[k] for r in results) / 2**20 for k in ("resident", "tensors")]
        print("{:30} {:8.4f} {:8.4f} {:8.4f} {:9.0f} {:8.0f} MiB {:8.0f} MiB".format(
            row, middle, min(map(min, times)), max(map(max, times)), a.batch * a.seq_len / middle, *peaks))
    ratios = sorted(y / x for x, y in zip(medians[0], min(medians[1:], key=median)))
    print(f"ratio of PyTorch's time to ours: {median(ratios):.2f} ({a.repeats} alternations of {a.steps} steps gave "
          f"{ratios[0]:.2f} to {ratios[-1]:.2f})")


def memory(a, folder):
    for schedule in ("mamba", "transformer"):
        print(f"\n{schedule:12} {'peak memory':>12} {'its tensors':>12} {'bytes a token':>14} {'a further token':>16}")
        before = 0
        for T in (512, 1024, 2048, 4096, 8192):
            keys = {"model.transpoints": schedule, "train.seq_len": T, "train.micro_batch": 1, "train.global_batch": 1}
            run = ours(a, folder, 1, **keys)
            size, more = run["tensors"], f"{(run['tensors'] - before) / (T / 2):16.0f}" if before else ""
            print(f"T {T:10} {run['resident'] / 2**20:8.0f} MiB {size / 2**20:8.0f} MiB {size / T:14.0f} {more}")
            before = size


def main():
    sys.stdout.reconfigure(line_buffering=True)
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for key, default, text in (("hidden", 256, "width"), ("layers", 8, "mixers and MLPs together"),
                               ("seq-len", 512, "tokens a sequence, T"), ("batch", 4, "sequences a step"),
                               ("vocab", 4096, "vocabulary size"), ("threads", len(os.sched_getaffinity(0)), "of both"),
                               ("repeats", 5, "alternations"), ("steps", 10, "steps timed in each"),
                               ("compile", 0, "try torch.compile too, for so many seconds a run")):
        p.add_argument("--" + key, type=int, default=default, help=f"{text} ({default})")
    p.add_argument("--transpoints", default="V9", help="schedule, scaled to T (V9)")
    p.add_argument("--python", help="a Python that has PyTorch and h5py, instead of installing them")
    p.add_argument("--program", default=ROOT / "build" / "cpu" / "transmamba", help="ours (build/cpu/transmamba)")
    p.add_argument("--check", action="store_true", help="only compare the PyTorch model with the golden files")
    p.add_argument("--memory", action="store_true", help="only print our peak memory by T")
    a, a.extra = p.parse_known_args()
    if not a.check and not os.access(a.program, os.X_OK):
        sys.exit(f"no {a.program}: cmake --preset cpu && cmake --build build/cpu --target transmamba")
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        write_tokens(folder, a.vocab, max(200_000, 2 * a.seq_len))
        if a.memory:
            return memory(a, folder)
        a.python = a.python or install()
        print(f"load of {os.cpu_count()} cores before this: {os.getloadavg()[0]:.2f}; above 0.5 trust the times less")
        files, error, where = work(a, "check")
        print(f"PyTorch on {files} golden files, float64: logits, loss and gradients to {error:.1e} ({where})")
        if error > 1e-9:
            sys.exit("that is more than 1e-9: the two are not the same model")
        if not a.check:
            compare(a, folder)


if IS_WORKER and __name__ == "__main__":
    print(json.dumps({"check": check, "measure": measure}[sys.argv[2]](json.loads(sys.argv[3]))))
elif __name__ == "__main__":
    main()
