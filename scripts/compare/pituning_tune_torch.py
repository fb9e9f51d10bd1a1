#!/usr/bin/env python3
"""Personal unlearning and tuning of the event model as one writes it in PyTorch: one person after another, on CPU.

--case DIR is what `launcher bench tune --dump DIR` wrote: the student, everybody's windows and losses, the windows and the
learning rate of every step, adapters at their start. The student is frozen; a person has LoRA on the products of its
blocks and changes of the intent table and of its biases, begun anew for everybody in the same tensors. A pass (unlearning,
then tuning) has an AdamW of its own. f32.

Written for speed: a person's windows are embedded once and indexed by step, padded to the longest window of the batch;
scaled_dot_product_attention, one product for queries, keys and values, the intention attention without the concatenation
that it multiplies by, fused AdamW, norms by one call over all tensors, and no number is read before a person is done. An
adapted product is x W' + scale x A' B' or x (W + scale B A)', whichever takes the first person less time; finding out does
not count. Time counted: everything from the first person's tensors to the last person's losses.

Prints one JSON line; `losses` are those of every step of everybody. Environment: scripts/golden/venv.
"""

import argparse
import array
import json
import pathlib
import resource
import sys
import time

sys.dont_write_bytecode = True

HARD, RETAIN, FORGET = 0, 3, 4
# Where a site of GPT-2 is in the student: the products' names in its files.
PRODUCTS = {"attn.c_attn": "qkv", "attn.c_proj": ("o",), "mlp.c_fc": ("fc",), "mlp.c_proj": ("proj",)}


def floats(path):
    import torch

    values = array.array("f", path.read_bytes())
    if sys.byteorder != "little":
        values.byteswap()
    return torch.tensor(values)


def cut(flat, tensors):
    """The tensors of a flat vector, in order."""
    at, found = 0, []
    for tensor in tensors:
        size = 1
        for n in tensor["dims"]:
            size *= n
        found.append(flat[at:at + size].reshape(tensor["dims"]))
        at += size
    if at != len(flat):
        sys.exit(f"{len(flat)} numbers, expected {at}")
    return found


class Student:
    """The frozen student with one person's part, whose tensors everybody uses in turn."""

    def __init__(self, case, flat):
        import torch

        spec = case["spec"]
        if (spec["combine"], spec["history"], spec["product"], spec["prediction"]) != ("concat", "last", "elementwise", "scalar"):
            sys.exit("written for concatenated columns, the last state, element-wise products and scalar predictions alone")
        self.given = dict(zip((t["name"] for t in case["tensors"]), cut(flat, case["tensors"]), strict=True))
        self.width, self.heads, self.layers, self.eps = spec["hidden"], spec["heads"], spec["layers"], spec["norm_eps"]
        self.columns = [self.given[f"columns.{c}"] for c in range(len(spec["columns"]))]
        self.scale, self.own, self.sites, self.merged = case["scale"], [], {}, False
        for tensor in case["adapter"]:
            self.own.append(torch.nn.Parameter(torch.zeros(tensor["dims"])))
            if "half" in tensor:
                self.sites.setdefault((tensor["layer"], tensor["target"]), []).append(self.own[-1])
        whole = [t["name"] for t in case["adapter"] if "half" not in t]
        if whole not in ([], ["intent.table.change", "intent.bias.change"]):
            sys.exit(f"whole tensors {whole}")
        self.changes = self.own[-2:] if whole else None
        self.products = {(layer, target): self.product(layer, names)
                         for layer in range(self.layers) for target, names in PRODUCTS.items()}
        w1 = self.given["intent.w1"]
        self.of_intent, self.of_product, self.of_history = (w1[:, n * self.width:(n + 1) * self.width] for n in range(3))

    def product(self, layer, names):
        import torch

        return tuple(torch.cat([self.given[f"layers.{layer}.{name}.{part}"] for name in names]) for part in ("weight", "bias"))

    def adapted(self, x, layer, target):
        import torch
        from torch.nn import functional as F

        weight, bias = self.products[layer, target]
        if (layer, target) not in self.sites:
            return F.linear(x, weight, bias)
        a, b = self.sites[layer, target]
        if self.merged:
            return F.linear(x, torch.addmm(weight, b, a, alpha=self.scale), bias)
        return F.linear(x, weight, bias) + F.linear(F.linear(x, a), b) * self.scale

    def norm(self, x, name):
        from torch.nn import functional as F

        return F.layer_norm(x, (self.width,), self.given[f"{name}.weight"], self.given[f"{name}.bias"], self.eps)

    def embedded(self, events):
        """Vectors [windows, positions, width] of events [windows, positions, columns]; frozen."""
        import torch
        from torch.nn import functional as F

        x = torch.cat([F.embedding(events[..., c], table) for c, table in enumerate(self.columns)], dim=-1)
        return x + self.given["positions"][:events.shape[1]]

    def logits(self, x, last):
        """Of windows of embedded events, each of which ends at `last`."""
        import torch
        from torch.nn import functional as F

        b, t, _ = x.shape
        for layer in range(self.layers):
            normed = self.norm(x, f"layers.{layer}.norm1")
            q, k, v = (p.view(b, t, self.heads, -1).transpose(1, 2)
                       for p in self.adapted(normed, layer, "attn.c_attn").chunk(3, dim=-1))
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(b, t, self.width)
            x = x + self.adapted(mixed, layer, "attn.c_proj")
            inner = self.adapted(self.norm(x, f"layers.{layer}.norm2"), layer, "mlp.c_fc")
            x = x + self.adapted(F.gelu(inner, approximate="tanh"), layer, "mlp.c_proj")
        h = self.norm(x[torch.arange(b), last], "norm")
        table, bias = self.given["intent.table"], self.given["intent.bias"]
        if self.changes:
            table, bias = table + self.changes[0], bias + self.changes[1]
        z = (h[:, None] * table) @ self.of_product.T + table @ self.of_intent.T
        z = z + (h @ self.of_history.T)[:, None] + self.given["intent.b1"]
        return F.prelu(z.transpose(1, 2), self.given["intent.slope"]).transpose(1, 2) @ self.given["intent.w2"] \
            + self.given["intent.b2"] + bias


