//! A TCP proxy that can be cut and that can go silent.

use std::sync::{
    Arc,
    atomic::{AtomicU8, Ordering},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::Notify,
    task::JoinHandle,
};

/// What the line does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Line {
    Up = 0,
    /// Connections are reset and refused.
    Cut = 1,
    /// Connections stay open, and nothing comes through: no data, no reset.
    Silent = 2,
}

/// Passes connections on to a port of this machine.
pub struct Proxy {
    pub port: u16,
    line: Arc<AtomicU8>,
    changed: Arc<Notify>,
    task: JoinHandle<()>,
}

impl Proxy {
    pub async fn to(target: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let line = Arc::new(AtomicU8::new(Line::Up as u8));
        let changed = Arc::new(Notify::new());
        let task = tokio::spawn(accept(listener, target, line.clone(), changed.clone()));
        Self { port, line, changed, task }
    }

    pub fn set(&self, line: Line) {
        self.line.store(line as u8, Ordering::SeqCst);
        self.changed.notify_waiters();
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

async fn accept(listener: TcpListener, target: u16, line: Arc<AtomicU8>, changed: Arc<Notify>) {
    while let Ok((client, _)) = listener.accept().await {
        if line.load(Ordering::SeqCst) == Line::Cut as u8 {
            continue; // Dropped, so reset.
        }
        let Ok(server) = TcpStream::connect(("127.0.0.1", target)).await else {
            continue;
        };
        let (client_read, client_write) = client.into_split();
        let (server_read, server_write) = server.into_split();
        let (line, changed) = (line.clone(), changed.clone());
        tokio::spawn(async move {
            tokio::select! {
                () = pass(client_read, server_write, &line, &changed) => {}
                () = pass(server_read, client_write, &line, &changed) => {}
            }
        });
    }
}

async fn pass(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, line: &AtomicU8, changed: &Notify) {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let change = changed.notified();
        tokio::pin!(change);
        change.as_mut().enable();
        match line.load(Ordering::SeqCst) {
            now if now == Line::Cut as u8 => return,
            now if now == Line::Silent as u8 => {
                change.await;
                continue;
            }
            _ => {}
        }
        let read = tokio::select! {
            () = &mut change => continue,
            read = from.read(&mut buffer) => read,
        };
        match read {
            Ok(0) | Err(_) => return,
            Ok(n) => {
                if to.write_all(&buffer[..n]).await.is_err() {
                    return;
                }
            }
        }
    }
}
