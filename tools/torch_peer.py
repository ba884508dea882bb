"""The model in PyTorch as its users train it fast on one GPU: the other side of tools/compare_torch.py, which says what
it is and starts this file as `torch_peer.py --worker {"mamba_ssm": FOLDER}`. A JSON object a line in, an answer a line
out. Shapes are (b, t, h, n), as in the reference.
"""
import json, math, sys, time, types
from pathlib import Path
from typing import Optional, Tuple

import torch
import torch.nn.functional as F
import triton
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent))
import compare_torch_cpu as common  # which has imported the reference because of --worker
reference, ROOT = common.reference, common.ROOT
CHUNKS = (64, 128, 256)  # to choose from
SSD_KERNELS = ("ssd_scan", "ssd_scan_backward", "ssd_summary", "ssd_summary_backward")
DEVICE, DTYPE = "cuda", torch.bfloat16


# ---- mamba-ssm's kernels. ----


def import_triton_kernels(folder):
    """mamba-ssm's Triton files alone: its __init__ would want the CUDA extension."""
    if folder:
        package = types.ModuleType("mamba_ssm")
        package.__path__ = [str(Path(folder) / "mamba_ssm")]
        sys.modules["mamba_ssm"] = package
    from mamba_ssm.ops.triton import ssd_chunk_state, ssd_combined, ssd_state_passing
    from triton.runtime.autotuner import Autotuner
    tuners = {id(v): v for m in list(sys.modules.values()) if m.__name__.startswith("mamba_ssm.ops.triton")
              for v in vars(m).values() if isinstance(v, Autotuner)}
    for tuner in tuners.values():  # a tenth of a second for each of 400 choices is long
        tuner.do_bench = lambda f, quantiles: triton.testing.do_bench(f, warmup=3, rep=20, quantiles=quantiles)
    return ssd_chunk_state, ssd_combined, ssd_state_passing, [*tuners.values()]


