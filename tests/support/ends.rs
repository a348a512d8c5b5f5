//! Who copies what: the servers of a test, the lines to them, and the agents that run between them. So that an equality
//! is believed only while they are at rest.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, LazyLock, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use mongodb::Client;
use serde_json::Value;

use super::{
    agent::{is_running, is_stopped},
    guarded::Guarded,
    mongod::Mongod,
    replica_set::ReplicaSet,
};

/// One side of a copy, as tests hold it.
pub trait End {
    /// May read everything.
    fn reader(&self) -> &Client;
    fn ports(&self) -> Vec<u16>;
}

impl<T: End> End for &T {
    fn reader(&self) -> &Client {
        (**self).reader()
    }

    fn ports(&self) -> Vec<u16> {
        (**self).ports()
    }
}

/// Of a server that somebody else holds: nobody knows who copies it.
impl End for Client {
    fn reader(&self) -> &Client {
        self
    }

    fn ports(&self) -> Vec<u16> {
        Vec::new()
    }
}

impl End for Mongod {
    fn reader(&self) -> &Client {
        &self.client
    }

    fn ports(&self) -> Vec<u16> {
        vec![self.port]
    }
}

impl End for Guarded {
    fn reader(&self) -> &Client {
        &self.root
    }

    fn ports(&self) -> Vec<u16> {
        vec![self.server.port]
    }
}

impl End for ReplicaSet {
    fn reader(&self) -> &Client {
        &self.client
    }

    fn ports(&self) -> Vec<u16> {
        self.members.iter().map(|member| member.port).collect()
    }
}

#[derive(Default)]
struct Known {
    /// The port of a line → where it leads.
    lines: BTreeMap<u16, u16>,
    running: Vec<Arc<Run>>,
}

static KNOWN: LazyLock<Mutex<Known>> = LazyLock::new(Mutex::default);

fn known<T>(with: impl FnOnce(&mut Known) -> T) -> T {
    with(&mut KNOWN.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
}

/// A line from `port` to `target`.
pub fn leads(port: u16, target: u16) {
    known(|known| known.lines.insert(port, target));
}

/// The servers that a connection string leads to.
pub fn servers(uri: &str) -> Vec<u16> {
    let hosts = uri.split_once("://").map_or(uri, |(_, rest)| rest);
    let hosts = hosts.split(['/', '?']).next().unwrap_or_default();
    let hosts = hosts.rsplit_once('@').map_or(hosts, |(_, hosts)| hosts);
    let ports = hosts.split(',').filter_map(|host| host.rsplit_once(':')?.1.parse().ok());
    let ports: Vec<u16> = ports.collect();
    known(|known| {
        let at = |port: u16| known.lines.get(&port).copied().unwrap_or(port);
        ports.into_iter().map(at).collect()
    })
}

/// An agent's process, from its start to its end.
pub struct Run {
    pid: u32,
    admin_port: u16,
    local: Vec<u16>,
    atlas: Vec<u16>,
    letters_are_meant: Arc<AtomicBool>,
}

impl Run {
    pub fn begins(
        (pid, admin_port): (u32, u16),
        local: &str,
        atlas: &str,
        letters: &Arc<AtomicBool>,
    ) -> Arc<Self> {
        let (local, atlas) = (servers(local), servers(atlas));
        let run =
            Arc::new(Self { pid, admin_port, local, atlas, letters_are_meant: letters.clone() });
        known(|known| known.running.push(run.clone()));
        run
    }

    pub fn ends(self: &Arc<Self>) {
        known(|known| known.running.retain(|run| !Arc::ptr_eq(run, self)));
    }

    fn has(&self, port: u16) -> bool {
        is_running(self.pid) && (self.local.contains(&port) || self.atlas.contains(&port))
    }

    /// Why what it has copied need not be final.
    fn unrest(&self) -> Option<String> {
        // One that is stopped changes nothing, and cannot be asked.
        if !is_running(self.pid) || is_stopped(self.pid) {
            return None;
        }
        let Some(health) = ask(self.admin_port, "/api/sync/health") else {
            return Some("the agent does not answer".to_owned());
        };
        let Ok(health) = serde_json::from_str::<Value>(&health) else {
            return Some(format!("the agent's health is no JSON: {health}"));
        };
        if health["queueSize"] != 0 {
            return Some(format!("{} changes wait", health["queueSize"]));
        }
        let are_meant = self.letters_are_meant.load(Ordering::SeqCst);
        (health["deadLetters"] != 0 && !are_meant)
            .then(|| format!("{} dead letters", health["deadLetters"]))
    }
}

/// True while an agent runs that has a server at this port as one of its ends.
pub fn is_copied(port: u16) -> bool {
    known(|known| known.running.iter().any(|run| run.has(port)))
}

/// What a running agent answers; nothing while it is stopped, or busy with a fault.
pub fn ask(admin_port: u16, path: &str) -> Option<String> {
    let http = ureq::Agent::config_builder().timeout_global(Some(Duration::from_secs(2)));
    let http: ureq::Agent = http.build().into();
    let url = format!("http://127.0.0.1:{admin_port}{path}");
    http.get(url).call().ok()?.body_mut().read_to_string().ok()
}

/// Why an equality of both ends is not to be believed yet: of each agent that runs from one to the other.
pub async fn unrest(local: &impl End, atlas: &impl End) -> Vec<String> {
    let (local, atlas) = (local.ports(), atlas.ports());
    let among = |some: &[u16], all: &[u16]| some.iter().any(|port| all.contains(port));
    let runs: Vec<_> = known(|known| {
        let between = |run: &&Arc<Run>| among(&run.local, &local) && among(&run.atlas, &atlas);
        known.running.iter().filter(between).cloned().collect()
    });
    let asked = tokio::task::spawn_blocking(move || {
        runs.iter().filter_map(|run| run.unrest()).collect::<Vec<_>>()
    });
    asked.await.expect("it does not panic")
}
