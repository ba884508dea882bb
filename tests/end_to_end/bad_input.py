#!/usr/bin/env python3
"""Every mistake gets one line that says what is wrong, and a non-zero exit code, soon.

    bad_input.py PROGRAM SCRATCH_FOLDER
"""
import os
import resource
import shutil
import subprocess
from pathlib import Path

from support.program import PROGRAM, SCRATCH, clean_scratch, expect, finish, make_config, make_data, metrics, must, run


def bad(words, *parts, **how):
    """One line on stderr with these parts in it, whatever their case; exit code 1; stdout says nothing like success."""
    done = run(*words, timeout=20, **how)
    name = " ".join(str(word) for word in words)
    lines = done.stderr.splitlines()
    expect(done.returncode == 1, f"{name}: expected exit code 1, got {done.returncode}: {done.stderr}")
    expect(len(lines) == 1 and lines[0].startswith("transmamba: ["),
           f"{name}: expected one line 'transmamba: [..] ..', got {done.stderr!r}")
    for part in parts:
        expect(str(part).lower() in done.stderr.lower(), f"{name}: expected {str(part)!r} in {done.stderr!r}")


def usage(words, code, stream):
    done = run(*words)
    text, silent = (done.stderr, done.stdout) if stream == "stderr" else (done.stdout, done.stderr)
    expect(done.returncode == code and "usage: transmamba" in text and not silent,
           f"{words}: expected exit code {code} and the usage on {stream}, got {done.returncode}: {done.stderr!r}")


def cut(path, to, size):
    Path(to).write_bytes(Path(path).read_bytes()[:size])


def flipped(path, to, at):
    """A copy with 64 bytes changed in the middle of its data."""
    data = bytearray(Path(path).read_bytes())
    data[at:at + 64] = bytes(b ^ 0x55 for b in data[at:at + 64])
    Path(to).write_bytes(data)


subprocess.run(["umount", SCRATCH / "disk"], capture_output=True)  # of a run that was killed
clean_scratch()
make_data()
config = make_config("[checkpoint]\npath = run\n")
train = ["train", config]
must(*train)
checkpoint = Path("run/step_00000006")
GOLDEN = Path(__file__).resolve().parents[1] / "golden/base.h5"
Path("folder").mkdir()
Path("empty").touch()
Path("prose").write_text("Call me Ishmael. Some years ago - never mind how long precisely.\n" * 9)
Path("blob").write_bytes(bytes(range(256)) * 9)

# ---- commands
usage([], 2, "stderr")
usage(["tarin"], 2, "stderr")
usage(["--version-of-what"], 2, "stderr")
usage(["--help"], 0, "stdout")
usage(["train"], 2, "stderr")
usage(["train", "--help"], 0, "stdout")
usage(["verify"], 2, "stderr")
usage(["generate"], 2, "stderr")

# ---- configuration
bad([*train, "--model.hiden_size", 8], "model.hiden_size", "unknown key", "nearest is model.hidden_size", "command line")
bad([*train, "--hidden_size", 8], "hidden_size", "nearest is model.hidden_size")
bad([*train, "--model.hidden_size", "wide"], "model.hidden_size", "wide", "integer from 1")
bad([*train, "--model.hidden_size", "16.5"], "model.hidden_size", "16.5", "integer")
bad([*train, "--model.hidden_size"], "model.hidden_size")
bad([*train, "--optimizer.lr", -1], "optimizer.lr", "-1", "at least 0")
bad([*train, "--optimizer.lr", "nan"], "optimizer.lr", "nan", "finite")
bad([*train, "--optimizer.beta1", 1], "optimizer.beta1", "below 1")
bad([*train, "--train.steps", 0], "train.steps", "at least 1")
bad([*train, "--train.steps", "9" * 30], "train.steps", "at least 1")
bad([*train, "--train.dtype", "float16"], "train.dtype", "float32, float64", "float16")
for words in [[*train, "--train.device"], ["verify", GOLDEN, "--device"], ["bench", "kernels", "--device"]]:
    bad([*words, "cuda"], "[gpu]", "train.device = cpu", env={**os.environ, "CUDA_VISIBLE_DEVICES": ""})
