//! The real server is the oracle: a delta applied to the document before an update gives exactly the
//! document after it, byte for byte, or says `Refresh`.

use mongodb::{
    Client, Collection,
    bson::{Bson, Document, RawDocumentBuf, doc},
};
use outrigger::{
    config::Uri,
    model::{delta::Delta, event::Change, namespace::NamespaceFilter, write_op::WriteOp},
    mongo::{Connect, Mongo},
    source::{ChangeStreamSource, EventStream, Source, StartFrom, inspect},
};
use rand::{SeedableRng, rngs::StdRng};

use crate::support::{
    PATIENCE, agent::Agent, equal::equal, eventually, mongod::Mongod, orders, pair, seed, workload,
};

const DOCUMENTS: usize = 250;
const UPDATES: usize = 12;

struct Step {
    before: RawDocumentBuf,
    after: RawDocumentBuf,
    update: Document,
}

async fn connect(server: &Mongod) -> Mongo {
    let connect = Connect {
        timeout: std::time::Duration::from_secs(30),
        select_for: std::time::Duration::from_secs(30),
        ..Connect::default()
    };
    Mongo::connect(&Uri::parse(&server.uri()).unwrap(), &connect).await.unwrap()
}

async fn read(client: &Client, id: &Bson) -> RawDocumentBuf {
    let collection: Collection<RawDocumentBuf> = client.database("t").collection("c");
    collection.find_one(doc! { "_id": { "$eq": id.clone() } }).await.unwrap().unwrap()
}

/// Makes random updates and returns each with the document before and after it.
async fn make_updates(server: &Mongod, rng: &mut StdRng) -> Vec<Step> {
    let db = server.client.database("t");
    let collection: Collection<Document> = db.collection("c");
    let mut steps = Vec::new();
    for n in 0..DOCUMENTS {
        let id = Bson::Int64(n as i64);
        let mut document = workload::document(rng);
        document.insert("_id", id.clone());
        collection.insert_one(document).await.unwrap();
        for _ in 0..UPDATES {
            let before = read(&server.client, &id).await;
            let update = workload::statement(doc! { "_id": id.clone() }, rng);
            let command = doc! { "update": "c", "updates": [update.clone()] };
            let reply = match db.run_command(command).await {
                Err(error) if workload::is_refusal(&error) => continue,
                reply => reply.unwrap(),
            };
            if reply.get_i32("nModified").unwrap() == 1 {
                steps.push(Step { before, after: read(&server.client, &id).await, update });
            }
        }
    }
    steps
}

/// Reads what the stream says of `count` updates.
async fn read_ops(
    stream: &mut <ChangeStreamSource as Source>::Stream,
    count: usize,
) -> Vec<WriteOp> {
    let mut ops = Vec::new();
    while ops.len() < count {
        for event in stream.next().await.unwrap().events {
            match event.change {
                Change::Document { op: WriteOp::Insert(_), .. } => {}
                Change::Document { op, .. } => ops.push(op),
                Change::Schema(_)
                | Change::DatabaseDropped { .. }
                | Change::Refused { .. }
                | Change::Ignored { .. } => {}
            }
        }
    }
    ops
}

#[tokio::test]
async fn a_delta_on_the_document_before_is_the_document_after() {
    let mut rng = StdRng::seed_from_u64(seed());
    let server = Mongod::start().await;
    let mongo = connect(&server).await;
    let info = inspect(&mongo).await.unwrap();
    let filter = NamespaceFilter::new(&["t.*".to_owned()], &[]).unwrap();
    let source = ChangeStreamSource::new(mongo, filter, &info);
    let mut stream = source.open(&StartFrom::Now).await.unwrap();
    stream.next().await.unwrap();

    let steps = make_updates(&server, &mut rng).await;
    let ops = read_ops(&mut stream, steps.len()).await;

    assert_eq!(ops.len(), steps.len());
    let (mut applied, mut refreshes, mut replaced) = (0, 0, 0);
    let mut commands = Vec::new();
    let mut chains: Vec<(RawDocumentBuf, Delta, RawDocumentBuf)> = Vec::new();
    for (step, op) in steps.iter().zip(ops) {
        match op {
            WriteOp::Update(delta) => match delta.apply(&step.before) {
                Ok(after) => {
                    assert_eq!(
                        after.as_bytes(),
                        step.after.as_bytes(),
                        "{:?}\nbefore {:?}\ndelta  {:?}\nours   {after:?}\nserver {:?}",
                        step.update,
                        step.before,
                        delta.as_raw(),
                        step.after
                    );
                    applied += 1;
                    commands.extend(delta.to_command().map(|command| (step, command)));
                    extend(&mut chains, step, delta);
                }
                Err(_) => refreshes += 1,
            },
            WriteOp::Refresh => refreshes += 1,
            WriteOp::Replace(_) => replaced += 1,
            other => panic!("{other:?} for {:?}", step.update),
        }
    }
    println!(
        "{applied} deltas applied exactly, {replaced} came as whole documents, {refreshes} said Refresh ({:.2} %)",
        100.0 * f64::from(refreshes) / f64::from(applied + refreshes).max(1.0)
    );
    assert!(applied > 500, "{applied} deltas prove little");
    assert!(refreshes * 100 <= applied, "Refresh is no way out of the work");

    let merged = check_merges(&chains);
    let sent = check_commands(&server, &commands).await;
    println!("{merged} merged deltas and {sent} commands are exact too");
    assert!(merged > 100 && sent > 100, "{merged} merges and {sent} commands prove little");
}

