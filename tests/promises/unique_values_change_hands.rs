//! Unique values that are released by one document and taken by another arrive without a person and
//! without a dead letter, in whichever order coalescing put the writes.
//!
//! Changes are made while the agent is paused, so that it meets all of them together, coalesced.

use mongodb::{
    Collection,
    bson::{Document, doc, rawdoc},
};
use rand::{Rng, SeedableRng, rngs::StdRng, seq::SliceRandom};

use crate::support::{
    PATIENCE,
    agent::Agent,
    equal::equal,
    eventually,
    mongod::Mongod,
    odd, orders, pair, seed,
    unasked::Unasked::{DeadLetters, Retries},
};

/// Both ends with the same indexes, documents `{_id: n, u: "n"}` on both, and an agent between them.
struct Stage {
    local: Mongod,
    atlas: Mongod,
    agent: Agent,
    orders: Collection<Document>,
}

impl Stage {
    async fn set(config: &str, index: Document, documents: i32) -> Self {
        let (local, atlas) = pair().await;
        for server in [&local, &atlas] {
            let command = doc! { "createIndexes": "orders", "indexes": [index.clone()] };
            server.client.database("shop").run_command(command).await.unwrap();
        }
        let orders = orders(&local);
        if documents > 0 {
            let documents = (0..documents).map(|n| doc! { "_id": n, "u": n.to_string() });
            orders.insert_many(documents).await.unwrap();
        }
        let mut agent = Agent::new(&local.uri(), &atlas.uri(), config);
        agent.may(&[Retries], "for a moment a value is another document's");
        agent.start(&["--adopt"]);
        agent.streaming().await;
        let stage = Self { local, atlas, agent, orders };
        stage.converge().await;
        stage
    }

    /// Makes changes that Atlas learns of together, and waits until it has them.
    async fn while_paused(&self, changes: impl AsyncFnOnce(&Self)) {
        // Paused and not cut, so that no batch is under way that holds half of it.
        assert!(self.agent.cli(&["pause"]).status.success());
        changes(self).await;
        let last = doc! { "_id": mongodb::bson::oid::ObjectId::new(), "u": "the last" };
        let id = last.get_object_id("_id").unwrap();
        self.orders.insert_one(last).await.unwrap();
        eventually("all changes in the queue", PATIENCE, async || {
            let list = self.agent.cli_json(&["queue", "list", "--limit", "10000"]);
            list.is_some_and(|list| list.to_string().contains(&id.to_hex()))
        })
        .await;
        self.orders.delete_one(doc! { "_id": id }).await.unwrap();
        assert!(self.agent.cli(&["resume"]).status.success());
        self.converge().await;
    }

    async fn converge(&self) {
        equal(&self.local, &self.atlas, PATIENCE).await;
        eventually("an empty queue", PATIENCE, async || {
            self.agent.health().is_some_and(|health| health["queueSize"] == 0)
        })
        .await;
        let health = self.agent.health().unwrap();
        assert_eq!(health["deadLetters"], 0, "{health}");
    }

    async fn set_value(&self, id: i32, value: &str) {
        self.orders.update_one(doc! { "_id": id }, doc! { "$set": { "u": value } }).await.unwrap();
    }

    /// Gives document n the value of document n + 1, and the last one that of the first.
    async fn rotate(&self, documents: i32, value: impl Fn(i32) -> String) {
        self.set_value(0, "nobody's").await;
        for n in (1..documents).rev() {
            // Backwards each value would be taken still; so all step aside first.
            self.set_value(n, &format!("aside {n}")).await;
        }
        for n in 0..documents {
            self.set_value(n, &value((n + 1) % documents)).await;
        }
    }

    fn resolved(&self) -> bool {
        let url = format!("http://127.0.0.1:{}/api/sync/metrics", self.agent.admin_port);
        let metrics = ureq::get(url).call().unwrap().body_mut().read_to_string().unwrap();
        let metrics: serde_json::Value = serde_json::from_str(&metrics).unwrap();
        metrics["conflictsResolved"].as_u64().unwrap() > 0
    }
}

