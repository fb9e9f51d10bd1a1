//! Studies as written: products, duplicates, named points, what is refused and where.

use super::*;
use std::path::Path;

const RUN: &str = r#"
[run]
name = "s"
out_dir = "out"
[base]
path = "base"
[data]
source = "jsonl"
personal = "p.jsonl"
population = "q.jsonl"
[prompt]
template = "rating"
[predict]
mode = "label"
[evaluate]
metrics = ["mae"]
"#;

fn document(study: &str) -> Document {
    Document::parse(Path::new("/dir/s.toml"), &format!("{study}{RUN}")).unwrap()
}

fn study(text: &str) -> Study {
    document(text).study(&BTreeMap::new()).unwrap_or_else(|e| panic!("{e}"))
}

fn refused(text: &str) -> String {
    document(text).study(&BTreeMap::new()).unwrap_err().to_string()
}

fn names(study: &Study) -> Vec<&str> {
    study.cells.iter().map(|c| c.name.as_str()).collect()
}

#[test]
fn cells_are_the_product_in_the_written_order() {
    let study = study(
        "[study.axes]\n\"run.seed\" = [3, 1]\nprompt.retriever = ['recency', 'bm25-study']\n\
         \"individual.epochs\" = [2]\n\"prompt.retrieved\" = [2, 5]\n",
    );
    let shorts: Vec<&str> = study.axes.iter().map(|a| a.short.as_str()).collect();
    assert_eq!(shorts, ["seed", "retriever", "epochs", "retrieved"]);
    assert_eq!(study.cells.len(), 8);
    assert_eq!(study.cells[0].name, "seed=3,retriever=recency,epochs=2,retrieved=2");
    assert_eq!(study.cells[1].name, "seed=3,retriever=recency,epochs=2,retrieved=5");
    assert_eq!(study.cells[7].name, "seed=1,retriever=bm25-study,epochs=2,retrieved=5");
    assert_eq!(study.cells[7].point, [1, 1, 0, 1]);
    let config = &study.cells[7].config;
    assert_eq!((config.run.seed, config.prompt.retrieved), (1, 5));
    assert_eq!(config.prompt.retriever, RetrieverKind::Bm25Study);
    assert_eq!((study.name.as_str(), study.out_dir.as_path()), ("s", Path::new("/dir/out")));
    let ids: BTreeSet<&str> = study.cells.iter().map(|c| c.id.as_str()).collect();
    assert_eq!(ids.len(), 8);
    assert!(study.cells.iter().all(|c| c.same_as.is_none()));
}

#[test]
fn the_same_name_in_two_sections_keeps_its_section() {
    let study = study(
        "[study.axes]\n\"population.epochs\" = [1, 2]\n\"individual.epochs\" = [1]\n\"run.seed\" = [1]\n",
    );
    assert_eq!(study.cells[1].name, "population.epochs=2,individual.epochs=1,seed=1");
}

#[test]
fn named_points_set_several_keys_and_paths_tell_cells_apart() {
    let study = study(
        "[study.axes]\n\"run.seed\" = [1]\n[[study.axes.task]]\nlabel = 'a'\n\
         set = { 'data.personal' = 'a.jsonl', prompt.max_length = 64 }\n[[study.axes.task]]\n\
         label = 'b'\nset = { 'data.personal' = 'b.jsonl', 'prompt.max_length' = 64 }\n",
    );
    assert_eq!(names(&study), ["seed=1,task=a", "seed=1,task=b"]);
    let [a, b] = &study.cells[..] else { panic!() };
    assert_eq!(a.config.data.personal.as_deref(), Some(Path::new("/dir/a.jsonl")));
    assert_eq!((a.config.prompt.max_length, b.config.prompt.max_length), (64, 64));
    // Only the file differs: no duplicate.
    assert_eq!(a.config.result_hash().unwrap(), b.config.result_hash().unwrap());
    assert_ne!(a.id, b.id);
    assert_eq!(b.same_as, None);
}

#[test]
fn cells_that_differ_in_nothing_that_matters_run_once() {
    let study = study(
        "[study.axes]\n\"prompt.retriever\" = ['random', 'recency']\n\"prompt.order\" = ['start', 'end']\n\
         \"prompt.retrieved\" = [0, 1, 2]\n",
    );
    let same: Vec<Option<usize>> = study.cells.iter().map(|c| c.same_as).collect();
    // Nothing shown: one cell for all; one item: one cell a retriever.
    let (zero, one) = (Some(0), Some(1));
    let expected =
        [None, None, None, zero, one, None, zero, None, None, zero, Some(7), None].to_vec();
    assert_eq!(same, expected);
    assert_eq!(study.cells[0].id, study.cells[9].id);
}

