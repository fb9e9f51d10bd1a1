//! Small invented conversations in the package's format.

use super::*;
use crate::data::timeline::Cut;

fn folder(text: &str) -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    std::fs::create_dir(root.path().join("chitchat_dataset")).unwrap();
    use std::io::Write as _;
    let mut file = File::create(root.path().join("chitchat_dataset/dataset.json")).unwrap();
    file.write_all(text.as_bytes()).unwrap();
    root
}

fn message(sender: &str, second: u32, text: &str) -> serde_json::Value {
    let timestamp = format!("2018-05-02T19:38:{second:02}Z");
    serde_json::json!({"text": text, "timestamp": timestamp, "sender": sender})
}

fn corpus(messages: &[serde_json::Value]) -> Corpus {
    let text = serde_json::json!({"c": {"messages": [messages], "start": "x"}}).to_string();
    read(folder(&text).path()).unwrap()
}

#[test]
fn people_are_gathered_over_conversations_in_time_order() {
    let text = serde_json::json!({
        "late": {"ratings": {"witty": "1"}, "prompt": "?", "start": "2018-04-20T01:57:41",
            "messages": [[message("ann", 30, "three"), message("bob", 31, "mine")], [message("ann", 40, "four")]]},
        "early": {"messages": [[message("ann", 10, " one\n  line ")], [], [message("ann", 30, "two")]]},
    });
    let root = folder(&text.to_string());
    let corpus = read(root.path()).unwrap();
    // The three ways to name the corpus.
    for path in ["chitchat_dataset", "chitchat_dataset/dataset.json"] {
        assert_eq!(read(&root.path().join(path)).unwrap(), corpus);
    }
    assert_eq!((corpus.timelines.len(), corpus.num_unreadable), (2, 0));
    let texts = |t: &Timeline| -> Vec<String> {
        t.events.iter().map(|e| e.item.field("text").unwrap().to_owned()).collect()
    };
    let ann = corpus.timelines.iter().find(|t| t.events.len() == 4).unwrap();
    // Equal times: by conversation ("early" before "late"), not by place in the file.
    assert_eq!(texts(ann), ["one line", "two", "three", "four"]);
    assert_eq!(ann.events[0].item.field("date"), Some("2018-05-02T19:38:10Z"));
    let ids: std::collections::BTreeSet<_> =
        corpus.timelines.iter().flat_map(|t| &t.events).map(|e| &e.item.id).collect();
    assert_eq!(ids.len(), 5, "ids are unique in the corpus");
    assert!(corpus.timelines.iter().all(|t| t.id.as_str() != "ann" && t.id.as_str().len() == 16));
    assert!(corpus.timelines.is_sorted_by(|a, b| a.id < b.id));
}

#[test]
fn a_question_is_the_flattened_message_and_its_answer_the_message() {
    let corpus = corpus(&[message("ann", 1, "Sooo I'm gonna watch it lol!!")]);
    let event = &corpus.timelines[0].events[0];
    let query = event.query.as_ref().unwrap();
    let flat = "so i am going to watch it";
    assert_eq!(query.field("text"), Some(flat));
    assert_eq!(query.field("gold"), event.item.field("text"));
    let input = query.field("input").unwrap();
    let marker = "following tweet without any explanation before or after it: ";
    assert_eq!(input.split_once(marker).unwrap().1, flat);
    assert_eq!(query.id, event.item.id);
}

#[test]
fn messages_that_copying_would_answer_make_no_question() {
    for (text, asks) in [
        ("I LIKE the movie, too!!!", false), // case and punctuation are not scored
        ("i like the movie too", false),
        ("lol u ok", false),           // three words
        ("lol haha wow omg u", false), // too little is left
        ("u like the movie too", true),
        ("i don't like it", true), // "don t" and "do not"
    ] {
        let corpus = corpus(&[message("ann", 1, text)]);
        assert_eq!(corpus.timelines[0].events[0].query.is_some(), asks, "{text}");
    }
}

#[test]
fn bad_conversations_are_named_and_the_others_read() {
    let ok = message("ann", 1, "hello");
    let no_time = serde_json::json!({"text": "x", "timestamp": "yesterday", "sender": "ann"});
    let text = serde_json::json!({
        "c1": {"messages": [[ok, no_time, message("", 1, "x"), message("bob", 1, " ")]]},
        "c2": {"messages": [[{"text": 5, "timestamp": "x", "sender": "y"}]]},
        "c3": [],
        "c4": {"messages": [[ok]]},
    });
    let corpus = read(folder(&text.to_string()).path()).unwrap();
    assert_eq!((corpus.timelines.len(), corpus.timelines[0].events.len()), (1, 2));
    assert_eq!(corpus.left_out, [("messages without text", 1)].into());
    let listed: Vec<String> = corpus.unreadable.iter().map(ToString::to_string).collect();
    assert_eq!(listed.len() as u64, corpus.num_unreadable);
    let parts = [
        "\"c1\" message 1: the timestamp \"yesterday\"",
        "\"c1\" message 2: the sender",
        "\"c2\": invalid type",
        "\"c3\": ",
    ];
    assert_eq!(listed.len(), parts.len(), "{listed:?}");
    for (said, part) in listed.iter().zip(parts) {
        assert!(said.contains(part), "{said}");
    }
}

#[test]
fn what_is_not_the_corpus_is_refused() {
    let refused = |text: &str| read(folder(text).path()).unwrap_err().to_string();
    assert!(refused("[1]").contains(":1: not the corpus"), "{}", refused("[1]"));
    assert!(refused("{\"a\":\n {").contains(":2: not the corpus"));
    assert!(refused("{} x").contains("not the corpus"));
    let nowhere = read(Path::new("/no/such/folder")).unwrap_err().to_string();
    assert!(nowhere.contains("/no/such/folder/chitchat_dataset/dataset.json"), "{nowhere}");
}

#[test]
fn a_person_becomes_a_user() {
    let messages: Vec<_> =
        (0..10).map(|i| message("ann", i, &format!("u know i like number {i}"))).collect();
    let cut = Cut {
        held_out_percent: 20,
        min_history: 8,
        max_history: 3,
        min_queries: 2,
        max_queries: 1,
    };
    let user = cut.record(corpus(&messages).timelines.remove(0)).unwrap();
    let text = |i: &crate::data::Item| i.field("gold").or(i.field("text")).unwrap().to_owned();
    let history: Vec<_> = user.history.iter().map(text).collect();
    assert_eq!(history, [5, 6, 7].map(|i| format!("u know i like number {i}")));
    assert_eq!(user.queries.iter().map(text).collect::<Vec<_>>(), ["u know i like number 8"]);
}
