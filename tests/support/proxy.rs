//! A TCP proxy that can be cut, go silent, lose what one side says, and be slow.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU8, AtomicU16, AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, Interest, Ready},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::Notify,
    task::JoinHandle,
};

use super::ends;

/// What the line does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Line {
    Up = 0,
    /// Connections are reset and refused.
    Cut = 1,
    /// Connections stay open, and nothing comes through: no data, no reset. What was sent meanwhile comes
    /// through late when the line is up again.
    Silent = 2,
    /// What is asked comes through, and no answer does: it is swallowed, and the connection is of no more
    /// use when the line is up again.
    Mute = 3,
    /// 50 ms for each piece of at most 16 KiB.
    Slow = 4,
}

/// Passes connections on to a port of this machine.
pub struct Proxy {
    pub port: u16,
    wires: Wires,
    task: JoinHandle<()>,
}

/// What went over a line so far.
#[derive(Default)]
struct Carried {
    /// Bytes to the target, and back.
    asked: AtomicU64,
    answered: AtomicU64,
    /// Messages to the target.
    messages: AtomicU64,
}

/// Finds where messages of the wire protocol begin: each says first how long it is.
#[derive(Default)]
struct Framing {
    head: Vec<u8>,
    left: usize,
}

impl Framing {
    /// How many messages begin in what comes next.
    fn begun(&mut self, mut bytes: &[u8]) -> u64 {
        let mut begun = 0;
        while !bytes.is_empty() {
            if self.left > 0 {
                let n = self.left.min(bytes.len());
                self.left -= n;
                bytes = &bytes[n..];
                continue;
            }
            self.head.push(bytes[0]);
            bytes = &bytes[1..];
            if let Ok(len) = <[u8; 4]>::try_from(&self.head[..]) {
                self.head.clear();
                self.left = (u32::from_le_bytes(len) as usize).saturating_sub(4);
                begun += 1;
            }
        }
        begun
    }
}

impl Proxy {
    pub async fn to(target: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        ends::leads(port, target);
        let wires = Wires {
            line: Arc::new(AtomicU8::new(Line::Up as u8)),
            target: Arc::new(AtomicU16::new(target)),
            changed: Arc::default(),
            carried: Arc::default(),
            struck: Arc::default(),
            given_up: Arc::default(),
            resets: Arc::default(),
        };
        let task = tokio::spawn(accept(listener, wires.clone()));
        Self { port, wires, task }
    }

    /// How often a fault of the line has met something so far: a connection that was reset or refused, data that
    /// was held up, swallowed or slowed down. A fault on an idle line is none.
    pub fn struck(&self) -> u64 {
        self.wires.struck.load(Ordering::SeqCst)
    }

    /// How many connections were closed by who had asked something, while the answer was still due: that is how a wait
    /// ends that was long enough.
    pub fn given_up(&self) -> u64 {
        self.wires.given_up.load(Ordering::SeqCst)
    }

    /// Another server answers at its port from here on. Connections that stand are not changed by it.
    pub fn turn_to(&self, target: u16) {
        self.wires.target.store(target, Ordering::SeqCst);
    }

    /// Bytes that went to the target so far.
    pub fn asked(&self) -> u64 {
        self.wires.carried.asked.load(Ordering::SeqCst)
    }

    /// Bytes that came back so far.
    pub fn answered(&self) -> u64 {
        self.wires.carried.answered.load(Ordering::SeqCst)
    }

    /// Messages that went to the target so far.
    pub fn messages(&self) -> u64 {
        self.wires.carried.messages.load(Ordering::SeqCst)
    }

    pub fn set(&self, line: Line) {
        self.wires.line.store(line as u8, Ordering::SeqCst);
        self.wires.changed.notify_waiters();
    }

    /// Ends the connections whose answers were swallowed, as the system does that sends into the void: late.
    pub fn reset_mute(&self) {
        self.wires.resets.fetch_add(1, Ordering::SeqCst);
        self.wires.changed.notify_waiters();
    }

