//! Indexing a file takes memory for its largest record and a summary a user, not for the file. `cargo bench -p trainer
//! --bench readers` measures it on files of any size.
#![expect(unsafe_code, reason = "a counting allocator is an unsafe trait")]
#![expect(clippy::unwrap_used, reason = "a test panics when wrong")]

mod generated;

#[test]
fn sixty_four_megabytes_take_two() {
    let bytes = 64 << 20;
    for make in [generated::oppu, generated::lamp] {
        let folder = tempfile::tempdir().unwrap();
        let (source, records) = make(folder.path(), bytes);
        let (data, peak_bytes) = generated::index(&source);
        let most = generated::most_bytes(records);
        assert!(peak_bytes < most, "{peak_bytes} bytes, {most} at most");
        let index = data.index();
        let queries: usize = index.personal.iter().map(|u| u.num_queries).sum();
        assert_eq!(queries, records);
        assert!(records > 1000 && index.personal.iter().all(|u| u.num_history >= generated::ITEMS));
        // A user at the end is read by itself.
        let last = index.personal.len() - 1;
        assert_eq!(data.user(last).unwrap().history.len(), index.personal[last].num_history);
    }
}
