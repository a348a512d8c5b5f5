//! The agent inside a program of one's own.

use std::path::Path;

use mongodb::bson::{Document, doc};
use outrigger::{Agent, admin, config};

use crate::support::{PATIENCE, equal::documents_equal, eventually, free_port, pair};

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
            documents_equal(&local, &atlas, PATIENCE).await;
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
