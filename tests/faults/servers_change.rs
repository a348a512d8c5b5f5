//! The servers become others under a running agent: newer, with other members, or under another address.

use std::time::Duration;

use mongodb::{
    Client,
    bson::{Document, doc},
};

use crate::elections::Load;
use crate::support::{
    PATIENCE,
    agent::Agent,
    certificates::Certificates,
    equal::equal,
    eventually,
    guarded::Guarded,
    mongod::Mongod,
    name_service::{Cluster, NameService},
    orders,
    replica_set::ReplicaSet,
    seed,
    unasked::Unasked::Doubt,
};

/// A look at options and indexes, which is all that there is of them before 6.0, and some time for it.
const LOOKED: Duration = Duration::from_secs(90);

/// Collections that come, change, get other names and go; documents all the while.
async fn work(local: &Client, round: i32) {
    let shop = local.database("shop");
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
    let rename = doc! { "renameCollection": from, "to": format!("shop.{}", named("left")) };
    local.database("admin").run_command(rename).await.unwrap();
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
    work(&local.client, 1).await;
    equal(&local, &atlas, LOOKED).await;

    local.turn_into("6.0.5").await;
    work(&local.client, 2).await;
    equal(&local, &atlas, LOOKED).await;

    local.admin(doc! { "setFeatureCompatibilityVersion": "6.0" }).await;
    work(&local.client, 3).await;
    equal(&local, &atlas, LOOKED).await;
    assert!(agent.is_running());
}

/// As it is done where nobody may notice: a member after the other, the primary last, and changes of every kind all the while.
#[tokio::test(flavor = "multi_thread")]
async fn a_local_set_that_is_upgraded_member_by_member_under_a_running_agent_stays_equal() {
    let (mut local, atlas) = tokio::join!(ReplicaSet::start_of("5.0.4"), Mongod::start());
    let agent = Agent::started(&local.uri(), &atlas.uri());
    agent.streaming().await;
    let load = Load::begin(&local.client, seed());
    let mut round = 1;
    work(&local.client, round).await;

    let between = async |client: &Client| {
        round += 1;
        work(client, round).await;
    };
    local.turn_into("6.0.5", between).await;
    load.goes_on(50).await;
    let newer = doc! { "setFeatureCompatibilityVersion": "6.0" };
    local.client.database("admin").run_command(newer).await.unwrap();
    work(&local.client, round + 1).await;
    load.end().await;

    equal(&local, &atlas, LOOKED).await;
    assert!(agent.is_running() && !agent.log().contains("restored"), "{}", agent.log());
    assert_eq!(agent.health().unwrap()["deadLetters"], 0);
}

/// Each says that it is a 6.0, and refuses what is new in it. So it is behind an upgrade of which the last step is still to
/// come; here one side has it made long before the other.
#[tokio::test(flavor = "multi_thread")]
async fn servers_with_the_features_of_an_older_version_are_served_and_then_get_the_new_ones() {
    let (local, atlas) = tokio::join!(Mongod::start_of("6.0.5"), Mongod::start_of("6.0.5"));
    let features = |version: &str| doc! { "setFeatureCompatibilityVersion": version };
    tokio::join!(local.admin(features("5.0")), atlas.admin(features("5.0")));
    work(&local.client, 1).await;
    let agent = Agent::started(&local.uri(), &atlas.uri());
    agent.streaming().await;
    equal(&local, &atlas, PATIENCE).await;
    work(&local.client, 2).await;
    equal(&local, &atlas, LOOKED).await;

    local.admin(features("6.0")).await;
    work(&local.client, 3).await;
    equal(&local, &atlas, LOOKED).await;
    // What a server with the features of 5.0 refuses.
    let shop = local.client.database("shop");
    let either = doc! { "$or": [{ "v": 1 }, { "v": 2 }] };
    let index = doc! { "key": { "w": 1 }, "name": "w", "partialFilterExpression": either };
    shop.run_command(doc! { "createIndexes": "orders", "indexes": [&index] }).await.unwrap();
    let images = doc! { "collMod": "orders", "changeStreamPreAndPostImages": { "enabled": true } };
    shop.run_command(images).await.unwrap();
    let refused = atlas.client.database("shop");
    let refused = refused.run_command(doc! { "createIndexes": "orders", "indexes": [index] }).await;
    assert!(refused.is_err(), "it proves nothing otherwise");
    orders(&local).insert_one(doc! { "_id": "behind it" }).await.unwrap();
    eventually("what comes behind it", PATIENCE, async || {
        orders(&atlas).find_one(doc! { "_id": "behind it" }).await.unwrap().is_some()
    })
    .await;
    atlas.admin(features("6.0")).await;

    equal(&local, &atlas, LOOKED).await;
    assert!(agent.is_running());
    assert_eq!(agent.health().unwrap()["deadLetters"], 0);
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

/// As Atlas itself is: three members behind one name, with TLS and a password. The agent is also started while the name still
/// tells of one that is away.
#[tokio::test(flavor = "multi_thread")]
async fn a_set_of_three_that_a_name_service_tells_is_written_to_whoever_of_it_is_the_primary() {
    let Some(names) = NameService::start().await else { return };
    let certificates = Certificates::new();
    let roles = vec!["readWriteAnyDatabase".into(), "dbAdminAnyDatabase".into()];
    let (local, mut atlas) =
        tokio::join!(Mongod::start(), ReplicaSet::start_tls(roles, &certificates));
    let ports = atlas.members.iter().map(|member| member.port).collect();
    let options = "authSource=admin";
    names.tells("atlas", Cluster { service: "mongodb", ports, options });
    let authority = certificates.options().replace("&tls=true", "");
    let set = atlas.name();
    let theirs = "mongodb+srv://outrigger:s3cret@atlas.outrigger.test/shop";
    let theirs = format!("{theirs}?replicaSet={set}{authority}");
    let mut agent = Agent::new(&local.uri(), &theirs, "");
    agent.wrapper = Some(names.wrapper(agent.dir.path()));
    agent.start(&[]);
    agent.streaming().await;
    let load = Load::begin(&local.client, seed());
    load.is_met(&atlas.client).await;
    load.goes_on(50).await;

    atlas.step_down().await;
    load.goes_on(50).await;
    let killed = atlas.kill_primary().await;
    atlas.primary().await;
    load.goes_on(50).await;
    let asked = names.asked();
    assert!(agent.stop().success());
    agent.start(&[]);
    agent.streaming().await;
    load.end().await;

    equal(&local, &atlas, PATIENCE).await;
    assert!(names.asked() > asked, "the name is asked for at each start");
    assert_eq!(agent.health().unwrap()["deadLetters"], 0);
    atlas.members[killed].resume().await;
    assert!(agent.stop().success());
    assert!(!agent.log().contains("s3cret"));
}