def define_ops(folder):
    """mamba-ssm's kernels as operators that torch.compile leaves alone."""
    chunk_state, combined, passing, tuners = import_triton_kernels(folder)
    flat = lambda s: s.flatten(-2)

    @torch.library.custom_op("peer::scan", mutates_args=())
    def scan(q: Tensor, k: Tensor, v: Tensor, dt: Tensor, A: Tensor, D: Tensor, state: Optional[Tensor],
             chunk: int, chunk_back: int) -> Tensor:
        return combined._mamba_chunk_scan_combined_fwd(v, dt, A, k, q, chunk, D=D, initial_states=state)[0]

    @torch.library.custom_op("peer::scan_backward", mutates_args=())
    def scan_backward(dy: Tensor, q: Tensor, k: Tensor, v: Tensor, dt: Tensor, A: Tensor, D: Tensor,
                      state: Optional[Tensor], chunk: int) -> Tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor,
                                                                    Tensor]:
        dv, ddt, dA, dk, dq, dD, _, _, dstate = combined._mamba_chunk_scan_combined_bwd(
            dy, v, dt, A, k, q, v, chunk, D=D, initial_states=state)  # it needs its output only with a gate
        dstate = v.new_empty(0) if dstate is None else dstate
        return tuple(x.contiguous() for x in (dq, dk, dv, ddt, dA, dD, dstate.float()))

    @torch.library.custom_op("peer::convert", mutates_args=())
    def convert(k: Tensor, v: Tensor, dt: Tensor, A: Tensor, chunk: int, chunk_back: int) -> Tensor:
        decay, steps = chunk_state._chunk_cumsum_fwd(dt, A, chunk)
        states = chunk_state._chunk_state_fwd(k, v, steps, decay, states_in_fp32=True)
        return passing._state_passing_fwd(flat(states), decay[..., -1])[1].unflatten(-1, states.shape[-2:])

    @torch.library.custom_op("peer::convert_backward", mutates_args=())
    def convert_backward(dstate: Tensor, k: Tensor, v: Tensor, dt: Tensor, A: Tensor,
                         chunk: int) -> Tuple[Tensor, Tensor, Tensor, Tensor]:
        decay, steps = chunk_state._chunk_cumsum_fwd(dt, A, chunk)
        local = chunk_state._chunk_state_fwd(k, v, steps, decay, states_in_fp32=True)
        states, _ = passing._state_passing_fwd(flat(local), decay[..., -1])
        unread = states.new_zeros(1).expand_as(states)  # only the last state has a gradient
        dlocal, ddecay_chunk, _ = passing._state_passing_bwd(
            states, decay[..., -1], unread, dfinal_states=flat(dstate), dstates_dtype=v.dtype)
        dlocal = dlocal.unflatten(-1, local.shape[-2:])
        dv, dsteps, _ = chunk_state._chunk_state_bwd_dx(k, v, steps, decay, dlocal)
        dk, ddecay = chunk_state._chunk_state_bwd_db(v, steps, decay, dlocal, B=k, ngroups=k.shape[2])
        ddt, dA, _ = chunk_state._chunk_cumsum_bwd(ddecay + ddecay_chunk[..., None], dsteps, dt, A)
        return dk.to(k.dtype).contiguous(), dv.contiguous(), ddt.contiguous(), dA

    new = lambda x, dtype=None: torch.empty(x.shape, dtype=dtype or x.dtype, device=x.device)
    scan.register_fake(lambda q, k, v, dt, A, D, state, chunk, chunk_back: new(v))
    scan_backward.register_fake(lambda dy, q, k, v, dt, A, D, state, chunk: (
        new(q), new(k), new(v), new(dt), new(A), new(D),
        v.new_empty(0, dtype=torch.float) if state is None else new(state)))
    convert.register_fake(lambda k, v, dt, A, chunk, chunk_back: k.new_empty(
        k.shape[0], k.shape[2], v.shape[3], k.shape[3], dtype=torch.float))
    convert_backward.register_fake(lambda dstate, k, v, dt, A, chunk: (new(k), new(v), new(dt), new(A)))

    def save(ctx, inputs, output):  # the backward kernels recompute the states, in chunks of their own
        ctx.save_for_backward(*inputs[:-2])
        ctx.chunk = inputs[-1]

    def scan_gradients(ctx, dy):
        grads = scan_backward(dy, *ctx.saved_tensors, ctx.chunk)
        return *grads[:6], None if ctx.saved_tensors[6] is None else grads[6], None, None

    scan.register_autograd(scan_gradients, setup_context=save)

    def convert_gradients(ctx, dstate):
        return *convert_backward(dstate, *ctx.saved_tensors, ctx.chunk), None, None

    convert.register_autograd(convert_gradients, setup_context=save)
    return tuners


def norm(x, weight, eps):
    x = x.float()
    return (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight).to(DTYPE)


def rope(x, cos, sin):
    a, b = x.float().chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1).to(DTYPE)


def mixer(u, W, tables, shape, cut, chunks):
    h, n, p, gate, converts, eps = shape
    b, T, _ = u.shape
    channels = h * (2 * n + p)
    x, z, dt = F.linear(u, W["in"]).split([channels, h * p, h], -1)
    width = W["conv"].shape[1]
    x = F.pad(x, (0, 0, width - 1, 0))
    x = sum(x[:, j:j + T].float() * W["conv"][:, j] for j in range(width)) + W["conv_bias"]
    q, k, v = (s.unflatten(-1, (h, -1)) for s in F.silu(x).to(DTYPE).split([h * n, h * n, h * p], -1))
    dt = F.softplus(dt.float() + W["dt_bias"])
    A, z = -torch.exp(W["A_log"]), z.unflatten(-1, (h, p))
    parts = []
    if cut > 0:
        cos, sin = (table[:cut, None] for table in tables)
        heads_first = (s.transpose(1, 2) for s in (rope(q[:, :cut], cos, sin), rope(k[:, :cut], cos, sin), v[:, :cut]))
        y = F.scaled_dot_product_attention(*heads_first, is_causal=True).transpose(1, 2).float()
        parts.append(y * F.silu(z[:, :cut].float()) if gate == "all" else y)
    if cut < T:
        prefix, tail = ([s[:, :cut] for s in (k, v, dt)], [s[:, cut:] for s in (q, k, v, dt)])
        state = torch.ops.peer.convert(*prefix, A, *chunks[2:]) if cut and converts else None
        y = torch.ops.peer.scan(*tail, A, W["D"], state, *chunks[:2]).float()
        parts.append(y if gate == "none" else y * F.silu(z[:, cut:].float()))
    y = norm(torch.cat(parts, 1), W["out_norm.weight"].view(h, p), eps)
    return F.linear(y.flatten(2), W["out_proj.weight"])


