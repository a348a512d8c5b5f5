//! With access control on both sides, over TLS to Atlas, with exactly the roles of `deploy/roles.js`; and nothing
//! that is printed, answered or stored shows a secret.

use std::{os::unix::fs::PermissionsExt, path::Path, process::Command};

use mongodb::bson::{Bson, Document, doc};
use serde_json::Value;
use tempfile::TempDir;

use crate::support::{
    PATIENCE,
    agent::Agent,
    api::Api,
    certificates::{CLIENT, Certificates},
    equal::equal,
    eventually,
    guarded::{Guarded, PASSWORD},
    proof::{Need, not_proved},
    receiver::Receiver,
    unasked::Unasked::DeadLetters,
};

/// The JSON that follows `mark` in `deploy/roles.js`, up to where its brackets close.
fn pasted(mark: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/roles.js");
    let text = std::fs::read_to_string(path).unwrap();
    let rest = &text[text.find(mark).expect("it is in the file") + mark.len()..];
    let mut values = serde_json::Deserializer::from_str(rest).into_iter::<Value>();
    values.next().unwrap().unwrap()
}

/// What stands before the roles of the user in Atlas.
const OF_SHOP: &str = "and the rows of its web page.\nuse admin\ndb.createUser({ user: \"outrigger\", pwd: passwordPrompt(), roles: ";

fn bson(value: Value) -> Bson {
    Bson::try_from(value).unwrap()
}

/// The local database with the role of the file.
async fn local() -> Guarded {
    let role = bson(pasted("db.createRole("));
    let role = role.as_document().unwrap().clone();
    let name = role.get_str("role").unwrap().to_owned();
    let mut command = doc! { "createRole": &name };
    command.extend(role.into_iter().filter(|(key, _)| key != "role"));
    let local = Guarded::start(vec![]).await;
    local.admin(command).await;
    local.admin(doc! { "grantRolesToUser": "outrigger", "roles": [name] }).await;
    local
}

/// What an application does: documents, options, indexes, renames, drops.
async fn work(local: &mongodb::Client, n: i32) {
    let shop = local.database("shop");
    let orders = shop.collection::<Document>("orders");
    orders.insert_many((0..100).map(|m| doc! { "_id": n * 1000 + m, "n": m })).await.unwrap();
    let change = doc! { "$set": { "n": -1 } };
    orders.update_many(doc! { "n": { "$lt": 10 } }, change).await.unwrap();
    orders.delete_many(doc! { "n": { "$gt": 90 } }).await.unwrap();
    let index = doc! { "key": { format!("f{n}"): 1 }, "name": format!("f{n}") };
    shop.run_command(doc! { "createIndexes": "orders", "indexes": [index] }).await.unwrap();
    let validator = doc! { "collMod": "orders", "validator": { "_id": { "$exists": true } } };
    shop.run_command(validator).await.unwrap();
    shop.run_command(doc! { "create": format!("view{n}"), "viewOn": "orders", "pipeline": [] })
        .await
        .unwrap();
    let (old, new) = (format!("shop.old{n}"), format!("shop.new{n}"));
    shop.collection::<Document>(&old[5..]).insert_one(doc! { "_id": 1 }).await.unwrap();
    local.database("admin").run_command(doc! { "renameCollection": old, "to": new }).await.unwrap();
    shop.collection::<Document>("gone").insert_one(doc! { "_id": 1 }).await.unwrap();
    shop.collection::<Document>("gone").drop().await.unwrap();
}

