//! The dashboard beside hundreds of collections, a queue that is full, and a line to the agent that says nothing.

use std::{
    io::{Read, Write},
    net::TcpStream,
    time::{Duration, Instant},
};

use mongodb::bson::{Document, doc};
use serde_json::json;

use crate::support::{
    PATIENCE,
    agent::Agent,
    browser::{Browser, programs},
    eventually, orders, pair,
    proxy::{Line, Proxy},
};

const LIGHT: [&str; 2] = ["--window-size=1180,1000", "--hide-scrollbars"];

fn url(port: u16) -> String {
    format!("http://127.0.0.1:{port}/")
}

/// What one dashboard is sent within `time`, after the first state.
fn bytes_sent(agent: &Agent, query: &str, time: Duration) -> usize {
    let mut stream = TcpStream::connect(("127.0.0.1", agent.admin_port)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let host = format!("127.0.0.1:{}", agent.admin_port);
    let request = format!("GET /api/events?{query} HTTP/1.1\r\nHost: {host}\r\n\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    let (mut buffer, mut text) = (vec![0; 1 << 16], String::new());
    while !text.contains("event: status") || !text.ends_with("\n\n\r\n") {
        let n = stream.read(&mut buffer).unwrap();
        text.push_str(&String::from_utf8_lossy(&buffer[..n]));
    }
    let (began, mut sent) = (Instant::now(), 0);
    while began.elapsed() < time {
        sent += stream.read(&mut buffer).unwrap();
    }
    sent
}

#[tokio::test(flavor = "multi_thread")]
async fn of_five_hundred_collections_come_those_in_trouble_and_of_them_what_changes() {
    let Some(programs) = programs() else { return };
    let (local, atlas) = pair().await;
    let db = local.client.database("shop");
    for n in 0..500 {
        db.collection(&format!("items_{n:03}")).insert_one(doc! { "_id": 1 }).await.unwrap();
    }
    // What means something to a page's language means nothing here.
    let odd = local.client.database("__proto__").collection("constructor");
    odd.insert_many([doc! { "_id": 1 }, doc! { "_id": 2 }]).await.unwrap();
    let config = "[sync]\ncount_check_every = \"2s\"\n";
    let mut agent = Agent::new(&local.uri(), &atlas.uri(), config);
    agent.start(&[]);
    agent.streaming().await;
    let browser = Browser::open(&programs, &url(agent.admin_port), &LIGHT).await;
    browser.shows("ns-more", "481 more of 501 are not shown").await;
    let rows = "document.querySelectorAll('#ns-rows tr').length";
    assert_eq!(browser.js(rows).await, 20);

    // The one that is written most comes first, and what is selected in a row stays while its figures change.
    let busy = db.collection::<Document>("items_321");
    let mut n = 0;
    let mut write = async || {
        n += 1;
        busy.update_one(doc! { "_id": 1 }, doc! { "$set": { "n": n } }).await.unwrap();
    };
    eventually("the busy one first", PATIENCE, async || {
        write().await;
        browser.text("ns-rows").await.starts_with("shop.items_321")
    })
    .await;
    browser.js("getSelection().selectAllChildren(document.querySelector('#ns-rows tr td'))").await;
    let written = "document.querySelector('#ns-rows tr').children[2].textContent";
    let before = browser.js(written).await;
    eventually("another figure", PATIENCE, async || {
        write().await;
        browser.js(written).await != before
    })
    .await;
    let selected = browser.js("getSelection().toString()").await;
    assert!(selected.as_str().unwrap().contains("shop.items_321"), "{selected}");

    // What is sent, while one of them is written: it was 57 kB a second when every one of them came each second.
    let sent = tokio::task::block_in_place(|| {
        bytes_sent(&agent, "changes=true", Duration::from_secs(4)) / 4
    });
    let all = tokio::task::block_in_place(|| bytes_sent(&agent, "", Duration::from_secs(2)) / 2);
    println!("{sent} bytes a second, and {all} for whoever asks for everything");
    assert!(sent < 4_000 && sent * 10 < all, "{sent} of {all}");

    // Chosen and ordered by a person.
    browser.type_into("#ns-filter", "ITEMS_49").await;
    eventually("the filter", PATIENCE, async || browser.js(rows).await == 10).await;
    browser.js("(() => { const sort = document.getElementById('ns-sort'); sort.value = 'name'; sort.dispatchEvent(new Event('input', { bubbles: true })); })()").await;
    browser.shows("ns-rows", "shop.items_499").await;
    // Another name is an addition to what is known: the filter is typed over.
    browser.js("document.getElementById('ns-filter').value = ''").await;
    browser.type_into("#ns-filter", "__proto__").await;
    browser.shows("ns-rows", "__proto__.constructor").await;
    browser.shows("ns-rows", "2").await;
    let told = "Object.keys(patched(parsed('{\"a\": {}}'), parsed('{\"a\": {\"__proto__\": {\"n\": 1}}}')).a)";
    assert_eq!(browser.js(told).await, json!(["__proto__"]));
    browser.type_into("#ns-filter", "x").await;
    browser.shows("ns-empty", "No name contains that").await;
    // A name without end pushes no figure out of sight.
    let long = format!("long_{}", "x".repeat(110));
    db.collection(&long).insert_one(doc! { "_id": 1 }).await.unwrap();
    browser.js("document.getElementById('ns-filter').value = ''").await;
    browser.type_into("#ns-filter", "long_").await;
    browser.shows("ns-rows", &long).await;
    let in_sight =
        "((list) => list.scrollWidth <= list.clientWidth)(document.getElementById('ns-list'))";
    assert_eq!(browser.js(in_sight).await, true);
    browser.close().await;

    let height = "document.documentElement.scrollHeight";
    let desk = Browser::open(&programs, &url(agent.admin_port), &LIGHT).await;
    desk.shows("ns-rows", "just now").await;
    assert!(desk.js(height).await.as_u64().unwrap() < 3_000);
    desk.is_accessible("five hundred collections").await;
    desk.close().await;

    // On a phone each is a card, and the page is no scroll without end.
    let phone = Browser::open(&programs, &url(agent.admin_port), &["--window-size=500,1000"]).await;
    phone.resize(390, 844).await;
    phone.shows("ns-rows", "just now").await;
    let display = "getComputedStyle(document.querySelector('#ns-rows tr')).display";
    assert_eq!(phone.js(display).await, "grid");
    let height = phone.js(height).await.as_u64().unwrap();
    assert!(height < 6_000, "{height}: it was 18,000");
    phone.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_is_told_as_not_read_and_a_line_that_falls_silent_as_an_agent_that_is_gone() {
    let Some(programs) = programs() else { return };
    let (local, atlas) = pair().await;
    let line = Proxy::to(atlas.port).await;
    let mut agent = Agent::new(&local.uri(), &line.uri(), "[queue]\nmax_documents = 50\n");
    agent.start(&[]);
    agent.streaming().await;
    let between = Proxy::to(agent.admin_port).await;
    let browser = Browser::open(&programs, &url(between.port), &LIGHT).await;
    browser.shows("health", "Replicating").await;
    assert_eq!(browser.text("local").await, "read");

    line.set(Line::Cut);
    orders(&local).insert_many((0..500).map(|id| doc! { "_id": id })).await.unwrap();
    browser.shows("local", "not read").await;
    browser.shows("sentence", "nothing more is read").await;
    browser.shows("queue-lasts", "it is at its limit").await;
    eventually("the alert as it is meant", PATIENCE, async || {
        let alerts = browser.text("alerts").await;
        alerts.contains("the queue is at queue.max_documents")
    })
    .await;
    // The end of a pause is not told as the end of the outage.
    agent.cli(&["pause", "--for", "2h", "--reason", "the line is being mended"]);
    browser.shows("sentence", "Writing is paused as well: “the line is being mended”").await;
    browser.shows("sentence", "The pause ends by itself at").await;
    browser.shows("health", "Atlas is away").await;
    agent.cli(&["resume"]);
    eventually("no pause", PATIENCE, async || !browser.text("sentence").await.contains("paused"))
        .await;

    // No reset, no end: nothing comes any more.
    between.set(Line::Silent);
    browser.shows("health", "The agent does not answer").await;
    browser.shows("sentence", "What is shown below is from").await;
    browser.shows("link", "No connection").await;
    let title = browser.js("document.title").await;
    assert!(title.as_str().unwrap().starts_with("The agent does not answer · "), "{title}");
    let seen = "['#verdict', 'main'].map((css) => getComputedStyle(document.querySelector(css))).every((of) => of.opacity === '1' && of.filter === 'none')";
    assert_eq!(browser.js(seen).await, true, "the headline does not fade");
    assert!(!browser.is_visible("#pause").await, "nothing is offered that cannot be done");

    between.set(Line::Up);
    browser.shows("health", "Atlas is away").await;
    line.set(Line::Up);
    browser.shows("health", "Replicating").await;
    eventually("reading", PATIENCE, async || browser.text("local").await == "read").await;
    browser.close().await;
}
