//! Runs from files in the formats of LaMP and OPPU. Here: people made up by number, written in both layouts, and the
//! config they go with; the stories are in the modules. Start reading at `arms.rs`.

mod arms;
mod bad;
mod files;
mod retrieval;

use crate::base::Random;
use crate::process::Ended;
use crate::story::Story;
use serde_json::{Value, json};
use std::ops::Range;

/// A task's fields and the words in front of a question's payload.
#[derive(Debug, Clone, Copy)]
struct Form {
    task: &'static str,
    input: &'static str,
    answer: &'static str,
    question: &'static str,
}

const MOVIE: Form = Form {
    task: "movie_tag",
    input: "description",
    answer: "tag",
    question: "Which tag does this movie relate to among the following tags? Just answer with the tag name without \
               further explanation. tags: [sci-fi, based on a book, comedy, action, twist ending, dystopia, dark \
               comedy, classic, psychology, fantasy, romance, thought-provoking, social commentary, violence, true \
               story] description: ",
};
const HEADLINE: Form = Form {
    task: "headline",
    input: "text",
    answer: "title",
    question: "Generate a headline for the following article: ",
};
const RATING: Form = Form {
    task: "rating",
    input: "text",
    answer: "score",
    question: "What is the score of the following review on a scale of 1 to 5? just answer with 1, 2, 3, 4, or 5 \
               without further explanation. review: ",
};

const WORDS: [&str; 12] = [
    "fog", "spoon", "clerk", "letter", "tram", "robot", "widow", "harbour", "bell", "cake",
    "judge", "dragon",
];
/// Some share a word or a beginning.
const TAGS: [&str; 6] =
    ["comedy", "dark comedy", "classic", "twist ending", "true story", "social commentary"];

/// Two queries a person.
const QUERIES: usize = 2;

fn words(random: &mut Random, count: usize) -> String {
    let words: Vec<&str> = (0..count).map(|_| WORDS[random.below(WORDS.len())]).collect();
    words.join(" ")
}

impl Form {
    /// What a person writes, and the answer: everyone likes a few answers best.
    fn pair(self, random: &mut Random, person: usize) -> (String, String) {
        let count = 3 + random.below(4);
        let text = words(random, count);
        let answer = match self.task {
            "movie_tag" => TAGS[(person + random.below(3)) % TAGS.len()].to_owned(),
            "rating" => (1 + (person + random.below(3)) % 5).to_string(),
            _ => words(random, 2),
        };
        (text, answer)
    }

    /// A person of OPPU's files, a function of `number` alone: 3 to 9 items, the oldest last.
    fn person(self, number: usize) -> Value {
        let mut random = Random(7 + number as u64 * 1000);
        let items: Vec<Value> = (0..3 + number * 5 % 7)
            .map(|i| {
                let (text, answer) = self.pair(&mut random, number);
                let mut item =
                    json!({"id": format!("{number}{i}"), "date": format!("20{}-05-04", 19 - i)});
                item[self.input] = text.into();
                item[self.answer] = answer.into();
                item
            })
            .collect();
        let queries: Vec<Value> = (0..QUERIES)
            .map(|i| {
                let (text, answer) = self.pair(&mut random, number);
                let input = format!("{}{text}", self.question);
                json!({"id": format!("{number}9{i}"), "input": input, "gold": answer})
            })
            .collect();
        json!({"user_id": number.to_string(), "profile": items, "query": queries})
    }

    fn people(self, numbers: Range<usize>) -> Vec<Value> {
        numbers.map(|n| self.person(n)).collect()
    }
}

/// A people's answers, as LaMP's outputs and OPPU's labels have them.
fn golds(people: &[Value], task: &str) -> Value {
    let queries = people.iter().flat_map(|p| p["query"].as_array().unwrap());
    let golds: Vec<Value> = queries.map(|q| json!({"id": q["id"], "output": q["gold"]})).collect();
    json!({"task": task, "golds": golds})
}

/// People as LaMP's questions of the time split: one record a query, those of a person apart.
fn questions(people: &[Value]) -> Value {
    let of = |n: usize| {
        people.iter().map(move |p| {
            let query = &p["query"][n];
            json!({"id": query["id"], "user_id": p["user_id"], "input": query["input"], "profile": p["profile"]})
        })
    };
    (0..QUERIES).flat_map(of).collect()
}

