#!/usr/bin/env python3
"""Makes tests/golden/lamp_metrics/cases.json: LaMP's metrics as its libraries compute them.

  rouge    pairs (reference, prediction) with ROUGE-1 F and ROUGE-L F of rouge-score without stemmer
  labels   golds and predictions over a label list: accuracy and macro-F1 by LaMP's rules, and the user-profile study's
  ratings  golds and predictions: MAE and RMSE by LaMP's rules, and the study's

Labels and ratings go through scikit-learn. Texts are seeded; they hold accents, other scripts, letters whose lower case
is ASCII, separators that Python strips, empty texts. The same versions give the same bytes. Versions:
scripts/golden/requirements.txt, installed by scripts/golden/venv.
"""

import argparse
import json
import pathlib
import random

from rouge_score import rouge_scorer
from sklearn.metrics import accuracy_score, f1_score, mean_absolute_error, mean_squared_error

ROOT = pathlib.Path(__file__).resolve().parents[2]
WORDS = """the a of to and in quick brown fox jumps over lazy dog sea robot dreams travel war desert love tag sci-fi
10 3.5 2024-05-01 COVID-19 what's don't U.S. e-mail Élan élan naïve Zürich straße STRASSE Привет мир 天气 你好 مرحبا नमस्ते
\u212aelvin \u0130stanbul ﬁne １２ x² ½ ª🙂 a_b C++ #tag @user https://x.y/z?q=1 ... -- "quoted" (in) [1] Ways Cook Eggs""".split()
SPACES = [" ", " ", " ", " ", "  ", "\n", "\t", "\u00a0", "\u2003", "\x1c", ", ", "; "]
LABELS = ["sci-fi", "based on a book", "comedy", "action", "true story"]
FIXED = [
    ("The quick brown fox jumps", "the brown quick fox"),
    ("COVID-19: what's next?", "What is next for COVID 19"),
    ("Élan vital", "elan vital"),
    ("10 Ways To Cook", "Ways to Cook 10 Eggs"),
    ("", ""), ("a", ""), ("", "a"), ("...", "..."), ("天气", "天气"), ("a a a b", "a b a a a"),
]


def text(draw, longest):
    """Words and what stands between them."""
    return "".join(draw.choice(WORDS) + draw.choice(SPACES) for _ in range(draw.randrange(longest + 1)))


def near(draw, reference):
    """A prediction that shares words with its reference."""
    words = [word for word in reference.split() if draw.random() < 0.8]
    if draw.random() < 0.4:
        draw.shuffle(words)
    words += [draw.choice(WORDS) for _ in range(draw.randrange(4))]
    joined = draw.choice(SPACES).join(words)
    return draw.choice([str.upper, str.lower, str.title, str])(joined)


def rouge(draw):
    scorer = rouge_scorer.RougeScorer(["rouge1", "rougeL"], use_stemmer=False)
    pairs = list(FIXED)
    for number in range(390):
        reference = text(draw, 60 if number % 10 == 0 else 16)
        pairs.append((reference, near(draw, reference) if draw.random() < 0.8 else text(draw, 16)))
    for reference, prediction in pairs:
        scores = scorer.score(reference, prediction)
        yield [reference, prediction, float(scores["rouge1"].fmeasure), float(scores["rougeL"].fmeasure)]


def index(labels, answer):
    return labels.index(answer) if answer in labels else -1


def labels(draw):
    """LaMP: strip, fixed label list. The study: as it is, the classes that occur."""
    for number in range(60):
        names = draw.sample(LABELS, draw.randrange(2, len(LABELS) + 1))
        count = 4 if number == 0 else draw.randrange(1, 40)
        golds = [draw.choice(names) for _ in range(count)]
        noise = ["", "zzz", "Comedy", draw.choice(names) + " ", "\n" + draw.choice(names), "\x1f" + draw.choice(names)]
        answers = [draw.choice([gold, gold, draw.choice(names), draw.choice(noise)]) for gold in golds]
        if number == 0:
            names, golds, answers = ["a", "b", "c", "d"], ["a", "b", "b", "c"], ["a", "b", "a", "zzz"]
        official = [[index(names, text.strip()) for text in texts] for texts in (golds, answers)]
        study = [[index(names, text) for text in texts] for texts in (golds, answers)]
        yield {
            "labels": names, "golds": golds, "answers": answers,
            "accuracy": float(accuracy_score(*official)),
            "macro_f1": float(f1_score(*official, labels=list(range(len(names))), average="macro", zero_division=0)),
            "compat_accuracy": float(accuracy_score(golds, answers)),
            "compat_macro_f1": float(f1_score(*study, average="macro", zero_division=0)),
        }


def parsed(gold, answer, otherwise):
    try:
        return float(answer)
    except ValueError:
        return otherwise(gold)


def farther(gold):
    return 1.0 if abs(1 - gold) > abs(5 - gold) else 5.0


def ratings(draw):
    for _ in range(40):
        golds = [str(draw.randrange(1, 6)) for _ in range(draw.randrange(1, 40))]
        odd = ["", "good", "4 stars", "five", " 3\n", "2.5", "1e0", "+4", ".5", "4.", "\x1f5", "-1"]
        answers = [draw.choice([gold, str(draw.randrange(1, 6)), draw.choice(odd)]) for gold in golds]
        true = [float(gold) for gold in golds]
        case = {"golds": golds, "answers": answers}
        for prefix, otherwise in (("", farther), ("compat_", lambda gold: gold - 5.0)):
            values = [parsed(gold, answer.strip(), otherwise) for gold, answer in zip(true, answers)]
            case[prefix + "mae"] = float(mean_absolute_error(true, values))
            case[prefix + "rmse"] = float(mean_squared_error(true, values)) ** 0.5
        yield case


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "tests" / "golden" / "lamp_metrics",
                        help="default: tests/golden/lamp_metrics")
    args = parser.parse_args()
    draw = random.Random(20240)
    parts = []
    for make in (rouge, labels, ratings):
        lines = ",\n".join(json.dumps(case, ensure_ascii=True) for case in make(draw))
        parts.append(f'"{make.__name__}": [\n{lines}\n]')
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "cases.json").write_text("{" + ",\n".join(parts) + "}\n")


if __name__ == "__main__":
    main()
