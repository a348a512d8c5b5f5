//! What somebody on call needs of the dashboard, on a phone, in an outage. With `OUTRIGGER_PICTURES` set the pictures of
//! `docs/` are taken anew.

use std::time::{Duration, Instant};

use mongodb::bson::{DateTime, doc};
use serde_json::{Value, json};

use crate::support::{
    PATIENCE,
    agent::Agent,
    api::Api,
    browser::{Browser, programs},
    eventually, orders, pair,
    proxy::{Line, Proxy},
};

fn url(agent: &Agent) -> String {
    format!("http://127.0.0.1:{}/", agent.admin_port)
}

/// As `outrigger dashboard` prints it.
fn with_token(agent: &Agent) -> String {
    agent.cli_json(&["dashboard"]).unwrap()["address"].as_str().unwrap().to_owned()
}

const LIGHT: [&str; 2] = ["--window-size=1180,1000", "--hide-scrollbars"];

/// Whether each word of the page stands on one line, and all of it within the screen.
async fn fits(browser: &Browser, what: &str) {
    for (width, height) in [(390, 844), (320, 640), (1400, 900)] {
        browser.resize(width, height).await;
        // A window that was made smaller lays its page out a moment later.
        let began = Instant::now();
        loop {
            let found = browser.broken_words().await;
            if found == (json!([]), json!([])) {
                break;
            }
            assert!(began.elapsed() < PATIENCE / 6, "{what}, {width} wide: {found:?}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
    browser.resize(1180, 1000).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn in_an_outage_the_first_lines_name_the_cause_what_it_means_what_to_do_and_how_long_it_lasts()
 {
    let Some(programs) = programs() else { return };
    let (local, atlas) = pair().await;
    let line = Proxy::to(atlas.port).await;
    orders(&local).insert_many((0..200).map(|id| doc! { "_id": id })).await.unwrap();
    let config = "[sync]\ncount_check_every = \"1s\"\n[queue]\nmax_documents = 100000\n";
    let mut agent = Agent::new(&local.uri(), &line.uri(), config);
    agent.replace_setting("open_for = \"200ms\"\nopen_for_max = \"1s\"", "open_for = \"20s\"");
    agent.start(&[]);
    agent.streaming().await;
    let browser = Browser::open(&programs, &url(&agent), &LIGHT).await;

    // Which system this is.
    browser.shows("health", "Replicating").await;
    let host = browser.text("host").await;
    assert!(!host.is_empty() && host != "Outrigger", "{host}");
    let ends = browser.text("ends").await;
    for part in [format!("at 127.0.0.1:{}", local.port), format!("127.0.0.1:{}", line.port)] {
        assert!(ends.contains(&part), "{ends}");
    }
    assert!(ends.ends_with("all databases"), "{ends}");
    browser.shows("recovery", "everything until").await;
    browser.shows("ns-rows", "just now").await;
    fits(&browser, "healthy").await;
    browser.is_accessible("healthy").await;

    line.set(Line::Cut);
    let cut_at = DateTime::now();
    let mut next = 1_000;
    eventually("how long the queue lasts", PATIENCE, async || {
        orders(&local).insert_many((next..next + 40).map(|id| doc! { "_id": id })).await.unwrap();
        next += 40;
        tokio::time::sleep(Duration::from_millis(500)).await;
        browser.text("queue-lasts").await.ends_with("at this rate")
    })
    .await;
    browser.shows("health", "Atlas is away").await;
    browser.shows("since", "since").await;
    browser.shows("cause", "Atlas is not available").await;
    browser.shows("sentence", "wait in the queue on disk, and nothing is lost").await;
    browser.shows("act", "Mend the line").await;
    browser.shows("next-try", "in ").await;
    browser.shows("disk-lasts", "at this rate").await;
    browser.shows("marks", "Atlas away").await;
    let title = browser.js("document.title").await;
    assert_eq!(title, format!("Atlas is away · {host} · Outrigger"));
    // The cause stands before what follows from it, and is not said twice.
    let cause = browser.text("cause").await;
    assert!(!browser.text("alerts").await.contains(&cause), "{cause}");
    fits(&browser, "an outage").await;
    browser.is_accessible("an outage").await;
    browser.click("#runbook").await;
    browser.shows("runbook-page", "Look at Atlas's status page").await;
    fits(&browser, "the runbook").await;
    browser.is_accessible("the runbook").await;
    browser.click("#runbook-close").await;
    browser.picture_for_docs("dashboard-outage").await;
    browser.resize(390, 844).await;
    browser.picture_for_docs("dashboard-phone").await;

    // All that the page says is the API's, for whoever asks it by other means.
    let health = agent.health().unwrap();
    assert_eq!(health["verdict"]["code"], "atlas_away");
    assert!(health["outlook"]["queueFullInS"].is_u64(), "{health}");
    let until = health["outlook"]["inAtlasUntil"].as_str().unwrap();
    let until = DateTime::parse_rfc3339_str(until).unwrap().timestamp_millis();
    let cut_at = cut_at.timestamp_millis();
    assert!((cut_at - 30_000..=cut_at + 1_000).contains(&until), "{until}, cut at {cut_at}");

    // An agent that is gone: what is said of it can be read, and what is old is seen to be.
    browser.resize(1180, 1000).await;
    agent.kill();
    browser.shows("health", "The agent does not answer").await;
    browser.shows("sentence", "What is shown below is from").await;
    browser.shows("act", "systemctl status outrigger").await;
    let seen = "['#verdict', 'main'].map((css) => getComputedStyle(document.querySelector(css))).every((of) => of.opacity === '1' && of.filter === 'none')";
    assert_eq!(browser.js(seen).await, true, "the headline does not fade");
    let faded = "getComputedStyle(document.getElementById('figures')).filter";
    assert_eq!(browser.js(faded).await, "saturate(0)");
    let title = browser.js("document.title").await;
    assert_eq!(title, format!("The agent does not answer · {host} · Outrigger"));
    fits(&browser, "an agent that is gone").await;
    browser.is_accessible("an agent that is gone").await;

    // The outage goes on where it began, though the agent is another one.
    agent.start(&[]);
    browser.shows("health", "Atlas is away").await;
    line.set(Line::Up);
    browser.shows("health", "Replicating").await;
    browser.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_charts_outlive_a_restart_are_zoomed_and_pointed_at_together_and_tell_what_happened() {
    let Some(programs) = programs() else { return };
    let (local, atlas) = pair().await;
    let mut agent = Agent::started(&local.uri(), &atlas.uri());
    agent.streaming().await;
    let (browser, api) =
        (Browser::open(&programs, &with_token(&agent), &LIGHT).await, Api::of(&agent));
    orders(&local).insert_many((0..300).map(|id| doc! { "_id": id })).await.unwrap();
    let index = doc! { "createIndexes": "orders", "indexes": [{ "key": { "n": 1 }, "name": "n" }] };
    local.client.database("shop").run_command(index).await.unwrap();
    assert_eq!(api.with_token("POST", "/api/sync/pause").0, 200);
    browser.shows("marks", "Paused").await;
    assert_eq!(api.with_token("POST", "/api/sync/resume").0, 200);
    browser.shows("marks", "Collections changed").await;
    browser.shows("marks", "Full sync, the first copy").await;

    // Legends have values when nothing is pointed at, too; and nothing is hidden under another series.
    let samples = async |at_least: u64| {
        eventually("samples", PATIENCE, async || {
            browser.js("Charts.count()").await.as_u64().is_some_and(|n| n >= at_least)
        })
        .await;
    };
    samples(3).await;
    browser.shows("legend-lag", "behind 0 s").await;
    browser.shows("legend-rate", "written").await;
    browser.shows("legend-rate", "/s").await;
    let legend = browser.text("legend-queue").await;
    assert!(legend.starts_with("waiting 0") && legend.ends_with("now"), "{legend}");
    let widths = browser.js("Charts.widths('rate')").await;
    assert!(widths[0].as_f64() > widths[1].as_f64().map(|width| 2.0 * width), "{widths}");

    // The crosshair of one is that of all.
    let mouse = |kind: &str, at: f64| {
        format!(
            "(() => {{ const over = document.querySelector('#plot-rate .u-over'); const box = over.getBoundingClientRect(); \
             over.dispatchEvent(new MouseEvent('{kind}', {{ clientX: box.left + box.width * {at}, clientY: box.top + 20, movementX: 1, bubbles: true }})); }})()"
        )
    };
    browser.js(&mouse("mousemove", 0.97)).await;
    for name in ["legend-lag", "legend-rate", "legend-queue"] {
        browser.shows(name, "at ").await;
    }
    // Dragging across one zooms all; a button leads back.
    let range = "Charts.shown()";
    let whole = browser.js(range).await;
    browser.js(&mouse("mousedown", 0.5)).await;
    browser.js(&mouse("mousemove", 0.9)).await;
    browser.js(&mouse("mouseup", 0.9)).await;
    eventually("the zoom", PATIENCE, async || browser.is_visible("#zoom-out").await).await;
    let zoomed = browser.js(range).await;
    for n in 0..3 {
        let seconds = |of: &Value| of[n][1].as_f64().unwrap() - of[n][0].as_f64().unwrap();
        assert!(seconds(&zoomed) < seconds(&whole) / 2.0, "{zoomed} of {whole}");
    }
    browser.click("#zoom-out").await;
    assert!(!browser.is_visible("#zoom-out").await);
    // By keyboard alone the same.
    browser.type_into("#plot-lag", "\u{e012}\u{e012}").await;
    for name in ["legend-lag", "legend-rate", "legend-queue"] {
        browser.shows(name, "at ").await;
    }
    browser.type_into("#plot-lag", "+").await;
    eventually("the zoom", PATIENCE, async || browser.is_visible("#zoom-out").await).await;
    let seconds = |of: &Value, n: usize| of[n][1].as_f64().unwrap() - of[n][0].as_f64().unwrap();
    eventually("all of them", PATIENCE, async || {
        let near = browser.js(range).await;
        (0..3).all(|n| seconds(&near, n) < seconds(&whole, n) * 0.7)
    })
    .await;
    browser.shows("legend-rate", "at ").await;
    browser.type_into("#plot-queue", "-").await;
    eventually("further off", PATIENCE, async || !browser.is_visible("#zoom-out").await).await;
    browser.type_into("#plot-queue", "+\u{e00c}").await;
    assert!(!browser.is_visible("#zoom-out").await);
    browser.click("#range-day").await;
    browser.shows("charts-title", "The last 24 hours").await;
    browser.click("#range-hour").await;
    // One format, of the time of this device.
    let clock =
        "/^(\\d\\d:){2}\\d\\d /.test(document.querySelector('#marks li').lastChild.textContent)";
    assert_eq!(browser.js(clock).await, true, "{}", browser.text("marks").await);

    let before = browser.js("Charts.oldest()").await;
    agent.stop();
    agent.start(&[]);
    browser.shows("marks", "Agent not running").await;
    browser.close().await;
    let browser = Browser::open(&programs, &with_token(&agent), &LIGHT).await;
    browser.shows("marks", "Paused").await;
    eventually("the charts", PATIENCE, async || browser.js("Charts.oldest()").await == before)
        .await;
    browser.shows("link", "Live").await;
    browser.picture_for_docs("dashboard").await;

    // A history that is none is a line in the log, and no error.
    agent.stop();
    let kept = agent.dir.path().join("queue/charts.json");
    for broken in ["{\"version\":99}", "\u{0}nonsense"] {
        std::fs::write(&kept, broken).unwrap();
        agent.start(&[]);
        agent.streaming().await;
        agent.stop();
    }
    assert_eq!(agent.log().matches("cannot be used and begins anew").count(), 2);
    browser.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_letters_stand_together_by_reason_and_go_again_all_at_once() {
    let Some(programs) = programs() else { return };
    let (local, atlas) = pair().await;
    orders(&local).insert_many((0..600).map(|id| doc! { "_id": id })).await.unwrap();
    let mut agent = Agent::new(&local.uri(), &atlas.uri(), "[worker]\nmax_retries = 0\n");
    agent.means_dead_letters(true);
    agent.start(&[]);
    agent.streaming().await;
    for field in ["email", "phone"] {
        let index = doc! { "key": { field: 1 }, "name": field, "unique": true, "sparse": true };
        let command = doc! { "createIndexes": "orders", "indexes": [index] };
        atlas.client.database("shop").run_command(command).await.unwrap();
    }
    // Each of them but the first is rejected: seven for the one index, two for the other.
    let of = |from, n, field: &'static str| {
        (from..from + n).map(move |id| doc! { "_id": id, field: "x" })
    };
    orders(&local).insert_many(of(1_000, 8, "email").chain(of(2_000, 3, "phone"))).await.unwrap();
    eventually("the dead letters", PATIENCE, async || {
        agent.health().is_some_and(|health| health["deadLetters"] == 9)
    })
    .await;
    let browser = Browser::open(&programs, &with_token(&agent), &LIGHT).await;

    browser.shows("dead-groups", "7 documents").await;
    browser.shows("dead-groups", "2 documents").await;
    let groups = "document.querySelectorAll('#dead-groups > section').length";
    assert_eq!(browser.js(groups).await, 2);
    let rows = "document.querySelectorAll('#dead-groups tbody tr').length";
    assert_eq!(browser.js(rows).await, 7, "five of the seven, and both of the two");
    browser.shows("dead-groups", "Next: mend the cause in Atlas, then retry").await;
    // By the id that the commands take.
    let listed = agent.cli_json(&["dead", "list"]).unwrap().to_string();
    let id = browser.js("document.querySelector('#dead-groups tbody tr').children[1].title").await;
    assert!(listed.contains(id.as_str().unwrap()), "{id} in {listed}");
    // What is said to come next can be typed, though ids of one moment begin alike.
    for n in 0..2 {
        let code = format!("document.querySelectorAll('#dead-groups .note code')[{n}].textContent");
        let typed = browser.js(&code).await.as_str().unwrap().to_owned();
        let words: Vec<_> = typed.split(' ').skip(1).collect();
        let shown = agent.cli(&words);
        assert!(shown.status.success(), "{typed}: {}", String::from_utf8_lossy(&shown.stderr));
    }
    browser.click("#dead-groups > section > .actions button").await;
    eventually("all of them", PATIENCE, async || browser.js(rows).await == 9).await;
    fits(&browser, "dead letters").await;
    browser.is_accessible("dead letters").await;
    let pressed = "document.getElementById('dead-retry').textContent";
    assert_eq!(browser.js(pressed).await, "Retry all 9");
    browser.resize(390, 844).await;
    browser.picture("dead-letters-phone").await;
    browser.is_accessible("dead letters on a phone").await;

    for field in ["email", "phone"] {
        let drop = doc! { "dropIndexes": "orders", "index": field };
        atlas.client.database("shop").run_command(drop).await.unwrap();
    }
    browser.click("#dead-retry").await;
    browser.shows("toast", "9 documents queued again").await;
    eventually("none", PATIENCE, async || browser.is_visible("#dead-empty").await).await;
    browser.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pausing_asks_for_a_reason_and_whoever_lacks_the_token_is_told_where_it_is() {
    let Some(programs) = programs() else { return };
    let (local, atlas) = pair().await;
    let agent = Agent::started(&local.uri(), &atlas.uri());
    agent.streaming().await;
    let browser = Browser::open(&programs, &url(&agent), &LIGHT).await;
    browser.shows("health", "Replicating").await;

    // Left, and asked for nothing.
    browser.click("#pause").await;
    eventually("the question", PATIENCE, async || browser.is_visible("#pause-dialog").await).await;
    browser.click("#pause-cancel").await;
    browser.click("#pause").await;
    // Without a reason nothing goes on.
    browser.type_into("#pause-reason", "\u{e007}").await;
    assert!(browser.is_visible("#pause-dialog").await);
    assert_eq!(agent.health().unwrap()["paused"], false);
    browser.is_accessible("the question for a reason").await;
    browser.type_into("#pause-reason", "the line is mended\u{e007}").await;

    eventually("the token", PATIENCE, async || browser.is_visible("#token-dialog").await).await;
    browser.is_accessible("the question for the token").await;
    let path = agent.dir.path().join("outrigger.token").canonicalize().unwrap();
    let named = std::path::PathBuf::from(browser.text("token-path").await);
    assert_eq!(named.canonicalize().unwrap(), path);
    browser.type_into("#token", &format!("{}\u{e007}", Api::of(&agent).token)).await;
    browser.shows("health", "Paused").await;
    browser.shows("cause", "“the line is mended” (dashboard").await;
    assert_eq!(agent.health().unwrap()["paused"], true);
    // To go on needs no question.
    browser.click("#pause").await;
    browser.shows("health", "Replicating").await;

    // Each thing that is pressed or typed into has a name, and can be reached and seen by keyboard.
    let nameless = "[...document.querySelectorAll('button, input, select, a')].filter((of) => of.checkVisibility()).filter((of) => !(of.getAttribute('aria-label') || of.textContent.trim() || of.labels?.length)).map((of) => of.outerHTML)";
    assert_eq!(browser.js(nameless).await, json!([]));
    let twice = "[...document.querySelectorAll('[id]')].map((of) => of.id).filter((id, at, all) => all.indexOf(id) !== at)";
    assert_eq!(browser.js(twice).await, json!([]));
    let unreachable = "[...document.querySelectorAll('button, input, select, a')].filter((of) => of.checkVisibility() && of.tabIndex < 0).length";
    assert_eq!(browser.js(unreachable).await, 0);
    browser.close().await;
}
