#!/usr/bin/env python3
"""Checks that exported adapters are PEFT's own format: loads each with PEFT and, if logits are given, compares them.

Every folder below --adapters that holds an adapter_config.json is loaded with PeftModel.from_pretrained onto the base,
warnings being errors (only the libraries' own Future- and DeprecationWarnings are let through). Then:

  keys    the file's keys are exactly the ones PEFT holds for this configuration, every value arrived bit for bit
  delta   the weight change scale * B * A of every adapted matrix is finite and not zero
  logits  with --logits: max |ours - PEFT's| <= 1e-3 * max |PEFT's|, over each token list

FILE of --logits is a safetensors file with tokens.{i} (integers [len]) and logits.{i} (float [rows, vocabulary], for the
last `rows` positions) for the one adapter; for several, the keys are <folder>/tokens.{i} and <folder>/logits.{i}, where
<folder> is the adapter's path below DIR. Every adapter must then have logits, and every key must be used.

Prints a table. Exit code 0 if all passed, 1 if not, 2 for a wrong call. Made for the environment of scripts/golden/venv.
"""

import argparse
import logging
import os
import pathlib
import sys
import traceback
import warnings

sys.dont_write_bytecode = True
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


class Mismatch(Exception):
    """An adapter that is not what it should be."""


class Raise(logging.Handler):
    """What a library logs as a warning counts as a warning."""

    def emit(self, record):
        raise Mismatch(f"{record.name} warned: {record.getMessage()}")


def load_base(path):
    import torch
    from transformers import AutoModelForCausalLM

    source, file = (path.parent, path.name) if path.is_file() else (path, None)
    return AutoModelForCausalLM.from_pretrained(source, gguf_file=file, dtype=torch.float32).eval()


def load_adapter(base, folder):
    """PEFT's model, or an error on any warning."""
    from peft import PeftModel

    handler, loggers = Raise(level=logging.WARNING), [logging.getLogger(name) for name in ("transformers", "peft")]
    for logger in loggers:
        logger.addHandler(handler)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            return PeftModel.from_pretrained(base, folder).eval()
    finally:
        for logger in loggers:
            logger.removeHandler(handler)


def check_keys(model, folder):
    import torch
    from peft import get_peft_model_state_dict
    from safetensors.torch import load_file

    written = load_file(folder / "adapter_model.safetensors")
    held = get_peft_model_state_dict(model, save_embedding_layers=False)
    if extra := sorted(written.keys() - held.keys()):
        raise Mismatch(f"{len(extra)} keys PEFT does not use, first {extra[0]}")
    if missing := sorted(held.keys() - written.keys()):
        raise Mismatch(f"{len(missing)} keys missing, first {missing[0]}")
    for key, value in written.items():
        if not torch.equal(held[key], value.to(held[key].dtype)):
            raise Mismatch(f"{key} did not arrive")
    return sum(value.numel() for value in written.values())


def check_deltas(model):
    from peft.tuners.lora import LoraLayer

    sizes = {name: module.get_delta_weight("default").abs().max().item()
             for name, module in model.named_modules() if isinstance(module, LoraLayer)}
    for name, size in sizes.items():
        if not 0.0 < size < float("inf"):
            raise Mismatch(f"the change of {name} is {size}")
    return len(sizes), min(sizes.values()), max(sizes.values())


def check_logits(model, given, prefix, used, tolerance):
    import torch

    worst, lists = 0.0, 0
    while (name := f"{prefix}tokens.{lists}") in given:
        ours = given[f"{prefix}logits.{lists}"].float()
        with torch.no_grad():
            theirs = model(input_ids=given[name].long().unsqueeze(0)).logits[0, -ours.shape[0]:]
        if ours.shape != theirs.shape:
            raise Mismatch(f"logits.{lists} are {list(ours.shape)}, PEFT's {list(theirs.shape)}")
        difference = ((ours - theirs).abs().max() / theirs.abs().max()).item()
        worst = max(worst, difference) if difference == difference else difference
        used |= {name, f"{prefix}logits.{lists}"}
        lists += 1
        if not difference <= tolerance:
            raise Mismatch(f"logits.{lists - 1} differ by {difference:.1e}, relative")
    if not lists:
        raise Mismatch(f"no {prefix}tokens.0 in the file of logits")
    return worst


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=pathlib.Path, required=True, help="Hugging Face folder or GGUF file")
    parser.add_argument("--adapters", type=pathlib.Path, required=True, metavar="DIR", help="searched at any depth")
    parser.add_argument("--logits", type=pathlib.Path, metavar="FILE", help="our logits, as described above")
    parser.add_argument("--tolerance", type=float, default=1e-3, help="relative (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    folders = sorted(path.parent for path in args.adapters.rglob("adapter_config.json"))
    if not folders:
        parser.error(f"no adapter_config.json below {args.adapters}")

    import torch
    import transformers
    from safetensors.torch import load_file

    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(args.threads)
    base = load_base(args.base)
    given, used, failed = load_file(args.logits) if args.logits else {}, set(), 0
    print("| adapter | sites | parameters | smallest and largest change | logits, relative | |\n|---|--:|--:|--:|--:|---|")
    for folder in folders:
        name = folder.relative_to(args.adapters).as_posix()
        row, model = ["", "", "", "not given"], None
        try:
            model = load_adapter(base, folder)
            row[1] = f"{check_keys(model, folder):,}"
            sites, least, most = check_deltas(model)
            row[0], row[2] = str(sites), f"{least:.1e} {most:.1e}"
            if args.logits:
                prefix = "" if len(folders) == 1 and "tokens.0" in given else f"{name}/"
                row[3] = f"{check_logits(model, given, prefix, used, args.tolerance):.1e}"
            verdict = "ok"
        except Exception as error:  # one bad adapter must not hide the others
            failed += 1
            verdict = f"FAILED: {error if isinstance(error, Mismatch) else traceback.format_exception_only(error)[0].strip()}"
        finally:
            if model is None:  # a load that failed half-way may have left its layers in the base
                base = load_base(args.base)
            else:
                base = model.unload()
        print(f"| {name} | {' | '.join(row)} | {verdict.splitlines()[0]} |", flush=True)
    if unused := sorted(given.keys() - used) if not failed else []:
        failed += 1
        print(f"FAILED: {len(unused)} keys of {args.logits} belong to no adapter, first {unused[0]}")
    print(f"{len(folders)} adapters, {failed} failures")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
