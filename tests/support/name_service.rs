//! A name service in place of the system's, for what `mongodb+srv://` asks for: `SRV`, `TXT` and addresses, over UDP.
//!
//! Only a program in a mount namespace of its own finds it, by the `resolv.conf` there.

use std::{
    collections::BTreeMap,
    net::Ipv4Addr,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::{net::UdpSocket, task::JoinHandle};

use super::{
    agent::may_mount,
    proof::{Need, not_proved},
};

/// All of its names end so. The servers of a cluster must, else a driver takes none of them.
const DOMAIN: &str = "outrigger.test";
/// Of every server; it is this machine.
const SERVER: &str = "server.outrigger.test";

const A: u16 = 1;
const TXT: u16 = 16;
const SRV: u16 = 33;

/// What is said of one cluster.
#[derive(Clone, Debug)]
pub struct Cluster {
    /// `mongodb`, but where `srvServiceName` says otherwise.
    pub service: &'static str,
    pub ports: Vec<u16>,
    pub options: &'static str,
}

#[derive(Default)]
struct Records {
    clusters: Mutex<BTreeMap<String, Cluster>>,
    asked: AtomicU64,
}

pub struct NameService {
    address: Ipv4Addr,
    records: Arc<Records>,
    task: JoinHandle<()>,
}

impl NameService {
    /// `None` where there can be none. The test then says that it proves nothing.
    pub async fn start() -> Option<Self> {
        if may_mount().is_none() {
            not_proved(Need::Mounts);
            return None;
        }
        // No other process has this address; the port is the one that a `resolv.conf` can name.
        let [.., high, low] = std::process::id().to_be_bytes();
        let address = Ipv4Addr::new(127, 53, high, low.max(1));
        let Ok(socket) = UdpSocket::bind((address, 53)).await else {
            not_proved(Need::Root);
            return None;
        };
        let records = Arc::new(Records::default());
        let task = tokio::spawn(serve(socket, records.clone()));
        Some(Self { address, records, task })
    }

    /// Says this of `NAME.outrigger.test` from now on.
    pub fn tells(&self, name: &str, cluster: Cluster) {
        let name = format!("{name}.{DOMAIN}");
        self.records.clusters.lock().unwrap().insert(name, cluster);
    }

    /// How often servers of a cluster were asked for.
    pub fn asked(&self) -> u64 {
        self.records.asked.load(Ordering::SeqCst)
    }

    /// Has a program that is started in `dir` ask this service and no other, see
    /// [`Agent::wrapper`](super::agent::Agent::wrapper).
    pub fn wrapper(&self, dir: &Path) -> String {
        let file = dir.join("resolv.conf");
        std::fs::write(&file, format!("nameserver {}\n", self.address)).unwrap();
        format!("mount --bind {} /etc/resolv.conf", file.display())
    }
}

impl Drop for NameService {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(socket: UdpSocket, records: Arc<Records>) {
    let mut buffer = [0; 1500];
    while let Ok((n, from)) = socket.recv_from(&mut buffer).await {
        if let Some(reply) = answer(&buffer[..n], &records) {
            let _ = socket.send_to(&reply, from).await;
        }
    }
}

/// A name as it goes over the wire.
fn labels(name: &str) -> Vec<u8> {
    let label = |label: &str| [&[u8::try_from(label.len()).unwrap()], label.as_bytes()].concat();
    name.split('.').flat_map(label).chain([0]).collect()
}

/// The name that a question asks for, and where it ends.
fn asked_for(question: &[u8]) -> Option<(String, usize)> {
    let (mut labels, mut at) = (Vec::new(), 0);
    loop {
        let len = usize::from(*question.get(at)?);
        at += 1;
        if len == 0 {
            return Some((labels.join("."), at));
        }
        let label = String::from_utf8_lossy(question.get(at..at + len)?);
        labels.push(label.to_ascii_lowercase());
        at += len;
    }
}

/// The reply to a message with one question.
fn answer(message: &[u8], records: &Records) -> Option<Vec<u8>> {
    const HEAD: usize = 12;
    let (name, len) = asked_for(message.get(HEAD..)?)?;
    let question = message.get(HEAD..HEAD + len + 4)?;
    let kind = u16::from_be_bytes(question[len..len + 2].try_into().ok()?);
    let clusters = records.clusters.lock().unwrap();
    let service = |(of, cluster): (&String, &Cluster)| {
        (name == format!("_{}._tcp.{of}", cluster.service)).then(|| cluster.clone())
    };
    let found: Option<Vec<Vec<u8>>> = if name == SERVER {
        Some(vec![Ipv4Addr::LOCALHOST.octets().to_vec()])
            .map(|found| if kind == A { found } else { vec![] })
    } else if let Some(cluster) = clusters.iter().find_map(service) {
        records.asked.fetch_add(1, Ordering::SeqCst);
        let server = |port: &u16| [&[0; 4], &port.to_be_bytes()[..], &labels(SERVER)].concat();
        Some(if kind == SRV { cluster.ports.iter().map(server).collect() } else { vec![] })
    } else {
        clusters.get(&name).map(|cluster| {
            let text = cluster.options.as_bytes();
            let text = [&[u8::try_from(text.len()).unwrap()], text].concat();
            if kind == TXT { vec![text] } else { vec![] }
        })
    };
    // An answer, with authority; or that there is no such name.
    let flags: u16 = if found.is_some() { 0x8580 } else { 0x8583 };
    let found = found.unwrap_or_default();
    let counts = [1, u16::try_from(found.len()).unwrap(), 0, 0];
    let mut reply = [&message[..2], &flags.to_be_bytes()].concat();
    reply.extend(counts.into_iter().flat_map(u16::to_be_bytes));
    reply.extend(question);
    for data in found {
        // Of the name that was asked for, good for a second.
        reply.extend([0xc0, 12]);
        reply.extend([kind, 1].into_iter().flat_map(u16::to_be_bytes));
        reply.extend(1_u32.to_be_bytes());
        reply.extend(u16::try_from(data.len()).unwrap().to_be_bytes());
        reply.extend(data);
    }
    Some(reply)
}
