//! Draws from other users: their weights, what is seen of oneself, what is read.

use super::super::draw::Purpose;
use super::super::{Amount, Request, Retrieval, Retriever};
use super::*;
use std::sync::Mutex;

/// User `u` has the items `u:0`, `u:1`, …; its key is `[u; 32]`.
#[derive(Default)]
struct Town {
    sizes: Vec<usize>,
    /// All items but those with a number divisible by this have no text; 0 leaves all.
    usable_every: usize,
    /// Items a user really has, where that is not what `sizes` says.
    shrunk: Option<(usize, usize)>,
    read: Mutex<Vec<usize>>,
}

impl Others for Town {
    fn users(&self) -> usize {
        self.sizes.len()
    }

    fn items_of(&self, user: usize) -> usize {
        self.sizes[user]
    }

    fn history(&self, user: usize) -> Result<Cow<'_, [Item]>, DataError> {
        self.read.lock().unwrap().push(user);
        let shrunk = self.shrunk.filter(|(who, _)| *who == user).map(|(_, size)| size);
        let mut items = items(user, shrunk.unwrap_or(self.sizes[user]));
        let bare = |n: usize| self.usable_every > 0 && !n.is_multiple_of(self.usable_every);
        items.iter_mut().enumerate().filter(|(n, _)| bare(*n)).for_each(|(_, i)| i.fields.clear());
        Ok(items.into())
    }

    fn number_of(&self, user: UserKey) -> Option<usize> {
        (0..self.sizes.len()).find(|&u| user == key(u))
    }
}

fn key(user: usize) -> UserKey {
    UserKey([u8::try_from(user).unwrap(); 32])
}

fn items(user: usize, count: usize) -> Vec<Item> {
    let item = |n: usize| {
        let fields = [("text".to_owned(), format!("words of u{user} i{n}"))];
        Item { id: format!("{user}:{n}"), fields: fields.into() }
    };
    (0..count).map(item).collect()
}

fn town(sizes: &[usize]) -> Town {
    Town { sizes: sizes.to_vec(), ..Town::default() }
}

fn text(item: &Item) -> String {
    item.field("text").unwrap_or_default().to_owned()
}

fn document(item: &Item) -> Option<String> {
    item.field("text").map(str::to_owned)
}

/// The ids chosen for user `user`, who sees the first `visible` of its items.
fn ask(town: &Town, retrieval: Retrieval, user: usize, visible: usize, query: &str) -> Vec<String> {
    let own = items(user, town.sizes.get(user).copied().unwrap_or(visible));
    let history = History::new(own.iter().map(|item| (item, text(item))));
    let pool = Pool::new(town, &document);
    let request = Request::new(key(user), query, "words of u2 i1");
    let chosen = retrieval.choose(&history, visible, &request, Some(&pool)).unwrap();
    chosen.into_iter().map(|item| item.id).collect()
}

fn owner(id: &str) -> usize {
    id.split_once(':').unwrap().0.parse().unwrap()
}

#[test]
fn users_are_drawn_by_their_number_of_items() {
    let town = town(&[10, 0, 30, 60]);
    let mut of = [0u32; 4];
    let retrieval = Retrieval::top(Retriever::FullRandom, 1, 3);
    for i in 0..4000 {
        // A user beyond the town: nothing of its own is in the pool.
        let chosen = ask(&town, retrieval, 9, 1, &i.to_string());
        assert_eq!(chosen.len(), 1);
        of[owner(&chosen[0])] += 1;
    }
    // 400, 0, 1200, 2400 expected; standard deviations 19, 0, 29, 31.
    assert!((310..490).contains(&of[0]) && of[1] == 0, "{of:?}");
    assert!((1070..1330).contains(&of[2]) && (2260..2540).contains(&of[3]), "{of:?}");
}