/// Grows a chain of deltas of one document, from its first state to its last.
fn extend(chains: &mut Vec<(RawDocumentBuf, Delta, RawDocumentBuf)>, step: &Step, delta: Delta) {
    if let Some((_, merged, last)) = chains.last_mut()
        && *last == step.before
        && let Ok(longer) = merged.then(&delta)
    {
        *merged = longer;
        *last = step.after.clone();
        return;
    }
    chains.push((step.before.clone(), delta, step.after.clone()));
}

fn check_merges(chains: &[(RawDocumentBuf, Delta, RawDocumentBuf)]) -> usize {
    for (before, merged, after) in chains {
        let ours = merged.apply(before).unwrap();
        assert_eq!(
            ours.as_bytes(),
            after.as_bytes(),
            "{before:?}\n{:?}\n{after:?}",
            merged.as_raw()
        );
    }
    chains.len()
}

/// Where a delta has an update command, the command has its effect on a server.
async fn check_commands(
    server: &Mongod,
    commands: &[(&Step, outrigger::model::delta::UpdateCommand)],
) -> usize {
    let db = server.client.database("scratch");
    let collection: Collection<RawDocumentBuf> = db.collection("c");
    let mut exact = 0;
    for (step, command) in commands {
        collection.delete_many(doc! {}).await.unwrap();
        collection.insert_one(&step.before).await.unwrap();
        let mut filter = doc! {};
        for path in &command.absent {
            filter.insert(path, doc! { "$exists": false });
        }
        let update = Document::try_from(command.update.as_ref()).unwrap();
        let result = collection.update_one(filter, update).await;
        if result.is_ok_and(|result| result.matched_count == 1) {
            let after = collection.find_one(doc! {}).await.unwrap().unwrap();
            assert_eq!(
                after.as_bytes(),
                step.after.as_bytes(),
                "{command:?}\nfrom {:?}",
                step.before
            );
            exact += 1;
        }
    }
    exact
}

/// Fields that come and go under ever new names leave nothing in the document, but stay in what is merged of them. So it
/// is as small and as right behind a restart, and behind an export and an import, as it is without.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_merged_before_and_after_a_restart_and_an_import_stays_small_and_right() {
    let (local, atlas) = pair().await;
    let db = local.client.database("shop");
    orders(&local).insert_one(doc! { "_id": 1, "v": 0 }).await.unwrap();
    let mut agent = Agent::started(&local.uri(), &atlas.uri());
    agent.streaming().await;
    equal(&local, &atlas, PATIENCE).await;
    assert!(agent.cli(&["pause"]).status.success());

    let file = |agent: &Agent, stage: i32| agent.dir.path().join(format!("{stage}.json"));
    for stage in 0..4 {
        let change = |operator: &str, n: i32| {
            let names = doc! { format!("session-{stage}-{n}"): true };
            doc! { "q": { "_id": 1 }, "u": { operator: names, "$inc": { "v": 1 } } }
        };
        let updates = (0..800).flat_map(|n| [change("$set", n), change("$unset", n)]);
        let update = doc! { "update": "orders", "updates": updates.collect::<Vec<_>>() };
        db.run_command(update).await.unwrap();
        // What is behind them has been read, so they have as well.
        orders(&local).insert_one(doc! { "_id": format!("after {stage}") }).await.unwrap();
        agent.queued(stage as u64 + 2).await;
        assert!(agent.stop().success());
        let exported = file(&agent, stage);
        assert!(agent.cli(&["queue", "export", exported.to_str().unwrap()]).status.success());
        let bytes = std::fs::metadata(&exported).unwrap().len();
        assert!(bytes < 100_000, "{bytes} bytes for five documents");
        if stage == 1 {
            let elsewhere = Agent::new(&local.uri(), &atlas.uri(), "");
            let imported = elsewhere.cli(&["queue", "import", exported.to_str().unwrap()]);
            assert!(imported.status.success(), "{imported:?}");
            agent = elsewhere;
            assert!(agent.cli(&["pause"]).status.success());
        }
        agent.start(&[]);
    }
    eventually("the agent", PATIENCE, async || agent.health().is_some()).await;
    assert!(agent.cli(&["resume"]).status.success());

    equal(&local, &atlas, PATIENCE).await;
    assert!(!agent.log().contains("a full sync begins"), "{}", agent.log());
    let document = orders(&atlas).find_one(doc! { "_id": 1 }).await.unwrap();
    assert_eq!(document, Some(doc! { "_id": 1, "v": 6_400 }));
}
