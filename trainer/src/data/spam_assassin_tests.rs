//! Small invented mails in the package's layout.

use super::*;

/// A corpus of (group, name, mail).
fn folder(mails: &[(&str, &str, String)]) -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    for group in GROUPS.iter().chain(&["spam-1"]) {
        std::fs::create_dir_all(root.path().join("package/data").join(group)).unwrap();
    }
    for (group, name, mail) in mails {
        let path = root.path().join("package/data").join(group).join(name);
        use std::io::Write as _;
        std::fs::File::create(path).unwrap().write_all(mail.as_bytes()).unwrap();
    }
    root
}

fn mail(from: &str, day: u32, subject: &str, body: &str) -> String {
    format!(
        "From x@y  Thu Aug 22 14:23:39 2002\nFrom: {from}\nTo: Dora Lee <dora@x.org>, list@x.org\n\
         Subject: {subject}\nDate: Tue, {day:02} Oct 2002 09:00:00 +0100\n\n{body}\n"
    )
}

const BODY: &str = "Please look at the printer again, it smokes.";

fn texts<'a>(timeline: &'a Timeline, field: &str) -> Vec<&'a str> {
    timeline.events.iter().map(|e| e.item.field(field).unwrap()).collect()
}

#[test]
fn a_persons_mails_are_gathered_over_groups_in_time_order() {
    let ann = "Ann Bee <Ann@X.org>";
    let root = folder(&[
        ("hard-ham-1", "1.txt", mail(ann, 1, "[ILUG] First", BODY)),
        ("easy-ham-1", "2.txt", mail("ann@x.org (Ann Bee)", 3, "Third", BODY)),
        (
            "easy-ham-2",
            "1.txt",
            mail(ann, 2, "Second by Ann to Dora", &format!("{BODY} Dora Lee ann@x.org")),
        ),
        (
            "easy-ham-1",
            "9.txt",
            mail("cy@x.org", 2, "Other", "What Ann Bee and Dora said is quite right"),
        ),
        ("easy-ham-1", "3.json", mail(ann, 4, "No mail", BODY)),
        ("spam-1", "1.txt", mail(ann, 4, "Spam", BODY)),
    ]);
    let corpus = read(root.path(), Shape::EmailSubject).unwrap();
    for below in ["package", "package/data"] {
        assert_eq!(read(&root.path().join(below), Shape::EmailSubject).unwrap(), corpus);
    }
    assert!(corpus.left_out.is_empty(), "{:?}", corpus.left_out);
    let ann = corpus.timelines.iter().find(|t| t.events.len() == 3).unwrap();
    assert_eq!(texts(ann, "title"), ["First", "Second by [name] to [name]", "Third"]);
    assert_eq!(texts(ann, "date")[0], "2002-10-01T08:00:00Z");
    assert_eq!(
        texts(ann, "text")[1],
        format!("{BODY} [name] [name] [address]").replace("[name] [name]", "[name]")
    );
    let cy = corpus.timelines.iter().find(|t| t.events.len() == 1).unwrap();
    // Ann is not in this mail's headers, but her whole name is known.
    assert_eq!(texts(cy, "text"), ["What [name] and [name] said is quite right"]);
    let query = ann.events[2].query.as_ref().unwrap();
    assert_eq!(query.field("gold"), Some("Third"));
    assert_eq!(
        query.field("input").unwrap(),
        format!("Generate a subject for the following email: {BODY}")
    );
    assert!(!format!("{corpus:?}").to_lowercase().contains("x.org"));
}

#[test]
fn what_makes_no_item_is_counted_by_rule() {
    let ann = "ann@x.org";
    let no_date = mail(ann, 1, "a", BODY).replace("Date:", "X-Date:");
    let html = mail(ann, 1, "a", BODY).replace("Subject:", "Content-Type: text/html\nSubject:");
    let mails = [
        ("replies and mails passed on: the subject is another's", mail(ann, 1, "Re: x", BODY)),
        ("mails without a sender's address", mail("nobody", 1, "x", BODY)),
        ("mails without a readable Date", no_date),
        ("mails without plain text", html),
        ("mails without a subject", mail(ann, 1, "[] ...", BODY)),
        ("subjects in encoded words", mail(ann, 1, "=?utf-8?q?x?=", BODY)),
        ("texts of fewer than five words", mail(ann, 1, "x", "one two three four http://x.org")),
        ("the text begins with its title", mail(ann, 1, "Please look", BODY)),
        ("a subject of the same person again", mail(ann, 2, "THE same", BODY)),
        ("", mail(ann, 1, "The same", BODY)),
    ];
    let names: Vec<String> = (0..mails.len()).map(|i| format!("{i}.txt")).collect();
    let all: Vec<_> =
        mails.iter().zip(&names).map(|((_, m), n)| ("easy-ham-1", n.as_str(), m.clone())).collect();
    let corpus = read(folder(&all).path(), Shape::EmailSubject).unwrap();
    let expected: BTreeMap<&str, u64> = mails[..9].iter().map(|(rule, _)| (*rule, 1)).collect();
    assert_eq!(corpus.left_out, expected);
    assert_eq!(
        (corpus.timelines.len(), texts(&corpus.timelines[0], "title")),
        (1, vec!["The same"])
    );
}

#[test]
fn feeds_are_headline_users_and_no_mail_users() {
    let feed = |name: &str, day, title: &str| {
        let body = format!(
            "URL: http://x.org/1\nDate: Not supplied\n\nThe mayor of Upton[1] opened a bridge on day {day}.\n\n[1] http://x.org"
        );
        mail(&format!("{name} <rssfeeds@x.org>"), day, title, &body)
    };
    let root = folder(&[
        ("easy-ham-1", "1.txt", feed("upton", 2, "Bridge &amp; mayor")),
        ("easy-ham-1", "2.txt", feed("upton", 1, "Re: a headline with a colon")),
        ("easy-ham-1", "3.txt", feed("downtown", 1, "Other")),
        ("easy-ham-1", "4.txt", feed("downtown", 1, "The mayor of Upton")),
        ("easy-ham-1", "5.txt", mail("ann@x.org", 1, "Mine", BODY)),
    ]);
    let corpus = read(root.path(), Shape::Headline).unwrap();
    assert_eq!(corpus.timelines.len(), 2);
    let upton = corpus.timelines.iter().find(|t| t.events.len() == 2).unwrap();
    assert_eq!(texts(upton, "title"), ["Re: a headline with a colon", "Bridge & mayor"]);
    assert_eq!(texts(upton, "text")[0], "The mayor of Upton opened a bridge on day 1.");
    assert_eq!(corpus.left_out, [("the text begins with its title", 1)].into());
    let mails = read(root.path(), Shape::EmailSubject).unwrap();
    assert_eq!((mails.timelines.len(), texts(&mails.timelines[0], "title")), (1, vec!["Mine"]));
}

#[test]
fn a_missing_corpus_names_what_was_tried() {
    let root = tempfile::tempdir().unwrap();
    let error = read(root.path(), Shape::Headline).unwrap_err().to_string();
    assert!(error.contains("easy-ham-1") && error.contains("package/data"), "{error}");
}
