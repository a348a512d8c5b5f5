//! A TCP line of limited width and with a round trip, as between a shop and its cloud.
//!
//! ```text
//!   client ──read──▶ wait for the width ──▶ on its way for half a round trip ──write──▶ server
//! ```
//!
//! Each direction has the whole width, shared by all connections. What is sent waits in front of the line as in
//! a router's buffer, so that the line is busy for as long as anybody has something to send. Nothing is lost, and
//! a new connection starts at the full width: congestion control is not imitated.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::mpsc,
    task::JoinHandle,
    time::{Instant, sleep_until},
};

/// Small, so that connections take turns.
const PIECE: usize = 4096;

/// How much a connection may have in front of the line. More than the timer's millisecond, else the line would
/// stand idle between two pieces.
const BUFFER: Duration = Duration::from_millis(10);

/// What a line is like.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub round_trip: Duration,
    pub bits_per_second: u64,
}

/// One direction of all connections.
struct Direction {
    shape: Shape,
    carried: AtomicU64,
    free_at: Mutex<Instant>,
}

impl Direction {
    fn new(shape: Shape) -> Arc<Self> {
        Arc::new(Self { shape, carried: AtomicU64::new(0), free_at: Mutex::new(Instant::now()) })
    }

    /// When the last of so many bytes has left, behind all that others have sent before.
    fn send(&self, bytes: usize) -> Instant {
        self.carried.fetch_add(bytes as u64, Ordering::SeqCst);
        let takes = bytes as f64 * 8.0 / self.shape.bits_per_second as f64;
        let mut free_at = self.free_at.lock().unwrap();
        *free_at = (*free_at).max(Instant::now()) + Duration::from_secs_f64(takes);
        *free_at
    }
}

/// Passes connections on to a port of this machine.
pub struct SlowLine {
    pub port: u16,
    there: Arc<Direction>,
    back: Arc<Direction>,
    task: JoinHandle<()>,
}

impl SlowLine {
    pub async fn to(target: u16, shape: Shape) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (there, back) = (Direction::new(shape), Direction::new(shape));
        super::ends::leads(port, target);
        let task = tokio::spawn(accept(listener, target, there.clone(), back.clone()));
        Self { port, there, back, task }
    }

    pub fn uri(&self) -> String {
        format!("mongodb://127.0.0.1:{}/?directConnection=true", self.port)
    }

    /// Bytes that went to the target, and that came from it.
    pub fn carried(&self) -> (u64, u64) {
        let of = |direction: &Direction| direction.carried.load(Ordering::SeqCst);
        (of(&self.there), of(&self.back))
    }
}

impl Drop for SlowLine {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(listener: TcpListener, target: u16, there: Arc<Direction>, back: Arc<Direction>) {
    while let Ok((client, _)) = listener.accept().await {
        let Ok(server) = TcpStream::connect(("127.0.0.1", target)).await else {
            continue;
        };
        // What waits for an acknowledgement would be a delay of this machine, and not of the line.
        let _ = (client.set_nodelay(true), server.set_nodelay(true));
        let (client_read, client_write) = client.into_split();
        let (server_read, server_write) = server.into_split();
        let (there, back) = (there.clone(), back.clone());
        tokio::spawn(async move {
            tokio::select! {
                () = carry(client_read, server_write, &there) => {}
                () = carry(server_read, client_write, &back) => {}
            }
        });
    }
}

/// Until one side is done.
async fn carry(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, direction: &Direction) {
    let (sender, mut under_way) = mpsc::channel::<(Instant, Vec<u8>)>(4096);
    let reading = async move {
        let mut buffer = vec![0; PIECE];
        while let Ok(n @ 1..) = from.read(&mut buffer).await {
            let left_at = direction.send(n);
            let arrives_at = left_at + direction.shape.round_trip / 2;
            if sender.send((arrives_at, buffer[..n].to_vec())).await.is_err() {
                return;
            }
            sleep_until(left_at - BUFFER).await;
        }
    };
    let writing = async {
        while let Some((arrives_at, piece)) = under_way.recv().await {
            sleep_until(arrives_at).await;
            if to.write_all(&piece).await.is_err() {
                return;
            }
        }
    };
    tokio::join!(reading, writing);
}
