//! Every command that the README and the book name is run, as it stands there, beside an agent or without one.

use std::{
    collections::BTreeSet,
    process::Output,
    time::{Duration, Instant},
};

use mongodb::bson::doc;

use crate::support::{
    PATIENCE,
    agent::Agent,
    book::{Page, pages},
    equal::equal,
    eventually, orders, pair,
    receiver::Receiver,
    unasked::Unasked::{Doubt, Repair, Retries},
};

/// What is not run here, by its first words, with the reason.
const NOT_HERE: [(&str, &str); 6] = [
    ("run", "it is the agent itself, which runs beside all the others"),
    ("status --watch", "it never ends by itself"),
    ("schema", "it needs PostgreSQL as the target: `postgres_schema` and its neighbours run it"),
    ("outbox", "it needs an outbox as the source: `outbox_table` runs it"),
    ("restore", "it needs an empty local database: `newcomer` types it from its page"),
    ("sync cancel", "it needs a sync that is caught while it runs: `answers` and its neighbours"),
];

/// When a command has something to show.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum When {
    /// Both sides are equal, and the agent runs.
    Equal,
    /// Writing is paused, and something waits.
    Waiting,
    /// Atlas has refused two documents.
    Refused,
    /// No agent runs.
    Stopped,
}

fn when(words: &str) -> When {
    match words {
        _ if words.starts_with("queue import") || words.starts_with("queue clear") => When::Stopped,
        _ if words.starts_with("queue") => When::Waiting,
        _ if words.starts_with("dead") => When::Refused,
        _ => When::Equal,
    }
}

/// A command with and without what it has in brackets.
fn choices(command: &str) -> Vec<String> {
    let plain = |text: String| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let mut without = String::new();
    let mut depth = 0_usize;
    for sign in command.chars() {
        match sign {
            '[' => depth += 1,
            ']' => depth -= 1,
            _ if depth == 0 => without.push(sign),
            _ => {}
        }
    }
    let with = command.replace(['[', ']'], "");
    BTreeSet::from([plain(without), plain(with)]).into_iter().collect()
}

/// Everything that the pages name, without the program's name.
fn of_the_book() -> BTreeSet<String> {
    pages()
        .iter()
        .flat_map(Page::commands)
        .flat_map(|command| choices(command.strip_prefix("outrigger").unwrap_or_default()))
        .map(|words| {
            let words = words.replace('\'', "");
            let typed = words.split_whitespace().take_while(|of| !of.starts_with(['|', '>', '…']));
            typed.collect::<Vec<_>>().join(" ")
        })
        .filter(|words| !words.is_empty())
        .collect()
}

struct Desk {
    agent: Agent,
    done: BTreeSet<String>,
}

