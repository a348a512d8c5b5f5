//! The dashboard in a real browser, beside a real agent. Pictures are kept under `target/dashboard/`.

use mongodb::bson::{Document, doc};

use crate::support::{
    PATIENCE,
    agent::Agent,
    api::Api,
    browser::{Browser, programs},
    eventually,
    mongod::Mongod,
    orders, pair,
    postgres::Postgres,
    proxy::{Line, Proxy},
    rows,
    unasked::Unasked::Repair,
};

fn url(agent: &Agent) -> String {
    format!("http://127.0.0.1:{}/", agent.admin_port)
}

/// Pauses, with a reason, as it is asked for.
async fn pause(browser: &Browser) {
    browser.click("#pause").await;
    browser.type_into("#pause-reason", "a test\u{e007}").await;
    browser.shows("health", "Paused").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_dashboard_shows_what_happens_and_starts_a_sync() {
    let Some(programs) = programs() else { return };
    let (local, atlas) = pair().await;
    orders(&local).insert_many((0..200).map(|id| doc! { "_id": id })).await.unwrap();
    let mut agent = Agent::new(&local.uri(), &atlas.uri(), "[sync]\ncount_check_every = \"1s\"\n");
    agent.start(&[]);
    agent.streaming().await;
    let browser = Browser::open(&programs, &url(&agent), &[]).await;

    browser.shows("link", "Live").await;
    browser.shows("health", "Replicating").await;
    browser.shows("since", "Healthy since").await;
    browser.shows("dead-empty", "None").await;
    eventually("the charts", PATIENCE, async || browser.is_visible("#plot-lag canvas").await).await;

    // Without a reload.
    orders(&local).insert_many((200..500).map(|id| doc! { "_id": id })).await.unwrap();
    browser.shows("written", "500").await;
    browser.shows("ns-rows", "shop.orders").await;
    eventually("both counts", PATIENCE, async || {
        browser.text("ns-rows").await.matches("500").count() == 2
    })
    .await;
    let elsewhere = "performance.getEntriesByType('resource').map(of => of.name).filter(name => !name.startsWith(location.origin))";
    assert_eq!(
        browser.js(elsewhere).await,
        serde_json::json!([]),
        "nothing is loaded from elsewhere"
    );
    browser.picture("healthy").await;

    // By keyboard alone: Tab to the button, Enter, the token, Enter.
    browser.js("document.getElementById('sync-ns').focus()").await;
    browser.type_into("#sync-ns", "shop.*\t\t\t").await;
    assert_eq!(browser.js("document.activeElement.id").await, "sync-start");
    browser.type_into("#sync-start", "\u{e007}").await;
    eventually("the question for the token", PATIENCE, async || {
        browser.is_visible("#token-dialog").await
    })
    .await;
    browser.type_into("#token", "wrong\u{e007}").await;
    eventually("the refusal", PATIENCE, async || browser.is_visible("#token-error").await).await;
    browser.type_into("#token", &format!("{}\u{e007}", Api::of(&agent).token)).await;
    browser.shows("sync-text", "ended").await;
    browser.shows("sync-text", "500 documents, no difference").await;

    // Asked for once: the next action goes through at once.
    pause(&browser).await;
    browser.shows("breaker", "paused").await;
    assert!(!browser.is_visible("#token-dialog").await);
    browser.click("#pause").await;
    browser.shows("health", "Replicating").await;
    browser.close().await;

    // As `outrigger dashboard` prints it: nobody is asked for the token, and it stays nowhere.
    let printed = agent.cli_json(&["dashboard"]).unwrap()["address"].as_str().unwrap().to_owned();
    let browser = Browser::open(&programs, &printed, &[]).await;
    browser.shows("link", "Live").await;
    assert_eq!(browser.js("location.href").await, url(&agent));
    pause(&browser).await;
    browser.click("#pause").await;
    browser.shows("health", "Replicating").await;
    browser.close().await;

    let dark = ["--blink-settings=preferredColorScheme=0", "--window-size=500,1400"];
    let phone = Browser::open(&programs, &url(&agent), &dark).await;
    phone.page.set_window_size(390, 844).await.unwrap();
    phone.shows("link", "Live").await;
    let wide = "document.documentElement.scrollWidth > document.documentElement.clientWidth";
    assert_eq!(phone.js(wide).await, false, "nothing to scroll sideways on a phone");
    let ground = phone.js("getComputedStyle(document.body).backgroundColor").await;
    assert_eq!(ground, "rgb(15, 23, 27)", "dark where the person wants it dark");
    phone.picture("phone-dark").await;
    phone.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_dashboard_shows_trouble_and_retries_a_dead_letter() {
    let Some(programs) = programs() else { return };
    let (local, atlas) = pair().await;
    let line = Proxy::to(atlas.port).await;
    let config = "[worker]\nmax_retries = 0\n[alerts]\nqueue_size = 3\n";
    orders(&local).insert_one(doc! { "_id": 0, "email": "zero" }).await.unwrap();
    let mut agent = Agent::new(&local.uri(), &line.uri(), config);
    agent.start(&[]);
    agent.streaming().await;
    // Atlas alone has this index, so that it rejects the second one. Its name is no markup to the page.
    let index = doc! { "key": { "email": 1 }, "name": "email", "unique": true, "sparse": true };
    let command = doc! { "createIndexes": "orders", "indexes": [index] };
    atlas.client.database("shop").run_command(command).await.unwrap();
    // Enough that go through, so that one that does not is no wave of failures.
    orders(&local).insert_many((100..300).map(|id| doc! { "_id": id })).await.unwrap();
    let id = "<img src=x onerror=\"document.title='broken in'\">";
    orders(&local).insert_one(doc! { "_id": id, "email": "zero" }).await.unwrap();
    let browser = Browser::open(&programs, &url(&agent), &[]).await;

    // How many there are is for everybody on this machine, and which is not.
    browser.shows("dead-locked", "One document").await;
    browser.click("#dead-show").await;
    eventually("the question for the token", PATIENCE, async || {
        browser.is_visible("#token-dialog").await
    })
    .await;
    browser.type_into("#token", &format!("{}\u{e007}", Api::of(&agent).token)).await;
    browser.shows("dead-groups", "unique index on (email)").await;
    browser.shows("dead-groups", "<img src=x").await;
    browser.shows("since", "Degraded").await;
    browser.shows("health", "Atlas would not take some documents").await;
    let drop = doc! { "dropIndexes": "orders", "index": "email" };
    atlas.client.database("shop").run_command(drop).await.unwrap();
    browser.click("#dead-groups td button").await;
    eventually("no dead letter", PATIENCE, async || browser.is_visible("#dead-empty").await).await;
    let there = orders(&atlas).find_one(doc! { "_id": id }).await.unwrap();
    assert_eq!(there, Some::<Document>(doc! { "_id": id, "email": "zero" }));
    browser.shows("since", "Healthy").await;

    line.set(Line::Cut);
    orders(&local).insert_many((1..9).map(|id| doc! { "_id": id })).await.unwrap();
    browser.shows("since", "Unhealthy").await;
    browser.shows("health", "Atlas is away").await;
    browser.shows("alerts", "8 documents wait in the queue").await;
    browser.shows("breaker", "away").await;
    browser.picture("unhealthy").await;
    assert!(browser.js("document.title").await.as_str().unwrap().starts_with("Atlas is away · "));

    agent.kill();
    browser.shows("link", "No connection").await;
    browser.picture("disconnected").await;
    agent.start(&[]);
    browser.shows("link", "Live").await;
    line.set(Line::Up);
    browser.shows("health", "Replicating").await;
    browser.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_dashboard_calls_a_postgres_by_its_name_and_shows_its_counts_and_what_it_lacks() {
    let Some(programs) = programs() else { return };
    let (local, mut target) = tokio::join!(Mongod::start(), Postgres::start());
    orders(&local).insert_many((0..300).map(|id| doc! { "_id": id, "a": id })).await.unwrap();
    let config = format!("[sync]\ncount_check_every = \"1s\"\n{}", rows::declared());
    let mut agent = Agent::into_postgres(&local.uri(), &target.uri(), &config);
    agent.may(&[Repair], "somebody removes rows by hand");
    agent.start(&[]);
    agent.streaming().await;
    let browser = Browser::open(&programs, &url(&agent), &[]).await;
    browser.shows("health", "Replicating").await;
    browser.shows("ns-rows", "shop.orders").await;
    let counts = async |n: &str| browser.text("ns-rows").await.matches(n).count();
    eventually("both counts", PATIENCE, async || counts("300").await == 2).await;
    let page = "document.body.innerText";
    let shown = browser.js(page).await.as_str().unwrap().to_owned();
    assert!(shown.contains("PostgreSQL") && !shown.contains("Atlas"), "{shown}");

    // Rows that somebody has removed, and what a sync makes of it.
    target.ask("DELETE FROM shop.orders WHERE a >= 260").await;
    browser.shows("health", "The two sides differ").await;
    assert!(agent.cli(&["sync", "--wait"]).status.success());
    browser.shows("health", "Replicating").await;
    browser.picture("postgres").await;

    target.kill();
    orders(&local).insert_one(doc! { "_id": "late" }).await.unwrap();
    browser.shows("health", "PostgreSQL is away").await;
    target.resume().await;
    browser.shows("health", "Replicating").await;
    eventually("both counts", PATIENCE, async || counts("301").await == 2).await;
    browser.close().await;
}
