#!/usr/bin/env python3
"""The population stage of the event model as one writes it in PyTorch, to compare with: the same steps on CPU.

--case DIR is what `cargo bench -p trainer --bench whole -- --dump DIR` wrote: the model, its parameters at the start, every
step's windows and hidden events. Each step: GPT-2 blocks over the embedded events (scaled_dot_product_attention, one
product for queries, keys and values), the intention attention network on the last state, cross-entropy of the intents,
plus lambda times that of the hidden events, whose windows pass in the same batch; clipping; fused AdamW. f32.

The time counted begins after the first step and includes everything else, making the tensors of a batch as well.
Prints one JSON line like the benchmark's, with the losses of all steps. Environment: scripts/golden/venv.
"""

import argparse
import array
import json
import pathlib
import resource
import sys
import time

sys.dont_write_bytecode = True


def load(folder):
    import torch

    case = json.loads((folder / "case.json").read_text())
    values = array.array("f", (folder / "params.bin").read_bytes())
    if sys.byteorder != "little":
        values.byteswap()
    flat, params, at = torch.tensor(values), {}, 0
    for tensor in case["tensors"]:
        size = 1
        for n in tensor["dims"]:
            size *= n
        params[tensor["name"]] = flat[at:at + size].reshape(tensor["dims"]).clone()
        at += size
    if at != len(flat):
        sys.exit(f"{folder}: {len(flat)} parameters, the model has {at}")
    return case, params


def model(spec, given):
    """The event model with the given parameters."""
    import torch
    from torch import nn
    from torch.nn import functional as F

    width, heads = spec["hidden"], spec["heads"]

    def linear(*names):
        weight = torch.cat([given[f"{name}.weight"] for name in names])
        product = nn.Linear(weight.shape[1], weight.shape[0])
        product.weight.data, product.bias.data = weight, torch.cat([given[f"{name}.bias"] for name in names])
        return product

    def norm(name):
        layer = nn.LayerNorm(width, eps=spec["norm_eps"])
        layer.weight.data, layer.bias.data = given[f"{name}.weight"], given[f"{name}.bias"]
        return layer

    class Block(nn.Module):
        def __init__(self, name):
            super().__init__()
            self.norm1, self.norm2 = norm(f"{name}.norm1"), norm(f"{name}.norm2")
            self.qkv = linear(*(f"{name}.{part}" for part in "qkv"))
            self.o, self.fc, self.proj = (linear(f"{name}.{part}") for part in ("o", "fc", "proj"))

        def forward(self, x):
            b, t, _ = x.shape
            q, k, v = (part.view(b, t, heads, -1).transpose(1, 2) for part in self.qkv(self.norm1(x)).chunk(3, dim=-1))
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + self.o(mixed.transpose(1, 2).reshape(b, t, width))
            return x + self.proj(F.gelu(self.fc(self.norm2(x)), approximate="tanh"))

    class EventModel(nn.Module):
        def __init__(self):
            super().__init__()
            columns = range(len(spec["columns"]))
            self.columns = nn.ModuleList(nn.Embedding.from_pretrained(given[f"columns.{c}"], freeze=False) for c in columns)
            self.positions = nn.Parameter(given["positions"])
            self.blocks = nn.ModuleList(Block(f"layers.{layer}") for layer in range(spec["layers"]))
            self.norm, self.reconstruction = norm("norm"), linear("reconstruction")
            self.table, self.w1, self.b1 = (nn.Parameter(given[f"intent.{name}"]) for name in ("table", "w1", "b1"))
            self.slope, self.w2, self.b2 = (nn.Parameter(given[f"intent.{name}"]) for name in ("slope", "w2", "b2"))
            self.bias = nn.Parameter(given["intent.bias"])

        def states(self, events):
            x = torch.cat([table(events[..., c]) for c, table in enumerate(self.columns)], dim=-1)
            x = x + self.positions[:events.shape[1]]
            for block in self.blocks:
                x = block(x)
            return self.norm(x)

        def intents(self, history):
            b, n = len(history), len(self.table)
            table, every = self.table.expand(b, n, width), history[:, None].expand(b, n, width)
            z = F.linear(torch.cat([table, table * every, every], dim=-1), self.w1, self.b1)
            z = torch.where(z > 0, z, self.slope * z)
            return z @ self.w2 + self.b2 + self.bias

    if (spec["combine"], spec["history"], spec["product"], spec["prediction"]) != ("concat", "last", "elementwise", "scalar"):
        sys.exit("written for concatenated columns, the last state, element-wise products and scalar predictions alone")
    return EventModel()


def batch(windows, hidden_value):
    """Events as they are, then with the hidden ones replaced; intents; where events are hidden, and what they are."""
    import torch

    events = torch.tensor([w["events"] for w in windows])
    where = torch.tensor([(i, p) for i, w in enumerate(windows) for p in w["hidden"]]).reshape(-1, 2).unbind(1)
    changed = events.clone()
    changed[where[0], where[1], 2] = hidden_value
    return torch.cat([events, changed]), torch.tensor([w["intent"] for w in windows]), where, events[where][:, 2]


def step(net, optimizer, case, windows):
    import torch
    from torch.nn import functional as F

    events, intents, where, hidden = batch(windows, case["spec"]["columns"][2])
    states, n = net.states(events), len(windows)
    loss = F.cross_entropy(net.intents(states[:n, -1]), intents)
    if len(hidden):
        loss = loss + case["lambda"] * F.cross_entropy(net.reconstruction(states[n:][where]), hidden)
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(net.parameters(), case["recipe"]["clip_norm"])
    optimizer.step()
    return loss.item()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", type=pathlib.Path, required=True, metavar="DIR")
    parser.add_argument("--threads", type=int, default=2, help="of PyTorch (default: %(default)s)")
    args = parser.parse_args()
    import torch

    torch.set_num_threads(args.threads)
    case, params = load(args.case)
    net, recipe = model(case["spec"], params), case["recipe"]
    optimizer = torch.optim.AdamW(net.parameters(), lr=recipe["learning_rate"], betas=tuple(recipe["betas"]),
                                  eps=recipe["eps"], weight_decay=recipe["weight_decay"], fused=True)
    losses = [step(net, optimizer, case, case["steps"][0])]
    started, cpu_started = time.perf_counter(), time.process_time()
    losses += [step(net, optimizer, case, windows) for windows in case["steps"][1:]]
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
    events = sum(len(w["events"]) for windows in case["steps"][1:] for w in windows)
    print(json.dumps({
        "events_per_s": events / seconds, "seconds_per_step": seconds / (len(losses) - 1),
        "events_per_cpu_s": events / cpu_seconds, "steps": len(losses),
        "batch": len(case["steps"][0]), "window": case["spec"]["window"],
        "parameters": sum(p.numel() for p in net.parameters()), "threads": args.threads, "losses": losses,
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, "torch": torch.__version__}))


if __name__ == "__main__":
    main()
