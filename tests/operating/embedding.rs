//! The agent inside a program of one's own.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Arc, Mutex},
};

use mongodb::bson::{Document, doc};
use outrigger::{Agent, admin, config};

use crate::support::{PATIENCE, equal::equal, eventually, free_port, mongod::Mongod, orders, pair};

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_in_a_program_of_ones_own_replicates_and_opens_a_port_only_when_told_to() {
    let (local, atlas) = pair().await;
    let dir = tempfile::tempdir().unwrap();
    let listen = format!("127.0.0.1:{}", free_port());
    let text = format!(
        "[local]\nuri = \"{}\"\n[atlas]\nuri = \"{}\"\nallow_insecure = true\n[queue]\npath = \"{}\"\n[admin]\nlisten = \"{listen}\"\ntoken_file = \"{}\"\n",
        local.uri(),
        atlas.uri(),
        dir.path().join("queue").display(),
        dir.path().join("token").display(),
    );
    let config = config::parse(&text, Path::new("config.toml"), |_| None).unwrap();
    let orders = local.client.database("shop").collection::<Document>("orders");

    for (n, is_served) in [(1, false), (2, true)] {
        let mut builder = Agent::builder(config.clone());
        if is_served {
            builder = builder.serve(admin::start);
        }
        let agent = builder.prepare().await.unwrap();
        let handles = agent.handles();
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        // It is a task like any other.
        let running = tokio::spawn(agent.run(async { stopped.await.unwrap() }));
        let looking = async {
            orders.insert_one(doc! { "_id": n }).await.unwrap();
            equal(&local, &atlas, PATIENCE).await;
            eventually("an empty queue", PATIENCE, async || handles.queue.pending().0 == 0).await;
            let answers = tokio::net::TcpStream::connect(&listen).await.is_ok();
            assert_eq!(answers, is_served);
            drop(handles);
            stop.send(()).unwrap();
        };
        let (ended, ()) = tokio::join!(running, looking);
        ended.unwrap().unwrap();
    }
}

#[path = "../../examples/stdout_sink.rs"]
mod stdout_sink;

/// What the example has written, to be looked at while it runs.
#[derive(Clone, Default)]
struct Page(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Page {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Page {
    /// The last line about each document of a collection, by its `_id`.
    fn last_words_of(&self, ns: &str) -> BTreeMap<i64, serde_json::Value> {
        let text = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
        let lines =
            text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        lines
            .filter(|line| line["ns"] == ns)
            .map(|line| (line["_id"].as_i64().unwrap(), line))
            .collect()
    }

    fn last_words(&self) -> BTreeMap<i64, serde_json::Value> {
        self.last_words_of("shop.orders")
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sink_of_ones_own_is_given_what_is_there_and_each_change_across_a_restart_and_no_atlas_is_needed()
 {
    let local = Mongod::start().await;
    let dir = tempfile::tempdir().unwrap();
    let text = format!(
        "[local]\nuri = \"{}\"\n[queue]\npath = \"{}\"\n",
        local.uri(),
        dir.path().join("queue").display(),
    );
    let config = config::parse(&text, Path::new("config.toml"), |_| None).unwrap();
    let orders = orders(&local);
    let many = (10..2_010).map(|n| doc! { "_id": n, "v": 1 });
    orders
        .insert_many(many.chain([doc! { "_id": 1, "v": 1 }, doc! { "_id": 2, "v": 1 }]))
        .await
        .unwrap();
    let old = local.client.database("shop").collection::<Document>("old");
    old.insert_one(doc! { "_id": 7 }).await.unwrap();
    let page = Page::default();
    let version = |id: i64, v: i64| {
        let said = page.last_words();
        said.get(&id)
            .is_some_and(|line| line["document"] == serde_json::json!({ "_id": id, "v": v }))
    };

    for run in 1..=2 {
        let sink = stdout_sink::Lines(Mutex::new(page.clone()));
        let agent = Agent::builder(config.clone()).sink(sink).prepare().await.unwrap();
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let looking = async {
            if run == 1 {
                eventually("the first copy", PATIENCE, async || page.last_words().len() == 2_002)
                    .await;
                orders.update_one(doc! { "_id": 1 }, doc! { "$set": { "v": 2 } }).await.unwrap();
                eventually("an update as a whole document", PATIENCE, async || version(1, 2)).await;
                local.admin(doc! { "renameCollection": "shop.old", "to": "shop.new" }).await;
                let is_given = async || page.last_words_of("shop.new").contains_key(&7);
                eventually("what was renamed", PATIENCE, is_given).await;
            } else {
                eventually("what changed meanwhile", PATIENCE, async || version(1, 3)).await;
                let is_deleted = async || page.last_words()[&2]["op"] == "delete";
                eventually("the delete", PATIENCE, is_deleted).await;
                assert!(version(3, 1), "what was made before is there by now");
            }
            stop.send(()).unwrap();
        };
        let (ended, ()) = tokio::join!(agent.run(async { stopped.await.unwrap() }), looking);
        ended.unwrap();
        if run == 1 {
            orders.insert_one(doc! { "_id": 3, "v": 1 }).await.unwrap();
            orders.update_one(doc! { "_id": 1 }, doc! { "$inc": { "v": 1 } }).await.unwrap();
            orders.delete_one(doc! { "_id": 2 }).await.unwrap();
        }
    }
}
