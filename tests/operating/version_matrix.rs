//! Pairs of server versions: what the older one of a pair knows is copied, follows, and ends equal; what the
//! target cannot take is named before anything is copied.
//!
//! `make test-matrix` runs all pairs, of the versions that can be fetched or of the programs that `MONGODS` lists
//! (`/path/to/mongod:/path/to/another`); a plain run takes the two that differ most.

use std::time::Duration;

use mongodb::bson::{Document, doc};

use crate::support::{
    PATIENCE,
    agent::Agent,
    equal::{MayDiffer, equal, equal_but},
    mongod::Mongod,
    orders,
    schemas::{changes, collections, document, indexes, names, run_all},
    unasked::Unasked::{Doubt, Repair},
};

/// Long enough for a look at options and indexes that no event tells of, every 30 seconds.
const LOOKED: Duration = Duration::from_secs(120);

const VERSIONS: [&str; 3] = ["5.0.4", "6.0.5", "6.0.27"];

fn is_full() -> bool {
    std::env::var_os("OUTRIGGER_MATRIX").is_some()
}

fn major(version: &str) -> u32 {
    let major = version.split('.').next().and_then(|major| major.parse().ok());
    major.unwrap_or_else(|| panic!("`{version}` is no version"))
}

/// Versions, or programs by their path.
fn pairs() -> Vec<(String, String)> {
    let listed = std::env::var("MONGODS").unwrap_or_default();
    let listed: Vec<_> = listed.split(':').filter(|path| !path.is_empty()).collect();
    let servers = match (&listed[..], is_full()) {
        ([], true) => &VERSIONS[..],
        ([], false) => {
            return [("5.0.4", "6.0.5"), ("6.0.5", "5.0.4")]
                .map(|(local, atlas)| (local.to_owned(), atlas.to_owned()))
                .into();
        }
        (listed, _) => listed,
    };
    let owned = |local: &str, atlas: &str| (local.to_owned(), atlas.to_owned());
    servers.iter().flat_map(|local| servers.iter().map(|atlas| owned(local, atlas))).collect()
}

/// What the server says of itself: its version, and whose build it is where that is not MongoDB's own community one.
async fn told_by(server: &Mongod) -> (String, String) {
    let info = server.client.database("admin").run_command(doc! { "buildInfo": 1 }).await.unwrap();
    let version = info.get_str("version").unwrap().to_owned();
    let modules = info.get_array("modules").map_or_else(|_| Vec::new(), Clone::clone);
    let mut build: Vec<_> = modules.iter().filter_map(|name| name.as_str()).collect();
    if info.contains_key("psmdbVersion") {
        build.push("Percona Server");
    }
    let named = [&[version.as_str()], &build[..]].concat().join(" ");
    (version, named)
}

async fn write(local: &Mongod, from: i32, names: &[&str]) {
    for name in names {
        let collection = local.client.database("shop").collection::<Document>(name);
        collection.insert_many((from..from + 50).map(document)).await.unwrap();
        collection
            .update_many(doc! { "_id": { "$gte": from } }, doc! { "$inc": { "s": 1 } })
            .await
            .unwrap();
        if *name != "capped" {
            collection.delete_one(doc! { "_id": from + 7 }).await.unwrap();
        }
    }
}

/// The whole life of a copy, with what both versions know.
async fn one_pair(local: &str, atlas: &str) {
    let (local, atlas) = tokio::join!(Mongod::start_of(local), Mongod::start_of(atlas));
    let (local_version, local_build) = told_by(&local).await;
    let (atlas_version, atlas_build) = told_by(&atlas).await;
    println!("local {local_build}, Atlas {atlas_build}");
    let known = major(&local_version).min(major(&atlas_version));
    let both = async |patience| {
        equal(&local, &atlas, patience).await;
    };
    // Half of it before the first copy.
    run_all(&local.client, collections(known)).await;
    write(&local, 0, &names(known)).await;
    let mut agent = Agent::started(&local.uri(), &atlas.uri());
    agent.may(&[Doubt, Repair], "what is said by no event of 5.0 is found by a comparison");
    agent.streaming().await;
    both(PATIENCE).await;

    // And half of it while documents flow.
    run_all(&local.client, indexes()).await;
    write(&local, 1_000, &names(known)).await;
    both(LOOKED).await;
    run_all(&local.client, changes(known)).await;
    write(&local, 2_000, &names(known)).await;
    both(LOOKED).await;

    // Collections that come, go and change hands, with a restart.
    let rename = |from: &str, to: &str| {
        ("admin", doc! { "renameCollection": from, "to": to, "dropTarget": true })
    };
    run_all(
        &local.client,
        [rename("shop.plain", "shop.renamed"), rename("shop.german", "archive.german")],
    )
    .await;
    agent.kill();
    let german = doc! { "create": "later", "collation": { "locale": "de" } };
    run_all(&local.client, [("shop", german), ("shop", doc! { "drop": "json" })]).await;
    write(&local, 3_000, &["renamed", "later"]).await;
    agent.start(&[]);
    run_all(&local.client, [("shop", doc! { "convertToCapped": "checked", "size": 1 << 20 })])
        .await;
    both(LOOKED).await;

    run_all(&local.client, [("archive", doc! { "dropDatabase": 1 })]).await;
    let unique = doc! { "createIndexes": "renamed", "indexes": [{ "key": { "_id": 1, "u": 1 }, "name": "last", "unique": true }] };
    run_all(&local.client, [("shop", unique)]).await;
    both(LOOKED).await;
    let verified = agent.cli_json(&["verify"]).unwrap();
    assert_eq!(verified["equal"], true, "{verified}");
    assert!(agent.is_running(), "an invalidation or another event has ended it");
}

#[tokio::test]
async fn every_pair_of_versions_ends_equal() {
    for (local, atlas) in pairs() {
        one_pair(&local, &atlas).await;
    }
}

#[tokio::test]
async fn what_the_target_is_too_old_for_is_named_before_anything_is_copied() {
    let (local, atlas) = tokio::join!(Mongod::start_of("6.0.5"), Mongod::start_of("5.0.4"));
    run_all(&local.client, collections(6)).await;
    let prepared = doc! { "createIndexes": "plain", "indexes": [{ "key": { "u": 1 }, "name": "prepared", "prepareUnique": true }] };
    run_all(&local.client, [("shop", prepared)]).await;
    write(&local, 0, &names(6)).await;
    let mut agent = Agent::new(&local.uri(), &atlas.uri(), "");

    let check = agent.cli(&["check"]);
    let told = String::from_utf8(check.stdout).unwrap();
    assert!(check.status.success(), "warnings only: {told}");
    for part in [
        "shop.clustered: a clustered collection",
        "shop.imaged: option `changeStreamPreAndPostImages`",
        "shop.plain: index `prepared`: prepareUnique",
    ] {
        assert!(told.contains(part), "{part}: {told}");
    }

    // The documents are there all the same, and what differs is said.
    agent.start(&[]);
    agent.streaming().await;
    equal_but(MayDiffer::Schema, &local, &atlas, PATIENCE).await;
    orders(&local).insert_one(doc! { "_id": 1 }).await.unwrap();
    equal_but(MayDiffer::Schema, &local, &atlas, PATIENCE).await;
    let status = String::from_utf8(agent.cli(&["status"]).stdout).unwrap();
    assert!(status.contains("`shop.clustered`: option `clusteredIndex` differs"), "{status}");
}