    pub fn uri(&self) -> String {
        format!("mongodb://127.0.0.1:{}/?directConnection=true", self.port)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What all connections of a line share.
#[derive(Clone)]
struct Wires {
    line: Arc<AtomicU8>,
    target: Arc<AtomicU16>,
    changed: Arc<Notify>,
    carried: Arc<Carried>,
    struck: Arc<AtomicU64>,
    given_up: Arc<AtomicU64>,
    resets: Arc<AtomicU64>,
}

impl Wires {
    fn strikes(&self) {
        self.struck.fetch_add(1, Ordering::SeqCst);
    }
}

async fn accept(listener: TcpListener, wires: Wires) {
    while let Ok((client, _)) = listener.accept().await {
        if wires.line.load(Ordering::SeqCst) == Line::Cut as u8 {
            wires.strikes();
            continue; // Dropped, so reset.
        }
        let target = wires.target.load(Ordering::SeqCst);
        let Ok(server) = TcpStream::connect(("127.0.0.1", target)).await else {
            continue;
        };
        let (client_read, client_write) = client.into_split();
        let (server_read, server_write) = server.into_split();
        let (wires, due) = (wires.clone(), AtomicBool::new(false));
        tokio::spawn(async move {
            tokio::select! {
                () = pass(client_read, server_write, (&wires, &due), Way::Question) => {}
                () = pass(server_read, client_write, (&wires, &due), Way::Answer) => {}
            }
        });
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Question,
    Answer,
}

/// Until the other end has closed it, whatever else there is to be read.
async fn closed(from: &OwnedReadHalf) {
    while !from.ready(Interest::READABLE).await.is_ok_and(Ready::is_read_closed) {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// One way of a connection; `due` once something was asked that has no answer yet.
async fn pass(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    (wires, due): (&Wires, &AtomicBool),
    way: Way,
) {
    let mut buffer = vec![0; 16 * 1024];
    let mut framing = Framing::default();
    let gives_up = || {
        wires.given_up.fetch_add(1, Ordering::SeqCst);
    };
    let (mut lost_at, mut was_silent, mut has_carried) = (None, false, false);
    loop {
        let change = wires.changed.notified();
        tokio::pin!(change);
        change.as_mut().enable();
        let now = wires.line.load(Ordering::SeqCst);
        if now == Line::Cut as u8 {
            wires.strikes();
            return;
        }
        let resets = wires.resets.load(Ordering::SeqCst);
        if lost_at.is_some_and(|at| resets > at) {
            return;
        }
        if now == Line::Silent as u8 {
            let held_up = async {
                let has_asked = matches!(from.peek(&mut [0]).await, Ok(1..));
                wires.strikes();
                if way == Way::Question {
                    closed(&from).await;
                    if has_asked || due.swap(false, Ordering::SeqCst) {
                        gives_up();
                    }
                }
                std::future::pending::<()>().await;
            };
            tokio::select! {
                () = &mut change => {}
                () = held_up => {}
            }
            was_silent = true;
            continue;
        }
        if std::mem::take(&mut was_silent) && has_carried && way == Way::Question {
            // As a kernel does, which retransmits in ever longer steps; a new connection is faster.
            tokio::time::sleep(Duration::from_secs(4)).await;
        }
        let read = tokio::select! {
            () = &mut change => continue,
            read = from.read(&mut buffer) => read,
        };
        let Ok(n @ 1..) = read else {
            if way == Way::Question && due.load(Ordering::SeqCst) {
                gives_up();
            }
            return;
        };
        if now == Line::Mute as u8 && way == Way::Answer {
            lost_at.get_or_insert(resets);
        }
        if lost_at.is_some() {
            wires.strikes();
            continue;
        }
        if now == Line::Slow as u8 {
            wires.strikes();
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        if to.write_all(&buffer[..n]).await.is_err() {
            return;
        }
        let bytes = match way {
            Way::Question => {
                wires.carried.messages.fetch_add(framing.begun(&buffer[..n]), Ordering::SeqCst);
                &wires.carried.asked
            }
            Way::Answer => &wires.carried.answered,
        };
        // Nothing is asked before the last answer has come, but for what the server tells unasked.
        due.store(way == Way::Question, Ordering::SeqCst);
        bytes.fetch_add(n as u64, Ordering::SeqCst);
        has_carried = true;
    }
}
