#!/usr/bin/env python3
"""Trains personal adapters the usual way, to compare with: transformers + PEFT on CPU, one user after another.

Each user gets a fresh LoRA (PEFT's default initialisation, or the PEFT folder "init" names), torch's AdamW, clipping of
the joint norm, linear schedule with warm-up, batches padded to their longest example with an attention mask, loss on
the tokens after the prompt, no gradient checkpointing, f32, PyTorch's scaled dot-product attention. The base is loaded
once and shared by all users; the time counted starts after it and includes everything else.

--examples FILE.json:

  {"recipe": {"lora_rank": 8, "lora_alpha": 8, "lora_dropout": 0.05, "learning_rate": 1e-4, "weight_decay": 0.01,
              "clip_norm": 0.3, "warmup_ratio": 0.1, "epochs": 2, "batch_size": 16, "targets": ["q_proj", "v_proj"]},
   "users": [{"id": "u1", "init": "optional/peft/folder",
              "batches": [[{"tokens": [1, 2, 3], "prompt_len": 2}, ...], ...]}, ...]}

"batches" is the user's complete list of steps, all epochs in order. A field missing from "recipe" has the value above
(OPPU's). With --batches-from-file exactly these batches are trained, in this order; without it, the examples of the
first epoch are drawn anew into length-grouped batches (sorted by length, cut, the batches shuffled) each epoch.

--json OUT: users_per_hour, tokens_per_s (without padding), padded_tokens_per_s, users, steps, seconds, cpu_seconds,
final_losses (by user, the last step's), losses (by user, every step), peak_rss_bytes, threads, batches, recipe,
versions. Environment: scripts/golden/venv.
"""

import argparse
import json
import math
import os
import pathlib
import random
import resource
import sys
import time

sys.dont_write_bytecode = True
os.environ.setdefault("HF_HUB_OFFLINE", "1")

OPPU = {"lora_rank": 8, "lora_alpha": 8, "lora_dropout": 0.05, "learning_rate": 1e-4, "weight_decay": 0.01,
        "clip_norm": 0.3, "warmup_ratio": 0.1, "epochs": 2, "batch_size": 16, "targets": ["q_proj", "v_proj"]}


def load_base(path):
    import torch
    from transformers import AutoModelForCausalLM

    source, file = (path.parent, path.name) if path.is_file() else (path, None)
    return AutoModelForCausalLM.from_pretrained(source, gguf_file=file, dtype=torch.float32, attn_implementation="sdpa")


def length_grouped(user, recipe):
    """The same examples and number of epochs, in batches of like length."""
    generator = random.Random(user["id"])
    size, per_epoch = recipe["batch_size"], math.ceil(len(user["batches"]) / recipe["epochs"])
    examples = [example for batch in user["batches"][:per_epoch] for example in batch]
    steps = []
    for _ in range(recipe["epochs"]):
        shuffled = sorted(generator.sample(examples, len(examples)), key=lambda e: -len(e["tokens"]))
        batches = [shuffled[i:i + size] for i in range(0, len(shuffled), size)]
        steps += generator.sample(batches, len(batches))
    return steps


def padded(batch):
    import torch

    longest = max(len(e["tokens"]) for e in batch)
    rows = lambda make: torch.tensor([make(e, longest - len(e["tokens"])) for e in batch])
    return {
        "input_ids": rows(lambda e, pad: e["tokens"] + [0] * pad),
        "attention_mask": rows(lambda e, pad: [1] * len(e["tokens"]) + [0] * pad),
        "labels": rows(lambda e, pad: [-100] * e["prompt_len"] + e["tokens"][e["prompt_len"]:] + [-100] * pad),
    }