bad([*train, "--model.num_heads", 3], "model.hidden_size = 16", "not divisible", "model.num_heads = 3", "2 and 4")
bad([*train, "--model.num_heads", 16], "qk_head_dim", "even")
bad([*train, "--train.global_batch", 3], "train.global_batch = 3", "train.micro_batch = 2")
bad([*train, "--optimizer.warmup_steps", 7], "warmup_steps = 7", "train.steps = 6")
bad([*train, "--model.layer_pattern", "TM"], "model.layer_pattern", "TM", "T and -")
bad([*train, "--model.layer_pattern", "-"], "no mixer")
bad([*train, "--model.transpoints", "V10"], "model.transpoints", "V10", "V9", "mamba")
bad([*train, "--model.transpoints", "0,-5"], "model.transpoints", "-5")
bad([*train, "--model.transpoints", "1.5", "--model.transpoint_unit", "fraction"], "0 to 1", "1.5")
bad([*train, "word"], "word", "--section.key value")
bad([*train, "--train.seed", 1, "--train.seed", 2], "train.seed", "twice")
bad([*train, "--data.path", ""], "data.path", "prepare")
bad([*train, "--checkpoint.resume", "auto", "--checkpoint.path", ""], "checkpoint.resume", "checkpoint.path")
bad(["train", "none.cfg"], "none.cfg", "no configuration file")
bad(["train", "folder"], "folder")
bad(["train", "blob"], "blob")
bad(["train", "prose"], "prose", "key = value")
Path("typo.cfg").write_text(Path(config).read_text().replace("num_heads", "num_head"))
bad(["train", "typo.cfg"], "typo.cfg", "model.num_head", "nearest is model.num_heads")

# ---- prepare
to = ["--output", "out.h5"]
bad(["prepare", "--input", "empty", *to], "empty")
bad(["prepare", "--input", "absent.txt", *to], "absent.txt", "no such file")
bad(["prepare", "--input", "folder", *to], "folder", "expected a file")
bad(["prepare", *to], "input")
bad(["prepare", "--input", "prose"], "output")
bad(["prepare", "--input", "prose", "--output", "prose"], "prose", "both input and output")
bad(["prepare", "--input", "prose", "--output", "empty/out.h5"], "empty/out.h5", "Not a directory")
bad(["prepare", "--input", "prose", "--output", "absent/out.h5"], "absent/out.h5", "No such file or directory")
bad(["prepare", "--input", "prose", "--output", "folder"], "folder")
bad(["prepare", "--input", "prose", "--output", "/proc/out.h5"], "/proc/out.h5")
bad(["prepare", "--input", "prose", *to, "--tokenizer", "words"], "words", "bytes")
bad(["prepare", "--input", "prose", *to, "--tokenizer", "sentencepiece:blob"], "blob")
bad(["prepare", "--input", "prose", *to, "--validation-fraction", 1.5], "--validation-fraction", "1.5")
bad(["prepare", "--input", "prose", *to, "--bytes"], "bytes", "--help")
Path("bad.jsonl").write_text('{"text": "fine"}\n{"text": 5}\n')
bad(["prepare", "--input", "bad.jsonl", *to], "bad.jsonl:2", "text")
expect(not Path("out.h5").exists() and not list(Path(".").glob("*.partial")), "expected no output of failed commands")

