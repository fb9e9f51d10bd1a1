#!/usr/bin/env python3
"""Prints the Markdown table of scripts/compare/run: our numbers beside transformers + PEFT's on the same users.

Each NAME=FILE is a row; the first is ours (the JSON of `launcher bench train`), the rest are JSON files of
peft_sequential.py. The ratio is users/hour of ours to that row's. The loss column is the largest difference of a user's
final loss from ours. Exit code 1 if a row trained other users than ours.
"""

import argparse
import json
import pathlib
import sys


def row(name, result, ours):
    users = result["final_losses"]
    if users.keys() != ours["final_losses"].keys():
        sys.exit(f"{name} trained other users than ours: {len(users)} and {len(ours['final_losses'])}")
    largest = max(abs(loss - ours["final_losses"][user]) for user, loss in users.items())
    memory = result.get("peak_rss_bytes")
    cells = [name, len(users), f"{result['users_per_hour']:.0f}", f"{result['tokens_per_s']:.0f}",
             f"{memory / 2**30:.2f}" if memory else "-", f"{sum(users.values()) / len(users):.4f}"]
    cells += ["", ""] if result is ours else [f"{ours['users_per_hour'] / result['users_per_hour']:.2f}", f"{largest:.1e}"]
    return "| " + " | ".join(map(str, cells)) + " |"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="+", metavar="NAME=FILE")
    rows = [argument.partition("=") for argument in parser.parse_args().rows]
    results = [(name, json.loads(pathlib.Path(file).read_text())) for name, _, file in rows]
    ours = results[0][1]
    print("| | users | users/hour | tokens/s | peak GiB | mean final loss | ours is faster by | largest loss difference |")
    print("|---|--:|--:|--:|--:|--:|--:|--:|")
    for name, result in results:
        print(row(name, result, ours))


if __name__ == "__main__":
    main()