#[test]
fn oneself_weighs_and_shows_what_is_visible() {
    let town = town(&[10, 40, 50]);
    let mut of = [0u32; 3];
    let retrieval = Retrieval::top(Retriever::FullRandom, 1, 3);
    for i in 0..3000 {
        let chosen = ask(&town, retrieval, 1, 15, &i.to_string());
        of[owner(&chosen[0])] += 1;
        let number: usize = chosen[0].split_once(':').unwrap().1.parse().unwrap();
        assert!(owner(&chosen[0]) != 1 || number < 15, "{chosen:?} is not visible");
    }
    // Weights 10, 15, 50 of 75: 400, 600, 2000; standard deviations 19, 22, 26.
    assert!((320..480).contains(&of[0]) && (500..700).contains(&of[1]), "{of:?}");
    assert!((1880..2120).contains(&of[2]), "{of:?}");
    let without = Retrieval { exclude_self: true, ..retrieval };
    for i in 0..500 {
        assert_ne!(owner(&ask(&town, without, 1, 15, &i.to_string())[0]), 1);
    }
    // More may be visible than the pool knows of: earlier queries of the population stage.
    let mut own = items(1, 60);
    own.iter_mut().for_each(|item| item.id.insert_str(0, "own"));
    let history = History::new(own.iter().map(|item| (item, text(item))));
    let pool = Pool::new(&town, &document);
    let mut seen = 0;
    for i in 0..1200 {
        let name = i.to_string();
        let chosen =
            retrieval.choose(&history, 60, &Request::new(key(1), &name, ""), Some(&pool)).unwrap();
        seen += u32::from(chosen[0].id.starts_with("own"));
        assert!(!chosen[0].id.starts_with("1:"), "the own history is not read again");
    }
    // 60 of 120: 600 expected, standard deviation 17.
    assert!((520..680).contains(&seen), "{seen}");
}

#[test]
fn full_random_takes_distinct_items_of_as_many_users() {
    let town = town(&[3, 4, 5, 6]);
    for i in 0..200 {
        let retrieval = Retrieval::top(Retriever::FullRandom, 3, 1);
        let chosen = ask(&town, retrieval, 9, 1, &i.to_string());
        let distinct: BTreeSet<_> = chosen.iter().collect();
        assert_eq!(distinct.len(), 3);
        let users: BTreeSet<_> = chosen.iter().map(|id| owner(id)).collect();
        assert!(users.len() <= 3);
    }
    // One user with two items: drawn again and again, still two distinct items.
    let one = self::town(&[2]);
    let mut chosen = ask(&one, Retrieval::top(Retriever::FullRandom, 5, 1), 9, 1, "q");
    chosen.sort();
    assert_eq!(chosen, ["0:0", "0:1"]);
    assert!(
        ask(&self::town(&[]), Retrieval::top(Retriever::FullRandom, 5, 1), 9, 1, "q").is_empty()
    );
    assert!(
        ask(&self::town(&[0, 0]), Retrieval::top(Retriever::FullRandom, 5, 1), 9, 1, "q")
            .is_empty()
    );
    // Only oneself, and nothing visible.
    assert!(
        ask(&self::town(&[4]), Retrieval::top(Retriever::FullRandom, 5, 1), 0, 0, "q").is_empty()
    );
}

#[test]
fn every_user_is_read_once_a_request() {
    let town = town(&[30, 30]);
    let retrieval = Retrieval { pool: 40, ..Retrieval::top(Retriever::RanBm25, 4, 1) };
    ask(&town, retrieval, 9, 1, "q");
    assert_eq!(*town.read.lock().unwrap(), [0, 1]);
}

#[test]
fn ranbm25_ranks_its_pool() {
    let town = town(&[3, 3, 3]);
    // A pool larger than all users' items: every item is in it, almost surely, and the best is found.
    let retrieval = Retrieval { pool: 50, ..Retrieval::top(Retriever::RanBm25, 2, 1) };
    for i in 0..20 {
        assert_eq!(ask(&town, retrieval, 9, 1, &i.to_string())[0], "2:1");
    }
    let pool = Pool::new(&town, &document);
    let own = items(9, 1);
    let history = History::new(own.iter().map(|item| (item, text(item))));
    let twin = Some(("text", "words of u2 i1"));
    let request = Request { twin, ..Request::new(key(9), "q", "words of u2 i1") };
    let best = retrieval.choose(&history, 1, &request, Some(&pool)).unwrap();
    assert!(best.len() == 2 && best.iter().all(|item| item.id != "2:1"), "{best:?}");
    let empty = Retrieval { pool: 0, ..retrieval };
    assert!(matches!(empty.check(), Err(RetrievalError::PoolSize { got: 0, .. })));
    let refused = empty.choose(&history, 1, &request, Some(&pool));
    assert!(matches!(refused, Err(RetrievalError::PoolSize { got: 0, .. })));
    let refused = retrieval.choose(&history, 1, &request, None);
    assert!(matches!(refused, Err(RetrievalError::NoOthers { retriever: Retriever::RanBm25 })));
}