# ---- data of training
whole = Path("tokens.h5").stat().st_size
data = lambda path: [*train, "--data.path", path]
bad(data("absent.h5"), "absent.h5", "no such file")
bad(data("folder"), "folder")
bad(data("empty"), "empty")
bad(data("prose"), "prose", "not an HDF5 file")
bad(data(checkpoint / "index.h5"), "index.h5", "not a token file")
for size in [whole - 1, whole // 2, 100]:
    cut("tokens.h5", "cut.h5", size)
    bad(data("cut.h5"), "cut.h5", "truncated")
flipped("tokens.h5", "flipped.h5", whole // 2)
bad(data("flipped.h5"), "flipped.h5")
Path("tiny.txt").write_text("tiny")
must("prepare", "--input", "tiny.txt", "--output", "tiny.h5")
bad(data("tiny.h5"), "tiny.h5: expected at least the 33 tokens", "got 5")
bad([*train, "--data.validation_path", "tiny.h5"], "tiny.h5: expected at least the 33 tokens")
bad([*data("tiny.h5"), "--train.seq_len", 4, "--train.validate_every", 2], "validate_every", "no validation data")
bad([*train, "--model.vocab_size", 100], "model.vocab_size", "257", "100")

# ---- checkpoints of training
expect(run(*train, "--checkpoint.resume", "auto").returncode == 0, "expected the good checkpoint to be taken over")
resume = lambda path: [*train, "--checkpoint.resume", path, "--checkpoint.path", ""]
bad(resume("absent"), "absent", "found nothing")
bad(resume("run"), "run", "index.h5 is missing", "step_ folders")
bad(resume("folder"), "folder", "index.h5 is missing")
bad([*resume(checkpoint), "--model.num_heads", 4], checkpoint, "another model", "model.num_heads is 2 there and 4 here")
bad([*train, "--checkpoint.resume", "auto", "--model.num_heads", 4], checkpoint, "another model")
bad([*train, "--checkpoint.path", "prose/run"], "checkpoint.path", "prose/run", "Not a directory")
bad([*train, "--checkpoint.path", "/proc/run"], "checkpoint.path", "/proc/run")
bad([*train, "--log.metrics", "folder", "--checkpoint.path", ""], "[metrics]", "folder", "Is a directory")
bad([*train, "--log.metrics", "/dev/full", "--checkpoint.path", ""], "[metrics] /dev/full", "No space left on device")

# ---- generate
generate = lambda path: ["generate", "--checkpoint", path, "--tokens", 3, "--prompt", "a"]
for name in ["no_index", "no_shard", "cut_shard", "flipped_shard", "foreign_index", "cut_index"]:
    shutil.copytree(checkpoint, name)
index, shard = "index.h5", "shard_00000.h5"
os.remove(f"no_index/{index}")
os.remove(f"no_shard/{shard}")
cut(checkpoint / shard, f"cut_shard/{shard}", 5000)
flipped(checkpoint / shard, f"flipped_shard/{shard}", 30000)
shutil.copy("prose", f"foreign_index/{index}")
cut(checkpoint / index, f"cut_index/{index}", 9000)
bad(generate("absent"), "absent", "found nothing")
bad(generate("prose"), "prose", "found a file")
bad(generate("folder"), "folder", "index.h5 is missing")
bad(generate("no_index"), "no_index", "index.h5 is missing")
bad(generate("no_shard"), f"no_shard/{shard}", "no such file")
bad(generate("cut_shard"), f"cut_shard/{shard}", "truncated")
bad(generate("flipped_shard"), "flipped_shard")
bad(generate("foreign_index"), f"foreign_index/{index}", "not an HDF5 file")
bad(generate("cut_index"), f"cut_index/{index}", "damaged")
bad(["generate", "--checkpoint", "run", "--tokens", 3], "--prompt", "required")
bad(["generate", "--prompt", "a", "--tokens", 3], "--checkpoint", "required")
bad(["generate", "--checkpoint", "run", "--prompt", "a"], "--tokens", "required")
bad([*generate("run"), "--temprature", 1], "temprature", "--help")
bad([*generate("run"), "more", "words"], "positional", "--help")
bad([*generate("run"), "--temperature", "hot"], "temperature", "hot")
bad([*generate("run"), "--temperature", -1], "--temperature", "-1")
bad(["generate", "--checkpoint", "run", "--prompt", "a", "--tokens", 0], "--tokens", "0")
bad([*generate("run"), "--model.transpoint", "V3"], "model.transpoint", "nearest is model.transpoints")
bad([*generate("run"), "--model.hidden_size", 32], "another model", "model.hidden_size is 16 there and 32 here")
with open("/dev/full", "w") as full:
    done = subprocess.run([PROGRAM, *map(str, generate("run"))], stdout=full, stderr=subprocess.PIPE, text=True)
    expect(done.returncode == 1 and "transmamba: [output]" in done.stderr,
           f"generate > /dev/full: expected exit code 1 and [output], got {done.returncode}: {done.stderr!r}")

# ---- verify
bad(["verify", "absent.h5"], "absent.h5", "no such file")
bad(["verify", "folder"], "folder")
bad(["verify", "prose"], "prose", "not an HDF5 file")
bad(["verify", "cut.h5"], "cut.h5", "truncated")
bad(["verify", "tokens.h5"], "tokens.h5", "not a file of the reference implementation")

# ---- disks that fill up
limit = lambda size: {"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))}
Path("big.txt").write_bytes(Path("text.txt").read_bytes() * 20)
bad(["prepare", "--input", "big.txt", *to], "out.h5", "File too large", **limit(100_000))
bad([*train, "--checkpoint.path", "small"], "step 6 could not be saved", "File too large", **limit(50_000))
done = must(*train, "--log.metrics", "m.jsonl", "--checkpoint.path", "", **limit(500))
expect(done.stderr.count("\n") == 1 and done.stderr.startswith("warning: m.jsonl: cannot write: File too large; training goes on"),
       f"m.jsonl that cannot grow: expected one warning, got {done.stderr!r}")
expect([m["step"] for m in metrics("m.jsonl")[0]] == [1], f"expected whole lines that had room, got {Path('m.jsonl').read_text()!r}")
expect(not list(Path("small").glob("step_*")), f"expected no half checkpoint, got {os.listdir('small')}")
expect(not Path("out.h5").exists() and not list(Path(".").glob("*.partial")), "expected no half token file")
Path("disk").mkdir()
if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "none", "disk"], capture_output=True).returncode == 0:
    try:
        full = "No space left on device"
        bad(["prepare", "--input", "big.txt", "--output", "disk/out.h5"], "disk/out.h5", full)
        expect(os.listdir("disk") == [], f"expected an empty disk, got {os.listdir('disk')}")
        must(*train, "--checkpoint.path", "disk/run")
        bad([*train, "--checkpoint.path", "disk/run", "--checkpoint.resume", "auto", "--train.steps", 9],
            "step 9 could not be saved; earlier checkpoints are untouched", full)
        expect(sorted(os.listdir("disk/run")) == ["lock", "metrics.jsonl", "step_00000006"],
               f"expected the good checkpoint only, got {os.listdir('disk/run')}")
        must(*generate("disk/run"))
    finally:
        subprocess.run(["umount", "disk"], check=True)
else:
    print("no small file system can be mounted here: limits on file sizes stood in for it")

# ---- rights. Root has all of them, until it gives up its capabilities.
weak = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"] if os.geteuid() == 0 else []
if not weak or subprocess.run([*weak, "true"], capture_output=True).returncode == 0:
    for name, mode in [("tokens.h5", 0o000), ("text.txt", 0o000), ("folder", 0o500), (checkpoint / shard, 0o000)]:
        os.chmod(name, mode)
    no = "Permission denied"
    bad(["prepare", "--input", "text.txt", *to], "text.txt", no, prefix=weak)
    bad(["prepare", "--input", "prose", "--output", "folder/out.h5"], "folder/out.h5", no, prefix=weak)
    bad(train, "tokens.h5", no, prefix=weak)
    bad(generate("run"), shard, no, prefix=weak)
    os.chmod("tokens.h5", 0o600)
    bad([*train, "--checkpoint.path", "folder/run"], "checkpoint.path = folder/run", no, prefix=weak)
    bad([*train, "--log.metrics", "folder/m.jsonl", "--checkpoint.path", ""], "folder/m.jsonl", no, prefix=weak)
    bad([*train, "--checkpoint.resume", checkpoint], shard, no, prefix=weak)
    os.chmod("folder", 0o000)
    bad([*train, "--checkpoint.resume", "folder/step_1"], "folder/step_1", no, prefix=weak)
    bad(generate("folder/step_1"), "folder/step_1", no, prefix=weak)
    os.chmod("folder", 0o700)
else:
    print("root cannot give up its rights here: /proc stood in for what may not be written")
finish("bad input")
