//! A target of one's own, complete: each change of a local MongoDB as a line of JSON on the standard output.
//!
//! ```sh
//! MONGODB_LOCAL_URI=mongodb://127.0.0.1/?replicaSet=rs0 cargo run --example stdout_sink
//! ```
//!
//! ```text
//! {"ns":"shop.orders","op":"write","_id":1,"document":{"_id":1,"total":12}}
//! {"ns":"shop.orders","op":"delete","_id":1}
//! ```
//!
//! The agent around it does the rest: it gives the sink every document that is there, and then each change, survives
//! crashes and outages, keeps what the sink does not take, and tries it again. A line may come twice; an older version
//! of a document never comes behind a newer one.

use std::{io, path::Path, sync::Mutex};

use bson::{Bson, Document, RawDocument};
use outrigger::{
    Agent, AgentError, config,
    model::namespace::Namespace,
    sink::{Sink, SinkError, Write, Written},
};
use serde_json::{Value, json};

/// Writes lines.
pub struct Lines<W>(pub Mutex<W>);

impl<W: io::Write + Send + 'static> Sink for Lines<W> {
    /// All writes of a call are to different documents of one collection. Each gets an outcome, in the same order. To
    /// return an error instead means that nothing is known of any of them: they are given again, after a wait.
    async fn write(&self, ns: &Namespace, writes: &[Write<'_>]) -> Result<Vec<Written>, SinkError> {
        let mut outcomes = Vec::with_capacity(writes.len());
        let mut text = String::new();
        for write in writes {
            match line(ns, write) {
                Ok(line) => {
                    text.push_str(&line.to_string());
                    text.push('\n');
                    outcomes.push(Written::Applied { created: false });
                }
                // Tried some times more, then kept as a dead letter with this reason; the others flow on.
                Err(reason) => outcomes.push(Written::Rejected {
                    reason,
                    refusal: outrigger::model::write_op::Refusal::Other,
                }),
            }
        }
        let mut out = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        out.write_all(text.as_bytes())
            .and_then(|()| out.flush())
            .map_err(|error| SinkError::Unavailable(error.to_string()))?;
        Ok(outcomes)
    }

    // `takes_changes` is not here, so this sink never sees a `Write::Change` or `Write::Merge`: each update comes as a whole document.
}

fn line(ns: &Namespace, write: &Write<'_>) -> Result<Value, String> {
    let ns = ns.as_str();
    let id = write.key().map(|key| key.to_json());
    Ok(match write {
        Write::Insert(document) | Write::Upsert { document, .. } => {
            json!({ "ns": ns, "op": "write", "_id": id, "document": json_of(document)? })
        }
        Write::Delete(_) => json!({ "ns": ns, "op": "delete", "_id": id }),
        Write::Change { .. } | Write::Merge { .. } => {
            unreachable!("of a sink that takes no changes")
        }
    })
}

/// Relaxed Extended JSON.
fn json_of(document: &RawDocument) -> Result<Value, String> {
    let document = Document::try_from(document).map_err(|error| error.to_string())?;
    Ok(Bson::Document(document).into_relaxed_extjson())
}

#[tokio::main]
#[allow(dead_code, reason = "the test of this example brings its own")]
async fn main() -> Result<(), AgentError> {
    let file = Path::new("config.toml");
    let config = config::load(file.exists().then_some(file), |name| std::env::var(name).ok())?;
    let agent = Agent::builder(config).sink(Lines(Mutex::new(io::stdout()))).prepare().await?;
    let until = async {
        let _ = tokio::signal::ctrl_c().await;
    };
    agent.run(until).await
}
