//! Watches, from outside, that an agent says nothing better than it is: marker documents all the time, and no word of
//! "everything", "healthy" or "equal" over one that is not in Atlas.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use mongodb::{
    Client, Collection,
    bson::{Document, doc},
    options::WriteConcern,
};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use super::{PATIENCE, agent::Agent, eventually};

/// A marker that is older and not in Atlas is one that health has had time to notice.
const NOTICED_AFTER: Duration = Duration::from_secs(35);
/// Between two markers. Short, for the tests whose faults last no longer.
const PACE: Duration = Duration::from_millis(400);

/// Watches in the background. One that is dropped without [`end`](Self::end) ends with its test.
pub struct Honesty {
    stop: CancellationToken,
    looks_away: Arc<AtomicBool>,
    is_away: Arc<AtomicBool>,
    looks: tokio::task::JoinHandle<u32>,
    answers: Arc<AtomicU32>,
    lies: Arc<Mutex<Vec<String>>>,
}

struct Watched {
    local: Collection<Document>,
    atlas: Collection<Document>,
    base: String,
    token: std::path::PathBuf,
    http: ureq::Agent,
}

impl Honesty {
    pub fn watch(local: &Client, atlas: &Client, agent: &Agent) -> Self {
        let markers = |client: &Client| client.database("honesty").collection("markers");
        let http = ureq::Agent::config_builder().http_status_as_error(false);
        let watched = Watched {
            local: markers(local),
            atlas: markers(atlas),
            base: format!("http://127.0.0.1:{}", agent.admin_port),
            token: agent.dir.path().join("outrigger.token"),
            http: http.timeout_global(Some(Duration::from_secs(5))).build().into(),
        };
        let (stop, lies) = (CancellationToken::new(), Arc::default());
        let [looks_away, is_away] = [false; 2].map(|away| Arc::new(AtomicBool::new(away)));
        let answers = Arc::<AtomicU32>::default();
        let away = (looks_away.clone(), is_away.clone());
        let shared = (stop.clone(), away, Arc::clone(&lies), answers.clone());
        let looks = tokio::spawn(watch(watched, shared));
        Self { stop, looks_away, is_away, looks, answers, lies }
    }

    /// While the local database is exchanged: what it loses then, Atlas need not have. Afterwards it writes nothing.
    pub async fn look_away(&self, away: bool) {
        self.looks_away.store(away, Ordering::SeqCst);
        eventually("the watcher", PATIENCE, async || {
            self.is_away.load(Ordering::SeqCst) == away || self.looks.is_finished()
        })
        .await;
    }

    /// Ends it, after one answer at the least; panics with what was said too much. Returns how often there was an
    /// answer to judge.
    pub async fn end(self) -> u32 {
        eventually("an answer of the agent", PATIENCE, async || {
            self.answers.load(Ordering::SeqCst) > 0 || self.looks.is_finished()
        })
        .await;
        self.stop.cancel();
        let looks = self.looks.await.unwrap();
        let lies = self.lies.lock().unwrap();
        assert!(lies.is_empty(), "{lies:#?}");
        looks
    }
}

type Away = (Arc<AtomicBool>, Arc<AtomicBool>);
type Shared = (CancellationToken, Away, Arc<Mutex<Vec<String>>>, Arc<AtomicU32>);

async fn watch(watched: Watched, (stop, (looks_away, is_away), lies, answers): Shared) -> u32 {
    let watched = Arc::new(watched);
    // Acknowledged by a majority, and not seen in Atlas yet: when, by both clocks.
    let mut open: BTreeMap<i64, (Instant, u64)> = BTreeMap::new();
    for id in 0_i64.. {
        if stop.is_cancelled() {
            break;
        }
        let away = looks_away.load(Ordering::SeqCst);
        is_away.store(away, Ordering::SeqCst);
        if away {
            open.clear();
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        }
        let at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64;
        let insert = watched.local.insert_one(doc! { "_id": id });
        let insert = insert.write_concern(WriteConcern::majority());
        // A server that is away answers when it is back, or not; what has no answer is no marker.
        if let Ok(Ok(_)) = tokio::time::timeout(Duration::from_secs(5), insert).await {
            open.insert(id, (Instant::now(), at));
        }
        // What is missing after the question was missing when it was answered.
        let asked = Instant::now();
        let asking = watched.clone();
        let (health, flushed) = tokio::task::spawn_blocking(move || asking.ask()).await.unwrap();
        let ids: Vec<i64> = open.keys().copied().collect();
        let find = async {
            let mut there = watched.atlas.find(doc! { "_id": { "$in": ids } }).await?;
            let mut found = Vec::new();
            while there.advance().await? {
                found.push(there.deserialize_current()?.get_i64("_id").unwrap());
            }
            Ok::<_, mongodb::error::Error>(found)
        };
        if let Ok(Ok(found)) = tokio::time::timeout(Duration::from_secs(5), find).await {
            open.retain(|id, _| !found.contains(id));
            answers.fetch_add(u32::from(health.is_some() || flushed), Ordering::SeqCst);
            let lie = |what: String| lies.lock().unwrap().push(what);
            if let Some((id, (since, at))) = open.first_key_value() {
                let age = asked.saturating_duration_since(*since);
                if flushed && *since < asked {
                    lie(format!("flush said everything without marker {id}, {age:?} old"));
                }
                let health = health.unwrap_or_default();
                if age > NOTICED_AFTER && health["status"] == "healthy" {
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
        }
        tokio::time::sleep(PACE).await;
    }
    answers.load(Ordering::SeqCst)
}

impl Watched {
    /// Health, and whether a flush says that Atlas has everything.
    fn ask(&self) -> (Option<Value>, bool) {
        let token = std::fs::read_to_string(&self.token).unwrap_or_default();
        let flush = self.http.post(format!("{}/api/sync/flush", self.base));
        let flush = flush.header("Authorization", format!("Bearer {token}"));
        let flushed = flush.send_json(serde_json::json!({ "timeoutMs": 300 }));
        let health = self.http.get(format!("{}/api/sync/health", self.base)).call().ok();
        let health = health.and_then(|mut answer| answer.body_mut().read_to_string().ok());
        let health = health.and_then(|text| serde_json::from_str(&text).ok());
        (health, flushed.is_ok_and(|answer| answer.status() == 200))
    }
}