async fn everything_works(local: &Guarded, atlas: &Guarded, agent: &mut Agent) {
    work(&local.root, 0).await;
    let check = agent.cli(&["check"]);
    let said = String::from_utf8_lossy(&check.stdout).into_owned();
    assert_eq!(check.status.code(), Some(0), "{said}");
    assert!(!said.contains("PROBLEM") && !said.contains("grant"), "{said}");
    agent.start(&[]);
    agent.streaming().await;
    work(&local.root, 1).await;
    equal(local, atlas, PATIENCE).await;
    // The unique index goes from one document to another, with a look at the holder.
    for args in [&["sync", "--wait"][..], &["verify"], &["verify", "--digest"], &["flush"]] {
        let output = agent.cli(args);
        assert!(output.status.success(), "{args:?}: {output:?}");
    }
    eventually("health", PATIENCE, async || agent.health().unwrap()["status"] == "healthy").await;
    let health = agent.health().unwrap();
    assert_eq!((&health["deadLetters"], &health["atlasError"]), (&0.into(), &Value::Null));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_agent_works_with_exactly_the_roles_of_the_file_over_tls() {
    let certificates = Certificates::new();
    let of_shop = pasted(OF_SHOP);
    let roles = of_shop.as_array().unwrap().iter().cloned().map(bson).collect();
    let (local, atlas) = tokio::join!(local(), Guarded::start_tls(roles, &certificates));
    let insecure = atlas.uri().replace("&tls=true", "");
    let local_uri = local
        .uri()
        .replace("/?", "/shop?")
        .replace("directConnection=true", "directConnection=true&authSource=admin");
    let mut agent = Agent::new(&local_uri, &atlas.uri(), "[sync]\ncount_check_every = \"1s\"\n");
    agent.replace_setting("allow_insecure = true", "allow_insecure = false");

    everything_works(&local, &atlas, &mut agent).await;

    // Without TLS it does not even start.
    assert!(agent.stop().success());
    agent.set_env("MONGODB_ATLAS_URI", &insecure);
    let refused = agent.cli(&["run"]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("without TLS"));

    // With any less of them nothing could be written, and `check` says where.
    agent.set_env("MONGODB_ATLAS_URI", &atlas.uri());
    atlas.admin(doc! { "grantRolesToUser": "outrigger", "roles": [{ "role": "readWrite", "db": "crm" }] }).await;
    for (role, db) in [("readWrite", "outrigger"), ("readWrite", "shop")] {
        let roles = vec![doc! { "role": role, "db": db }];
        atlas.admin(doc! { "revokeRolesFromUser": "outrigger", "roles": roles }).await;
        let check = agent.cli(&["check"]);
        let said = String::from_utf8_lossy(&check.stdout).into_owned();
        assert_eq!(check.status.code(), Some(4), "{said}");
        let line = said.lines().find(|line| line.ends_with(&format!(" in the database `{db}`")));
        assert!(line.is_some_and(|line| line.contains("may not find, insert")), "{said}");
        assert!(said.contains("the roles that `outrigger roles` prints"), "{said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_agent_may_show_a_certificate_in_place_of_a_password() {
    let certificates = Certificates::new();
    let (local, atlas) = tokio::join!(local(), Guarded::start_tls(vec![], &certificates));
    let user = doc! { "createUser": CLIENT, "roles": [
        { "role": "readWriteAnyDatabase", "db": "admin" }, { "role": "dbAdminAnyDatabase", "db": "admin" },
        { "role": "clusterMonitor", "db": "admin" },
    ] };
    atlas.root.database("$external").run_command(user).await.unwrap();
    let uri = format!(
        "mongodb://127.0.0.1:{}/?directConnection=true{}",
        atlas.server.port,
        certificates.x509_options()
    );
    let mut agent = Agent::new(&local.uri(), &uri, "[namespaces]\ninclude = [\"shop.*\"]\n");

    everything_works(&local, &atlas, &mut agent).await;
}

/// A company's own authority, where the system keeps it: no file is named anywhere.
#[tokio::test(flavor = "multi_thread")]
async fn the_systems_certificates_count_for_atlas_the_web_hook_and_the_heartbeat() {
    let certificates = Certificates::new();
    let roles: Vec<Bson> = vec!["readWriteAnyDatabase".into(), "dbAdminAnyDatabase".into()];
    let (local, atlas) = tokio::join!(local(), Guarded::start_tls(roles, &certificates));
    let hook = Receiver::start_tls(&certificates.file("server.pem"));
    let elsewhere = Receiver::start_tls(&certificates.file("elsewhere.pem"));
    let uri = atlas.uri().replace(&certificates.options(), "&tls=true");
    let settings = |hook: &Receiver| {
        let address = format!("https://localhost:{}/s3cret", hook.port);
        format!(
            "[namespaces]\ninclude = [\"shop.*\"]\n[alerts]\nqueue_size = 1\nheartbeat_every = \"1s\"\n\
             webhook = \"{address}\"\nheartbeat_url = \"{address}\"\n"
        )
    };
    let shop = local.root.database("shop").collection::<Document>("orders");
    shop.insert_one(doc! { "_id": 1 }).await.unwrap();

    // An authority that nobody has heard of: what TLS said is told.
    let mut agent = Agent::new(&local.uri(), &uri, &settings(&hook));
    agent.start(&[]);
    eventually("what TLS has against Atlas", PATIENCE, async || {
        let health = agent.health().unwrap_or_default();
        health["atlasError"].to_string().contains("invalid peer certificate: UnknownIssuer")
    })
    .await;
    assert!(agent.stop().success());

    agent.set_env("SSL_CERT_FILE", certificates.file("ca.pem").to_str().unwrap());
    agent.start(&[]);
    agent.streaming().await;
    equal(&local, &atlas, PATIENCE).await;
    let pause = || assert!(agent.cli(&["pause"]).status.success());
    pause();
    shop.insert_many((2..20).map(|id| doc! { "_id": id })).await.unwrap();
    for method in ["GET", "POST"] {
        eventually(method, PATIENCE, async || {
            hook.requests().iter().any(|(line, _)| line.starts_with(method))
        })
        .await;
    }
    assert!(agent.stop().success());

    // A certificate of the same authority, for another name.
    agent.replace_setting(&hook.port.to_string(), &elsewhere.port.to_string());
    agent.start(&[]);
    eventually("what TLS has against the hook", PATIENCE, async || {
        agent.log().contains("certificate not valid for name \\\"localhost\\\"")
    })
    .await;
    assert!(!agent.log().contains("s3cret"));
    assert!(elsewhere.requests().is_empty());
}

/// Everything that a run of many commands prints and answers, at the most talkative level.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_that_is_printed_or_answered_shows_a_secret() {
    let certificates = Certificates::new();
    let roles: Vec<Bson> = vec!["readWriteAnyDatabase".into(), "dbAdminAnyDatabase".into()];
    let (local, atlas) = tokio::join!(local(), Guarded::start_tls(roles, &certificates));
    let hook = Receiver::start();
    hook.answer(500);
    let config = format!(
        "[namespaces]\ninclude = [\"shop.*\"]\n[log]\nlevel = \"trace\"\nformat = \"json\"\n[worker]\nmax_retries = 0\n\
         [alerts]\nqueue_size = 1\nheartbeat_every = \"1s\"\nwebhook = \"http://ann:{PASSWORD}@127.0.0.1:{port}/{PASSWORD}\"\n\
         heartbeat_url = \"http://127.0.0.1:{port}/{PASSWORD}?k={PASSWORD}\"\n",
        port = hook.port
    );
    let mut agent = Agent::new(&local.uri(), &atlas.uri(), &config);
    agent.may(&[DeadLetters], "what Atlas refuses is shown everywhere");
    let said = std::cell::RefCell::new(String::new());
    let add = |text: &str| said.borrow_mut().push_str(text);
    let note = |output: std::process::Output| {
        add(&String::from_utf8_lossy(&output.stdout));
        add(&String::from_utf8_lossy(&output.stderr));
    };
    let secret = "of-a-customer-4711";
    let shop = local.root.database("shop");
    let orders = shop.collection::<Document>("orders");
    orders.insert_many((0..20).map(|id| doc! { "_id": id, "card": secret })).await.unwrap();
    for args in [&["check"][..], &["check", "--json"], &["status"], &["doc", "shop.orders", "1"]] {
        note(agent.cli(args));
    }
    agent.start(&[]);
    agent.streaming().await;
    // A dead letter, an outage, a refusal: what fails talks most.
    let index = doc! { "key": { "card": 1 }, "name": "card", "unique": true };
    atlas
        .root
        .database("shop")
        .collection::<Document>("orders")
        .delete_many(doc! {})
        .await
        .unwrap();
    let command = doc! { "createIndexes": "orders", "indexes": [index] };
    atlas.root.database("shop").run_command(command).await.unwrap();
    orders.insert_many((20..40).map(|id| doc! { "_id": id, "card": secret })).await.unwrap();
    eventually("dead letters", PATIENCE, async || {
        agent.health().unwrap()["deadLetters"].as_u64() > Some(5)
    })
    .await;
    let revoke = doc! { "revokeRolesFromUser": "outrigger", "roles": ["readWriteAnyDatabase"] };
    atlas.admin(revoke).await;
    orders.insert_many((40..60).map(|id| doc! { "_id": id, "card": secret })).await.unwrap();
    agent.queued(3).await;
    for args in [
        &["status"][..],
        &["status", "--json"],
        &["check"],
        &["queue", "list"],
        &["queue", "stats"],
        &["dead", "list"],
        &["verify"],
        &["sync"],
        &["sync", "status"],
        &["flush", "--timeout", "1s"],
        &["doc", "shop.orders", "45"],
        &["pause"],
        &["resume"],
    ] {
        note(agent.cli(args));
    }
    let api = Api::of(&agent);
    for path in [
        "/",
        "/metrics",
        "/openapi.json",
        "/api/sync/health",
        "/api/sync/metrics",
        "/api/sync/databases",
        "/api/sync/full",
        "/api/queue",
        "/api/dead-letters",
        "/api/documents/shop.orders/45",
        "/api/queue/nonsense",
        "/nowhere",
    ] {
        add(&api.with_token("GET", path).1.to_string());
    }
    let mut stream = std::net::TcpStream::connect(("127.0.0.1", agent.admin_port)).unwrap();
    let request =
        format!("GET /api/events HTTP/1.1\r\nHost: 127.0.0.1:{}\r\n\r\n", agent.admin_port);
    std::io::Write::write_all(&mut stream, request.as_bytes()).unwrap();
    let mut events = Vec::new();
    while events.windows(13).filter(|part| *part == b"event: status").count() < 2 {
        let mut part = [0; 4096];
        let n = std::io::Read::read(&mut stream, &mut part).unwrap();
        events.extend_from_slice(&part[..n]);
    }
    add(&String::from_utf8_lossy(&events));
    let token = api.token.clone();
    // Wrong addresses, and a wrong password, in what the program says of them.
    let mut wrong = Agent::new(&local.uri().replace(PASSWORD, "s3cret-too"), &atlas.uri(), "");
    note(wrong.cli(&["run"]));
    wrong.set_env("MONGODB_LOCAL_URI", &format!("mongodb://ann:{PASSWORD}"));
    note(wrong.cli(&["run"]));
    assert!(agent.stop().success());
    add(&agent.log());
    let files = Command::new("find").arg(agent.dir.path()).output().unwrap();
    note(files);

    let said = said.into_inner();
    assert!(said.len() > 20_000, "it did say something");
    for hidden in [PASSWORD, "s3cret-too", secret, &token] {
        let at =
            said.find(hidden).map(|at| &said[at.saturating_sub(300)..(at + 100).min(said.len())]);
        assert_eq!(at, None, "{hidden} was shown");
    }
    let fields: std::collections::BTreeSet<_> =
        outrigger::observe::logging::FIELDS.iter().map(|(name, _)| *name).collect();
    for line in agent.log().lines().filter(|line| line.starts_with('{')) {
        let line: Value = serde_json::from_str(line).expect("every line is JSON");
        for key in line.as_object().unwrap().keys() {
            let known = ["timestamp", "level", "message"].contains(&key.as_str())
                || fields.contains(key.as_str());
            // The driver and the queue's storage have words of their own, from `warn` on.
            assert!(known || key.starts_with("log."), "{key} is no field of the list: {line}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_agent_stores_is_for_its_owner_only() {
    let (local, atlas) = crate::support::pair().await;
    let mut agent = Agent::new(&local.uri(), &atlas.uri(), "");
    // From an earlier version, say.
    let queue = agent.dir.path().join("queue");
    std::fs::create_dir(&queue).unwrap();
    std::fs::set_permissions(&queue, PermissionsExt::from_mode(0o755)).unwrap();
    std::fs::write(queue.join("old"), "").unwrap();
    std::fs::set_permissions(queue.join("old"), PermissionsExt::from_mode(0o644)).unwrap();
    agent.start(&[]);
    agent.streaming().await;
    local.client.database("shop").collection("orders").insert_one(doc! { "_id": 1 }).await.unwrap();
    equal(&local, &atlas, PATIENCE).await;

    let mut looked = 0;
    let mut folders = vec![queue];
    while let Some(folder) = folders.pop() {
        assert_eq!(std::fs::metadata(&folder).unwrap().permissions().mode() & 0o777, 0o700);
        for entry in std::fs::read_dir(&folder).unwrap() {
            let entry = entry.unwrap();
            let metadata = entry.metadata().unwrap();
            if metadata.is_dir() {
                folders.push(entry.path());
                continue;
            }
            looked += 1;
            assert_eq!(metadata.permissions().mode() & 0o777, 0o600, "{}", entry.path().display());
        }
    }
    assert!(looked >= 3, "the queue is made of files");
    let token = agent.dir.path().join("outrigger.token");
    assert_eq!(std::fs::metadata(token).unwrap().permissions().mode() & 0o777, 0o600);
}

/// As `outrigger status` does beside a service that is down: root looks, and the service's own user must still be
/// able to open its queue.
#[tokio::test(flavor = "multi_thread")]
async fn what_root_makes_in_the_queue_belongs_to_its_owner() {
    use std::os::unix::fs::MetadataExt;
    let (local, atlas) = crate::support::pair().await;
    let mut agent = Agent::new(&local.uri(), &atlas.uri(), "");
    agent.start(&[]);
    agent.streaming().await;
    assert!(agent.stop().success());
    let queue = agent.dir.path().join("queue");
    let owner = 65_534;
    if std::os::unix::fs::chown(&queue, Some(owner), Some(owner)).is_err() {
        not_proved(Need::Root);
        return;
    }

    assert!(agent.cli(&["queue", "stats"]).status.success());

    let mut looked = 0;
    for entry in std::fs::read_dir(&queue).unwrap() {
        let entry = entry.unwrap();
        looked += 1;
        assert_eq!(entry.metadata().unwrap().uid(), owner, "{}", entry.path().display());
    }
    assert!(looked >= 3);
}

/// Puts a file in the place of another in one step, as whoever renews certificates does.
fn put(path: &std::path::Path, content: &str) {
    let beside = path.with_extension("new");
    std::fs::write(&beside, content).unwrap();
    std::fs::rename(beside, path).unwrap();
}

/// At each end: a file that is half written for a while, then another authority whose server comes after it, then
/// a password, or a certificate, that is refused from one moment to the next.
#[tokio::test(flavor = "multi_thread")]
async fn an_authority_a_certificate_and_a_password_that_are_renewed_are_read_again_at_both_ends() {
    let (old, new) = (Certificates::new(), Certificates::of("another authority", "outrigger2"));
    let pem = |of: &Certificates, name: &str| std::fs::read_to_string(of.file(name)).unwrap();
    let both = pem(&old, "ca.pem") + &pem(&new, "ca.pem");
    let dir = TempDir::new().unwrap();
    let [ca, client, uri] = ["ca.pem", "client.pem", "local.uri"].map(|name| dir.path().join(name));
    put(&ca, &pem(&old, "ca.pem"));
    put(&client, &pem(&old, "client.pem"));
    // The servers, and the test, trust both from the start.
    std::fs::write(old.file("ca.pem"), &both).unwrap();
    let roles = || vec!["root".into()];
    let (mut local, mut atlas) =
        tokio::join!(Guarded::start_tls(roles(), &old), Guarded::start_tls(roles(), &old));
    let names = |cn: &str| format!("CN={cn},OU=agents,O=shop");
    let external = atlas.root.database("$external");
    for name in ["outrigger", "outrigger2"] {
        let user = doc! { "createUser": names(name), "roles": [{ "role": "root", "db": "admin" }] };
        external.run_command(user).await.unwrap();
    }
    let local_uri = |password: &str| {
        format!(
            "mongodb://outrigger:{password}@127.0.0.1:{}/?directConnection=true&tls=true&tlsCAFile={}",
            local.server.port,
            ca.display()
        )
    };
    let (old_uri, new_uri) = (local_uri(PASSWORD), local_uri("another"));
    put(&uri, &old_uri);
    let atlas_uri = format!(
        "mongodb://127.0.0.1:{}/?directConnection=true&tls=true&tlsCAFile={}&tlsCertificateKeyFile={}\
         &authMechanism=MONGODB-X509",
        atlas.server.port,
        ca.display(),
        client.display()
    );
    let mut agent = Agent::new("", &atlas_uri, "[namespaces]\ninclude = [\"shop.*\"]\n");
    agent.replace_setting("[local]", &format!("[local]\nuri_file = {uri:?}"));
    agent.start(&[]);
    agent.streaming().await;
    let orders = |of: &Guarded| of.root.database("shop").collection::<Document>("orders");
    let arrives = async |n: i32, local: &Guarded, atlas: &Guarded| {
        orders(local).insert_one(doc! { "_id": n }).await.unwrap();
        eventually("the document", PATIENCE, async || {
            matches!(orders(atlas).find_one(doc! { "_id": n }).await, Ok(Some(_)))
        })
        .await;
    };
    arrives(1, &local, &atlas).await;

    // Half written.
    put(&ca, "-----BEGIN CERTIFICATE-----\nMIIB");
    put(&uri, "mongodb://outrig");
    arrives(2, &local, &atlas).await;
    eventually("a word on both", PATIENCE, async || {
        agent.log().matches("does not work yet").count() >= 2
    })
    .await;
    arrives(3, &local, &atlas).await;

    // Another authority, whose servers come after it.
    put(&ca, &both);
    put(&uri, &old_uri);
    put(&old.file("server.pem"), &pem(&new, "server.pem"));
    local.server.kill();
    local.server.resume().await;
    atlas.server.kill();
    atlas.server.resume().await;
    arrives(4, &local, &atlas).await;

    // Nothing of it is known before it is refused: the file is renewed afterwards.
    let password = doc! { "updateUser": "outrigger", "pwd": "another" };
    local.root.database("admin").run_command(password).await.unwrap();
    external.run_command(doc! { "dropUser": names("outrigger") }).await.unwrap();
    local.server.kill();
    local.server.resume().await;
    eventually("the refusal", PATIENCE, async || {
        let health = agent.health().unwrap();
        health["localError"].to_string().contains("uthentication failed")
    })
    .await;
    let said = agent.health().unwrap()["localError"].to_string();
    assert!(said.contains("local.uri"), "the file that is in use is named: {said}");
    put(&uri, &new_uri);
    put(&client, &pem(&new, "client.pem"));
    arrives(5, &local, &atlas).await;
    assert!(!agent.log().contains(PASSWORD), "{}", agent.log());
}