#[test]
fn a_seed_is_nothing_where_nothing_is_drawn() {
    let of = |order: &str, number: usize| {
        let study = study(&format!(
            "[study.axes]\n'prompt.retriever' = ['bm25-study', 'recency', 'random', 'ranbm25']\n\
             'prompt.retrieval_seed' = [1, 2]\n'prompt.order' = ['{order}']\n\
             'prompt.retrieved' = [{number}]\n"
        ));
        study.cells.iter().map(|c| c.same_as).collect::<Vec<_>>()
    };
    assert_eq!(of("start", 3), [None, Some(0), None, Some(2), None, None, None, None]);
    assert_eq!(of("random", 1), of("start", 3), "one item has one order");
    assert_eq!(of("random", 3), [None; 8], "the order is drawn");
    let mixed = study(
        "[study.axes]\n'prompt.retriever' = ['mixed']\n'prompt.input_retriever' = ['bm25-study']\n\
         'prompt.output_retriever' = ['bm25-study', 'random']\n'prompt.retrieval_seed' = [1, 2]\n\
         'prompt.retrieved' = [3]\n",
    );
    let same: Vec<_> = mixed.cells.iter().map(|c| c.same_as).collect();
    assert_eq!(same, [None, Some(0), None, None]);
}

#[test]
fn the_grid_of_a_variant_takes_the_place_of_the_files() {
    let text = format!(
        "[study]\nskip = [{{ 'prompt.retrieved' = 1 }}]\n[study.axes]\n'prompt.retrieved' = [1, 2]\n\
         'prompt.retrieval_seed' = [1, 2, 3]\n{RUN}\n[variant.order.study.axes]\n\
         'prompt.order' = ['start', 'end']\n'prompt.retrieved' = [3]\n\
         [variant.wrong.study.axes]\n'prompt.order' = ['start', 'top']\n[variant.seed.run]\nseed = 7\n"
    );
    let chosen = |variants: &[&str]| {
        let mut document = Document::parse(Path::new("/dir/s.toml"), &text).unwrap();
        variants.iter().for_each(|v| document.choose(v).unwrap());
        document.study(&BTreeMap::new())
    };
    assert_eq!(chosen(&[]).unwrap().cells.len(), 3);
    let order = chosen(&["order", "seed"]).unwrap();
    assert_eq!(names(&order), ["order=start,retrieved=3", "order=end,retrieved=3"]);
    assert_eq!(order.cells[0].config.run.seed, 7);
    assert_eq!(
        (order.name.as_str(), order.out_dir.as_path()),
        ("s-order-seed", Path::new("/dir/out-order-seed"))
    );
    // Of two grids the last one counts, whole.
    let wrong = chosen(&["order", "wrong"]).unwrap_err().to_string();
    let line = 1 + text[..text.find("'start', 'top'").unwrap()].matches('\n').count();
    assert!(wrong.starts_with(&format!("cell order=top: /dir/s.toml:{line}: ")), "{wrong}");
    // A variant may also be what makes a study of a run.
    let mut run = document("");
    assert!(!run.is_study());
    run = Document::parse(
        Path::new("/dir/s.toml"),
        &text.replace("[study]", "[x]").replace("[study.axes]", "[y]"),
    )
    .unwrap();
    run.table.retain(|name, _| name != "x" && name != "y");
    run.choose("order").unwrap();
    assert_eq!(run.study(&BTreeMap::new()).unwrap().cells.len(), 2);
}

#[test]
fn an_arm_stands_in_where_a_cell_has_nothing_to_show() {
    let text = RUN.replace("out_dir = \"out\"", "out_dir = \"out\"\narms = [\"base\", \"rag\"]");
    let text = format!("[study.axes]\n\"prompt.retrieved\" = [0, 2]\n{text}");
    let document = Document::parse(Path::new("/dir/s.toml"), &text).unwrap();
    let study = document.study(&BTreeMap::new()).unwrap();
    let (zero, two) = (&study.cells[0], &study.cells[1]);
    assert_eq!(zero.rows, [(Arm::Base, Arm::Base), (Arm::Rag, Arm::Base)]);
    assert_eq!(zero.config.run.arms, [Arm::Base]);
    assert_eq!(two.rows, [(Arm::Base, Arm::Base), (Arm::Rag, Arm::Rag)]);
}

