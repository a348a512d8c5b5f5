//! Two servers, the agent between them, and the question whether both sides are equal.

use std::time::{Duration, Instant};

use bson::{RawDocumentBuf, Timestamp, doc};
use futures_util::TryStreamExt;
use mongodb::{Client, options::FindOptions};

use crate::{
    data::ORDERS,
    process::{Meter, Process},
    support::{agent::Agent, eventually, mongod::Mongod},
};

/// Longest wait for anything. Each scenario has a limit of its own besides.
pub const PATIENCE: Duration = Duration::from_secs(3_600);

/// Enough oplog for ten million inserts, and a cache as on a small server of its own.
const SERVER: [&str; 6] =
    ["--replSet", "rs", "--oplogSize", "16000", "--wiredTigerCacheSizeGB", "2"];

/// A collection for one document that is written last.
const SENTINEL: &str = "sentinel";

/// How the agent differs from one as `config.toml` has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variant {
    /// Not at all.
    Usual,
    /// What it sends is not compressed, which on a loopback gains nothing.
    Uncompressed,
    /// `worker.update_mode = "delta"`.
    Deltas,
}

impl Variant {
    /// Behind the names of figures.
    pub fn suffix(self) -> &'static str {
        match self {
            Self::Usual => "",
            Self::Uncompressed => ", uncompressed",
            Self::Deltas => ", deltas",
        }
    }
}

/// A local database and a stand-in for Atlas, of one scenario.
pub struct Bed {
    pub local: Mongod,
    pub atlas: Mongod,
}

impl Bed {
    pub async fn start() -> Self {
        let (local, atlas) = tokio::join!(Mongod::start_with(&SERVER), Mongod::start_with(&SERVER));
        tokio::join!(local.initiate(), atlas.initiate());
        Self { local, atlas }
    }

    /// Both sides as new, but for their oplogs.
    pub async fn reset(&self) {
        self.local.client.database("shop").drop().await.unwrap();
        self.reset_atlas().await;
        for name in [ORDERS, SENTINEL] {
            // Now, so that no backlog begins with the event of a creation.
            self.local.client.database("shop").create_collection(name).await.unwrap();
        }
    }

    pub async fn reset_atlas(&self) {
        for db in ["shop", "outrigger"] {
            self.atlas.client.database(db).drop().await.unwrap();
        }
    }

    /// An agent that replicates `shop` to what is behind `atlas_uri`, not started.
    ///
    /// Its configuration is the default but for what a bench on one machine needs: no TLS, no limit that protects
    /// an application, room for every backlog, and an outage that is noticed to be over within a second.
    pub fn agent(&self, atlas_uri: &str, variant: Variant) -> Agent {
        let local = format!("mongodb://127.0.0.1:{}/shop?directConnection=true", self.local.port);
        let agent = Agent::new(&local, atlas_uri, "");
        // Behind `[atlas]`, which therefore comes last.
        let special = match variant {
            Variant::Usual => "",
            Variant::Uncompressed => "compressors = []\n",
            Variant::Deltas => "[worker]\nupdate_mode = \"delta\"\n",
        };
        let config = format!(
            "[admin]\nlisten = \"127.0.0.1:{}\"\n\
             [breaker]\nopen_for = \"200ms\"\nopen_for_max = \"1s\"\n\
             [queue]\nmax_bytes = \"100GiB\"\nmax_documents = 100000000\n\
             [sync]\nparallel = 4\nmax_docs_per_second = 0\n[shutdown]\ndrain_for = \"1s\"\n\
             [atlas]\nallow_insecure = true\n{special}",
            agent.admin_port
        );
        std::fs::write(agent.dir.path().join("config.toml"), config).unwrap();
        agent
    }

    /// An agent that has copied what is there and was stopped.
    pub async fn copied(&self, atlas_uri: &str, variant: Variant) -> Agent {
        let mut agent = self.agent(atlas_uri, variant);
        agent.start(&[]);
        streaming(&agent).await;
        emptied(&agent).await;
        assert!(agent.stop().success(), "{}", agent.log());
        agent
    }

    /// Just behind the last change of the local database.
    pub async fn position(&self) -> Timestamp {
        let reply = self.local.admin(doc! { "ping": 1 }).await;
        let last = reply.get_timestamp("operationTime").unwrap();
        Timestamp { time: last.time, increment: last.increment + 1 }
    }

    /// Watches both servers and this process itself.
    pub fn meter(&self) -> Meter {
        Meter::start(&[
            Process { name: "local mongod", pid: self.local.id() },
            Process { name: "target mongod", pid: self.atlas.id() },
            Process { name: "bench", pid: std::process::id() },
        ])
    }

    /// As [`meter`](Self::meter), and starts the agent.
    pub fn start_agent(&self, agent: &mut Agent) -> Meter {
        let meter = self.meter();
        agent.start(&[]);
        meter.born(Process { name: "agent", pid: agent.id() });
        meter
    }

    /// The local database's last change, by which the end of a backlog is seen in Atlas.
    pub async fn write_sentinel(&self, n: u64) {
        let sentinels = self.local.client.database("shop").collection(SENTINEL);
        sentinels.insert_one(doc! { "_id": n as i64 }).await.unwrap();
    }

