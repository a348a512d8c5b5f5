//! Watches, from outside, that an agent says nothing better than it is: marker documents all the time, and no word of
//! "everything", "healthy" or "equal" over one that is not in Atlas, and no heartbeat over one while Atlas stands still.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use mongodb::{
    Client, Collection,
    bson::{Document, Timestamp, doc},
    options::WriteConcern,
};
use outrigger::{
    config::Config,
    observe::{
        health::{Health, SILENCE, Vitals, judge},
        status::Phase,
    },
};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use super::{PATIENCE, agent::Agent, eventually, receiver::Receiver};

/// Between two markers. Short, for the tests whose faults last no longer.
const PACE: Duration = Duration::from_millis(400);
/// Beyond the program's own limit: what it notes of itself may be that old.
const SLACK: Duration = Duration::from_secs(2);
/// A stream that says nothing is lag from then on.
const QUIET: Duration = Duration::from_secs(2);

/// From which age of a marker on what may not be said over it.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// "Healthy", twice running. What waits, and a stream that says nothing, are lag, and beyond its target nobody is healthy;
    /// only one answer may fall into the moment in which reading has begun again, and what is read is not in the queue. Where the
    /// agent did not answer, the age counts from its first answer.
    pub healthy: Duration,
    /// "Healthy" at all.
    pub healthy_once: Duration,
    /// A heartbeat, while nothing comes to Atlas.
    pub heartbeat: Duration,
    /// For so long nothing has come: longer than from one heartbeat to the next, which may tell of what came between them.
    pub still: Duration,
}

impl Bounds {
    /// As the program's own limits have it. They are the same under tests as with all waits at their defaults: none of them
    /// follows from a setting that a test shortens.
    pub fn of_the_program() -> Self {
        let alerts = Config::default().alerts;
        let health =
            |lag| judge(&Vitals { phase: Phase::Streaming, lag, ..Vitals::default() }, &alerts).0;
        let lags = (0..600).map(Duration::from_secs);
        let too_late = lags.into_iter().find(|lag| health(*lag) != Health::Healthy);
        Self {
            healthy: too_late.expect("lag ends health") + QUIET + SLACK,
            healthy_once: SILENCE + QUIET + SLACK,
            heartbeat: SILENCE + QUIET + SLACK,
            still: Duration::from_secs(5),
        }
    }
}

/// Where an agent says something: its API, the token for it, and whom it sends its heartbeats to.
pub struct Mouth {
    pub admin_port: u16,
    pub token: PathBuf,
    pub heartbeats: Receiver,
}

/// What there was to judge by.
#[derive(Clone, Copy, Debug, Default)]
pub struct Judged {
    pub answers: u32,
    /// Answers over a marker past [`Bounds::healthy`]. Where there is none, no fault lasted long enough for "healthy" to be a lie.
    pub over_an_old_marker: u32,
    pub heartbeats: usize,
}

/// Watches in the background. One that is dropped without [`end`](Self::end) ends with its test.
pub struct Honesty {
    stop: CancellationToken,
    looks_away: Arc<AtomicBool>,
    is_away: Arc<AtomicBool>,
    looks: tokio::task::JoinHandle<()>,
    told: Arc<Mutex<Told>>,
}

#[derive(Default)]
struct Told {
    judged: Judged,
    lies: Vec<String>,
}

struct Watched {
    local: Collection<Document>,
    atlas: Collection<Document>,
    oplog: Collection<Document>,
    mouth: Mouth,
    http: ureq::Agent,
    bounds: Bounds,
}

impl Honesty {
    /// Of an agent that [tells its heartbeats](Agent::beats).
    pub fn watch(local: &Client, atlas: &Client, agent: &Agent) -> Self {
        let mouth = Mouth {
            admin_port: agent.admin_port,
            token: agent.dir.path().join("outrigger.token"),
            heartbeats: agent.heartbeats.clone().expect("its heartbeats come here"),
        };
        Self::of((local, atlas), mouth, Bounds::of_the_program())
    }

