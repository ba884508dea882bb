#!/usr/bin/env python3
"""How far PyTorch's own bfloat16 is from the float64 reference: what `transmamba verify --dtype bfloat16` is held to.

    tools/measure_bf16_error.py [--device cpu|cuda] [--runs 16] [FILE.h5 ...]    (tests/golden/wide_*.h5)

Writes FILE.bf16.json, {"tensor": error}, beside each golden file: logits, loss, states, gradients and, where there is
one, the training curve, under the file's own names. An error is the norm of the difference over the norm of the
reference (tools/golden.h), 0 where both are the same, and 0 too where the reference is all zeros: nothing can be a
fraction of that, so only Report's rule about the rounding of the whole lets anything but the same zeros pass.

The model is the reference's with its parts done as Megatron-LM and mamba-ssm train in bfloat16:
  bfloat16   matrices (from float32 masters), activations, the residual stream, and every operand of a matrix product:
             attention (PyTorch's fused one) and the SSM in chunks of 64 tokens, as mamba-ssm's kernels round it
  float32    norms' weights and statistics, convolutions and RoPE inside, A_log, D, dt_bias, dt, decays, states, loss,
             AdamW; gradients by autograd, which rounds a matrix's to bfloat16 once a use and adds up in float32

What one run's rounding does is luck: the gradient of a single number, A_log of one head say, is as near to the
reference as chance will have it. So the parameters are also moved by up to 1/256 of themselves, which bfloat16 can
hardly tell apart, at random and --runs times; each run is compared with a float64 reference of the same parameters,
and the largest error counts. Needs torch >= 2.4 and h5py.
"""
import argparse, importlib.util, json, math, sys, warnings
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

GOLDEN = Path(__file__).resolve().parents[1] / "tests" / "golden"
CHUNK = 64


def load_reference():
    """A copy of the reference of one's own."""
    spec = importlib.util.spec_from_file_location("transmamba_reference", GOLDEN / "transmamba_reference.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


reference, mixed = load_reference(), load_reference()  # float64, and bfloat16 from here on


class Weights(dict):
    """Matrices rounded to bfloat16, at each use anew, so that gradients of several uses meet in float32."""
    def __getitem__(self, name):
        value = super().__getitem__(name)
        return value.bfloat16() if reference.decays(name) else value


def rounded(x):
    """An operand of a matrix unit that adds up in float32; going back its gradient is one."""
    return x.bfloat16().float()


def rms_norm(x, weight, eps):
    return reference.rms_norm(x.float(), weight, eps).bfloat16()


def causal_conv(x, weight, bias):
    return reference.causal_conv(x.float(), weight, bias).bfloat16()


def rope(x, theta):
    return reference.rope(x.float(), theta).bfloat16()


def attention(q, k, v):
    """PyTorch's fused kernels have one width: the narrower operands get columns of zeros, which change nothing. Without
    them PyTorch would take float32 throughout, which nobody trains with."""
    n, p = q.shape[-1], v.shape[-1]
    q, k, v = (F.pad(x, (0, max(n, p) - x.shape[-1])).transpose(1, 2) for x in (q, k, v))
    with sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION]):
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=n**-0.5)
    return y.transpose(1, 2)[..., :p]


def chunks(*tensors):
    return zip(*(x.transpose(1, 2).split(CHUNK, 2) for x in tensors))  # (b, h, t, ...)


def next_state(state, k, v, dt, decay):
    weight = torch.exp(decay[..., -1:] - decay) * dt
    local = rounded(k.float() * weight[..., None]).mT @ v.float()
    return torch.exp(decay[..., -1])[..., None, None] * state + local


def memory_converter(k, v, dt, A):
    state = dt.new_zeros(k.shape[0], *k.shape[2:], v.shape[-1])
    for kc, vc, dtc in chunks(k, v, dt) if k.shape[1] else ():
        state = next_state(state, kc, vc, dtc, (A[:, None] * dtc).cumsum(-1))
    return state


def ssm(c, b, x, dt, A, state):
    ys, state = [], state.float()
    for q, k, v, dtc in chunks(c, b, x, dt) if x.shape[1] else ():
        decay = (A[:, None] * dtc).cumsum(-1)
        later = torch.ones(q.shape[2], q.shape[2], dtype=torch.bool).triu(1)
        between = torch.exp((decay[..., :, None] - decay[..., None, :]).masked_fill(later, -math.inf))
        scores = rounded((q.float() @ k.float().mT) * between * dtc[..., None, :])
        ys.append(scores @ v.float() + torch.exp(decay)[..., None] * (q.float() @ rounded(state)))
        state = next_state(state, k, v, dtc, decay)
    return (torch.cat(ys, 2).transpose(1, 2) if ys else x.float()), state


