"""The three tiny random cases: a base, an adapter, its gradients, ten AdamW steps. Used by make.py."""

import json
import math
import shutil

import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, get_linear_schedule_with_warmup

ROPE3 = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
         "original_max_position_embeddings": 64}
SPECIAL = {"bos_token_id": 1, "eos_token_id": 2, "dtype": "float32"}
SPECS = {
    "llama_tied": {
        "seed": 20,
        "base": lambda: LlamaConfig(
            hidden_size=32, num_attention_heads=4, num_key_value_heads=2, head_dim=8, num_hidden_layers=2,
            intermediate_size=48, vocab_size=97, max_position_embeddings=128, rms_norm_eps=1e-5, tie_word_embeddings=True,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0}, **SPECIAL),
        "lora": {"r": 4, "lora_alpha": 8, "target_modules": [
            "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]},
    },
    "llama_untied": {
        "seed": 20,
        "base": lambda: LlamaConfig(
            hidden_size=48, num_attention_heads=6, num_key_value_heads=2, head_dim=16, num_hidden_layers=3,
            intermediate_size=80, vocab_size=131, max_position_embeddings=256, rms_norm_eps=1e-6,
            tie_word_embeddings=False, rope_parameters=ROPE3, **SPECIAL),
        "lora": {"r": 3, "lora_alpha": 6, "target_modules": ["q_proj", "v_proj"]},
    },
    "gpt2": {
        "seed": 20,
        "base": lambda: GPT2Config(
            n_embd=32, n_head=4, n_layer=2, n_positions=64, vocab_size=97, resid_pdrop=0.0, embd_pdrop=0.0,
            attn_pdrop=0.0, **SPECIAL),
        "lora": {"r": 4, "lora_alpha": 4, "target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True},
    },
}
RECIPE = {"lr": 0.01, "weight_decay": 0.01, "betas": [0.9, 0.999], "eps": 1e-8, "clip_norm": 0.3, "warmup_ratio": 0.1,
          "total_steps": 10}
NEW_TOKENS = 8


def random_base(spec, generator):
    """A base whose every parameter matters: norms are not one, biases not zero, logits not flat."""
    model = AutoModelForCausalLM.from_config(spec["base"](), attn_implementation="eager").eval()
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if name.endswith("bias"):
            value = 0.1 * noise
        elif parameter.dim() == 1:
            value = 1.0 + 0.2 * noise
        else:
            value = 0.2 * noise
        parameter.data.copy_(value)
    return model


def random_adapter(base, spec, generator):
    model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", lora_dropout=0.0, bias="none", **spec["lora"]))
    model.peft_config["default"].base_model_name_or_path = "base"
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.data.copy_(0.3 * torch.randn(parameter.shape, generator=generator)
                                 / (math.sqrt(parameter.shape[1]) if "lora_A" in name else 1.0))
    return model


def draw_examples(vocab, generator):
    """12 examples: five share 8 tokens, three share 6, four share nothing; two shapes are at the edges."""
    draw = lambda n: torch.randint(3, vocab, (n,), generator=generator).tolist()
    wide, narrow = draw(8), draw(6)
    # (shared prefix, further tokens, prompt length)
    shapes = [(wide, 4, 9), (wide, 9, 14), (wide, 2, 8), (wide, 12, 17),
              (wide, 5, 6),  # its prompt ends inside the shared prefix: two shared tokens are supervised
              (narrow, 5, 8), (narrow, 3, 8), (narrow, 10, 9),
              ([], 3, 1), ([], 3, 2), ([], 13, 10), ([], 20, 19)]
    return [{"tokens": shared + draw(more), "prompt_len": prompt} for shared, more, prompt in shapes]


def draw_batches(generator):
    """Ten batches of four; every example is drawn at least three times."""
    order = [0, 1, 4, 10]  # batch 0: shared prefix, supervised tokens in it, and one example without it
    order += [i for i in torch.randperm(12, generator=generator).tolist() if i not in order]
    while len(order) < 40:
        order += torch.randperm(12, generator=generator).tolist()
    return [order[i:i + 4] for i in range(0, 40, 4)]


def batch_loss(model, examples):
    """Mean cross-entropy over the batch's supervised tokens, right-padded with an attention mask."""
    longest = max(len(e["tokens"]) for e in examples)
    rows = lambda make: torch.tensor([make(e, longest - len(e["tokens"])) for e in examples])
    return model(
        input_ids=rows(lambda e, pad: e["tokens"] + [0] * pad),
        attention_mask=rows(lambda e, pad: [1] * len(e["tokens"]) + [0] * pad),
        labels=rows(lambda e, pad: [-100] * e["prompt_len"] + e["tokens"][e["prompt_len"]:] + [-100] * pad),
    ).loss


def batch_loss_one_by_one(model, examples):
    """The same number in another order of operations: no padding, one example at a time. Measures the noise of f32."""
    counts = [len(e["tokens"]) - e["prompt_len"] for e in examples]
    return sum(batch_loss(model, [e]) * n for e, n in zip(examples, counts)) / sum(counts)


def plain(tensors):
    return {name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}


def train(model, task, loss_of):
    """Ten steps; returns the losses, the norms before clipping, and batch 0's gradients before clipping."""
    parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(parameters.values(), lr=task["lr"], betas=task["betas"], eps=task["eps"],
                                  weight_decay=task["weight_decay"])
    warmup = math.ceil(task["warmup_ratio"] * task["total_steps"])
    schedule = get_linear_schedule_with_warmup(optimizer, warmup, task["total_steps"])
    losses, norms, gradients, rates = [], [], None, []
    for batch in task["batches"]:
        loss = loss_of(model, [task["examples"][i] for i in batch])
        loss.backward()
        if gradients is None:
            gradients = plain({n.replace(".default", ""): p.grad for n, p in parameters.items()})
        norms.append(torch.nn.utils.clip_grad_norm_(parameters.values(), task["clip_norm"]).item())
        losses.append(loss.item())
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return {"losses": losses, "norms": norms, "rates": rates, "gradients": gradients,
            "adapter": plain(get_peft_model_state_dict(model, save_embedding_layers=False))}


def greedy(model, prompt):
    """The most likely continuation; it does not stop at the end-of-sequence token."""
    tokens = list(prompt)
    for _ in range(NEW_TOKENS):
        logits = model(input_ids=torch.tensor([tokens])).logits[0, -1]
        best, next_best = logits.topk(2).values
        assert best - next_best > 1e-3, "too near a tie for a golden value: take another seed"
        tokens.append(int(logits.argmax()))
    return torch.tensor(tokens[len(prompt):], dtype=torch.int32)


def save_adapter(model, folder):
    model.save_pretrained(folder, save_embedding_layers=False)
    (folder / "README.md").unlink()  # an empty model card
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text())
    config["target_modules"].sort()  # a set in PEFT: its order changes from run to run
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def version_4_spelling(config):
    """config.json as transformers 4 wrote it."""
    old = {k: v for k, v in config.items() if k not in ("dtype", "rope_parameters")}
    old |= {"torch_dtype": config["dtype"], "transformers_version": "4.57.1"}
    if rope := config.get("rope_parameters"):
        old["rope_theta"] = rope["rope_theta"]
        scaling = {k: v for k, v in rope.items() if k != "rope_theta"}
        old["rope_scaling"] = None if scaling["rope_type"] == "default" else scaling
    else:
        old["n_ctx"] = config["n_positions"]
    return dict(sorted(old.items()))


def check_version_4(folder, examples, expected):
    """transformers must read the old spelling as the same model."""
    shutil.copy(folder / "base" / "model.safetensors", folder / "base_v4")
    model = AutoModelForCausalLM.from_pretrained(folder / "base_v4", attn_implementation="eager", dtype=torch.float32).eval()
    (folder / "base_v4" / "model.safetensors").unlink()
    for i, example in enumerate(examples):
        assert torch.equal(model(torch.tensor([example["tokens"]])).logits[0], expected[f"base_logits.{i}"])


def largest(left, right, relative):
    """The largest difference of two lists of tensors, on each tensor's own scale if relative."""
    return max(((a - b).abs().max() / (b.abs().max() if relative else 1.0)).item() for a, b in zip(left, right))


def make(case, folder, made):
    spec = SPECS[case]
    generator = torch.Generator().manual_seed(spec["seed"])
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "base_v4").mkdir(parents=True)

    base = random_base(spec, generator)
    base.save_pretrained(folder / "base")
    (folder / "base" / "generation_config.json").unlink(missing_ok=True)
    config = json.loads((folder / "base" / "config.json").read_text())
    (folder / "base_v4" / "config.json").write_text(json.dumps(version_4_spelling(config), indent=2) + "\n")

    task = {"examples": draw_examples(base.config.vocab_size, generator), "batches": draw_batches(generator), **RECIPE}
    lines = json.dumps(task).replace(' {"tokens"', '\n  {"tokens"').replace(' "batches"', '\n"batches"')
    (folder / "input.json").write_text(lines.replace(' "lr"', '\n"lr"') + "\n")

    expected = {}
    with torch.no_grad():
        for i, example in enumerate(task["examples"]):
            expected[f"base_logits.{i}"] = base(torch.tensor([example["tokens"]])).logits[0]
        check_version_4(folder, task["examples"], expected)
        model = random_adapter(base, spec, generator)
        save_adapter(model, folder / "adapter")
        start = plain(model.state_dict())
        for i, example in enumerate(task["examples"]):
            expected[f"logits.{i}"] = model(torch.tensor([example["tokens"]])).logits[0]
            expected[f"greedy.{i}"] = greedy(model, example["tokens"][:example["prompt_len"]])
    other = train(model, task, batch_loss_one_by_one)
    model.load_state_dict(start)
    result = train(model, task, batch_loss)
    save_adapter(model, folder / "adapter_trained")

    for name, value in (("loss", result["losses"][:1]), ("losses", result["losses"]), ("grad_norms", result["norms"])):
        expected[name] = torch.tensor(value, dtype=torch.float32)
    for prefix, tensors in (("grad", result["gradients"]), ("adapter", result["adapter"])):
        expected |= {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}
        assert all(tensor.abs().max() > 1e-4 for tensor in tensors.values()), "a gradient or an adapter is zero"
    save_file(plain(expected), folder / "expected.safetensors")

    pick = lambda run, key: list(run[key].values()) if isinstance(run[key], dict) else [torch.tensor(run[key])]
    noise = {name: largest(pick(other, key), pick(result, key), relative) for name, key, relative in (
        ("gradients, of each tensor's largest", "gradients", True), ("losses, absolute", "losses", False),
        ("gradient norms, absolute", "norms", False), ("adapter after ten steps, absolute", "adapter", False))}
    spread = [max(t.std(-1).max().item() for n, t in expected.items() if n.startswith(kind)) for kind in ("logits", "base_logits")]
    write_readme(case, folder, spec, made, result, noise, spread)
    print(case, "losses", [round(x, 4) for x in result["losses"]], "norms", [round(x, 3) for x in result["norms"]])