def fresh_adapter(base, user, recipe, seed):
    import torch
    from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
    from safetensors.torch import load_file

    torch.manual_seed(seed)
    model = get_peft_model(base, LoraConfig(
        task_type="CAUSAL_LM", r=recipe["lora_rank"], lora_alpha=recipe["lora_alpha"], bias="none",
        lora_dropout=recipe["lora_dropout"], target_modules=recipe["targets"],
        fan_in_fan_out=base.config.model_type == "gpt2"))
    if folder := user.get("init"):
        result = set_peft_model_state_dict(model, load_file(pathlib.Path(folder) / "adapter_model.safetensors"))
        missing = [key for key in result.missing_keys if "lora_" in key]
        if missing or result.unexpected_keys:
            sys.exit(f"{folder} does not fit the recipe: {(missing or result.unexpected_keys)[0]}")
    return model.train()


def train_user(base, user, batches, recipe, seed):
    """One user's whole training; returns the base, bare again, and the losses."""
    import torch
    from transformers import get_linear_schedule_with_warmup

    model = fresh_adapter(base, user, recipe, seed)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=recipe["learning_rate"], betas=(0.9, 0.999), eps=1e-8,
                                  weight_decay=recipe["weight_decay"])
    schedule = get_linear_schedule_with_warmup(
        optimizer, math.ceil(recipe["warmup_ratio"] * len(batches)), len(batches))
    losses = []
    for batch in batches:
        loss = model(**padded(batch), use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, recipe["clip_norm"])
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return model.unload(), losses


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=pathlib.Path, required=True, help="Hugging Face folder or GGUF file")
    parser.add_argument("--examples", type=pathlib.Path, required=True, metavar="FILE")
    parser.add_argument("--batches-from-file", action="store_true", help="train exactly the file's batches, in its order")
    parser.add_argument("--users", type=int, metavar="N", help="only the first N users")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of PyTorch (default: %(default)s)")
    parser.add_argument("--dropout", type=float, help="instead of the recipe's lora_dropout")
    parser.add_argument("--learning-rate", type=float, help="instead of the recipe's")
    parser.add_argument("--seed", type=int, default=0, help="of initialisation and dropout (default: %(default)s)")
    parser.add_argument("--json", type=pathlib.Path, metavar="OUT", help="where the numbers go (default: standard output)")
    return parser.parse_args()


def main():
    args = arguments()
    import peft
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(args.threads)
    file = json.loads(args.examples.read_text())
    if unknown := file.get("recipe", {}).keys() - OPPU.keys():
        print(f"peft_sequential: recipe fields not used: {', '.join(sorted(unknown))}", file=sys.stderr)
    recipe = OPPU | file.get("recipe", {})
    if args.dropout is not None:
        recipe["lora_dropout"] = args.dropout
    if args.learning_rate is not None:
        recipe["learning_rate"] = args.learning_rate
    users = file["users"][:args.users]
    base = load_base(args.base)

    losses, tokens, padded_tokens, steps = {}, 0, 0, 0
    started, cpu_started = time.perf_counter(), time.process_time()
    for number, user in enumerate(users):
        batches = user["batches"] if args.batches_from_file else length_grouped(user, recipe)
        base, losses[user["id"]] = train_user(base, user, batches, recipe, args.seed + number)
        steps += len(batches)
        tokens += sum(len(e["tokens"]) for batch in batches for e in batch)
        padded_tokens += sum(len(batch) * max(len(e["tokens"]) for e in batch) for batch in batches)
        seconds = time.perf_counter() - started
        print(f"peft_sequential: {number + 1} of {len(users)} users, {tokens / seconds:.0f} tokens/s", file=sys.stderr)
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started

    result = {
        "users_per_hour": len(users) / seconds * 3600, "tokens_per_s": tokens / seconds,
        "padded_tokens_per_s": padded_tokens / seconds, "users": len(users), "steps": steps,
        "seconds": seconds, "cpu_seconds": cpu_seconds,
        "final_losses": {user: values[-1] for user, values in losses.items()}, "losses": losses,
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, "threads": args.threads,
        "batches": "from file" if args.batches_from_file else "length-grouped", "recipe": recipe,
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__, "peft": peft.__version__},
    }
    text = json.dumps(result, indent=1) + "\n"
    args.json.write_text(text) if args.json else print(text, end="")


if __name__ == "__main__":
    main()
