//! `docs/openapi.json` is what the agent answers; and what it refuses, it refuses with a reason.

use std::{
    collections::BTreeSet,
    io::{Read, Write},
    net::TcpStream,
    path::Path,
    time::Duration,
};

use mongodb::bson::doc;
use serde_json::Value;

use crate::support::{
    PATIENCE,
    agent::Agent,
    api::Api,
    eventually, orders, pair,
    proxy::{Line, Proxy},
    unasked::Unasked::DeadLetters,
};

fn document() -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/openapi.json");
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// Checks an answer against the schema that the document gives for it.
fn check(document: &Value, path: &str, method: &str, status: u16, answer: &Value) {
    let described = &document["paths"][path][method]["responses"][status.to_string()];
    assert!(described.is_object(), "{method} {path} may answer {status}: {answer}");
    let content = &described["content"]["application/json"]["schema"];
    if content.is_null() {
        return;
    }
    let mut schema = content.clone();
    schema["components"] = document["components"].clone();
    let validator = jsonschema::validator_for(&schema).unwrap();
    let problems: Vec<_> = validator.iter_errors(answer).map(|error| error.to_string()).collect();
    assert!(problems.is_empty(), "{method} {path} {status}: {problems:#?} in {answer:#}");
}

#[test]
fn every_route_is_in_the_document_and_the_other_way_round() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/admin/mod.rs");
    let source = std::fs::read_to_string(source).unwrap();
    let routed: BTreeSet<String> = source
        .split(".route(")
        .skip(1)
        .map(|rest| rest.split('"').nth(1).unwrap().to_owned())
        .collect();

    let document = document();

    let described: BTreeSet<String> =
        document["paths"].as_object().unwrap().keys().cloned().collect();
    assert_eq!(routed, described);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_document_describes_what_the_agent_answers() {
    let (local, atlas) = pair().await;
    let line = Proxy::to(atlas.port).await;
    orders(&local).insert_many((0..20).map(|id| doc! { "_id": id })).await.unwrap();
    let config = "[worker]\nmax_retries = 0\n";
    let mut agent = Agent::new(&local.uri(), &line.uri(), config);
    agent.may(&[DeadLetters], "Atlas has an index of its own, which refuses some");
    agent.start(&[]);
    agent.streaming().await;
    let api = Api::of(&agent);
    let document = document();
    assert_eq!(api.get("/openapi.json").1, document, "the served one is this one");
    let ask = |method: &str, path: &str, real: &str, body: &str| {
        let (status, answer) = api.with_body(&method.to_uppercase(), real, body);
        check(&document, path, method, status, &answer);
        let is_problem = status >= 400 && answer.is_object();
        assert!(!is_problem || answer["hint"].is_string(), "{method} {path} {status}: {answer}");
        (status, answer)
    };
    let plain = |path: &'static str| ask("get", path, path, "").0;

    for path in [
        "/healthz",
        "/readyz",
        "/",
        "/metrics",
        "/openapi.json",
        "/runbook",
        "/api/sync/health",
        "/api/sync/metrics",
        "/api/sync/databases",
        "/api/sync/full",
        "/api/queue",
        "/api/dead-letters",
    ] {
        assert_eq!(plain(path), 200, "{path}");
    }
    let runbook = "/runbook/{alert}";
    assert_eq!(ask("get", runbook, "/runbook/nothing", "").0, 404);
    // A dead letter, by an index that only Atlas has.
    let index = doc! { "key": { "u": 1 }, "name": "u", "unique": true, "sparse": true };
    let command = doc! { "createIndexes": "orders", "indexes": [index] };
    atlas.client.database("shop").run_command(command).await.unwrap();
    let two = [doc! { "_id": 50, "u": 1 }, doc! { "_id": 51, "u": 1 }];
    orders(&local).insert_many(two).await.unwrap();
    eventually("a dead letter", PATIENCE, async || agent.health().unwrap()["deadLetters"] == 1)
        .await;
    let (_, letters) = ask("get", "/api/dead-letters", "/api/dead-letters?limit=5", "");
    let id = letters["deadLetters"][0]["id"].as_str().unwrap().to_owned();
    let letter = "/api/dead-letters/{id}";
    assert_eq!(ask("get", letter, &format!("/api/dead-letters/{id}"), "").0, 200);
    let flush = "/api/sync/flush";
    assert_eq!(
        ask("post", flush, flush, "{\"timeoutMs\": 5000}").0,
        409,
        "a dead letter is not in Atlas"
    );
    let states = "/api/documents/{ns}/{id}";
    let of = |id: &str| ask("get", states, &format!("/api/documents/shop.orders/{id}"), "");
    assert_eq!(of("51").1["state"], "FAILED");
    let retry = "/api/dead-letters/{id}/retry";
    atlas
        .client
        .database("shop")
        .run_command(doc! { "dropIndexes": "orders", "index": "u" })
        .await
        .unwrap();
    assert_eq!(ask("post", retry, &format!("/api/dead-letters/{id}/retry"), "").0, 202);
    let all = "/api/dead-letters/retry";
    assert_eq!(ask("post", all, all, "{\"namespaces\": [\"nonsense\"]}").0, 400);
    assert_eq!(ask("post", all, all, "{\"namespaces\": [\"crm.*\"]}").1["queued"], 0);
    assert_eq!(ask("post", all, all, "").0, 200);
    eventually("no dead letter", PATIENCE, async || agent.health().unwrap()["deadLetters"] == 0)
        .await;
    assert_eq!(ask("delete", letter, &format!("/api/dead-letters/{id}"), "").0, 404);
    assert_eq!(ask("post", flush, flush, "").0, 200);
    assert_eq!(of("51").1["state"], "SYNCED");
    assert_eq!(of("%22nobody%22").0, 404);
    assert_eq!(ask("get", states, "/api/documents/nowhere/1", "").0, 400);
    assert_eq!(ask("get", states, "/api/documents/admin.users/1", "").0, 404);

    let full = "/api/sync/full";
    assert_eq!(ask("delete", full, full, "").0, 404);
    assert_eq!(ask("post", full, full, "{\"namespaces\": [\"nonsense\"]}").0, 400);
    assert_eq!(ask("post", full, full, "[]").0, 400);
    assert_eq!(ask("post", full, full, "{\"dryRun\": true}").0, 202);
    eventually("its end", PATIENCE, async || {
        let (_, report) = ask("get", full, full, "");
        report["running"].is_null() && !report["sync"].is_null()
    })
    .await;

    line.set(Line::Cut);
    orders(&local).insert_many((100..105).map(|id| doc! { "_id": id })).await.unwrap();
    agent.queued(5).await;
    let (_, queue) = ask("get", "/api/queue", "/api/queue?limit=2", "");
    let entry = queue["operations"][0]["id"].as_str().unwrap();
    assert_eq!(ask("get", "/api/queue/{id}", &format!("/api/queue/{entry}"), "").0, 200);
    assert_eq!(of("100").1["state"], "PENDING");
    assert_eq!(ask("post", flush, flush, "{\"timeoutMs\": 300}").0, 503);
    assert_eq!(of("0").0, 503, "who cannot look does not say SYNCED");
    eventually("not ready", PATIENCE, async || plain("/readyz") == 503).await;
    let export = "/api/queue/export";
    let (_, file) = ask("get", export, export, "");
    assert_eq!(file["operations"].as_array().unwrap().len(), 5);
    let import = "/api/queue/import";
    assert_eq!(ask("post", import, import, &file.to_string()).0, 202);
    assert_eq!(ask("post", import, import, "{\"version\": 7, \"operations\": []}").0, 400);
    assert_eq!(ask("post", "/api/sync/pause", "/api/sync/pause", "").0, 200);
    assert_eq!(plain("/api/sync/health"), 200, "with everything that an outage fills in");
    assert_eq!(ask("post", "/api/sync/resume", "/api/sync/resume", "").0, 200);

    // What needs the token, and says so in the document.
    for (path, methods) in document["paths"].as_object().unwrap() {
        for (method, described) in methods.as_object().unwrap() {
            let real = path
                .replace("{id}", &id)
                .replace("{ns}", "shop.orders")
                .replace("{name}", "app.js")
                .replace("{alert}", "lag");
            if path == "/api/events" {
                continue;
            }
            let (status, answer) = api.call(&method.to_uppercase(), &real, &[]);
            assert_eq!(status == 401, described.get("security").is_some(), "{method} {path}");
            if status == 401 {
                check(&document, path, method, 401, &answer);
            }
        }
        // Every other method is refused as such.
        for method in ["GET", "POST", "PUT", "DELETE"] {
            if methods.get(method.to_lowercase()).is_none() {
                let real = path
                    .replace("{id}", &id)
                    .replace("{ns}", "shop.orders")
                    .replace("{name}", "app.js")
                    .replace("{alert}", "lag");
                let (status, answer) = api.with_token(method, &real);
                assert_eq!(status, 405, "{method} {path}");
                assert!(answer["error"].is_string(), "{answer}");
            }
        }
    }
}

