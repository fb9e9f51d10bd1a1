//! What stands in front of a question: every retriever, order and ablation, seen in what a base without any training
//! answers. Equal probabilities mean equal prompts.

use super::*;
use std::collections::BTreeMap;

/// A story with the study's template for ratings and without a population stage.
fn study(arms: &str) -> Story {
    let story = world(RATING, "");
    let text =
        config(RATING, "study", "").replace("[population]\n", "[population]\nenabled = false\n");
    let all = "['base', 'rag', 'pag', 'population', 'personal', 'permuted']";
    story.put("config.toml", text.replace(all, arms).as_bytes());
    story
}

/// The answers of an arm under some keys.
fn answers(story: &Story, arm: &str, keys: &[&str]) -> String {
    let folder = keys.join("-");
    run(story, &folder, 0, keys).must(0);
    story.text(&format!("{folder}/predictions/{arm}.jsonl"))
}

/// Stops the test unless all texts differ.
fn distinct(texts: &BTreeMap<&str, String>) {
    for (name, text) in texts {
        let same = texts.iter().find(|(other, t)| *other != name && *t == text);
        assert!(same.is_none(), "{name} shows what {} shows", same.unwrap().0);
    }
}

const OWN: [&str; 7] =
    ["bm25-okapi", "bm25-lamp", "bm25-study", "recency", "random", "random-lamp", "mixed"];

#[test]
fn own_items_do_not_depend_on_other_users() {
    let story = study("['rag', 'personal']");
    let half = "data.personal_users=4";
    let mut rag = BTreeMap::new();
    for retriever in OWN {
        let key = format!("prompt.retriever={retriever}");
        let keys = [key.as_str(), "prompt.retrieved=2"];
        run(&story, retriever, 0, &keys).must(0);
        let few = format!("few-{retriever}");
        run(&story, &few, 0, &[&keys[..], &[half]].concat()).must(0);
        for (arm, all) in story.answers(retriever) {
            let kept: Vec<&str> = all.lines().take(4 * QUERIES).collect();
            let few = story.text(&format!("{few}/predictions/{arm}.jsonl"));
            assert!(few.lines().eq(kept), "{arm} with {retriever}: other users changed an answer");
        }
        rag.insert(retriever, story.text(&format!("{retriever}/predictions/rag.jsonl")));
    }
    // Words are parted by single spaces here, so the two spellings of Okapi are one.
    assert_eq!(rag.remove("bm25-lamp").unwrap(), rag["bm25-okapi"]);
    distinct(&rag);
}

#[test]
fn items_of_anybody_are_the_same_on_any_number_of_ranks() {
    let story = study("['rag', 'personal']");
    let mut rag = BTreeMap::new();
    for retriever in ["full_random", "ranbm25"] {
        let key = format!("prompt.retriever={retriever}");
        let keys = [key.as_str(), "prompt.retrieved=2", "prompt.pool_items=12"];
        run(&story, retriever, 0, &keys).must(0);
        let ranks = format!("ranks-{retriever}");
        run(&story, &ranks, 3, &keys).must(0);
        assert!(story.answers(retriever) == story.answers(&ranks), "{retriever}");
        let seed = answers(&story, "rag", &[&keys[..], &["prompt.retrieval_seed=7"]].concat());
        rag.insert(retriever, story.text(&format!("{retriever}/predictions/rag.jsonl")));
        assert_ne!(rag[retriever], seed, "{retriever} takes no seed");
    }
    distinct(&rag);
}

#[test]
fn orders_amounts_and_ablations() {
    let story = study("['rag']");
    let of = |keys: &[&str]| answers(&story, "rag", keys);
    let orders = ["start", "end", "middle", "random"];
    let orders =
        orders.map(|order| (order, of(&["prompt.retrieved=3", &format!("prompt.order={order}")])));
    distinct(&orders.into());

    let ablations = ["both", "only_input", "only_output"];
    let ablations = ablations.map(|ablation| {
        let key = format!("prompt.ablation={ablation}");
        (ablation, of(&["prompt.retrieved=2", "prompt.retriever=recency", &key]))
    });
    distinct(&ablations.clone().into());
    // The newest items are the newest whatever they are found by.
    let decoupled =
        of(&["prompt.retrieved=2", "prompt.retriever=recency", "prompt.ablation=decouple"]);
    assert_eq!(decoupled, BTreeMap::from(ablations)["only_output"]);

    let amounts = [
        ("none", answers(&story, "base", &["prompt.retrieved=0", "run.arms=['base']"])),
        ("one", of(&["prompt.retrieved=1"])),
        ("share", of(&["prompt.retrieved_share=0.9"])),
        ("passed over", of(&["prompt.retrieved=1", "prompt.offset=1"])),
    ];
    distinct(&amounts.into());
}

#[test]
fn mixing_a_retriever_with_itself_changes_nothing() {
    let story = study("['rag']");
    let mixed = |inputs: &str, outputs: &str| {
        let (inputs, outputs) = (
            format!("prompt.input_retriever={inputs}"),
            format!("prompt.output_retriever={outputs}"),
        );
        answers(&story, "rag", &["prompt.retrieved=2", "prompt.retriever=mixed", &inputs, &outputs])
    };
    let plain = answers(&story, "rag", &["prompt.retrieved=2", "prompt.retriever=bm25-study"]);
    assert_eq!(mixed("bm25-study", "bm25-study"), plain);
    let texts = [
        ("plain", plain),
        ("inputs", mixed("random", "bm25-study")),
        ("outputs", mixed("bm25-study", "random")),
    ];
    distinct(&texts.into());
}
