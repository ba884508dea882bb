#!/usr/bin/env python3
"""Writing text: what the same words give again, what they change, and where TransPoints may lie.

    generate.py PROGRAM SCRATCH_FOLDER
"""
from support.program import clean_scratch, expect, finish, make_config, make_data, must

clean_scratch()
make_data()
config = make_config("[checkpoint]\npath = run\nevery = 60\n")
must("train", config, "--train.steps", 120, "--optimizer.lr", "2e-2", "--log.every", 60)


def text(*words, checkpoint="run", prompt="the quick ", tokens=40):
    done = must("generate", "--checkpoint", checkpoint, "--prompt", prompt, "--tokens", tokens, *words)
    expect(f"from {checkpoint}" in done.stderr and "tokens/s" in done.stderr,
           f"expected the checkpoint and a rate on stderr, got {done.stderr}")
    expect(done.stdout.startswith(prompt) and done.stdout.endswith("\n"),
           f"expected the prompt {prompt!r}, more text and a line feed, got {done.stdout!r}")
    return done.stdout[len(prompt):-1]


greedy = text("--temperature", 0)
expect(len(greedy) > 10, f"expected text, got {greedy!r}")
expect(greedy == text("--temperature", 0), "expected greedy decoding to give the same text again")
expect(greedy == text("--temperature", 0, "--seed", 5), "expected the seed to change nothing where nothing is drawn")
expect(greedy == text("--top-k", 1, "--seed", 6), "expected the most likely of one token to be the greedy one")
expect(greedy == text("--temperature", 0, checkpoint="run/step_00000120"), "expected the newest step from the folder")
expect(greedy != text("--temperature", 0, checkpoint="run/step_00000060"), "expected another step to write another text")
expect(greedy.startswith(text("--temperature", 0, tokens=20)), "expected fewer tokens to be the beginning of more")

drawn = text("--seed", 1)
expect(drawn == text("--seed", 1), "expected the same draws from the same seed")
expect(drawn != text("--seed", 2), "expected other draws from another seed")
few = text("--seed", 1, "--top-k", 3)
expect(few == text("--seed", 1, "--top-k=3"), "expected --top-k=3 to be --top-k 3")
expect(few != drawn, "expected a choice among 3 tokens to differ from one among all")

# Schedules: trained with 0,8,T of 32 tokens; the prompt has 10 tokens.
schedules = ["transformer", "mamba", "hybrid", "V3", "5", "12,20", "0,8,T"]
texts = {name: text("--temperature", 0, "--model.transpoints", name) for name in schedules}
expect(texts["0,8,T"] == greedy, "expected the schedule of the training to change nothing")
expect(len(set(texts.values())) > 2, f"expected TransPoints to matter, got {texts}")
expect(texts["transformer"] == text("--temperature", 0, "--model.transpoints", 500),
       "expected a TransPoint past the end to be a transformer")
expect(texts["V3"] == texts["transformer"], "expected P = 6144 past the end to be a transformer")

# A switch in mid-generation: the text up to it is the transformer's. Token 20 of the stream is the first by the SSM,
# and what it says comes one later.
switched = text("--temperature", 0, "--model.transpoints", 20)
expect(switched[:10] == texts["transformer"][:10], "expected attention's text before the TransPoint, got "
       f"{switched!r} and {texts['transformer']!r}")
# However the same tokens come, as a prompt or one by one, the state at the switch is the same.
expect(switched == switched[:15] + text("--temperature", 0, "--model.transpoints", 20,
                                        prompt="the quick " + switched[:15], tokens=25),
       "expected a prompt past the TransPoint to go on as text written across it")

unicode_prompt = "naïve 😀 "
expect(text(prompt=unicode_prompt, tokens=5) is not None, "expected a UTF-8 prompt to come back")
first = text("--temperature", 0, prompt="", tokens=12)
expect(first != "" and first == text("--temperature", 0, prompt="", tokens=12), "expected a text for an empty prompt")
long = text("--temperature", 0, tokens=200)
expect(len(long) >= 190 and long.startswith(greedy), "expected text past the trained length of 32 tokens")
finish("generating")