fn raw(agent: &Agent, request: &[u8]) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", agent.admin_port)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(40))).unwrap();
    let _ = stream.write_all(request);
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer);
    answer
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_and_connections_are_bounded() {
    let (local, atlas) = pair().await;
    let agent = Agent::started(&local.uri(), &atlas.uri());
    agent.streaming().await;
    let api = Api::of(&agent);
    let host = format!("Host: 127.0.0.1:{}\r\n", agent.admin_port);

    // A body that never comes, where the answer itself may take as long as it is asked to. It is waited for meanwhile.
    let mut bodiless = TcpStream::connect(("127.0.0.1", agent.admin_port)).unwrap();
    bodiless.set_read_timeout(Some(PATIENCE)).unwrap();
    let head = format!(
        "POST /api/sync/flush HTTP/1.1\r\n{host}Authorization: Bearer {}\r\nContent-Length: 100\r\n\r\n{{",
        api.token
    );
    bodiless.write_all(head.as_bytes()).unwrap();

    // Body, head, and a head that never ends.
    let too_large = " ".repeat((16 << 20) + 1);
    let (status, answer) = api.with_body("POST", "/api/sync/full", &too_large);
    assert_eq!((status, answer["error"].is_string()), (413, true));
    let long = format!("GET /api/sync/health HTTP/1.1\r\n{host}X: {}\r\n\r\n", "x".repeat(20_000));
    assert!(raw(&agent, long.as_bytes()).starts_with("HTTP/1.1 431"));
    let many = "X-Y: 1\r\n".repeat(80);
    let many = format!("GET /healthz HTTP/1.1\r\n{many}\r\n");
    assert!(raw(&agent, many.as_bytes()).starts_with("HTTP/1.1 431"));
    assert!(raw(&agent, b"nonsense\r\n\r\n").starts_with("HTTP/1.1 400"));
    let mut endless = TcpStream::connect(("127.0.0.1", agent.admin_port)).unwrap();
    endless.set_read_timeout(Some(PATIENCE)).unwrap();
    endless.write_all(b"GET /healthz HTTP/1.1\r\nHo").unwrap();
    // The agent ends it, or this would be an error: nothing within the patience of the test.
    assert!(endless.read_to_end(&mut Vec::new()).is_ok(), "a head that never ends is given up");

    // Whoever takes all connections and says nothing gets them for seconds only.
    let request = format!("GET /healthz HTTP/1.1\r\n{host}Connection: close\r\n\r\n");
    let mut taken = Vec::new();
    eventually("a refusal", PATIENCE, async || {
        // One that asks may have come before the last of them, and on a slow machine the first have gone again.
        taken.push(TcpStream::connect(("127.0.0.1", agent.admin_port)).unwrap());
        taken.len() >= 64 && raw(&agent, request.as_bytes()).contains("too many connections")
    })
    .await;
    let answered = || raw(&agent, request.as_bytes()).starts_with("HTTP/1.1 200");
    eventually("room again", PATIENCE, async || answered()).await;
    drop(taken);
    // The last of them may stand before the door still, and take the place of one that has gone.
    let mut in_a_row = 0;
    eventually("room for whoever comes", PATIENCE, async || {
        in_a_row = if answered() { in_a_row + 1 } else { 0 };
        in_a_row == 20
    })
    .await;

    // Whoever stands between might have read the other name.
    let twice =
        format!("GET /healthz HTTP/1.1\r\n{host}Host: evil.example\r\nConnection: close\r\n\r\n");
    assert!(raw(&agent, twice.as_bytes()).starts_with("HTTP/1.1 400"));
    let absolute = format!(
        "GET http://evil.example/api/sync/health HTTP/1.1\r\n{host}Connection: close\r\n\r\n"
    );
    assert!(raw(&agent, absolute.as_bytes()).starts_with("HTTP/1.1 400"));
    let mut answer = String::new();
    bodiless.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");

    // What axum would say in plain text is JSON as well, and every answer forbids what it does not need.
    let (status, answer) = api.with_token("GET", "/api/queue/%ff");
    assert_eq!((status, answer["error"].is_string()), (400, true), "{answer}");
    let answer =
        raw(&agent, format!("GET / HTTP/1.1\r\n{host}Connection: close\r\n\r\n").as_bytes());
    let head = answer.split("\r\n\r\n").next().unwrap().to_lowercase();
    for part in ["default-src 'none'", "nosniff", "x-frame-options: deny", "no-store"] {
        assert!(head.contains(part), "{part} is missing in {head}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn on_any_other_address_than_loopback_everything_but_healthz_needs_the_token() {
    let (local, atlas) = pair().await;
    let mut agent = Agent::new(&local.uri(), &atlas.uri(), "");
    agent.replace_setting("listen = \"127.0.0.1:", "listen = \"0.0.0.0:");
    agent.start(&[]);
    eventually("the API", PATIENCE, async || {
        TcpStream::connect(("127.0.0.1", agent.admin_port)).is_ok()
    })
    .await;
    let api = Api::of(&agent);

    assert_eq!(api.get("/healthz").0, 200);
    assert_eq!(api.get("/runbook/lag").0, 200, "the same for everyone, and read by who is woken");
    for path in ["/", "/readyz", "/metrics", "/api/sync/health", "/api/events", "/openapi.json"] {
        assert_eq!(api.get(path).0, 401, "{path}");
    }
    assert_eq!(api.with_token("GET", "/api/sync/health").0, 200);
    // The CLI has the token.
    eventually("streaming", PATIENCE, async || {
        agent.cli_json(&["status"]).is_some_and(|health| health["phase"] == "streaming")
    })
    .await;
}

/// Clients are made from the document: what it lets through and the agent does not understand reaches a person as an
/// error of their program, and the other way round nobody finds what could be asked.
#[tokio::test(flavor = "multi_thread")]
async fn the_document_lets_through_what_the_agent_understands_and_nothing_else() {
    let (local, atlas) = pair().await;
    let agent = Agent::started(&local.uri(), &atlas.uri());
    agent.streaming().await;
    let api = Api::of(&agent);
    let document = document();
    let known = "01890a5d-ac96-774b-bcce-b302099a8057";
    let in_path = [
        (
            "/api/queue/{id}",
            vec![known, "0", "", "01890a5d", "x1890a5d-ac96-774b-bcce-b302099a8057"],
        ),
        ("/api/dead-letters/{id}", vec![known, "0", "nonsense"]),
    ];
    for (path, values) in in_path {
        let schema = &document["paths"][path]["get"]["parameters"][0]["schema"];
        for value in values.into_iter().filter(|value| !value.is_empty()) {
            let (status, answer) = api.with_token("GET", &path.replace("{id}", value));
            assert_eq!(
                status != 400,
                jsonschema::is_valid(schema, &value.into()),
                "{path} {value}: {answer}"
            );
        }
    }
    let ns = &document["paths"]["/api/documents/{ns}/{id}"]["get"]["parameters"][0]["schema"];
    for value in ["shop.orders", "shop.a.b", "shop", "shop.", ".orders"] {
        let (status, answer) = api.with_token("GET", &format!("/api/documents/{value}/1"));
        assert_eq!(status != 400, jsonschema::is_valid(ns, &value.into()), "{value}: {answer}");
    }
    let limit = &document["paths"]["/api/queue"]["get"]["parameters"][0]["schema"];
    for value in ["0", "50", "18446744073709551615", "18446744073709551616", "-1"] {
        let (status, answer) = api.with_token("GET", &format!("/api/queue?limit={value}"));
        let number: Value = serde_json::from_str(value).unwrap();
        assert_eq!(status != 400, jsonschema::is_valid(limit, &number), "{value}: {answer}");
    }
    let bodies = [
        ("/api/sync/flush", "{\"timeoutMs\": 10377.0}"),
        ("/api/sync/flush", "{\"timeoutMs\": 10377.5}"),
        ("/api/sync/flush", "{\"timeoutMs\": -1}"),
        ("/api/sync/flush", "{\"timeoutMs\": 3600001}"),
        ("/api/sync/flush", "{\"timeout\": 5}"),
        ("/api/dead-letters/retry", "{\"namespaces\": [\"\"]}"),
        ("/api/dead-letters/retry", "{\"namespaces\": [\"shop.*\", \"*.sessions\"]}"),
        ("/api/dead-letters/retry", "{\"namespace\": []}"),
        ("/api/sync/full", "{\"dryRun\": true, \"namespaces\": [\"shop\"]}"),
        ("/api/sync/full", "{\"dryRun\": true, \"namespaces\": [\"shop.?\"]}"),
        ("/api/sync/full", "{\"dryRun\": 1}"),
    ];
    for (path, body) in bodies {
        let media = &document["paths"][path]["post"]["requestBody"]["content"]["application/json"];
        let mut schema = media["schema"].clone();
        if let Some(name) =
            schema["$ref"].as_str().map(|of| of.rsplit('/').next().unwrap().to_owned())
        {
            schema = document["components"]["schemas"][name].clone();
        }
        let (status, answer) = api.with_body("POST", path, body);
        let value: Value = serde_json::from_str(body).unwrap();
        assert_eq!(status != 400, jsonschema::is_valid(&schema, &value), "{path} {body}: {answer}");
    }
}
