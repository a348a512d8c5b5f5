//! `check` finds what `run` would stumble over on this machine, and tells with `--plan` what a start would do; `alerts test`
//! and `roles` help before the first night.

use std::{
    io::Write,
    net::SocketAddr,
    path::Path,
    process::{Output, Stdio},
};

use mongodb::bson::{Bson, Document, doc};
use serde_json::Value;

use crate::support::{
    PATIENCE, agent::Agent, equal::equal, free_port, guarded::Guarded, mongod::Mongod, orders,
    pair, receiver::Receiver, strangers,
};

fn hostname() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap().trim().to_owned()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr[..]].concat()).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn check_finds_a_folder_a_port_and_a_token_that_run_refuses() {
    let (local, atlas) = pair().await;
    let agent = |section: &str| {
        let agent = Agent::new(&local.uri(), &atlas.uri(), section);
        std::fs::write(agent.dir.path().join("a-file"), "two words").unwrap();
        agent
    };
    let taken = SocketAddr::from(([127, 0, 0, 1], strangers::serve(strangers::web)));
    let port = |address: &str| {
        let agent = agent("");
        agent.replace_setting(&format!("127.0.0.1:{}", agent.admin_port), address);
        agent
    };
    let token = agent("");
    let listen = format!("listen = \"127.0.0.1:{}\"", token.admin_port);
    token.replace_setting(&listen, &format!("{listen}\ntoken_file = \"a-file\""));

    for (agent, finding) in [
        (agent("[queue]\npath = \"a-file/queue\"\n"), "a-file` is a file"),
        (port(&taken.to_string()), "another program listens on"),
        (port("192.0.2.1:8686"), "cannot listen on 192.0.2.1:8686"),
        (token, "the token file `a-file` cannot be used"),
    ] {
        let check = agent.cli(&["check"]);

        let text = said(&check);
        assert_eq!(check.status.code(), Some(1), "{text}");
        assert!(text.contains("PROBLEM  here ") && text.contains(finding), "{text}");
        let run = agent.cli(&["run"]);
        assert_eq!(run.status.code(), Some(1), "run refuses it too: {}", said(&run));
        assert!(said(&run).contains("hint: "), "{}", said(&run));
    }
    let fine = agent("");
    let check = fine.cli(&["check"]);
    let text = said(&check);
    assert!(check.status.success(), "{text}");
    for point in
        ["folder `queue` can be written", "is free for the admin API", "will be made at the"]
    {
        assert!(text.contains(point), "{point}: {text}");
    }
    assert!(!fine.dir.path().join("queue").exists(), "nothing is made");
    assert!(!fine.dir.path().join("outrigger.token").exists(), "nothing is made");
}

#[tokio::test(flavor = "multi_thread")]
async fn check_beside_a_running_agent_finds_it_and_another_ones_agent_is_told_apart() {
    let (local, atlas) = pair().await;
    let running = Agent::started(&local.uri(), &atlas.uri());
    running.streaming().await;
    let other = Agent::new(&local.uri(), &atlas.uri(), "");
    other.replace_setting(&other.admin_port.to_string(), &running.admin_port.to_string());

    let beside = running.cli(&["check"]);
    let elsewhere = said(&other.cli(&["check"]));

    let text = said(&beside);
    assert!(beside.status.success(), "{text}");
    let holder = format!("an agent works with the queue, process {}", running.id());
    assert!(text.contains(&holder) && text.contains("the agent answers on"), "{text}");
    assert!(elsewhere.contains("another agent, with a queue elsewhere, listens"), "{elsewhere}");
    // `run` would not start there either, whatever port it has.
    let holder = format!("on host `{}`, process {}", hostname(), running.id());
    let refusal = "PROBLEM  owner  another agent replicates this local database to this Atlas";
    assert!(elsewhere.contains(refusal) && elsewhere.contains(&holder), "{elsewhere}");
    let third = Agent::new(&local.uri(), &atlas.uri(), "");
    let check = third.cli(&["check"]);
    assert_eq!(check.status.code(), Some(1), "{}", said(&check));
    assert!(said(&check).contains(refusal), "{}", said(&check));
    let run = third.cli(&["run"]);
    assert_eq!(run.status.code(), Some(1), "{}", said(&run));
    assert!(said(&run).contains("another agent replicates this local database"), "{}", said(&run));
}

