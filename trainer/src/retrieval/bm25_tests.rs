//! BM25 against rank_bm25, against the study's formula, and against indexes that never saw the later documents.

use super::*;
use proptest::prelude::*;

const CORPUS: [&str; 5] = [
    "description: a robot dreams of the sea tag: sci-fi\n",
    "description: two friends travel the sea tag: comedy\n",
    "description: a war in the desert tag: violence\n",
    "description: the robot falls in love tag: romance\n",
    "description: robot robot robot war tag: action\n",
];
const QUERY: &str = "description: a robot at war";

const LONGER: [&str; 20] = [
    "w7 w1 w3 w2 w1 w5 w1 w3",
    "w0 w0 w3 w9 w1 w1 w8",
    "w6",
    "w3 w6 w7 w6 w1 w0 w5 w2 w4",
    "w2 w0 w4 w3 w4 w6",
    "w0 w4 w4 w7 w0 w4 w0",
    "w2",
    "w1 w0",
    "w1 w0 w8 w10 w9 w0",
    "w2 w8",
    "w6",
    "w2 w3 w6 w5 w6 w5 w6",
    "w0 w2 w8 w6 w3 w1 w2 w3",
    "w5 w0 w1 w1",
    "w4",
    "w5 w7 w8 w6 w3 w10 w0 w8",
    "w5 w3 w10 w1 w0 w2 w0 w5 w7",
    "w0 w1 w4 w1 w2 w2",
    "w2 w9 w2",
    "w2 w8 w2",
];
const LONGER_QUERY: &str = "w3 w9 w6 w4 w4 w1 w5 w12";

fn close(got: &[f64], expected: &[f64]) {
    assert_eq!(got.len(), expected.len());
    // A few roundings apart: the platform's ln, numpy's order of sums.
    assert!(got.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-14), "{got:?}");
}

/// Made by rank_bm25 0.2.2 (numpy 2.4.6): `BM25Okapi([d.split(" ") for d in docs[:n]]).get_scores(q.split(" "))`.
#[test]
fn golden_okapi() {
    let index = Index::new(Split::Spaces, &CORPUS);
    close(&index.okapi(1, QUERY), &[-0.8239592165010821]);
    close(&index.okapi(2, QUERY), &[-0.12061029099131458, -0.1271691587793619]);
    let three = [0.47236534744883185, -0.010924197458758143, 0.4983406313207635];
    close(&index.okapi(3, QUERY), &three);
    let four = [0.05311701199047475, 0.0560543582756623, 0.9150660139677582, 0.0560543582756623];
    close(&index.okapi(4, QUERY), &four);
    let five = [
        0.5303760510876339,
        0.11186873367005018,
        0.784813206912476,
        0.22373746734010036,
        0.6675256172756825,
    ];
    close(&index.okapi(5, QUERY), &five);
    assert_eq!(index.okapi(0, QUERY), [0.0; 0]);
    // Methods 4.4: mean idf of document 1 alone, and of all.
    assert!((index.floor(1) / EPSILON + 1.098_612).abs() < 1e-6);
    assert!((index.floor(5) / EPSILON - 0.447_475).abs() < 1e-6);
}

#[test]
fn golden_okapi_with_negative_and_floored_idf() {
    let index = Index::new(Split::Spaces, &LONGER);
    close(&index.okapi(1, LONGER_QUERY), &[-1.1247697241125882]);
    close(&index.okapi(2, LONGER_QUERY), &[-0.3055865576600916, -0.2505474212768489]);
    let seven = [
        1.1612965440539131,
        1.7353686253197926,
        0.3984253131282658,
        1.585410714836558,
        1.0396104413994651,
        0.7872500163016336,
        0.0,
    ];
    close(&index.okapi(7, LONGER_QUERY), &seven);
    let twenty = index.okapi(20, LONGER_QUERY);
    close(
        &twenty[..4],
        &[1.3639623800766594, 1.9225657497970547, 0.9171139452373489, 3.1873555527493753],
    );
    close(&twenty[16..], &[1.329059681876564, 2.1471347265988383, 1.9562228769917245, 0.0]);
    assert!((index.floor(7) / EPSILON - 0.397244592623203).abs() < 1e-14);
}

/// Made by the study's definition in numpy.
#[test]
fn golden_study() {
    let index = Index::new(Split::Whitespace, &CORPUS);
    let scores = [
        1.421516321965649,
        0.0870113769896297,
        1.8379488516974296,
        0.6260078777223168,
        1.947152286486751,
    ];
    close(&index.study(5, QUERY), &scores);
    let longer = Index::new(Split::Whitespace, &LONGER).study(20, LONGER_QUERY);
    close(&longer[3..6], &[5.221054228405773, 5.349137228803388, 4.0469156431125795]);
    // A word asked for twice counts twice.
    let (once, twice) = (index.study(5, "love")[3], index.study(5, "love love")[3]);
    assert!(once > 0.0);
    assert_eq!((2.0 * once).to_bits(), twice.to_bits());
}

#[test]
fn words_are_pythons() {
    let words = |split: Split, text| split.words(text).collect::<Vec<_>>();
    assert_eq!(words(Split::Spaces, " a  b\n"), ["", "a", "", "b\n"]);
    assert_eq!(words(Split::Spaces, ""), [""]);
    assert_eq!(words(Split::Whitespace, " a \t b\n\u{a0}c\u{1f}d\u{3000}"), ["a", "b", "c", "d"]);
    assert_eq!(words(Split::Whitespace, " \n"), [""; 0]);
    // Zero-width space is white space to neither.
    assert_eq!(words(Split::Whitespace, "a\u{200b}b"), ["a\u{200b}b"]);
}

