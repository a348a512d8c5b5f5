//! What the commands print: for people first what counts, for programs JSON, and always the next step.

use std::io::{BufRead, BufReader};

use mongodb::bson::{Document, doc};
use serde_json::Value;

use crate::support::{
    PATIENCE,
    agent::Agent,
    equal::equal,
    eventually, orders, pair,
    proxy::{Line, Proxy},
    unasked::Unasked::{DeadLetters, Repair},
};

fn out(output: &std::process::Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn err(output: &std::process::Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_letters_are_counted_named_by_the_beginning_of_an_id_and_tried_again_all_at_once() {
    let (local, atlas) = pair().await;
    orders(&local).insert_one(doc! { "_id": 0, "u": 1 }).await.unwrap();
    let mut agent = Agent::new(&local.uri(), &atlas.uri(), "[worker]\nmax_retries = 0\n");
    agent.may(&[DeadLetters], "Atlas has an index of its own, which refuses some");
    agent.start(&[]);
    agent.streaming().await;
    let index = doc! { "key": { "u": 1 }, "name": "u", "unique": true, "sparse": true };
    let command = doc! { "createIndexes": "orders", "indexes": [index] };
    atlas.client.database("shop").run_command(command).await.unwrap();
    // Enough that go through, so that those that do not are no wave of failures.
    orders(&local).insert_many((100..300).map(|id| doc! { "_id": id })).await.unwrap();
    orders(&local).insert_many((1..4).map(|id| doc! { "_id": id, "u": 1 })).await.unwrap();
    eventually("three letters", PATIENCE, async || agent.health().unwrap()["deadLetters"] == 3)
        .await;

    let list = out(&agent.cli(&["dead", "list", "--limit", "1"]));
    assert!(list.contains("2 more; `--limit 3` shows all 3"), "{list}");
    assert!(!out(&agent.cli(&["dead", "list"])).contains(" more;"));
    let failed = agent.cli(&["doc", "shop.orders", "1"]);
    assert_eq!(failed.status.code(), Some(1));
    assert!(out(&failed).contains("next       mend what the error names"), "{}", out(&failed));
    assert!(out(&failed).contains("`outrigger dead retry 0"), "{}", out(&failed));
    for verb in ["retry", "discard", "show"] {
        let typo = agent.cli(&["dead", verb, "nope"]);
        assert_eq!(typo.status.code(), Some(2), "{}", err(&typo));
        assert!(err(&typo).contains("`nope` is no id of any dead letter"), "{}", err(&typo));
        assert_eq!(err(&typo).contains("`--all`"), verb == "retry", "{}", err(&typo));
        assert!(err(&typo).contains("hint: `outrigger dead list`"), "{}", err(&typo));
    }
    let none = agent.cli(&["dead", "retry"]);
    assert_eq!(none.status.code(), Some(2));
    assert!(err(&none).contains("<ID|--all|--ns <NS>>"), "{}", err(&none));
    // Ids of one time begin alike.
    let several = agent.cli(&["dead", "retry", "0"]);
    assert_eq!(several.status.code(), Some(2));
    assert!(err(&several).contains("3 ids begin with `0`"), "{}", err(&several));
    let letters = agent.cli_json(&["dead", "list"]).unwrap();
    let id = letters[0]["id"].as_str().unwrap();
    let others: Vec<_> = (1..3).map(|n| letters[n]["id"].as_str().unwrap()).collect();
    let enough = (1..=id.len()).find(|n| others.iter().all(|other| other[..*n] != id[..*n]));
    let start = &id[..enough.unwrap()];
    assert_eq!(agent.cli_json(&["dead", "show", start]).unwrap()["id"], id);
    let nothing = agent.cli(&["dead", "retry", "ffff"]);
    assert_eq!(nothing.status.code(), Some(1));
    let elsewhere = agent.cli(&["dead", "retry", "--ns", "crm.*"]);
    assert_eq!(elsewhere.status.code(), Some(1));
    assert!(err(&elsewhere).contains("no dead letter is of crm.*"), "{}", err(&elsewhere));
    assert_eq!(agent.cli(&["dead", "retry"]).status.code(), Some(2));

    // Without an agent as well.
    assert!(agent.stop().success());
    assert_eq!(agent.cli_json(&["dead", "show", start]).unwrap()["id"], id);
    let queued = agent.cli_json(&["dead", "retry", "--ns", "shop.*"]).unwrap();
    assert_eq!((&queued["queued"], &queued["notRetried"]), (&3.into(), &0.into()), "{queued}");
    agent.start(&[]);
    agent.streaming().await;
    eventually("three letters", PATIENCE, async || {
        let health = agent.health().unwrap();
        health["deadLetters"] == 3 && health["queueSize"] == 0
    })
    .await;

    let drop = doc! { "dropIndexes": "orders", "index": "u" };
    atlas.client.database("shop").run_command(drop).await.unwrap();
    let all = agent.cli(&["dead", "retry", "--all"]);
    assert!(out(&all).contains("3 documents are queued again"), "{}", out(&all));
    equal(&local, &atlas, PATIENCE).await;
    eventually("no letter", PATIENCE, async || agent.health().unwrap()["deadLetters"] == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_counts_comes_first_what_is_equal_is_a_number_and_programs_get_json() {
    let (local, atlas) = pair().await;
    let line = Proxy::to(atlas.port).await;
    let shop = local.client.database("shop");
    for name in ["orders", "people", "parts"] {
        shop.collection::<Document>(name).insert_one(doc! { "_id": 1 }).await.unwrap();
    }
    let mut agent = Agent::new(&local.uri(), &line.uri(), "[alerts]\nqueue_size = 1\n");
    agent.may(&[Repair], "somebody writes to Atlas");
    agent.start(&[]);
    agent.streaming().await;
    equal(&local, &atlas, PATIENCE).await;

    let health = out(&agent.cli(&["status"]));
    assert!(health.starts_with("health   "), "{health}");
    let equal = out(&agent.cli(&["verify"]));
    assert!(equal.starts_with("3 collections are equal\n"), "{equal}");
    orders(&atlas).insert_one(doc! { "_id": "of Atlas alone" }).await.unwrap();
    let differs = out(&agent.cli(&["verify"]));
    assert!(differs.contains("\nshop.orders ") && !differs.contains("shop.parts"), "{differs}");
    assert!(differs.contains("\n2 collections are equal\n"), "{differs}");
    let unequal = agent.cli(&["doc", "shop.orders", "of Atlas alone"]);
    assert!(out(&unequal).contains("next       `outrigger sync --ns shop.orders"), "{unequal:?}");

    for (command, key) in [
        (&["sync", "--dry-run", "--wait"][..], "sync"),
        (&["sync", "--wait"], "sync"),
        (&["sync", "status"], "sync"),
        (&["sync", "status", "--wait"], "sync"),
        (&["sync"], "running"),
        (&["flush"], "upTo"),
        (&["pause"], "paused"),
        (&["resume"], "paused"),
        (&["status"], "status"),
        (&["verify"], "equal"),
        (&["doc", "shop.orders", "1"], "state"),
        (&["queue", "stats"], "pending"),
        (&["dashboard"], "address"),
    ] {
        let answer = agent.cli_json(command).unwrap_or_else(|| panic!("{command:?}"));
        assert!(!answer[key].is_null(), "{command:?}: {answer}");
    }

    eventually("the end of the sync", PATIENCE, async || {
        agent.cli_json(&["sync", "status"]).unwrap()["running"].is_null()
    })
    .await;

    // Atlas is away: whoever waits is told so, and it goes on.
    line.set(Line::Cut);
    orders(&local).insert_many((2..9).map(|id| doc! { "_id": id })).await.unwrap();
    agent.queued(5).await;
    eventually("the cause", PATIENCE, async || agent.health().unwrap()["atlasError"].is_string())
        .await;
    let status = out(&agent.cli(&["status"]));
    let mut lines = status.lines();
    assert_eq!(lines.next(), Some("health   unhealthy"), "{status}");
    assert!(lines.next().unwrap().starts_with("alert    "), "{status}");
    assert!(lines.next().unwrap().starts_with("atlas    "), "the cause: {status}");
    let mut sync = agent.command();
    sync.args(["sync", "--wait"]).stdout(std::process::Stdio::null());
    let mut sync = sync.stderr(std::process::Stdio::piped()).spawn().unwrap();
    let mut said = String::new();
    BufReader::new(sync.stderr.take().unwrap()).read_line(&mut said).unwrap();
    assert!(said.starts_with("note: ") && said.contains("tlas"), "{said}");
    line.set(Line::Up);
    let mut code = None;
    eventually("its end", PATIENCE, async || {
        code = sync.try_wait().unwrap();
        code.is_some()
    })
    .await;
    assert!(code.unwrap().success());

    assert!(agent.stop().success());
    for (command, value) in [(&["pause"][..], Value::from(true)), (&["resume"], Value::from(false))]
    {
        assert_eq!(agent.cli_json(command).unwrap()["paused"], value);
    }
    assert_eq!(agent.cli_json(&["queue", "clear", "--yes"]).unwrap()["removed"], 0);
}
