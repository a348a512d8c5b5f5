//! Options, indexes and views as applications write them and drivers do not: what is named twice, what is no
//! text, what allows what is there and forbids what comes, and names that were somebody else's before.

use mongodb::{
    bson::{Document, RawDocumentBuf, doc, rawdoc},
    options::CollectionOptions,
};
use outrigger::model::raw::{Builder, kind};
use rand::{SeedableRng, rngs::StdRng};

use crate::support::{
    PATIENCE,
    agent::Agent,
    equal::{self, Everything, MayDiffer, differences, everything},
    eventually,
    mongod::Mongod,
    odd::{self, array_of, create_index, joined, twice},
    odd_work, pair, seed,
    unasked::Unasked::{Doubt, Repair, Retries},
};

async fn equal(local: &Mongod, atlas: &Mongod) {
    equal::equal(local, atlas, PATIENCE).await;
}

/// What the database `shop` holds.
async fn shop(server: &Mongod) -> Everything {
    let mut all = everything(server).await.unwrap();
    all.retain(|name, _| name.starts_with("shop."));
    all
}

/// A collection `NAME` with each kind of filter, and a view of it, all of which name a field twice.
fn make_all_twice(server: &Mongod, name: &str) {
    let options = joined(&rawdoc! { "create": name }, &twice("validator"));
    odd::run(server, "shop", &options);
    let unique = rawdoc! { "key": { "mail": 1 }, "name": "mail", "unique": true };
    create_index(server, "shop", name, &joined(&unique, &twice("partialFilterExpression")));
    let pipeline = array_of("pipeline", &twice("$match"));
    let view = rawdoc! { "create": format!("{name} seen"), "viewOn": name };
    odd::run(server, "shop", &joined(&view, &pipeline));
}

#[tokio::test]
async fn filters_pipelines_and_options_that_name_a_field_twice_arrive_whole() {
    let (local, atlas) = pair().await;
    make_all_twice(&local, "copied");
    let people = |name: &str| local.client.database("shop").collection::<Document>(name);
    // Neither is in the index, and the validator was not there.
    let bypass = |id: i32| doc! { "_id": id, "a": id, "mail": "x" };
    for id in [1, 2] {
        people("copied").insert_one(bypass(id)).bypass_document_validation(true).await.unwrap();
    }

    let agent = Agent::started(&local.uri(), &atlas.uri());
    agent.streaming().await;
    equal(&local, &atlas).await;
    make_all_twice(&local, "streamed");
    for id in [1, 2] {
        people("streamed").insert_one(bypass(id)).bypass_document_validation(true).await.unwrap();
    }
    // Changed later, by what names fields twice as well.
    odd::run(&local, "shop", &joined(&rawdoc! { "collMod": "copied" }, &twice("validator")));
    let plain = rawdoc! { "collMod": "copied seen", "viewOn": "streamed" };
    odd::run(&local, "shop", &joined(&plain, &array_of("pipeline", &twice("$match"))));
    equal(&local, &atlas).await;
    assert_eq!(agent.health().unwrap()["deadLetters"], 0);

    // What Atlas lacks of it is seen, and mended.
    let half = doc! { "collMod": "streamed", "validator": { "a": { "$lte": 20 } } };
    atlas.client.database("shop").run_command(half).await.unwrap();
    let verified = agent.cli_json(&["verify"]).unwrap();
    assert_eq!(verified["equal"], false, "{verified}");
    assert!(agent.cli(&["sync", "--wait"]).status.success());
    equal(&local, &atlas).await;
    assert_eq!(agent.cli_json(&["verify"]).unwrap()["equal"], true);
}

