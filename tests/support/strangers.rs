//! Servers that are no MongoDB, or one that nobody can follow.

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    time::Duration,
};

use mongodb::bson::{Document, doc};

/// Serves each connection by `serve` for as long as the process lives; returns the port.
pub fn serve(serve: fn(TcpStream)) -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || serve(stream));
        }
    });
    port
}

/// Answers whatever it is asked as a web server does.
pub fn web(mut stream: TcpStream) {
    let _ = stream.read(&mut [0; 1024]);
    let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n");
}

/// Greets before it is asked.
pub fn greeting(mut stream: TcpStream) {
    let _ = stream.write_all(b"SSH-2.0-OpenSSH_9.2\r\n");
    let _ = stream.read(&mut [0; 1024]);
}

/// Never says anything.
pub fn silent(mut stream: TcpStream) {
    let _ = stream.set_read_timeout(Some(Duration::from_secs(60)));
    while stream.read(&mut [0; 1024]).is_ok_and(|read| read > 0) {}
}

/// Hangs up.
pub fn closing(_: TcpStream) {}

/// Says that it is a secondary of the set `rs`, whose only other member has a name that nobody knows.
pub fn unknown_names(mut stream: TcpStream) {
    const REPLY: u32 = 1;
    const QUERY: u32 = 2004;
    const MESSAGE: u32 = 2013;
    let mut header = [0; 16];
    while stream.read_exact(&mut header).is_ok() {
        let number = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().unwrap());
        let mut rest = vec![0; number(0) as usize - 16];
        if stream.read_exact(&mut rest).is_err() {
            return;
        }
        let (kind, before) = match number(12) {
            // Flags, cursor, position, how many.
            QUERY => (REPLY, [&[0; 16][..], &1u32.to_le_bytes()].concat()),
            _ => (MESSAGE, vec![0; 5]),
        };
        let mut body = Vec::new();
        hello().to_writer(&mut body).unwrap();
        let length = (16 + before.len() + body.len()) as u32;
        let mut reply = Vec::new();
        for part in [length, 1, number(4), kind] {
            reply.extend_from_slice(&part.to_le_bytes());
        }
        reply.extend(before);
        reply.extend(body);
        if stream.write_all(&reply).is_err() {
            return;
        }
    }
}

fn hello() -> Document {
    doc! {
        "ok": 1.0, "setName": "rs", "setVersion": 1, "isWritablePrimary": false, "ismaster": false, "secondary": true,
        "hosts": ["db1.invalid:27017"], "me": "db2.invalid:27017", "maxBsonObjectSize": 16_777_216,
        "maxMessageSizeBytes": 48_000_000, "maxWriteBatchSize": 100_000, "minWireVersion": 0, "maxWireVersion": 17,
    }
}