fn unique() -> Document {
    doc! { "key": { "u": 1 }, "name": "u", "unique": true }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_value_that_one_document_releases_and_another_takes_arrives() {
    let stage = Stage::set("[worker]\nlanes = 1\n", unique(), 2).await;

    stage
        .while_paused(async |stage| {
            // First changed first written: document 1 takes what document 0 frees later in the batch.
            stage.set_value(1, "x").await;
            stage.set_value(0, "freed").await;
            stage.set_value(1, "0").await;
        })
        .await;
    stage
        .while_paused(async |stage| {
            stage.set_value(1, "y").await;
            stage.orders.delete_one(doc! { "_id": 0 }).await.unwrap();
            stage.set_value(1, "freed").await;
        })
        .await;
    stage
        .while_paused(async |stage| {
            // The new document's insert stands before the update that frees its value.
            stage.orders.insert_one(doc! { "_id": 5, "u": "z" }).await.unwrap();
            stage.set_value(1, "w").await;
            stage.set_value(5, "freed").await;
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_swap_a_cycle_of_three_and_a_chain_of_a_hundred_arrive() {
    for update_mode in ["document", "delta"] {
        let config = format!("[worker]\nupdate_mode = \"{update_mode}\"\n");
        let stage = Stage::set(&config, unique(), 100).await;
        for documents in [2, 3, 100] {
            stage
                .while_paused(async |stage| {
                    stage.rotate(documents, |n| format!("{documents} {n}")).await;
                    // From here each document holds a value in Atlas's eyes that another needs.
                })
                .await;
            stage
                .while_paused(async |stage| {
                    stage
                        .rotate(documents, |n| format!("{documents} {}", (n + 1) % documents))
                        .await;
                })
                .await;
        }
        assert!(stage.resolved(), "no conflict was met: this proves nothing");
    }
}

/// The server repeats a value that is taken in its message, and cuts it by bytes: within a character, where the
/// letters have two. Values that are no text at all it repeats as they are.
#[tokio::test(flavor = "multi_thread")]
async fn long_values_that_the_server_cuts_within_a_letter_and_values_that_are_no_text_change_hands()
{
    let stage = Stage::set("", unique(), 4).await;
    // With one more or one less in front of it, one of the two is cut within a letter.
    let long = |before: &str, n: i32| format!("{before}{}{n}", "я".repeat(120));
    stage
        .while_paused(async |stage| {
            stage.rotate(2, |n| long("", n)).await;
            stage.set_value(2, &long("x", 2)).await;
            stage.set_value(3, &long("x", 3)).await;
        })
        .await;

    stage
        .while_paused(async |stage| {
            stage.rotate(2, |n| long("", (n + 1) % 2)).await;
            stage.set_value(2, "aside").await;
            stage.set_value(3, &long("x", 2)).await;
            stage.set_value(2, &long("x", 3)).await;
        })
        .await;
    assert!(stage.resolved(), "no conflict was met: this proves nothing");

    let set_bytes = |id: i32, bytes: &[u8]| {
        let set = odd::string("u", bytes);
        let update = rawdoc! { "q": { "_id": id }, "u": { "$set": set } };
        let command =
            odd::joined(&rawdoc! { "update": "orders" }, &odd::array_of("updates", &update));
        odd::run(&stage.local, "shop", &command);
    };
    for (first, second) in [(&b"\xFFa"[..], &b"\xFFb"[..]), (b"\xFFb", b"\xFFa")] {
        stage
            .while_paused(async |_| {
                set_bytes(0, b"aside");
                set_bytes(1, second);
                set_bytes(0, first);
            })
            .await;
    }
}

/// Small batches and several lanes: what takes a value and what frees it are in different batches.
#[tokio::test(flavor = "multi_thread")]
async fn random_exchanges_between_many_documents_arrive() {
    let mut rng = StdRng::seed_from_u64(seed());
    for config in
        ["[worker]\nbatch_size = 3\nlanes = 4\n", "[worker]\nbatch_size = 40\nlanes = 2\n"]
    {
        let stage = Stage::set(config, unique(), 40).await;
        for round in 0..6 {
            let mut values: Vec<_> = (0..40).collect();
            values.shuffle(&mut rng);
            let gone: Vec<i32> = (0..40).filter(|_| rng.random_bool(0.1)).collect();
            stage
                .while_paused(async |stage| {
                    for n in 0..40 {
                        stage.set_value(n, &format!("aside {n}")).await;
                    }
                    for n in &gone {
                        stage.orders.delete_one(doc! { "_id": n }).await.unwrap();
                    }
                    for (n, value) in (0..).zip(&values) {
                        stage.set_value(n, &value.to_string()).await;
                    }
                    for n in &gone {
                        let value = values[usize::try_from(*n).unwrap()].to_string();
                        let born = doc! { "_id": n, "u": value, "round": round };
                        stage.orders.insert_one(born).await.unwrap();
                    }
                })
                .await;
        }
        assert!(stage.resolved());
    }
}

/// The application swaps on while the agent writes.
#[tokio::test(flavor = "multi_thread")]
async fn exchanges_that_go_on_while_they_are_written_arrive() {
    let stage = Stage::set("[worker]\nbatch_size = 5\nlanes = 4\n", unique(), 10).await;
    let mut rng = StdRng::seed_from_u64(seed());
    for n in 0..400 {
        let (a, b) = (rng.random_range(0..10), rng.random_range(0..10));
        let value = async |id| {
            let found = stage.orders.find_one(doc! { "_id": id }).await.unwrap().unwrap();
            found.get_str("u").unwrap().to_owned()
        };
        let (of_a, of_b) = (value(a).await, value(b).await);
        if a != b {
            stage.set_value(a, &format!("aside {n}")).await;
            stage.set_value(b, &of_a).await;
            stage.set_value(a, &of_b).await;
        }
    }

    stage.converge().await;
}

/// The n-th content of a document.
type Form = fn(i32) -> Document;

fn bson_array(items: &[i32]) -> Vec<mongodb::bson::Bson> {
    items.iter().map(|item| (*item).into()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn indexes_of_every_form_let_values_change_hands() {
    let folding = doc! { "locale": "en", "strength": 2 };
    let forms: [(&str, Document, Form); 8] = [
        // Its sort keys are no UTF-8.
        ("folding", doc! { "key": { "u": 1 }, "unique": true, "collation": folding }, |n| {
            doc! { "u": format!("Ünïcödé 日本 {n}") }
        }),
        ("compound", doc! { "key": { "a": 1, "b.c": -1 }, "unique": true }, |n| {
            doc! { "u": "same", "a": 1, "b": { "c": n } }
        }),
        ("multikey", doc! { "key": { "tags": 1 }, "unique": true }, |n| {
            doc! { "tags": [format!("{n}"), format!("also {n}")] }
        }),
        (
            "partial",
            doc! { "key": { "u": 1 }, "unique": true, "partialFilterExpression": { "p": true } },
            |n| {
                // Some let go of their value by leaving the index.
                doc! { "u": n % 100, "p": n < 100 }
            },
        ),
        // Every key is null: an empty array, and scalars where the path goes on.
        (
            "nested",
            doc! { "key": { "t": 1, "l.s": 1 }, "unique": true },
            |n| doc! { "t": n, "l": if n % 2 == 0 { bson_array(&[]) } else { bson_array(&[3]) } },
        ),
        // Both documents share values across the elements without sharing a key.
        ("pairs", doc! { "key": { "l.s": 1, "l.t": 1 }, "unique": true }, |n| {
            doc! { "l": [{ "s": n, "t": 1 }, { "s": n + 1, "t": 2 }] }
        }),
        ("sparse", doc! { "key": { "s": 1 }, "unique": true, "sparse": true }, |n| doc! { "s": n }),
        ("hidden", doc! { "key": { "u": 1 }, "unique": true, "hidden": true }, |n| doc! { "u": n }),
    ];
    for (name, mut index, document) in forms {
        index.insert("name", name);
        let stage = Stage::set("", index, 0).await;
        let put = async |id: i32, content: Document| {
            stage.orders.replace_one(doc! { "_id": id }, content).upsert(true).await.unwrap();
        };
        for n in 0..3 {
            put(n, document(n)).await;
        }
        stage.converge().await;
        stage
            .while_paused(async |_| {
                for n in 0..3 {
                    put(n, document(100 + n)).await;
                }
                for n in 0..3 {
                    put(n, document((n + 1) % 3)).await;
                }
            })
            .await;
        assert!(stage.resolved(), "{name}: no conflict was met");
    }
}

/// What Atlas alone holds may be anybody's, so it is not deleted for the sake of a write.
#[tokio::test(flavor = "multi_thread")]
async fn a_value_that_a_foreign_document_holds_makes_a_dead_letter_that_can_be_retried() {
    let config = "[worker]\nmax_retries = 2\nretry_delays = [\"200ms\"]\n";
    let stage = Stage::set(config, unique(), 1).await;
    stage.agent.may(&[DeadLetters], "Atlas has the value from somebody else");
    let in_atlas = orders(&stage.atlas);
    in_atlas.insert_one(doc! { "_id": "foreign", "u": "wanted" }).await.unwrap();

    stage
        .orders
        .insert_many([
            doc! { "_id": 10, "u": "before" },
            doc! { "_id": 11, "u": "wanted" },
            doc! { "_id": 12, "u": "after" },
        ])
        .await
        .unwrap();
    eventually("a dead letter", PATIENCE, async || {
        stage.agent.health().unwrap()["deadLetters"] == 1
    })
    .await;

    let letters = stage.agent.cli_json(&["dead", "list"]).unwrap();
    let letter = &letters[0];
    assert_eq!((&letter["documentId"], &letter["attempts"]), (&11.into(), &3.into()), "{letter}");
    assert!(letter["reason"].as_str().unwrap().contains("only in Atlas"), "{letter}");
    assert!(in_atlas.find_one(doc! { "_id": "foreign" }).await.unwrap().is_some());
    for id in [10, 12] {
        assert!(in_atlas.find_one(doc! { "_id": id }).await.unwrap().is_some(), "{id} flows on");
    }
    in_atlas.delete_one(doc! { "_id": "foreign" }).await.unwrap();
    let id = letter["id"].as_str().unwrap();
    assert!(stage.agent.cli(&["dead", "retry", id]).status.success());
    stage.converge().await;
}