#[tokio::test]
async fn text_that_is_no_utf8_stops_nothing_and_what_cannot_be_named_is_left_out_by_name() {
    let (local, atlas) = pair().await;
    // In a filter, in a view, in a database that is not replicated, and in names.
    let odd_text = |name: &str| {
        let mut filter = outrigger::model::raw::Builder::default();
        let inner = odd::string("$gt", b"gr\xfc\xdfe");
        filter.document(name, |it| it.document("a", |a| a.extend(&inner)));
        filter.finish()
    };
    let make = |db: &str| {
        odd::run(&local, db, &joined(&rawdoc! { "create": "checked" }, &odd_text("validator")));
        let partial = rawdoc! { "key": { "a": 1 }, "name": "partial" };
        create_index(
            &local,
            db,
            "checked",
            &joined(&partial, &odd_text("partialFilterExpression")),
        );
        let pipeline = array_of("pipeline", &odd_text("$match"));
        odd::run(
            &local,
            db,
            &joined(&rawdoc! { "create": "seen", "viewOn": "checked" }, &pipeline),
        );
        odd::run(&local, db, &odd::string("create", b"caf\xe9"));
    };
    make("shop");
    make("elsewhere");
    odd::run_in(&local, b"entrep\xf4t", &rawdoc! { "create": "plain" });
    let plain = |name: &str| local.client.database("shop").collection::<Document>(name);
    plain("plain").insert_one(doc! { "_id": 1 }).await.unwrap();

    let mut agent =
        Agent::new(&local.uri(), &atlas.uri(), "[namespaces]\ninclude = [\"shop.*\"]\n");
    agent.start(&[]);
    agent.streaming().await;
    eventually("the same bytes", PATIENCE, async || shop(&local).await == shop(&atlas).await).await;
    let status = String::from_utf8(agent.cli(&["status"]).stdout).unwrap();
    assert!(status.contains("shop.caf\u{FFFD}`: its name holds what is no text"), "{status}");

    // While it runs as well.
    odd::run(&local, "shop", &odd::string("create", b"na\xefve"));
    let insert =
        joined(&odd::string("insert", b"na\xefve"), &array_of("documents", &rawdoc! { "_id": 1 }));
    odd::run(&local, "shop", &insert);
    odd::run(&local, "shop", &joined(&rawdoc! { "collMod": "checked" }, &odd_text("validator")));
    plain("plain").insert_one(doc! { "_id": 2 }).await.unwrap();
    eventually("what was written last", PATIENCE, async || {
        let there = atlas.client.database("shop").collection::<Document>("plain");
        there.count_documents(doc! {}).await.unwrap() == 2
    })
    .await;
    assert!(agent.cli(&["sync", "--wait"]).status.success());
    assert_eq!(agent.cli_json(&["verify"]).unwrap()["equal"], true);
    assert!(agent.stop().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn text_that_is_no_utf8_is_restored_verified_and_looked_up_and_nothing_is_left_out_in_silence()
 {
    let (local, atlas) = pair().await;
    let filter = |name: &str, text: &[u8]| {
        let mut filter = outrigger::model::raw::Builder::default();
        filter.document(name, |it| it.document("a", |a| a.extend(&odd::string("$ne", text))));
        filter.finish()
    };
    let insert = |server: &Mongod, documents: &[RawDocumentBuf]| {
        for document in documents {
            let insert = joined(&rawdoc! { "insert": "checked" }, &array_of("documents", document));
            odd::run(server, "shop", &insert);
        }
    };
    let (words, others) = (b"gr\xfc\xdfe", b"gr\xfc\xdfa");
    let pipeline = |text| array_of("pipeline", &filter("$match", text));
    let create = joined(&rawdoc! { "create": "checked" }, &filter("validator", words));
    odd::run(&local, "shop", &create);
    let view = rawdoc! { "create": "seen", "viewOn": "checked" };
    odd::run(&local, "shop", &joined(&view, &pipeline(words)));
    insert(
        &local,
        &[
            joined(&rawdoc! { "_id": 1 }, &odd::string("text", b"na\xefve")),
            joined(&odd::string("_id", b"na\xefve"), &rawdoc! { "v": 1 }),
        ],
    );
    let mut agent = Agent::started(&local.uri(), &atlas.uri());
    agent.may(&[Repair], "Atlas is written to by somebody else");
    agent.streaming().await;
    equal(&local, &atlas).await;
    for server in [&local, &atlas] {
        odd::run(server, "shop", &odd::string("create", b"caf\xe9"));
    }
    let left_out = "shop.caf\u{FFFD}: its name holds what is no text (UTF-8)";

    // Differences in nothing but bytes that are no text, in Atlas.
    let other_filter = joined(&rawdoc! { "collMod": "checked" }, &filter("validator", others));
    odd::run(&atlas, "shop", &other_filter);
    odd::run(
        &atlas,
        "shop",
        &joined(&rawdoc! { "collMod": "seen", "viewOn": "checked" }, &pipeline(others)),
    );
    for id in [rawdoc! { "_id": 1 }, odd::string("_id", b"na\xefve")] {
        let delete = joined(&id_of("q", &id), &rawdoc! { "limit": 1 });
        odd::run(
            &atlas,
            "shop",
            &joined(&rawdoc! { "delete": "checked" }, &array_of("deletes", &delete)),
        );
    }
    insert(
        &atlas,
        &[
            joined(&rawdoc! { "_id": 1 }, &odd::string("text", b"na\xeeve")),
            joined(&odd::string("_id", b"na\xeeve"), &rawdoc! { "v": 1 }),
        ],
    );
    let doc = |agent: &Agent, ns: &str| agent.cli(&["doc", ns, "1"]);
    // PENDING as long as not everything was read.
    eventually("the difference", PATIENCE, async || {
        let said = String::from_utf8_lossy(&doc(&agent, "shop.checked").stdout).into_owned();
        said.contains("FAILED") && said.contains("another content")
    })
    .await;
    let verified = agent.cli_json(&["verify"]).unwrap();
    assert_eq!(verified["leftOut"], serde_json::json!([left_out]), "{verified}");
    let found = |name: &str| {
        let all = verified["namespaces"].as_array().unwrap().iter();
        all.clone().find(|of| of["ns"] == name).cloned().unwrap_or_default()
    };
    let checked = found("shop.checked");
    let counts = ["missing", "extra", "different"].map(|kind| checked[kind]["count"].as_u64());
    assert_eq!(counts, [Some(1); 3], "{verified}");
    assert!(checked["schema"].to_string().contains("validator"), "{verified}");
    assert!(!found("shop.seen")["schema"].as_array().unwrap().is_empty(), "{verified}");

    assert!(agent.cli(&["sync", "--wait"]).status.success());
    assert_eq!(agent.cli_json(&["verify"]).unwrap()["equal"], true);
    assert!(String::from_utf8_lossy(&doc(&agent, "shop.checked").stdout).contains("SYNCED"));
    let refused = |agent: &Agent| {
        let output = doc(agent, "shop.caf\u{FFFD}");
        assert!(!output.status.success());
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    assert!(refused(&agent).contains("no text (UTF-8)"), "{}", refused(&agent));
    assert!(agent.stop().success());
    assert!(refused(&agent).contains("no text (UTF-8)"), "{}", refused(&agent));

    let new = Mongod::start().await;
    let restore = Agent::new(&new.uri(), &atlas.uri(), "").cli(&["restore"]);
    let said = String::from_utf8_lossy(&restore.stdout).into_owned();
    assert!(restore.status.success(), "{said}{}", String::from_utf8_lossy(&restore.stderr));
    assert!(
        said.contains("not restored: `shop.caf\u{FFFD}`: its name holds what is no text"),
        "{said}"
    );
    assert!(
        said.contains("restored 2 documents") && said.contains("both sides are equal"),
        "{said}"
    );
    let (mut here, mut there) = (shop(&new).await, shop(&local).await);
    for all in [&mut here, &mut there] {
        all.retain(|name, _| !name.contains("caf"));
    }
    assert_eq!(here, there);
}

/// `{NAME: ID}`.
fn id_of(name: &str, id: &RawDocumentBuf) -> RawDocumentBuf {
    let mut document = outrigger::model::raw::Builder::default();
    document.document(name, |q| q.extend(id));
    document.finish()
}

#[tokio::test]
async fn a_view_of_the_same_name_in_a_database_that_was_made_again_is_the_new_one() {
    let (local, atlas) = pair().await;
    let mut agent = Agent::new(&local.uri(), &atlas.uri(), "");
    agent.waits_long_for_atlas();
    agent.start(&[]);
    agent.streaming().await;
    let db = local.client.database("shop");
    let fill = async |n: i32| {
        db.collection("orders").insert_one(doc! { "_id": n }).await.unwrap();
        let seen =
            doc! { "create": "seen", "viewOn": "orders", "pipeline": [{ "$match": { "n": n } }] };
        db.run_command(seen).await.unwrap();
    };
    fill(1).await;
    eventually("the view", PATIENCE, async || shop(&local).await == shop(&atlas).await).await;

    // No event tells that the view is gone. The next look at everything comes before its successor is made, and
    // leaves alone what is about to be made.
    assert!(agent.cli(&["pause"]).status.success());
    db.drop().await.unwrap();
    fill(2).await;
    agent.queued(3).await;
    let block = doc! { "blockConnection": true, "blockTimeMS": 12_000 };
    let create = doc! { "failCommands": ["create"], "namespace": "shop.seen" };
    atlas.fail(create.into_iter().chain(block).collect(), 1).await;
    assert!(agent.cli(&["resume"]).status.success());
    atlas.is_at(doc! { "command.create": "seen" }).await;
    let looks = atlas.commands("listCollections").await;
    eventually("a look", PATIENCE, async || atlas.commands("listCollections").await > looks).await;
    equal(&local, &atlas).await;
    // At once, and not by another look at everything.
    let log = agent.log();
    assert!(!log.contains("differ; tried again"), "{log}");
}

#[tokio::test]
async fn a_database_that_comes_again_in_other_capitals_takes_the_place_of_the_old_one() {
    let (local, atlas) = pair().await;
    let agent = Agent::started(&local.uri(), &atlas.uri());
    agent.streaming().await;
    for (old, new) in [("Shop", "shop"), ("shop", "SHOP"), ("SHOP", "Shop")] {
        let fill = async |name: &str, id: &str| {
            let db = local.client.database(name);
            db.collection::<Document>("orders").insert_one(doc! { "_id": id }).await.unwrap();
            let view = doc! { "create": "seen", "viewOn": "orders", "pipeline": [] };
            let _ = db.run_command(view).await;
        };
        fill(old, "before").await;
        equal(&local, &atlas).await;
        local.client.database(old).drop().await.unwrap();
        fill(new, "after").await;
        equal(&local, &atlas).await;
        local.client.database(new).drop().await.unwrap();
    }
    // Not even what the server keeps of its views.
    eventually("nothing left of it", PATIENCE, async || {
        atlas
            .client
            .list_database_names()
            .await
            .unwrap()
            .iter()
            .all(|db| !db.eq_ignore_ascii_case("shop"))
    })
    .await;
    assert_eq!(agent.health().unwrap()["deadLetters"], 0);
}

/// The view goes by a look at everything, of which there are few where one takes long.
#[tokio::test]
async fn a_database_in_other_capitals_does_not_wait_for_as_long_as_looks_at_everything_rest() {
    let (local, atlas) = pair().await;
    let agent = Agent::started(&local.uri(), &atlas.uri());
    agent.streaming().await;
    let db = |name: &str| local.client.database(name);
    for name in ["other", "shop"] {
        db(name).collection("orders").insert_one(doc! { "_id": "before" }).await.unwrap();
        let view = doc! { "create": "seen", "viewOn": "orders", "pipeline": [] };
        db(name).run_command(view).await.unwrap();
    }
    equal(&local, &atlas).await;

    let slow =
        doc! { "failCommands": ["listIndexes"], "blockConnection": true, "blockTimeMS": 4_000 };
    atlas.fail(slow, 1).await;
    db("other").drop().await.unwrap();
    equal(&local, &atlas).await;
    assert_eq!(atlas.end_failing().await, 1, "a look took long");
    db("shop").drop().await.unwrap();
    db("SHOP").collection("orders").insert_one(doc! { "_id": "after" }).await.unwrap();

    equal(&local, &atlas).await;
    assert_eq!(agent.health().unwrap()["deadLetters"], 0);
}

#[tokio::test]
async fn a_delete_of_an_id_that_a_collation_takes_for_another_leaves_the_other_one_alone() {
    let (local, atlas) = pair().await;
    let db = local.client.database("shop");
    let folding = doc! { "create": "names", "collation": { "locale": "en", "strength": 2 } };
    db.run_command(folding).await.unwrap();
    let names = db.collection::<Document>("names");
    let low = [doc! { "_id": "a" }, doc! { "_id": { "n": "a" } }];
    let high = [doc! { "_id": "A" }, doc! { "_id": { "n": "A" } }];
    names.insert_many(&low).await.unwrap();
    let agent = Agent::started(&local.uri(), &atlas.uri());
    agent.streaming().await;
    equal(&local, &atlas).await;

    assert!(agent.cli(&["pause"]).status.success());
    for (low, high) in low.iter().zip(&high) {
        names.delete_one(low.clone()).await.unwrap();
        // More than one batch, so that what follows is written after what is in front.
        let others = db.collection::<Document>("others");
        others.insert_many((0..2_500).map(|_| doc! { "x": 1 })).await.unwrap();
        names.insert_one(high).await.unwrap();
        names.delete_one(high.clone()).await.unwrap();
        let mut again = low.clone();
        again.insert("again", true);
        names.insert_one(again).await.unwrap();
    }
    eventually("all of it in the queue", PATIENCE, async || {
        agent.health().is_some_and(|health| health["queueSize"].as_u64() >= Some(5_004))
    })
    .await;
    assert!(agent.cli(&["resume"]).status.success());
    equal(&local, &atlas).await;

    // One takes the other's place while changes flow.
    for (low, high) in low.iter().zip(&high) {
        names.delete_one(low.clone()).await.unwrap();
        names.insert_one(high).await.unwrap();
    }
    equal(&local, &atlas).await;
    assert_eq!(agent.health().unwrap()["deadLetters"], 0);
}

#[tokio::test]
async fn documents_that_an_index_forbids_from_now_on_arrive_before_it_does() {
    let (local, atlas) = pair().await;
    let orders = |server: &Mongod| {
        let db = server.client.database("shop");
        db.collection_with_options::<Document>("orders", CollectionOptions::default())
    };
    let filler = "x".repeat(1_000);
    let document = |id: i32| doc! { "_id": id, "same": id % 100, "filler": &filler };
    orders(&local).insert_many((0..20_000).map(document)).await.unwrap();
    let index =
        doc! { "createIndexes": "orders", "indexes": [{ "key": { "same": 1 }, "name": "same" }] };
    let prepare = doc! { "collMod": "orders", "index": { "name": "same", "prepareUnique": true } };
    let db = local.client.database("shop");
    db.run_command(index).await.unwrap();
    let agent = Agent::new(&local.uri(), &atlas.uri(), "[sync]\nmax_docs_per_second = 5000\n");
    let mut agent = agent;
    agent.may(&[Repair], "documents are taken away in Atlas");
    agent.start(&[]);
    eventually("a copy that has begun", PATIENCE, async || {
        orders(&atlas).estimated_document_count().await.unwrap() > 0
    })
    .await;
    db.run_command(prepare).await.unwrap();
    agent.streaming().await;
    equal(&local, &atlas).await;

    // A document that is missing later comes back by a sync, and the index is as it was.
    orders(&atlas).delete_many(doc! { "_id": { "$lt": 5 } }).await.unwrap();
    assert!(agent.cli(&["sync", "--wait"]).status.success());
    equal(&local, &atlas).await;
    assert_eq!(agent.health().unwrap()["deadLetters"], 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn odd_schema_that_changes_at_random_ends_equal() {
    let mut rng = StdRng::seed_from_u64(seed());
    let (local, atlas) = pair().await;
    let mut agent = Agent::started(&local.uri(), &atlas.uri());
    agent.may(&[Doubt, Retries], "anything may come, and the agent is killed between");
    agent.streaming().await;

    for round in 0..16 {
        let is_paused = round % 4 == 1;
        if is_paused {
            assert!(agent.cli(&["pause"]).status.success());
        }
        if round % 4 == 3 {
            agent.kill();
        }
        for _ in 0..40 {
            odd_work::step(local.port, &mut rng).await.unwrap();
        }
        if is_paused {
            assert!(agent.cli(&["resume"]).status.success());
        }
        if round % 4 == 3 {
            agent.start(&[]);
        }
        println!("round {round}");
        equal(&local, &atlas).await;
    }

    agent.streaming().await;
    assert_eq!(agent.health().unwrap()["deadLetters"], 0);
    assert!(agent.stop().success());
}

/// The comparison itself: every kind of difference that is made in one of two equal servers is found, and named.
#[tokio::test(flavor = "multi_thread")]
async fn the_comparison_of_the_random_suites_finds_a_difference_of_every_kind() {
    let (local, atlas) = pair().await;
    for server in [&local, &atlas] {
        make_all_twice(server, "copied");
        let run = |command: RawDocumentBuf| drop(odd::run(server, "shop", &command));
        run(rawdoc! { "create": "log", "capped": true, "size": 4_096 });
        run(rawdoc! { "insert": "log", "documents": [{ "_id": 2 }, { "_id": 1 }, { "_id": 3 }] });
        run(rawdoc! { "insert": "plain", "documents": [
            { "_id": 1, "a": 1, "b": 2 }, { "_id": 2 }, { "_id": 9, "a": 2 },
        ] });
        run(rawdoc! { "create": "empty" });
    }
    let found = async || {
        let (here, there) = (everything(&local).await.unwrap(), everything(&atlas).await.unwrap());
        differences(&here, &there, MayDiffer::Nothing)
    };
    assert_eq!(found().await, Vec::<String>::new());
    let replace = |document: RawDocumentBuf| {
        let update = rawdoc! { "q": { "_id": 1 }, "u": document };
        joined(&rawdoc! { "update": "plain" }, &array_of("updates", &update))
    };
    let no_filter = |name: &str| odd::raw(&doc! { name: { "a": { "$lte": 20 } } });
    let pipeline = array_of("pipeline", &no_filter("$match"));
    let ordered =
        rawdoc! { "insert": "log", "documents": [{ "_id": 1 }, { "_id": 2 }, { "_id": 3 }] };
    let mail = rawdoc! { "key": { "mail": 1 }, "name": "mail", "unique": true };
    let half = joined(&mail, &no_filter("partialFilterExpression"));
    // A driver's document has the second of them alone.
    let mut twice_named = Builder::default();
    for (name, value) in [("_id", 9), ("a", 1), ("a", 2)] {
        twice_named.push(kind::INT32, name, &i32::to_le_bytes(value));
    }
    let twice_named = array_of("documents", &twice_named.finish());
    let twice_named = joined(&rawdoc! { "insert": "plain" }, &twice_named);
    // What is done to Atlas, one on top of the other, and the words for it.
    let planted: Vec<(Vec<RawDocumentBuf>, &str)> = vec![
        (
            vec![replace(rawdoc! { "b": 2, "a": 1 })],
            "document only in Atlas: Document({\"_id\": Int32(1), \"b\"",
        ),
        (
            vec![replace(rawdoc! { "a": 1.0, "b": 2 })],
            "document only in Atlas: Document({\"_id\": Int32(1), \"a\": Double(1.0)",
        ),
        (
            vec![
                rawdoc! { "delete": "plain", "deletes": [{ "q": { "_id": 9 }, "limit": 1 }] },
                twice_named,
            ],
            "document missing in Atlas: Document({\"_id\": Int32(9), \"a\": Int32(2)})",
        ),
        (
            vec![rawdoc! { "delete": "plain", "deletes": [{ "q": { "_id": 2 }, "limit": 1 }] }],
            "document missing in Atlas: Document({\"_id\": Int32(2)})",
        ),
        (
            vec![rawdoc! { "insert": "plain", "documents": [{ "_id": 3 }] }],
            "document only in Atlas: Document({\"_id\": Int32(3)})",
        ),
        (
            vec![
                rawdoc! { "drop": "log" },
                rawdoc! { "create": "log", "capped": true, "size": 4_096 },
                ordered,
            ],
            "shop.log: the order of a capped collection differs",
        ),
        (
            vec![joined(&rawdoc! { "collMod": "copied" }, &no_filter("validator"))],
            "shop.copied: options",
        ),
        (
            vec![rawdoc! { "dropIndexes": "copied", "index": "mail" }],
            "shop.copied: index missing in Atlas",
        ),
        (
            vec![joined(&rawdoc! { "createIndexes": "copied" }, &array_of("indexes", &half))],
            "shop.copied: index only in Atlas",
        ),
        (
            vec![joined(&rawdoc! { "collMod": "copied seen", "viewOn": "copied" }, &pipeline)],
            "shop.copied seen: options",
        ),
        (
            vec![rawdoc! { "drop": "copied seen" }, rawdoc! { "create": "copied seen" }],
            "shop.copied seen: a view locally, a collection in Atlas",
        ),
        (vec![rawdoc! { "drop": "empty" }], "shop.empty: collection missing in Atlas"),
        (vec![rawdoc! { "create": "new" }], "shop.new: collection only in Atlas"),
    ];
    let mut before = 0;
    for (commands, words) in planted {
        for command in commands {
            odd::run(&atlas, "shop", &command);
        }

        let found = found().await;

        assert!(found.iter().any(|text| text.contains(words)), "{words}: {found:#?}");
        before = before.max(found.len());
    }
    assert!(before > 8, "they add up");
    // Where a comparison brought documents, the order may differ; nothing else may.
    let (here, there) = (everything(&local).await.unwrap(), everything(&atlas).await.unwrap());
    let found = differences(&here, &there, MayDiffer::Order);
    assert!(!found.iter().any(|text| text.contains("order")), "{found:#?}");
    assert!(found.len() + 1 == differences(&here, &there, MayDiffer::Nothing).len());
}