    /// Waits until Atlas has everything up to this sentinel.
    pub async fn has_sentinel(&self, agent: &Agent, n: u64) {
        let sentinels = self.atlas.client.database("shop").collection::<RawDocumentBuf>(SENTINEL);
        await_until("the sentinel in Atlas", Duration::from_millis(20), async || {
            assert!(agent.is_running(), "the agent has ended: {}", agent.log());
            sentinels.find_one(doc! { "_id": n as i64 }).await.unwrap().is_some()
        })
        .await;
        emptied(agent).await;
    }

    /// Byte for byte, by nothing of Outrigger's. Returns documents and bytes of `shop` without the sentinels.
    ///
    /// # Panics
    /// At the first difference.
    pub async fn assert_equal(&self) -> (u64, u64) {
        let names = async |client: &Client| {
            let mut names = client.database("shop").list_collection_names().await.unwrap();
            names.sort();
            names
        };
        let collections = names(&self.local.client).await;
        assert_eq!(collections, names(&self.atlas.client).await, "the same collections");
        let (mut documents, mut bytes) = (0, 0);
        for name in &collections {
            let read = async |client: &Client| {
                let options = FindOptions::builder().sort(doc! { "_id": 1 }).build();
                let collection = client.database("shop").collection::<RawDocumentBuf>(name);
                collection.find(doc! {}).with_options(options).await.unwrap()
            };
            let (mut here, mut there) =
                tokio::join!(read(&self.local.client), read(&self.atlas.client));
            loop {
                let (a, b) = tokio::join!(here.try_next(), there.try_next());
                let (a, b) = (a.unwrap(), b.unwrap());
                assert!(
                    a.as_ref().map(|a| a.as_bytes()) == b.as_ref().map(|b| b.as_bytes()),
                    "{name}: {a:?} is not {b:?}"
                );
                let Some(document) = a else { break };
                if name != SENTINEL {
                    documents += 1;
                    bytes += document.as_bytes().len() as u64;
                }
            }
        }
        (documents, bytes)
    }
}

/// Asks every so often, for as long as [`PATIENCE`].
pub async fn await_until(what: &str, every: Duration, mut done: impl AsyncFnMut() -> bool) {
    let give_up = Instant::now() + PATIENCE;
    while !done().await {
        assert!(Instant::now() < give_up, "{what}: not within {PATIENCE:?}");
        tokio::time::sleep(every).await;
    }
}

/// Waits for the end of the first copy.
pub async fn streaming(agent: &Agent) {
    eventually("the phase `streaming`", PATIENCE, async || {
        assert!(agent.is_running(), "the agent has ended: {}", agent.log());
        agent.health().is_some_and(|health| health["phase"] == "streaming")
    })
    .await;
}

/// Changes that wait, as the agent tells; `None` while it does not answer.
pub fn queue_size(agent: &Agent) -> Option<u64> {
    agent.health()?["queueSize"].as_u64()
}

/// Waits until nothing waits for Atlas.
pub async fn emptied(agent: &Agent) {
    await_until("an empty queue", Duration::from_millis(10), async || queue_size(agent) == Some(0))
        .await;
}

/// How reading into the queue went.
pub struct Filling {
    /// From the start of the process to the first change that was seen in the queue.
    pub first_after: Duration,
    /// Changes per second from then on.
    pub per_second: f64,
}

/// Waits until so many changes were read into the queue, which makes `pending` entries. The agent was started just
/// now.
pub async fn filled(agent: &Agent, events: u64, pending: u64) -> Filling {
    let started = Instant::now();
    let mut first: Option<(Instant, u64)> = None;
    let mut last = (started, 0);
    loop {
        assert!(started.elapsed() < PATIENCE, "a filled queue: not within {PATIENCE:?}");
        assert!(agent.is_running(), "the agent has ended: {}", agent.log());
        if let Some(read) = scrape(agent, "outrigger_events_read_total") {
            last = (Instant::now(), read as u64);
        }
        if last.1 > 0 && first.is_none() {
            first = Some(last);
        }
        if last.1 >= events && queue_size(agent) == Some(pending) {
            break;
        }
        // Each look costs the agent CPU that is counted, so there are few until the end is near.
        let every = if last.1 < events / 20 * 19 && last.1 > 0 { 100 } else { 20 };
        tokio::time::sleep(Duration::from_millis(every)).await;
    }
    let first = first.expect("it was seen before the end");
    let elapsed = last.0.duration_since(first.0).as_secs_f64();
    let per_second = if last.1 > first.1 {
        (last.1 - first.1) as f64 / elapsed
    } else {
        // All of it came between two looks.
        events as f64 / started.elapsed().as_secs_f64()
    };
    Filling { first_after: first.0.duration_since(started), per_second }
}

/// The sum of a metric over its labels; `None` while the agent does not answer.
pub fn scrape(agent: &Agent, name: &str) -> Option<f64> {
    let url = format!("http://127.0.0.1:{}/metrics", agent.admin_port);
    let text = ureq::get(url).call().ok()?.body_mut().read_to_string().ok()?;
    let values = text.lines().filter_map(|line| {
        let rest = line.strip_prefix(name)?;
        (rest.starts_with(' ') || rest.starts_with('{'))
            .then(|| rest.rsplit_once(' ')?.1.parse::<f64>().ok())?
    });
    Some(values.sum())
}
