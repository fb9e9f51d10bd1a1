//! A hand-made table in RecBole's format: 6 users.

use super::*;

const ITEMS: &str = "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n\
    1\tToy Story\t1995\tAnimation Children's Comedy\n\
    2\tPostino, Il\t1994\tDrama\n\
    3\tDouble vie de Véronique, La (Double Life of Veronique, The)\t1991\tDrama\n\
    10\tunknown\tunkonwn\tunknown\n\
    11\tTo Wong Foo, Thanks for Everything! Julie Newmar\tV\tComedy\n";

/// Users a..f rate films 1, 2, 3, 10, 11; user `f` only one. Films 2 and 10 at the same time.
fn ratings() -> String {
    let mut text = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n".to_owned();
    for user in ["a", "b", "c", "d", "e"] {
        for (film, score, time) in [(11, 1, 50), (10, 2, 20), (2, 3, 20), (3, 4, 30), (1, 5, 10)] {
            text.push_str(&format!("{user}\t{film}\t{score}\t{time}\n"));
        }
    }
    text + "f\t1\t5\t10\n"
}

fn folder(items: &str, inter: &str) -> tempfile::TempDir {
    use std::io::Write as _;
    let root = tempfile::tempdir().unwrap();
    let folder = root.path().join("recbole/dataset_example/ml-100k");
    std::fs::create_dir_all(&folder).unwrap();
    for (name, text) in [("ml-100k.item", items), ("ml-100k.inter", inter)] {
        let mut file = std::fs::File::create(folder.join(name)).unwrap();
        file.write_all(text.as_bytes()).unwrap();
    }
    root
}

fn selection() -> Ml100k {
    Ml100k {
        personal_users: 2,
        population_users: Some(3),
        min_history: 2,
        max_history: 3,
        max_queries: 8,
        max_population_items: 4,
        seed: 7,
    }
}

fn ids(items: &[Item]) -> Vec<&str> {
    items.iter().map(|i| i.id.as_str()).collect()
}

#[test]
fn users_are_disjoint_time_ordered_and_cut() {
    let root = folder(ITEMS, &ratings());
    let chosen = read(root.path(), &selection()).unwrap();
    assert_eq!((chosen.personal.len(), chosen.population.len()), (2, 3));
    let mut all: Vec<_> = chosen.personal.iter().chain(&chosen.population).map(|u| &u.id).collect();
    all.sort();
    assert_eq!(all.iter().map(|u| u.as_str()).collect::<Vec<_>>(), ["a", "b", "c", "d", "e"]);
    for user in &chosen.personal {
        // In time: 1, then 2 and 10 together, 3, 11. One fifth of five is held out; 3 of 4 are kept.
        assert_eq!(ids(&user.history), ["2", "10", "3"]);
        assert_eq!(ids(&user.queries), ["11"]);
    }
    for user in &chosen.population {
        assert!(user.history.is_empty());
        assert_eq!(ids(&user.queries), ["2", "10", "3", "11"]);
    }
    let query = &chosen.personal[0].queries[0];
    assert_eq!((query.field("score"), query.field("date")), (Some("1"), Some("50")));
    assert_eq!(query.fields.len(), 3);
}

#[test]
fn personal_users_do_not_depend_on_the_population_and_the_seed_decides() {
    let root = folder(ITEMS, &ratings());
    let with = read(root.path(), &selection()).unwrap();
    let without = read(root.path(), &Ml100k { population_users: Some(0), ..selection() }).unwrap();
    assert_eq!(with.personal, without.personal);
    let orders: std::collections::BTreeSet<Vec<UserId>> = (0..20)
        .map(|seed| read(root.path(), &Ml100k { seed, ..selection() }).unwrap())
        .map(|c| c.personal.into_iter().map(|u| u.id).collect())
        .collect();
    assert!(orders.len() > 5, "{orders:?}");
}

#[test]
fn film_texts() {
    let film = |title: &str, year: &str, genres: &str| {
        let [title, year, genres] = [title, year, genres].map(str::to_owned);
        text_of(&Film { title, year, genres })
    };
    assert_eq!(
        film("Toy Story", "1995", "Animation Children's Comedy"),
        "Toy Story (1995). Genres: Animation, Children's, Comedy"
    );
    assert_eq!(
        film("Double vie de Véronique, La (Double Life of Veronique, The)", "1991", "Drama"),
        "La Double vie de Véronique (The Double Life of Veronique) (1991). Genres: Drama"
    );
    assert_eq!(
        film("Star Maker, The (Uomo delle stelle, L')", "V", "unknown"),
        "The Star Maker (L'Uomo delle stelle)."
    );
    assert_eq!(
        film("Maybe, Maybe Not (Bewegte Mann, Der)", "", ""),
        "Maybe, Maybe Not (Der Bewegte Mann)."
    );
}

#[test]
fn at_least_one_is_held_out() {
    assert_eq!([1, 4, 5, 9, 10, 100].map(|n| n - split(n)), [1, 1, 1, 1, 2, 20]);
}

#[test]
fn broken_tables_are_named_with_their_line() {
    let refused = |items: &str, inter: &str| {
        let root = folder(items, inter);
        read(root.path(), &selection()).unwrap_err().to_string()
    };
    let good = ratings();
    let with = |line: &str| format!("{good}{line}\n");
    let cases = [
        (refused(&ITEMS.replace("class:", "genre:"), &good), ":1: the header has no column class"),
        (refused(ITEMS, &with("g\t1\t5")), ":28: 3 cells, the header has 4"),
        (refused(ITEMS, &with("g\t1\t6\t1")), ":28: the rating \"6\""),
        (refused(ITEMS, &with("g\t1\tnan\t1")), ":28: the rating \"nan\""),
        (refused(ITEMS, &with("g\t1\t5\tlate")), ":28: the time \"late\""),
        (refused(ITEMS, &with("g\t99\t5\t1")), ":28: film \"99\" is not in"),
        (refused(ITEMS, &with("a\t1\t5\t1")), ":28: user \"a\" rates film \"1\" twice"),
        (refused(&format!("{ITEMS}1\tX\t1\tY\n"), &good), ":7: film \"1\" is listed twice"),
    ];
    for (message, part) in cases {
        assert!(message.contains(part), "{message}");
    }
    let root = folder(ITEMS, &good);
    let refused = |s: Ml100k| read(root.path(), &s).unwrap_err().to_string();
    assert!(refused(Ml100k { personal_users: 3, ..selection() }).contains("6 users"));
    assert!(refused(Ml100k { max_history: 0, ..selection() }).contains("max_history"));
    let elsewhere = root.path().join("nowhere");
    assert!(matches!(read(&elsewhere, &selection()), Err(DataError::NoMl100k { .. })));
}
