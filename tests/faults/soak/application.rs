//! The application of the soak.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use mongodb::{
    Client, Collection, Database,
    bson::{Document, doc},
};
use rand::{Rng, rngs::StdRng, seq::SliceRandom};
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

use crate::support::{names, odd_work, workload};

/// In as many seats.
pub const PERSONS: u64 = 12;

/// What the application has done: of it, what the servers took.
#[derive(Default)]
pub struct Done {
    pub operations: AtomicU64,
    pub refused: AtomicU64,
    /// Moves of a person to another seat.
    pub seated: AtomicU64,
    /// Held by whoever needs an application that rests.
    pub turn: Mutex<()>,
}

/// What must be among the application's work, as an oplog tells it.
pub fn kinds() -> [(&'static str, Document); 14] {
    let of = |field: &str| doc! { "op": "c", format!("o.{field}"): { "$exists": true } };
    let renamed = |from: &str, to: &str| doc! { "o.renameCollection": { "$regex": from }, "o.to": { "$regex": to } };
    let in_transaction =
        doc! { "o.applyOps": { "$exists": true }, "txnNumber": { "$exists": true } };
    [
        ("insert", doc! { "op": "i", "ns": "shop.orders" }),
        ("update", doc! { "op": "u", "ns": "shop.orders" }),
        ("delete", doc! { "op": "d", "ns": "shop.orders" }),
        ("change of a unique value", doc! { "op": "u", "ns": "shop.seats" }),
        ("transaction", in_transaction),
        ("rename", renamed("^shop.brief$", "^shop.archive")),
        ("swap", renamed("^names.left$", "^names.tmp$")),
        ("`$out`", renamed("^shop.tmp.agg_out", "^shop.report$")),
        ("drop", of("drop")),
        (
            "capped collection",
            doc! { "op": "c", "o.create": { "$exists": true }, "o.capped": true },
        ),
        ("view", doc! { "ns": "names.system.views" }),
        ("index", doc! { "$or": [of("createIndexes"), of("commitIndexBuild")] }),
        ("drop of an index", of("dropIndexes")),
        ("change of options", of("collMod")),
    ]
}

/// What the application does: documents of every kind, unique values that change hands, collections that
/// come, go and take one another's names, odd schema. Errors of a server that is away are its business.
pub async fn work(
    client: Client,
    port: u16,
    mut rng: StdRng,
    (stop, of_all): (CancellationToken, Arc<Done>),
) {
    let names = client.database("names");
    let collections = workload::collections(&client);
    let shop = client.database("shop");
    let seats = shop.collection::<Document>("seats");
    // Dealt, so that every kind comes; what a server that is away did not take is dealt again.
    let mut deck: Vec<u32> = Vec::new();
    while !stop.is_cancelled() {
        let _turn = of_all.turn.lock().await;
        if deck.is_empty() {
            deck = (0..200).collect();
            deck.shuffle(&mut rng);
        }
        let dealt = deck.pop().expect("it has one");
        let done = match dealt {
            0 => rename(&client, &mut rng).await,
            1 => shop.collection::<Document>("brief").drop().await,
            2..4 => index(&shop, &mut rng).await,
            4 | 5 => swap(&names).await,
            6 => out(&shop).await,
            7..10 => shop.collection("brief").insert_one(doc! { "n": 1 }).await.map(|_| ()),
            10..40 => {
                of_all.seated.fetch_add(1, Ordering::Relaxed);
                seat(&seats, &mut rng).await
            }
            40..50 => names::step(&names, &mut rng).await,
            50..55 => odd_work::step(port, &mut rng).await.map_err(Into::into),
            55 => view(&names).await,
            56 => capped(&names).await,
            _ => workload::change(&collections[rng.random_range(0..3)], &mut rng).await.map(|_| ()),
        };
        if done.is_err() {
            deck.insert(rng.random_range(0..=deck.len()), dealt);
        }
        let count = if done.is_ok() { &of_all.operations } else { &of_all.refused };
        count.fetch_add(1, Ordering::Relaxed);
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Makes an index, or drops it; one of both is refused as a rule.
async fn index(shop: &Database, rng: &mut StdRng) -> mongodb::error::Result<()> {
    let index = doc! { "key": { "n": 1 }, "name": "n" };
    let made = doc! { "createIndexes": "brief", "indexes": [index] };
    let dropped = doc! { "dropIndexes": "brief", "index": "n" };
    let command = if rng.random() { made } else { dropped };
    names::unless_refused(shop.run_command(command).await.map(drop))
}

/// Two collections take one another's names, where both are there by then.
async fn swap(names: &Database) -> mongodb::error::Result<()> {
    for name in ["left", "right"] {
        let collection = names.collection::<Document>(name);
        if let Err(error) = collection.insert_one(doc! {}).await {
            // A view, or it would have two of a unique value.
            names::unless_refused(Err(error))?;
            collection.drop().await?;
            collection.insert_one(doc! {}).await?;
        }
    }
    names.collection::<Document>("tmp").drop().await?;
    names::swap(names).await
}

/// A view that is made anew.
async fn view(names: &Database) -> mongodb::error::Result<()> {
    names.collection::<Document>("window").drop().await?;
    let made = doc! { "create": "window", "viewOn": "left", "pipeline": [] };
    names.run_command(made).await.map(drop)
}

/// A buffer that is made anew.
async fn capped(names: &Database) -> mongodb::error::Result<()> {
    let ring = names.collection::<Document>("ring");
    ring.drop().await?;
    names.run_command(doc! { "create": "ring", "capped": true, "size": 4_096 }).await?;
    ring.insert_one(doc! {}).await.map(drop)
}

/// A report that is made anew as a whole.
async fn out(shop: &Database) -> mongodb::error::Result<()> {
    let stages = [doc! { "$set": { "reported": true } }, doc! { "$out": "report" }];
    let made = shop.collection::<Document>("seats").aggregate(stages).await;
    names::unless_refused(made.map(drop))
}

async fn rename(client: &Client, rng: &mut StdRng) -> mongodb::error::Result<()> {
    let to = format!("shop.archive{}", rng.random_range(0..3));
    let command = doc! { "renameCollection": "shop.brief", "to": to, "dropTarget": true };
    match client.database("admin").run_command(command).await {
        Err(error) if !workload::is_refusal(&error) => Err(error),
        _ => Ok(()), // There may be nothing to rename.
    }
}

/// Moves a person to another seat; whoever has it leaves it first.
async fn seat(seats: &Collection<Document>, rng: &mut StdRng) -> mongodb::error::Result<()> {
    let persons = i32::try_from(PERSONS).unwrap();
    let (person, seat) = (rng.random_range(0..persons), rng.random_range(0..persons));
    let nowhere = doc! { "$set": { "u": mongodb::bson::oid::ObjectId::new() } };
    seats.update_many(doc! { "u": seat }, nowhere).await?;
    let moved = doc! { "$set": { "u": seat } };
    seats.update_one(doc! { "_id": person }, moved).upsert(true).await?;
    Ok(())
}
