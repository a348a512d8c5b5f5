//! A server that says of itself what a sharded cluster's router (mongos) says: no build of one is at hand.

use bson::{RawDocument, RawDocumentBuf};
use mongodb::bson;
use outrigger::model::raw::{self, Builder};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    task::JoinHandle,
};

/// What a member of a replica set says of its set, and a router does not; and how answers may be compressed, for
/// here they are to be read.
const OF_A_SET: &[&[u8]] = &[
    b"setName",
    b"setVersion",
    b"hosts",
    b"primary",
    b"me",
    b"secondary",
    b"electionId",
    b"lastWrite",
    b"compression",
];

/// Passes connections on to a member of a replica set, and has its answers look as those of a router.
pub struct Router {
    port: u16,
    task: JoinHandle<()>,
}

impl Router {
    pub async fn to(target: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        super::ends::leads(port, target);
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let server = TcpStream::connect(("127.0.0.1", target)).await.unwrap();
                let (mut client_read, client_write) = client.into_split();
                let (server_read, mut server_write) = server.into_split();
                tokio::spawn(async move {
                    tokio::select! {
                        _ = tokio::io::copy(&mut client_read, &mut server_write) => {}
                        _ = answer(server_read, client_write) => {}
                    }
                });
            }
        });
        Self { port, task }
    }

    pub fn uri(&self) -> String {
        format!("mongodb://127.0.0.1:{}/", self.port)
    }
}

impl Drop for Router {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn answer(mut from: OwnedReadHalf, mut to: OwnedWriteHalf) -> std::io::Result<()> {
    loop {
        let mut head = [0; 16];
        from.read_exact(&mut head).await?;
        let int = |at: usize| i32::from_le_bytes(head[at..at + 4].try_into().unwrap());
        let mut body = vec![0; usize::try_from(int(0)).unwrap() - 16];
        from.read_exact(&mut body).await?;
        // In front of the document: flags and the kind of the section, or what `OP_REPLY` has.
        let before = if int(12) == 2013 { 5 } else { 20 };
        let document = RawDocument::from_bytes(&body[before..]).unwrap();
        let said = as_router(document);
        let len = i32::try_from(16 + before + said.as_bytes().len()).unwrap();
        let message = [&len.to_le_bytes(), &head[4..], &body[..before], said.as_bytes()].concat();
        to.write_all(&message).await?;
    }
}

fn as_router(said: &RawDocument) -> RawDocumentBuf {
    if !raw::fields(said).flatten().any(|field| field.name == b"setName") {
        return said.to_owned();
    }
    let mut document = Builder::default();
    document.push_str("msg", "isdbgrid");
    for field in raw::fields(said).flatten().filter(|field| !OF_A_SET.contains(&field.name)) {
        document.push_field(field);
    }
    document.finish()
}