    pub fn of((local, atlas): (&Client, &Client), mouth: Mouth, bounds: Bounds) -> Self {
        let markers = |client: &Client| client.database("honesty").collection("markers");
        let http = ureq::Agent::config_builder().http_status_as_error(false);
        let watched = Watched {
            local: markers(local),
            atlas: markers(atlas),
            oplog: atlas.database("local").collection("oplog.rs"),
            mouth,
            http: http.timeout_global(Some(Duration::from_secs(5))).build().into(),
            bounds,
        };
        let (stop, told) = (CancellationToken::new(), Arc::default());
        let [looks_away, is_away] = [false; 2].map(|away| Arc::new(AtomicBool::new(away)));
        let shared = Shared {
            stop: stop.clone(),
            looks_away: looks_away.clone(),
            is_away: is_away.clone(),
            told: Arc::clone(&told),
        };
        let looks = tokio::spawn(watch(watched, shared));
        Self { stop, looks_away, is_away, looks, told }
    }

    /// While the local database is exchanged: what it loses then, Atlas need not have. Afterwards it writes nothing.
    pub async fn look_away(&self, away: bool) {
        self.looks_away.store(away, Ordering::SeqCst);
        eventually("the watcher", PATIENCE, async || {
            self.is_away.load(Ordering::SeqCst) == away || self.looks.is_finished()
        })
        .await;
    }

    /// So far.
    pub fn judged(&self) -> Judged {
        self.told.lock().unwrap().judged
    }

    /// What was said too much so far.
    pub fn lies(&self) -> Vec<String> {
        self.told.lock().unwrap().lies.clone()
    }

    /// Ends it, after one answer at the least; panics with what was said too much.
    pub async fn end(self) -> Judged {
        eventually("an answer of the agent", PATIENCE, async || {
            self.judged().answers > 0 || self.looks.is_finished()
        })
        .await;
        self.stop.cancel();
        let told = Arc::clone(&self.told);
        self.looks.await.unwrap();
        let Told { judged, lies } = &*told.lock().unwrap();
        // Shown by `--nocapture`: a run in which it had nothing to bite on proves little.
        println!("honesty    {judged:?}");
        assert!(lies.is_empty(), "{lies:#?}");
        assert!(judged.answers > 0, "the agent was never asked");
        *judged
    }
}

struct Shared {
    stop: CancellationToken,
    looks_away: Arc<AtomicBool>,
    is_away: Arc<AtomicBool>,
    told: Arc<Mutex<Told>>,
}

/// What Atlas has of the markers, and when it last took anything but the agent's own notes.
struct There {
    found: Vec<i64>,
    newest: Option<Timestamp>,
}

/// What one look needs to know of those before it.
struct Before {
    /// Acknowledged by a majority, and not seen in Atlas yet: when, by both clocks.
    open: BTreeMap<i64, (Instant, u64)>,
    /// When the agent did not answer last.
    silent: Instant,
    /// The last answer was too healthy.
    was_healthy: bool,
    newest: Option<Timestamp>,
    newest_seen: Instant,
    beats: usize,
    beats_counted: Instant,
}

async fn watch(watched: Watched, shared: Shared) {
    let watched = Arc::new(watched);
    let now = Instant::now();
    let mut before = Before {
        open: BTreeMap::new(),
        silent: now,
        was_healthy: false,
        newest: None,
        newest_seen: now,
        beats: watched.mouth.heartbeats.requests().len(),
        beats_counted: now,
    };
    for id in 0_i64.. {
        if shared.stop.is_cancelled() {
            break;
        }
        let away = shared.looks_away.load(Ordering::SeqCst);
        shared.is_away.store(away, Ordering::SeqCst);
        if away {
            before.open.clear();
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        }
        let at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64;
        let insert = watched.local.insert_one(doc! { "_id": id });
        let insert = insert.write_concern(WriteConcern::majority());
        // A server that is away answers when it is back, or not; what has no answer is no marker.
        if let Ok(Ok(_)) = tokio::time::timeout(Duration::from_secs(5), insert).await {
            before.open.insert(id, (Instant::now(), at));
        }
        // What is missing after the question was missing when it was answered.
        let asked = Instant::now();
        let asking = watched.clone();
        let said = tokio::task::spawn_blocking(move || asking.ask()).await.unwrap();
        if said.health.is_none() {
            before.silent = Instant::now();
        }
        if let Ok(Ok(there)) =
            tokio::time::timeout(Duration::from_secs(5), watched.look(&before.open)).await
        {
            before.open.retain(|id, _| !there.found.contains(id));
            let mut told = shared.told.lock().unwrap();
            watched.judge(&mut before, asked, (said, there), &mut told);
        }
        tokio::time::sleep(PACE).await;
    }
}