class Pass:
    """The tensors of one pass of one person."""

    def __init__(self, given, student, table, intents):
        import torch

        windows = given["windows"]
        self.last = torch.tensor([len(w) - 2 for w in windows])
        longest = int(self.last.max()) + 1
        # Attention is causal: what a window is padded with behind its last event is seen by nobody.
        self.x = student.embedded(table[torch.tensor([w[:-1] + [0] * (longest + 1 - len(w)) for w in windows])])
        self.intents = torch.tensor([w[-1] for w in windows])
        self.rows = None
        if given["rows"]:
            rows = given["rows"]
            if any(r["kind"] not in (HARD, RETAIN, FORGET) or r["margin"] is None for r in rows):
                sys.exit("written for plain losses and bounded unlearning alone")
            column = lambda key: torch.tensor([float(r[key]) for r in rows])
            teacher = torch.tensor([r["teacher"] or [0.0] * intents for r in rows]).softmax(-1)
            soft = column("soft")[:, None]
            hard = torch.nn.functional.one_hot(torch.tensor([r["target"] for r in rows]), intents)
            forget = torch.tensor([r["kind"] == FORGET for r in rows])
            self.rows = (soft * teacher + (1 - soft) * hard, forget, column("beta"), column("margin"))
        lengths = self.last.tolist()
        self.steps = [(torch.tensor(step), max(lengths[i] for i in step) + 1) for step in given["steps"]]

    def loss(self, student, step):
        from torch.nn import functional as F

        index, longest = step
        z = student.logits(self.x[index, :longest], self.last[index])
        if self.rows is None:
            return F.cross_entropy(z, self.intents[index])
        target, forget, beta, margin = (part[index] for part in self.rows)
        entropy = -(target * F.log_softmax(z, dim=-1)).sum(-1)
        return entropy.where(~forget, beta * (margin - entropy).clamp(min=0)).mean()


def tune(student, person, start, table, intents):
    """Tunes one person; losses of the steps, and windows passed."""
    import torch

    with torch.no_grad():
        torch._foreach_copy_(student.own, start)
    losses, windows = [], 0
    for given in person["passes"]:
        lesson = Pass(given, student, table, intents)
        optimizer = torch.optim.AdamW(student.own, lr=given["rates"][0], betas=tuple(given["betas"]), eps=given["eps"],
                                      weight_decay=given["weight_decay"], fused=True)
        for step, rate in zip(lesson.steps, given["rates"], strict=True):
            optimizer.param_groups[0]["lr"] = rate
            loss = lesson.loss(student, step)
            optimizer.zero_grad()
            loss.backward()
            if given["clip_norm"] > 0:
                torch.nn.utils.clip_grad_norm_(student.own, given["clip_norm"], foreach=True)
            optimizer.step()
            losses.append(loss.detach())
            windows += len(step[0])
    return torch.stack(losses).tolist(), windows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", type=pathlib.Path, required=True, metavar="DIR")
    parser.add_argument("--users", type=int, help="the first so many people (default: all)")
    parser.add_argument("--threads", type=int, default=2, help="of PyTorch (default: %(default)s)")
    args = parser.parse_args()
    import torch

    torch.set_num_threads(args.threads)
    case = json.loads((args.case / "case.json").read_text())
    people = case["people"][:args.users]
    student = Student(case, floats(args.case / "student.bin"))
    starts = floats(args.case / "adapters.bin").reshape(len(case["people"]), -1)
    starts = [cut(start, case["adapter"]) for start in starts[:len(people)]]
    table, intents = torch.tensor(case["events"]), case["spec"]["intents"]
    taken = {}
    for _ in range(2):  # the first round pays for cold memory, the second one is kept
        for student.merged in (False, True):
            begun = time.process_time()
            tune(student, people[0], starts[0], table, intents)
            taken[student.merged] = time.process_time() - begun
    student.merged = taken[True] < taken[False]
    started, cpu_started = time.perf_counter(), time.process_time()
    tuned = [tune(student, person, start, table, intents) for person, start in zip(people, starts, strict=True)]
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
    print(json.dumps({
        "users": len(people), "users_per_hour": len(people) / seconds * 3600, "seconds": seconds,
        "cpu_seconds": cpu_seconds, "steps": sum(len(losses) for losses, _ in tuned),
        "windows": sum(windows for _, windows in tuned), "own_parameters": sum(p.numel() for p in student.own),
        "merged": student.merged,
        "student_parameters": sum(p.numel() for p in student.given.values()), "threads": args.threads,
        "losses": {person["user"]: losses for person, (losses, _) in zip(people, tuned, strict=True)},
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, "torch": torch.__version__}))


if __name__ == "__main__":
    main()
