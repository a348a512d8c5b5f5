//! Takes HTTP requests and remembers them: a web hook's far end, a heartbeat's, or whoever is asked in an agent's place.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU16, Ordering},
    },
};

use rustls::{
    ServerConfig, ServerConnection, StreamOwned,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use serde_json::Value;

/// Listens until the process ends.
#[derive(Clone)]
pub struct Receiver {
    pub port: u16,
    requests: Arc<Mutex<Vec<(String, Value)>>>,
    answer: Arc<AtomicU16>,
    /// Where it sends whoever asks, with an answer that says so.
    location: Arc<Mutex<String>>,
    /// What it says of a path, with the status.
    words: Arc<Mutex<BTreeMap<String, (u16, String)>>>,
}

impl Receiver {
    pub fn start() -> Self {
        Self::start_with(|receiver, stream| drop(receiver.take(stream)))
    }

    /// With TLS, by the certificate and the key of a file.
    pub fn start_tls(file: &Path) -> Self {
        let key = PrivateKeyDer::from_pem_file(file).unwrap();
        let chain: Vec<_> =
            CertificateDer::pem_file_iter(file).unwrap().map(Result::unwrap).collect();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, key);
        let config = Arc::new(config.unwrap());
        Self::start_with(move |receiver, stream| {
            let session = ServerConnection::new(config.clone()).unwrap();
            let _ = receiver.take(StreamOwned::new(session, stream));
        })
    }

    fn start_with(serve: impl Fn(&Self, TcpStream) + Send + 'static) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let receiver = Self {
            port: listener.local_addr().unwrap().port(),
            requests: Arc::default(),
            answer: Arc::new(AtomicU16::new(200)),
            location: Arc::default(),
            words: Arc::default(),
        };
        let shared = receiver.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                serve(&shared, stream);
            }
        });
        receiver
    }

    /// Sends whoever asks to another address from now on.
    pub fn redirect(&self, status: u16, location: &str) {
        location.clone_into(&mut self.location.lock().unwrap());
        self.answer(status);
    }

    /// What it answers from now on.
    pub fn answer(&self, status: u16) {
        self.answer.store(status, Ordering::Relaxed);
    }

    /// What it says of a path from now on, instead.
    pub fn says(&self, path: &str, status: u16, words: &str) {
        self.words.lock().unwrap().insert(path.to_owned(), (status, words.to_owned()));
    }

    /// What was taken with a success so far: the request's line, and its JSON.
    pub fn requests(&self) -> Vec<(String, Value)> {
        self.requests.lock().unwrap().clone()
    }

    fn take(&self, stream: impl Read + Write) -> std::io::Result<()> {
        let mut reader = BufReader::new(stream);
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
        let path = first.split(' ').nth(1).unwrap_or_default();
        let words = self.words.lock().unwrap().get(path).cloned();
        let (status, words) =
            words.unwrap_or_else(|| (self.answer.load(Ordering::Relaxed), String::new()));
        if status < 300 {
            let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
            self.requests.lock().unwrap().push((first.trim().to_owned(), body));
        }
        let location = match self.location.lock().unwrap().as_str() {
            place if (300..400).contains(&status) => format!("location: {place}\r\n"),
            _ => String::new(),
        };
        let stream = reader.get_mut();
        let length = words.len();
        let head = format!("HTTP/1.1 {status} Said\r\ncontent-length: {length}\r\n{location}");
        stream.write_all(format!("{head}connection: close\r\n\r\n{words}").as_bytes())?;
        stream.flush()
    }
}
