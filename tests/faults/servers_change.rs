//! The servers become others under a running agent: newer, with other members, or under another address.

use std::time::Duration;

use mongodb::bson::{Document, doc};

use crate::support::{
    PATIENCE,
    agent::Agent,
    certificates::Certificates,
    equal::equal,
    guarded::Guarded,
    mongod::Mongod,
    name_service::{Cluster, NameService},
    orders,
    replica_set::ReplicaSet,
    unasked::Unasked::Doubt,
};

/// A look at options and indexes, which is all that there is of them before 6.0, and some time for it.
const LOOKED: Duration = Duration::from_secs(90);

/// Collections that come, change, get other names and go; documents all the while.
async fn work(local: &Mongod, round: i32) {
    let shop = local.client.database("shop");
    let named = |what: &str| format!("{what}{round}");
    let checked = doc! { "create": named("checked"), "validator": { "v": { "$gte": 0 } } };
    shop.run_command(checked).await.unwrap();
    for name in [named("checked"), named("leaves"), "orders".to_owned()] {
        let some = shop.collection::<Document>(&name);
        let first = round * 1_000;
        some.insert_many((first..first + 50).map(|id| doc! { "_id": id, "v": 1 })).await.unwrap();
        some.update_many(doc! {}, doc! { "$inc": { "v": 1 } }).await.unwrap();
        some.delete_one(doc! { "_id": first }).await.unwrap();
    }
    let index = doc! { "key": { format!("v{round}"): 1 }, "name": format!("v{round}") };
    shop.run_command(doc! { "createIndexes": "orders", "indexes": [index] }).await.unwrap();
    let other = doc! { "collMod": named("checked"), "validator": { "v": { "$gte": -1 } } };
    shop.run_command(other).await.unwrap();
    let from = format!("shop.{}", named("leaves"));
    local.admin(doc! { "renameCollection": from, "to": format!("shop.{}", named("left")) }).await;
    if round > 1 {
        shop.collection::<Document>(&format!("left{}", round - 1)).drop().await.unwrap();
        let was = format!("v{}", round - 1);
        shop.run_command(doc! { "dropIndexes": "orders", "index": was }).await.unwrap();
    }
}

/// The binary first, then the version of its features: in between it speaks as the old one does, and is none.
#[tokio::test(flavor = "multi_thread")]
async fn a_local_server_that_is_upgraded_under_a_running_agent_stays_equal() {
    let (mut local, atlas) = tokio::join!(Mongod::start_of("5.0.4"), Mongod::start_of("6.0.5"));
    let agent = Agent::started(&local.uri(), &atlas.uri());
    agent.may(&[Doubt], "5.0 tells of no options and indexes, and a new stream begins elsewhere");
    agent.streaming().await;
    work(&local, 1).await;
    equal(&local, &atlas, LOOKED).await;

    local.turn_into("6.0.5").await;
    work(&local, 2).await;
    equal(&local, &atlas, LOOKED).await;

    local.admin(doc! { "setFeatureCompatibilityVersion": "6.0" }).await;
    work(&local, 3).await;
    equal(&local, &atlas, LOOKED).await;
    assert!(agent.is_running());
}

/// In the end none of those that the connection strings name is left.
#[tokio::test(flavor = "multi_thread")]
async fn members_that_leave_and_others_that_join_are_followed_on_both_sides() {
    let (mut local, mut atlas) = tokio::join!(ReplicaSet::start(), ReplicaSet::start());
    let agent = Agent::started(&local.uri(), &atlas.uri());
    agent.streaming().await;
    let documents = local.client.database("shop").collection::<Document>("orders");

    for round in 0..3 {
        tokio::join!(local.replace(round), atlas.replace(round));
        let first = i32::try_from(round).unwrap() * 100;
        documents.insert_many((first..first + 50).map(|id| doc! { "_id": id })).await.unwrap();
        equal(&local, &atlas, PATIENCE).await;
    }

    assert!(agent.cli(&["flush"]).status.success());
    assert_eq!(orders(&atlas.members[0]).count_documents(doc! {}).await.unwrap(), 150);
}

/// As a cluster that was moved, or restored onto other machines. No member that the driver knows is left, and only the
/// records say where they are now.
#[tokio::test(flavor = "multi_thread")]
async fn servers_that_a_name_service_tells_are_found_again_when_all_of_them_have_moved() {
    let Some(names) = NameService::start().await else { return };
    let certificates = Certificates::new();
    let roles = vec!["readWriteAnyDatabase".into(), "dbAdminAnyDatabase".into()];
    let (mut local, mut atlas) =
        tokio::join!(Mongod::start(), Guarded::start_tls(roles, &certificates));
    let tell = |local: &Mongod, atlas: &Guarded| {
        let ports = vec![local.port];
        names.tells("local", Cluster { service: "shops", ports, options: "replicaSet=rs" });
        let options = "authSource=admin&replicaSet=rs";
        let ports = vec![atlas.server.port];
        names.tells("atlas", Cluster { service: "mongodb", ports, options });
    };
    tell(&local, &atlas);
    // TLS is what `mongodb+srv` means unless it is switched off; where the user is, the records say.
    let own = "mongodb+srv://local.outrigger.test/?tls=false&srvServiceName=shops";
    let authority = certificates.options().replace("&tls=true&", "");
    let theirs = format!("mongodb+srv://outrigger:s3cret@atlas.outrigger.test/shop?{authority}");
    let mut agent = Agent::new(own, &theirs, "");
    agent.wrapper = Some(names.wrapper(agent.dir.path()));
    let check = agent.cli(&["check"]);
    let told = String::from_utf8(check.stdout).unwrap();
    assert!(check.status.success() && told.contains("the connection is encrypted"), "{told}");
    agent.start(&[]);
    agent.streaming().await;
    orders(&local).insert_one(doc! { "_id": 0 }).await.unwrap();
    equal(&local, &atlas, PATIENCE).await;

    for round in 1..3 {
        if round == 1 {
            atlas.move_elsewhere().await;
        } else {
            local.start_elsewhere().await;
            local.initiate_again(&local.client).await;
        }
        orders(&local).insert_one(doc! { "_id": round }).await.unwrap();
        tell(&local, &atlas);
        equal(&local, &atlas, PATIENCE).await;
        assert!(agent.cli(&["flush"]).status.success());
    }
    assert!(agent.stop().success());
    assert!(!agent.log().contains("s3cret"));
}