def mixer_layer(r, u, W, next_norm, tables, shape, cut, chunks):
    r = r + mixer(u, W, tables, shape, cut, chunks)
    return r, norm(r, next_norm, shape[-1])


def mlp_layer(r, u, W, next_norm, eps):
    gate, up = F.linear(u, W["in"]).chunk(2, -1)
    r = r + F.linear((F.silu(gate.float()) * up.float()).to(DTYPE), W["out_proj.weight"])
    return r, norm(r, next_norm, eps)


def embed(tokens, weight, next_norm, eps):
    r = F.embedding(tokens, weight)
    return r, norm(r, next_norm, eps)


def head_loss(u, weight, targets):
    return F.cross_entropy(F.linear(u, weight).float().flatten(0, 1), targets.flatten())


class Peer:
    """The model on packed parameters (common.pack). Layers of one kind and TransPoint share their compiled code.
    `chunks` are those of SSD_KERNELS."""

    def __init__(self, c, chunks, compiled=True):
        compile = torch.compile(dynamic=False, fullgraph=True) if compiled else lambda f: f
        self.mixer_layer, self.mlp_layer, self.embed, self.head_loss = map(
            compile, (mixer_layer, mlp_layer, embed, head_loss))
        self.c, self.chunks, n = c, chunks, c.qk_head_dim
        angle = torch.arange(c.seq_len)[:, None] * c.rope_theta ** (-torch.arange(0, n, 2) / n)
        self.tables = angle.cos().to(DEVICE), angle.sin().to(DEVICE)
        self.shape = c.num_heads, n, c.v_head_dim, c.gate, c.memory_converter, c.norm_eps

    def hidden(self, P, tokens):
        c = self.c
        norms = [P[f"layers.{i}.norm.weight"] for i in range(c.num_layers)] + [P["final_norm.weight"]]
        r, u = self.embed(tokens, P["embedding.weight"], norms[0], c.norm_eps)
        for i in range(c.num_layers):
            W = {k.removeprefix(f"{i}."): v for k, v in P.items() if k.startswith(f"{i}.")}
            if c.kind(i) == "T":
                cut = min(c.transpoint(i), c.seq_len)
                r, u = self.mixer_layer(r, u, W, norms[i + 1], self.tables, self.shape, cut, self.chunks)
            else:
                r, u = self.mlp_layer(r, u, W, norms[i + 1], c.norm_eps)
        return u

    def head(self, P):
        return P["embedding.weight" if self.c.tie_embeddings else "lm_head.weight"]

    def loss(self, P, tokens):
        return self.head_loss(self.hidden(P, tokens[:, :-1]), self.head(P), tokens[:, 1:])


def is_matrix(name):
    return name.endswith((".in", "out_proj.weight", "embedding.weight", "lm_head.weight"))


def random_parameters(c):
    d, h, n, p, f = c.hidden_size, c.num_heads, c.qk_head_dim, c.v_head_dim, c.ffn_hidden_size
    normal = lambda *s: torch.randn(*s, device=DEVICE).mul(c.init_std)
    ones = lambda *s: torch.ones(*s, device=DEVICE)
    P = {"embedding.weight": normal(c.vocab_size, d), "final_norm.weight": ones(d)}
    for i in range(c.num_layers):
        P[f"layers.{i}.norm.weight"] = ones(d)
        if c.kind(i) == "T":
            channels = h * (2 * n + p)
            P |= {f"{i}.in": normal(channels + h * p + h, d), f"{i}.conv": normal(channels, c.conv_width) * 10,
                  f"{i}.conv_bias": normal(channels), f"{i}.dt_bias": ones(h) * -4, f"{i}.D": ones(h),
                  f"{i}.A_log": torch.log(torch.linspace(1, 16, h, device=DEVICE)),
                  f"{i}.out_norm.weight": ones(h * p), f"{i}.out_proj.weight": normal(d, h * p)}
        else:
            P |= {f"{i}.in": normal(2 * f, d), f"{i}.out_proj.weight": normal(d, f)}
    return P if c.tie_embeddings else P | {"lm_head.weight": normal(c.vocab_size, d)}


