//! A config over files it extends, with the variants it has.

use crate::{GOOD, document};
use std::collections::BTreeMap;
use std::path::Path;
use trainer::config::{Document, Error, Text, read_layers};

fn layers(texts: &[(&str, &str)]) -> Vec<Text> {
    let text = |(file, text): &(&str, &str)| Text { file: file.into(), text: (*text).to_owned() };
    texts.iter().map(text).collect()
}

#[test]
fn a_file_lies_over_those_it_extends() {
    let over = "extends = '/dir/c.toml'\n[run]\nout_dir = 'o'\n[individual]\nepochs = 7\n";
    let document = Document::of_layers(&layers(&[("/dir/c.toml", GOOD), ("/own/x.toml", over)]));
    let config = document.unwrap().resolve(&BTreeMap::new()).unwrap();
    assert_eq!((config.run.name.as_str(), config.individual.training.epochs), ("t", 7));
    // Paths start at the file that says them.
    assert_eq!(config.run.out_dir, Path::new("/own/o"));
    assert_eq!(config.base.path, Path::new("/dir/base.gguf"));
    let bad = Document::of_layers(&layers(&[("/dir/c.toml", GOOD), ("/own/x.toml", "[run]\nx=1")]));
    let message = bad.unwrap().resolve(&BTreeMap::new()).unwrap_err().to_string();
    assert!(message.starts_with("/own/x.toml:2: unknown key `run.x`"), "{message}");
}

#[test]
fn extended_files_are_read_first_and_circles_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let file = folder.path().join(name);
        std::io::Write::write_all(&mut std::fs::File::create(&file).unwrap(), text.as_bytes())
            .unwrap();
        file
    };
    write("a.toml", "[run]\nseed = 1\nname = 'a'\n");
    write("b.toml", "[run]\nseed = 2\n");
    let c = write("c.toml", "extends = ['a.toml', './b.toml']\n");
    let files = read_layers(&c).unwrap();
    let names: Vec<_> = files.iter().map(|t| t.file.file_name().unwrap().to_owned()).collect();
    assert_eq!(names, ["a.toml", "b.toml", "c.toml"]);
    for (text, end) in [
        ("extends = 'd.toml'", "leads in a circle, or over more than 16 files"),
        ("extends = 3", "must be a file's name or a list of them"),
        ("extends = [3]", "must name files"),
    ] {
        let message = read_layers(&write("d.toml", text)).unwrap_err().to_string();
        assert!(message.contains("d.toml:1: `extends`: ") && message.ends_with(end), "{message}");
    }
    assert!(matches!(
        read_layers(&write("d.toml", "extends = 'none.toml'")),
        Err(Error::Read { .. })
    ));
}

#[test]
fn variants_lie_over_the_file_and_keep_apart() {
    let text = format!(
        "{GOOD}[individual]\nepochs = 3\nalpha = 2\n[variant.k1]\nindividual.epochs = 5\n\
         [variant.bad.individual]\nepochs = 0\n"
    );
    let mut one = document(&text);
    assert_eq!(one.variants().collect::<Vec<_>>(), ["bad", "k1"]);
    let plain = one.resolve(&BTreeMap::new()).unwrap();
    assert_eq!((plain.run.name.as_str(), plain.individual.training.epochs), ("t", 3));
    one.choose("k1").unwrap();
    let config = one.resolve(&BTreeMap::new()).unwrap();
    let own = &config.individual.training;
    assert_eq!((config.run.name.as_str(), own.epochs, own.alpha), ("t-k1", 5, 2.0));
    assert_eq!(config.run.out_dir, Path::new("/dir/out-k1"));
    one.set("run.out_dir=/else").unwrap();
    assert_eq!(one.resolve(&BTreeMap::new()).unwrap().run.out_dir, Path::new("/else"));
    let message = document(&text).choose("k2").unwrap_err().to_string();
    assert_eq!(message, "/dir/c.toml: no variant `k2`; there are: bad, k1; did you mean `k1`?");
    let mut bad = document(&text);
    bad.choose("bad").unwrap();
    let message = bad.resolve(&BTreeMap::new()).unwrap_err().to_string();
    assert!(message.starts_with("/dir/c.toml:22: `individual.epochs` = 0"), "{message}");
}