#[tokio::test(flavor = "multi_thread")]
async fn check_tells_a_queue_that_was_filled_from_another_database_as_run_does() {
    let (local, atlas) = pair().await;
    let mut agent = Agent::started(&local.uri(), &atlas.uri());
    agent.streaming().await;
    agent.stop();
    let text = said(&agent.cli(&["check"]));
    assert!(text.contains("here   the queue was filled from this local database"), "{text}");
    let other = Mongod::start().await;
    agent.set_env("MONGODB_LOCAL_URI", &other.uri());

    let (check, run) = (agent.cli(&["check"]), agent.cli(&["run"]));

    let finding = "was filled from another database";
    let text = said(&check);
    assert_eq!((check.status.code(), run.status.code()), (Some(1), Some(1)), "{text}");
    let line = text.lines().find(|line| line.contains(finding));
    assert!(line.is_some_and(|line| line.starts_with("PROBLEM  here ")), "{text}");
    assert!(said(&run).contains(finding), "{}", said(&run));
}

#[tokio::test(flavor = "multi_thread")]
async fn check_says_whether_a_web_hook_and_a_heartbeat_have_anybody_at_the_other_end_and_sends_none()
 {
    let (local, atlas) = pair().await;
    let hook = Receiver::start();
    let deliveries = |port: u16| {
        format!(
            "[alerts]\nwebhook = \"http://127.0.0.1:{port}/hook/s3cret\"\n\
             heartbeat_url = \"http://127.0.0.1:{port}/beat/s3cret\"\n"
        )
    };
    let there =
        said(&Agent::new(&local.uri(), &atlas.uri(), &deliveries(hook.port)).cli(&["check"]));
    let nobody = Agent::new(&local.uri(), &atlas.uri(), &deliveries(free_port())).cli(&["check"]);

    assert_eq!(there.matches("answers; `outrigger alerts test` tries it").count(), 2, "{there}");
    assert!(nobody.status.success(), "run starts all the same");
    assert_eq!(said(&nobody).matches("does not answer: ").count(), 2, "{}", said(&nobody));
    assert!(!there.contains("s3cret") && !said(&nobody).contains("s3cret"));
    let asked = hook.requests();
    assert!(asked.iter().all(|(line, _)| !line.contains("s3cret")), "{asked:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn alerts_test_makes_each_delivery_once_and_says_how_it_ended() {
    let hook = Receiver::start();
    let config = format!(
        "[alerts]\nwebhook = \"http://127.0.0.1:{0}/hook/s3cret\"\nheartbeat_url = \"http://127.0.0.1:{0}/beat/s3cret\"\n",
        hook.port
    );
    // Nothing else is read: neither connection string is there.
    let agent = Agent::new("", "", &config);

    let taken = agent.cli(&["alerts", "test"]);

    assert!(taken.status.success(), "{}", said(&taken));
    assert_eq!(said(&taken).matches("it answers 200").count(), 2, "{}", said(&taken));
    let asked = hook.requests();
    assert!(asked[0].0.starts_with("POST /hook/s3cret") && asked[1].0.starts_with("GET /beat/"));
    let letter = &asked[0].1;
    assert_eq!((&letter["event"], &letter["alert"]["name"]), (&"test".into(), &"test".into()));
    for key in ["source", "version", "host", "since", "clearedAt", "phase", "text"] {
        assert!(letter.get(key).is_some(), "{key}: {letter}");
    }
    hook.answer(500);
    let refused = agent.cli(&["alerts", "test", "--json"]);
    assert_eq!(refused.status.code(), Some(1));
    let told: Value = serde_json::from_slice(&refused.stdout).unwrap();
    assert_eq!((&told[0]["taken"], &told[0]["answer"]), (&false.into(), &"it answers 500".into()));
    assert_eq!(told.as_array().unwrap().len(), 2);
    assert!(!said(&taken).contains("s3cret") && !said(&refused).contains("s3cret"));
    let nobody = Agent::new("", "", "").cli(&["alerts", "test"]);
    assert_eq!(nobody.status.code(), Some(1));
    assert!(said(&nobody).contains("hint: set `alerts.webhook`"), "{}", said(&nobody));
}

#[tokio::test(flavor = "multi_thread")]
async fn check_with_a_plan_says_what_would_be_copied_compared_deleted_and_left_and_changes_nothing()
{
    let (local, atlas) = pair().await;
    let coll =
        |server: &mongodb::Client, name: &str| server.database("shop").collection::<Document>(name);
    orders(&local).insert_many((0..3).map(|id| doc! { "_id": id })).await.unwrap();
    coll(&local.client, "gone").insert_one(doc! { "_id": 1 }).await.unwrap();
    let mut agent =
        Agent::new(&local.uri(), &atlas.uri(), "[namespaces]\ninclude = [\"shop.*\"]\n");
    let first = agent.cli_json(&["check", "--plan"]).unwrap();
    let planned = |plan: &Value| -> Vec<(String, String, u64, u64)> {
        let rows = plan["plan"]["collections"].as_array().unwrap().clone();
        rows.iter()
            .map(|row| {
                let text = |key: &str| row[key].as_str().unwrap().to_owned();
                let number = |key: &str| row[key].as_u64().unwrap();
                (text("action"), text("ns"), number("localDocuments"), number("atlasDocuments"))
            })
            .collect()
    };
    let row = |action: &str, ns: &str, here, there| (action.to_owned(), ns.to_owned(), here, there);
    assert_eq!(planned(&first), [row("copy", "shop.gone", 1, 0), row("copy", "shop.orders", 3, 0)]);
    assert_eq!(first["plan"]["queueIsThere"], false);
    assert_eq!(atlas.client.list_database_names().await.unwrap(), ["admin", "config", "local"]);

    agent.start(&[]);
    agent.streaming().await;
    equal(&local, &atlas, PATIENCE).await;
    agent.stop();
    coll(&local.client, "gone").drop().await.unwrap();
    coll(&local.client, "fresh").insert_one(doc! { "_id": 1 }).await.unwrap();
    let text = said(&agent.cli(&["check", "--plan"]));
    let second = agent.cli_json(&["check", "--plan"]).unwrap();
    assert_eq!(
        planned(&second),
        [
            row("copy", "shop.fresh", 1, 0),
            row("compare", "shop.orders", 3, 3),
            row("delete", "shop.gone", 0, 1),
        ]
    );
    assert!(text.contains("there is a queue: a start goes on from its position"), "{text}");

    // Somebody else's.
    let (other, foreign) = pair().await;
    orders(&other).insert_one(doc! { "_id": 1 }).await.unwrap();
    orders(&foreign).insert_one(doc! { "_id": 2 }).await.unwrap();
    let stranger = Agent::new(&other.uri(), &foreign.uri(), "");
    let check = stranger.cli(&["check", "--plan"]);
    let text = said(&check);
    assert_eq!(check.status.code(), Some(1), "{text}");
    assert!(text.contains("leave   shop.orders") && text.contains("`run --adopt`"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn roles_prints_what_makes_both_users_and_their_connection_strings() {
    let agent = Agent::new("", "", "[namespaces]\ninclude = [\"shop.*\", \"crm.people\"]\n");
    let text = said(&agent.cli(&["roles"]));
    for part in [
        "db.createRole({",
        "--role readWrite@crm,dbAdmin@crm,readWrite@shop,dbAdmin@shop,readWrite@outrigger,clusterMonitor@admin",
        "atlas accessLists create --currentIp",
        "Specific Privileges",
        "MONGODB_ATLAS_URI='mongodb+srv://outrigger:PASSWORD@",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/roles.js");
    let pasted = said(&agent.cli(&["roles", "--mongosh", "--ns", "shop.*"]));
    assert_eq!(pasted, std::fs::read_to_string(file).unwrap());

    // As it is printed, and with a password that must be escaped.
    let password = "p@ss/w:rd %?#ü";
    let mut child = agent.command();
    child.args(["roles", "--encode"]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = child.spawn().unwrap();
    child.stdin.take().unwrap().write_all(password.as_bytes()).unwrap();
    let encoded = said(&child.wait_with_output().unwrap());
    let (local, atlas) = tokio::join!(Guarded::start(vec![]), Guarded::start(vec![]));
    let told = agent.cli_json(&["roles", "--ns", "shop.*"]).unwrap();
    let bson = |value: &Value| Bson::try_from(value.clone()).unwrap();
    let role = bson(&told["local"]["createRole"]);
    let mut create = doc! { "createRole": "outriggerReader" };
    create.extend(role.as_document().unwrap().clone().into_iter().filter(|(key, _)| key != "role"));
    local.admin(create).await;
    local
        .admin(
            doc! { "createUser": "told", "pwd": password, "roles": bson(&told["local"]["roles"]) },
        )
        .await;
    atlas
        .admin(
            doc! { "createUser": "told", "pwd": password, "roles": bson(&told["atlas"]["roles"]) },
        )
        .await;
    let uri = |of: &Guarded| {
        let port = of.server.port;
        format!("mongodb://told:{}@127.0.0.1:{port}/?directConnection=true", encoded.trim())
    };
    let mut agent =
        Agent::new(&uri(&local), &uri(&atlas), "[namespaces]\ninclude = [\"shop.*\"]\n");
    let orders = local.root.database("shop").collection::<Document>("orders");
    orders.insert_one(doc! { "_id": 1 }).await.unwrap();
    let check = agent.cli(&["check"]);
    let text = said(&check);
    assert!(check.status.success() && !text.contains("grant"), "{text}");
    agent.start(&[]);
    agent.streaming().await;
    orders.insert_one(doc! { "_id": 2 }).await.unwrap();
    assert!(agent.cli(&["flush"]).status.success());
    assert!(agent.cli(&["verify"]).status.success());
}