def write_readme(case, folder, spec, made, result, noise, spread):
    lora = spec["lora"]
    table = "\n".join(f"| {name} | {value:.1e} |" for name, value in noise.items())
    (folder / "README.md").write_text(f"""# Golden case `{case}`

A tiny random base and a LoRA adapter (rank {lora['r']}, alpha {lora['lora_alpha']}, on {', '.join(lora['target_modules'])}), run by transformers and PEFT:
f32, one thread, eager attention, no dropout.

Made by `scripts/golden/make.py --case {case}` with {made}.

| file | what |
|---|---|
| `base/` | `config.json` in the version-5 spelling, `model.safetensors` |
| `base_v4/config.json` | the same model in the version-4 spelling (transformers gives bit-equal logits) |
| `adapter/` | PEFT folder, A and B both random |
| `adapter_trained/` | PEFT folder after the ten steps |
| `input.json` | `examples` (`tokens`, `prompt_len`; `tokens[prompt_len..]` are supervised), `batches` (example indices, one batch a step), the recipe |
| `expected.safetensors` | below; f32 unless said |

| key | shape | what |
|---|---|---|
| `base_logits.{{i}}`, `logits.{{i}}` | [len, vocab] | example i without and with `adapter/` |
| `greedy.{{i}}` | [{NEW_TOKENS}] i32 | most likely continuation of `tokens[..prompt_len]` with `adapter/`; does not stop at the end token |
| `loss` | [1] | batch 0 with `adapter/`: mean over its supervised tokens |
| `grad.<PEFT key>` | of the tensor | batch 0, before clipping |
| `losses`, `grad_norms` | [10] | per step; norms before clipping |
| `adapter.<PEFT key>` | of the tensor | after ten steps |

Step s counts from 0: the loss and gradient of `batches[s]`, clipping of the joint norm to `clip_norm`, torch's AdamW at
lr(s) = lr·s/w for s < w, else lr·max(0, (S-s)/(S-w)), with S = `total_steps`, w = ceil(`warmup_ratio`·S). So step 0 has rate 0,
which decays nothing either. Rates: {', '.join(f'{r:.6g}' for r in result['rates'])}.

Examples 0-4 share their first 8 tokens, 5-7 their first 6. Example 4's prompt ends inside the shared tokens, so two of
them are supervised there and prompt elsewhere. Example 8 has a prompt of one token.

The largest standard deviation of a row of logits is {spread[0]:.2f} with the adapter, {spread[1]:.2f} without. Losses go from {result['losses'][0]:.3f} to {result['losses'][-1]:.3f}.

How much f32 alone may differ: the same ten steps without padding, one example at a time (measured, largest):

| | |
|---|---|
{table}
""")