struct Said {
    health: Option<Value>,
    /// A flush says that Atlas has everything.
    flushed: bool,
    /// Heartbeats so far, counted when all else was said.
    beats: usize,
}

impl Watched {
    fn ask(&self) -> Said {
        let Mouth { admin_port, token, heartbeats } = &self.mouth;
        let base = format!("http://127.0.0.1:{admin_port}/api/sync");
        let token = std::fs::read_to_string(token).unwrap_or_default();
        let flush = self.http.post(format!("{base}/flush"));
        let flush = flush.header("Authorization", format!("Bearer {token}"));
        let flushed = flush.send_json(serde_json::json!({ "timeoutMs": 300 }));
        let health = self.http.get(format!("{base}/health")).call().ok();
        let health = health.and_then(|mut answer| answer.body_mut().read_to_string().ok());
        Said {
            health: health.and_then(|text| serde_json::from_str(&text).ok()),
            flushed: flushed.is_ok_and(|answer| answer.status() == 200),
            beats: heartbeats.requests().len(),
        }
    }

    async fn look(&self, open: &BTreeMap<i64, (Instant, u64)>) -> mongodb::error::Result<There> {
        let ids: Vec<i64> = open.keys().copied().collect();
        let mut there = self.atlas.find(doc! { "_id": { "$in": ids } }).await?;
        let mut found = Vec::new();
        while there.advance().await? {
            found.push(there.deserialize_current()?.get_i64("_id").unwrap());
        }
        let comes =
            doc! { "op": { "$ne": "n" }, "ns": { "$not": { "$regex": "^(outrigger|config)\\." } } };
        let newest = self.oplog.find_one(comes).sort(doc! { "$natural": -1 }).await?;
        Ok(There { found, newest: newest.and_then(|entry| entry.get_timestamp("ts").ok()) })
    }

    fn judge(
        &self,
        before: &mut Before,
        asked: Instant,
        (said, there): (Said, There),
        told: &mut Told,
    ) {
        let Bounds { healthy, healthy_once, heartbeat, still } = self.bounds;
        let Told { judged, lies } = told;
        judged.answers += u32::from(said.health.is_some() || said.flushed);
        if there.newest != before.newest {
            (before.newest, before.newest_seen) = (there.newest, Instant::now());
        }
        let new_beats = said.beats.saturating_sub(before.beats);
        judged.heartbeats += new_beats;
        // None of them came before the last ones were counted.
        let beat_at = std::mem::replace(&mut before.beats_counted, Instant::now());
        before.beats = said.beats;
        let was_healthy = std::mem::take(&mut before.was_healthy);
        let Some((id, (since, at))) = before.open.first_key_value() else { return };
        let mut lie = |what: String| lies.push(what);
        let age = asked.saturating_duration_since(*since);
        if said.flushed && *since < asked {
            lie(format!("flush said everything without marker {id}, {age:?} old"));
        }
        let is_old = asked.saturating_duration_since((*since).max(before.silent)) > healthy;
        if let Some(health) = &said.health {
            judged.over_an_old_marker += u32::from(is_old);
            let is_healthy = health["status"] == "healthy";
            before.was_healthy = is_healthy && is_old;
            if is_healthy && (age > healthy_once || (is_old && was_healthy)) {
                lie(format!("healthy without marker {id}, {age:?} old: {health}"));
            }
            let equal = health["consistentAsOf"]
                .as_str()
                .and_then(|equal| mongodb::bson::DateTime::parse_rfc3339_str(equal).ok());
            // The moment is told in whole seconds of the server's clock, which is this machine's.
            if equal.is_some_and(|equal| equal.timestamp_millis() as u64 > at + 2_000) {
                lie(format!("equal behind marker {id}, {age:?} old: {health}"));
            }
        }
        // A comparison proves life by what it reads, though there be nothing to write.
        let compares = said.health.as_ref().is_some_and(|health| !health["sync"].is_null());
        let age = beat_at.saturating_duration_since(*since);
        let stands = beat_at.saturating_duration_since(before.newest_seen);
        if new_beats > 0 && !compares && age > heartbeat && stands > still {
            lie(format!(
                "a heartbeat without marker {id}, {age:?} old, while nothing has come to Atlas for {stands:?}"
            ));
        }
    }
}
