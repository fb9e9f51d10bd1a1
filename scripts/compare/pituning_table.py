#!/usr/bin/env python3
"""Prints the Markdown table of scripts/compare/pituning: DIR has ours.N.json and torch.N.json for N of 1..ROUNDS.

Exit code 1 if the two did not begin with the same loss: then they did not train the same model.
"""

import json
import pathlib
import statistics
import sys


def main():
    if len(sys.argv) != 3 or not sys.argv[2].isdigit():
        sys.exit(__doc__.strip())
    folder, rounds = pathlib.Path(sys.argv[1]), range(1, int(sys.argv[2]) + 1)
    results = {name: [json.loads((folder / f"{name}.{n}.json").read_text()) for n in rounds] for name in ("ours", "torch")}
    ours, torch = results["ours"][0], results["torch"][0]
    apart = [abs(a - b) for a, b in zip(ours["losses"], torch["losses"], strict=True)]
    if not apart[0] < 1e-4:
        sys.exit(f"the first losses are {ours['losses'][0]} and {torch['losses'][0]}: not the same model")
    if ours["parameters"] != torch["parameters"]:
        sys.exit(f"{ours['parameters']} and {torch['parameters']} parameters: not the same model")
    print(f"{ours['shape']}: {ours['parameters'] / 1e6:.2f} M parameters, {ours['batch']} windows of {ours['window']} "
          f"events a step, {ours['shards']} virtual shards\n")
    print("| | events/s, median | smallest to largest | ours / this | events per second of processor time | ours / this "
          "| first loss | last loss apart |\n|---|---|---|---|---|---|---|---|")
    median = lambda name, key: statistics.median(r[key] for r in results[name])
    ratio = lambda name, key: f"{median('ours', key) / median(name, key):.2f}"
    names = {"ours": "Myriad", "torch": f"PyTorch {torch['torch']}"}
    for name, shown in names.items():
        rates = [r["events_per_s"] for r in results[name]]
        last = f"{apart[-1]:.1e}" if name == "torch" else ""
        print(f"| {shown} | {median(name, 'events_per_s'):.0f} | {min(rates):.0f} to {max(rates):.0f} | "
              f"{ratio(name, 'events_per_s')} | {median(name, 'events_per_cpu_s'):.0f} | {ratio(name, 'events_per_cpu_s')} | "
              f"{results[name][0]['losses'][0]:.5f} | {last} |")


if __name__ == "__main__":
    main()