class Training:
    """Parameters, their float32 masters, and steps on random tokens."""

    def __init__(self, c, chunks):
        self.c, self.peer = c, Peer(c, chunks)
        torch.manual_seed(c.seed)
        masters = random_parameters(c)
        self.P = {k: (v.to(DTYPE) if is_matrix(k) else v).requires_grad_() for k, v in masters.items()}
        self.matrices = [k for k in masters if is_matrix(k)]
        self.masters = [masters[k] for k in self.matrices]
        others = [v for k, v in self.P.items() if not is_matrix(k)]
        self.all = self.masters + others
        for master in self.masters:
            master.grad = torch.empty_like(master)
        self.adamw = torch.optim.AdamW([{"params": self.masters}, {"params": others, "weight_decay": 0.0}],
                                       lr=2.5e-4, betas=(c.beta1, c.beta2), weight_decay=c.weight_decay, fused=True)
        self.tokens = torch.randint(c.vocab_size, (8, c.batch, c.seq_len + 1), device=DEVICE)
        self.count = 0

    def step(self):
        loss = self.peer.loss(self.P, self.tokens[self.count % 8])
        loss.backward()
        with torch.no_grad():
            torch._foreach_copy_([m.grad for m in self.masters], [self.P[k].grad for k in self.matrices])
            torch.nn.utils.clip_grad_norm_(self.all, self.c.clip_grad, foreach=True)
            self.adamw.step()
            torch._foreach_copy_([self.P[k] for k in self.matrices], self.masters)
        for p in self.P.values():
            p.grad = None
        self.count += 1
        return loss

    def run(self, steps):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(steps):
            loss = self.step()
        torch.cuda.synchronize()
        return (time.perf_counter() - start) / steps, float(loss.detach())


# ---- What the worker does: a JSON object a line in, an answer a line out. ----
def kernel_inputs(c, requires_grad=False):
    h, n, p = c.num_heads, c.qk_head_dim, c.v_head_dim
    new = lambda *s: torch.randn(*s, device=DEVICE, dtype=DTYPE).requires_grad_(requires_grad)
    q, k, v, dy = (new(c.batch, c.seq_len, h, width) for width in (n, n, p, p))
    dt = torch.rand(c.batch, c.seq_len, h, device=DEVICE).mul(0.1)
    A, D = -torch.linspace(1, 16, h, device=DEVICE), torch.ones(h, device=DEVICE)
    return q, k, v, dy, dt, A, D, torch.randn(c.batch, h, p, n, device=DEVICE)


def ssd_calls(c, chunk):
    q, k, v, dy, dt, A, D, state = kernel_inputs(c)
    ops = torch.ops.peer
    return dict(zip(SSD_KERNELS, (lambda: ops.scan(q, k, v, dt, A, D, state, chunk, chunk),
                                  lambda: ops.scan_backward(dy, q, k, v, dt, A, D, state, chunk),
                                  lambda: ops.convert(k, v, dt, A, chunk, chunk),
                                  lambda: ops.convert_backward(state, k, v, dt, A, chunk))))


def milliseconds(f):
    return triton.testing.do_bench(f, warmup=20, rep=100, return_mode="median")


def kernels(c):
    """Milliseconds of each, and the chunk where there is one to choose: of all, what is best for each kernel."""
    best = {}
    for chunk in CHUNKS:
        for name, call in ssd_calls(c, chunk).items():
            best[name] = min(best.get(name, (math.inf, 0)), (milliseconds(call), chunk))
    q, k, v, dy, *_ = kernel_inputs(c, requires_grad=True)
    q, k, v, dy = (x.transpose(1, 2) for x in (q, k, v, dy))
    call = lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True)
    y = call()
    best["attention"] = milliseconds(call), 0
    best["attention_backward"] = milliseconds(lambda: torch.autograd.grad(y, (q, k, v), dy, retain_graph=True)), 0
    return best


