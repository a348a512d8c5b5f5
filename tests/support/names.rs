//! An application that has little respect for names: a few of them, which collections and views take from one another.

use mongodb::{
    Client, Database,
    bson::{Document, doc},
    error::Result,
};
use rand::{Rng, rngs::StdRng, seq::IndexedRandom};

use super::workload::is_refusal;

const NAMES: [&str; 4] = ["left", "right", "tmp", "other"];

/// What the server refuses changes nothing.
pub fn unless_refused(result: Result<()>) -> Result<()> {
    match result {
        Err(error) if !is_refusal(&error) => Err(error),
        _ => Ok(()),
    }
}

/// Renames a collection of `db`.
pub async fn rename(db: &Database, from: &str, to: &str, drop_target: bool) -> Result<()> {
    let (from, to) = (format!("{}.{from}", db.name()), format!("{}.{to}", db.name()));
    let command = doc! { "renameCollection": from, "to": to, "dropTarget": drop_target };
    let admin: &Client = db.client();
    unless_refused(admin.database("admin").run_command(command).await.map(drop))
}

/// `left` and `right` take one another's names.
pub async fn swap(db: &Database) -> Result<()> {
    rename(db, "left", "tmp", true).await?;
    rename(db, "right", "left", false).await?;
    rename(db, "tmp", "right", false).await
}

/// One step of it: a change of documents, as a rule, or of what a name means.
pub async fn step(db: &Database, rng: &mut StdRng) -> Result<()> {
    let name = *NAMES.choose(rng).unwrap();
    let other = *NAMES.choose(rng).unwrap();
    let collection = db.collection::<Document>(name);
    let id = rng.random_range(0..6);
    let n = rng.random_range(0..1_000_000);
    let change = doc! { "$set": { "n": n }, "$inc": { "changes": 1 } };
    let result = match rng.random_range(0..24) {
        0..3 => collection.insert_one(doc! { "_id": id, "u": n, "of": name }).await.map(drop),
        3..10 => collection.update_one(doc! { "_id": id }, change).await.map(drop),
        10..12 => collection.update_many(doc! {}, change).await.map(drop),
        12 => collection.delete_one(doc! { "_id": id }).await.map(drop),
        13 => {
            let swap = doc! { "$set": { "u": n } };
            collection.update_many(doc! { "_id": id }, swap).await.map(drop)
        }
        14..17 => rename(db, name, other, rng.random_bool(0.5)).await,
        17..19 => swap(db).await,
        19 => collection.drop().await,
        20 => db.create_collection(name).capped(true).size(1 << 20).await,
        21 => {
            let unique = doc! { "key": { "u": 1 }, "name": "u_1", "unique": true };
            let command = doc! { "createIndexes": name, "indexes": [unique] };
            db.run_command(command).await.map(drop)
        }
        22 => {
            let pipeline = vec![doc! { "$set": { "out": n } }, doc! { "$out": other }];
            collection.aggregate(pipeline).await.map(drop)
        }
        _ => {
            collection.drop().await?;
            db.create_collection(name).view_on(other.to_owned()).pipeline([]).await
        }
    };
    unless_refused(result)
}
