//! Takes HTTP requests and remembers them: a web hook's far end.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU16, Ordering},
    },
};

use serde_json::Value;

/// Listens until the process ends.
#[derive(Clone)]
pub struct Receiver {
    pub port: u16,
    requests: Arc<Mutex<Vec<(String, Value)>>>,
    answer: Arc<AtomicU16>,
}

impl Receiver {
    pub fn start() -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let receiver = Self {
            port: listener.local_addr().unwrap().port(),
            requests: Arc::default(),
            answer: Arc::new(AtomicU16::new(200)),
        };
        let shared = receiver.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let _ = shared.take(stream);
            }
        });
        receiver
    }

    /// What it answers from now on.
    pub fn answer(&self, status: u16) {
        self.answer.store(status, Ordering::Relaxed);
    }

    /// What was taken with a success so far: the request's line, and its JSON.
    pub fn requests(&self) -> Vec<(String, Value)> {
        self.requests.lock().unwrap().clone()
    }

    fn take(&self, mut stream: TcpStream) -> std::io::Result<()> {
        let mut reader = BufReader::new(stream.try_clone()?);
        let mut first = String::new();
        reader.read_line(&mut first)?;
        let mut length = 0;
        loop {
            let mut line = String::new();
            reader.read_line(&mut line)?;
            let line = line.trim().to_ascii_lowercase();
            if line.is_empty() {
                break;
            }
            if let Some(value) = line.strip_prefix("content-length:") {
                length = value.trim().parse().unwrap_or(0);
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body)?;
        let status = self.answer.load(Ordering::Relaxed);
        if status < 300 {
            let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
            self.requests.lock().unwrap().push((first.trim().to_owned(), body));
        }
        write!(stream, "HTTP/1.1 {status} Said\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
    }
}