/// Texts about people, by id.
fn profiles(people: &[Value]) -> Value {
    let text = |p: &Value| {
        let id = p["user_id"].as_str().unwrap();
        json!({"id": id, "output": format!("{} writes of the {}.", id, WORDS[id.len() % 12])})
    };
    people.iter().map(text).collect()
}

/// Ids of persons in [`world`]: the others first, so that no order agrees with another by chance.
const PEOPLE: Range<usize> = 20..28;
const OTHERS: Range<usize> = 10..13;

/// A story with OPPU's five files of a task and a base with room for its prompts; the config shows `sections`.
fn world(form: Form, sections: &str) -> Story {
    let story = Story::new();
    let mut base = story.json("base/config.json");
    base["max_position_embeddings"] = 1024.into();
    put(&story, "base/config.json", &base);
    let (people, others) = (form.people(PEOPLE), form.people(OTHERS));
    put(&story, "labels.json", &golds(&people, form.task));
    put(&story, "profiles.json", &profiles(&people));
    put(&story, "other_profiles.json", &profiles(&others));
    put(&story, "people.json", &people.into());
    put(&story, "others.json", &others.into());
    story.put("config.toml", config(form, "oppu", sections).as_bytes());
    story
}

fn put(story: &Story, name: &str, value: &Value) {
    story.put(name, value.to_string().as_bytes());
}

/// A config over OPPU's files of [`world`] with the templates of a family. `sections` come last.
fn config(form: Form, family: &str, sections: &str) -> String {
    let task = form.task;
    let data = format!(
        "source = 'oppu'\ntask = '{task}'\npersonal = 'people.json'\npersonal_outputs = 'labels.json'\n\
         personal_profiles = 'profiles.json'\npopulation = 'others.json'\n\
         population_profiles = 'other_profiles.json'"
    );
    config_over(&data, (family, task), sections)
}

/// A config over any data, with the template of a family for a task.
fn config_over(data: &str, (family, task): (&str, &str), sections: &str) -> String {
    let (mode, metrics) = match task {
        "citation" | "movie_tag" | "news_category" => ("label", "\"accuracy\", \"macro_f1\""),
        "rating" => ("label", "\"mae\", \"rmse\", \"expected_mae\""),
        _ => ("generate", "\"rouge_1\", \"rouge_l\""),
    };
    format!(
        "[run]\nname = 'lamp'\nout_dir = 'run'\n\
         arms = ['base', 'rag', 'pag', 'population', 'personal', 'permuted']\n\
         [base]\npath = 'base'\n\
         [data]\n{data}\n\
         [prompt]\ntemplate = '{family}/{task}'\nretrieved = 1\nmax_length = 700\n\
         [population]\nrecipe = 'personal-small'\nbatch_size = 4\nvirtual_shards = 4\n\
         [individual]\nrecipe = 'personal-small'\ndropout = 0.1\nepochs = 1\nbatch_size = 4\n\
         learning_rate = 0.02\n\
         [engine]\nthreads = 1\nmemory_gb = 1.0\n\
         [predict]\nmode = '{mode}'\nmax_new_tokens = 12\nfirst_line = true\n\
         [evaluate]\nmetrics = [{metrics}]\nbootstrap_samples = 200\n{sections}"
    )
}

/// `launcher run` into a folder of the story with these keys set.
fn run(story: &Story, folder: &str, ranks: usize, keys: &[&str]) -> Ended {
    let out = format!("run.out_dir={folder}");
    let pairs = std::iter::once(out.as_str()).chain(keys.iter().copied());
    let sets: Vec<&str> = pairs.flat_map(|pair| ["--set", pair]).collect();
    story.run_on(ranks, &sets).run()
}

/// The predictions in a file's text, in their order.
fn predictions(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// User and query of every prediction of a text, in their order.
fn asked(text: &str) -> Vec<(String, String)> {
    let of = |p: &Value, key: &str| p[key].as_str().unwrap().to_owned();
    predictions(text).iter().map(|p| (of(p, "user"), of(p, "query"))).collect()
}
