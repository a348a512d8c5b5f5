//! The limits: the least that anything which does the agent's work must do, with raw commands and nothing parsed.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bson::{RawArrayBuf, RawDocument, RawDocumentBuf, Timestamp, rawdoc};
use futures_util::StreamExt;
use mongodb::{
    Client,
    options::{ClientOptions, Compressor, CursorType},
    raw_batch_cursor::{RawBatch, RawBatchCursor},
};
use outrigger::model::namespace::NamespaceFilter;
use tokio::sync::{Mutex, mpsc};

use crate::bed::Variant;

/// How a raw read of the change stream went.
pub struct Read {
    /// From the question to the last event.
    pub elapsed: Duration,
    /// Events per second behind the first batch.
    pub per_second: f64,
}

/// The filter that the agent has where nothing else is said.
fn of_shop() -> NamespaceFilter {
    NamespaceFilter::new(&["shop.*".to_owned()], &[]).unwrap()
}

/// Opens the change stream with the agent's pipeline, at a time. Its replies are as large as the server makes them.
pub async fn open_stream(client: &Client, from: Timestamp) -> RawBatchCursor {
    open_filtered(client, from, &of_shop()).await
}

/// As [`open_stream`], with any filter.
async fn open_filtered(
    client: &Client,
    from: Timestamp,
    filter: &NamespaceFilter,
) -> RawBatchCursor {
    let stage = rawdoc! {
        "allChangesForCluster": true,
        "showExpandedEvents": true,
        "showRawUpdateDescription": true,
        "startAtOperationTime": from,
    };
    let mut pipeline = RawArrayBuf::new();
    pipeline.push(rawdoc! { "$changeStream": stage });
    pipeline.push(filter.to_match_stage());
    let command = rawdoc! { "aggregate": 1, "pipeline": pipeline, "cursor": {} };
    open(client, "admin", command).await
}

/// Opens any change stream.
pub async fn open(client: &Client, db: &str, command: RawDocumentBuf) -> RawBatchCursor {
    let db = client.database(db);
    let cursor = db.run_raw_cursor_command(command).cursor_type(CursorType::TailableAwait);
    cursor.max_time(Duration::from_secs(1)).batch().await.unwrap()
}

/// Reads so many events from a position on, and looks into none.
pub async fn read_stream(client: &Client, from: Timestamp, events: u64) -> Read {
    read_filtered(client, from, events, &of_shop()).await
}

/// As [`read_stream`], with any filter.
pub async fn read_filtered(
    client: &Client,
    from: Timestamp,
    events: u64,
    filter: &NamespaceFilter,
) -> Read {
    let started = Instant::now();
    let mut cursor = open_filtered(client, from, filter).await;
    let (mut seen, mut first) = (0, None);
    while seen < events {
        let reply = cursor.next().await.expect("the stream goes on").unwrap();
        seen += reply.doc_slices().unwrap().into_iter().count() as u64;
        if seen > 0 && first.is_none() {
            first = Some((Instant::now(), seen));
        }
    }
    assert_eq!(seen, events, "no event but those of the backlog");
    let elapsed = started.elapsed();
    let (first_at, first_seen) = first.expect("there is an event");
    let per_second = if seen > first_seen {
        (seen - first_seen) as f64 / first_at.elapsed().as_secs_f64()
    } else {
        // All came in the first batch.
        seen as f64 / elapsed.as_secs_f64()
    };
    Read { elapsed, per_second }
}

/// The documents of a reply.
pub fn documents(reply: &RawBatch) -> impl Iterator<Item = &RawDocument> {
    let slices = reply.doc_slices().unwrap().into_iter();
    slices.map(|document| document.unwrap().as_document().unwrap())
}

/// The least that a copy must do: replies as they come, into plain inserts, reading and writing overlapped.
pub async fn pipe(local: &Client, atlas: &Client, collections: &[String], connections: usize) {
    let (sender, receiver) = mpsc::channel::<(String, RawArrayBuf)>(2);
    let receiver = Arc::new(Mutex::new(receiver));
    let writers: Vec<_> = (0..connections)
        .map(|_| {
            let (receiver, db) = (receiver.clone(), atlas.database("shop"));
            tokio::spawn(async move {
                loop {
                    let next = receiver.lock().await.recv().await;
                    let Some((collection, documents)) = next else { return };
                    let insert = rawdoc! {
                        "insert": collection, "documents": documents, "ordered": false,
                        "writeConcern": { "w": "majority" },
                    };
                    let reply = db.run_raw_command(insert).await.unwrap();
                    assert!(!reply.contains_key("writeErrors"), "{reply:?}");
                }
            })
        })
        .collect();
    let db = local.database("shop");
    for collection in collections {
        let find = rawdoc! {
            "find": collection.as_str(), "batchSize": 5_000,
            "readConcern": { "level": "majority" },
        };
        let mut cursor = db.run_raw_cursor_command(find).batch_size(5_000).batch().await.unwrap();
        while let Some(reply) = cursor.next().await {
            let mut batch = RawArrayBuf::new();
            for document in documents(&reply.unwrap()) {
                batch.push(document.to_owned());
            }
            if !batch.is_empty() {
                sender.send((collection.clone(), batch)).await.unwrap();
            }
        }
    }
    drop(sender);
    for writer in writers {
        writer.await.unwrap();
    }
}

/// Replacing upserts of all updated documents of a collection as they are now in `local`, a thousand to a command,
/// ready to be sent. What was never updated may be the same in Atlas, which is another and cheaper case.
pub async fn upserts_of(local: &Client, collection: &str) -> Vec<RawDocumentBuf> {
    let find = rawdoc! {
        "find": collection, "filter": { "revision": { "$gt": 0 } }, "batchSize": 5_000,
    };
    let db = local.database("shop");
    let mut cursor = db.run_raw_cursor_command(find).batch_size(5_000).batch().await.unwrap();
    let mut statements = Vec::new();
    while let Some(reply) = cursor.next().await {
        for document in documents(&reply.unwrap()) {
            let id = document.get("_id").unwrap().unwrap();
            statements.push(rawdoc! {
                "q": { "_id": id }, "u": document.to_owned(), "upsert": true,
            });
        }
    }
    let commands = statements.chunks(1_000).map(|chunk| {
        let updates = chunk.iter().fold(RawArrayBuf::new(), |mut updates, statement| {
            updates.push(statement.clone());
            updates
        });
        rawdoc! {
            "update": collection, "updates": updates, "ordered": false,
            "writeConcern": { "w": "majority" },
        }
    });
    commands.collect()
}

/// Sends commands in so many lanes.
pub async fn send(atlas: &Client, commands: Vec<RawDocumentBuf>, lanes: usize) {
    let db = atlas.database("shop");
    let commands = futures_util::stream::iter(commands);
    commands
        .for_each_concurrent(lanes, |command| async {
            let reply = db.run_raw_command(command).await.unwrap();
            assert!(!reply.contains_key("writeErrors"), "{reply:?}");
        })
        .await;
}

/// A client that compresses as the agent does.
pub async fn compressing(uri: &str, variant: Variant) -> Client {
    let mut options = ClientOptions::parse(uri).await.unwrap();
    if variant != Variant::Uncompressed {
        options.compressors = Some(vec![Compressor::Zstd { level: None }]);
    }
    Client::with_options(options).unwrap()
}