#[test]
fn empty_words_count_and_unknown_words_do_not() {
    let index = Index::new(Split::Spaces, &["a  b", "c", "d e"]);
    assert_eq!(index.lengths, [3, 1, 2]);
    assert!(index.okapi(3, " ")[0] > 0.0);
    assert_eq!(index.okapi(3, "zebra"), [0.0; 3]);
    let (once, twice) = (index.okapi(3, "c")[1], index.okapi(3, "c c")[1]);
    assert!((2.0 * once - twice).abs() < 1e-15);
}

#[test]
fn empty_documents() {
    for split in [Split::Spaces, Split::Whitespace] {
        let index = Index::new(split, &["", "  ", "a"]);
        for n in 0..3 {
            let (okapi, study) = (index.okapi(n, "a"), index.study(n, "a b"));
            assert_eq!((okapi, study), (vec![0.0; n], vec![0.0; n]));
        }
        assert!(index.study(3, "a")[2] > 0.0);
        assert!(index.okapi(3, " a").iter().all(|s| s.is_finite()));
    }
    let none = Index::new::<&str>(Split::Spaces, &[]);
    assert!(none.okapi(0, "a").is_empty() && none.study(0, "a").is_empty());
}

#[test]
fn words_that_share_their_head_are_told_apart() {
    let texts = ["abcdefgh", "abcdefghi", "abcdefg", "abcdefghj", "a", "a\0", "é", ""];
    let index = Index::new(Split::Spaces, &texts);
    for (number, text) in texts.iter().enumerate() {
        assert_eq!(index.dictionary.number(text), Some(number), "{text:?}");
    }
    for absent in ["abcdefgh\0", "abcdefghk", "a\0\0", "b", "\0"] {
        assert_eq!(index.dictionary.number(absent), None, "{absent:?}");
    }
}

/// The formulas word for word over a corpus of lists of words: nothing shared with the index but the constants.
mod plain {
    use super::{B, EPSILON, K1};

    type Corpus<'a> = [Vec<&'a str>];

    fn count(words: &[&str], word: &str) -> f64 {
        words.iter().filter(|w| **w == word).count() as f64
    }

    fn containing(corpus: &Corpus<'_>, word: &str) -> f64 {
        corpus.iter().filter(|d| d.contains(&word)).count() as f64
    }

    fn average(corpus: &Corpus<'_>) -> f64 {
        corpus.iter().map(Vec::len).sum::<usize>() as f64 / corpus.len() as f64
    }

    pub(super) fn okapi(corpus: &Corpus<'_>, query: &[&str]) -> Vec<f64> {
        let n = corpus.len() as f64;
        let mut vocabulary: Vec<&str> = Vec::new();
        for word in corpus.iter().flatten() {
            if !vocabulary.contains(word) {
                vocabulary.push(word);
            }
        }
        let raw = |word: &str| {
            let with = containing(corpus, word);
            (n - with + 0.5).ln() - (with + 0.5).ln()
        };
        let mut sum = 0.0;
        for word in &vocabulary {
            sum += raw(word);
        }
        let floor = EPSILON * (sum / vocabulary.len() as f64);
        let score = |document: &Vec<&str>| {
            let mut score = 0.0;
            for word in query {
                let idf = match vocabulary.contains(word) {
                    true if raw(word) < 0.0 => floor,
                    true => raw(word),
                    false => 0.0,
                };
                let f = count(document, word);
                let length = document.len() as f64;
                score +=
                    idf * (f * (K1 + 1.0) / (f + K1 * (1.0 - B + B * length / average(corpus))));
            }
            score
        };
        corpus.iter().map(score).collect()
    }

    pub(super) fn study(corpus: &Corpus<'_>, query: &[&str]) -> Vec<f64> {
        let n = corpus.len() as f64;
        let mut asked = query.to_vec();
        asked.sort_unstable();
        asked.dedup();
        let score = |document: &Vec<&str>| {
            let mut score = 0.0;
            for word in asked.iter().filter(|word| document.contains(word)) {
                let with = containing(corpus, word);
                let idf = ((n - with + 0.5) / (with + 0.5) + 1.0).ln();
                let (f, q) = (count(document, word), count(query, word));
                let length = document.len() as f64;
                score += idf * (f * (K1 + 1.0) * q)
                    / (f + K1 * (1.0 - B + B * length / average(corpus)));
            }
            score
        };
        corpus.iter().map(score).collect()
    }
}

fn bits(scores: &[f64]) -> Vec<u64> {
    // A sum of no terms may be -0 in neither.
    scores.iter().map(|s| s.to_bits()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn every_prefix_equals_its_own_corpus(
        texts in proptest::collection::vec("(abcdefgh)?[abc]{0,2}( |  |\t|\u{a0}|[a-e]|common ){0,12}", 0..14),
        query in "([a-e]|common|abcdefgha|zz)?( |  |\t| [a-e]| common| common){0,8}",
        backwards in any::<bool>(),
    ) {
        for split in [Split::Spaces, Split::Whitespace] {
            let index = Index::new(split, &texts);
            let corpus: Vec<Vec<&str>> = texts.iter().map(|t| split.words(t).collect()).collect();
            let asked: Vec<&str> = split.words(&query).collect();
            let mut prefixes: Vec<usize> = (0..=texts.len()).collect();
            // The order of requests must not matter to what is computed lazily.
            if backwards {
                prefixes.reverse();
            }
            for n in prefixes {
                let expected = plain::okapi(&corpus[..n], &asked);
                // Documents without words make 0/0 in the plain formula where no word is known.
                if expected.iter().all(|s| !s.is_nan()) {
                    prop_assert_eq!(bits(&index.okapi(n, &query)), bits(&expected));
                }
                prop_assert_eq!(bits(&index.study(n, &query)), bits(&plain::study(&corpus[..n], &asked)));
            }
        }
    }
}
