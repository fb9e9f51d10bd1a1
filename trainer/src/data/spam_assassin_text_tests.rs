//! The rules of `spam_assassin_text.rs`, one by one.

use super::*;

#[test]
fn own_words_are_what_the_author_wrote() {
    let body = "Hello,\n\nOn Mon, 7 Oct 2002 at 10:00,\nAnn Bee wrote:\n\n> quoted\n AB> quoted too\n| and this\n\
        My   answer.\nCy writes:\n>x\nHash: SHA1\nEnd.\n-- \nCy, tel 1\n";
    assert_eq!(
        own_words(body),
        "Hello, On Mon, 7 Oct 2002 at 10:00, My answer. End."
            .replace("On Mon, 7 Oct 2002 at 10:00, ", "")
    );
    for end in [
        "--",
        "_______________________",
        "-----Original Message-----",
        "-----BEGIN PGP SIGNATURE-----",
        "------------------------ Yahoo! Groups Sponsor ---------------------~-->",
    ] {
        assert_eq!(own_words(&format!("a\n{end}\nb")), "a", "{end}");
    }
    for kept in ["-- not a signature", "__init__", "a > b", "ABCDE> text", "--- a rule ---"] {
        assert_eq!(own_words(&format!("a\n{kept}\nb")), format!("a {kept} b"));
    }
}

#[test]
fn entries_lose_links_and_marks() {
    let body = "URL: http://x.org/1\nDate: Not supplied\n\n_Ann_: Finding&#8220;More&#x201D; Channels[1]. 5 < 6 &amp; <b>so</b>\n\
        on [sic] *World latest: *\n[IMG: http://x.org/i.gif]\n\n[1] http://x.org/2\n[12] http://x.org/3\n";
    assert_eq!(entry(body), "Ann: Finding“More” Channels. 5 < 6 & so on [sic] World latest:");
    assert_eq!(
        headline("<strong>More\n  News</strong> &bogus; &#0; & &"),
        "More News &bogus; &#0; & &"
    );
}

#[test]
fn subjects_of_others_are_known() {
    for (header, cleaned, own) in [
        ("[ILUG] [x] cups  question", "cups question", true),
        ("Re: cups", "Re: cups", false),
        ("[ILUG] RE : cups", "RE : cups", false),
        ("Re[2]: cups", "Re[2]: cups", false),
        ("Fwd: cups", "Fwd: cups", false),
        ("A thing (fwd)", "A thing (fwd)", false),
        ("Regarding: cups", "Regarding: cups", true),
        ("[whole]", "[whole]", true),
        ("", "", true),
    ] {
        assert_eq!(subject(header), (cleaned.to_owned(), own), "{header}");
    }
}

#[test]
fn titles_that_begin_the_text_are_seen() {
    assert!(begins_with("NY Times piece[1] on reporters.", "NY Times piece"));
    assert!(begins_with("“Halley”: when is", "Halley: When is"));
    assert!(!begins_with("A piece", "The piece"));
    assert!(!begins_with("Short", "Short title that goes on"));
}

#[test]
fn names_addresses_links_and_numbers_are_taken_out() {
    let mut people = People::default();
    people.add("Dan X. Bernstein");
    people.add("root");
    let text = "Ann's mail (ann@x.org) to Dan Bernstein, Dan, dan Bernstein: see <http://x.org/a>, www.x.org \
        or +44-123-4567. Bee! 2002, 3.14159265";
    let expected = "[name]'s mail ([address]) to [name], Dan, dan Bernstein: see <[link]>, [link] \
        or [number]. [name]! 2002, [number]";
    assert_eq!(people.taken_out(text, &["Ann \"Q\" Bee", "al"]), expected);
    assert_eq!(people.taken_out("", &[]), "");
    assert_eq!(people.taken_out("''' ... Dan", &[]), "''' ... Dan");
}

proptest::proptest! {
    #[test]
    fn any_text_is_taken(text in "\\PC{0,60}") {
        let mut people = People::default();
        people.add(&text);
        let _ = (own_words(&text), entry(&text), headline(&text), subject(&text));
        let _ = people.taken_out(&text, &[&text]);
    }
}