def check(name):
    """The bfloat16 model against a golden file: the largest error in units of what measure_bf16_error.py found."""
    import h5py
    path, worst = ROOT / "tests" / "golden" / name, (0.0, "")
    with h5py.File(path) as f:
        c, read = common.config_of(f.attrs), lambda name: torch.tensor(f[name][()], device=DEVICE)
        P = {k: read("params/" + k).float().requires_grad_() for k in reference.init_params(c)}
        want = {k: read(k) for k in ("logits", "loss", *("grads/" + k for k in P))}
        tokens = read("tokens")[0]
    allowed, peer = json.loads(path.with_suffix(".bf16.json").read_text()), Peer(c, (64,) * 4, compiled=False)
    packed = {k: v.squeeze() if k.endswith(".conv") else v for k, v in common.pack(P, c).items()}
    packed = {k: v.to(DTYPE) if is_matrix(k) else v for k, v in packed.items()}
    loss = peer.loss(packed, tokens)
    got = {"loss": loss, "logits": F.linear(peer.hidden(packed, tokens[:, :-1]), peer.head(packed))}
    got |= {"grads/" + k: g for k, g in reference.gradients(loss, P).items()}
    whole = math.sqrt(sum(float(v.square().sum()) for k, v in want.items() if k.startswith("grads/")))
    for name, w in want.items():
        difference = float((got[name].detach().double() - w).norm())
        if math.isnan(difference):
            return {"worst": math.inf, "where": name}
        if name == "loss" or difference > whole / 256:  # less is rounding of the whole
            worst = max(worst, (difference / max(float(w.norm()) * allowed[name], 1e-30), name))
    return {"worst": worst[0], "where": worst[1]}


def check_compiled(c, chunks):
    """The largest difference of a gradient between the compiled model and the same operators one by one."""
    torch.manual_seed(0)
    P = {k: (v.to(DTYPE) if is_matrix(k) else v).requires_grad_() for k, v in random_parameters(c).items()}
    tokens = torch.randint(c.vocab_size, (c.batch, c.seq_len + 1), device=DEVICE)
    both = [reference.gradients(Peer(c, chunks, compiled).loss(P, tokens), P) for compiled in (False, True)]
    whole = math.sqrt(sum(float(g.float().square().sum()) for g in both[0].values()))
    error = lambda a, b: float((a.float() - b.float()).norm()) / max(float(a.float().norm()), whole / 256)
    return {"error": max((error(both[0][k], both[1][k]), k) for k in P)}


def precompile(tuners, c, part, parts):
    """Compiles the part-th of `parts` shares of what the autotuner will choose from; Triton keeps them on disk."""
    for tuner in tuners:  # the last needs little shared memory: where others need too much it is chosen
        tuner.configs = tuner.configs[part::parts] + tuner.configs[-1:]
    for chunk in CHUNKS:
        for call in ssd_calls(c, chunk).values():
            call()
    torch.cuda.synchronize()


def worker(a):
    torch.backends.cuda.enable_flash_sdp(False), torch.backends.cuda.enable_mem_efficient_sdp(False)
    torch.backends.cuda.enable_math_sdp(False), torch.backends.cuda.enable_cudnn_sdp(True)
    torch._dynamo.config.recompile_limit = 1000  # a TransPoint each
    tuners, training = define_ops(a["mamba_ssm"]), None
    c = lambda job: common.config_of(job["config"])
    for line in sys.stdin:
        job = json.loads(line)
        if job["do"] == "precompile":
            answer = precompile(tuners, c(job), job["part"], job["parts"])
        elif job["do"] == "check":
            for tuner in tuners:  # one choice: compiling all of them takes long
                tuner.configs = tuner.configs[-1:]
            answer = check(job["file"])
        elif job["do"] == "check_compiled":
            answer = check_compiled(c(job), job["chunks"])
        elif job["do"] == "kernels":
            answer = kernels(c(job))
        elif job["do"] == "build":
            training = None
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            training = Training(c(job), job["chunks"])
            start = time.perf_counter()
            training.run(3)
            answer = {"parameters": sum(p.numel() for p in training.P.values()), "version": torch.__version__,
                      "seconds": time.perf_counter() - start, "device": torch.cuda.get_device_name()}
        elif job["do"] == "steps":
            seconds, loss = training.run(job["steps"])
            answer = {"seconds": seconds, "loss": loss, "bytes": torch.cuda.max_memory_allocated()}
        print("answer " + json.dumps(answer), flush=True)


if __name__ == "__main__":
    worker(json.loads(sys.argv[2]))