#[test]
fn the_window_holds_in_pools_too() {
    let town = town(&[40, 40]);
    let all = Retrieval::top(Retriever::FullRandom, 6, 2);
    let behind = Retrieval { offset: Amount::Count(3), ..all };
    let (all, behind) = (ask(&town, all, 9, 5, "q"), ask(&town, behind, 9, 5, "q"));
    assert_eq!((all.len(), behind.len()), (6, 6));
    assert_eq!(all[3..], behind[..3]);
    let half =
        Retrieval { number: Amount::Share(0.5), ..Retrieval::top(Retriever::FullRandom, 0, 2) };
    // A share of the user's own five.
    assert_eq!(ask(&town, half, 9, 5, "q").len(), 2);
}

#[test]
fn what_cannot_be_shown_is_in_no_pool() {
    let sizes = [40, 60, 50];
    let whole = town(&sizes);
    let holed = Town { usable_every: 10, ..town(&sizes) };
    let usable = |id: &str| id.split_once(':').unwrap().1.parse::<usize>().unwrap() % 10 == 0;
    let none = History::new([]);
    let drawn = |town: &Town, users: usize, most: usize, query: &str| -> Vec<String> {
        let own = Own { user: key(9), history: &none, visible: 0 };
        let draws = Draws::new(3, &Request::new(key(9), query, ""), Purpose::Inputs);
        let pooled = Pool::new(town, &document).draw(own, users, |_| Ok(most), draws).unwrap();
        assert!(pooled.iter().all(|p| Some(&p.document) == document(&p.item).as_ref()));
        pooled.into_iter().map(|p| p.item.id).collect()
    };
    for i in 0..60 {
        let query = i.to_string();
        // The draw is that of all items, without those that cannot be shown.
        let mut expected = drawn(&whole, 4, usize::MAX, &query);
        expected.retain(|id| usable(id));
        for most in [0, 1, 3, 7, 1000] {
            let first = &expected[..most.min(expected.len())];
            assert_eq!(drawn(&holed, 4, most, &query), first, "{most} of query {i}");
        }
    }
    // Both retrievers find all that is usable, be it one item.
    let pooling = |retriever| Retrieval { pool: 188, ..Retrieval::top(retriever, 30, 1) };
    let ranked = ask(&holed, pooling(Retriever::RanBm25), 9, 1, "q");
    assert!(ranked.len() == 15 && ranked.iter().all(|id| usable(id)), "{ranked:?}");
    let random = ask(&holed, pooling(Retriever::FullRandom), 9, 1, "q");
    assert!(random.len() == 15 && random.iter().all(|id| usable(id)), "{random:?}");
    let one = Town { sizes: vec![0, 9], usable_every: 100, ..Town::default() };
    assert_eq!(ask(&one, pooling(Retriever::RanBm25), 9, 1, "q"), ["1:0"]);
}

#[test]
fn a_changed_history_is_refused() {
    let town = Town { sizes: vec![5], shrunk: Some((0, 4)), ..Town::default() };
    let pool = Pool::new(&town, &document);
    let own = items(9, 1);
    let history = History::new(own.iter().map(|item| (item, text(item))));
    let retrieval = Retrieval::top(Retriever::FullRandom, 1, 2);
    let refused = retrieval.choose(&history, 1, &Request::new(key(9), "q", ""), Some(&pool));
    let expected =
        matches!(refused, Err(RetrievalError::PoolChanged { user: 0, expected: 5, got: 4 }));
    assert!(expected, "{refused:?}");
}

#[test]
fn a_draw_depends_on_its_request_alone() {
    let town = town(&[30, 50, 20]);
    let retrieval = Retrieval::top(Retriever::FullRandom, 4, 7);
    let alone = ask(&town, retrieval, 9, 1, "q7");
    for i in 0..20 {
        let name = format!("q{i}");
        assert_eq!(ask(&town, retrieval, 9, 1, &name) == alone, name == "q7");
    }
    let draws = |purpose| Draws::new(7, &Request::new(key(9), "q7", ""), purpose).below(1 << 40);
    assert_ne!(draws(Purpose::Inputs), draws(Purpose::Outputs));
}