impl Desk {
    /// Runs each command of `all` that has its time now, with `id` for an `ID`.
    async fn runs(&mut self, all: &BTreeSet<String>, now: When, id: &str) {
        for words in all.iter().filter(|words| when(words) == now) {
            if NOT_HERE.iter().any(|(begin, _)| words.starts_with(begin)) {
                continue;
            }
            let mut given: Vec<String> =
                words.split_whitespace().map(|word| stands_for(word, id)).collect();
            // The table of commands names some without what they are about.
            let needs_id = ["dead show", "dead retry", "dead discard", "queue show"];
            if needs_id.contains(&words.as_str()) {
                given.push(id.to_owned());
            }
            let given: Vec<_> = given.iter().map(String::as_str).collect();
            let mut last: Option<Output> = None;
            let begun = Instant::now();
            // Another full sync may run still.
            while last.as_ref().is_none_or(|of| !of.status.success()) {
                if let Some(output) = &last {
                    let text = [&output.stdout[..], &output.stderr[..]].concat();
                    let text = String::from_utf8_lossy(&text);
                    assert!(begun.elapsed() < PATIENCE / 4, "outrigger {words}: {text}");
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
                last = Some(self.run(&given));
            }
            let output = last.unwrap();
            let said = output.stdout.len() + output.stderr.len();
            assert!(said > 0, "outrigger {words} says nothing");
            self.done.insert(words.clone());
        }
    }

    fn run(&self, given: &[&str]) -> Output {
        if given == ["init"] {
            // Where there is none yet.
            let folder = tempfile::TempDir::new().unwrap();
            return self.agent.command().current_dir(&folder).args(given).output().unwrap();
        }
        if given.starts_with(&["queue", "export"]) {
            let _ = std::fs::remove_file(self.agent.dir.path().join("a-file"));
        }
        self.agent.cli(given)
    }
}

/// What is typed in the place of a word in capitals.
fn stands_for(word: &str, id: &str) -> String {
    match word {
        "NS" => "shop.orders",
        "ID" => id,
        "D" => "30s",
        "FILE" => "a-file",
        "TEXT" => "maintenance",
        "SHELL" => "bash",
        _ => word,
    }
    .to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_command_that_the_book_names_does_what_it_is_asked_for() {
    let (local, atlas) = pair().await;
    let hook = Receiver::start();
    orders(&local).insert_many((0..50).map(|id| doc! { "_id": id })).await.unwrap();
    let config = format!(
        "[worker]\nmax_retries = 0\n[alerts]\nwebhook = \"http://127.0.0.1:{0}/hook\"\nheartbeat_url = \"http://127.0.0.1:{0}/beat\"\n",
        hook.port
    );
    let mut agent = Agent::new(&local.uri(), &atlas.uri(), &config);
    agent.means_dead_letters(true);
    agent.may(&[Repair, Doubt, Retries], "letters are tried again and thrown away");
    agent.start(&[]);
    agent.streaming().await;
    equal(&local, &atlas, PATIENCE).await;
    let all = of_the_book();
    let mut desk = Desk { agent, done: BTreeSet::new() };

    desk.runs(&all, When::Equal, "1").await;

    assert!(desk.agent.cli(&["pause"]).status.success());
    orders(&local).insert_one(doc! { "_id": 1_000 }).await.unwrap();
    desk.agent.queued(1).await;
    let waiting = desk.agent.cli_json(&["queue", "list"]).unwrap().to_string();
    let id = waiting.split("\"id\":\"").nth(1).unwrap().split('"').next().unwrap().to_owned();
    desk.runs(&all, When::Waiting, &id).await;
    assert!(desk.agent.cli(&["resume"]).status.success());

    let index = doc! { "key": { "email": 1 }, "name": "email", "unique": true, "sparse": true };
    let command = doc! { "createIndexes": "orders", "indexes": [index] };
    atlas.client.database("shop").run_command(command).await.unwrap();
    // What was tried again has failed again.
    let letters = async |desk: &Desk| {
        let health = desk.agent.health().filter(|health| health["queueSize"] == 0);
        health.and_then(|health| health["deadLetters"].as_u64())
    };
    let refused = (2_000..2_012).map(|id| doc! { "_id": id, "email": "x" });
    // Enough that go through, so that these are no wave of failures.
    let taken = (3_000..3_400).map(|id| doc! { "_id": id });
    orders(&local).insert_many(refused.chain(taken)).await.unwrap();
    // Each in its turn, since one that is tried again or discarded is no letter any more.
    for words in all.iter().filter(|words| when(words) == When::Refused) {
        eventually("dead letters", PATIENCE, async || letters(&desk).await > Some(0)).await;
        let listed = desk.agent.cli_json(&["dead", "list"]).unwrap();
        let id = listed[0]["id"].as_str().unwrap().to_owned();
        desk.runs(&BTreeSet::from([words.clone()]), When::Refused, &id).await;
    }

    desk.agent.stop();
    desk.runs(&all, When::Stopped, "").await;

    let left: Vec<_> = all.difference(&desk.done).collect();
    for words in &left {
        assert!(NOT_HERE.iter().any(|(begin, _)| words.starts_with(begin)), "{words} is not run");
    }
    for (begin, _) in NOT_HERE {
        assert!(left.iter().any(|words| words.starts_with(begin)), "nobody names `{begin}`");
    }
    assert!(desk.done.len() > 35 && left.len() < 12, "{left:?} of {:?}", desk.done);
}
