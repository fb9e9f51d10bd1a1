#!/usr/bin/env python3
"""Prints the Markdown table of scripts/compare/pituning --stage tune: DIR has ours.N.json and torch.N.json for N of 1..ROUNDS,
CASE what was tuned, with our losses.

A person's time is that of the windows passed: PyTorch may have tuned fewer people, so users/hour are those of the mean
person, by windows. Exit code 1 if the losses of anybody's first step are 1e-4 apart or further, if the last ones are
further apart than a tenth of what tuning has won, or if the two did not make the same number of steps.
"""

import json
import pathlib
import statistics
import sys

FIRST, LAST = 1e-4, 0.1


def compare(case, torch):
    """How far first, last and all losses are apart; how much a person's loss falls from the first step to the last."""
    first, last, won = [], [], []
    for person in case["people"][:torch["users"]]:
        ours, theirs = person["losses"], torch["losses"][person["user"]]
        if len(ours) != len(theirs):
            sys.exit(f"{person['user']}: {len(ours)} and {len(theirs)} steps")
        begins = [0, len(person["passes"][0]["steps"])][:len(person["passes"])]
        first.append(abs(ours[0] - theirs[0]))
        last.append(abs(ours[-1] - theirs[-1]))
        # Of the last pass: the first one's loss is another.
        won.append(ours[begins[-1]] - ours[-1])
    return first, last, won


def main():
    if len(sys.argv) != 4 or not sys.argv[2].isdigit():
        sys.exit(__doc__.strip())
    folder, rounds = pathlib.Path(sys.argv[1]), range(1, int(sys.argv[2]) + 1)
    case = json.loads((pathlib.Path(sys.argv[3]) / "case.json").read_text())
    ours, torch = ([json.loads((folder / f"{name}.{n}.json").read_text()) for n in rounds] for name in ("ours", "torch"))
    one = torch[0]
    for key in ("own_parameters", "student_parameters"):
        if ours[0][key] != one[key]:
            sys.exit(f"{key}: {ours[0][key]} and {one[key]}, not the same model")
    first, last, won = compare(case, one)
    if not max(first) < FIRST:
        sys.exit(f"somebody's first losses are {max(first)} apart: not the same model")
    if not statistics.mean(last) < LAST * abs(statistics.mean(won)):
        sys.exit(f"the last losses are {statistics.mean(last)} apart, tuning wins {statistics.mean(won)}: not the same training")
    windows = [sum(len(step) for p in person["passes"] for step in p["steps"]) for person in case["people"]]
    # Seconds of all people as if PyTorch had tuned them too.
    longer = sum(windows) / sum(windows[:one["users"]])
    people = ours[0]["users"] - ours[0]["users_put_aside"]
    ways = {
        f"Myriad, {ours[0]['users_in_flight']} people at once": [(r["together_seconds"][0], r["together_cpu_seconds"][0]) for r in ours],
        "Myriad, one after another": [(r["one_by_one_seconds"][0], r["one_by_one_cpu_seconds"][0]) for r in ours],
        f"PyTorch {one['torch']}, one after another": [(r["seconds"] * longer, r["cpu_seconds"] * longer) for r in torch],
    }
    base = list(ways.values())[-1]
    ratio = lambda taken, which: statistics.median(b[which] / t[which] for b, t in zip(base, taken, strict=True))
    print(f"{people} people, {one['users']} of them by PyTorch; student of {one['student_parameters']} parameters, "
          f"{one['own_parameters']} a person; {sum(windows) / len(windows):.0f} windows and "
          f"{one['steps'] / one['users']:.1f} steps a person\n")
    print("| | users/hour, median | smallest to largest | PyTorch's time / this | users per hour of processor time "
          "| PyTorch's / this |\n|---|---|---|---|---|---|")
    for name, taken in ways.items():
        rates = [people / seconds * 3600 for seconds, _ in taken]
        cpu = statistics.median(people / cpu_seconds * 3600 for _, cpu_seconds in taken)
        print(f"| {name} | {statistics.median(rates):.0f} | {min(rates):.0f} to {max(rates):.0f} | {ratio(taken, 0):.2f} | "
              f"{cpu:.0f} | {ratio(taken, 1):.2f} |")
    print(f"\nLosses apart, largest of all people: first step {max(first):.1e}, last step {max(last):.1e} (mean "
          f"{statistics.mean(last):.1e}; tuning takes {statistics.mean(won):.3f} off)")


if __name__ == "__main__":
    main()