#[test]
fn skipped_cells_are_left_out() {
    let axes = "[study.axes]\n\"prompt.order\" = ['start', 'end', 'middle']\n\"prompt.retrieved\" = [0, 2, 4]\n";
    let skip = "[study]\nskip = [{ 'prompt.retrieved' = 0, prompt.order = ['end', 'middle'] }, { 'prompt.retrieved' = 4 }]\n";
    let cells = study(&format!("{skip}{axes}"));
    assert_eq!(
        names(&cells),
        [
            "order=start,retrieved=0",
            "order=start,retrieved=2",
            "order=end,retrieved=2",
            "order=middle,retrieved=2"
        ]
    );
    for (rule, part) in [
        ("{ 'prompt.retrieved' = 3 }", "values of the axis: 0, 2, 4"),
        ("{ 'prompt.retrieved' = [] }", "values of the axis: 0, 2, 4"),
        ("{ 'prompt.ordre' = 'end' }", "did you mean `prompt.order`?"),
        ("{}", "must be a list of"),
        ("3", "must be a list of"),
        ("{ 'prompt.retrieved' = [0, 2, 4] }", "leaves no cell"),
    ] {
        let message = refused(&format!("[study]\nskip = [{rule}]\n{axes}"));
        assert!(message.contains(part), "{rule}: {message}");
    }
}

#[test]
fn wrong_studies_are_refused_with_their_place() {
    for (text, place, part) in [
        ("[study]\n", "1", "must have an axis"),
        ("[study]\nname = 'x'\n[study.axes]\n'run.seed' = [1]\n", "2", "it belongs in [run]"),
        ("[study]\naxis = 1\n", "2", "did you mean `axes`?"),
        ("[study.axes]\n'run.seed' = 1\n", "2", "must be a list of values"),
        ("[study.axes]\n'run.seed' = []\n", "2", "must be a list of values"),
        ("[study.axes]\n'run.seed' = [1, 2, 1]\n", "2", "has \"1\" twice"),
        ("[study.axes]\n'run.sede' = [1]\n", "2", "did you mean `seed`?"),
        ("[study.axes]\nretrieved = [1]\n", "2", "it belongs in [prompt]"),
        ("[study.axes]\n'run.seed' = [1, -1]\n", "2", "cell seed=-1: "),
        ("[study.axes]\n'run.out_dir' = ['a']\n", "2", "is the same in all cells"),
        ("[study.axes]\n'engine.threads' = [1]\n", "2", "is the same in all cells"),
        (
            "[study.axes]\n'run.seed' = [1]\nt = [{label = 'x', set = {'run.seed' = 2}}]\n",
            "3",
            "too",
        ),
        ("[study.axes]\nt = [{label = 'x'}]\n", "2", "a point is"),
        ("[study.axes]\nt = [{label = 'x', sets = {}}]\n", "2", "did you mean `set`?"),
        ("[study.axes]\nt = [{label = 'x', set = {'run' = 3}}]\n", "2", "a section: [run]"),
        ("[study.axes]\nt = [{label = 'x', set = {'run.seed.x' = 3}}]\n", "2", "a whole number"),
    ] {
        let message = refused(text);
        assert!(message.contains(part), "{text}: {message}");
        assert!(message.contains(&format!("/dir/s.toml:{place}: ")), "{text}: {message}");
    }
    let mut held = document("[study.axes]\n'run.seed' = [1]\n");
    held.set("run.seed=3").unwrap();
    let message = held.study(&BTreeMap::new()).unwrap_err().to_string();
    assert_eq!(message, "--set run.seed=3: `run.seed`: is an axis of the study");
    let many = (0..400).map(|n| n.to_string()).collect::<Vec<_>>().join(", ");
    let many = format!("[study.axes]\n'run.seed' = [{many}]\n'prompt.retrieved' = [{many}]\n");
    assert!(refused(&many).contains("more than 100000 combinations"));
}

#[test]
fn a_run_of_a_study_is_refused_and_other_sections_still_are() {
    let one = document("[study.axes]\n'run.seed' = [1]\n");
    assert!(one.is_study());
    let message = one.resolve(&BTreeMap::new()).unwrap_err().to_string();
    assert_eq!(message, "/dir/s.toml:1: `study`: makes this a study of several runs, not a run");
    let message = refused("[study.axes]\n'run.seed' = [1]\n[sudy]\n");
    assert!(message.contains("unknown key `sudy`"), "{message}");
    assert!(!document("").is_study());
    assert!(refused("").contains("there is no such section"));
}