def mixer(u, P, m, c, transpoint, states=None):
    """The reference's, but the SSM's output, D's part in it, is rounded before gate and norm read it, as it is where a
    fused scan writes it; so is its gradient on the way back."""
    b, T, h, n, p = *u.shape[:2], c.num_heads, c.qk_head_dim, c.v_head_dim
    cut = min(transpoint, T)
    q, k, v = (causal_conv(u @ P[m + f"{s}_proj.weight"].T, P[m + f"conv_{s}.weight"], P[m + f"conv_{s}.bias"])
               .view(b, T, h, width) for s, width in (("q", n), ("k", n), ("v", p)))
    z = (u @ P[m + "z_proj.weight"].T).view(b, T, h, p)
    dt = F.softplus(u @ P[m + "dt_proj.weight"].T + P[m + "dt_bias"])
    A = -torch.exp(P[m + "A_log"])
    y = attention(rope(q[:, :cut], c.rope_theta), rope(k[:, :cut], c.rope_theta), v[:, :cut])
    state = dt.new_zeros(b, h, n, p)
    if c.memory_converter:
        state = memory_converter(k[:, :cut], v[:, :cut], dt[:, :cut], A)
    y_ssm, last = ssm(q[:, cut:], k[:, cut:], v[:, cut:], dt[:, cut:], A, state)
    y_ssm = (y_ssm + P[m + "D"][:, None] * v[:, cut:]).bfloat16()
    if states is not None:
        states.append((state, last))
    gated = {"ssm": (False, True), "all": (True, True), "none": (False, False)}[c.gate]
    parts = [x.float() * F.silu(z_.float()) if gate else x.float()
             for gate, x, z_ in zip(gated, (y, y_ssm), (z[:, :cut], z[:, cut:]))]
    y = rms_norm(torch.cat(parts, 1), P[m + "out_norm.weight"].view(h, p), c.norm_eps)
    return y.reshape(b, T, h * p) @ P[m + "out_proj.weight"].T


def loss_fn(P, c, tokens, states=None):
    P = Weights(P)
    r = dict.__getitem__(P, "embedding.weight")[tokens[:, :-1]].bfloat16()
    for i in range(c.num_layers):
        u = rms_norm(r, P[f"layers.{i}.norm.weight"], c.norm_eps)
        if c.kind(i) == "T":
            r = r + mixer(u, P, f"layers.{i}.mixer.", c, c.transpoint(i), states)
        else:
            r = r + mixed.mlp(u, P, f"layers.{i}.mlp.")
    head = P["embedding.weight" if c.tie_embeddings else "lm_head.weight"]
    logits = rms_norm(r, P["final_norm.weight"], c.norm_eps) @ head.T
    return F.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten()), logits


for part in (rms_norm, causal_conv, rope, attention, memory_converter, ssm, loss_fn):
    setattr(mixed, part.__name__, part)


def compute(module, c, params, tokens, with_curve):
    """What a golden file holds, by name."""
    leaves, states = {k: v.clone().requires_grad_() for k, v in params.items()}, []
    loss, logits = module.loss_fn(leaves, c, tokens[0], states)
    out = {"logits": logits, "loss": loss}
    for i, (at, last) in enumerate(states):
        out |= {f"states/{i}/transpoint": at, f"states/{i}/last": last}
    out |= {"grads/" + k: g for k, g in module.gradients(loss, leaves).items()}
    if with_curve:
        out["curve/loss"] = torch.tensor(module.train(params, c, tokens)[0], dtype=torch.float64)
    return {k: v.detach().double().cpu() for k, v in out.items()}


def error(ours, expected):
    difference, size = float((ours - expected).norm()), float(expected.norm())
    return difference / size if size else 0.0


def measure(path, device, runs):
    import h5py
    kinds = reference.Config.__annotations__
    with h5py.File(path) as f:
        c = reference.Config(**{k: kinds[k](v) for k, v in f.attrs.items()})
        params = {k: torch.tensor(f["params/" + k][()]) for k in reference.init_params(c)}
        tokens, with_curve = torch.tensor(f["tokens"][()]), "curve" in f
        written = {k: torch.tensor(f[k][()], dtype=torch.float64) for k in ("logits", "loss")}
    generator, errors = torch.Generator().manual_seed(0), {}
    for run in range(runs):
        moved = {k: v * (1 + (2 * torch.rand(v.shape, generator=generator, dtype=v.dtype) - 1) / 256 * (run > 0))
                 for k, v in params.items()}
        expected = compute(reference, c, moved, tokens, with_curve)
        if run == 0 and max(error(expected[k], v) for k, v in written.items()) > 1e-12:
            sys.exit(f"{path}: the file is not what the reference computes; make it anew")
        with torch.device(device):
            ours = compute(mixed, c, {k: v.float().to(device) for k, v in moved.items()}, tokens.to(device), with_curve)
        for name, value in ours.items():
            errors.setdefault(name, []).append(error(value, expected[name]))
    return errors


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("files", nargs="*", type=Path, help="golden files (tests/golden/wide_*.h5)")
    p.add_argument("--device", default="cpu", help="cpu or cuda (cpu)")
    p.add_argument("--runs", type=int, default=16, help="with parameters moved a little, of which the worst counts (16)")
    a = p.parse_args()
    warnings.filterwarnings("ignore", "Converting a tensor with requires_grad")  # the reference does, and may
    for path in a.files or sorted(GOLDEN.glob("wide_*.h5")):
        errors = measure(path, a.device, a.runs)
        print(f"{path}: PyTorch {torch.__version__} on {a.device}, {a.runs} runs\n{'':44} {'as it is':>10} {'largest':>10}")
        for name, values in errors.items():
            print(f"{name:44} {values[0]:10.2e} {max(values):10.2e}")
        text = json.dumps({k: float(f"{max(v):.3g}") for k, v in errors.items()}, indent=1)
        path.with_suffix(".bf16.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
